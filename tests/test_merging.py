"""Merging: a plain model that answers as the adapter did."""

from pathlib import Path

import pytest
import torch
from conftest import LABELS, example_rows, random_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ia2.adapters import loaded_adapters, new_adapter, save_adapter, using
from ia2.errors import IA2Error
from ia2.files import read_json
from ia2.merging import merge
from ia2.models import LanguageModel, wrap_model
from ia2.prompt import Prompt, build_prompt
from ia2.world.tokenizer import build_tokenizer

PROMPTS = [build_prompt(LABELS, (), row.query, row.label) for row in example_rows(4)]


def trained(lm: LanguageModel, name: str, folder: Path) -> Path:
    context = Prompt((("Text:soup\nLabel:", "0"),), "")
    with new_adapter(lm, name, context=context) as model, torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        save_adapter(model, folder / name, {})
    return folder / name


@pytest.mark.parametrize(
    ("architecture", "name", "dtype"),
    [
        ("llama", "lora", torch.float32),
        ("llama", "lora", torch.bfloat16),
        ("gpt2", "lora", torch.float32),
        ("llama", "ia3", torch.float32),
        ("llama", "full", torch.float32),
    ],
)
def test_the_merged_model_is_plain_and_answers_alike(
    architecture: str, name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    lm = wrap_model(random_model(architecture).to(dtype), build_tokenizer())
    adapter = trained(lm, name, tmp_path)
    ids = torch.tensor([lm.encoder.encode(PROMPTS[1]).ids])
    base = random_model(architecture).to(dtype).float()(ids).logits[0, -2]
    report = merge(lm, adapter, tmp_path / "merged", PROMPTS)
    assert report.max_difference < 1e-4
    assert report.n_positions == len(PROMPTS)
    assert read_json(tmp_path / "merged" / "merging.json")["max_difference"] == report.max_difference
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plain.dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(build_tokenizer())
    assert (plain(ids).logits[0, -2] - base).abs().max() > 1e-2  # the adapter is in it
    again = wrap_model(random_model(architecture).to(dtype).float(), build_tokenizer())
    with loaded_adapters(again, {"a": adapter}), using(again, "a"), torch.no_grad():
        torch.testing.assert_close(plain(ids).logits[0, -2], again.model(ids).logits[0, -2], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_merged_is_said(lm: LanguageModel, tmp_path: Path) -> None:
    adapter = trained(lm, "prompt-tuning", tmp_path)
    with pytest.raises(IA2Error, match="virtual tokens cannot be merged"):
        merge(lm, adapter, tmp_path / "merged", PROMPTS)
    assert not (tmp_path / "merged").exists()
    with pytest.raises(IA2Error, match="exists; choose another"):
        merge(lm, adapter, tmp_path, PROMPTS)
