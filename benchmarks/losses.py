"""Which alignment loss and which learning rates: on tasks and seeds that no result is reported on.

python -m benchmarks.losses --output runs/losses
"""

import argparse
from collections import Counter
from pathlib import Path

import pandas as pd

from ia2.files import read_json
from ia2.losses import ALIGNMENT_LOSSES
from ia2.statistics import bootstrap, mean
from ia2.sweep import Grid, sweep

GRID = {"tasks": ["mood", "animal"], "seeds": [100, 101, 102, 103], "n_test": 250}
RATES = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
ASKED = {"none": ["sft"]} | {loss: ["ia2-sft"] for loss in ALIGNMENT_LOSSES}


def main() -> None:
    """Run what is missing, and print the table: means over 8 cells, with bootstrap intervals over them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/losses"))
    output = parser.parse_args().output
    print(f"| loss | method | accuracy | NLL | ECE | chosen of {RATES} |\n|---|---|---|---|---|---|")
    for loss, methods in ASKED.items():
        options = {"learning_rate": RATES, **({} if loss == "none" else {"loss": loss})}
        grid = Grid.model_validate({**GRID, "methods": methods, "options": options})
        rows = pd.DataFrame(sweep(grid, output / loss))
        for method in ("zero-shot", "icl", "sft") if loss == "none" else ("ia2", "ia2-sft"):
            own = rows[rows.method == method]
            cells = [bootstrap(mean, own[metric].to_numpy()) for metric in ("accuracy", "nll", "ece")]
            shown = " | ".join(f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for cell in cells)
            records = (output / loss).glob(f"cells/*/*/adapters/{method}/training.json")
            chosen = Counter(read_json(path)["learning_rate"] for path in records)
            print(f"| `{loss}` | {method} | {shown} | {' '.join(str(chosen[rate]) for rate in RATES)} |", flush=True)


if __name__ == "__main__":
    main()
