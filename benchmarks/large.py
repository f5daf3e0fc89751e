"""Models of the size of Llama-3.2-1B, on a GPU of Qwen3-4B's too, with random weights: how much of the peak is reached.

The peak is what a product of large square matrices reaches; operations are counted as they run, what is not computed
is not counted. On a GPU in bfloat16, on a CPU in float32, with all its cores and fewer rows.
"""

import os
from collections.abc import Callable, Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Row, beside, from_pairs, seconds
from benchmarks.scaling import with_weights
from benchmarks.subject import ATTENTION, examples, prompts, task
from ia2.adapters import new_adapter
from ia2.bank import trainable_copy
from ia2.contexts import Contexts
from ia2.jobs import Job, Rows, TrainingSettings
from ia2.methods import Stage, methods
from ia2.models import LanguageModel
from ia2.prompt import build_prompt
from ia2.targets import collect
from ia2.training import train_jobs

SIDE = 2048  # of the square matrices


def run(quick: bool) -> list[Row]:
    """Steps, and fractions of the peak."""
    on_gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        names = ("Llama-3.2-1B", "Qwen3-4B") if on_gpu else ("Llama-3.2-1B",)
        return [row for name in names for row in measured(name, on_gpu, 1 if quick else 3)]
    finally:
        torch.set_num_threads(threads)


def measured(name: str, on_gpu: bool, repeats: int) -> Iterator[Row]:
    """Of one model."""
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    n, n_adapters = (64, 12) if on_gpu else (4, 4)
    lm, rows = with_weights(name, device, dtype), examples("mood", n)
    given, table = prompts("mood", rows, Contexts(tuple(rows))), methods()
    student = [lm.encoder.encode(build_prompt(task("mood"), (), row.query, row.label)) for row in rows]
    taught = Rows(student, collect(lm, given, ATTENTION))

    with new_adapter(lm) as model:
        start = trainable_copy(model)

        def steps(stage: Stage, n: int = 1) -> None:
            jobs = [Job(start, taught, None, TrainingSettings(1e-4, 1, seed=seed)) for seed in range(n)]
            train_jobs(lm, stage, jobs)
            finish(device)

        def collecting() -> None:
            collect(lm, given, ATTENTION)
            finish(device)

        prime, tune = table["ia2"].stages[0], table["sft"].stages[0]
        what = f"{name}'s shape, a priming step beside an SFT step"
        yield beside(what, lambda: steps(prime), lambda: steps(tune), 0.8, repeats, None, higher_is_better=False)
        for of, work in {
            f"collecting {n} prompts": collecting,
            "priming": lambda: steps(prime),
            "SFT": lambda: steps(tune),
            f"priming {n_adapters} adapters side by side": lambda: steps(prime, n_adapters),
        }.items():
            yield fraction(f"{name}'s shape, {of}: fraction of the peak", lm, work, repeats)


def fraction(name: str, lm: LanguageModel, work: Callable[[], None], repeats: int) -> Row:
    """How near the peak the work comes: the seconds that its operations take at the peak over those that it takes."""
    with FlopCounterMode(display=False) as counter:
        work()
    n = counter.get_total_flops()
    pairs = [(seconds(work), n / peak(lm.device.type, lm.base.dtype)) for _ in range(repeats)]
    return from_pairs(name, pairs, None)


def peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a product of large square matrices, the best of three."""
    a = torch.randn(SIDE, SIDE, device=device, dtype=dtype)

    def product() -> None:
        a @ a
        finish(device)

    return float(2 * SIDE**3 / min(seconds(product) for _ in range(3)))


def finish(device: str) -> None:
    """Wait for what a GPU has been asked."""
    if device == "cuda":
        torch.cuda.synchronize()
