"""Bad inputs over the whole surface, each with the message it gets; docs/reliability.md has them as tables.

`python tests/test_bad_inputs.py` prints the tables.
"""

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import BAD_INPUTS
from conftest import example_rows, random_model

import ia2
from ia2.adapters import loaded_adapters, new_adapter, save_adapter
from ia2.cli import main
from ia2.config import make_config, read_config
from ia2.world.tokenizer import build_tokenizer

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
ROWS = example_rows(9)
DATA = ia2.Data(ROWS[:6], ROWS[6:])
ALL = [(surface, given, message) for surface, rows in BAD_INPUTS.items() for given, message in rows]


@pytest.fixture(scope="module")
def lm() -> ia2.LanguageModel:
    return ia2.wrap_model(random_model("llama"), build_tokenizer())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, lm: ia2.LanguageModel) -> Path:
    """A model, a run that is not trained, an adapter and a few files."""
    folder = tmp_path_factory.mktemp("template")
    lm.base.save_pretrained(folder / "model")
    lm.encoder.tokenizer.save_pretrained(folder / "model")
    create(folder / "run")._write()
    with new_adapter(lm) as model:
        save_adapter(model, folder / "adapter", {})
    lines = [json.dumps({"query": row.query, "response": row.response}) for row in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "one.jsonl").write_text(lines[0])
    (folder / "grid.yaml").write_text("tsks: [mood]")
    (folder / "trusting.yaml").write_text("tasks: [mood]\noptions: {trust_remote_code: true}")
    return folder


def create(folder: str | Path, data: ia2.Data = DATA, **options: Any) -> ia2.Run:
    return ia2.Run.create(folder, make_config({"model": "model", **options}), data)


def attach(**options: Any) -> None:
    """A fresh adapter on the model."""
    run = create("out", **options)
    lm = run.load_model()
    with run.new_adapter(lm, run.contexts(lm)):
        pass


def load(folder: str, model: str = "model") -> None:
    """A trained adapter on the model."""
    with loaded_adapters(ia2.load_model(model), {"adapter": Path(folder)}):
        pass


def cut(path: str) -> None:
    """A file in half."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def edit(path: str, **values: Any) -> None:
    """Of a JSON file."""
    Path(path).write_text(json.dumps({**json.loads(Path(path).read_text()), **values}))


def as_config(text: str) -> None:
    Path("options.yaml").write_text(text)
    make_config({"model": "tiny", **read_config(Path("options.yaml"))}).stages()


def as_data(text: str) -> None:
    name, content = text.split(": ", 1)
    Path(name).write_bytes(content.encode("latin-1"))
    ia2.read_examples(name)


def as_task(text: str) -> None:
    Path("t.yaml").write_text(text)
    ia2.load_task("t.yaml").rows("train", 2, seed=0)


NOT_PYTHON: dict[str, Callable[[str], None]] = {
    "Options as YAML": as_config,
    "Files of rows": as_data,
    "Task files": as_task,
}


def message_of_command(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on standard error, behind `ia2: `."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out) == (2, "")
    return captured.err.splitlines()[-1].removeprefix("ia2: ")


@pytest.mark.parametrize(("surface", "given", "message"), ALL, ids=[f"{i:03d}" for i in range(len(ALL))])
def test_a_bad_input_gets_this_message(
    surface: str,
    given: str,
    message: str,
    lm: ia2.LanguageModel,
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if surface == "Command line":
        found = message_of_command(given, monkeypatch, capsys)
    else:
        names = {"ia2": ia2, "Path": Path, "lm": lm, "rows": ROWS}
        tools = {f.__name__: f for f in (create, attach, load, cut, edit)}
        with pytest.raises(ia2.IA2Error) as error:
            NOT_PYTHON[surface](given) if surface in NOT_PYTHON else exec(given, {**names, **tools})
        found = str(error.value)
    assert re.fullmatch(re.escape(message).replace("…", ".*"), found), found
    assert not (tmp_path / "out").exists()


def tables() -> str:
    """As Markdown."""
    lines = []
    for surface, rows in BAD_INPUTS.items():
        lines += [f"### {surface}", "", "| input | message |", "|---|---|"]
        lines += [f"| {_code(given)} | {_text(message)} |" for given, message in rows]
        lines.append("")
    return "\n".join(lines)


def _code(text: str) -> str:
    shown = text.replace("\n", "\\n").replace("ÿ", "\\xff").replace("|", "\\|")
    return f"`{shown}`" if shown else "(empty)"


def _text(message: str) -> str:
    """Nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", message.replace("\n", "\\n"))


def test_the_tables_of_the_page_are_these() -> None:
    assert len(ALL) >= 80
    assert tables() in PAGE.read_text("utf-8"), "put what `python tests/test_bad_inputs.py` prints into the page"


if __name__ == "__main__":
    print(tables())
