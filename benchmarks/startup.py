"""Start-up, each in a process of its own."""

import subprocess
import sys

from benchmarks.harness import Row, from_pairs, seconds

GOALS = {"ia2 --help": (["-m", "ia2", "--help"], 0.3), "import ia2": (["-c", "import ia2"], 0.2)}


def run(quick: bool) -> list[Row]:
    """Seconds, beside one second."""
    found = []
    for name, (arguments, goal) in GOALS.items():
        times = [seconds(lambda a=arguments: _python(a)) for _ in range(5 if quick else 15)]
        found.append(from_pairs(f"{name}, seconds", [(time, 1.0) for time in times[1:]], goal, higher_is_better=False))
    return found


def _python(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
