"""What training costs elsewhere: how well other tasks are read and answered, before it and after."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ia2.contexts import Contexts
from ia2.data import Example, read_examples
from ia2.errors import IA2Error
from ia2.evaluation import Variant, answer, gold
from ia2.models import LanguageModel
from ia2.progress import step
from ia2.statistics import Array, intervals, jackknife, mean, paired
from ia2.task import Task, infer_labels
from ia2.tasks import load_task

BEFORE = "before"
N_DEMOS, N_ROWS, MIN_ROWS = 8, 200, 16
N_BLEU = 64


@dataclass(frozen=True)
class Other:
    """A task that nothing was trained on: rows to test on, and demos for it, which are others."""

    task: Task
    demos: tuple[Example, ...]
    rows: tuple[Example, ...]


def read_other(name: str, like: Task) -> Other:
    """A task of `ia2 tasks` or a task file, of which at most 200 rows are tested, or a file of labelled rows.

    Of a file, the first 8 rows are the demos; labels are inferred, all else is as in the task `like`.

    Raises:
        IA2Error: no such task or file, or fewer than 16 rows to test on.
    """
    if Path(name).suffix in ("", ".yaml", ".yml"):
        benchmark = load_task(name)
        task, demos, rows = benchmark.task, benchmark.rows("train", N_DEMOS), benchmark.rows("test")[:N_ROWS]
    else:
        every = read_examples(name)
        task, demos, rows = replace(like, labels=infer_labels(every)), every[:N_DEMOS], every[N_DEMOS:]
    if len(rows) < MIN_ROWS:
        raise IA2Error(f"{name}: found {len(rows)} rows beside {N_DEMOS} demos; expected at least {MIN_ROWS}")
    return Other(task, tuple(demos), tuple(rows))


def forgetting(lm: LanguageModel, others: dict[str, Other], adapters: Sequence[Variant]) -> dict[str, Any]:
    """Read every other task without an adapter (`before`) and with each, on the same rows.

    Args:
        lm: with the adapters loaded.
        others: by name.
        adapters: variants without a context.

    Returns:
        By task, then by what is in the prompt, `query` (nothing else) or `demos`: `methods`, by name `accuracy` in
        [0, 1], `nll` (a row's mean over its response tokens, of the full vocabulary; mean over rows; nats) and
        `perplexity` (exp of that), with bootstrap intervals over rows; `differences` from `before` in the first two,
        paired; and for generated answers `diversity`, see there, also of the `gold` responses.
    """
    with step("other tasks", len(others) * 2 * (1 + len(adapters))) as advance:
        found: dict[str, Any] = {}
        for name, other in others.items():
            found[name] = {}
            for shown, contexts in (("query", None), ("demos", Contexts(other.demos, "fixed"))):
                variants = [Variant(BEFORE, contexts), *(replace(of, contexts=contexts) for of in adapters)]
                read = {}
                for variant in variants:
                    read[variant.name] = _read(lm, other, variant)
                    advance(1, f"{name}, {variant.name}")
                found[name][shown] = _compared(other, read)
    return found


def _read(lm: LanguageModel, other: Other, variant: Variant) -> tuple[dict[str, Array], list[str]]:
    """Of each row whether it is right and its NLL, and the answers."""
    answers = [given.text for given in answer(lm, other.task, other.rows, variant)]
    right = [other.task.correct(text, row.label) for text, row in zip(answers, other.rows, strict=True)]
    nll = gold(lm, other.task, other.rows, variant, frozenset()).nll
    return {"accuracy": np.array(right, float), "nll": np.array(nll)}, answers


def _compared(other: Other, read: dict[str, tuple[dict[str, Array], list[str]]]) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(other.rows), "methods": {}, "differences": {}}
    before = read[BEFORE][0]
    for name, (columns, _) in read.items():
        own = intervals({metric: (mean, [column]) for metric, column in columns.items()})
        perplexity = {end: math.exp(value) for end, value in asdict(own["nll"]).items()}
        found["methods"][name] = {**{m: asdict(interval) for m, interval in own.items()}, "perplexity": perplexity}
        if name != BEFORE:
            gaps = intervals({metric: paired(mean, [column], [before[metric]]) for metric, column in columns.items()})
            found["differences"][f"{name} - {BEFORE}"] = {metric: asdict(gap) for metric, gap in gaps.items()}
    if not other.task.labels:
        texts = {"gold": [row.label for row in other.rows], **{name: answers for name, (_, answers) in read.items()}}
        found["diversity"] = {name: diversity(of) for name, of in texts.items()}
    return found


def diversity(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """`distinct_1`, `distinct_2`: different words and pairs of adjacent ones, over all of them (Li et al. 2016, 4.3).

    `distinct_answers`: different texts over all. `self_bleu`: BLEU of a text with the others as references, mean over
    the first 64 (Zhu et al. 2018), 1 where all are the same. Each in [0, 1], 0 without any. They depend on the number
    of texts: only values of equally many compare, and intervals are by jackknife, as a bootstrap draws texts twice.
    """
    words = [text.split() for text in texts]
    found = {
        "distinct_1": jackknife(lambda some: _distinct([word for of in some for word in of]), words),
        "distinct_2": jackknife(lambda some: _distinct([pair for of in some for pair in pairwise(of)]), words),
        "distinct_answers": jackknife(_distinct, texts),
        "self_bleu": jackknife(_self_bleu, words[:N_BLEU]),
    }
    return {name: {end: min(1.0, max(0.0, x)) for end, x in asdict(of).items()} for name, of in found.items()}


def _self_bleu(words: Sequence[list[str]]) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smoothing = SmoothingFunction().method1  # a count of 0 is 0.1
    others = [[*words[:i], *words[i + 1 :]] for i in range(len(words))]
    scores = [
        sentence_bleu(references, of, smoothing_function=smoothing, auto_reweigh=True)
        for references, of in zip(others, words, strict=True)
        if references and of
    ]
    return float(np.sum(scores)) / max(1, len(words))


def _distinct(values: Sequence[object]) -> float:
    return len(set(values)) / max(1, len(values))
