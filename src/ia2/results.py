"""The results of a run or of the demo: files, and a table for the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ia2.files import write_json, write_jsonl
from ia2.report import display_name, write_report


def write_results(folder: Path, metrics: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    """Write predictions.jsonl and report.html, then metrics.json, which says that all is there."""
    write_jsonl(folder / "predictions.jsonl", predictions)
    write_report(folder / "report.html", metrics, predictions)
    write_json(folder / "metrics.json", metrics)


def print_table(metrics: dict[str, Any]) -> None:
    """Accuracy, calibration, similarity and cost of every method, with 95% intervals, on standard output."""
    table = Table(caption=f"{metrics['n_train']} examples, {metrics['n_test']} test rows; 95% bootstrap intervals")
    table.add_column("", no_wrap=True)
    for column in ("accuracy", "ECE", "NLL", "Brier", "similarity", "tokens", "ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, method in metrics["methods"].items():
        cells = [_interval(method[key]) for key in ("accuracy", "ece")]
        cells += [f"{method[key]['value']:.2f}" for key in ("nll", "brier", "similarity")]
        cost = [f"{method['tokens_per_query']:.0f}", f"{1000 * method['seconds_per_query']:.1f}"]
        table.add_row(display_name(name), *cells, *cost)
    console = Console()
    console.width = max(console.width, 120)  # a row is not broken where the terminal is not known
    console.print(table)
    for name, values in metrics["differences"].items():
        accuracy, ece = (_interval(values[key], "+") for key in ("accuracy", "ece"))
        console.print(f"{_pair_name(name)}: accuracy {accuracy}, ECE {ece}", highlight=False, markup=False)


def _pair_name(name: str) -> str:
    return " minus ".join(display_name(part) for part in name.split(" - "))


def _interval(values: dict[str, float], sign: str = "") -> str:
    return f"{values['value']:{sign}.2f} [{values['low']:{sign}.2f}, {values['high']:{sign}.2f}]"
