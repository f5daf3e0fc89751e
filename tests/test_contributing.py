"""CONTRIBUTING.md, followed: each block put where it says, in a copy of the source, and a tiny training with each."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ia2.config import make_config
from ia2.errors import IA2Error
from ia2.tasks import load_task

ROOT = Path(__file__).parents[1]
BLOCKS: dict[str, str] = dict(
    re.findall(
        r"### An? (\w+)\n.*?```(?:diff|yaml)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL
    )
)
NEW = {  # options of `ia2 train` that ask for what is added
    "loss": {"loss": "l1", "method": "ia2"},
    "method": {"method": "ia2-soft"},
    "adapter": {"adapter": "lora-1", "method": "ia2"},
    "site": {"method": {"ia2": {"terms": {"query": "nmse"}}}},
}
TRAIN = """
import json, sys
import ia2
from ia2.adapters import load_peft_weights

rows, trained = ia2.read_examples("mood.jsonl")[:6], {}
for kind, options in json.loads(sys.argv[1]).items():
    config = ia2.make_config({"model": "tiny", "num_train_epochs": 2, "learning_rate": [1e-2], **options})
    [*_, folder] = ia2.Run.create(kind, config, ia2.Data.split(rows, 0)).train().values()
    record = json.loads((folder / "training.json").read_text())
    trained[kind] = [record["value"], *next(iter(load_peft_weights(str(folder)).values())).shape]
task = ia2.load_task("tweets")
trained["task"] = [[row.query, row.response] for split in ("train", "test") for row in task.rows(split)]
print(json.dumps([ia2.__file__, trained]))
"""


def follow(diff: str, root: Path) -> None:
    """What stands behind ` ` and `-` must be there once, and becomes what stands behind ` ` and `+`."""
    name, *hunks = re.split(r"^@@\n", diff, flags=re.MULTILINE)
    path = root / name.removeprefix("--- ").strip()
    text = path.read_text("utf-8")
    for hunk in hunks:
        old, new = ("".join(line[1:] for line in hunk.splitlines(True) if line[0] in kept) for kept in (" -", " +"))
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """All five in one copy; of each, the loss at the end and the shape of a weight, or the rows."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "examples" / "mood" / "train.jsonl", root / "mood.jsonl")
    for kind in NEW:
        follow(BLOCKS[kind], root)
    first, rest = BLOCKS["task"].split("\n", 1)
    (root / first.removeprefix("# ")).write_text(rest, "utf-8")
    (root / "tweets").mkdir()
    for split, text in {"train": "good", "validation": "fine", "test": "bad"}.items():
        rows = [{"text": f"{text} {label}", "label": label} for label in (0, 1, 2)]
        (root / "tweets" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "IA2_DATA": str(root)}
    command = [sys.executable, "-c", TRAIN, json.dumps(NEW)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    home, found = json.loads(done.stdout.splitlines()[-1])
    assert Path(home).is_relative_to(root)
    return dict(found)


@pytest.mark.parametrize("kind", NEW)
def test_what_is_added_is_trained(kind: str, trained: dict[str, list[float]]) -> None:
    value, *shape = trained[kind]
    assert value > 0
    assert shape[0] == (1 if kind == "adapter" else 8)


def test_losses_and_sites_that_are_added_are_what_is_minimised(trained: dict[str, list[float]]) -> None:
    assert len({trained[kind][0] for kind in NEW}) == len(NEW)


def test_the_task_that_is_added_has_its_rows(trained: dict[str, list[object]]) -> None:
    rows = [["Text:good 0\nLabel:", "0"], ["Text:good 2\nLabel:", "1"], ["Text:bad 0\nLabel:", "0"]]
    assert sorted(map(str, trained["task"])) == sorted(map(str, [*rows, ["Text:bad 2\nLabel:", "1"]]))


@pytest.mark.parametrize("kind", NEW)
def test_without_it_there_is_no_such_thing(kind: str) -> None:
    with pytest.raises(IA2Error, match=r"l1|ia2-soft|lora-1|query"):
        make_config({"model": "tiny", **NEW[kind]})


def test_without_it_there_is_no_such_task() -> None:
    with pytest.raises(IA2Error, match="unknown task 'tweets'"):
        load_task("tweets")


@pytest.mark.parametrize("kind", ["loss", "method", "adapter", "task", "site"])
def test_each_is_ten_lines_at_most(kind: str) -> None:
    assert len(BLOCKS[kind].splitlines()) <= 10
