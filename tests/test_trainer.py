"""`IA2Trainer` beside `ia2 train`, as it is used beside TRL's trainers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import example_rows, random_model
from datasets import Dataset
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainerCallback

from ia2.config import make_config
from ia2.errors import IA2Error
from ia2.run import Data, Run
from ia2.trainer import IA2Config, IA2Trainer
from ia2.world.tokenizer import build_tokenizer

TRAIN, DEV = example_rows(6), example_rows(9)[6:]
FAST: dict[str, Any] = {"num_train_epochs": 3, "learning_rate": 1e-2, "disable_tqdm": True, "seed": 3}


def columns(examples: list[Any]) -> Dataset:
    return Dataset.from_list([{"prompt": e.query, "completion": e.label} for e in examples])


def test_it_trains_what_the_command_line_trains(model_folder: str, tmp_path: Path) -> None:
    args = IA2Config(str(tmp_path / "trainer"), **FAST)
    model, tokenizer = (of.from_pretrained(model_folder) for of in (AutoModelForCausalLM, AutoTokenizer))
    trainer = IA2Trainer(model, args, columns(TRAIN), columns(DEV), tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    options = {"method": "ia2", "num_train_epochs": 3, "learning_rate": (1e-2,), "seed": 3}
    run = Run.create(tmp_path / "run", make_config({"model": model_folder, **options}), Data(TRAIN, DEV))
    folder = run.train()["ia2"]
    ours = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    theirs = load_file(folder / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert trainer.records[0].value == json.loads((folder / "training.json").read_text())["value"]
    assert isinstance(PeftModel.from_pretrained(random_model("llama"), str(tmp_path / "saved")), PeftModel)


def test_conversations_callbacks_and_an_adapter_of_ones_own(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.global_step)

    talks = [
        {"messages": [{"role": "user", "content": e.query}, {"role": "assistant", "content": e.label}]} for e in TRAIN
    ]
    args = IA2Config(str(tmp_path), options={"method": "soft", "temperature": 2.0}, max_steps=3, **FAST)
    lora = LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM")
    trainer = IA2Trainer(random_model("llama"), args, talks, None, build_tokenizer(), lora, [Watch()])
    before = {name: weight.clone() for name, weight in trainer.bank.weights[0].items()}
    trainer.train()
    assert seen == [1, 2, 3]
    assert before
    assert all("v_proj" in name and weight.shape.count(2) for name, weight in before.items())
    assert any(not torch.equal(weight, trainer.bank.weights[0][name]) for name, weight in before.items())


def test_it_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    def trainer(name: str, *callbacks: TrainerCallback) -> IA2Trainer:
        args = IA2Config(str(tmp_path / name), save_strategy="steps", save_steps=1, **FAST)
        return IA2Trainer(random_model("llama"), args, columns(TRAIN), columns(DEV), build_tokenizer(), None, callbacks)

    whole, again = trainer("whole"), trainer("parts")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer("parts", Interrupt()).train()
    assert sorted(path.name for path in (tmp_path / "parts").glob("c*")) == [f"checkpoint-{n}" for n in (1, 2, 3)]
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == whole.state.global_step == 6
    assert again.records[0].log == whole.records[0].log
    assert all(torch.equal(weight, again.bank.weights[0][name]) for name, weight in whole.bank.weights[0].items())


@pytest.mark.filterwarnings("ignore::UserWarning:trl")
def test_its_arguments_are_read_and_it_is_pushed_as_others_are(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import TrlParser

    options = {"method": "soft", "temperature": 2.0}
    own = {**FAST, "output_dir": str(tmp_path / "out"), "options": options, "max_steps": 1, "hub_model_id": "me/own"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    [args] = TrlParser((IA2Config,)).parse_args_and_config(["--config", str(tmp_path / "own.yaml")])
    trainer = IA2Trainer(model_folder, args, columns(TRAIN), columns(DEV))
    trainer.train()
    pushed: dict[str, list[str]] = {}

    def upload(self: HfApi, *, folder_path: str, repo_id: str, ignore_patterns: list[str], **more: Any) -> None:
        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        pushed[repo_id] = list(filter_repo_objects(files, ignore_patterns=ignore_patterns))

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **more: RepoUrl(f"https://huggingface.co/{name}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    trainer.push_to_hub()
    assert trainer.stage.temperature == 2.0
    assert {*pushed["me/own"]} >= {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"}
    assert not [name for name in pushed["me/own"] if "targets" in name or name.endswith(".bin")]
    assert list((tmp_path / "out").rglob("targets"))


@pytest.mark.filterwarnings("ignore::UserWarning:trl")
@pytest.mark.parametrize("parser", ["HfArgumentParser", "TrlParser"])
def test_its_arguments_are_read_from_a_command_line(parser: str, tmp_path: Path) -> None:
    import trl

    of = HfArgumentParser if parser == "HfArgumentParser" else trl.TrlParser
    own = ["--output_dir", str(tmp_path), "--options", '{"method": "soft", "labels": ["0", "1"]}', "--eval_steps", "4"]
    [args] = of((IA2Config,)).parse_args_into_dataclasses(own)
    assert args.eval_steps == 4
    trainer = IA2Trainer(random_model("llama"), args, columns(TRAIN), columns(DEV), build_tokenizer())
    assert trainer.stage.terms[0].site == "logits"
    [args] = of((IA2Config,)).parse_args_into_dataclasses(own[:2])
    trainer = IA2Trainer(random_model("llama"), args, columns(TRAIN), columns(DEV), build_tokenizer())
    assert trainer.stage.terms[0].site == "attn_out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"method": "ia2-sft"}}, "expected one of a single stage"),
        ({"options": {"los": "mse"}}, "did you mean 'loss'"),
        ({"options": "method=ia2"}, "options is 'method=ia2'; expected JSON"),
        ({"options": {"trust_remote_code": True}}, "trust_remote_code is no option"),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    args = IA2Config(str(tmp_path), **FAST, **changes)
    with pytest.raises(IA2Error, match=message):
        IA2Trainer(random_model("llama"), args, columns(TRAIN), None, build_tokenizer())


def test_a_row_without_a_completion_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "1"}, {"prompt": "b"}]
    with pytest.raises(IA2Error, match="train_dataset row 2"):
        IA2Trainer(random_model("llama"), IA2Config(str(tmp_path)), rows, None, build_tokenizer())
