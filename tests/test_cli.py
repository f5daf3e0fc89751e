"""The command line: what a user types, and what a mistake is answered with."""

import io
import json
import re
import subprocess
import sys
from errno import EACCES
from pathlib import Path
from typing import Any

import pytest
import tomllib
import typer
from conftest import example_rows

from ia2.adapters import ADAPTERS
from ia2.cli import app, main
from ia2.config import make_config
from ia2.methods import METHODS
from ia2.run import Data, Run
from ia2.world import TASKS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rows = [{"query": e.query, "response": e.response} for e in example_rows(9)]
    texts = {
        "train": "\n".join(map(json.dumps, rows)),
        "one": json.dumps(rows[0]),
        "empty": "",
        "broken": json.dumps(rows[0]) + "\n{oops",
        "no_response": json.dumps(rows[0]) + '\n{"query": "a"}',
        "long": "\n".join(json.dumps({**row, "query": "gloomy " * 600 + str(i)}) for i, row in enumerate(rows)),
        "options": "method: sft\nlearning_rte: [0.1]\n",
        "bad_yaml": "method: [sft\n",
    }
    paths = {}
    for name, text in texts.items():
        paths[name] = str(tmp_path / f"{name}.jsonl")
        Path(paths[name]).write_text(text)
    (tmp_path / "folder").mkdir()
    return {**paths, "folder": str(tmp_path / "folder"), "out": str(tmp_path / "out")}


def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ia2", *args])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


MISTAKES = [
    (["--train", "nowhere.jsonl"], "nowhere.jsonl: no such file; expected JSON lines with 'query' and 'response'"),
    (["--train", "{empty}"], "no rows"),
    (["--train", "{broken}"], "broken.jsonl:2: not JSON"),
    (["--train", "{no_response}"], "no_response.jsonl:2: no 'response'; the row has 'query'"),
    (["--train", "{one}"], "1 training example(s); expected at least 2"),
    (["--train", "{train}", "--method", "ia2sft"], "unknown method 'ia2sft': did you mean 'ia2-sft'?"),
    (["--train", "{train}", "--loss", "nsme"], "unknown loss 'nsme': did you mean 'nmse'?"),
    (["--train", "{train}", "--preset", "papr"], "unknown preset 'papr': did you mean 'paper'?"),
    (["--train", "{train}", "--set", "evalsteps=4"], "unknown option 'evalsteps': did you mean 'eval_steps'?"),
    (["--train", "{train}", "--set", "eval_steps"], "expected name=value"),
    (["--train", "{train}", "--set", "eval_steps=two"], "option 'eval_steps' is 'two'"),
    (["--train", "{train}", "--config", "{options}"], "unknown option 'learning_rte': did you mean 'learning_rate'?"),
    (["--train", "{train}", "--config", "{bad_yaml}"], "not YAML"),
    (["--train", "{train}", "--learning-rate", "fast"], "--learning-rate is 'fast'"),
    (["--train", "{train}", "--learning-rate", "-1"], "learning rates are [-1.0]"),
    (["--train", "{train}", "--r", "0"], "cannot take the adapter 'lora' (`r` should be a positive integer"),
    (["--train", "{train}", "--model", "{folder}"], "not a model folder (no config.json)"),
    (["--train", "{train}", "--model", "no-such/model"], "cannot load the model 'no-such/model'"),
    (["--train", "{long}", "--dev", "{train}"], "exceeds the model's window of 512"),
    (["--train", "{train}", "--labels", "yes,no"], "the response '0' is not among the labels yes, no"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_mistake_gets_one_helpful_line_and_exit_code_2(
    args: list[str],
    message: str,
    files: dict[str, str],
    model_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = ["train", "--model", model_folder, "--output", files["out"], *(arg.format(**files) for arg in args)]
    code, out, err = run_cli(monkeypatch, capsys, *filled)
    last = err.strip().splitlines()[-1]
    assert (code, out) == (2, "")
    assert last.startswith("ia2: ")
    assert message in last
    assert not Path(files["out"]).exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--methd", "sft"], "ia2: No such option: --methd (Possible options: --method"),
        (["trane"], "ia2: No such command 'trane'. Did you mean 'train'?"),
        (["train", "--seed", "x"], "ia2: Invalid value for '--seed'"),
        (["train", "--train", "a.jsonl"], "ia2: Missing option '--output'"),
        (["demo", "--model", "tinny"], "ia2: unknown embedded model 'tinny': did you mean 'tiny'?"),
    ],
)
def test_a_misspelt_command_or_option(
    args: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_cli(monkeypatch, capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


def test_a_place_that_one_may_not_look_into(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(path: Path) -> bool:
        raise PermissionError(EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", closed)
    code, out, err = run_cli(monkeypatch, capsys, "report", files["folder"])
    assert (code, out) == (2, "")
    assert err.startswith(f"ia2: {files['folder']}/results.csv: permission denied")


def test_queries_on_standard_input_that_are_not_utf_8_are_named(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Run.create(files["out"], make_config({"model": "tiny"}), Data(example_rows(9)))._write()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\xff"), encoding="utf-8"))
    code, _, err = run_cli(monkeypatch, capsys, "predict", files["out"])
    assert (code, err.strip()) == (2, "ia2: stdin:2: not UTF-8 text (invalid start byte); save it as UTF-8")


def test_an_encoder_only_model_is_refused(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertConfig, BertForMaskedLM

    from ia2.world.tokenizer import build_tokenizer

    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    build_tokenizer().save_pretrained(tmp_path / "bert")
    args = ("train", "--model", str(tmp_path / "bert"), "--train", files["train"], "--output", files["out"])
    code, _, err = run_cli(monkeypatch, capsys, *args)
    assert code == 2
    assert "expected a decoder-only model" in err


def test_train_evaluate_predict(
    files: dict[str, str], model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = ("--num-train-epochs", "1", "--learning-rate", "1e-3")
    train = ("train", "--model", model_folder, "--train", files["train"], "--output", files["out"], *fast)
    code, out, err = run_cli(monkeypatch, capsys, *train, "--test", files["train"])
    assert code == 0
    assert "3 of 9 rows are held out for development, 6 are left to train on" in err
    assert f"adapter: {files['out']}/adapters/ia2-sft" in out
    assert "ICL" in out
    code, out, _ = run_cli(monkeypatch, capsys, "evaluate", files["out"], "--test", files["train"])
    assert code == 0
    assert "IA2" in out
    code, out, _ = run_cli(monkeypatch, capsys, "predict", files["out"], files["train"])
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 9
    assert set(rows[0]) == {"query", "response", "confidence", "p_labels"}
    code, _, err = run_cli(monkeypatch, capsys, *train, "--seed", "1")
    assert code == 2
    assert "holds a run with seed 0, now 1" in err
    code, _, err = run_cli(monkeypatch, capsys, "evaluate", files["folder"], "--test", files["train"])
    assert code == 2
    assert "not a run" in err
    for run, message in ((files["out"], "found 9 test rows; expected at least 16"), (files["folder"], "found no run")):
        code, _, err = run_cli(monkeypatch, capsys, "analyze", run, "--test", files["train"])
        assert code == 2
        assert message in err


def test_help_and_import_are_light() -> None:
    probe = "import sys, ia2, ia2.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
    help_text = subprocess.run([sys.executable, "-m", "ia2", "--help"], capture_output=True, text=True, check=True)
    assert all(name in help_text.stdout for name in ("demo", "train", "evaluate", "predict", "analyze"))


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert run_cli(monkeypatch, capsys, "--version")[:2] == (0, f"ia2 {project['version']}\n")


def test_help_shows_what_stands_in_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command, text in (("train", "[default: ia2-sft]"), ("explore", "ia2[explore]")):
        code, out, _ = run_cli(monkeypatch, capsys, command, "--help")
        assert code == 0
        assert text in out


def test_options_that_messages_and_pages_name_are_there() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    known |= {"--help"} | {
        option for parameter in commands["tasks"].commands["show"].params for option in parameter.opts
    }
    files = [file for file in (ROOT / "src" / "ia2").glob("*.py") if file.name != "explore.py"]  # which has CSS
    for file in (*files, *(ROOT / "docs" / page for page in ("guide.md", "tasks.md", "analysis.md"))):
        named = set(re.findall(r"(?<=[ (`])--[a-z_-]+", file.read_text(encoding="utf-8")))
        assert {name for name in named if "_" not in name} <= known, file  # accelerate's have one


def test_lists(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command, names in (("methods", METHODS), ("adapters", ADAPTERS), ("tasks", TASKS)):
        code, out, _ = run_cli(monkeypatch, capsys, command)
        assert code == 0
        assert all(name in out for name in names)


def test_compare_wants_files_or_a_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: dict[str, str]
) -> None:
    options = ["--model", "tiny", "--output", files["out"]]
    for more in (
        [],
        ["--train", files["train"]],
        ["--task", "mood", "--train", files["train"], "--test", files["train"]],
    ):
        code, _, err = run_cli(monkeypatch, capsys, "compare", *options, *more)
        assert (code, err.strip()) == (2, "ia2: expected either --train and --test, or --task")
    code, _, err = run_cli(monkeypatch, capsys, "compare", *options, "--task", "moood")
    assert (code, err.strip()) == (2, "ia2: unknown task 'moood': did you mean 'mood'?")


def test_doctor_says_what_is_impossible_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: dict[str, str], model_folder: str
) -> None:
    code, out, _ = run_cli(monkeypatch, capsys, "doctor", "--model", model_folder, "--train", files["long"])
    assert code == 2
    assert "exceeds the model's window of 512" in out
    code, out, _ = run_cli(monkeypatch, capsys, "doctor", "--model", model_folder, "--train", files["train"])
    assert code == 0
    assert "ready to train" in out
