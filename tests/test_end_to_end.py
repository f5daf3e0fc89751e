"""The paper's path on the embedded models, against fine-tuning and the untouched model as controls."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ia2 import world
from ia2.config import make_config
from ia2.data import Example
from ia2.models import LanguageModel, load_model
from ia2.run import Data, Run

N, N_TEST = 16, 200


@cache
def tiny(name: str) -> LanguageModel:
    return load_model(name, device="cpu")


def rows(task: str, split: str, n: int) -> list[Example]:
    return [Example(**row) for row in world.TASKS[task].rows(n, 0, split)]


def evaluated(name: str, method: str, folder: Path, train: list[Example]) -> dict[str, Any]:
    """Metrics by way of answering, on `season`."""
    config = make_config({"model": name, "method": method, "labels": ("0", "1"), "learning_rate": (1e-2,)})
    run = Run.create(folder / method, config, Data(train, rows("season", "dev", 8)))
    run.train(tiny(name))
    return dict(run.evaluate(rows("season", "test", N_TEST), tiny(name))["methods"])


@pytest.mark.parametrize("name", list(world.MODELS))
def test_priming_brings_the_model_to_where_the_demos_would(name: str, tmp_path: Path) -> None:
    train = rows("season", "train", N)
    found = evaluated(name, "ia2-sft", tmp_path, train)
    sft = evaluated(name, "sft", tmp_path, train)["sft"]
    value = {m: {k: found[m][k]["value"] for k in ("accuracy", "nll", "similarity")} for m in found}
    assert value["zero-shot"]["accuracy"] < value["icl"]["accuracy"] - 0.08
    assert value["ia2"]["accuracy"] > 0.7
    assert value["ia2"]["similarity"] > sft["similarity"]["value"] + 0.05
    assert value["ia2"]["similarity"] > value["zero-shot"]["similarity"] + 0.05
    assert value["ia2"]["nll"] < value["zero-shot"]["nll"] - 0.1
    assert found["ia2-sft"]["tokens_per_query"] < found["icl"]["tokens_per_query"] / 8
