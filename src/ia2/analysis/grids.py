"""`ia2 analyze` of a sweep: what its table of results says of similarity and of the number of examples."""

from pathlib import Path
from typing import Any

from ia2.analysis.crossing import crossing
from ia2.analysis.performance import METRICS, similarity_and_performance
from ia2.analysis.recurring import recurring_units
from ia2.comparison import RECALIBRATED
from ia2.errors import IA2Error
from ia2.files import read_json, write_json
from ia2.progress import say
from ia2.report import write_grid_analysis

RESULTS = "results.csv"
CELL = ["model", "task", "n", "seed", "adapter"]
COLUMNS = (*CELL, "method", "test", "accuracy", "ece", "similarity")
REFERENCE, UNTRAINED = "sft", "zero-shot"


def analyze_sweep(folder: str | Path, output: Path | None = None) -> dict[str, Any]:
    """Analyse the results of a sweep: analysis.json and analysis.html.

    Args:
        folder: of a sweep, with its results.csv.
        output: where to write; `folder` if None.

    Returns:
        What analysis.json holds: `performance`, see `similarity_and_performance`; `crossings`, for each model, adapter
        and method, but recalibrated ones, what `crossing` says of its accuracy and ECE beside SFT's; `recurring`, of
        `heads` and `neurons`, where two or more of its cells are analysed, see `recurring_units`; and `skipped`, what
        could not be done, with the reason.
    """
    rows, output = read_results(Path(folder) / RESULTS), output or Path(folder)
    found: dict[str, Any] = {
        "models": rows["model"].unique().tolist(),
        "n_cells": len(rows[CELL].drop_duplicates()),
        "crossings": [],
        "skipped": {},
    }
    try:
        found["performance"] = similarity_and_performance(rows)
    except IA2Error as error:
        _skip(found["skipped"], "similarity and performance", error)
    for (model, adapter), own in rows.groupby(["model", "adapter"], sort=False):
        for method in own["method"].unique():
            if method in (REFERENCE, UNTRAINED) or method.endswith(RECALIBRATED):
                continue
            setting = {"model": model, "adapter": adapter, "method": method, "minus": REFERENCE}
            try:
                found["crossings"] += [
                    {**setting, "metric": metric, **crossing(own, method, REFERENCE, metric)} for metric in METRICS
                ]
            except IA2Error as error:
                _skip(found["skipped"], f"{method} over N ({model}, {adapter})", error)
    folders = {path.parent.name: path.parent for path in sorted(Path(folder).glob("cells/*/analysis.json"))}
    cells = {name: read_json(path / "analysis.json") for name, path in folders.items()}
    settings = {name: read_json(path / "rows.json")["rows"][0] for name, path in folders.items()}
    tasks = {name: (str(of["task"]), str(of["seed"])) for name, of in settings.items()}
    by_model: dict[str, dict[str, Any]] = {}
    for name, analysis in cells.items():
        by_model.setdefault(analysis["model"], {})[name] = analysis
    for kind in ("heads", "neurons"):
        if recurring := {model: of for model, own in by_model.items() if (of := recurring_units(own, tasks, kind))}:
            found.setdefault("recurring", {})[kind] = recurring
    write_json(output / "analysis.json", found)
    write_grid_analysis(output / "analysis.html", found)
    return found


def read_results(path: Path) -> Any:
    """A sweep's results.csv as a pandas table, without its rows of out-of-distribution tests.

    Raises:
        IA2Error: no such file, or other columns.
    """
    import pandas as pd

    if not path.is_file():
        raise IA2Error(f"{path}: no such file; expected the folder of a sweep that is done")
    rows = pd.read_csv(path, dtype=dict.fromkeys(("model", "task", "adapter", "method", "test"), str))
    if missing := [name for name in COLUMNS if name not in rows]:
        raise IA2Error(f"{path}: found no column {', '.join(missing)}; expected the table that 'ia2 sweep' writes")
    return rows[rows["test"] == rows.groupby(CELL)["test"].transform("first")]


def _skip(skipped: dict[str, str], what: str, error: IA2Error) -> None:
    skipped[what] = str(error)
    say(f"without {what}: {error}")
