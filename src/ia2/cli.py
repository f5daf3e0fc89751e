"""The command line. It alone turns exceptions into exit codes: 2 for a mistake that the user can mend."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from ia2.errors import IA2Error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
tasks = typer.Typer(invoke_without_command=True)
app.add_typer(tasks, name="tasks")

FORMATS = "JSON lines, CSV or Parquet"
COMPARED = "sft,soft,hidden-sft,ia2-sft,joint,sft-ia2"
Trusted = Annotated[bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the model.")]
TrainFile = Annotated[
    Path, typer.Option("--train", help=f"Rows of query and response (or prompt, completion): {FORMATS}.")
]


def _print_version(wanted: bool) -> None:
    from importlib.metadata import version

    if wanted:
        typer.echo(f"ia2 {version('ia2')}")
        raise typer.Exit


@app.callback()
def about(
    show: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn a handful of examples into an adapter that behaves as if they were always in the prompt."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where results go; the same command again continues.")] = Path("demo"),
    model: Annotated[str, typer.Option(help="Which embedded model: tiny or tiny-gpt2.")] = "tiny",
) -> None:
    """See an embedded model learn from eight examples by prompting, by fine-tuning and by IA2."""
    from ia2.demo import run_demo

    run_demo(output, model)


@app.command()
def train(
    train: TrainFile,
    output: Annotated[Path, typer.Option(help="The run folder; the same command again continues.")],
    model: Annotated[str, typer.Option(help="tiny, tiny-gpt2, a folder, or a Hugging Face hub id.")] = "",
    dev: Annotated[Path | None, typer.Option(help="Development rows; else a part of --train is held out.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test rows: evaluate after training.")] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="Rows with a query only, to align on.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of options; those given here count more.")] = None,
    preset: Annotated[str, typer.Option(help="default, or paper for the paper's settings.")] = "default",
    method: Annotated[str | None, typer.Option(help="See `ia2 methods`.  [default: ia2-sft]")] = None,
    adapter: Annotated[str | None, typer.Option(help="See `ia2 adapters`.  [default: lora]")] = None,
    loss: Annotated[
        str | None, typer.Option(help="Alignment loss: nmse (scale-free), mse (the paper's), cosine, huber, kl.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Aligned: all, first:4, last:4, every:2, or 0,5-8.  [default: all]")
    ] = None,
    context: Annotated[
        Path | None, typer.Option(help="A text that the teacher sees first and the student does not.")
    ] = None,
    n_demos: Annotated[int | None, typer.Option(help="Demos that the teacher sees.  [default: all others]")] = None,
    labels: Annotated[
        str | None, typer.Option(help="The labels, parted by commas; none: answers are generated.")
    ] = None,
    learning_rate: Annotated[
        str | None, typer.Option(help="One or several, parted by commas; development loss decides.")
    ] = None,
    prime_learning_rate: Annotated[str | None, typer.Option(help="Those of alignment, if others.")] = None,
    num_train_epochs: Annotated[int | None, typer.Option(help="At most, a stage.  [default: 50]")] = None,
    r: Annotated[int | None, typer.Option(help="Rank of the adapter.  [default: 8]")] = None,
    lora_alpha: Annotated[int | None, typer.Option(help="LoRA's alpha.  [default: 8]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights and every order.  [default: 0]")] = None,
    set_option: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option as name=value, e.g. eval_steps=4.")
    ] = None,
    trust_remote_code: Trusted = False,
) -> None:
    """Train an adapter on your examples: record what the model does with them in its prompt, align, fine-tune."""
    from ia2.data import read_examples, read_text
    from ia2.progress import say
    from ia2.run import Data, Run

    given = {
        "model": model or None,
        "method": method,
        "adapter": adapter,
        "loss": loss,
        "layers": layers,
        "context": read_text(context) if context else None,
        "n_demos": n_demos,
        "labels": labels if labels in (None, "none", "auto") else _parted(labels),
        "learning_rate": _numbers("--learning-rate", learning_rate),
        "prime_learning_rate": _numbers("--prime-learning-rate", prime_learning_rate),
        "num_train_epochs": num_train_epochs,
        "seed": seed,
        **_assignments(set_option or []),
    }
    own = {name: value for name, value in (("r", r), ("lora_alpha", lora_alpha)) if value is not None}
    checked = _checked(config, preset, given, own)
    rows = read_examples(train)
    extra = read_examples(unlabelled, labelled=False) if unlabelled else []
    tests = read_examples(test) if test else []
    split = Data.split(rows, checked.seed, extra) if dev is None else Data(rows, read_examples(dev), extra)
    run = Run.create(output, checked, split, trust_remote_code=trust_remote_code)
    found = run.task().labels
    say("answers are generated text (--labels a,b,... if not)" if found is None else f"labels: {', '.join(found)}")
    run.train()
    typer.echo(f"adapter: {run.adapters[checked.result]}")
    if tests:
        _show(run.evaluate(tests), run.folder)


@app.command()
def compare(
    output: Annotated[Path, typer.Option(help="Where results go; the same command again continues.")],
    model: Annotated[str, typer.Option(help="tiny, tiny-gpt2, a folder, or a Hugging Face hub id.")],
    train: Annotated[Path | None, typer.Option(help="Rows to train on, or --task.")] = None,
    test: Annotated[
        list[Path] | None, typer.Option(help="Test rows; given again, further ones, out of distribution.")
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="Development rows; else a part of --train is held out.")] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="Queries for methods that end in +unlabelled.")] = None,
    task: Annotated[str | None, typer.Option(help="A task of `ia2 tasks`, or a task file, in place of files.")] = None,
    n: Annotated[int, typer.Option(min=1, help="With --task: examples to train on.")] = 8,
    ood: Annotated[bool, typer.Option("--ood", help="With --task: its out-of-distribution partners too.")] = False,
    methods: Annotated[str, typer.Option(help="See `ia2 methods`; zero-shot and ICL are always there.")] = COMPARED,
    seeds: Annotated[str, typer.Option(help="One or several, parted by commas.")] = "0",
    config: Annotated[Path | None, typer.Option(help="YAML file of options of every run.")] = None,
    preset: Annotated[str, typer.Option(help="default, or paper for the paper's settings.")] = "default",
    set_option: Annotated[
        list[str] | None, typer.Option("--set", help="Any option of `ia2 train` as name=value, e.g. adapter=ia3.")
    ] = None,
    trust_remote_code: Trusted = False,
) -> None:
    """Which of prompting, fine-tuning and IA2 is best on your data, by how much, and is that chance?"""
    from ia2.comparison import compare as run_comparison
    from ia2.comparison import file_cells
    from ia2.config import make_config, read_config
    from ia2.models import load_model
    from ia2.results import print_verdict
    from ia2.sweep import Grid, cell_of

    options = {**(read_config(config) if config else {}), **_assignments(set_option or []), "model": model}
    checked = make_config(options, preset)
    names, draws = _parted(methods) or (), _whole_numbers("--seeds", seeds)
    if (task is None) == (train is None or not test):
        raise IA2Error("expected either --train and --test, or --task")
    if task:
        options.pop("model")
        lists = {"models": [model], "tasks": [task], "n": [n], "seeds": draws, "methods": names}
        grid = Grid.model_validate({**lists, "ood": ood, "preset": preset, "options": options})
        cells = [cell_of(grid, point, output / "cells" / point.folder) for point in grid.points()]
    else:
        cells = file_cells(checked, draws, output / "cells", train or Path(), dev, test or [], unlabelled)
    lm = load_model(model, **checked.base, trust_remote_code=trust_remote_code)
    metrics = run_comparison(output, cells, names, lm=lm)
    _show(metrics, output)
    print_verdict(metrics)


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML: lists of models, tasks, n, seeds, adapters; see recipes/.")],
    output: Annotated[Path, typer.Option(help="Where results go; the same command again continues.")],
    models: Annotated[str | None, typer.Option(help="In place of the grid's, e.g. tiny.")] = None,
    tasks: Annotated[str | None, typer.Option(help="In place of the grid's.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: a cluster, or all cores of this machine.")] = "local",
    trust_remote_code: Trusted = False,
) -> None:
    """Run a grid of models, tasks, numbers of examples, seeds and adapters; what is done is not done again."""
    from ia2.sweep import read_grid
    from ia2.sweep import sweep as run_sweep

    given = {"models": _parted(models), "tasks": _parted(tasks), "trust_remote_code": trust_remote_code}
    rows = run_sweep(read_grid(grid, {name: of for name, of in given.items() if of}), output, engine)
    typer.echo((output / "results.md").read_text(encoding="utf-8"))
    typer.echo(f"{len(rows)} rows: {output / 'results.csv'}")
    typer.echo(f"report: {output / 'report.html'}")


@app.command()
def doctor(
    train: TrainFile,
    model: Annotated[str, typer.Option(help="tiny, tiny-gpt2, a folder, or a Hugging Face hub id.")] = "",
    dev: Annotated[Path | None, typer.Option(help="Development rows; else a part of --train is held out.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of options; those given here count more.")] = None,
    preset: Annotated[str, typer.Option(help="default, or paper for the paper's settings.")] = "default",
    method: Annotated[str | None, typer.Option(help="See `ia2 methods`.  [default: ia2-sft]")] = None,
    adapter: Annotated[str | None, typer.Option(help="See `ia2 adapters`.  [default: lora]")] = None,
    set_option: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option of `ia2 train` as name=value.")
    ] = None,
    trust_remote_code: Trusted = False,
) -> None:
    """Look at model, rows and adapter before training: a real prompt, what is found, what it needs, what is wrong."""
    from ia2.data import read_examples
    from ia2.doctor import examine, lines
    from ia2.run import Data, Run

    given = {"model": model or None, "method": method, "adapter": adapter, **_assignments(set_option or [])}
    checked = _checked(config, preset, given)
    rows = read_examples(train)
    data = Data.split(rows, checked.seed) if dev is None else Data(rows, read_examples(dev))
    with TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", checked, data, trust_remote_code=trust_remote_code)
        report = examine(run, run.load_model())
    for line in lines(report):
        typer.echo(line)
    if report.errors:
        raise SystemExit(2)


def _checked(
    config: Path | None, preset: str, given: dict[str, Any], adapter_options: dict[str, Any] | None = None
) -> Any:
    """The configuration of a file and of options on the command line, which count more."""
    from ia2.config import make_config, read_config

    values = {**(read_config(config) if config else {}), **{k: v for k, v in given.items() if v is not None}}
    values["adapter_options"] = {**values.get("adapter_options", {}), **(adapter_options or {})}
    if "model" not in values:
        raise IA2Error("no model given; use --model tiny, --model FOLDER or --model HUB_ID")
    return make_config(values, preset)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    test: Annotated[Path, typer.Option(help=f"Rows of query and response: {FORMATS}.")],
    trust_remote_code: Trusted = False,
) -> None:
    """Compare zero-shot, ICL with the training examples, and the trained adapters on test rows."""
    from ia2.data import read_examples
    from ia2.run import Run

    _show(Run.open(run, trust_remote_code).evaluate(read_examples(test)), run)


@app.command()
def analyze(
    run: Annotated[Path, typer.Argument(help="A run folder, a cell of `ia2 compare`, or a folder of `ia2 sweep`.")],
    test: Annotated[Path | None, typer.Option(help="At least 16 rows of query and response; not of a sweep.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where results go.  [default: the run folder]")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also train ia2 at several choices of layers.")] = False,
    other: Annotated[
        list[str] | None, typer.Option(help="A file of rows, or a task, to see what is forgotten; may be given again.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Running text, likewise: a .txt, rows with a column 'text', or world.")
    ] = None,
    trust_remote_code: Trusted = False,
) -> None:
    """See why methods differ: activations, heads and neurons, weights, what patches do, whether demos still count."""
    from ia2.analysis import analyze as run_analysis
    from ia2.analysis import analyze_sweep
    from ia2.data import read_examples
    from ia2.results import print_analysis, print_sweep_analysis

    if (run / "results.csv").is_file():
        if test or layers or other or text:
            raise IA2Error(f"{run}: is a sweep's; give one of its cells for --test, --layers, --other and --text")
        print_sweep_analysis(analyze_sweep(run, output))
    elif test is None:
        raise IA2Error(f"{run}: holds no results.csv of a sweep; for a run or a cell give test rows with --test FILE")
    else:
        print_analysis(run_analysis(run, read_examples(test), output, layers, other or [], text, trust_remote_code))
    typer.echo(f"analysis: {(output or run) / 'analysis.html'}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Of a run, a comparison, a sweep, or the demo.")],
) -> None:
    """Write the page of results again from what a folder holds, with the analysis, if there is one by now."""
    from ia2.results import rewrite_report
    from ia2.sweep import report_sweep

    page = report_sweep(folder) if (folder / "results.csv").is_file() else rewrite_report(folder)
    typer.echo(f"report: {page}")


@app.command()
def explore(
    run: Annotated[Path, typer.Argument(help="A run folder, or a cell of `ia2 compare`, which has more methods.")],
    host: Annotated[str, typer.Option(help="Where to listen; others than this reach it from elsewhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.")] = 7860,
    trust_remote_code: Trusted = False,
) -> None:
    """Try it on a local page: one query, every method side by side, with demos to change. Needs `ia2[explore]`."""
    from ia2.explore import serving

    with serving(run, host, port, trust_remote_code) as address:
        typer.echo(f"{address} (Ctrl-C ends it)")
        Event().wait()


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[Path, typer.Option(help="A new folder for the merged model.")],
    trust_remote_code: Trusted = False,
) -> None:
    """Merge the trained adapter into its base, in float32, and say how far the two are apart."""
    from ia2.merging import merge as merge_adapter
    from ia2.prompt import build_prompt
    from ia2.run import Run

    opened = Run.open(run, trust_remote_code)
    adapter = opened.trained()[opened.config.result]
    rows = [build_prompt(opened.task(), (), e.query, e.label) for e in (*opened.data.train, *opened.data.dev)]
    report = merge_adapter(opened.load_model(), adapter, output, rows)
    typer.echo(
        f"merged model: {output}; logits differ from the adapter's by {report.mean_difference:.2g} on average "
        f"and {report.max_difference:.2g} at most, over {report.n_positions} positions"
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[Path, typer.Option(help="A new folder for what is exported.")],
    adapter: Annotated[str | None, typer.Option(help="Of which stage.  [default: the last]")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="A plain model, with the adapter merged into it.")] = False,
    trust_remote_code: Trusted = False,
) -> None:
    """Write a PEFT folder or a plain model with a model card, and check that it answers as the run does."""
    from ia2.export import export as export_adapter
    from ia2.run import Run

    report = export_adapter(Run.open(run, trust_remote_code), output, adapter, merged)
    typer.echo(
        f"exported: {output}; probabilities are at most {report.max_difference:.2g} from the run's, "
        f"over {report.n_rows} rows"
    )


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    queries: Annotated[
        Path | None, typer.Argument(help=f"Rows with a query: {FORMATS}; else JSON lines from standard input.")
    ] = None,
    trust_remote_code: Trusted = False,
) -> None:
    """Answer queries with the trained adapter, in JSON lines."""
    from ia2.data import decoded, parse_examples, read_examples
    from ia2.run import Run

    opened = Run.open(run, trust_remote_code)
    if queries:
        rows = read_examples(queries, labelled=False)
    else:
        rows = parse_examples(decoded(sys.stdin.buffer.read(), "stdin"), "stdin", labelled=False)
    texts = [row.query for row in rows]
    for query, answer in zip(texts, opened.predict(texts), strict=True):
        line: dict[str, Any] = {"query": query, "response": answer.text, "confidence": round(answer.confidence, 6)}
        if answer.p_labels:
            line["p_labels"] = {label: round(p, 6) for label, p in answer.p_labels.items()}
        typer.echo(json.dumps(line, ensure_ascii=False))


@app.command()
def methods() -> None:
    """List the methods: stages, what they minimise."""
    from ia2.methods import methods as table

    _print_rows(("method", "what it does", "minimises"), [(name, m.what, m.equation) for name, m in table().items()])


@app.command()
def adapters() -> None:
    """List the adapters; any other of PEFT's goes by its PEFT type."""
    from ia2.adapters import ADAPTERS

    rates = [", ".join(f"{rate:g}" for rate in a.learning_rate) for a in ADAPTERS.values()]
    rows = [(name, a.what, a.peft_type, rate) for (name, a), rate in zip(ADAPTERS.items(), rates, strict=True)]
    _print_rows(("adapter", "what it changes", "PEFT type", "learning rates tried"), rows)


def _print_rows(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*titles, box=None)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 120)  # a row is not broken where the terminal is not known
    console.print(table, markup=False)


@tasks.callback()
def list_tasks(context: typer.Context) -> None:
    """List the tasks that come with ia2, and show their prompts."""
    from ia2.tasks import load_task, task_names
    from ia2.tasks.listing import print_tasks

    if context.invoked_subcommand is None:
        print_tasks([load_task(name) for name in task_names()])


@tasks.command("show")
def show_task(
    name: Annotated[str, typer.Argument(help="A task of 'ia2 tasks', or a task file: a path that ends in .yaml.")],
    n_demos: Annotated[int, typer.Option(min=0, help="Examples in each prompt.")] = 2,
) -> None:
    """Show three prompts as the model would see them, and the response that each should get."""
    from ia2.tasks import load_task
    from ia2.tasks.listing import shown_prompts

    typer.echo(shown_prompts(load_task(name), n_demos))


def _parted(text: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in text.split(",")) if text else None


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return tuple(float(part) for part in text.split(",")) if text else None
    except ValueError:
        raise IA2Error(f"{option} is '{text}'; expected numbers parted by commas, e.g. 3e-4,1e-3") from None


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise IA2Error(f"{option} is '{text}'; expected whole numbers parted by commas, e.g. 0,1,2") from None


def _assignments(pairs: list[str]) -> dict[str, Any]:
    import yaml

    for pair in pairs:
        if "=" not in pair:
            raise IA2Error(f"--set {pair}: expected name=value, e.g. eval_steps=4")
    values = dict(pair.split("=", 1) for pair in pairs)
    try:
        return {name: yaml.safe_load(value) for name, value in values.items()}
    except (yaml.YAMLError, ValueError) as error:
        raise IA2Error(f"--set: not YAML: {' '.join(str(error).split())}") from None


def _show(metrics: dict[str, Any], folder: Path) -> None:
    from ia2.results import print_table

    print_table(metrics)
    typer.echo(f"report: {folder / 'report.html'}")


def main() -> None:
    """Entry point of the `ia2` command."""
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first alone prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    # Libraries report nobody's use of them, unless the environment says otherwise.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        if app(standalone_mode=False) == 130:  # typer's for Ctrl-C
            raise KeyboardInterrupt
    except IA2Error as error:
        typer.echo(f"ia2: {error}", err=True)
        raise SystemExit(2) from None
    except TyperException as error:
        if message := error.format_message():
            typer.echo(f"ia2: {message}", err=True)
        raise SystemExit(error.exit_code) from None
    except PermissionError as error:
        typer.echo(f"ia2: {error.filename}: permission denied; expected a place that you may read and write", err=True)
        raise SystemExit(2) from None
    except RuntimeError as error:
        from ia2.memory import ran_out

        if not ran_out(error):
            raise
        why = str(error).splitlines()[0][:200]
        what = "use fewer or shorter demos, a smaller model, or --set dtype=bfloat16"
        typer.echo(f"ia2: out of memory even with one row at once ({why}); {what}", err=True)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("ia2: interrupted; the same command again continues where it stopped", err=True)
        raise SystemExit(130) from None
