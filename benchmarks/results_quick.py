"""Whether differences found here are those that are published, on the same cells.

python -m benchmarks.results_quick runs/study-quick/results.csv
"""

import sys
from pathlib import Path

import pandas as pd

from benchmarks.results import CELL, measured, paired, shown
from ia2.report import display_name

PUBLISHED = Path(__file__).parents[1] / "docs" / "study.csv"
PAIRS = (("icl", "zero-shot"), ("ia2-sft", "sft"), ("ia2-sft", "ia2"))


def compared(found: pd.DataFrame, published: pd.DataFrame) -> list[tuple[str, bool]]:
    """A line a difference of accuracies, and whether it lies in the published one's interval."""
    same = published.merge(found[[*CELL, "method"]], on=[*CELL, "method"])
    lines = []
    for a, b in PAIRS:
        gaps = [paired(rows, a, b) for rows in (found, same)]
        here, there = (measured(gap, gap.index.get_level_values("task"))["accuracy"] for gap in gaps)
        agrees = len(gaps[0]) == len(gaps[1]) and there.low <= here.value <= there.high
        name, says = f"{display_name(a)} minus {display_name(b)}", "agree" if agrees else "DIFFER"
        figures = f"accuracy {here.value:+.3f} here, {shown(there, '+')} published"
        lines.append((f"{name}, {len(gaps[0])} cells: {figures}: they {says}", agrees))
    return lines


if __name__ == "__main__":
    lines = compared(pd.read_csv(sys.argv[1]), pd.read_csv(PUBLISHED))
    print("\n".join(line for line, _ in lines))
    sys.exit(not all(agrees for _, agrees in lines))
