"""Updates of the weights: from the low-rank factors, against whole matrices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_model
from peft import PeftModel
from torch import Tensor

from ia2.adapters import new_adapter, save_adapter
from ia2.analysis.weights import cosines, expected_overlap, lora_update, lora_updates, overlap, weights
from ia2.errors import IA2Error
from ia2.models import LanguageModel


def trained(lm: LanguageModel, folder: Path, seed: int = 0, adapter: str = "lora", **options: object) -> Path:
    with new_adapter(lm, adapter, options, seed) as model, torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=generator)
        save_adapter(model, folder, {})
    return folder


def factors(seed: int, r: int = 4, n_out: int = 40, n_in: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, n_in, generator=generator), torch.randn(n_out, r, generator=generator)


def test_an_update_is_that_of_the_whole_matrix() -> None:
    (a, b), (c, d) = factors(0), factors(1)
    one, two = lora_update(a, b, 0.5), lora_update(c, d, 2.0)
    whole = [torch.linalg.svd(scale * y.double() @ x.double()) for x, y, scale in ((a, b, 0.5), (c, d, 2.0))]
    for update, (left, values, _) in zip((one, two), whole, strict=True):
        torch.testing.assert_close(update.values, values[:4])
        torch.testing.assert_close((update.directions.T @ left[:, :4]).abs(), torch.eye(4).double(), atol=1e-9, rtol=0)
        assert update.norm == pytest.approx(float(values.norm()))
        p = (values[:4] / values[:4].sum()).numpy()
        assert update.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    naive = float((whole[0][0][:, :4].T @ whole[1][0][:, :4]).norm() ** 2) / 4
    assert overlap(one, two) == pytest.approx(naive)
    assert cosines(one, two).square().mean() == pytest.approx(naive)


def test_the_same_directions_overlap_wholly_and_others_not_at_all() -> None:
    a, b = factors(0)
    mixed = lora_update(torch.linalg.qr(a.T @ torch.randn(4, 4))[0].T @ torch.eye(24), b @ torch.randn(4, 4), 3.0)
    assert overlap(lora_update(a, b, 1.0), mixed) == pytest.approx(1)
    upper, lower = torch.zeros_like(b), torch.zeros_like(b)
    upper[:20], lower[20:] = b[:20], b[20:]
    assert overlap(lora_update(a, upper, 1.0), lora_update(a, lower, 1.0)) == pytest.approx(0)


def test_random_updates_overlap_as_expected() -> None:
    updates = [(lora_update(*factors(2 * k), 1.0), lora_update(*factors(2 * k + 1), 1.0)) for k in range(200)]
    values = [overlap(*pair) or 0.0 for pair in updates]
    assert expected_overlap(*updates[0]) == 4 / 40
    assert np.mean(values) == pytest.approx(4 / 40, abs=3 * np.std(values) / 200**0.5)


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"r": 4, "lora_alpha": 16}, {"alpha_pattern": {"q_proj": 3}}]
)
def test_updates_of_a_folder_are_what_peft_adds(lm: LanguageModel, options: dict[str, object], tmp_path: Path) -> None:
    found = lora_updates(trained(lm, tmp_path / "adapter", **options))
    model = PeftModel.from_pretrained(random_model("llama"), str(tmp_path / "adapter"))
    assert list(found)[:4] == [
        f"model.layers.{i}.self_attn.{n}_proj" for i, n in ((0, "k"), (0, "o"), (0, "q"), (1, "k"))
    ]
    for path, update in found.items():
        delta = model.base_model.model.get_submodule(path).get_delta_weight("default")
        torch.testing.assert_close(update.values.float(), torch.linalg.svdvals(delta)[: update.rank])
        inside = update.directions.float() @ (update.directions.float().T @ delta)
        torch.testing.assert_close(inside, delta, rtol=1e-3, atol=1e-3)


def test_every_pair_of_adapters_is_compared(lm: LanguageModel, tmp_path: Path) -> None:
    folders = {name: trained(lm, tmp_path / name, seed) for name, seed in (("one", 0), ("same", 0), ("other", 1))}
    with new_adapter(lm) as model:  # B is 0 at first
        save_adapter(model, tmp_path / "fresh", {})
    found = weights({**folders, "fresh": tmp_path / "fresh"})
    assert len(found["modules"]) == 9
    assert list(found["pairs"])[:3] == ["one - same", "one - other", "one - fresh"]
    same, other, fresh = list(found["pairs"].values())[:3]
    assert same["overlap"]["mean"]["low"] == pytest.approx(1)
    assert np.array(same["angles"]).max() < 1e-3
    assert other["mean_angle"]["values"] == pytest.approx([np.mean(angles) for angles in other["angles"]])
    assert same["mean_angle"]["mean"]["high"] < 1 < other["mean_angle"]["mean"]["low"]
    assert other["overlap"]["mean"]["low"] < other["expected"]["mean"]["value"] < other["overlap"]["mean"]["high"]
    assert fresh["overlap"] == fresh["expected"] == fresh["mean_angle"] == {"values": [None] * 9, "mean": None}
    assert found["adapters"]["fresh"]["norm"]["mean"]["value"] == 0


@pytest.mark.parametrize(("adapter", "kind"), [("ia3", "IA3"), ("dora", "DoRA"), ("full", "full fine-tuning")])
def test_other_adapters_are_refused(lm: LanguageModel, adapter: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(IA2Error, match=f"found {kind}; expected LoRA"):
        weights({"mine": trained(lm, tmp_path / "adapter", adapter=adapter)})
