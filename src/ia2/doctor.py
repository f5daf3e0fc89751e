"""A look at model, rows and adapter before anything is trained: what is found, what it needs, what is wrong."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from ia2.anatomy import Anatomy
from ia2.capture import SITES, paths
from ia2.data import Example, n_dev
from ia2.errors import IA2Error
from ia2.estimate import Needs, estimate, work
from ia2.evaluation import Variant, gold, label_logps
from ia2.models import LanguageModel
from ia2.processes import is_shared, processes
from ia2.prompt import Tokens, build_prompt
from ia2.run import Run

N_ROWS = 16
SHOWN = 400  # characters of a context at its beginning, and at its end
LEAST_MASS = 0.1  # of the labels together, below which a base does not say them


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        prompt: of the teacher, for one row, as (text, the token predicted there where a position is aligned).
        layers: a line on the layers, and one a site.
        adapter: what it changes, its trainable parameters and their share.
        needs: memory, disk, operations.
        seconds: estimated, of collecting and of one training step, at the speed of a timed pass.
        scores: NLL and accuracy without and with the teacher's context.
        warnings: what usually goes wrong, each with what to do.
        errors: what makes training impossible.
    """

    prompt: list[tuple[str, str | None]]
    layers: list[str]
    adapter: str
    needs: Needs | None
    seconds: tuple[float, float] | None
    scores: dict[str, tuple[float, float]]
    warnings: list[str]
    errors: list[str]


@torch.no_grad()
def examine(run: Run, lm: LanguageModel) -> Report:
    """Look at everything, and train nothing; writes nothing.

    Args:
        run: as `Run.create` made it.
        lm: its base model.
    """
    data, task, contexts = run.data, run.task(), run.contexts(lm)
    teacher, student, errors = _encoded(run, lm)
    n_trainable, adapter = 0, ""
    try:
        with run.new_adapter(lm, contexts) as model:
            n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        share = n_trainable / sum(p.numel() for p in lm.base.parameters())
        adapter = f"{run.config.adapter}: {n_trainable:,} trainable parameters, {share:.2%} of the model"
    except IA2Error as error:
        errors.append(str(error))
    needs = seconds = None
    scores: dict[str, tuple[float, float]] = {}
    warnings = [*filter(None, [lm.encoder.unknown(student)]), *_warnings(run, lm)]
    if not errors:
        stages = run.config.stages().values()
        selection = next(
            (s.selection(lm.anatomy) for s in stages if s.teacher_sites), next(iter(stages)).selection(lm.anatomy)
        )
        settings = run.config.settings(next(iter(run.config.stages())), len(data.train))[0]
        n, shared = processes().num_processes, is_shared(lm.base)
        batch_size = settings.per_device_train_batch_size
        needs = estimate(lm, teacher, student, selection, n_trainable, batch_size, n, shared)
        rows = list(data.dev or data.train)[:N_ROWS]
        for name, of in (("without", None), ("with", contexts)):
            variant = Variant(name, of, seed=run.config.seed)
            start = time.perf_counter()
            found_gold = gold(lm, task, rows, variant, sites=frozenset())
            elapsed = time.perf_counter() - start
            scores[name] = float(np.mean(found_gold.nll)), float(np.mean(found_gold.greedy))
        shown = [lm.encoder.encode(variant.prompt(task, example, example.label)) for example in rows]
        rate = work(lm, shown).flops / elapsed
        seconds = needs.collect_flops / rate, needs.step_flops / rate
        if scores["with"][0] >= scores["without"][0]:
            warnings.append("the teacher is no better for its context: aligning to it can hardly help; try more demos")
        if task.labels and (mass := _mass(run, lm, rows)) < LEAST_MASS:
            warnings.append(
                f"the labels have {mass:.1%} of the probability together, even in context: this model does not say "
                f"{', '.join(task.labels)}; choose other labels or another form of the query"
            )
    prompt = _marked(lm, teacher[0]) if teacher else []
    return Report(prompt, _layers(lm.anatomy), adapter, needs, seconds, scores, warnings, errors)


def _encoded(run: Run, lm: LanguageModel) -> tuple[list[Tokens], list[Tokens], list[str]]:
    """Rows with and without their context, and what is wrong with them."""
    contexts, rng = run.contexts(lm), np.random.default_rng(run.config.seed)
    teacher: list[Tokens] = []
    student: list[Tokens] = []
    errors: list[str] = []
    try:
        lm.encoder.label_ids(run.task().labels or ())
    except IA2Error as error:
        errors.append(str(error))
    splits = run.data.train, run.data.dev
    prompts = [prompt for split in splits for prompt in contexts.prompts(run.task(), split, rng)]
    for i, (example, prompt) in enumerate(zip(chain(*splits), prompts, strict=True), 1):
        try:
            bare = lm.encoder.encode(build_prompt(run.task(), (), example.query, example.label))
            taught = lm.encoder.encode(prompt)
        except IA2Error as error:
            errors.append(f"row {i}: {error}; or leave demos out: --set drop_demos=true")
            continue
        n = bare.n_query + bare.n_response
        if bare.ids[-n:] != taught.ids[-n:]:
            errors.append(f"row {i}: teacher and student differ in the ids of query and response")
        teacher.append(taught)
        student.append(bare)
    return teacher, student, errors


def _layers(anatomy: Anatomy) -> list[str]:
    lines = [f"{len(anatomy.layers)} layers, {len(anatomy.attention_layers)} of them with self-attention"]
    for site in SITES[:-1]:
        try:
            found = paths(anatomy, site)
            lines.append(f"{site}: {found[0]} to {found[-1]}")
        except IA2Error as error:
            lines.append(f"{site}: {error}")
    return [*lines, f"adapters go by default on {', '.join(anatomy.default_targets)}"]


def _marked(lm: LanguageModel, row: Tokens) -> list[tuple[str, str | None]]:
    decode, aligned = lm.encoder.tokenizer.decode, row.aligned("response")
    marked: list[tuple[str, str | None]] = [(str(decode(list(row.ids[: aligned.start]))), None)]
    for t in aligned:
        marked.append((str(decode([row.ids[t]])), str(decode([row.ids[t + 1]]))))
    return [*marked, (str(decode(list(row.ids[aligned.stop :]))), None)]


def _mass(run: Run, lm: LanguageModel, rows: list[Example]) -> float:
    prompts = [run.contexts(lm).prompt(run.task(), row, None, np.random.default_rng(0)) for row in rows]
    return float(label_logps(lm, run.task().labels or (), prompts).exp().sum(-1).mean())


def _warnings(run: Run, lm: LanguageModel) -> Iterator[str]:
    labels, data = run.task().labels, run.data
    if lm.encoder.tokenizer.padding_side == "left":
        yield "the tokenizer pads on the left; ia2 pads on the right in training by itself, nothing is to be done"
    if lm.base.dtype == torch.float16 and lm.device.type == "cpu":
        yield "float16 on a CPU is slow and easily overflows: use --set dtype=float32"
    if len(data.dev) < n_dev(len(data.train)):
        wanted, n = n_dev(len(data.train)), len(data.train)
        yield f"{len(data.dev)} development rows for {n} to train on; {wanted} choose learning rates better"
    if not labels:
        return
    pieces = {label: lm.encoder.piece(label) for label in labels}
    for a in labels:
        for b in labels:
            if a < b and pieces[a][:1] == pieces[b][:1]:
                yield f"the labels {a!r} and {b!r} share their first token: they are told apart only by the next ones"
            if a != b and b.startswith(a):
                yield f"the label {a!r} begins {b!r}: all tokens are scored, yet labels of one length calibrate better"
    counts = Counter(row.label for row in data.train)
    for label in labels:
        if counts[label] <= 1 < len(data.train) // len(labels):
            yield f"the label {label!r} has {counts[label]} of {len(data.train)} training rows: add some"


def lines(report: Report) -> Iterator[str]:
    """The report as text."""
    if report.prompt:
        yield "the teacher's prompt; [aligned] -> the token predicted there:"
        (start, _), *marked = report.prompt
        shown = start if len(start) < 2 * SHOWN else f"{start[:SHOWN]} ... {start[-SHOWN:]}"
        yield shown + "".join(f"[{text}]->{token!r}" if token else f" {text!r}" for text, token in marked)
    yield from ("", *report.layers, report.adapter)
    if report.needs and report.seconds:
        needs, of = report.needs, report.needs.teaching
        yield (
            f"memory: {_bytes(needs.weights)} of weights, {_bytes(needs.collecting)} to collect, "
            f"{_bytes(needs.training)} to train; {_bytes(needs.targets)} of targets on disk"
        )
        yield (
            f"the teacher computes {of.n_computed:,} of its prompts' {of.n_tokens:,} tokens, as what they begin with "
            f"alike is computed once, and {of.n_padding:,} of padding"
        )
        yield f"time: about {report.seconds[0]:.1f} s to collect, {report.seconds[1]:.3f} s a training step"
    for name, (nll, accuracy) in report.scores.items():
        yield f"{name} context: NLL {nll:.2f}, accuracy {accuracy:.0%}"
    yield from (f"warning: {text}" for text in report.warnings)
    yield from (f"error: {text}" for text in report.errors)
    yield "training is impossible as it stands" if report.errors else "ready to train"


def _bytes(n: Any) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"
