"""The tables of docs/results.md are those of the rows that are published beside it."""

import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results import every_table, gaps, means  # noqa: E402
from benchmarks.results_quick import compared  # noqa: E402

DOCS = ROOT / "docs"
PAGE, ROWS = (DOCS / "results.md").read_text(encoding="utf-8"), pd.read_csv(DOCS / "study.csv")
OWN = ROWS[(ROWS.model == "tiny") & (ROWS.test == ROWS.task) & (ROWS.n == 8)]


def test_every_table_is_on_the_page() -> None:
    for title, table in every_table(DOCS).items():
        assert f"### {title}\n\n{table}\n" in PAGE, title


def test_a_difference_is_that_of_the_same_cells() -> None:
    line = next(line for line in gaps(OWN).splitlines() if line.startswith("| IA2→SFT minus SFT |"))
    of = {m: OWN[OWN.method == m].set_index(["task", "seed"]).accuracy for m in ("ia2-sft", "sft")}
    by_hand = (of["ia2-sft"] - of["sft"]).groupby("task").mean().mean()
    assert f"| {by_hand:+.3f} [" in line


def test_methods_of_a_table_are_of_the_same_cells() -> None:
    lacking = OWN[~((OWN.method == "joint") & (OWN.task == "mood"))]
    assert means(lacking) == means(OWN[OWN.task != "mood"])


def test_a_quick_run_agrees_with_what_is_published_unless_it_differs() -> None:
    found = OWN[OWN.seed == 0]
    assert all(agrees for _, agrees in compared(found, ROWS))
    worse = found.assign(accuracy=found.accuracy - 0.5 * (found.method == "ia2-sft"))
    assert [agrees for _, agrees in compared(worse, ROWS)] == [True, False, False]
