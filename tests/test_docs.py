"""Every command and every Python line of the documentation runs as written, and its tables are those of the code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import random_model

from ia2.adapters import ADAPTERS
from ia2.capture import SITES
from ia2.losses import ALIGNMENT_LOSSES, SOFT_LOSSES
from ia2.methods import methods
from ia2.world.tokenizer import build_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[str]:
    return [line for block in blocks("bash", page) for line in block.splitlines() if line.strip()]


HUB_ID = "Qwen/Qwen3-0.6B-Base"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the examples, and a small random Qwen3 where the README has one from the hub."""
    for folder in ("examples", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    random_model("qwen3").save_pretrained(tmp_path / HUB_ID)
    build_tokenizer().save_pretrained(tmp_path / HUB_ID)
    return tmp_path


def run(command: str | list[str], workplace: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = isinstance(command, str)
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, shell=shell, cwd=workplace, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_commands_of_the_readme(workplace: Path) -> None:
    assert [c for c in commands(README) if c.startswith("make")] == ["make demo", "make test", "make check"]
    for command in commands(README):
        if not command.startswith(("make", "pip install")):  # `make test` is what runs this
            run(command, workplace)
    assert (workplace / "runs" / "mood" / "report.html").is_file()


@pytest.mark.parametrize("command", commands(METHODS_PAGE))
def test_commands_of_the_methods_page(command: str, workplace: Path) -> None:
    run(command, workplace)


PYTHON = [
    block for page in (README, (ROOT / "docs" / "tasks.md").read_text("utf-8")) for block in blocks("python", page)
]


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python(block: str, workplace: Path) -> None:
    run([sys.executable, "-c", block], workplace)


EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, workplace: Path) -> None:
    run([sys.executable, f"examples/{name}"], workplace)


def test_the_tables_of_methods_and_adapters_are_those_of_the_code() -> None:
    for name, method in methods().items():
        assert f"| `{name}` | {method.what} | {method.equation} |" in METHODS_PAGE
    for name, adapter in ADAPTERS.items():
        rates = ", ".join(f"{rate:g}" for rate in adapter.learning_rate)
        row = next(line for line in METHODS_PAGE.splitlines() if line.startswith(f"| `{name}` | {adapter.what} |"))
        assert row.endswith(f" {rates} |")
        assert f"| {adapter.peft_type or '—'} |" in row
    for name in (*SITES, *ALIGNMENT_LOSSES, *SOFT_LOSSES):
        assert f"`{name}`" in METHODS_PAGE


def test_the_map_of_files_is_complete() -> None:
    for path in (ROOT / "src" / "ia2").iterdir():
        if path.name not in ("__pycache__", "__init__.py", "__main__.py", "py.typed"):
            assert f"`{path.stem}`" in README, f"{path.name} is not in the README's map of files"
