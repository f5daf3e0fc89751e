"""One thing changed at a time, on tasks and seeds that are set aside for choices; and other adapters.

python -m benchmarks.ablations --output runs/ablations      writes runs/ablations.csv
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.choices import GRID
from ia2.sweep import Grid, sweep

ASIDE = {**GRID, "seeds": GRID["seeds"][:3], "n_test": 200, "cells_at_once": 6}
ADAPTERS = ("ia3", "prefix-tuning", "full", "prompt-tuning", "peanut")
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"methods": ["sft", "ia2-sft"]},
    "rank 2": {"methods": ["sft", "ia2-sft"], "options": {"adapter_options": {"r": 2, "lora_alpha": 2}}},
    "rank 32": {"methods": ["sft", "ia2-sft"], "options": {"adapter_options": {"r": 32, "lora_alpha": 32}}},
    "last half of the layers": {"methods": ["ia2-sft"], "options": {"layers": "last:2"}},
    "every second layer": {"methods": ["ia2-sft"], "options": {"layers": "every:2"}},
    **{name: {"adapters": [name], "methods": ["sft", "ia2-sft"], "seeds": [0, 1, 2]} for name in ADAPTERS},
    "4 orders of the demos": {"methods": ["ia2-sft"], "options": {"n_permutations": 4}},
    "4 orders, averaged": {"methods": ["ia2-sft"], "options": {"n_permutations": 4, "permutations": "mean"}},
    "16 unlabelled queries": {"methods": ["ia2-sft+unlabelled"], "n_unlabelled": 16},
    "64 unlabelled queries": {"methods": ["ia2-sft+unlabelled"], "n_unlabelled": 64},
    "SFT first": {"methods": ["sft-ia2"]},
    "both at once": {"methods": ["joint"]},
}
COLUMNS = ["setting", "task", "n", "seed", "method", "test", "accuracy", "nll", "brier", "ece", "similarity", "n_test"]


def main() -> None:
    """Run what is missing; a row a cell and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    output = parser.parse_args().output
    tables = []
    for name, grid in SETTINGS.items():
        rows = sweep(
            Grid.model_validate({**ASIDE, **grid}), output / name.replace(" ", "-").replace(",", ""), engine="ray"
        )
        tables.append(pd.DataFrame(rows).assign(setting=name))
        pd.concat(tables)[COLUMNS].to_csv(output.with_suffix(".csv"), index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
