"""The command line. It alone turns exceptions into exit codes: 2 for a mistake that the user can mend."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from ia2.errors import IA2Error

app = typer.Typer(
    help="Turn a handful of examples into an adapter that behaves as if they were always in the prompt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tasks = typer.Typer(invoke_without_command=True)
app.add_typer(tasks, name="tasks")

TrainFile = Annotated[Path, typer.Option("--train", help="JSON lines of query and response (or prompt, completion).")]


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
    method: Annotated[str | None, typer.Option(help="sft, soft, ia2 or ia2-sft.  [default: ia2-sft]")] = None,
    loss: Annotated[str | None, typer.Option(help="Alignment loss: nmse (scale-free) or mse (the paper's).")] = None,
    labels: Annotated[
        str | None, typer.Option(help="The labels, parted by commas; none: answers are generated.")
    ] = None,
    learning_rate: Annotated[
        str | None, typer.Option(help="One or several, parted by commas; development loss decides.")
    ] = None,
    prime_learning_rate: Annotated[str | None, typer.Option(help="Those of alignment, if others.")] = None,
    num_train_epochs: Annotated[int | None, typer.Option(help="At most, a stage.  [default: 50]")] = None,
    r: Annotated[int | None, typer.Option(help="LoRA rank.  [default: 8]")] = None,
    lora_alpha: Annotated[int | None, typer.Option(help="LoRA alpha.  [default: 8]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights and every order.  [default: 0]")] = None,
    set_option: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option as name=value, e.g. eval_steps=4.")
    ] = None,
) -> None:
    """Train an adapter on your examples: record what the model does with them in its prompt, align, fine-tune."""
    from ia2.config import make_config, read_config
    from ia2.data import read_examples
    from ia2.progress import say
    from ia2.run import Data, Run

    given = {
        "model": model or None,
        "method": method,
        "loss": loss,
        "labels": labels if labels in (None, "none", "auto") else _parted(labels),
        "learning_rate": _numbers("--learning-rate", learning_rate),
        "prime_learning_rate": _numbers("--prime-learning-rate", prime_learning_rate),
        "num_train_epochs": num_train_epochs,
        "r": r,
        "lora_alpha": lora_alpha,
        "seed": seed,
        **_assignments(set_option or []),
    }
    values = {**(read_config(config) if config else {}), **{k: v for k, v in given.items() if v is not None}}
    if "model" not in values:
        raise IA2Error("no model given; use --model tiny, --model FOLDER or --model HUB_ID")
    checked = make_config(values, preset)
    rows = read_examples(train)
    extra = read_examples(unlabelled, labelled=False) if unlabelled else []
    tests = read_examples(test) if test else []
    split = Data.split(rows, checked.seed, extra) if dev is None else Data(rows, read_examples(dev), extra)
    run = Run.create(output, checked, split)
    found = run.task().labels
    say("answers are generated text (--labels a,b,... if not)" if found is None else f"labels: {', '.join(found)}")
    run.train()
    typer.echo(f"adapter: {run.adapters[checked.method]}")
    if tests:
        _show(run.evaluate(tests), run.folder)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    test: Annotated[Path, typer.Option(help="JSON lines of query and response.")],
) -> None:
    """Compare zero-shot, ICL with the training examples, and the trained adapters on test rows."""
    from ia2.data import read_examples
    from ia2.run import Run

    _show(Run.open(run).evaluate(read_examples(test)), run)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    queries: Annotated[Path | None, typer.Argument(help="JSON lines with a query; else standard input.")] = None,
) -> None:
    """Answer queries with the trained adapter: JSON lines in, JSON lines out."""
    from ia2.data import parse_examples, read_examples
    from ia2.run import Run

    opened = Run.open(run)
    rows = read_examples(queries, labelled=False) if queries else parse_examples(sys.stdin.read(), "stdin", False)
    texts = [row.query for row in rows]
    for query, answer in zip(texts, opened.predict(texts), strict=True):
        line: dict[str, Any] = {"query": query, "response": answer.text, "confidence": round(answer.confidence, 6)}
        if answer.p_labels:
            line["p_labels"] = {label: round(p, 6) for label, p in answer.p_labels.items()}
        typer.echo(json.dumps(line, ensure_ascii=False))


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


def _assignments(pairs: list[str]) -> dict[str, Any]:
    import yaml

    for pair in pairs:
        if "=" not in pair:
            raise IA2Error(f"--set {pair}: expected name=value, e.g. eval_steps=4")
    return {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in pairs)}


def _show(metrics: dict[str, Any], folder: Path) -> None:
    from ia2.results import print_table

    print_table(metrics)
    typer.echo(f"report: {folder / 'report.html'}")


def main() -> None:
    """Entry point of the `ia2` command."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(standalone_mode=False)
    except IA2Error as error:
        typer.echo(f"ia2: {error}", err=True)
        raise SystemExit(2) from None
    except TyperException as error:
        if message := error.format_message():
            typer.echo(f"ia2: {message}", err=True)
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("ia2: interrupted; the same command again continues where it stopped", err=True)
        raise SystemExit(130) from None
