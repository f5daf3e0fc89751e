"""Where the time of a training step goes: the table of docs/performance.md.

python -m benchmarks.profiling
"""

from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import seconds
from benchmarks.subject import ATTENTION, examples, load, prompts, task
from ia2.adapters import new_adapter
from ia2.bank import trainable_copy
from ia2.contexts import Contexts
from ia2.jobs import Job, Rows, TrainingSettings
from ia2.methods import Stage, methods
from ia2.prompt import build_prompt
from ia2.targets import collect
from ia2.training import train_jobs

N, EPOCHS, BATCH = 16, 20, 4
N_STEPS = EPOCHS * N // BATCH
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
KINDS: dict[str, Callable[[str], bool]] = {
    "matrix products": lambda op: op.removeprefix("aten::") in PRODUCTS,
    "attention": lambda op: "attention" in op,
    "optimiser": lambda op: "adam" in op,
    "other operations": lambda op: True,
}


def trainings() -> Iterator[tuple[str, Callable[[], None]]]:
    """Of `N_STEPS` steps each, without development rows."""
    lm, rows = load(), examples("mood", N)
    student = [lm.encoder.encode(build_prompt(task("mood"), (), row.query, row.label)) for row in rows]
    taught = Rows(student, collect(lm, prompts("mood", rows, Contexts(tuple(rows))), ATTENTION))
    with new_adapter(lm) as model:
        start = trainable_copy(model)

        def train(stage: Stage, n: int) -> None:
            settings = [TrainingSettings(1e-3, EPOCHS, BATCH, seed=seed) for seed in range(n)]
            train_jobs(lm, stage, [Job(start, taught, None, of) for of in settings])

        prime, tune = (methods()[name].stages[0] for name in ("ia2", "sft"))
        yield "SFT", lambda: train(tune, 1)
        yield "priming", lambda: train(prime, 1)
        yield "priming, 12 adapters", lambda: train(prime, 12)


def shares(work: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of a step by kind of operation; the profiler's own time is left out of what remains for Python."""
    work()
    whole = min(seconds(work) for _ in range(3))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in found.key_averages():
        kind = next(kind for kind, holds in KINDS.items() if holds(event.key))
        spent[kind] += event.self_cpu_time_total / 1e6
    spent["Python, and launching operations"] = max(0.0, whole - sum(spent.values()))
    return {kind: 1e3 * of / N_STEPS for kind, of in {**spent, "in all": whole}.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    columns = {name: shares(work) for name, work in trainings()}
    print(f"| ms a step | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for kind in next(iter(columns.values())):
        print(f"| {kind} | {' | '.join(f'{of[kind]:.2f}' for of in columns.values())} |")
