"""The tasks that come with ia2: prompts as the paper has them, on made-up rows and on real ones; the command line.

`python tests/test_tasks.py` writes the golden files anew: prompts of the made-up rows in golden/rows, which have the
columns of the hub's data sets, and, where IA2_DATA is set, hashes of prompts of the real rows.
"""

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ia2.cli import main
from ia2.data import read_rows
from ia2.files import read_json
from ia2.prompt import build_prompt
from ia2.tasks import FOLDER, load_task, task_names
from ia2.tasks.listing import answers
from ia2.tasks.rows import local_folder, read_pools
from ia2.tasks.taskfile import TaskFile, read_task_file
from ia2.world import TASKS

GOLDEN = Path(__file__).parent / "golden"
DATA = os.environ.get("IA2_DATA")
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
FILES = {name: read_task_file(FOLDER / f"{name}.yaml") for name in NAMES}
REAL = [name for name in NAMES if local_folder(FILES[name])]
WORDS = ["apple", "Friday", "banana", "Saturday", "Thursday", "Sunday", "Wednesday", "Monday"]


@pytest.fixture(params=["made up", pytest.param("real", marks=pytest.mark.skipif(not DATA, reason="no IA2_DATA"))])
def rows_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which rows IA2_DATA names, and the tasks that have some there."""
    if request.param == "made up":
        monkeypatch.setenv("IA2_DATA", str(GOLDEN / "rows"))
        return NAMES
    return REAL


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IA2_DATA", str(GOLDEN / "rows"))


def prompts(name: str) -> str:
    """Every test query of a task (three at most) behind two demos."""
    pools = read_pools(FILES[name], FOLDER)
    texts = []
    for test in pools.test[:3]:
        prompt = build_prompt(FILES[name].task, pools.train[:2], test.query)
        texts.append(f"{''.join(prompt.context)}{prompt.query}⟦{test.label}⟧\n")
    return "\n\n".join(texts)


def fingerprint(name: str) -> dict[str, Any]:
    pools = read_pools(FILES[name], FOLDER)
    return {
        "train": len(pools.train),
        "test": len(pools.test),
        "prompts_sha256": hashlib.sha256(prompts(name).encode()).hexdigest(),
    }


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_those_of_the_golden_files(name: str, made_up: None) -> None:
    assert prompts(name) == (GOLDEN / f"{name}.txt").read_bytes().decode()


@pytest.mark.skipif(not DATA, reason="IA2_DATA does not name a folder of benchmark rows")
@pytest.mark.parametrize("name", REAL)
def test_real_rows_give_the_prompts_and_counts_that_they_gave(name: str) -> None:
    assert fingerprint(name) == read_json(GOLDEN / "real.json")[name]


def labelled(column: str, query: str, label: str, *labels: str) -> Callable[[dict[str, Any]], tuple[str, str]]:
    return lambda row: (query.replace("@", str(row[column])), labels[int(row[label])])


TEXT, QUESTION = "Text:@\nLabel:", "Question:@\nAnswer:"
# The paper's forms of query and answer, written once more; None where a row is left out.
FORMS: dict[str, Callable[[dict[str, Any]], tuple[str, str] | None]] = {
    "sst2": labelled("sentence", TEXT, "label", "0", "1"),
    "fins": lambda row: None if row["label"] == 1 else (f"Text:{row['sentence']}\nLabel:", str(row["label"] // 2)),
    "poems": lambda row: (f"Text:{row['verse_text']}\nLabel:", str(row["label"])) if row["label"] in (0, 1) else None,
    "agn": labelled("text", TEXT, "label", "0", "1", "2", "3"),
    "bbcn": lambda row: (f"Text:{row['text'][:256]}\nLabel:", {4: "0", 3: "0", 2: "1", 1: "2", 0: "3"}[row["label"]]),
    "stf": labelled("question", QUESTION, "answer", "0", "1"),
    "gsm8k": lambda row: (row["question"], row["answer"].replace("\n\n", "\n")),
    "gsm8ks": lambda row: (row["question"], row["answer"].replace("\n\n", "\n")),
    "hmatha": lambda row: (row["problem"], row["solution"].replace("\n\n", "\n")),
    "sciq": lambda row: (row["question"], f"{row['support']}\n#### {row['correct_answer']}".replace("\n\n", "\n")),
    "trec": labelled(
        "text",
        "Question:@\nType:",
        "coarse_label",
        *("abbreviation", "entity", "description", "human", "location", "number"),
    ),
    **dict.fromkeys(("subj", "cr", "mr"), labelled("text", TEXT, "label", "0", "1")),
    "boolq": lambda row: (
        f"Passage:{row['passage']}\nQuestion:{row['question']}?\nAnswer:",
        "yes" if row["answer"] else "no",
    ),
    "rte": lambda row: (f"Premise:{row['sentence1']}\nHypothesis:{row['sentence2']}\nLabel:", str(row["label"])),
    "nq_open": lambda row: (f"Question:{row['question']}\nAnswer:", row["answer"][0]),
    "samsum": lambda row: (f"Dialogue:\n{row['dialogue']}\nSummary:", row["summary"]),
}


def raw_rows(name: str) -> list[dict[str, Any]]:
    """Every row of the splits that a task uses."""
    file, folder = FILES[name], local_folder(FILES[name])
    assert folder
    used = {f"{split}.jsonl" for _, splits in file.splits or () for split in splits}
    paths = [path for path in sorted(folder.glob("*.jsonl")) if path.name in used or not used]
    return [dict(row.columns) for path in paths for row in read_rows(path)]


def test_every_row_is_worded_as_the_paper_has_it_and_none_is_lost(rows_from: list[str]) -> None:
    for name in set(FORMS) & set(rows_from):
        pools = read_pools(FILES[name], FOLDER)
        found = {(example.query, example.label) for example in (*pools.train, *pools.test)}
        assert found == {pair for pair in map(FORMS[name], raw_rows(name)) if pair}, name


def choices(row: dict[str, Any]) -> tuple[str, list[str], str]:
    """The question, options and right option of a row, by its columns."""
    if "choices" in row:
        right = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        return row.get("question") or row["question_stem"], row["choices"]["text"], right
    if "sol1" in row:
        return row["goal"], [row["sol1"], row["sol2"]], row[("sol1", "sol2")[row["label"]]]
    return row["question"], [row["correct_answer"], *(row[f"distractor{i}"] for i in (1, 2, 3))], row["correct_answer"]


def test_options_are_named_by_unrelated_words_and_the_right_one_is_the_answer(rows_from: list[str]) -> None:
    names = set(NAMES) - set(FORMS)
    assert names == {"sciqr", "qascr", "commonsense_qa", "arc_easy", "openbookqa", "piqa"}
    for name in names & set(rows_from):
        pools = read_pools(FILES[name], FOLDER)
        found = {example.query: example.label for example in (*pools.train, *pools.test)}
        for question, options, right in map(choices, raw_rows(name)):
            query = next(query for query in found if _is_of(query, question, options))
            lines = query.removeprefix(f"Question:{question}\nChoices:\n").removesuffix("\n\nAnswer:")
            named = {WORDS[i]: line for i, line in enumerate(_split_options(lines, len(options)))}
            assert named[found.pop(query)] == right
        assert not found


def _is_of(query: str, question: str, options: list[str]) -> bool:
    start, end = f"Question:{question}\nChoices:\n[apple]", "\n\nAnswer:"
    return query.startswith(start) and query.endswith(end) and all(f"]{option}\n" in query for option in options)


def _split_options(lines: str, n: int) -> list[str]:
    """The n options that `[apple]one\\n[Friday]two` names, in that order."""
    options = []
    for i in range(n):
        lines = lines.removeprefix(f"[{WORDS[i]}]")
        option, _, lines = lines.partition(f"\n[{WORDS[i + 1]}]" if i + 1 < n else "\n\n\n")
        options.append(option)
    return options


def test_the_tasks_that_come_with_it() -> None:
    paper = ["agn", "bbcn", "fins", "gsm8k", "gsm8ks", "hmatha", "poems", "qascr", "sciq", "sciqr", "sst2", "stf"]
    beyond = ["arc_easy", "boolq", "commonsense_qa", "cr", "mr", "openbookqa", "piqa", "rte", "subj", "trec"]
    assert [name for name in NAMES if FILES[name].paper] == paper
    assert sorted([*paper, *beyond, "nq_open", "samsum"]) == NAMES
    assert task_names() == [*NAMES, *TASKS]
    for name, file in FILES.items():
        assert file.name == name
        assert file.description
        assert len((FOLDER / f"{name}.yaml").read_text().splitlines()) <= 15
    pairs = {(name, other) for name in NAMES for other in FILES[name].ood}
    assert pairs == {
        *{("sst2", "fins"), ("sst2", "poems"), ("fins", "sst2"), ("fins", "poems")},
        *{("sciqr", "qascr"), ("agn", "bbcn"), ("gsm8k", "gsm8ks")},
    }


def test_scoring_is_as_the_paper_has_it() -> None:
    tasks = {name: load_task(name).task for name in NAMES}
    assert all(task.separator == "\n\n" for task in tasks.values())
    assert tasks["sst2"].labels == tasks["fins"].labels == tasks["poems"].labels == tasks["stf"].labels == ("0", "1")
    assert sorted(tasks["agn"].labels or ()) == sorted(tasks["bbcn"].labels or ()) == ["0", "1", "2", "3"]
    assert list(tasks["qascr"].labels or ()) == WORDS
    assert tasks["hmatha"].correct(r"\boxed{x^2-1}", r"thus \boxed{(x-1)(x+1)}")
    assert tasks["gsm8k"].correct("6 * 7\n#### 42 eggs", "#### 42")
    assert not tasks["gsm8k"].correct("42", "#### 42")
    assert tasks["sciq"].correct("why.\n#### Ice", "#### ice")
    assert tasks["nq_open"].correct("The Lake.", "lake")
    assert 0 < tasks["samsum"].score("Ada eats lunch", "Ada has lunch") < 1
    assert [tasks[name].max_new_tokens for name in ("gsm8k", "gsm8ks", "sciq", "hmatha")] == [200, 200, 200, 400]


@pytest.mark.skipif(not DATA, reason="IA2_DATA does not name a folder of benchmark rows")
def test_every_real_solution_can_be_parsed_and_is_equal_to_itself() -> None:
    task = load_task("gsm8k").task
    solutions = [row["answer"] for row in raw_rows("gsm8k")]
    for solution in solutions:
        number = solution.split("####")[-1].strip()
        assert task.parse(solution) == number
        assert task.correct(f"It is #### ${number}.00 in all", solution)
        assert not task.correct(f"#### -{number}1", solution)


def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ia2", "tasks", *args])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_the_list(made_up: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run_cli(capsys, monkeypatch)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    rows = {row[0]: row[1:] for row in cells if row[0]}
    assert code == 0
    assert list(rows) == [f"{name} *" if name in NAMES and FILES[name].paper else name for name in task_names()]
    assert rows["sst2 *"][:3] == ["label", "0, 1", "stanfordnlp/sst2"]
    assert rows["samsum"][:3] == ["generated", "text, rouge", "knkarthick/samsum"]
    assert rows["mood"] == ["label", "0, 1", "embedded world", "embedded"]
    monkeypatch.delenv("IA2_DATA")
    assert "stanfordnlp/sst2 │ no" in " ".join(run_cli(capsys, monkeypatch)[1].split())


def test_prompts_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run_cli(capsys, monkeypatch, "show", "mood", "--n-demos", "1")
    benchmark = load_task("mood")
    (demo,), tests = benchmark.rows("train", 1), benchmark.rows("test", 3)
    shown = [f"{demo.query}{demo.label}\n\n{test.query}\n--- response\n{test.label}" for test in tests]
    assert code == 0
    assert out == "".join(f"--- prompt {i} of 3\n{text}\n" for i, text in enumerate(shown, 1))
    code, out, err = run_cli(capsys, monkeypatch, "show", "moood")
    assert (code, out, err) == (2, "", "ia2: unknown task 'moood': did you mean 'mood'?\n")


DOCS = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_the_docs_have_every_task_and_every_key() -> None:
    assert table() in DOCS
    keys = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", DOCS.partition("| key |")[2], re.MULTILINE)
    assert sorted(re.findall(r"\w+", " ".join(keys))) == sorted(TaskFile.model_fields)


def test_the_docs_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", DOCS, re.DOTALL))
    exec(blocks["python"], {})
    monkeypatch.chdir(tmp_path)
    Path("reviews.yaml").write_text(blocks["yaml"])
    for name in ("reviews.csv", "reviews-test.csv"):
        Path(name).write_text("text,stars\n" + "".join(f"{name} {i},{1 + i % 5}\n" for i in range(10)))
    assert Counter(row.label for row in load_task("reviews.yaml").rows("test")) == {"bad": 4, "good": 4}


def table() -> str:
    lines = ["| task | what | kind | labels, or parser | data set | also tested on |", "|---|---|---|---|---|---|"]
    for name in NAMES:
        task, file = load_task(name), FILES[name]
        title, source = f"`{name}`{' *' if task.paper else ''}", " ".join(filter(None, (file.dataset, file.config)))
        cells = (title, task.description, task.kind, answers(task), source, ", ".join(task.ood))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if DATA:
        real = {name: fingerprint(name) for name in REAL}
        (GOLDEN / "real.json").write_text(json.dumps(real, indent=2) + "\n")
    os.environ["IA2_DATA"] = str(GOLDEN / "rows")
    for task_name in NAMES:
        (GOLDEN / f"{task_name}.txt").write_bytes(prompts(task_name).encode())
    print(table())
