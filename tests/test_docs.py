"""Every command and every Python line of the documentation runs as written, and its tables are those of the code."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import random_model
from test_grids import write_results

from ia2.adapters import ADAPTERS, n_trainable
from ia2.capture import SITES
from ia2.cli import app
from ia2.config import make_config
from ia2.data import read_examples
from ia2.losses import ALIGNMENT_LOSSES, SOFT_LOSSES
from ia2.methods import methods
from ia2.models import load_model
from ia2.run import Data, Run
from ia2.world.tokenizer import build_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE, METHODS_PAGE, ANALYSIS_PAGE = (
    (ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("guide", "methods", "analysis")
)


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[str]:
    return [line for block in blocks("bash", page) for line in block.splitlines() if line.strip()]


HUB_ID = "Qwen/Qwen3-0.6B-Base"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the examples, and a small random Qwen3 where the guide has one from the hub."""
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


def run_here(command: str) -> list[str]:
    """In this process: a new one takes longer to import than to train. The arguments."""
    name, *arguments = shlex.split(command)
    assert name == "ia2"
    app(arguments, standalone_mode=False)
    return arguments


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 100


def test_commands_of_the_readme_and_the_guide(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    everything = list(dict.fromkeys([*commands(GUIDE), *commands(README)]))
    assert [c for c in everything if c.startswith("make")] == ["make test", "make check", "make demo"]
    for command in everything:
        if "<" in command:
            run(command, workplace)
        elif not command.startswith(("make", "pip install")):  # `make test` is what runs this
            run_here(command)
    report = (workplace / "runs" / "mood" / "report.html").read_text("utf-8")
    assert all(f"<h2>{part}</h2>" in report for part in ("Verdict", "Updates of the weights", "How it was made"))
    for command in commands((ROOT / "docs" / "report.md").read_text("utf-8")):
        run_here(command)


def rows_as_commands(page: str) -> list[str]:
    """What the last column of the methods page's tables has, behind the page's first command."""
    return [f"{commands(page)[0]} {cell}" for cell in re.findall(r"\| `(--(?:method|adapter) \S+)` \|\n", page)]


def test_every_method_and_adapter_has_its_command() -> None:
    kinds = [("method", name) for name in methods()] + [("adapter", name) for name in ADAPTERS]
    assert [row.split()[-2:] for row in rows_as_commands(METHODS_PAGE)] == [[f"--{kind}", name] for kind, name in kinds]


@pytest.mark.parametrize("command", commands(METHODS_PAGE)[1:] + rows_as_commands(METHODS_PAGE))
@pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm")
def test_commands_of_the_methods_page(command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    arguments = run_here(command)
    assert list((workplace / arguments[arguments.index("--output") + 1] / "adapters").iterdir())


def test_commands_of_the_analysis_page(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "runs" / "sweep").mkdir(parents=True)
    write_results(workplace / "runs" / "sweep")
    for command in commands(ANALYSIS_PAGE):
        run_here(command)
    for block in blocks("python", ANALYSIS_PAGE):
        exec(block, {})
    assert (workplace / "runs" / "compare" / "cells" / "seed0" / "analysis.html").is_file()
    assert (workplace / "runs" / "sweep" / "analysis.html").is_file()


SECTIONS = dict(zip(*[iter(re.split(r"^#+ (.+)\n", ANALYSIS_PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True))
ANALYSES = [name for name, text in SECTIONS.items() if "\n*Does not show:*" in text]


def test_every_analysis_has_its_equation_its_figures_a_picture_and_what_it_does_not_show() -> None:
    assert list(SECTIONS) == ["Why methods differ", *ANALYSES[:8], "What a sweep says", *ANALYSES[8:]]
    for name in ANALYSES:
        assert re.search("[=·‖←∩Σ]", SECTIONS[name]), f"{name} has no equation"
        assert "\nThere, " in SECTIONS[name] or " There, " in SECTIONS[name], f"{name} has no figures"
        assert ".svg)" in SECTIONS[name], f"{name} has no picture"


def test_the_pictures_of_the_analysis_page_are_drawn() -> None:
    pictures = re.findall(r"!\[.+?\]\((.+?\.svg)\)", ANALYSIS_PAGE)
    assert sorted(pictures) == sorted(path.name for path in (ROOT / "docs").glob("*.svg") if "analysis" in path.name)
    for name in pictures:
        root = ElementTree.parse(ROOT / "docs" / name).getroot()
        assert len([of for of in root.iter() if of.tag.endswith("}path") or of.tag.endswith("}image")]) > 5
        words = "".join(root.itertext())
        methods = any(word in words for word in ("zero-shot", "IA2→SFT", "IA2 with SFT"))
        assert methods or name == "analysis-heads.svg", f"{name} names no method"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="pictures are drawn by Chromium, which is not here")
def test_a_picture_is_drawn_of_a_page(tmp_path: Path) -> None:
    write_results(tmp_path)
    run_here(f"ia2 analyze {tmp_path}")
    label, out = "ECE over similarity to ICL, a point a cell and method", tmp_path / "out.svg"
    run([sys.executable, str(ROOT / "docs" / "picture.py"), str(tmp_path / "analysis.html"), label, str(out)], tmp_path)
    marks = re.findall('<path class="point"', out.read_text("utf-8"))
    assert len(marks) == 4 * 2 * 2 * 2  # tasks, N, seeds, trained methods


PYTHON = [*blocks("python", README), *blocks("python", (ROOT / "docs" / "tasks.md").read_text("utf-8"))]


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python(block: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    exec(block, {})


def test_python_of_the_methods_page(workplace: Path) -> None:
    """In a process of its own: it adds to the tables of losses and adapters."""
    run([sys.executable, "-c", "\n".join(blocks("python", METHODS_PAGE))], workplace)


def table(first: str) -> list[list[str]]:
    """The cells, row by row, of the table on the methods page whose first column has this head."""
    lines = METHODS_PAGE[METHODS_PAGE.index(f"\n| {first} |") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [line.strip("| ").split(" | ") for line in lines]


def test_the_table_of_methods_is_that_of_the_code() -> None:
    assert [row[:3] for row in table("method")] == [[f"`{name}`", m.what, m.equation] for name, m in methods().items()]


def test_the_table_of_adapters_is_that_of_the_code(tmp_path: Path) -> None:
    lm, rows, expected = load_model("tiny"), read_examples(ROOT / "examples" / "mood" / "train.jsonl"), []
    for name, adapter in ADAPTERS.items():
        config = make_config({"model": "tiny", "adapter": name})
        run = Run.create(tmp_path / name, config, Data.split(rows, config.seed))
        with run.new_adapter(lm, run.contexts(lm)) as model:
            size = f"{n_trainable(model):,}"
        rates = ", ".join(f"{rate:g}" for rate in adapter.learning_rate)
        expected.append([f"`{name}`", adapter.what, adapter.peft_type or "—", size, rates])
    assert [row[:-1] for row in table("adapter")] == expected


def test_the_tables_of_sites_and_losses_name_all_there_are() -> None:
    assert [row[0] for row in table("site")] == [f"`{site}`" for site in SITES]
    assert [row[0] for row in table("loss")] == [f"`{loss}`" for loss in ALIGNMENT_LOSSES]
    for name in SOFT_LOSSES:
        assert f"`{name}`" in METHODS_PAGE


def test_the_map_of_files_is_complete() -> None:
    for path in (ROOT / "src" / "ia2").iterdir():
        if path.name not in ("__pycache__", "__init__.py", "__main__.py", "py.typed"):
            assert f"`{path.stem}`" in README, f"{path.name} is not in the README's map of files"
