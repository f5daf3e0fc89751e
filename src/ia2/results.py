"""The results of a run or of the demo: files, and a table for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ia2.errors import IA2Error
from ia2.files import read_json, read_jsonl, write_json, write_jsonl, write_text, written_aside
from ia2.report import SHORT, crosses_at, display_name, p_text, write_report


def write_results(folder: Path, metrics: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    """Write predictions.jsonl and report.html, then metrics.json, which says that all is there."""
    write_jsonl(folder / "predictions.jsonl", predictions)
    write_report(folder / "report.html", metrics, predictions)
    write_json(folder / "metrics.json", metrics)


def rewrite_report(folder: Path) -> Path:
    """Write report.html of a run or a comparison again, from what its folder holds now: an analysis counts too.

    Raises:
        IA2Error: there are no results in it.
    """
    if not (folder / "metrics.json").is_file():
        raise IA2Error(
            f"{folder}: no metrics.json of a run or a comparison, and no results.csv of a sweep; expected a folder of "
            "'ia2 compare', 'ia2 sweep', or of 'ia2 train' with --test (or 'ia2 evaluate')"
        )
    metrics, predictions = read_json(folder / "metrics.json"), read_jsonl(folder / "predictions.jsonl")
    write_report(folder / "report.html", metrics, predictions)
    return folder / "report.html"


def print_table(metrics: dict[str, Any]) -> None:
    """Accuracy, calibration, similarity and cost of every method, with 95% intervals, on standard output."""
    table = Table(caption=f"{metrics['n_train']} examples, {metrics['n_test']} test rows; 95% bootstrap intervals")
    table.add_column("", no_wrap=True)
    for column in ("accuracy", "ECE", "NLL", "Brier", "similarity", "tokens", "ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, method in metrics["methods"].items():
        cells = [SHORT.interval(method[key]) for key in ("accuracy", "ece")]
        cells += [SHORT.number(method[key]["value"]) for key in ("nll", "brier", "similarity")]
        cost = [f"{method['tokens_per_query']:.0f}", f"{1000 * method['seconds_per_query']:.1f}"]
        table.add_row(display_name(name), *cells, *cost)
    console = _print_whole(table)
    for name, values in metrics["differences"].items():
        accuracy, ece = (SHORT.interval(values[key], "+") for key in ("accuracy", "ece"))
        console.print(f"{_pair_name(name)}: accuracy {accuracy}, ECE {ece}", highlight=False, markup=False)


def print_verdict(metrics: dict[str, Any]) -> None:
    """Which method is best, and whether it is a winner: its differences with SFT and ICL, corrected for their number.

    On standard output.
    """
    trained = [
        name for name in metrics["methods"] if any(pair.startswith(f"{name} - ") for pair in metrics["differences"])
    ]
    best = max(trained, key=lambda name: metrics["methods"][name]["accuracy"]["value"])
    console = Console(width=160)
    for pair, values in metrics["differences"].items():
        if pair.startswith(f"{best} - "):
            accuracy, p = values["accuracy"], values["accuracy"]["p_holm"]
            says = "a difference" if p < 0.05 else "no difference that these rows show"
            text = f"best trained: {_pair_name(pair)} {SHORT.interval(accuracy, '+')} in accuracy, {p_text(p)}: {says}"
            console.print(text, highlight=False, markup=False)


def print_analysis(found: dict[str, Any]) -> None:
    """What an analysis says of each method in a line, on standard output."""
    table = Table(caption=f"{found['n_test']} test rows; attention outputs, mean over layers; 95% bootstrap intervals")
    table.add_column("", no_wrap=True)
    columns = ("cosine to ICL", "relative L2", "heads that tell ICL", "accuracy", "with demos")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    methods = found["context"]["methods"]
    for name, of in found["distances"]["attn_out"]["icl"].items():
        heads = found["units"]["heads"][name]
        cells = [SHORT.interval(of["mean"][metric]) for metric in ("cosine", "relative_l2")]
        given = [SHORT.interval(methods[key]["accuracy"]) if key in methods else "" for key in (name, f"{name}+demos")]
        table.add_row(display_name(name), *cells, f"{heads['n_survive']} of {heads['n']}", *given)
    console = _print_whole(table)
    for pair, of in found.get("weights", {}).get("pairs", {}).items():
        if mean := of["overlap"]["mean"]:
            chance = f"{of['expected']['mean']['value']:.2f} for random ones"
            console.print(
                f"overlap of updates, {_pair_name(pair, 'and')}: {SHORT.interval(mean)}, {chance}", highlight=False
            )


def print_sweep_analysis(found: dict[str, Any]) -> None:
    """What an analysis of a sweep says, on standard output."""
    console = Console(width=160)
    for metric in ("accuracy", "ece"):
        if own := found.get("performance", {}).get(metric):
            raw, within = (SHORT.interval(own[kind], "+") for kind in ("pearson", "partial"))
            text = f"similarity to ICL and {metric}: correlation {raw}, within tasks and N {within}"
            console.print(text, highlight=False)
    for of in found["crossings"]:
        pair = _pair_name(f"{of['method']} - {of['minus']}")
        first, last = (SHORT.interval(of["pooled"][end], "+") for end in ("first", "last"))
        where = f"{first} at N = {of['sizes'][0]}, {last} at {of['sizes'][-1]}"
        setting = f"({of['model']}, {of['adapter']})"
        at = crosses_at(of["pooled"], of["sizes"])
        text = f"{pair} {setting}: {of['metric']} {where}; crosses zero at N: {at}"
        console.print(text, highlight=False, markup=False)


def _print_whole(table: Table) -> Console:
    """Print a table with no value cut off, however narrow the terminal is or said to be."""
    console = Console()
    whole = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, whole, 120)
    console.print(table)
    return console


def _pair_name(name: str, word: str = "minus") -> str:
    return f" {word} ".join(display_name(part) for part in name.split(" - "))


def write_table(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a sweep's rows as results.csv and results.parquet, and as tables for people: .md, .tex and .html.

    In those, a row is a cell but for its seed and a column a method: accuracy in percent, with its standard error over
    seeds where there are several, and the ECE.
    """
    import pandas as pd

    table = pd.DataFrame(rows)
    with written_aside(folder / "results.csv") as aside:
        table.to_csv(aside, index=False)
    with written_aside(folder / "results.parquet") as aside:
        table.to_parquet(aside, index=False)
    order = list(dict.fromkeys(table["method"]))
    keys = [key for key in ("model", "task", "n", "adapter", "test") if key == "task" or table[key].nunique() > 1]
    found = {
        (*key, method): _cell(part["accuracy"], part["ece"])
        for (*key, method), part in table.groupby([*keys, "method"], sort=False)
    }
    shown = pd.Series(found).unstack()[order]
    shown.index.names = keys
    shown = shown.fillna("").rename(columns=display_name).reset_index()
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.astype(str).to_numpy().tolist()]
    write_text(folder / "results.md", "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines))
    write_text(folder / "results.tex", shown.to_latex(index=False, escape=True))
    write_text(folder / "results.html", shown.to_html(index=False, escape=True, border=0))


def write_differences(folder: Path, pairs: Sequence[dict[str, Any]]) -> None:
    """Write a sweep's paired differences, see `ia2.overview.Overview`: differences.csv, a row a metric, and .md."""
    import pandas as pd

    metrics = ("accuracy", "ece", "nll", "brier")
    rows = [
        {**{key: value for key, value in pair.items() if key not in metrics}, "metric": name, **pair[name]}
        for pair in pairs
        for name in metrics
    ]
    with written_aside(folder / "differences.csv") as aside:
        pd.DataFrame(rows).to_csv(aside, index=False)
    titles = ("model", "adapter", "n", "out of distribution", "cells", "difference", "accuracy", "ECE")
    lines = [titles, ["---"] * len(titles)]
    for pair in pairs:
        setting = [str(pair[key]) for key in ("model", "adapter", "n", "ood", "n_cells")]
        values = [f"{SHORT.interval(pair[name], '+')}, {p_text(pair[name]['p_holm'])}" for name in ("accuracy", "ece")]
        lines.append([*setting, _pair_name(f"{pair['method']} - {pair['minus']}"), *values])
    write_text(folder / "differences.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))


def _cell(accuracy: Any, ece: Any) -> str:
    error = f" ± {100 * accuracy.sem():.1f}" if len(accuracy) > 1 else ""
    return f"{100 * accuracy.mean():.1f}{error} / {ece.mean():.3f}"
