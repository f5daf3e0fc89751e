"""`python -m benchmarks.kills --kills 300`: the job of tests/killing.py, killed at random moments (SIGKILL)."""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).parent.parent / "tests"


def main() -> None:
    """Kill, go on, check; an assertion fails where anything is lost or half-written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from killing import kill

    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        n_done, n_inside = kill(Path(folder), chosen.kills, chosen.seed)
    print(f"{chosen.kills} kills, {n_inside} of them inside a training; ", end="")
    print(f"{n_done} jobs ended with the bytes of an undisturbed one; ", end="")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
