"""Rows of tasks: drawn without overlap, from files, the hub or the world; what is left out, and mistakes in them."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ia2.data import Example, n_dev, read_rows
from ia2.errors import IA2Error
from ia2.tasks import FOLDER, load_task
from ia2.tasks.benchmark import SPLITS, Benchmark
from ia2.tasks.rows import Pools, local_folder, read_pools
from ia2.tasks.taskfile import TaskFile, read_task_file
from ia2.world import TASKS

ROWS_FOLDER = Path(__file__).parent / "golden" / "rows"


def own_task(folder: Path, rows: Sequence[dict[str, Any]], **keys: Any) -> TaskFile:
    """A task of one's own in `folder`, on these rows."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {"name": "own", "files": {"train": "rows.jsonl"}, **keys}
    (folder / "own.yaml").write_text(json.dumps(values))
    return read_task_file(folder / "own.yaml")


def numbered(n: int) -> list[dict[str, Any]]:
    return [{"query": f"q{i}", "response": str(i % 2)} for i in range(n)]


@pytest.mark.parametrize("name", ["mood", "place-choice", "sum-mood-food"])
def test_the_embedded_world_is_drawn_like_any_other(name: str) -> None:
    benchmark = load_task(name)
    assert benchmark.ood == tuple(other.name for other in TASKS.values() if other.ood_of == name)
    assert len(benchmark.rows("test")) == 400
    check_draws(benchmark, 5, 20, 0)
    for row in benchmark.rows("train", 10):
        assert benchmark.task.correct(row.label, row.label)
    with pytest.raises(IA2Error, match="say how many"):
        benchmark.rows("train")


def test_the_embedded_world_says_where_its_rows_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ia2.world.tasks._PATIENCE", 1)
    with pytest.raises(IA2Error, match=r"no more than \d+ different rows in its split 'dev', and 1000000 are needed"):
        load_task("food-words").rows("dev", 1000000)


def test_every_world_task_has_the_test_rows_that_are_drawn_by_default() -> None:
    for name in TASKS:
        assert len(load_task(name).rows("test", seed=3)) == 400


def check_draws(benchmark: Benchmark, few: int, many: int, seed: int) -> None:
    """No query in two splits; fewer rows are the first of more; test rows do not depend on how many are trained on."""
    drawn = {split: benchmark.rows(split, n, seed) for split, n in zip(SPLITS, (many, n_dev(many), 5), strict=True)}
    queries = [row.query for split in SPLITS for row in drawn[split]]
    assert len(set(queries)) == len(queries) == many + n_dev(many) + 5
    assert drawn["train"][:few] == benchmark.rows("train", few, seed)
    assert drawn["dev"][: n_dev(few)] == benchmark.rows("dev", n_dev(few), seed)
    assert drawn["test"] == benchmark.rows("test", 5, seed)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 5))
def test_rows_are_drawn_without_overlap(
    tmp_path_factory: pytest.TempPathFactory, few: int, more: int, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    own_task(folder, numbered(91))  # 30 to test on, of 61 others 20 for development
    benchmark = load_task(folder / "own.yaml")
    check_draws(benchmark, few, few + more, seed)
    assert [len(benchmark.rows(split, seed=seed)) for split in SPLITS] == [41, 20, 30]


def test_seeds_draw_differently_and_the_test_rows_are_the_same_set(tmp_path: Path) -> None:
    own_task(tmp_path, numbered(91))
    one, two = (load_task(tmp_path / "own.yaml") for _ in range(2))
    for split in SPLITS:
        assert one.rows(split, 8, 1) == two.rows(split, 8, 1) != two.rows(split, 8, 2)
    assert set(one.rows("test", seed=1)) == set(two.rows("test", seed=2))
    reordered = [row for i in (2, 0, 1) for row in numbered(91)[i::3]]
    own_task(tmp_path, reordered)
    assert set(load_task(tmp_path / "own.yaml").rows("test")) == set(one.rows("test"))


def test_what_is_left_out_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*texts: str) -> str:
        return "\n".join(json.dumps({"text": text, "label": int(text[-1])}) for text in texts)

    (tmp_path / "train.jsonl").write_text(rows("a0", "b1", "B1", "c2", "d1", "x0", "y1"))
    (tmp_path / "dev.jsonl").write_text(rows("y1", "z0"))
    (tmp_path / "test.jsonl").write_text(rows("x 0", "x  0", "w2", "v1"))
    files = {"files": {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}}
    keys = {"drop": {"label": [2]}, "query": "{text}", "response": "{label}", "labels": ["0", "1"]}
    pools = read_pools(own_task(tmp_path, [], **files, **keys), tmp_path)
    assert [[row.query for row in getattr(pools, split)] for split in SPLITS] == [
        ["a0", "b1", "d1", "x0"],
        ["y1", "z0"],
        ["x 0", "v1"],
    ]
    assert pools.report == (
        "own test: 2 of 4 rows; 1 left out by their 'label', 1 left out as they occur twice",
        "own train: 4 of 7 rows; 1 left out by their 'label', 1 left out as they occur twice, "
        "1 left out as dev has them",
    )
    assert capsys.readouterr().err.splitlines() == list(pools.report)


def test_blank_lines_in_a_response_are_closed_and_counted(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "response": response} for i, response in enumerate(("a\n\n\nb", "c", "d\n\ne"))]
    pools = read_pools(own_task(tmp_path, rows), tmp_path)
    assert {row.response for row in (*pools.train, *pools.test)} == {"a\nb", "c", "d\ne"}
    assert pools.report == ("own train: 3 of 3 rows; 2 whose response had blank lines, now closed",)
    labels = own_task(tmp_path, rows, labels={"a\n\n\nb": "0", "c": "1", "d\n\ne": "1"})
    assert read_pools(labels, tmp_path).report == ()


def test_the_right_option_is_anywhere_and_always_at_the_same_place(tmp_path: Path) -> None:
    rows = [{"q": f"q{i}", "right": f"yes {i}", "wrong": f"no {i}", "other": f"never {i}"} for i in range(900)]
    options = {"texts": ["right", "wrong", "other"], "answer": "right"}
    file = own_task(tmp_path, rows, query="{q}\n{options}", options=options, labels=["a", "b", "c"])
    once, again = (read_pools(file, tmp_path) for _ in range(2))
    assert once == again
    places = Counter(example.label for example in (*once.train, *once.test))
    assert all(250 < places[label] < 350 for label in "abc")  # 300 expected, deviation 14


ROWS = [{"text": f"t{i}", "label": i % 2, "list": ["a"], "none": None} for i in range(6)]
WORDED = {"query": "{text}", "response": "{label}", "labels": ["0", "1"]}

CHOICE = {"query": "{q}{options}", "labels": ["A", "B"], "options": {"texts": "o", "answer": "a"}}


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        (
            [*ROWS, {"text": "t", "label": 2}],
            WORDED,
            "rows.jsonl:7: the label '2' is not in the label set; allowed: '0'",
        ),
        (ROWS, {**WORDED, "query": "{txt}"}, "rows.jsonl:1: unknown column 'txt': did you mean 'text'?"),
        ([*ROWS, {"query": "a"}], WORDED, "rows.jsonl:7: unknown column 'label': expected one of: query"),
        (ROWS, {**WORDED, "query": "{list}"}, "rows.jsonl:1: 'list' is ['a'], expected a text"),
        (ROWS, {**WORDED, "query": "{list[1]}"}, "rows.jsonl:1: no 'list[1]'; 'list' is ['a']"),
        (ROWS, {**WORDED, "query": "{text[a]}"}, "rows.jsonl:1: no 'text[a]'"),
        (ROWS, {**WORDED, "response": "{none}"}, "rows.jsonl:1: 'none' is None, expected a text"),
        (ROWS, {**WORDED, "drop": {"label": [0, 1]}}, "own train: no rows left of 6; 6 left out by their 'label'"),
        ([], WORDED, "rows.jsonl: no rows"),
        (numbered(2), {}, "own: 2 rows are too few to set a third aside for testing"),
        (ROWS, {}, "rows.jsonl:1: no 'query'; the row has 'text'"),
        ([*numbered(3), {"prompt": "a", "completion": "b"}], {}, "rows.jsonl:4: has 'prompt', but rows.jsonl:1 has"),
        (
            [{"text": "t", "label": "a~b"}],
            {"query": "{text}", "response": "{label}", "separator": "~"},
            "rows.jsonl:1: the response holds the separator '~'",
        ),
        (ROWS, {**WORDED, "files": {"train": "none.jsonl"}}, "none.jsonl: no such file"),
        (
            [{"q": "a", "o": ["x", "y"], "k": ["1", "2"], "a": "3"}],
            {"query": "{q}{options}", "labels": ["A", "B"], "options": {"texts": "o", "keys": "k", "answer": "a"}},
            "rows.jsonl:1: the right option is '3'; expected one of '1', '2'",
        ),
        *(
            ([{"q": "a", "o": o, "a": 0}], CHOICE, f"rows.jsonl:1: {message}")
            for o, message in [("xy", "'o' is 'xy', expected a list"), (["x", None], "one of 'o' is None"), ([], "")]
        ),
        (
            [{"q": "a", "o": ["x", "y", "z"], "a": 0}],
            CHOICE,
            "rows.jsonl:1: 3 options, but only 2 labels to name them by",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_mistakes_in_rows(rows: list[dict[str, Any]], keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    own_task(tmp_path, rows, **keys)
    with pytest.raises(IA2Error) as error:
        load_task(tmp_path / "own.yaml").rows("test")
    assert message in str(error.value).replace(f"{tmp_path}/", "")
    assert "\n" not in str(error.value)


def test_fewer_rows_than_are_asked_for(tmp_path: Path) -> None:
    own_task(tmp_path, numbered(30))
    benchmark = load_task(tmp_path / "own.yaml")
    there = "in all, 14 to train on, 6 for development, 10 to test on"
    for split, n, n_there in (("train", 15, 14), ("dev", 7, 6), ("test", 11, 10)):
        with pytest.raises(IA2Error, match=f"own: {n} {split} rows are needed and there are {n_there}; {there}"):
            benchmark.rows(split, n)  # type: ignore[arg-type]
    with pytest.raises(IA2Error, match="unknown split 'tset': did you mean 'test'"):
        benchmark.rows("tset", 1)  # type: ignore[arg-type]


def test_one_s_own_task_from_csv_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sentence,mood\n" + "".join(f"s{i},{'ab'[i % 2]}\n" for i in range(9)))
    pq.write_table(pa.Table.from_pylist([{"sentence": f"t{i}", "mood": "a"} for i in range(4)]), tmp_path / "b.parquet")
    (tmp_path / "own.yaml").write_text(
        "name: own\nfiles: {train: a.csv, test: b.parquet}\n"
        'query: "Text:{sentence}\\nLabel:"\nresponse: "{mood}"\nlabels: {a: sad, b: glad}\n'
    )
    benchmark = load_task(str(tmp_path / "own.yaml"))
    assert (benchmark.kind, benchmark.task.labels, benchmark.at_hand) == ("label", ("sad", "glad"), "files")
    assert set(benchmark.rows("test")) == {Example(f"Text:t{i}\nLabel:", "sad") for i in range(4)}
    assert len(benchmark.rows("train")) + len(benchmark.rows("dev")) == 9


def test_privileged_context_is_read_with_a_template_and_without(tmp_path: Path) -> None:
    rows = [{**row, "privileged_context": f"c{i}"} for i, row in enumerate(numbered(4))]
    for keys in ({}, {"query": "{query}", "response": "{response}"}, {"labels": ["0", "1"]}):
        pools = read_pools(own_task(tmp_path, rows, **keys), tmp_path)
        assert {(row.query, row.context) for row in (*pools.train, *pools.test)} == {
            (f"q{i}", f"c{i}") for i in range(4)
        }


def hub_pools(file: TaskFile, monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> Pools:
    monkeypatch.delenv("IA2_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return read_pools(file, FOLDER)


@pytest.mark.parametrize("name", ["sst2", "fins", "stf", "arc_easy", "samsum"])
def test_rows_of_the_hub_are_those_of_local_copies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IA2_DATA", str(ROWS_FOLDER))
    file = read_task_file(FOLDER / f"{name}.yaml")
    folder, local, asked = local_folder(file), read_pools(file, FOLDER), []
    assert folder
    splits = {path.stem: [dict(row.columns) for row in read_rows(path)] for path in sorted(folder.glob("*.jsonl"))}

    def load(*args: Any) -> datasets.DatasetDict:
        asked.append(args)
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})

    assert hub_pools(file, monkeypatch, load) == local
    assert asked == [(file.dataset, file.config)]


def test_a_data_set_with_a_loading_script_comes_from_its_parquet_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, config: str | None = None, **more: str) -> datasets.DatasetDict:
        if not more:
            raise RuntimeError("Dataset scripts are no longer supported, but found financial_phrasebank.py")
        assert (name, config) == ("takala/financial_phrasebank", None)
        assert more == {"data_dir": "sentences_50agree", "revision": "refs/convert/parquet"}
        rows = [{"sentence": f"s{i}", "label": i % 3} for i in range(9)]
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})

    pools = hub_pools(read_task_file(FOLDER / "fins.yaml"), monkeypatch, load)
    assert {row.label for row in (*pools.train, *pools.test)} == {"0", "1"}
    assert pools.report == ("fins train: 6 of 9 rows; 3 left out by their 'label'",)


@pytest.mark.parametrize("data", ["", "a folder without the rows"])
def test_the_hub_out_of_reach(data: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IA2_DATA", data and str(tmp_path))
    with pytest.raises(IA2Error) as error:
        load_task("sst2").rows("train", 4)
    message = str(error.value)
    assert message.startswith("cannot load the data set 'stanfordnlp/sst2' from the Hugging Face hub (Couldn't reach")
    assert message.endswith("set IA2_DATA to a folder that has sst2/train.jsonl and sst2/validation.jsonl")


def test_a_split_of_the_hub_that_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = datasets.DatasetDict({split: datasets.Dataset.from_list([]) for split in ("train", "validation")})
    with pytest.raises(IA2Error, match="sst2 test: no rows left of 0; it is empty"):
        hub_pools(read_task_file(FOLDER / "sst2.yaml"), monkeypatch, lambda *_: empty)


def test_a_local_copy_that_lacks_a_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text('{"sentence": "a", "label": 0}')
    monkeypatch.setenv("IA2_DATA", str(tmp_path))
    with pytest.raises(IA2Error, match=r"unknown split of .*sst2 'validation': expected one of: train"):
        load_task("sst2").rows("train", 4)
