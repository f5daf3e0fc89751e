"""Every architecture, adapters of every kind, a few methods: it learns, or the refusal names what cannot be done."""

import pytest
import torch
from conftest import ARCHITECTURES, LABELS, example_rows, random_model, teacher_prompts

from ia2.adapters import new_adapter
from ia2.bank import trainable_copy
from ia2.capture import Selection, Site, read
from ia2.errors import IA2Error
from ia2.jobs import Job, Rows, TrainingSettings
from ia2.methods import methods
from ia2.models import wrap_model
from ia2.prompt import build_prompt
from ia2.targets import collect
from ia2.training import train_jobs
from ia2.world.tokenizer import build_tokenizer

ADAPTERS = {"ia3": 1e-1, "ln-tuning": 1e-2, "prompt-tuning": 1e-1, "prefix-tuning": 1e-1}  # LoRA: tests/test_models.py
METHODS = ("ia2", "soft", "hidden", "sft")
REFUSED = {("falcon", "prefix-tuning"), ("jamba", "prefix-tuning"), ("qwen3_next", "prefix-tuning")}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm")
def test_every_method_learns(architecture: str, name: str) -> None:
    lm = wrap_model(random_model(architecture), build_tokenizer())
    if (architecture, name) in REFUSED:
        with pytest.raises(IA2Error, match=f"cannot take the adapter '{name}'"), new_adapter(lm, name):
            pass
        return
    rows = example_rows(4)
    bare = [lm.encoder.encode(build_prompt(LABELS, (), row.query, row.label)) for row in rows]
    batch = lm.encoder.collate(bare)
    with torch.no_grad():
        before = read(lm.base, lm.anatomy, batch, {"attn_out"})["attn_out"]
    sites = frozenset[Site](("attn_out", "hidden", "logits"))
    made = Rows(bare, collect(lm, teacher_prompts(LABELS, rows, rows), Selection(sites)))
    settings = TrainingSettings(ADAPTERS[name], num_train_epochs=2, eval_steps=2, early_stopping_patience=20)
    with new_adapter(lm, name) as model:
        jobs = [Job(trainable_copy(model), made, made, settings)]
        for method in METHODS:
            [result] = train_jobs(lm, methods()[method].stages[0], jobs)
            assert result.value is not None
            assert result.value < result.log[0]["eval_value"], method
    with torch.no_grad():
        assert torch.equal(read(lm.base, lm.anatomy, batch, {"attn_out"})["attn_out"], before)
