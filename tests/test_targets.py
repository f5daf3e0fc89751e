"""What the teacher did is kept in parts, and none of them is computed twice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GENERATED, reasoned_rows, teacher_prompts

import ia2.targets
from ia2.adapters import new_adapter
from ia2.bank import trainable
from ia2.capture import Selection, Site
from ia2.models import LanguageModel
from ia2.targets import collect, live, n_bytes

SELECTION = Selection(frozenset[Site](("attn_out", "logits")))


@pytest.fixture
def small_shards(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three rows in each."""
    sizes = [n_bytes(lm, lm.encoder.encode(prompt), SELECTION) for prompt in prompts_of()]
    monkeypatch.setattr("ia2.targets.SHARD_BYTES", 2 * max(sizes))


def prompts_of() -> list[Any]:
    return teacher_prompts(GENERATED, reasoned_rows(4), reasoned_rows(8))


def rows_of_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call from now on reads; it grows."""
    seen: list[int] = []
    passes = ia2.targets.passes

    def counted(lm: LanguageModel, rows: Sequence[Any], *rest: Any) -> Any:
        seen.append(len(rows))
        return passes(lm, rows, *rest)

    monkeypatch.setattr("ia2.targets.passes", counted)
    return seen


@pytest.mark.usefixtures("small_shards")
def test_parts_have_the_values_of_the_whole(lm: LanguageModel, tmp_path: Path) -> None:
    whole = collect(lm, prompts_of(), SELECTION)
    for _ in range(2):  # computed, then read
        parts = collect(lm, prompts_of(), SELECTION, tmp_path)
        for site in SELECTION.sites:
            assert [len(a) for a in parts.values[site]] == [len(b) for b in whole.values[site]]
            torch.testing.assert_close(list(parts.values[site]), list(whole.values[site]))
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) in (3, 4)


@pytest.mark.usefixtures("small_shards")
def test_what_is_there_is_not_computed_again(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(lm, prompts_of(), SELECTION, tmp_path)
    (folder,) = tmp_path.iterdir()
    paths = sorted(folder.iterdir())
    before = [path.read_bytes() for path in paths]
    paths[1].unlink()
    seen = rows_of_passes(monkeypatch)
    collect(lm, prompts_of(), SELECTION, tmp_path)
    assert seen == [int(paths[2].stem) - int(paths[1].stem)]
    assert [path.read_bytes() for path in paths] == before


def test_values_are_views_of_the_mapped_file(lm: LanguageModel, tmp_path: Path) -> None:
    found = collect(lm, prompts_of(), SELECTION, tmp_path)
    stored = {value.untyped_storage().data_ptr() for values in found.values.values() for value in values}
    assert len(stored) == len(SELECTION.sites)  # views of what is mapped, not copies


def test_live_ones_are_the_collected_ones_though_an_adapter_trains(lm: LanguageModel) -> None:
    whole = collect(lm, prompts_of(), SELECTION)
    with new_adapter(lm, options={"lora_dropout": 0.5}) as model:
        for weight in trainable(model).values():
            torch.nn.init.normal_(weight.data)
        model.train()
        found = live(lm, prompts_of(), SELECTION)
        for site in SELECTION.sites:
            torch.testing.assert_close(found.values[site][1:], whole.values[site][1:])
        assert model.training


def test_live_ones_are_computed_each_time_a_row_alone(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = rows_of_passes(monkeypatch)
    found = live(lm, prompts_of(), SELECTION)
    for i in (0, 1, 0):
        for site in SELECTION.sites:
            found.values[site][i]
    assert seen == [1, 1, 1]
