"""The table of docs/scaling.md is that of the estimate, on models of the shapes that are published."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scaling import MODELS, plans, shape, table  # noqa: E402

PARAMETERS = (1_235_814_400, 4_022_468_096, 8_030_261_248, 32_762_123_264, 70_553_706_496)  # of their model cards


def test_the_table_is_on_the_page_and_of_the_published_shapes() -> None:
    found = list(plans())
    assert f"\n\n{table(found)}\n\n" in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    counted = [sum(p.numel() for p in shape(name).base.parameters()) for name in MODELS]
    assert counted == list(PARAMETERS)
    assert {plan.weights for plan in found} == {"whole", "shared", "4-bit"}
    for plan in found:
        n_bytes = 2 * PARAMETERS[list(MODELS).index(plan.model)]
        if plan.weights == "4-bit":
            assert n_bytes / 4 < plan.needs.weights < n_bytes / 3
        else:
            assert plan.needs.weights >= n_bytes // (plan.n_gpus if plan.weights == "shared" else 1)
