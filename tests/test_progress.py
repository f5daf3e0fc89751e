"""What is shown while something runs: on a terminal, and in a file."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

MOOD = Path(__file__).parents[1] / "examples" / "mood"
OPTIONS = ("--set", "learning_rate=[1e-2]", "--set", "num_train_epochs=10", "--set", "metric_for_best_model=accuracy")


def command(folder: Path) -> list[str]:
    given = ["--model", "tiny", "--train", str(MOOD / "train.jsonl"), "--method", "sft"]
    return [sys.executable, "-m", "ia2", "train", *given, *OPTIONS, "--output", str(folder / "run")]


def test_on_a_terminal_bars_say_how_far_how_long_and_how_good(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(command(tmp_path), stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # so Linux says that the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said.decode())
    assert re.search(r"sft ━\S* +\d+/20 +\d+:\d\d:\d\d loss [\d.e-]+, dev accuracy [\d.]+", text), text


def test_in_a_pipe_there_are_lines_alone(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert not re.search(r"\r|\d+/\d+|━|█|loss", done.stderr), done.stderr
