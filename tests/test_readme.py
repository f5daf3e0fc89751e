"""Every command and every Python line of the README runs as written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import random_model

from ia2.world.tokenizer import build_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
HUB_ID = "Qwen/Qwen3-0.6B-Base"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the examples, and a small random Qwen3 where the README has one from the hub."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    random_model("qwen3").save_pretrained(tmp_path / HUB_ID)
    build_tokenizer().save_pretrained(tmp_path / HUB_ID)
    return tmp_path


def test_commands(workplace: Path) -> None:
    commands = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line.strip()]
    assert [c for c in commands if c.startswith("make")] == ["make demo", "make test", "make check"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        if command.startswith(("make", "pip install")):
            continue  # `make test` is what runs this
        done = subprocess.run(
            command, shell=True, cwd=workplace, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (workplace / "runs" / "mood" / "report.html").is_file()


def test_python(workplace: Path) -> None:
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=workplace, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_map_of_files_is_complete() -> None:
    for path in (ROOT / "src" / "ia2").iterdir():
        if path.name not in ("__pycache__", "__init__.py", "__main__.py", "py.typed"):
            assert f"`{path.stem}`" in README, f"{path.name} is not in the README's map of files"
