"""Times two ways of doing the same, by turns, and keeps the figures."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ia2.run import environment

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: of what is measured, and beside what.
        ratio: reference over ours where higher is better (so many times faster), else ours over reference.
        goal: of the ratio; None where it is only reported.
        higher_is_better: see `ratio`.
        medians: of ours and the reference; seconds, or what the name says.
        spread: the smallest and the largest ratio of a pair of runs.
        agree: whether both gave the same result; None where there is nothing to compare.
    """

    name: str
    ratio: float
    goal: float | None
    higher_is_better: bool
    medians: dict[str, float]
    spread: tuple[float, float]
    agree: bool | None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.higher_is_better else self.ratio <= self.goal


def beside(
    name: str,
    ours: Callable[[], Any],
    reference: Callable[[], Any],
    goal: float | None,
    repeats: int,
    same: Callable[[Any, Any], bool] | None = None,
    higher_is_better: bool = True,
) -> Row:
    """Run both once to warm up and compare their results, then by turns; the ratio is the median of pairs'."""
    results = ours(), reference()
    agree = same(*results) if same else None
    pairs = [(seconds(ours), seconds(reference)) for _ in range(repeats)]
    return from_pairs(name, pairs, goal, higher_is_better, agree)


def from_pairs(
    name: str,
    pairs: Sequence[tuple[float, float]],
    goal: float | None,
    higher_is_better: bool = True,
    agree: bool | None = None,
) -> Row:
    """A row of figures of ours and the reference, pair by pair."""
    ratios = [b / a if higher_is_better else a / b for a, b in pairs]
    ours, reference = (statistics.median(column) for column in zip(*pairs, strict=True))
    medians = {"ours": ours, "reference": reference}
    return Row(name, statistics.median(ratios), goal, higher_is_better, medians, (min(ratios), max(ratios)), agree)


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of a file of results as Markdown."""
    lines = ["| what | ratio | pairs | goal | reached | agree |", "|---|---|---|---|---|---|"]
    words = {True: "yes", False: "**no**", None: "-"}
    for values in rows:
        row = Row(**values)
        sign = "" if row.goal is None else f"{'≥' if row.higher_is_better else '≤'} {row.goal:g}"
        low, high = row.spread
        lines.append(
            f"| {row.name} | {row.ratio:.2f} | {low:.2f} to {high:.2f} | {sign} | {words[row.reached]} "
            f"| {words[row.agree]} |"
        )
    return "\n".join(lines)


def write(rows: Sequence[Row], hardware: str, quick: bool) -> Path:
    """Keep results as JSON."""
    path = RESULTS / f"{hardware}.json"
    about = environment()
    record = {"date": about.pop("time"), "hardware": hardware, "quick": quick, "versions": about.pop("packages")}
    record |= {"threads": about["threads"], "results": [asdict(row) for row in rows]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
