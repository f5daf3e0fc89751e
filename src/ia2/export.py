"""A trained adapter for others: a PEFT folder or a plain model, with a model card, that is seen to answer as it did."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ia2.adapters import loaded_adapters
from ia2.data import Example
from ia2.errors import IA2Error, choose
from ia2.evaluation import Answer, Variant, answer
from ia2.files import read_json, read_jsonl, write_text, written_aside
from ia2.merging import merge
from ia2.models import LanguageModel, load_model
from ia2.prompt import build_prompt
from ia2.report import display_name
from ia2.report.numbers import SCORE
from ia2.run import Run
from ia2.world import MODELS

N_CHECKED = 16
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}  # rounding; an adapter that is lost changes more
MEASURES = {"accuracy": "accuracy", "ece": "ECE", "nll": "NLL", "brier": "Brier"}
CITATION = """```bibtex
@article{ia2,
  title   = {IA2: Alignment with ICL Activations Improves Supervised Fine-Tuning},
  author  = {Mishra, Aayush and Khashabi, Daniel and Liu, Anqi},
  journal = {arXiv preprint arXiv:2509.22621},
  year    = {2025},
  url     = {https://arxiv.org/abs/2509.22621},
}
```"""


@dataclass(frozen=True)
class ExportReport:
    """How far the probabilities of what was exported are from the run's, at most, over so many rows."""

    max_difference: float
    n_rows: int


@dataclass(frozen=True)
class _Expected:
    """What the run answers to a query: text, and probabilities of the labels, or the confidence in the text."""

    text: str
    p: dict[str, float]

    @staticmethod
    def of(text: str, confidence: float, p_labels: dict[str, float] | None) -> "_Expected":
        return _Expected(text, p_labels or {"": confidence})


def export(run: Run, output: Path, adapter: str | None = None, merged: bool = False) -> ExportReport:
    """Write an adapter of a run with its tokenizer and a model card, as safetensors.

    Args:
        run: a trained one.
        output: a new folder; it is there only if what it holds answers as the run does.
        adapter: which one, by the name of its stage; the last by default.
        merged: whether it is merged into its base, in float32, see `ia2.merging.merge`.

    Raises:
        IA2Error: the folder exists, no such adapter, it cannot be merged, or its answers are not those of the run.
    """
    folders = run.trained()
    name = choose("adapter", adapter or run.config.result, folders)
    if output.exists():
        raise IA2Error(f"{output} exists; choose another output folder")
    lm = run.load_model()
    dtype, tokenizer = str(lm.base.dtype).removeprefix("torch."), lm.encoder.tokenizer
    expected = _expected(run, name, lm)
    with written_aside(output) as aside:
        if merged:
            rows = [*run.data.train, *run.data.dev]
            merge(lm, folders[name], aside, [build_prompt(run.task(), (), e.query, e.label) for e in rows])
            lm = load_model(str(aside), chat=run.config.chat, trust_remote_code=run.trust_remote_code)
        else:
            shutil.copytree(folders[name], aside)
            tokenizer.save_pretrained(aside)
        write_text(aside / "README.md", model_card(run, name, output, merged))
        found = _answers(run, lm, list(expected), None if merged else aside)
        report = _compared(list(expected.values()), found, TOLERANCE[dtype])
    return report


def _expected(run: Run, name: str, lm: LanguageModel) -> dict[str, _Expected]:
    """By query: what the evaluation wrote down, or else what the adapter answers to the run's own rows."""
    path = run.folder / "predictions.jsonl"
    rows = [row for row in read_jsonl(path) if row["variant"] == name] if path.is_file() else []
    if rows:
        return {r["query"]: _Expected.of(r["answer"], r["confidence"], r["p_labels"]) for r in rows[:N_CHECKED]}
    queries = [example.query for example in (run.data.dev or run.data.train)[:N_CHECKED]]
    return dict(zip(queries, _answers(run, lm, queries, run.adapters[name]), strict=True))


def _answers(run: Run, lm: LanguageModel, queries: list[str], adapter: Path | None) -> list[_Expected]:
    with loaded_adapters(lm, {"adapter": adapter} if adapter else {}):
        variant = Variant("", adapter="adapter" if adapter else None)
        answers: list[Answer] = answer(lm, run.task(), [Example(query) for query in queries], variant)
    return [_Expected.of(a.text, a.confidence, a.p_labels) for a in answers]


def _compared(expected: list[_Expected], found: list[_Expected], tolerance: float) -> ExportReport:
    """Labels may change where two are as good as equally probable, and generated texts may not."""
    apart = max(abs(a.p[key] - b.p[key]) for a, b in zip(expected, found, strict=True) for key in a.p)
    n_others = sum("" in a.p and a.text != b.text for a, b in zip(expected, found, strict=True))
    if n_others or not apart <= tolerance:
        raise IA2Error(
            f"what was exported does not answer as the run does: probabilities are {apart:.2g} apart (at most "
            f"{tolerance:g} was expected), {n_others} of {len(found)} texts differ; was the base model or a file of "
            "the run changed? evaluate the run again"
        )
    return ExportReport(apart, len(found))


def model_card(run: Run, name: str, output: Path, merged: bool) -> str:
    """The README.md of an exported adapter: front matter of the hub, method, rows, metrics, use, citation."""
    config, plain = run.config, merged or run.config.adapter == "full"
    embedded = config.model in MODELS
    data = ModelCardData(
        base_model=None if embedded or Path(config.model).exists() else config.model,
        library_name="transformers" if plain else "peft",
        license="apache-2.0" if embedded else "other",
        license_name=None if embedded else "that-of-the-base-model",
        pipeline_tag="text-generation",
        tags=["ia2", *([] if plain else [config.adapter]), "arxiv:2509.22621"],
    )
    return f"""---
{data.to_yaml()}
---

# {output.name}

`{config.model}`, trained by [IA2](https://arxiv.org/abs/2509.22621) to answer as if a handful of examples were always
in its prompt: {"the whole model" if plain else f"a PEFT adapter ({config.adapter})"}.

## How it was trained

{_training(run, name)}

## How good it is

{_metrics(run, name)}

## How to use it

{_use(run, output, plain)}

## Citation

{CITATION}
"""


def _training(run: Run, name: str) -> str:
    data, stages, lines = run.data, run.config.stages(), []
    for stage in list(stages)[: list(stages).index(name) + 1]:
        record = read_json(run.adapters[stage] / "training.json")
        terms = " + ".join(f"{term.weight:g} {term.loss} at {term.site}" for term in stages[stage].terms)
        rate, n_rows = record["learning_rate"], record["n_rows"]
        lines.append(f"- `{stage}`: {terms}, on {n_rows} rows; learning rate {rate:g}, {record['n_steps']} steps")
    labels = run.task().labels
    answers = f"The answer is one of {', '.join(f'`{label}`' for label in labels)}." if labels else "Answers are texts."
    counts = f"{len(data.train)} labelled rows, {len(data.dev)} for development, {len(data.unlabelled)} unlabelled."
    return "\n".join([*lines, "", f"{counts} {answers}"])


def _metrics(run: Run, name: str) -> str:
    path = run.folder / "metrics.json"
    if not path.is_file():
        return "Not evaluated."
    metrics: dict[str, Any] = read_json(path)
    lines = [f"| {metrics['n_test']} test rows | {' | '.join(MEASURES.values())} |", "|---" * (1 + len(MEASURES)) + "|"]
    for method in ("zero-shot", "icl", name):
        cells = [SCORE.interval(metrics["methods"][method][key]) for key in MEASURES]
        lines.append(f"| {display_name(method)} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", "With 95% bootstrap intervals; ICL is the base with the labelled rows in its prompt."]
    )


def _use(run: Run, output: Path, plain: bool) -> str:
    config = run.config
    imports, base = ["from transformers import AutoModelForCausalLM, AutoTokenizer"], f'"{config.model}"'
    if config.model in MODELS:
        imports, base = ["from ia2.world import MODELS", *imports], f'MODELS["{config.model}"]'
    if plain:
        imports, base = imports[-1:], f'"{output}"'
    load = [f"model = AutoModelForCausalLM.from_pretrained({base})"]
    if not plain:
        imports.insert(-1, "from peft import PeftModel")
        load.append(f'model = PeftModel.from_pretrained(model, "{output}")')
    asked = "tokenizer(query"
    if config.chat != "none":
        turns = '[{"role": "user", "content": query}]'
        asked = f"tokenizer.apply_chat_template({turns}, add_generation_prompt=True, return_dict=True"
    return "\n".join(
        [
            "```python",
            *imports,
            "",
            *load,
            f'tokenizer = AutoTokenizer.from_pretrained("{output}")',
            'query = "a query of the form that it was trained on"',
            f'inputs = {asked}, return_tensors="pt")',
            f"ids = model.generate(**inputs, max_new_tokens={5 if run.task().labels else config.max_new_tokens})",
            'print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :]))',
            "```",
        ]
    )
