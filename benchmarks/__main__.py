"""`python -m benchmarks`: run all, print a table, keep the results."""

import argparse
import os
import platform
from dataclasses import asdict
from importlib import import_module

import torch

from benchmarks.harness import table, write
from ia2.progress import say

MODULES = ("startup", "collecting", "evaluating", "training", "large", "memory")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=MODULES, action="append", help="one module, or several; nothing is kept")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in chosen.only or MODULES:
        rows += import_module(f"benchmarks.{name}").run(chosen.quick)
    print(table([asdict(row) for row in rows]))
    if not chosen.only:
        say(f"results: {write(rows, f'{platform.machine()}-{os.cpu_count()}cores', chosen.quick)}")


if __name__ == "__main__":
    main()
