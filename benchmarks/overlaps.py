"""How far the updates of two methods go the same way, in every cell of a sweep; a row a cell and pair of methods.

python -m benchmarks.overlaps runs/study > docs/overlap.csv
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from ia2.analysis.weights import expected_overlap, lora_updates, overlap
from ia2.files import read_json

PAIRS = (("sft", "ia2"), ("sft", "ia2-sft"), ("ia2", "ia2-sft"), ("sft", "soft-sft"))


def overlaps(folder: Path) -> pd.DataFrame:
    """Means over the modules of LoRA adapters, beside those of random subspaces of the same sizes."""
    found = []
    for cell in sorted(path.parent for path in folder.glob("cells/*_lora/rows.json")):
        row = read_json(cell / "rows.json")["rows"][0]
        updates = {path.name: lora_updates(path) for path in cell.glob("*/adapters/*") if "+" not in path.parts[-3]}
        for a, b in PAIRS:
            if {a, b} <= updates.keys():
                both = [(updates[a][module], updates[b][module]) for module in updates[a]]
                if not (shares := [share for pair in both if (share := overlap(*pair)) is not None]):
                    continue  # one of them is best as it began
                chance = np.mean([expected_overlap(*pair) for pair in both])
                at = {name: row[name] for name in ("model", "task", "n", "seed")}
                found.append({**at, "a": a, "b": b, "overlap": np.mean(shares), "expected": chance})
    return pd.DataFrame(found)


if __name__ == "__main__":
    overlaps(Path(sys.argv[1])).to_csv(sys.stdout, index=False, float_format="%.4g")
