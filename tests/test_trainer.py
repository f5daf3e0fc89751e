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
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainerCallback

from ia2.config import make_config
from ia2.data import Example
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


def trainer_of(folder: Path, dev: list[Example], architecture: str = "llama", **changes: Any) -> IA2Trainer:
    args = IA2Config(str(folder), **{**FAST, **changes})
    return IA2Trainer(
        random_model(architecture), args, columns(TRAIN), columns(dev) if dev else None, build_tokenizer()
    )


def test_it_evaluates_whenever_it_is_asked(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DEV, learning_rate=0.3, early_stopping_patience=1, num_train_epochs=20)
    before = trainer.evaluate()
    trainer.train()
    assert not any(record.step for record in trainer.records)  # no step was any good
    for _ in range(3):
        assert trainer.evaluate() == before
    with pytest.raises(IA2Error, match="rows to evaluate on are those of the eval_dataset"):
        trainer.evaluate(columns(TRAIN))
    with pytest.raises(IA2Error, match="rows to evaluate on are those of the eval_dataset"):
        trainer_of(tmp_path, []).evaluate()


def test_without_looks_at_the_evaluation_rows_the_last_weights_are_kept(tmp_path: Path) -> None:
    kept = [trainer_of(tmp_path, dev, eval_strategy="no", eval_on_start=False) for dev in (DEV, [])]
    for trainer in kept:
        trainer.train()
    assert all(torch.equal(w, kept[1].bank.weights[0][name]) for name, w in kept[0].bank.weights[0].items())
    assert kept[0].evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("dev", [DEV, []])
def test_where_the_loss_stops_being_finite_it_says_so_and_has_the_weights_before(
    dev: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(tmp_path, dev, learning_rate=1e38)
    before = trainer.bank.copy(0)
    assert trainer.train() is None
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.bank.weights[0].items())
    assert "no finite loss at step 2" in capsys.readouterr().err


def test_a_model_with_an_adapter_on_it_is_refused(tmp_path: Path) -> None:
    base = random_model("llama")
    IA2Trainer(base, IA2Config(str(tmp_path), **FAST), columns(TRAIN), None, build_tokenizer())
    for model in (base, get_peft_model(random_model("llama"), LoraConfig(target_modules=["v_proj"]))):
        with pytest.raises(IA2Error, match="the model has an adapter on it"):
            IA2Trainer(model, IA2Config(str(tmp_path), **FAST), columns(TRAIN), None, build_tokenizer())


def test_answers_of_another_training_in_the_same_folder_are_not_taken(tmp_path: Path) -> None:
    options = {"method": "icl-distill", "labels": "none", "max_new_tokens": 4}
    for rows in (TRAIN, TRAIN[:3]):
        args = IA2Config(str(tmp_path), options=options, **FAST)
        trainer = IA2Trainer(random_model("llama"), args, columns(rows), None, build_tokenizer())
        assert len(trainer.jobs[0].train) == len(rows)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "falcon"])
def test_what_a_model_drops_out_is_off(architecture: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, [], architecture, options={"n_demos": 0, "loss": "mse"}, max_steps=2)
    trainer.train()
    assert [entry["loss"] for entry in trainer.records[0].log] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_on_several_gpus_one_process_uses_one(tmp_path: Path) -> None:
    args = IA2Config(str(tmp_path), **FAST)
    assert args.device.type == "cpu"
    args._n_gpu = 2
    trainer = IA2Trainer(random_model("llama"), args, columns(TRAIN), None, build_tokenizer())
    trainer.train()
    assert trainer.state.global_step == 6  # two batches an epoch


def test_a_row_without_a_completion_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "1"}, {"prompt": "b"}]
    with pytest.raises(IA2Error, match="train_dataset row 2"):
        IA2Trainer(random_model("llama"), IA2Config(str(tmp_path)), rows, None, build_tokenizer())
