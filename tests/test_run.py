"""The whole path on a random model: its numbers mean nothing, its files and repeatability do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import example_rows, reasoned_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM

import ia2
from ia2.config import make_config
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.evaluation import Variant, answer
from ia2.files import read_jsonl, write_jsonl
from ia2.models import load_model
from ia2.run import Data, Run

DATA = Data(tuple(example_rows(6)), tuple(example_rows(9)[6:]))
FAST = {"num_train_epochs": 2, "learning_rate": (1e-3, 1e-2), "adapter_options": {"r": 4}}


def make_run(folder: Path, model: str, data: Data = DATA, **options: Any) -> Run:
    return Run.create(folder, make_config({"model": model, **FAST, **options}), data)


def adapter_bytes(run: Run) -> dict[str, bytes]:
    return {name: (folder / "adapter_model.safetensors").read_bytes() for name, folder in run.adapters.items()}


def test_from_examples_to_report(model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", model_folder)
    adapters = run.train()
    assert list(adapters) == ["ia2", "ia2-sft"]
    metrics = run.evaluate(example_rows(8))
    assert "8 of 8 test rows are among those to train or develop with" in capsys.readouterr().err
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.iterdir()}
    files = "config.yaml environment.json examples.jsonl teacher.json predictions.jsonl metrics.json report.html"
    assert names == {*files.split(), ".lock", "targets", "adapters"}
    assert list(metrics["methods"]) == ["zero-shot", "icl", "ia2", "ia2-sft"]
    assert json.loads((run.folder / "metrics.json").read_text()) == metrics
    for method in metrics["methods"].values():
        for name in ("accuracy", "ece", "nll", "brier", "similarity"):
            assert method[name]["low"] <= method[name]["value"] + 1e-9
            assert method[name]["value"] <= method[name]["high"] + 1e-9
    assert len((run.folder / "predictions.jsonl").read_text().splitlines()) == 4 * 8
    before = (run.folder / "metrics.json").stat().st_mtime_ns
    assert run.evaluate(example_rows(8)) == metrics
    assert (run.folder / "metrics.json").stat().st_mtime_ns == before
    assert run.evaluate(example_rows(7))["n_test"] == 7
    run.evaluate(example_rows(8))
    reopened = Run.open(run.folder)
    assert reopened.config == run.config
    assert list(reopened._rows()) == list(run._rows())
    answers = reopened.predict([row.query for row in example_rows(8)])
    rows = read_jsonl(run.folder / "predictions.jsonl")
    assert [a.text for a in answers] == [r["answer"] for r in rows if r["variant"] == "ia2-sft"]


def test_the_adapter_is_a_plain_peft_folder(model_folder: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model_folder)
    run.train()
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    plain = PeftModel.from_pretrained(base, str(run.adapters["ia2-sft"]))
    lm = load_model(model_folder, device="cpu")
    query = lm.encoder.encode(ia2.build_prompt(run.task(), (), DATA.dev[0].query))
    logits = plain(torch.tensor([query.ids])).logits[0, -1]
    p = logits.softmax(-1)[[lm.encoder.piece(label)[0] for label in ("0", "1")]]
    answer = run.predict([DATA.dev[0].query], lm)[0]
    assert answer.p_labels is not None
    assert list(answer.p_labels.values()) == pytest.approx((p / p.sum()).tolist(), abs=1e-5)


def test_snapshots_are_folders_that_lead_to_the_adapter(model_folder: str, tmp_path: Path) -> None:
    plain, run = make_run(tmp_path / "plain", model_folder), make_run(tmp_path / "run", model_folder, snapshots=1)
    plain.train()
    run.train()
    assert adapter_bytes(run) == adapter_bytes(plain)
    assert plain.snapshots("ia2") == {}
    primed, tuned = run.snapshots("ia2"), run.snapshots("ia2-sft")
    assert list(primed) == list(tuned) == [0, 1, 2, 3, 4]
    first = (tuned[0] / "adapter_model.safetensors").read_bytes()
    assert first == adapter_bytes(run)["ia2"] != (primed[0] / "adapter_model.safetensors").read_bytes()


def test_the_same_command_again_continues_and_ends_with_the_same_bytes(model_folder: str, tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", model_folder)
    whole.train()
    parts = make_run(tmp_path / "parts", model_folder)
    parts.train()
    shutil.rmtree(parts.adapters["ia2-sft"])
    primed = (parts.adapters["ia2"] / "training.json").stat().st_mtime_ns
    make_run(tmp_path / "parts", model_folder).train()
    assert (parts.adapters["ia2"] / "training.json").stat().st_mtime_ns == primed
    assert adapter_bytes(parts) == adapter_bytes(whole)
    assert adapter_bytes(whole)["ia2"] != adapter_bytes(whole)["ia2-sft"]


def test_fresh_processes_leave_the_same_bytes(model_folder: str, tmp_path: Path) -> None:
    """Whatever order Python's hashes have in them."""
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, ({"query": e.query, "response": e.response} for e in DATA.train))
    command = f"-m ia2 train --model {model_folder} --train {rows} --num-train-epochs 1 --learning-rate 1e-2"
    found: list[dict[str, bytes]] = []
    for hashes in "12":
        folder = tmp_path / hashes
        whole = [sys.executable, *command.split(), f"--output={folder}"]
        subprocess.run(whole, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": hashes})
        found.append({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")})
    assert len(found[0]) > 3
    assert found[0] == found[1]


def test_what_is_half_written_is_not_taken_as_whole(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", model_folder)
    monkeypatch.setattr("ia2.adapters.write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(IA2Error, match="disk full"):
        run.train()
    assert not list((run.folder / "adapters").iterdir())


@pytest.mark.parametrize("method", ["sft", "soft", "ia2", "ia2-sft"])
@pytest.mark.parametrize("loss", ["nmse", "mse"])
def test_every_method_runs_and_changes_the_model(model_folder: str, tmp_path: Path, method: str, loss: str) -> None:
    run = make_run(tmp_path / "run", model_folder, method=method, loss=loss, num_train_epochs=4)
    assert list(run.train())[-1] == method
    for folder in run.adapters.values():
        record = json.loads((folder / "training.json").read_text())
        assert record["n_steps"] > 0
        assert record["value"] < record["trainings"][0]["log"][0]["eval_loss"]


def test_the_learning_rate_is_chosen_by_development_loss(model_folder: str, tmp_path: Path) -> None:
    apart = {"method": "sft", "side_by_side": False}
    run = make_run(tmp_path / "run", model_folder, learning_rate=(1e-5, 1e-2, 1e-4), **apart)
    run.train()
    record = json.loads((run.adapters["sft"] / "training.json").read_text())
    losses = {t["learning_rate"]: t["value"] for t in record["trainings"]}
    assert list(losses) == [1e-5, 1e-2, 1e-4]
    assert record["learning_rate"] == min(losses, key=lambda rate: losses[rate]) == 1e-2
    best = make_run(tmp_path / "best", model_folder, learning_rate=(1e-2,), **apart)
    best.train()
    assert adapter_bytes(best) == adapter_bytes(run)


def test_unlabelled_queries_are_primed_on_but_not_fine_tuned_on(model_folder: str, tmp_path: Path) -> None:
    extra = tuple(Example(f"Text:{word}\nLabel:") for word in ("soup soup", "city city", "winter soup"))
    run = make_run(tmp_path / "run", model_folder, Data(DATA.train, DATA.dev, extra))
    run.train()
    n_rows = {n: json.loads((f / "training.json").read_text())["n_rows"] for n, f in run.adapters.items()}
    assert n_rows == {"ia2": 6 + 3, "ia2-sft": 6}
    lm = load_model(model_folder, device="cpu")
    answers = answer(lm, run.task(), extra, run.variants(run.contexts(lm))[1])
    kept = [Example(**row) for row in read_jsonl(run.folder / "answered-unlabelled.jsonl")]
    assert kept == [Example(e.query, a.text) for e, a in zip(extra, answers, strict=True)]
    without = make_run(tmp_path / "without", model_folder)
    without.train()
    assert adapter_bytes(run)["ia2"] != adapter_bytes(without)["ia2"]


def test_generated_answers_end_to_end(model_folder: str, tmp_path: Path) -> None:
    data = Data(tuple(reasoned_rows(6)), tuple(reasoned_rows(8)[6:]))
    run = make_run(tmp_path / "run", model_folder, data, labels="none", max_new_tokens=6)
    run.train()
    metrics = run.evaluate(reasoned_rows(3))
    assert metrics["methods"]["icl"]["n"] == 3
    assert run.predict([data.dev[0].query])[0].p_labels is None


def test_without_development_rows(model_folder: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model_folder, Data(DATA.train[:2]), learning_rate=(1e-4, 1e-3, 1e-2))
    run.train()
    record = json.loads((run.adapters["ia2"] / "training.json").read_text())
    assert record["learning_rate"] == 1e-3
    assert record["value"] is None
    with pytest.raises(IA2Error, match="no rows to evaluate on"):
        run.evaluate([])


def test_icl_is_shown_all_training_rows_in_random_order(model_folder: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model_folder)
    variants = run.variants(run.contexts(load_model(model_folder, device="cpu")))
    assert variants[0] == Variant("zero-shot")
    shown = variants[1].prompt(run.task(), DATA.dev[0]).context[0::3]
    assert sorted(shown) == sorted(row.query for row in DATA.train)
    assert list(shown) != [row.query for row in DATA.train]
    assert variants[1].prompt(run.task(), DATA.dev[1]).context[0::3] == shown  # one order, so that it can be shared


def test_another_configuration_or_other_rows_are_refused(model_folder: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model_folder, method="sft")
    run.train()
    with pytest.raises(IA2Error, match="a run with seed 0, now 1: choose another output folder"):
        make_run(tmp_path / "run", model_folder, method="sft", seed=1)
    with pytest.raises(IA2Error, match="a run on other rows"):
        make_run(tmp_path / "run", model_folder, Data(DATA.train[1:], DATA.dev), method="sft")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(IA2Error, match="is not a run"):
        make_run(tmp_path / "other", model_folder)
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"
    with pytest.raises(IA2Error, match="expected at least 2"):
        make_run(tmp_path / "new", model_folder, Data(DATA.train[:1]))
    shutil.rmtree(run.adapters["sft"])
    with pytest.raises(IA2Error, match="sft is not trained yet"):
        Run.open(tmp_path / "run").evaluate(example_rows(2))


def test_test_rows_that_are_not_new_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = example_rows(6)
    Data(rows[:2], rows[2:3]).say_if_seen(rows[1:])
    assert "2 of 5 test rows are among those to train or develop with" in capsys.readouterr().err
    Data(rows[:2], rows[2:3]).say_if_seen(rows[3:])
    assert capsys.readouterr().err == ""
