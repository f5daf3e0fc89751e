"""Every architecture with adapters of every kind: it learns, or the refusal names what cannot be done."""

import pytest
import torch
from conftest import ARCHITECTURES, LABELS, example_rows, random_model, teacher_prompts

from ia2.adapters import new_adapter
from ia2.capture import Selection, read
from ia2.errors import IA2Error
from ia2.jobs import Rows, TrainingSettings
from ia2.methods import methods
from ia2.models import wrap_model
from ia2.prompt import build_prompt
from ia2.targets import collect
from ia2.training import train_stage
from ia2.world.tokenizer import build_tokenizer

ADAPTERS = {"ia3": 1e-1, "ln-tuning": 1e-2, "prompt-tuning": 1e-1, "prefix-tuning": 1e-1}  # LoRA: tests/test_models.py
REFUSED = {("falcon", "prefix-tuning"), ("jamba", "prefix-tuning"), ("qwen3_next", "prefix-tuning")}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm")
def test_alignment(architecture: str, name: str) -> None:
    lm = wrap_model(random_model(architecture), build_tokenizer())
    rows = example_rows(4)
    bare = [lm.encoder.encode(build_prompt(LABELS, (), row.query, row.label)) for row in rows]
    batch = lm.encoder.collate(bare)
    with torch.no_grad():
        before = read(lm.base, lm.anatomy, batch, {"attn_out"})["attn_out"]
    targets = collect(lm, teacher_prompts(LABELS, rows, rows), Selection(frozenset(("attn_out",))))
    made = Rows(bare, targets)
    if (architecture, name) in REFUSED:
        with pytest.raises(IA2Error, match=f"cannot take the adapter '{name}'"), new_adapter(lm, name):
            pass
        return
    settings = TrainingSettings(ADAPTERS[name], num_train_epochs=3, eval_steps=1, early_stopping_patience=20)
    with new_adapter(lm, name):
        result = train_stage(lm, methods()["ia2"].stages[0], made, made, settings)
    assert result.value is not None
    assert result.value < result.log[0]["eval_value"]
    with torch.no_grad():
        assert torch.equal(read(lm.base, lm.anatomy, batch, {"attn_out"})["attn_out"], before)
