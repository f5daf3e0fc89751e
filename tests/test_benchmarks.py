import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import RESULTS, from_pairs, table  # noqa: E402

FILES = sorted(RESULTS.glob("*.json"))


def test_documented_table_is_the_committed_one() -> None:
    assert FILES
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for path in FILES:
        assert table(json.loads(path.read_text(encoding="utf-8"))["results"]) in text


@pytest.mark.parametrize(("better", "ratio", "reached"), [(True, 3.0, True), (False, 1 / 3, True)])
def test_ratio_is_the_median_of_pairs(better: bool, ratio: float, reached: bool) -> None:
    row = from_pairs("x", [(1.0, 2.0), (1.0, 3.0), (2.0, 20.0)], 3.0 if better else 0.4, better)
    assert row.ratio == pytest.approx(ratio)
    assert row.spread == pytest.approx((2.0, 10.0) if better else (0.1, 0.5))
    assert row.medians == {"ours": 1.0, "reference": 3.0}
    assert row.reached is reached


def test_a_goal_that_is_missed_shows() -> None:
    assert not from_pairs("x", [(1.0, 2.0)], 3.0).reached
    assert not from_pairs("x", [(2.0, 1.0)], 1.5, higher_is_better=False).reached


@pytest.mark.parametrize(("module", "option"), [("benchmarks", "--quick"), ("benchmarks.kills", "--kills")])
def test_runs_as_a_module(module: str, option: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    assert option in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
