"""Real rows, a real tokenizer, small random weights: accuracy is chance, the mechanics must hold."""

import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ia2.config import make_config
from ia2.models import load_model
from ia2.prompt import build_prompt
from ia2.run import Data, Run
from ia2.tasks import load_task

pytestmark = pytest.mark.skipif(
    "IA2_DATA" not in os.environ, reason="IA2_DATA does not name a folder of benchmark rows"
)

TOKENIZER = Path(os.environ.get("IA2_DATA", ".")).parent / "tokenizers" / "gpt2"


TASKS = ("sst2", "trec", "gsm8k")


def save_model(architecture: str, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer)}
    model: PreTrainedModel
    if architecture == "qwen3":
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
        model = Qwen3ForCausalLM(Qwen3Config(**shape, **sizes, num_key_value_heads=2, head_dim=16))
    else:
        model = GPT2LMHeadModel(GPT2Config(**shape, n_embd=64, n_layer=3, n_head=4, n_positions=2048))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
@pytest.mark.parametrize("name", TASKS)
def test_real_rows(architecture: str, name: str, tmp_path: Path) -> None:
    save_model(architecture, tmp_path / "model")
    n_train, n_dev, n_test = (4, 2, 2) if name == "gsm8k" else (8, 4, 12)
    task = load_task(name)
    train, dev, test = task.rows("train", n_train), task.rows("dev", n_dev), task.rows("test", n_test)
    labels = task.task.labels or "none"
    options = {"labels": labels, "learning_rate": [1e-2], "num_train_epochs": 8, "max_new_tokens": 5}
    config = make_config({"model": str(tmp_path / "model"), **options})
    run = Run.create(tmp_path / "run", config, Data(tuple(train), tuple(dev)))
    lm = load_model(config.model, device="cpu")

    for row in (*train, *dev, *test):  # aligned positions decode to the response, boundary and all
        tokens = lm.encoder.encode(build_prompt(run.task(), train[:2], row.query, row.label))
        text = lm.encoder.tokenizer.decode([tokens.ids[t + 1] for t in tokens.aligned("response")])
        assert text == run.task().completion(row.label)
        assert lm.encoder.tokenizer.decode(tokens.ids).endswith(row.query + text)

    run.train(lm)
    for folder in run.adapters.values():
        record = json.loads((folder / "training.json").read_text())
        losses = [entry["loss"] for entry in record["trainings"][0]["log"] if "loss" in entry]
        assert min(losses[-3:]) < 0.99 * losses[0]

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    PeftModel.from_pretrained(base, str(run.adapters["ia2-sft"]))
    metrics = run.evaluate(test, lm)
    assert metrics["methods"]["ia2"]["n"] == n_test
