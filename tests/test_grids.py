"""`ia2 analyze` of a sweep: what is read of its table, and all that is written."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE, Page

from ia2.analysis import analyze_sweep, crossing, read_results, similarity_and_performance
from ia2.cli import main
from ia2.errors import IA2Error
from ia2.files import read_json, write_json

METHODS = ("zero-shot", "icl", "sft", "ia2-sft")


def write_results(folder: Path, n_tasks: int = 4, sizes: tuple[int, ...] = (4, 16), **columns: object) -> pd.DataFrame:
    """Also tested on another task, where nothing is as on its own."""
    rng, rows = np.random.default_rng(0), []
    for k in range(n_tasks):
        for n in sizes:
            for seed in range(2):
                for test in ("own", "other"):
                    for method in METHODS:
                        row = {"model": "tiny", "task": f"tasks/t{k}.yaml", "n": n, "seed": seed, "adapter": "lora"}
                        values = dict(zip(("accuracy", "ece", "similarity"), rng.random(3), strict=True))
                        rows.append({**row, "method": method, "test": f"{test} {k}", **values, **columns})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "results.csv", index=False)
    return table[table["test"].str.startswith("own")]


def test_a_sweep_is_analysed_on_its_own_tasks(tmp_path: Path) -> None:
    own = write_results(tmp_path)
    found = analyze_sweep(tmp_path)
    assert found["performance"] == similarity_and_performance(own)
    setting = {"model": "tiny", "adapter": "lora", "minus": "sft"}
    assert found["crossings"] == [
        {**setting, "method": method, "metric": metric, **crossing(own, method, metric=metric)}
        for method in ("icl", "ia2-sft")
        for metric in ("accuracy", "ece")
    ]
    assert (found["skipped"], found["models"], found["n_cells"]) == ({}, ["tiny"], 16)
    assert read_json(tmp_path / "analysis.json") == json.loads(json.dumps(found))
    page = Page(tmp_path / "analysis.html")
    for metric, title in (("accuracy", "Accuracy"), ("ece", "ECE")):
        sft, ia2_sft = page.figure(f"{title} over similarity")["data"]
        for name, trace in (("sft", sft), ("ia2-sft", ia2_sft)):
            points = own[own["method"] == name]
            assert (trace["x"], trace["y"]) == (points["similarity"].tolist(), points[metric].tolist())
    assert "IA2→SFT minus SFT" in page.text
    last = found["crossings"][-1]
    for where, means in (("all tasks", last["means"]), ("tasks/t1.yaml", last["tasks"]["tasks/t1.yaml"]["means"])):
        ours = page.figure(f"ECE minus that of SFT over N, {where}")["data"][2]
        assert (ours["name"], ours["y"]) == ("IA2→SFT", [of["value"] for of in means])
        assert ours["error_y"]["array"] == pytest.approx([of["high"] - of["value"] for of in means])
    assert "Left out" not in page.text


def test_heads_of_cells_that_are_analysed_are_compared_model_by_model(tmp_path: Path) -> None:
    write_results(tmp_path)
    assert "recurring" not in analyze_sweep(tmp_path)
    for name, model, seed in (
        ("tiny_a_n4_seed0_lora", "tiny", 0),
        ("tiny_a_n4_seed1_lora", "tiny", 1),
        ("alone_a_n4_seed0_lora", "alone", 0),
    ):
        heads = {"sft": {"n": 6, "by_layer": [{"layer": 0}, {"layer": 1}], "top": [{"layer": 0, "unit": 2}]}}
        own = {"model": model, "units": {"heads": heads, "neurons": heads}}
        write_json(tmp_path / "cells" / name / "analysis.json", own)
        write_json(tmp_path / "cells" / name / "rows.json", {"rows": [{"task": "a", "seed": seed}]})
    found = analyze_sweep(tmp_path)["recurring"]
    assert list(found) == ["heads", "neurons"]
    (method, of), *others = found["heads"]["tiny"].items()
    assert (method, of["runs"]) == ("sft", ["tiny_a_n4_seed0_lora", "tiny_a_n4_seed1_lora"])
    assert (list(of["pairs"]), of["units"], others) == (["same task, other seed"], [(0, 2, 2)], [])
    pair = of["pairs"]["same task, other seed"]
    assert pair["jaccard"] == {"value": 1, "low": 0, "high": 1}
    page = Page(tmp_path / "analysis.html")
    assert "1.3 (2)" in page.text
    chance, common = page.figure("Heads that cells have in common, same task, other seed, tiny")["data"]
    assert (chance["x"], common["x"], common["error_x"]["arrayminus"]) == ([pair["by_chance"]], [1.0], [1.0])


def test_models_and_adapters_are_not_mixed_in_one_line(tmp_path: Path) -> None:
    tables = [write_results(tmp_path, accuracy=level, adapter=name) for level, name in ((0.1, "lora"), (0.9, "ia3"))]
    pd.concat(tables).to_csv(tmp_path / "results.csv", index=False)
    found = analyze_sweep(tmp_path, tmp_path / "out")
    assert [of["adapter"] for of in found["crossings"]] == ["lora"] * 4 + ["ia3"] * 4
    lines = [of["pooled"] for of in found["crossings"] if of["metric"] == "accuracy"]
    assert {line["first"]["value"] for line in lines} == {0.0}
    assert (tmp_path / "out" / "analysis.html").is_file()


def test_what_a_sweep_is_too_small_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path, n_tasks=2, sizes=(4,), model=HOSTILE)
    found = analyze_sweep(tmp_path)
    names = ["similarity and performance", *(f"{name} over N ({HOSTILE}, lora)" for name in ("icl", "ia2-sft"))]
    assert list(found["skipped"]) == names
    assert "performance" not in found
    assert "expected at least two N" in " ".join(capsys.readouterr().err.split())
    page = Page(tmp_path / "analysis.html")
    assert "found trained methods on 2 tasks" in page.text
    assert HOSTILE not in page.own


def test_the_command_takes_a_sweep_and_says_what_else_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ia2", "analyze", str(tmp_path)])
    main()
    out = capsys.readouterr().out
    assert "similarity to ICL and accuracy: correlation" in out
    assert "IA2→SFT minus SFT (tiny, lora): accuracy" in out
    for option in (["--test", "rows.jsonl"], ["--layers"], ["--other", "mood"]):
        monkeypatch.setattr(sys, "argv", ["ia2", "analyze", str(tmp_path), *option])
        with pytest.raises(SystemExit):
            main()
        assert "is a sweep's; give one of its cells for --test, --layers, --other and --text" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["ia2", "analyze", str(tmp_path)])
    (tmp_path / "results.csv").unlink()
    with pytest.raises(SystemExit):
        main()
    assert "holds no results.csv of a sweep; for a run or a cell give test rows" in capsys.readouterr().err


def test_another_table_is_refused(tmp_path: Path) -> None:
    write_results(tmp_path).drop(columns=["ece", "seed"]).to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(IA2Error, match="found no column seed, ece; expected the table that 'ia2 sweep' writes"):
        read_results(tmp_path / "results.csv")
    with pytest.raises(IA2Error, match="no such file; expected the folder of a sweep"):
        analyze_sweep(tmp_path / "nowhere")
