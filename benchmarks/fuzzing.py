"""`python -m benchmarks.fuzzing answers --seconds 600`: a coverage-guided fuzzer (atheris) of what reads strange input.

It ends at the first input that is neither read nor refused in one line, and says where it wrote that input.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

ROOT = Path(__file__).parent.parent
SUFFIXES = (".jsonl", ".csv", ".parquet")
SECONDS = 20  # more for one input is a finding
Target = Callable[[bytes], None]

with atheris.instrument_imports(include=["ia2", "yaml", "json", "csv", "math_verify", "latex2sympy2_extended"]):
    import math_verify  # noqa: F401 - before `same_answer` does
    import yaml

    from ia2.answers import read_answer, rouge_l, same_answer
    from ia2.data import Row, read_examples
    from ia2.errors import IA2Error
    from ia2.tasks import FOLDER
    from ia2.tasks.rendering import render
    from ia2.tasks.taskfile import read_task_file

ROW = Row("row 1", {"text": "a", "label": 0, "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"})


def tasks(folder: Path) -> Target:
    """A task file, and a row worded by it."""

    def target(data: bytes) -> None:
        path = folder / "own.yaml"
        path.write_bytes(data)
        render(read_task_file(path), [ROW])

    return target


def data(folder: Path) -> Target:
    """Rows, as JSON lines, CSV or Parquet by the first byte."""

    def target(content: bytes) -> None:
        path = folder / f"own{SUFFIXES[content[0] % 3 if content else 0]}"
        path.write_bytes(content[1:])
        for example in read_examples(path):
            assert example.query
            assert example.label

    return target


def answers(folder: Path) -> Target:
    """A generated and a gold answer, parted by a zero byte, in each form."""

    def target(content: bytes) -> None:
        found, _, wanted = content.decode(errors="replace").partition("\0")
        rouge_l(found, wanted)
        for form in ("hash", "boxed", "text"):
            answer, gold = read_answer(found, form), read_answer(wanted, form)
            if answer and gold:
                same_answer(answer, gold, form)
                assert same_answer(answer, answer, form)

    return target


TARGETS: dict[str, Callable[[Path], Target]] = {"tasks": tasks, "data": data, "answers": answers}


def seeds(name: str) -> Iterable[bytes]:
    """Inputs that are right, for the fuzzer to spoil."""
    if name == "tasks":
        yield from (path.read_bytes() for path in FOLDER.glob("*.yaml"))
        yield yaml.safe_dump({"name": "own", "files": {"train": "a.jsonl"}, "labels": ["0", "1"]}).encode()
    elif name == "data":
        yield b"\0" + b"".join((ROOT / "examples" / "mood" / "train.jsonl").read_bytes().splitlines(True)[:3])
        yield b'\0{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
        yield b"\1query,response\na,0\n"
    else:
        yield b"so #### 1,234 apples\0#### $1234.0"
        yield rb"\boxed{\frac{1}{2}}" + b"\0" + rb"\boxed{0.5}"
        yield b"The -1 1/2\0-1.5%."


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzzing", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzzing"))
    chosen = parser.parse_args()
    chosen.findings.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for i, content in enumerate(seeds(chosen.target)):
            (corpus / str(i)).write_bytes(content)
        target = TARGETS[chosen.target](Path(folder))

        def refusing(content: bytes) -> None:
            said = ""
            try:
                target(content)
            except IA2Error as error:
                said = str(error)
            assert "\n" not in said

        options = [f"-max_total_time={chosen.seconds}", "-max_len=2000", "-print_final_stats=1", "-verbosity=1"]
        options += [f"-artifact_prefix={chosen.findings}/{chosen.target}-", f"-timeout={SECONDS}"]
        atheris.Setup(["fuzzing", *options, str(corpus)], refusing)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
