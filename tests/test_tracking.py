"""What trackers are told is what training.json says."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from conftest import example_rows
from killing import save_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from ia2.config import make_config
from ia2.errors import IA2Error
from ia2.files import read_json
from ia2.models import LanguageModel, load_model
from ia2.run import Data, Run, train_runs

DATA = Data(tuple(example_rows(6)), tuple(example_rows(9)[6:]))
Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_model(save_model(tmp_path_factory.mktemp("model")), device="cpu")


def make_run(folder: Path, **options: Any) -> Run:
    fast = {"num_train_epochs": 2, "learning_rate": (1e-3, 1e-2), "metric_for_best_model": "nll"}
    return Run.create(folder, make_config({"model": "a model", **fast, **options}), DATA)


def expected(run: Run, prefix: str = "") -> Curves:
    curves: Curves = defaultdict(list)
    for stage, folder in run.adapters.items():
        for training in read_json(folder / "training.json")["trainings"]:
            name = f"{prefix}{stage}/lr={training['learning_rate']:g}"
            for entry in training["log"]:
                for key, value in entry.items():
                    if key != "step":
                        group, score = ("eval", key[5:]) if key.startswith("eval_") else ("train", key)
                        curves[f"{group}/{name}/{score}"].append((entry["step"], pytest.approx(value, rel=1e-6)))
    return curves


def test_tensorboard(lm: LanguageModel, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", report_to="tensorboard")
    run.train(lm)
    told: Curves = {}
    for path in (run.folder / "logs").iterdir():
        events = EventAccumulator(str(path)).Reload()
        told |= {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    curves = expected(run)
    assert "train/ia2-sft/lr=0.01/loss" in curves
    assert "eval/ia2/lr=0.001/value" in curves
    assert {tag: told[tag] for tag in curves} == curves


def test_another_tracker_and_several_runs(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: Curves = defaultdict(list)

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            for key, value in integration_utils.rewrite_logs(logs).items():
                told[key].append((state.global_step, value))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Tracker)
    monkeypatch.setattr("ia2.tracking.get_available_reporting_integrations", lambda: ["trackio"])
    runs = [make_run(tmp_path / f"run{seed}", method="sft", report_to=["trackio"], seed=seed) for seed in (0, 1)]
    train_runs(runs, lm)
    curves = {name: curve for run in runs for name, curve in expected(run, f"{run.folder}/").items()}
    assert len(curves) == 2 * 2 * 3
    assert {name: told[name] for name in curves} == curves
    assert not (runs[0].folder / "logs").exists()


def test_by_default_nothing_is_told(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in integration_utils.INTEGRATION_TO_CALLBACK:
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, lambda: pytest.fail("a tracker"))
    make_run(tmp_path / "run", method="sft", num_train_epochs=1).train(lm)


def test_names_are_checked(lm: LanguageModel, tmp_path: Path) -> None:
    assert make_config({"model": "a", "report_to": "none"}).report_to == ()
    with pytest.raises(IA2Error, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        make_config({"model": "a", "report_to": ["tensorbord"]})
    with pytest.raises(IA2Error, match="neptune: not installed; pip install it, or leave it out of report_to"):
        make_run(tmp_path / "run", report_to="neptune").train(lm)
    assert not (tmp_path / "run").exists()
