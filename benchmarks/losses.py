"""Which alignment loss: IA2->SFT on the embedded model with each, on tasks and seeds that no result is reported on.

python -m benchmarks.losses --output runs/losses
"""

import argparse
from pathlib import Path

import pandas as pd

from ia2.losses import ALIGNMENT_LOSSES
from ia2.statistics import bootstrap, mean
from ia2.sweep import Grid, sweep

GRID = {"tasks": ["mood", "animal"], "seeds": [100, 101, 102, 103], "methods": ["ia2-sft"], "n_test": 250}
RATES = [1e-3, 3e-3, 1e-2]


def main() -> None:
    """Run what is missing, and print the table: means over 8 cells, with bootstrap intervals over them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/losses"))
    output = parser.parse_args().output
    print("| loss | method | accuracy | NLL | ECE |\n|---|---|---|---|---|")
    for loss in ALIGNMENT_LOSSES:
        grid = Grid.model_validate({**GRID, "options": {"loss": loss, "learning_rate": RATES}})
        rows = pd.DataFrame(sweep(grid, output / loss))
        for method in ("ia2", "ia2-sft"):
            own = rows[rows.method == method]
            cells = [bootstrap(mean, own[metric].to_numpy()) for metric in ("accuracy", "nll", "ece")]
            shown = " | ".join(f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for cell in cells)
            print(f"| `{loss}` | {method} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
