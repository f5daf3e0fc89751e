"""Export: what others get is complete, says what it is, and answers as the run does."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GENERATED, example_rows, reasoned_rows
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from ia2.config import make_config
from ia2.errors import IA2Error
from ia2.export import export
from ia2.files import read_jsonl
from ia2.models import load_model
from ia2.prompt import Prompt
from ia2.run import Data, Run
from ia2.world import MODELS
from ia2.world.tokenizer import build_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
OPTIONS = {"num_train_epochs": 1, "learning_rate": (1e-2,), "adapter_options": {"r": 4}}


def trained(folder: Path, model: str, **options: Any) -> Run:
    rows = tuple(reasoned_rows(9) if options.get("labels") == "none" else example_rows(9))
    given = {
        "model": model,
        **OPTIONS,
        **({"adapter_options": {}} if options.get("adapter") == "full" else {}),
        **options,
    }
    run = Run.create(folder / "run", make_config(given), Data(rows[:6], rows[6:]))
    run.train()
    return run


def load_as_written(folder: Path) -> dict[str, Any]:
    """The names that the code of the model card leaves."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.mark.usefixtures("capsys")
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_code_of_the_card_loads_what_answers_as_the_run_did(
    adapter: str, merged: bool, model_folder: str, tmp_path: Path
) -> None:
    run = trained(tmp_path, model_folder, adapter=adapter)
    run.evaluate(example_rows(8))
    report = export(run, tmp_path / "out", merged=merged)
    assert report.n_rows == 8
    assert report.max_difference < 1e-4
    names = load_as_written(tmp_path / "out")
    lm = load_model(model_folder, device="cpu")
    labels = torch.tensor([ids[0] for ids in lm.encoder.label_ids(("0", "1"))])
    for row in [row for row in read_jsonl(run.folder / "predictions.jsonl") if row["variant"] == "ia2-sft"]:
        inputs = names["tokenizer"](row["query"], return_tensors="pt")
        p = names["model"](**inputs).logits[0, -1][labels].softmax(-1)
        assert p.tolist() == pytest.approx(list(row["p_labels"].values()), abs=1e-4)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".bin", ".pt", ".partial")]


def test_the_card_has_what_the_hub_and_people_ask(model_folder: str, tmp_path: Path) -> None:
    run = trained(tmp_path, model_folder)
    export(run, tmp_path / "before")
    assert "Not evaluated." in (tmp_path / "before" / "README.md").read_text("utf-8")
    metrics = run.evaluate(example_rows(8))
    export(run, tmp_path / "primed", "ia2")
    export(run, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.library_name, card.data.license) == ("peft", "other")
    assert "lora" in (card.data.tags or [])
    assert card.data.base_model is None  # a folder of this machine is nothing that the hub knows
    of = metrics["methods"]["ia2-sft"]["accuracy"]
    figure = f"| IA2→SFT | {of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}] |"
    for text in (
        "8 test rows",
        figure,
        "6 labelled rows, 3 for development, 0 unlabelled",
        "2509.22621",
        "1 nmse at attn_out",
    ):
        assert text in card.text, text
    primed = ModelCard.load(tmp_path / "primed" / "README.md").text
    assert "- `ia2`:" in primed
    assert "- `ia2-sft`:" not in primed
    assert str(example_rows(1)[0].query) not in card.text  # rows stay with their owner


def test_the_base_of_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, tmp_path / "own" / "model")
    run = trained(tmp_path, "own/model", chat="none")
    shutil.move(tmp_path / "own", tmp_path / "hub")
    monkeypatch.setattr(Run, "load_model", lambda self: load_model(str(tmp_path / "hub" / "model"), device="cpu"))
    export(run, tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == "own/model"


def test_an_embedded_model_is_loaded_from_the_package(tmp_path: Path) -> None:
    export(trained(tmp_path, "tiny"), tmp_path / "out")
    assert load_as_written(tmp_path / "out")["model"].peft_config["default"].r == 4
    assert str(MODELS["tiny"]) not in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("style", ["turns", "message"])
def test_with_a_chat_template_the_card_asks_through_it(style: str, model_folder: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model_folder)
    run = trained(tmp_path, model_folder, chat=style)
    export(run, tmp_path / "out")
    names = load_as_written(tmp_path / "out")
    lm = run.load_model()
    assert names["inputs"]["input_ids"][0].tolist() == list(lm.encoder.encode(Prompt((), names["query"])).ids)


def test_generated_answers(model_folder: str, tmp_path: Path) -> None:
    run = trained(tmp_path, model_folder, labels="none", max_new_tokens=GENERATED.max_new_tokens)
    assert export(run, tmp_path / "out").n_rows == 3
    assert "Answers are texts." in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("merged", [False, True])
def test_what_answers_otherwise_is_not_exported(merged: bool, model_folder: str, tmp_path: Path) -> None:
    run = trained(tmp_path, model_folder)
    run.evaluate(example_rows(8))
    weights = Path(model_folder) / "model.safetensors"
    save_file({name: 1.2 * value for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(IA2Error, match=r"does not answer as the run does: probabilities are \d\.\d+ apart"):
        export(run, tmp_path / "out", merged=merged)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_folder_that_is_there_and_an_adapter_that_is_not(model_folder: str, tmp_path: Path) -> None:
    run = trained(tmp_path, model_folder, method="sft")
    with pytest.raises(IA2Error, match="exists; choose another output folder"):
        export(run, tmp_path)
    with pytest.raises(IA2Error, match="unknown adapter 'stf': did you mean 'sft'"):
        export(run, tmp_path / "out", "stf")
