"""What others hand over (models, adapters, files, names) does nothing but what it is for; nobody is called unasked.

HTML that rows bring is escaped: `test_report.py`, `test_analysis.py`,
`test_sweep_page.py`; checksums: `test_faults.py`.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import example_rows
from test_models import saved

import ia2
from ia2.adapters import loaded_adapters
from ia2.cli import app
from ia2.config import make_config
from ia2.data import read_examples
from ia2.errors import IA2Error
from ia2.export import export
from ia2.files import write_jsonl
from ia2.models import load_model
from ia2.run import Data, Run
from ia2.sweep import Point
from ia2.tasks import load_task

SOURCES = sorted(Path(ia2.__file__).parent.rglob("*.py"))


class Hostile:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    name = saved("llama", folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Hostile(tmp_path / "was here")}, folder / "pytorch_model.bin")
    with pytest.raises(IA2Error, match=r"no weights in safetensors, but pytorch_model\.bin.*save_pretrained"):
        load_model(name, device="cpu")
    assert not (tmp_path / "was here").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "was here").exists()


def test_a_pickled_adapter_is_not_opened(tmp_path: Path) -> None:
    lm, run = load_model("tiny"), Run.create(tmp_path / "run", make_config({"model": "tiny"}), Data(example_rows(4)))
    with run.new_adapter(lm, run.contexts(lm)) as model:
        model.save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"weight": Hostile(tmp_path / "was here")}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(IA2Error, match="adapter"), loaded_adapters(lm, {"adapter": tmp_path / "adapter"}):
        pass
    assert not (tmp_path / "was here").exists()


def test_code_that_comes_with_a_model_runs_only_where_asked(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    name = saved("llama", folder)
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(IA2Error, match=r"custom code.*; the flag is --trust-remote-code"):
        load_model(name, device="cpu")
    assert type(load_model(name, device="cpu", trust_remote_code=True).base).__name__ == "OwnModel"


LOADING = (
    "train --model tiny --train rows.jsonl --output out",
    "compare --model tiny --train rows.jsonl --test rows.jsonl --output out",
    "compare --model tiny --task mood --output out",
    "sweep grid.yaml --output out",
    "doctor --model tiny --train rows.jsonl",
    "predict run rows.jsonl",
    "evaluate run --test rows.jsonl",
    "analyze run --test rows.jsonl",
    "explore run",
    "merge run --output out",
    "export run --output out",
)


@pytest.mark.parametrize("trusts", [False, True])
@pytest.mark.parametrize("command", LOADING)
def test_every_command_that_loads_a_model_trusts_its_code_by_the_flag_alone(
    command: str, trusts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is an older one, whose `config.yaml` says otherwise."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("rows.jsonl"), [{"query": e.query, "response": e.response} for e in example_rows(8)])
    Path("grid.yaml").write_text("tasks: [mood]")
    run = Run.create("run", make_config({"model": "tiny"}), Data(example_rows(8)))
    run._write()
    for folder in run.adapters.values():
        folder.mkdir(parents=True)
    assert "trust" not in Path("run/config.yaml").read_text()
    with Path("run/config.yaml").open("a") as file:
        file.write("trust_remote_code: true\n")
    seen: list[bool] = []

    def from_pretrained(path: str, trust_remote_code: bool) -> None:
        seen.append(trust_remote_code)
        raise OSError

    monkeypatch.setattr("ia2.models.AutoConfig.from_pretrained", from_pretrained)
    monkeypatch.setattr("ia2.sweep._load", load_model)  # none that an earlier sweep has loaded
    flag = ["--trust-remote-code"] if trusts else []
    with pytest.raises(IA2Error):
        app([*command.split(), *flag], standalone_mode=False)
    assert seen
    assert set(seen) == {trusts}


def test_a_merged_model_is_looked_at_with_the_same_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(
        tmp_path / "run", make_config({"model": "tiny", "method": "sft", "num_train_epochs": 1}), Data(example_rows(4))
    )
    run.train()
    for trusts in (False, True):
        seen: list[bool] = []
        monkeypatch.setattr(
            "ia2.export.load_model",
            lambda *of, trust_remote_code, seen=seen, **more: seen.append(trust_remote_code) or load_model(*of, **more),
        )
        export(Run.open(run.folder, trusts), tmp_path / str(trusts), merged=True)
        assert seen == [trusts]


@pytest.mark.parametrize(
    "command",
    [
        "doctor --model tiny --train rows.jsonl --config own.yaml",
        "doctor --model tiny --train rows.jsonl --set HOSTILE",
        "tasks show own.yaml",
        "sweep own.yaml --output out",
    ],
)
def test_yaml_makes_no_objects(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['was here']]"
    Path("own.yaml").write_text(f"seed: {hostile}")
    arguments = [f"seed={hostile}" if word == "HOSTILE" else word for word in command.split()]
    with pytest.raises(IA2Error, match=r"YAML.*could not determine a constructor"):
        app(arguments, standalone_mode=False)
    assert not Path("was here").exists()


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..\\x", "a/b"])
def test_names_never_become_paths(name: str, tmp_path: Path) -> None:
    with pytest.raises(IA2Error, match="is no name of a task"):
        load_task(name)
    with pytest.raises(IA2Error, match="a stage is called"):
        make_config({"model": "tiny", "method": {name: {"terms": {"logits": "ce"}}}})
    task = tmp_path / "own.yaml"
    for key in ("name", "folder"):
        task.write_text(json.dumps({"name": "own", "dataset": "a/b", key: name, "query": "{q}", "response": "{r}"}))
        with pytest.raises(IA2Error, match=f"'{key}' is "):
            load_task(task)
    place = tmp_path / "sweep" / "cells"
    assert (place / Point(name, "mood", 4, 0, "lora").folder).resolve().parent == place


def test_what_a_message_quotes_cannot_steer_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"\x1b[2J\n": 1}))
    with pytest.raises(IA2Error, match=r"has '\\+x1b\[2J\\+n'$"):
        read_examples(tmp_path / "rows.jsonl")
    assert str(IA2Error("a\x1b[2J\r\n\u202eb é 中")) == r"a\x1b[2J\r\n\u202eb é 中"


BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}


def banned(code: str) -> list[str]:
    """What may run what it reads, in a file of Python."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in BANNED_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module for _ in "x" if node.module and node.module.split(".")[0] in BANNED_MODULES]
        elif isinstance(node, ast.Call):
            found += [name for name in [ast.unparse(node.func)] if name in BANNED_CALLS]
            flags = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            found += [name for name in ("allow_pickle", "trust_remote_code", "shell") if flags.get(name) is True]
    return found


def test_nothing_in_the_source_runs_what_it_reads() -> None:
    assert len(SOURCES) > 50
    assert {path.name: names for path in SOURCES if (names := banned(path.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from dill import loads", "torch.load(x)", "eval(x)", "np.load(x, allow_pickle=True)", "exec(x)"],
)
def test_the_check_of_the_source_finds(code: str) -> None:
    assert banned(code)


ALONE = """
import json, os, sys
called, calls = [], ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, args: called.append(event) if event in calls else None)
from ia2.cli import main

for command in (
    "train --model tiny --train rows.jsonl --method ia2-sft --num-train-epochs 1 --learning-rate 1e-3 --output run",
    "evaluate run --test rows.jsonl",
):
    sys.argv = ["ia2", *command.split()]
    try:
        main()
    except SystemExit as error:
        assert not error.code
unasked = list(called)
import urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:9")
except OSError:
    pass
telemetry = [os.environ[name] for name in ("HF_HUB_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")]
print(json.dumps([unasked, called, telemetry]))
"""


def test_nobody_is_called(tmp_path: Path) -> None:
    """The embedded model trains and is evaluated without a connection or a look-up of a name; the check sees one."""
    rows = [json.dumps({"query": e.query, "response": e.response}) for e in example_rows(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    unset = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")
    environment = {
        name: value for name, value in os.environ.items() if name not in unset and "proxy" not in name.lower()
    }
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unasked, called, telemetry = json.loads(done.stdout.splitlines()[-1])
    assert unasked == []
    assert "socket.connect" in called
    assert telemetry == ["1", "0"]
