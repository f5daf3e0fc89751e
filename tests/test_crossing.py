"""Where two methods cross: planted crossings are found, and what lies beyond the range measured is not claimed."""

import numpy as np
import pandas as pd
import pytest

from ia2.analysis import crossing
from ia2.analysis.crossing import crossing_point
from ia2.errors import IA2Error

SIZES = (2, 8, 32, 128)


def table(
    at: float, slope: float = -0.05, noise: float = 0.02, n_tasks: int = 6, n_seeds: int = 4, seed: int = 0
) -> pd.DataFrame:
    """IA2→SFT minus SFT is slope * log(N / at), task by task a little more or less."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(n_tasks):
        own = noise * rng.normal()
        for s in range(n_seeds):
            for n in SIZES:
                gap = slope * np.log(n / at) + own + noise * rng.normal()
                common = 0.6 + 0.1 * rng.normal()
                for method, accuracy in (("sft", common), ("ia2-sft", common + gap)):
                    rows.append({"task": f"t{k}", "seed": s, "n": n, "method": method, "accuracy": accuracy})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("slope", [-0.05, 0.05])
@pytest.mark.parametrize("at", [5.0, 30.0])
def test_a_planted_crossing_is_found(at: float, slope: float) -> None:
    found = crossing(table(at, slope), "ia2-sft")
    line = found["pooled"]
    assert line["low"] < at < line["high"]
    assert line["low"] < line["n"] < line["high"] < 3 * line["low"]
    assert line["p_crosses"] == 1
    assert line["per_doubling"]["value"] == pytest.approx(slope * np.log(2), rel=0.2)
    assert np.sign(line["first"]["value"]) == -np.sign(slope) == -np.sign(line["last"]["value"])
    assert list(found["tasks"]) == [f"t{k}" for k in range(6)]
    other_way = crossing(table(at, slope), "sft", "ia2-sft")["pooled"]
    assert other_way["n"] == pytest.approx(line["n"])
    assert other_way["low"] == pytest.approx(line["low"])


def test_the_interval_holds_the_planted_crossing_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(40):
        line = crossing(table(16.0, seed=seed, n_tasks=12), "ia2-sft")["pooled"]
        hits += (line["low"] or 0) <= 16 <= (line["high"] or np.inf)
    assert hits >= 33  # a bootstrap of twelve tasks is a little narrow


@pytest.mark.parametrize(("at", "sign"), [(1000.0, 1), (0.2, -1)])
def test_a_crossing_beyond_the_range_is_not_claimed(at: float, sign: int) -> None:
    line = crossing(table(at), "ia2-sft")["pooled"]
    assert (line["n"], line["low"], line["high"]) == (None, None, None)
    assert line["p_crosses"] < 0.05
    assert sign * line["first"]["value"] > 0
    assert sign * line["last"]["value"] > 0


def test_an_interval_that_leaves_the_range_is_open_on_that_side() -> None:
    line = crossing(table(80.0, noise=0.05), "ia2-sft")["pooled"]
    assert line["n"] is not None
    assert line["low"] is not None
    assert line["high"] is None


def test_noise_alone_has_no_crossing_that_is_bounded_on_both_sides() -> None:
    lines = [crossing(table(16.0, slope=0.0, seed=seed), "ia2-sft")["pooled"] for seed in range(20)]
    assert sum(line["low"] is not None and line["high"] is not None for line in lines) <= 2


def test_lines_are_those_of_polyfit() -> None:
    """Every task has every N, so that one line through all points is the same."""
    rows = table(16.0)
    found = crossing(rows, "ia2-sft")
    wide = rows.pivot(index=["task", "seed", "n"], columns="method", values="accuracy").reset_index()
    wide["gap"] = wide["ia2-sft"] - wide["sft"]
    for line, own in ((found["pooled"], wide), (found["tasks"]["t1"], wide[wide["task"] == "t1"])):
        slope, level = np.polyfit(np.log(own["n"]), own["gap"], 1)
        assert line["per_doubling"]["value"] == pytest.approx(slope * np.log(2))
        assert line["n"] == pytest.approx(np.exp(-level / slope))
        assert line["first"]["value"] == pytest.approx(level + slope * np.log(2))
    assert found["sizes"] == list(SIZES)
    for means, own in ((found["means"], wide), (found["tasks"]["t1"]["means"], wide[wide["task"] == "t1"])):
        assert [of["n"] for of in means] == list(SIZES)
        assert [of["value"] for of in means] == pytest.approx([own["gap"][own["n"] == n].mean() for n in SIZES])
        assert all(of["low"] < of["value"] < of["high"] for of in means)


def test_a_task_without_large_n_does_not_tilt_the_line() -> None:
    """It is far above the others, but has the same slope."""
    rows = table(16.0, noise=0.0)
    high = (rows["task"] == "t0") & (rows["method"] == "ia2-sft")
    rows.loc[high, "accuracy"] += 0.3
    found = crossing(rows[(rows["task"] != "t0") | (rows["n"] < 30)], "ia2-sft")
    assert found["pooled"]["per_doubling"]["value"] == pytest.approx(-0.05 * np.log(2))


def test_only_cells_with_both_methods_count() -> None:
    rows = table(16.0)
    lacks = (rows["task"] == "t0") & (rows["method"] == "sft")
    assert crossing(rows[~lacks], "ia2-sft") == crossing(rows[rows["task"] != "t0"], "ia2-sft")


@pytest.mark.parametrize("kept", ["n == 8", "task == 't0' and seed == 0", "method == 'sft'"])
def test_too_little_is_refused(kept: str) -> None:
    with pytest.raises(IA2Error, match="expected at least two N, and two tasks or seeds"):
        crossing(table(16.0).query(kept), "ia2-sft")


def of_lines(*lines: tuple[float, float, int]) -> dict[str, float | None]:
    """Lines by their values at N = 2 and N = 128, each as often as said; the first is the observed one."""
    first, last = (np.repeat([line[k] for line in lines], [line[2] for line in lines]) for k in (0, 1))
    start, end = np.log(2), np.log(128)
    slope = (last - first) / (end - start)
    return crossing_point(first - slope * start, slope, first, last, [start, end])


@pytest.mark.parametrize(
    ("others", "low", "high"),
    [
        ((0.1, -0.1), 16, 16),
        ((0.1, 0.05), 16, None),
        ((0.1, 0.2), 16, None),  # rises, and crosses zero below the range, but the method stays ahead within it
        ((-0.1, -0.2), None, 16),
        ((-0.2, -0.1), None, 16),
        ((-0.1, 0.1), None, None),  # the other way
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_resamples_say_that_do_not_cross_as_the_observed_line_does(
    sign: int, others: tuple[float, float], low: float | None, high: float | None
) -> None:
    found = of_lines((sign * 0.1, -sign * 0.1, 951), (sign * others[0], sign * others[1], 50))
    for name, expected in (("n", 16), ("low", low), ("high", high)):
        assert found[name] == (None if expected is None else pytest.approx(expected))
