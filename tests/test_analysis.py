"""`ia2 analyze`: what is analysed, all that is written of it, and the analyses that train or answer."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS, example_rows, random_model, reasoned_rows
from test_browser import anybody_can_read, needs_chromium
from test_report import Page

from ia2 import world
from ia2.adapters import loaded_adapters, new_adapter, save_adapter
from ia2.analysis import Subject, analyze, layer_choices, layer_study, reads_context, weights
from ia2.analysis.units import halves
from ia2.capture import layer_numbers
from ia2.comparison import Cell
from ia2.config import make_config
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.evaluation import Variant, evaluate
from ia2.files import read_json
from ia2.models import LanguageModel, load_model
from ia2.report import write_analysis
from ia2.run import Data, Run
from ia2.world.tokenizer import build_tokenizer

OPTIONS: dict[str, Any] = {"model": "tiny", "labels": ("0", "1"), "num_train_epochs": 1, "learning_rate": (1e-2,)}
KEPT = {**OPTIONS, "snapshots": 2}
HOSTILE = "<script>alert(1)</script>"
METHODS = ("sft", "ia2-sft+unlabelled")
NAMES = ["ia2+unlabelled", "ia2-sft+unlabelled", "sft"]


def mood(split: str, n: int) -> list[Example]:
    return [Example(**row) for row in world.TASKS["mood"].rows(n, 0, split)]


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a cell, within that of its comparison."""
    place = tmp_path_factory.mktemp("compared") / "cells" / "cell-0"
    data = Data(mood("train", 8), mood("dev", 4), [Example(row.query) for row in mood("train", 10)[8:]])
    made = Cell("mood", 0, KEPT, data, {"test": mood("test", 4)}, place, recalibrated=False)
    made.train(load_model("tiny", device="cpu"), METHODS)
    return place


@pytest.fixture(scope="module")
def analysed(cell: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its analysis, with tasks and texts of others."""
    folder = tmp_path_factory.mktemp("analysed")
    texts = folder / "texts.txt"
    texts.write_text("\n\n".join(row.query for row in mood("test", 16)), "utf-8")
    analyze(cell, mood("test", 24), folder, other=["time-choice"], text=str(texts))
    return folder


def nll_of_second_half(cell: Path, name: str, rows: list[Example]) -> float:
    subject = Subject.open(cell)
    lm, variant, half = subject.load_model(), Variant(name, adapter=name), halves(len(rows))[1]
    with loaded_adapters(lm, {name: subject.adapters[name]}):
        predictions = evaluate(lm, subject.run.task(), rows, [variant], variant)
    return sum(predictions[i].nll for i in half) / len(half)


def test_all_adapters_of_a_cell_are_analysed_together(cell: Path, analysed: Path, tmp_path: Path) -> None:
    found = read_json(analysed / "analysis.json")
    assert found["skipped"] == {}
    assert list(found["distances"]) == ["attn_out", "head_out", "mlp_out", "neurons", "hidden"]
    for of in found["distances"].values():
        assert list(of["icl"]) == ["zero-shot", *NAMES]
        assert list(of["zero-shot"]) == ["icl", *NAMES]
    assert list(found["weights"]["pairs"]) == [f"{NAMES[0]} - {NAMES[1]}", *(f"{name} - sft" for name in NAMES[:2])]
    assert {kind: list(of) for kind, of in found["units"].items()} == {
        kind: ["zero-shot", *NAMES] for kind in ("heads", "neurons")
    }
    assert found["units"]["neurons"]["sft"]["n"] == 4 * 384
    assert len(found["shared_units"]["heads"]) == len(found["shared_units"]["neurons"]) == 6
    curves = {kind: of["sft"] for kind, of in found["patching"].items()}
    assert {kind: [point["k"] for point in curve] for kind, curve in curves.items()} == {
        "heads": [0, 1, 2, 4, 8, 16],
        "neurons": [0, 1, 4, 16, 64, 256, 1024, 1536],
    }
    bare = nll_of_second_half(cell, "sft", mood("test", 24))
    assert [curve[0]["nll"]["value"] for curve in curves.values()] == pytest.approx([bare, bare])
    along = {name: of["points"] for name, of in found["along"].items()}
    assert {name: [p["step"] for p in of] for name, of in along.items()} == {
        NAMES[0]: [0, 2, 3],
        NAMES[1]: [0, 2],
        "sft": [0, 2],
    }
    to_icl = found["distances"]["hidden"]["icl"]
    for name, start in ((NAMES[0], "zero-shot"), (NAMES[1], NAMES[0]), ("sft", "zero-shot")):
        began = along[name][0]["distances"]["hidden"]["icl"]["l2"]
        assert [of["value"] for of in began] == pytest.approx([of["value"] for of in to_icl[start]["l2"]], rel=1e-4)
    assert along[NAMES[0]][0]["distances"] != along[NAMES[0]][1]["distances"]
    assert along[NAMES[1]][0]["nll"]["value"] == pytest.approx(found["context"]["methods"][NAMES[0]]["nll"]["value"])
    assert list(found["context"]["methods"]) == ["icl", *NAMES, *(f"{name}+demos" for name in NAMES)]
    for interval in (found["distances"]["hidden"]["icl"]["sft"]["cka"][1], curves["neurons"][1]["nll"]):
        assert interval["low"] <= interval["value"] <= interval["high"]
    page = (analysed / "analysis.html").read_text("utf-8")
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Distance to ICL",
        "Along training",
        "Heads and neurons that tell ICL apart",
        "What ICL's heads and neurons do in another method",
        "Updates of the weights",
        "Does it still read its context?",
        "What is forgotten",
        "How to read this page",
    ]
    drawn = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    attention = found["distances"]["attn_out"]["icl"]["sft"]["cosine"]
    assert drawn[0]["data"][3]["y"] == [interval["value"] for interval in attention]
    first = Page(analysed / "analysis.html").figure("Share of the first heads that two methods have in common")["data"]
    between = found["shared_units"]["heads"][f"zero-shot - {NAMES[0]}"]
    assert first[0]["z"][0][:2] == [1.0, between["shared"] / between["k"]]
    auroc, drawn_auroc = (
        found["units"]["heads"]["sft"]["auroc"],
        Page(analysed / "analysis.html").figure("AUROC of each head, ICL against SFT")["data"][0],
    )
    assert [of["value"] for of in auroc[1]] == drawn_auroc["z"][1]
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", drawn_auroc["text"][3][3])
    assert len(page) < 5e6
    assert "by response position" not in page  # the responses are of one token
    with pytest.raises(IA2Error, match="label 'x' is not among the training labels"):
        analyze(cell, [replace(row, response="x") for row in mood("test", 16)], tmp_path)


def test_a_run_is_analysed_and_what_cannot_be_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts have no neurons, and IA3's updates are not of low rank; answers are generated here."""
    random_model("mixtral").save_pretrained(tmp_path / "mixtral")
    build_tokenizer().save_pretrained(tmp_path / "mixtral")
    rows = [replace(row, query=f"{i} {row.query}") for i, row in enumerate(reasoned_rows(26))]
    options = {"model": str(tmp_path / "mixtral"), "labels": "none", "max_new_tokens": 4, "method": "ia2"}
    config = make_config({**OPTIONS, **options, "adapter": "ia3"})
    Run.create(tmp_path / "run", config, Data(rows[:4])).train()
    monkeypatch.setattr("ia2.analysis.layers.layer_choices", lambda n_layers: ["all", "last:1"])
    found = analyze(tmp_path / "run", rows[4:], layers=True, other=["time-choice"])
    assert read_json(tmp_path / "run" / "analysis.json") == json.loads(json.dumps(found))
    assert list(found["forgetting"]["time-choice"]["demos"]["methods"]) == ["before", "ia2"]
    assert list(found["layers"]["layers"]) == ["all", "last:1"]
    assert list(found["skipped"]) == ["neurons", "weights"]
    assert "without weights: " in " ".join(capsys.readouterr().err.split())
    assert "weights" not in found
    assert list(found["units"]) == ["heads", "mlp_out"]
    assert list(found["patching"]) == ["heads"]
    assert found["units"]["mlp_out"]["ia2"]["n"] == 3 * 32
    page = (tmp_path / "run" / "analysis.html").read_text("utf-8")
    assert "expected LoRA, whose updates are of low rank" in page
    assert "Updates of the weights" not in page
    assert "Which layers matter" in page
    assert "<small>time-choice, with demos</small>" in page
    assert "by response position" in page
    write_analysis(
        tmp_path / "hostile.html",
        {
            **found,
            "model": HOSTILE,
            "forgetting": {HOSTILE: found["forgetting"]["time-choice"]},
            "skipped": {HOSTILE: HOSTILE},
        },
    )
    assert HOSTILE not in (tmp_path / "hostile.html").read_text("utf-8")


def test_an_adapter_that_changes_nothing_overlaps_with_none(cell: Path, analysed: Path, tmp_path: Path) -> None:
    """As one has whose best weights are those before training."""
    with new_adapter(load_model("tiny", device="cpu")) as model:
        save_adapter(model, tmp_path / "fresh", {})
    found = read_json(analysed / "analysis.json")
    found["weights"] = weights({**Subject.open(cell).adapters, "soft": tmp_path / "fresh"})
    write_analysis(tmp_path / "analysis.html", found)
    page = Page(tmp_path / "analysis.html")
    *others, fresh = page.figure("Overlap of the subspaces that adapters write into")["data"]
    assert fresh["z"] == [[None] * 4]
    assert [row["z"][0][3] for row in others] == [None] * 3
    assert [row["z"][0][i] for i, row in enumerate(others)] == [1.0] * 3
    assert re.search("soft labels</th><td>—</td><td>—</td>", page.own)


@needs_chromium
def test_anybody_can_read_its_page(analysed: Path) -> None:
    anybody_can_read(analysed / "analysis.html")


def test_what_is_no_run_is_refused(cell: Path, tmp_path: Path) -> None:
    with pytest.raises(IA2Error, match="found no run; expected a run of 'ia2 train', or a cell of 'ia2 compare'"):
        Subject.open(tmp_path)
    with pytest.raises(IA2Error, match=r"found no run; expected one of its cells, such as .*/cells/cell-0$"):
        Subject.open(cell.parents[1])


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"seed": 1}, 8, "the runs a and b differ in seed"),
        ({}, 6, "the runs a and b have other training rows"),
    ],
)
def test_runs_that_are_not_of_one_cell_are_refused(
    options: dict[str, Any], rows: int, message: str, tmp_path: Path
) -> None:
    lm = load_model("tiny", device="cpu")
    for name, more, n in (("a", {}, 8), ("b", options, rows)):
        config = make_config({**OPTIONS, "method": "sft", "adapter": "ln-tuning", **more})
        Run.create(tmp_path / name, config, Data(mood("train", n))).train(lm)
    with pytest.raises(IA2Error, match=message):
        Subject.open(tmp_path)


def test_an_adapter_with_demos_is_compared_with_icl_and_with_itself(cell: Path) -> None:
    subject, rows = Subject.open(cell), mood("test", 30)
    lm = subject.load_model()
    icl, mine = subject.variants(lm)[1], Variant("sft", adapter="sft")
    with loaded_adapters(lm, {"sft": subject.adapters["sft"]}):
        found = reads_context(lm, subject.run.task(), rows, [mine], icl)
        both = replace(icl, name="both", adapter="sft")
        expected = {v.name: evaluate(lm, subject.run.task(), rows, [v], icl) for v in (icl, mine, both)}
    mean_nll = {name: sum(p.nll for p in of) / len(of) for name, of in expected.items()}
    assert found["methods"]["sft+demos"]["nll"]["value"] == pytest.approx(mean_nll["both"])
    assert found["methods"]["icl"]["nll"]["value"] == pytest.approx(mean_nll["icl"])
    assert mean_nll["both"] not in (mean_nll["icl"], mean_nll["sft"])
    gain = found["differences"]["sft+demos - sft"]["nll"]["value"]
    assert gain == pytest.approx(mean_nll["both"] - mean_nll["sft"])
    assert set(found["differences"]) == {"sft+demos - sft", "sft+demos - icl"}


@pytest.mark.parametrize("n_layers", [1, 2, 4, 28])
def test_choices_of_layers_are_ones_that_a_model_has(n_layers: int) -> None:
    choices = layer_choices(n_layers)
    assert choices[0] == "all"
    assert len(set(choices)) == len(choices) <= 17
    chosen = [layer_numbers(choice, n_layers) for choice in choices]
    assert len(set(chosen)) == len(chosen)
    if n_layers > 1:
        assert {frozenset({0}), frozenset({n_layers - 1})} <= set(chosen)


def test_alignment_of_some_layers_is_compared_with_that_of_all(lm: LanguageModel, tmp_path: Path) -> None:
    rows = example_rows(40)
    config = make_config({**OPTIONS, "num_train_epochs": 5})
    run = Run(tmp_path / "run", config, Data(rows[:6], rows[6:10]))
    found = layer_study(run, rows[20:], tmp_path / "layers", lm, ["all", "last:1"])
    assert list(found["layers"]) == ["all", "last:1"]
    assert list(found["methods"]) == ["zero-shot", "icl"]
    assert list(found["differences"]) == ["last:1 - all"]
    assert found["methods"]["icl"]["similarity"]["value"] == pytest.approx(1, abs=1e-6)
    similarity = {name: of["similarity"]["value"] for name, of in found["layers"].items()}
    assert similarity["all"] > similarity["last:1"] > found["methods"]["zero-shot"]["similarity"]["value"]
    written = (tmp_path / "layers" / "last-1" / "ia2" / "config.yaml").stat().st_mtime_ns
    assert layer_study(run, rows[20:], tmp_path / "layers", lm, ["all", "last:1"]) == found
    assert (tmp_path / "layers" / "last-1" / "ia2" / "config.yaml").stat().st_mtime_ns == written


def test_contexts_and_labels_of_the_subject_are_those_of_its_runs(cell: Path) -> None:
    subject = Subject.open(cell)
    half = replace(subject.run, config=subject.run.config.model_copy(update={"dtype": "bfloat16"}))
    lm = replace(subject, run=half).load_model()
    assert lm.base.dtype == torch.float32
    zero, icl, *adapters = subject.variants(lm)
    assert (zero.contexts, zero.adapter) == (None, None)
    assert isinstance(icl.contexts, Contexts)
    assert list(icl.contexts.demos) == mood("train", 8)
    assert [variant.adapter for variant in adapters] == list(subject.adapters) == NAMES
    assert subject.run.task().labels == LABELS.labels
