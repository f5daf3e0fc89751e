"""How cost grows: seconds along a size, and the slope of their logarithms, beside the theoretical one.

`python -m benchmarks.growth` prints the table of docs/performance.md, and draws its figure.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import plotly.graph_objects as go
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import seconds
from benchmarks.subject import ATTENTION, examples, load, prompts, task
from docs.picture import draw
from ia2.adapters import new_adapter
from ia2.bank import trainable_copy
from ia2.contexts import Contexts
from ia2.jobs import Job, Rows, TrainingSettings
from ia2.methods import methods
from ia2.models import LanguageModel, wrap_model
from ia2.prompt import build_prompt
from ia2.report.figures import OTHER, framed, styled
from ia2.report.frame import write_page
from ia2.targets import collect
from ia2.training import train_jobs

REPEATS = 3


@dataclass(frozen=True)
class Growth:
    """Medians of `REPEATS` runs along a size."""

    name: str
    sizes: Sequence[int]
    seconds: Sequence[float]
    theory: str

    @property
    def slope(self) -> float:
        """Of log seconds over log size: 1 is proportional, 0 is free."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])


def measured(name: str, sizes: Sequence[int], run_of: Callable[[int], Callable[[], object]], theory: str) -> Growth:
    """`run_of(size)` prepares, and gives what is timed."""
    found = []
    for size in sizes:
        run = run_of(size)
        run()
        found.append(statistics.median(seconds(run) for _ in range(REPEATS)))
    return Growth(name, sizes, found, theory)


def collecting(lm: LanguageModel, n_rows: int, n_demos: int, n_tokens: int = 0) -> Callable[[], object]:
    """Of rows behind the same demos, with responses of so many tokens more."""
    rows = examples("mood", n_rows + n_demos)
    asked = [replace(row, response=row.label + " mood" * n_tokens) for row in rows[n_demos:]]
    given = prompts("mood", asked, Contexts(tuple(rows[:n_demos])))
    return lambda: collect(lm, given, ATTENTION)


def training(lm: LanguageModel, n_jobs: int, n_tokens: int = 0) -> Callable[[], object]:
    """Ten epochs of SFT with so many adapters side by side."""
    rows = [replace(row, query=row.query + " mood" * n_tokens) for row in examples("mood", 16)]
    stage = methods()["sft"].stages[0]
    bare = [lm.encoder.encode(build_prompt(task("mood"), (), row.query, row.label)) for row in rows]
    given = Rows(bare, collect(lm, prompts("mood", rows, Contexts(())), stage.selection(lm.anatomy)))

    def run() -> None:
        with new_adapter(lm) as model:
            start = trainable_copy(model)
            settings = [TrainingSettings(1e-3, num_train_epochs=10, seed=seed) for seed in range(n_jobs)]
            train_jobs(lm, stage, [Job(start, given, None, of) for of in settings])

    return run


def deep(n_layers: int) -> LanguageModel:
    """As `tiny`, with random weights and so many layers."""
    return shaped(num_hidden_layers=n_layers)


def wide(width: int) -> LanguageModel:
    """As `tiny`, with random weights and of this width."""
    return shaped(hidden_size=width, intermediate_size=3 * width, head_dim=width // 4)


def shaped(**sizes: int) -> LanguageModel:
    """As `tiny`, with random weights and other sizes."""
    tiny = load()
    config = LlamaConfig(**{**tiny.base.config.to_dict(), **sizes})
    return wrap_model(LlamaForCausalLM(config), tiny.encoder.tokenizer)


def curves(found: Sequence[Growth]) -> go.Figure:
    """Seconds over size, both in units of the smallest size, on logarithmic axes."""
    figure = go.Figure()
    for of in found:
        sizes, taken = (np.array(values) / values[0] for values in (of.sizes, of.seconds))
        figure.add_scatter(x=sizes, y=taken, mode="lines+markers", name=f"{of.name.split(' (')[0]}: {of.slope:.2f}")
    ends = [1, max(of.sizes[-1] / of.sizes[0] for of in found)]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="proportional", line={"dash": "dot", "color": OTHER})
    figure.update_xaxes(type="log", dtick="D2")
    figure.update_yaxes(type="log", title={"text": "times its seconds", "font": {"size": 12}}, dtick="D2")
    figure.update_layout(legend={"entrywidth": 225, "font": {"size": 11}})  # two columns
    return styled(figure, height=420)


def main() -> None:
    """Measure, print a table, draw."""
    torch.set_num_threads(1)
    lm = load()
    found = [
        measured("collect, over rows (16 demos)", (16, 64, 256), lambda n: collecting(lm, n, 16), "1"),
        measured(
            "collect, over demos (64 rows)",
            (4, 16, 64),
            lambda n: collecting(lm, 64, n),
            "1; less from 32 on, where prompts begin alike",
        ),
        measured("collect, over layers (64 rows, 16 demos)", (2, 4, 8), lambda n: collecting(deep(n), 64, 16), "1"),
        measured(
            "collect, over width (64 rows, 16 demos)", (64, 128, 256, 512), lambda n: collecting(wide(n), 64, 16), "2"
        ),
        measured(
            "collect, over tokens of a response (64 rows, 16 demos)",
            (16, 64, 256),
            lambda n: collecting(lm, 64, 16, n),
            "1, less the prompts, to 2 where attention is most of it",
        ),
        measured("SFT, over width", (64, 128, 256, 512), lambda n: training(wide(n), 1), "2, less what is fixed"),
        measured("SFT, over layers", (2, 4, 8), lambda n: training(deep(n), 1), "1, less what is fixed"),
        measured("SFT, over tokens a row", (16, 64, 256), lambda n: training(lm, 1, n), "1, less what is fixed"),
        measured("SFT, over adapters side by side", (1, 4, 16), lambda n: training(lm, n), "1, less what is fixed"),
    ]
    print("| what | sizes | seconds | slope | in theory |\n|---|---|---|---|---|")
    for of in found:
        sizes, taken = ", ".join(map(str, of.sizes)), ", ".join(f"{value:.2f}" for value in of.seconds)
        print(f"| {of.name} | {sizes} | {taken} | {of.slope:.2f} | {of.theory} |")
    with TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        write_page(page, "Growth", "", {"Figures": framed(curves(found), "Growth of cost")})
        [svg] = draw(page, ["Growth of cost"])
    (Path(__file__).parents[1] / "docs" / "performance-growth.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
