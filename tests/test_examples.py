"""The examples do what they say, on the embedded model."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import ia2
from ia2.config import read_config
from ia2.world import MODELS

ROOT = Path(__file__).parent.parent
MOOD = ROOT / "examples" / "mood"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODELS["tiny"]).eval()


def naive_losses(model: torch.nn.Module, rows: list[ia2.Example]) -> tuple[float, float]:
    """Mean cross-entropy of the label, and of the end token that TRL puts behind it, one row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS["tiny"])
    logps = []
    for row in rows:
        ids = [*tokenizer(row.query).input_ids, *tokenizer(row.label, add_special_tokens=False).input_ids]
        assert tokenizer.decode(ids[-1:]) == row.label
        with torch.no_grad():
            logp_TV = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        logps.append((logp_TV[-2, ids[-1]].item(), logp_TV[-1, tokenizer.eos_token_id].item()))
    label, end = -np.mean(logps, axis=0)
    return float(label), float(end)


@pytest.mark.usefixtures("workplace")
def test_plain_peft_answers_as_ia2_does() -> None:
    names = runpy.run_path("examples/peft_folder.py")
    query, given = names["query"], names["p"].tolist()
    (answer,) = names["run"].predict([query])
    assert given == pytest.approx([answer.p_labels["0"], answer.p_labels["1"]], abs=1e-5)
    with torch.no_grad():
        logits = base()(**names["tokenizer"](query, return_tensors="pt")).logits[0, -1]
    bare = logits[names["tokenizer"].convert_tokens_to_ids(["0", "1"])].softmax(-1).tolist()
    assert given != pytest.approx(bare, abs=0.05)


def test_trl_begins_where_ia2_left_the_adapter(workplace: Path) -> None:
    command = [sys.executable, "examples/trl_sft.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment
    )  # apart: TRL's warnings are not ours
    assert done.returncode == 0, done.stderr
    primed, fresh = map(float, re.findall(r"(?:primed|fresh) ([\d.]+)", done.stdout))
    run = ia2.Run.open(workplace / "runs" / "trl_sft")
    of_base = naive_losses(base(), run.data.train)
    of_primed = naive_losses(PeftModel.from_pretrained(base(), run.adapters["ia2"]).eval(), run.data.train)
    assert fresh == pytest.approx(np.mean(of_base), abs=2e-3)  # as printed
    assert primed == pytest.approx(np.mean(of_primed), abs=2e-3)
    assert of_primed[0] < of_base[0] - 0.05  # the labels by themselves: the end token weighs most in TRL's loss


def test_a_run_is_served(workplace: Path) -> None:
    values = {"model": "tiny", "method": "sft", "num_train_epochs": 1, "learning_rate": [1e-2]}
    rows = ia2.read_examples(MOOD / "train.jsonl")[:6]
    run = ia2.Run.create(workplace / "run", ia2.make_config(values), ia2.Data.split(rows, 0))
    run.train()
    client = TestClient(runpy.run_path("examples/serve.py")["server"]("run"))
    queries = [row.query for row in rows[:3]]
    for expected, found in zip(run.predict(queries), client.post("/predict", json=queries).json(), strict=True):
        assert found["response"] == expected.text
        assert found["p_labels"] == pytest.approx(expected.p_labels)
    assert client.post("/predict", json={"a": 1}).status_code == 422
    assert 'host="127.0.0.1"' in (workplace / "examples" / "serve.py").read_text("utf-8")


def test_the_composed_method_is_what_it_says() -> None:
    config = ia2.make_config({"model": "tiny", **read_config(ROOT / "examples" / "compose.yaml")})
    align, tune = config.stages().values()
    assert [(t.site, t.loss, t.weight) for t in align.terms] == [("attn_out", "cosine", 1), ("logits", "kl", 0.1)]
    assert [(t.site, t.loss) for t in tune.terms] == [("logits", "ce")]
    assert align.layers == "last:2"


def test_a_privileged_context_is_removed_from_the_prompt(tmp_path: Path) -> None:
    rows, lm = ia2.read_examples(ROOT / "examples" / "privileged.jsonl"), ia2.load_model("tiny")
    values = {"model": "tiny", "method": "ia2", "labels": ("0", "1"), "learning_rate": [1e-2], "num_train_epochs": 10}
    run = ia2.Run.create(tmp_path / "run", ia2.make_config(values), ia2.Data.split(rows, 0))
    prompt = run.contexts(lm).prompt(run.task(), rows[0], None, np.random.default_rng(0))
    assert prompt.text == rows[0].context
    assert not prompt.demos
    run.train(lm)
    methods = run.evaluate(ia2.read_examples(MOOD / "test.jsonl"), lm)["methods"]
    assert methods["ia2"]["nll"]["value"] < methods["zero-shot"]["nll"]["value"] - 0.02
