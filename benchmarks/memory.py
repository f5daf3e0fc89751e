"""Peak memory: of collecting, for a number of rows and four times as many; and beside what the estimate says.

Each is measured in a process of its own, whose allocator gives large blocks back at once (`GIVES_BACK`).
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Row, from_pairs
from benchmarks.subject import ATTENTION, examples, load, prompts, task
from ia2.adapters import n_trainable, new_adapter
from ia2.capture import SITES, Selection
from ia2.contexts import Contexts
from ia2.estimate import estimate
from ia2.jobs import Rows, TrainingSettings
from ia2.methods import methods
from ia2.models import wrap_model
from ia2.prompt import build_prompt
from ia2.targets import collect
from ia2.training import train_stage

N = 2048  # a tenth of a gigabyte of targets
GIVES_BACK = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}


def run(quick: bool) -> list[Row]:
    """Megabytes; a tenth more for four times the rows counts as constant, a fifth as a good estimate."""
    pairs = [(measured(str(4 * N))[0], measured(str(N))[0]) for _ in range(1 if quick else 3)]
    name = f"peak memory of collect, MB: {4 * N} rows beside {N}"
    found = [from_pairs(name, pairs, 1.1, higher_is_better=False)]
    collecting, training = zip(*(_couples(measured("estimate")) for _ in range(1 if quick else 3)), strict=True)
    for what, couples in (("collecting", collecting), ("a training", training)):
        name = f"memory of {what}, MB, estimated and measured: the larger beside the smaller"
        found.append(from_pairs(name, [(max(of), min(of)) for of in couples], 1.2, higher_is_better=False))
    return found


def _couples(values: list[float]) -> tuple[list[float], list[float]]:
    return values[:2], values[2:]


def measured(what: str) -> list[float]:
    """What a process of its own prints."""
    command = [sys.executable, "-m", "benchmarks.memory", what]
    environment = {**os.environ, **GIVES_BACK}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return [float(value) for value in done.stdout.split()]


def peak_of_collecting(n: int) -> float:
    """All sites of n rows."""
    given = examples("mood", n + 16)
    whole = Selection(frozenset(SITES), positions="query")
    with TemporaryDirectory() as folder:
        collect(load(), prompts("mood", given[16:], Contexts(tuple(given[:16]))), whole, Path(folder))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def estimated_and_measured() -> list[float]:
    """Of collecting and of priming a model of 8 layers and 512 features: the estimate, and what is taken."""
    tiny = load()
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "head_dim": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    config = LlamaConfig(**{**tiny.base.config.to_dict(), **shape, **heads})
    lm = wrap_model(LlamaForCausalLM(config), tiny.encoder.tokenizer)
    rows = [replace(row, query=row.query + " mood" * 200) for row in examples("mood", 40)]
    given = prompts("mood", rows, Contexts(tuple(examples("mood", 56)[40:])))
    bare = [lm.encoder.encode(build_prompt(task("mood"), (), row.query, row.label)) for row in rows]
    stage = methods()["ia2"].stages[0]
    with new_adapter(lm) as model:
        teacher = [lm.encoder.encode(prompt) for prompt in given]
        needs = estimate(lm, teacher, bare, ATTENTION, n_trainable(model), 8)
        targets = collect(lm, given[:2], ATTENTION)  # what libraries take at first
        collecting = taken(lambda: collect(lm, given, ATTENTION))
        targets = collect(lm, given, ATTENTION)
        training = taken(lambda: train_stage(lm, stage, Rows(bare, targets), None, TrainingSettings(1e-3, 1, 8)))
    weights = needs.weights / 2**20
    return [needs.collecting / 2**20, weights + collecting, needs.training / 2**20, weights + training]


def taken(work: Callable[[], object]) -> float:
    """Megabytes at the peak of a call, over what was held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(*(estimated_and_measured() if sys.argv[1] == "estimate" else [peak_of_collecting(int(sys.argv[1]))]))
