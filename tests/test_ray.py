"""The same grid on a Ray cluster of two nodes, one of which is killed in the middle: the same table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ia2.sweep
from ia2.sweep import Grid, Point, sweep

ray = pytest.importorskip("ray", reason="Ray is not installed")
TIMES = ("seconds_per_query", "training_seconds")
GRID = Grid(
    tasks=("mood", "season"),
    n=(2,),
    seeds=(0, 1),
    methods=("sft",),
    n_test=4,
    cells_at_once=1,
    options={"num_train_epochs": 1, "learning_rate": [1e-2]},
)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_loses_a_node_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    done: list[Point] = []
    run_on_ray = ia2.sweep._run_on_ray

    def losing(grid: Grid, points: list[Point], folder: Path) -> Iterator[Point]:
        for point in run_on_ray(grid, points, folder):
            done.append(point)
            if len(done) == 1:
                cluster.remove_node(second, allow_graceful=False)
            yield point

    monkeypatch.setattr(ia2.sweep, "_run_on_ray", losing)
    try:
        on_ray = sweep(GRID, tmp_path / "ray", "ray")
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert len(done) == 4
    here = sweep(GRID, tmp_path / "here")
    assert without_times(on_ray) == without_times(here)
