"""What people are shown of tasks: a table of all, and the prompts of one."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ia2.tasks.benchmark import Benchmark

N_PROMPTS = 3


def print_tasks(benchmarks: Sequence[Benchmark]) -> None:
    """A table of tasks on standard output."""
    table = Table(caption="* benchmark of the paper; local rows of the hub's data sets: see IA2_DATA in docs/tasks.md")
    for column in ("task", "kind", "labels, or parser", "rows from", "at hand"):
        table.add_column(column, no_wrap=column == "task", overflow="fold")
    for task in benchmarks:
        name = f"{task.name}{' *' if task.paper else ''}"
        table.add_row(name, task.kind, answers(task), task.source, task.at_hand or "no")
    console = Console()
    console.width = max(console.width, 140)  # a row is not broken where the terminal is not known
    console.print(table)


def answers(benchmark: Benchmark) -> str:
    """The labels, or how generated answers are read and scored."""
    task = benchmark.task
    return ", ".join(task.labels) if task.labels else f"{task.parser}, {task.metric.replace('_', ' ')}"


def shown_prompts(benchmark: Benchmark, n_demos: int) -> str:
    """Three test queries behind demos, as a model sees them, each with the response it should get."""
    from ia2.prompt import build_prompt

    demos, tests = benchmark.rows("train", n_demos), benchmark.rows("test", N_PROMPTS)
    shown = []
    for i, test in enumerate(tests, 1):
        prompt = build_prompt(benchmark.task, demos, test.query, test.label)
        text = "".join(prompt.context) + prompt.query
        shown.append(f"--- prompt {i} of {len(tests)}\n{text}\n--- response\n{test.label}")
    return "\n".join(shown)
