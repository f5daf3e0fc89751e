"""Memory and time of collecting for more and more queries, which lie in a file of `datasets` and are never all loaded.

python -m benchmarks.streaming 10000 100000        each number of rows in a process of its own
"""

import resource
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from benchmarks.subject import ATTENTION, examples, load, task
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.prompt import Prompt
from ia2.targets import collect
from ia2.world.words import WORDS

N_DEMOS, N_WORDS = 16, 4


class Prompts(Collection[Prompt]):
    """The teacher's prompts for the rows of a data set, made as they are gone through, with labels of no meaning."""

    def __init__(self, rows: Dataset, contexts: Contexts):
        self.rows, self.contexts = rows, contexts
        self.own_bytes = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, prompt: object) -> bool:
        return prompt in iter(self)

    def __iter__(self) -> Iterator[Prompt]:
        rng, label = np.random.default_rng(0), task("mood").completion("0")
        for i, row in enumerate(self.rows):
            if i % 4096 == 0:
                self.own_bytes = max(self.own_bytes, own_bytes())
            yield self.contexts.prompt(task("mood"), Example(row["query"]), label, rng)


def own_bytes() -> int:
    """Of this process, without the pages of files, which the system takes back when it needs them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def queries(n: int) -> Iterator[dict[str, Any]]:
    """Of random words: hardly one comes twice."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        yield {"query": f"Text:{' '.join(rng.choice(WORDS, N_WORDS))}\nLabel:"}


def measure(n: int) -> str:
    """A row of the table on the page."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        rows = Dataset.from_generator(queries, gen_kwargs={"n": n}, cache_dir=folder)
        prompts = Prompts(rows, Contexts(tuple(examples("mood", N_DEMOS)), "fixed"))
        start = time.process_time()
        targets = collect(load(), prompts, ATTENTION, Path(folder) / "targets")
        took = time.process_time() - start
        n_bytes = sum(path.stat().st_size for path in (Path(folder) / "targets").rglob("*.safetensors"))
        most = max(prompts.own_bytes, own_bytes()), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert len(targets.values["attn_out"]) == n
    return f"| {n:,} | {took:.0f} | {n_bytes / 1e9:.2f} | {most[0] / 1e6:.0f} | {most[1] / 1e6:.0f} |"


if __name__ == "__main__":
    numbers = [int(of) for of in sys.argv[1:]]
    if len(numbers) == 1:
        print(measure(numbers[0]))
    else:
        for n in numbers:
            line = [sys.executable, "-m", "benchmarks.streaming", str(n)]
            print(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1], flush=True)
