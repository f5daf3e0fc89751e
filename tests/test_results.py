"""The tables of docs/results.md are those of the rows that are published beside it."""

import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results import gaps, tables  # noqa: E402

PAGE, ROWS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), pd.read_csv(ROOT / "docs" / "study.csv")


def test_every_table_is_on_the_page() -> None:
    for title, table in tables(ROWS).items():
        assert f"### {title}\n\n{table}\n" in PAGE, title


def test_a_difference_is_that_of_the_same_cells() -> None:
    own = ROWS[(ROWS.test == ROWS.task) & (ROWS.n == 8)]
    line = next(line for line in gaps(own).splitlines() if line.startswith("| IA2→SFT minus SFT |"))
    of = {m: own[own.method == m].set_index(["task", "seed"]).accuracy for m in ("ia2-sft", "sft")}
    by_hand = (of["ia2-sft"] - of["sft"]).groupby("task").mean().mean()
    assert f"| {by_hand:+.3f} [" in line
