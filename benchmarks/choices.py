"""What the default loss and learning rates were chosen by, on seeds that no result is reported on.

python -m benchmarks.choices --output runs/choices
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from ia2.adapters import ADAPTERS
from ia2.files import read_json
from ia2.losses import ALIGNMENT_LOSSES
from ia2.statistics import Interval, bootstrap, mean
from ia2.sweep import Grid, sweep

GRID = {"tasks": ["mood", "animal", "time-choice", "travel-words"], "seeds": [100, 101, 102, 103], "n_test": 250}
RATES = (ADAPTERS["lora"].learning_rate, (1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2))
METRICS = ("accuracy", "nll", "brier", "ece")


def main() -> None:
    """Run what is missing, and print both tables: means over 16 cells, with bootstrap intervals over them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/choices"))
    output = parser.parse_args().output
    by_rates = {", ".join(f"{rate:g}" for rate in rates): {"learning_rate": rates} for rates in RATES}
    print_table("learning rates", by_rates, output)
    print_table("loss", {f"`{loss}`": {"loss": loss, "learning_rate": RATES[0]} for loss in ALIGNMENT_LOSSES}, output)


def print_table(head: str, choices: dict[str, dict[str, Any]], output: Path) -> None:
    """A row a choice and method; then the difference with the first choice, which is the default, cell by cell."""
    print(f"\n| {head} | method | accuracy | NLL | Brier | ECE | chosen |\n|---|---|---|---|---|---|---|")
    tables: dict[str, pd.DataFrame] = {}
    for name, options in choices.items():
        folder = output / name.strip("`").replace(", ", "_")
        grid = Grid.model_validate({**GRID, "methods": ["sft", "ia2-sft"], "options": options})
        tables[name] = pd.DataFrame(sweep(grid, folder))
        for method in ("zero-shot", "icl") * (not tables) + ("sft", "ia2", "ia2-sft"):
            records = folder.glob(f"cells/*/*/adapters/{method}/training.json")
            counts = Counter(read_json(path)["learning_rate"] for path in records)
            chosen = ", ".join(f"{rate:g}: {counts[rate]}" for rate in options["learning_rate"])
            print(
                f"| {name} | {method} | {' | '.join(map(shown, _means(tables[name], method)))} | {chosen} |", flush=True
            )
    (default, first), *others = tables.items()
    print(f"\n| {head} | method | accuracy | NLL | Brier | ECE |\n|---|---|---|---|---|---|")
    for name, table in others:
        for method in ("sft", "ia2", "ia2-sft"):
            gaps = [_cells(table, method, m) - _cells(first, method, m) for m in METRICS]
            cells = " | ".join(shown(bootstrap(mean, gap), "+") for gap in gaps)
            print(f"| {name} minus {default} | {method} | {cells} |")


def _cells(table: pd.DataFrame, method: str, metric: str) -> Any:
    return table[table.method == method][metric].to_numpy()


def _means(table: pd.DataFrame, method: str) -> list[Interval]:
    return [bootstrap(mean, _cells(table, method, metric)) for metric in METRICS]


def shown(value: Interval, sign: str = "") -> str:
    """With its interval."""
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


if __name__ == "__main__":
    main()
