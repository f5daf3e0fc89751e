"""Peak memory of collecting, for a number of rows and four times as many, each in a process of its own."""

import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Row, from_pairs
from benchmarks.subject import examples, load, prompts
from ia2.capture import SITES, Selection
from ia2.contexts import Contexts
from ia2.targets import collect

N = 2048  # a tenth of a gigabyte of targets


def run(quick: bool) -> list[Row]:
    """Megabytes; a tenth more for four times the rows counts as constant."""
    pairs = [(peak(4 * N), peak(N)) for _ in range(1 if quick else 3)]
    name = f"peak memory of collect, MB: {4 * N} rows beside {N}"
    return [from_pairs(name, pairs, 1.1, higher_is_better=False)]


def peak(n: int) -> float:
    """Of a process that collects for n rows."""
    command = [sys.executable, "-m", "benchmarks.memory", str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    given = examples("mood", int(sys.argv[1]) + 16)
    whole = Selection(frozenset(SITES), positions="query")
    with TemporaryDirectory() as folder:
        collect(load(), prompts("mood", given[16:], Contexts(tuple(given[:16]))), whole, Path(folder))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
