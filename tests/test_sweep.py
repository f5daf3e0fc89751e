"""Grids: every cell once, the same rows wherever it runs, failures told."""

import json
from pathlib import Path
from shutil import rmtree
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from conftest import example_rows

from ia2.comparison import read_predictions
from ia2.errors import IA2Error
from ia2.files import write_jsonl
from ia2.sweep import Grid, Point, cell_of, read_grid, sweep
from ia2.world import TASKS

FAST = {"num_train_epochs": 1, "learning_rate": [1e-2]}
GRID: dict[str, Any] = {"tasks": ["mood"], "n": [4], "seeds": [0, 1], "methods": ["sft"], "n_test": 6, "options": FAST}

FINS = [{"sentence": f"profit {i}", "label": 2 * (i % 2)} for i in range(30)]


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(json.dumps({**GRID, **changes}))  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("swept")
    return folder, sweep(Grid(**GRID), folder)


def test_one_tidy_row_a_cell_and_method(swept: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = swept
    kinds = ["zero-shot", "icl", "sft", "icl+contextual"]
    assert [(row["seed"], row["method"]) for row in rows] == [(seed, kind) for seed in (0, 1) for kind in kinds]
    table = pd.read_csv(folder / "results.csv")
    pd.testing.assert_frame_equal(table, pd.read_parquet(folder / "results.parquet"))
    assert list(table.n) == [4] * len(rows)
    assert list(table.n_test) == [6] * len(rows)
    shown = (folder / "results.md").read_text()
    accuracy = table[table.method == "sft"].accuracy
    assert f"{100 * accuracy.mean():.1f} ± {100 * accuracy.sem():.1f}" in shown
    differences = pd.read_csv(folder / "differences.csv")
    assert list(differences.metric) == ["accuracy", "ece", "nll", "brier"]  # of one pair, over both cells
    gaps = [rows[4 * seed + 2]["accuracy"] - rows[4 * seed + 1]["accuracy"] for seed in (0, 1)]
    assert differences.value[0] == pytest.approx(sum(gaps) / 2)
    assert "| SFT minus ICL |" in (folder / "differences.md").read_text()
    assert "Accuracy of each method on mood" in (folder / "report.html").read_text()
    assert (folder / "results.tex").is_file()
    assert (folder / "results.html").is_file()


def test_finished_cells_never_run_again_and_missing_ones_do(
    swept: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = swept
    ran: list[Point] = []
    monkeypatch.setattr("ia2.sweep.run_point", lambda grid, point, folder: ran.append(point))
    assert sweep(Grid(**GRID), folder) == rows
    assert ran == []
    assert "2 of 2 cells are done already" in capsys.readouterr().err
    with pytest.raises(IA2Error, match=r"failed\.json"):  # the new cell was left out by the line above
        sweep(Grid(**{**GRID, "seeds": [0, 1, 2]}), folder)
    assert [point.seed for point in ran] == [2]


def test_what_is_asked_anew_is_not_answered_with_old_results(tmp_path: Path) -> None:
    grid = {**GRID, "seeds": [0]}
    sweep(Grid(**grid), tmp_path)
    trained = (tmp_path / "cells" / "tiny_mood_n4_seed0_lora" / "sft" / "adapters" / "sft" / "training.json").stat()
    more = sweep(Grid(**{**grid, "methods": ["sft", "ia2"], "n_test": 9}), tmp_path)
    assert {"sft", "ia2"} <= {row["method"] for row in more}
    assert {row["n_test"] for row in more} == {9}
    again = (tmp_path / "cells" / "tiny_mood_n4_seed0_lora" / "sft" / "adapters" / "sft" / "training.json").stat()
    assert again.st_mtime_ns == trained.st_mtime_ns  # the adapter that was there is used
    with pytest.raises(IA2Error, match="no cell of 1 succeeded"):
        sweep(Grid(**{**grid, "options": {**FAST, "loss": "mse"}}), tmp_path)
    (failed,) = tmp_path.rglob("failed.json")
    assert "now 'mse': choose another output folder" in failed.read_text()


def test_a_partner_with_other_labels_is_answered_with_its_own(tmp_path: Path) -> None:
    rows = sweep(Grid(**{**GRID, "tasks": ["place-choice"], "seeds": [0], "ood": True}), tmp_path)
    assert {row["test"] for row in rows} == {"place-choice", "place-choice-others"}
    found = read_predictions(tmp_path / "cells" / "tiny_place-choice_n4_seed0_lora")
    contextual = [name for name, predictions in found.items() if any("+" in p.variant for p in predictions)]
    assert contextual == ["place-choice"]  # what the model says to an empty query is of these labels
    for name, predictions in found.items():
        assert {tuple(p.p_labels or ()) for p in predictions} == {TASKS[name].labels}
        assert {p.response for p in predictions} <= set(TASKS[name].labels or ())


def test_a_partner_without_rows_is_listed_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IA2_DATA", str(tmp_path))
    monkeypatch.setattr("datasets.load_dataset", Mock(side_effect=OSError("no network")))
    write_jsonl(
        tmp_path / "poem_sentiment" / "train.jsonl", [{"verse_text": f"a {i}", "label": i % 2} for i in range(9)]
    )
    for split in ("validation", "test"):
        rows = [{"verse_text": f"{split} {i}", "label": i % 2} for i in range(9)]
        write_jsonl(tmp_path / "poem_sentiment" / f"{split}.jsonl", rows)
    task = tmp_path / "mine.yaml"
    task.write_text('name: mine\nfiles: {train: mine.jsonl}\nlabels: ["0", "1"]\nood: [poems, fins]\n')
    write_jsonl(tmp_path / "mine.jsonl", [{"query": row.query, "response": row.label} for row in example_rows(30)])
    grid = Grid(**{**GRID, "tasks": [str(task)], "seeds": [0], "ood": True, "n_test": 5})
    found = sweep(grid, tmp_path / "out")
    assert {row["test"] for row in found} == {"mine", "poems"}
    reason = "not tested on fins: cannot load the data set 'takala/financial_phrasebank'"
    assert f"failed: tiny_mine_n4_seed0_lora: {reason}" in capsys.readouterr().err
    assert reason in (tmp_path / "out" / "report.html").read_text().replace("&#x27;", "'")
    write_jsonl(tmp_path / "financial_phrasebank" / "train.jsonl", FINS)
    assert {row["test"] for row in sweep(grid, tmp_path / "out")} == {"mine", "poems", "fins"}


def test_a_task_file_of_ones_own_whose_rows_changed_is_noticed(tmp_path: Path) -> None:
    rows = [{"query": row.query, "response": row.label} for row in example_rows(30)]
    task, out = tmp_path / "mine.yaml", tmp_path / "out"
    task.write_text('name: mine\nfiles: {train: train.jsonl, test: test.jsonl}\nlabels: ["0", "1"]\n')
    write_jsonl(tmp_path / "train.jsonl", rows[:12])
    write_jsonl(tmp_path / "test.jsonl", rows[12:18])
    grid = Grid(**{**GRID, "tasks": [str(task)], "seeds": [0], "n_test": None})
    found = sweep(grid, out)
    assert sweep(grid, out) == found  # to the milliseconds: not run again
    write_jsonl(tmp_path / "test.jsonl", rows[12:20])
    assert {row["n_test"] for row in sweep(grid, out)} == {8}
    write_jsonl(tmp_path / "train.jsonl", rows[20:])
    with pytest.raises(IA2Error, match="no cell of 1 succeeded"):
        sweep(grid, out)
    assert "a run on other rows" in next(out.rglob("failed.json")).read_text()


def test_a_cell_that_fails_says_why_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, whole = Grid(**{**GRID, "methods": ["sft"]}), cell_of

    def breaking(grid: Grid, point: Point, *more: Any) -> Any:
        if point.seed == 0:
            raise RuntimeError("out of luck")
        return whole(grid, point, *more)

    monkeypatch.setattr("ia2.sweep.cell_of", breaking)
    rows = sweep(grid, tmp_path)
    assert {row["seed"] for row in rows} == {1}
    assert "failed: tiny_mood_n4_seed0_lora: RuntimeError: out of luck" in capsys.readouterr().err
    monkeypatch.setattr("ia2.sweep.cell_of", whole)
    assert {row["seed"] for row in sweep(grid, tmp_path)} == {0, 1}
    assert not list(tmp_path.rglob("failed.json"))


def test_more_examples_begin_with_the_fewer_and_are_tested_on_the_same_rows(tmp_path: Path) -> None:
    grid = Grid(**{**GRID, "methods": ["ia2+unlabelled"], "ood": True, "n_unlabelled": 3})
    few, many = (cell_of(grid, Point("tiny", "mood", n, 0, "lora"), tmp_path) for n in (4, 8))
    assert many.data.train[:4] == few.data.train
    assert many.tests == few.tests
    assert set(few.tests) == {"mood", "mood-rare"}
    assert len(few.data.dev) == 2
    assert len(few.data.unlabelled) == 3
    assert not {e.query for e in few.data.unlabelled} & {e.query for e in few.data.train}


def test_labels_that_the_model_cannot_tell_apart_fail_before_training(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [{"query": f"soup {i}", "response": "yn"[i % 2]} for i in range(30)])
    task = tmp_path / "mine.yaml"
    task.write_text("name: mine\nfiles: {train: mine.jsonl}\nlabels: {y: unheard, n: unseen}\n")
    with pytest.raises(IA2Error, match="no cell of 1 succeeded"):
        sweep(Grid(**{**GRID, "tasks": [str(task)], "seeds": [0]}), tmp_path / "out")
    (failed,) = tmp_path.rglob("failed.json")
    assert "the labels 'unheard', 'unseen' are not told apart" in failed.read_text()
    assert [path.name for path in failed.parent.iterdir()] == ["failed.json"]


def test_names_never_become_paths() -> None:
    assert Point("../../x/y", "/etc/passwd.yaml", 4, 0, "lora").folder == "-..-x-y_passwd_n4_seed0_lora"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": ["mood"]}, "unknown key in grid.yaml 'task': did you mean 'tasks'?"),
        ({"tasks": ["moood"]}, "unknown task 'moood': did you mean 'mood'?"),
        ({"methods": ["sfft"]}, "unknown method 'sfft': did you mean 'sft'?"),
        ({"adapters": ["lorra"]}, "unknown adapter 'lorra'"),
        ({"n": []}, "'n'"),
        ({"options": {"eval_stps": 3}}, "unknown option 'eval_stps'"),
    ],
)
def test_mistakes_in_a_grid(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(IA2Error) as error:
        read_grid(written(tmp_path, **changes))
    assert message in str(error.value)


def test_what_is_given_stands_in_place_of_the_file(tmp_path: Path) -> None:
    grid = read_grid(written(tmp_path, models=["some/model"]), {"models": ("tiny",)})
    assert [point.model for point in grid.points()] == ["tiny", "tiny"]


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IA2Error, match="unknown engine 'rai': did you mean 'ray'"):
        sweep(Grid(**GRID), tmp_path, "rai")


RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipes_are_grids_also_for_the_embedded_model(path: Path) -> None:
    assert read_grid(path).points()
    assert {point.model for point in read_grid(path, {"models": ("tiny",)}).points()} == {"tiny"}


def adapter_bytes(folder: Path) -> dict[str, bytes]:
    found = folder.glob("cells/*/*/adapters/*/adapter_model.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_what_is_lost_is_trained_again_to_the_same_bytes(tmp_path: Path) -> None:
    grid = Grid(**{**GRID, "tasks": ["mood", "season"], "methods": ["ia2-sft"]})
    sweep(grid, tmp_path)
    before = adapter_bytes(tmp_path)
    assert len(before) == 2 * 2 * 2
    cell = tmp_path / "cells" / "tiny_season_n4_seed1_lora"
    records = [json.loads(path.read_text()) for path in tmp_path.glob("cells/*/*/adapters/*/training.json")]
    assert {record["n_jobs"] for record in records} == {4}  # they shared their passes
    rmtree(cell / "ia2-sft" / "adapters" / "ia2-sft")
    (cell / "rows.json").unlink()
    (cell / "cell.json").unlink()
    sweep(grid, tmp_path)
    assert adapter_bytes(tmp_path) == before


def test_cells_that_share_passes_give_what_they_give_alone(tmp_path: Path) -> None:
    grid = {**GRID, "methods": ["ia2-sft"], "options": {"num_train_epochs": 4, "learning_rate": [1e-3, 3e-3]}}
    together = sweep(Grid(**grid), tmp_path / "together")
    grid["options"] = {**grid["options"], "side_by_side": False}
    alone = sweep(Grid(**grid), tmp_path / "alone")
    for one, other in zip(together, alone, strict=True):
        for metric in ("nll", "brier", "similarity"):
            assert one[metric] == pytest.approx(other[metric], abs=1e-3)
    values = {row["nll"] for row in alone if row["method"] == "ia2-sft"}
    assert max(values) - min(values) > 1e-2  # or the test could not tell the two cells apart


def test_a_cell_of_fewer_examples_than_demos_has_all_of_them_as_demos(tmp_path: Path) -> None:
    grid = Grid(tasks=("mood",), n=(2, 8), n_test=2, options={"n_demos": 4})
    options = {point.n: cell_of(grid, point, tmp_path).options["n_demos"] for point in grid.points()}
    assert options == {2: 2, 8: 4}
