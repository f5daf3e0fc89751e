"""What each way of using a model answers, how sure it is, what it costs, and how alike its activations are to ICL's."""

import math
import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, set_seed

from ia2.adapters import using
from ia2.capture import Site, float32_head
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.memory import in_halves
from ia2.models import LanguageModel
from ia2.passes import batches, passes, prefill, repeated, shared_prefix
from ia2.progress import say, step
from ia2.prompt import Prompt, Tokens, build_prompt
from ia2.task import Task

CHUNK = {True: 256, False: 8}  # rows whose activations are held at a time, with label answers and with generated ones
ATTENTION: frozenset[Site] = frozenset({"attn_out"})


@dataclass(frozen=True)
class Variant:
    """A way of using the model: with a context before the query, and/or with the loaded adapter of this name.

    `seed` is of the order of demos, where that is random: the same for every query.
    """

    name: str
    contexts: Contexts | None = None
    adapter: str | None = None
    seed: int = 0

    def prompt(self, task: Task, example: Example, response: str | None = None) -> Prompt:
        """What the model is shown."""
        if self.contexts is None:
            return build_prompt(task, (), example.query, response)
        return self.contexts.prompt(task, example, response, np.random.default_rng([self.seed, 3]))

    def shown(self, task: Task, example: Example) -> str:
        """The text before the query."""
        return "".join(self.prompt(task, example).context)


@dataclass(frozen=True)
class Prediction:
    """What one variant says to one query.

    Attributes:
        answer: the label of the highest probability, or the generated text. Two labels that tie give the empty text.
        confidence: P(answer) among the labels; for generated text, the mean probability of its tokens (the paper's).
        p_answer: P(answer), which for generated text is the product of its tokens' probabilities.
        p_labels: probability of each label, normalised over the labels; None for generated answers.
        correct: whether the answer is the gold response.
        unparsable: whether no answer can be read from the generated text, or two labels tie.
        score: how well it says the same, in [0, 1], by the task's metric; 1 or 0 where that is exact match.
        greedy_correct: whether each token of the gold response is the most probable of the whole vocabulary.
        nll: -log P(gold response): among the labels, or, where there are none, a mean over its tokens; nats.
        brier: squared error of the probabilities, summed over labels; for generated text, of the confidence.
        similarity: per layer, cosine similarity of the attention output to ICL's on the same gold tokens.
        n_tokens: tokens of the prompt without the answer.
        seconds: wall time for answering this query, its share of the batch.
    """

    variant: str
    query: str
    response: str
    answer: str
    confidence: float
    p_answer: float
    correct: bool
    unparsable: bool
    score: float
    greedy_correct: bool
    nll: float
    brier: float
    p_labels: dict[str, float] | None
    similarity: list[float]
    n_tokens: int
    seconds: float


@torch.no_grad()
def evaluate(
    lm: LanguageModel, task: Task, examples: Sequence[Example], variants: Sequence[Variant], reference: Variant
) -> list[Prediction]:
    """Score every variant on every example.

    Args:
        lm: with the adapters that the variants name loaded.
        task: labels, or None for generated answers.
        examples: labelled.
        variants: what to compare.
        reference: the one that similarity is measured to, ICL; compared on the same teacher-forced tokens.

    Returns:
        Variant by variant, in the order of `examples`.
    """
    if task.labels and (unknown := {e.label for e in examples} - set(task.labels)):
        raise IA2Error(f"label {min(unknown)!r} is not among the training labels: {', '.join(task.labels)}")
    found: dict[str, list[Prediction]] = {variant.name: [] for variant in variants}
    with step("evaluate", len(examples) * len(variants)) as advance:
        size = CHUNK[bool(task.labels)]
        for start in range(0, len(examples), size):
            chunk = examples[start : start + size]
            teacher = gold(lm, task, chunk, reference)
            for variant in variants:
                forced = teacher if variant == reference else gold(lm, task, chunk, variant)
                found[variant.name] += _predictions(lm, task, chunk, variant, forced, teacher.acts)
                advance(len(chunk), variant.name)
    return [prediction for rows in found.values() for prediction in rows]


def _predictions(
    lm: LanguageModel,
    task: Task,
    chunk: Sequence[Example],
    variant: Variant,
    forced: "Gold",
    teacher: Sequence[Tensor],
) -> list[Prediction]:
    similarity = [
        F.cosine_similarity(a.float(), b.float(), dim=-1).mean(0) for a, b in zip(forced.acts, teacher, strict=True)
    ]
    start = time.perf_counter()
    answers = forced.answers or answer(lm, task, chunk, variant)
    seconds = (forced.seconds if forced.answers else time.perf_counter() - start) / len(chunk)
    predictions = []
    for i, (example, given) in enumerate(zip(chunk, answers, strict=True)):
        score = task.score(given.text, example.label)
        correct = score == 1.0
        if given.p_labels:
            nll = -float(given.logp_labels[example.label])
            brier = sum((p - (label == example.label)) ** 2 for label, p in given.p_labels.items())
        else:
            nll, brier = forced.nll[i], (given.confidence - correct) ** 2
        predictions.append(
            Prediction(
                variant=variant.name,
                query=example.query,
                response=example.label,
                answer=given.text,
                confidence=given.confidence,
                p_answer=given.p_answer,
                correct=correct,
                unparsable=task.parse(given.text) is None,
                score=score,
                greedy_correct=forced.greedy[i],
                nll=nll,
                brier=brier,
                p_labels=given.p_labels,
                similarity=similarity[i].tolist(),
                n_tokens=given.n_tokens,
                seconds=seconds,
            )
        )
    return predictions


@dataclass(frozen=True)
class Gold:
    """Gold responses, teacher-forced: attention outputs (R, L, D), mean NLL a token, whether greedy would say it.

    Where each label is one token and the whole response, their probabilities are at hand, and with them `answers`;
    elsewhere there are none.
    """

    acts: list[Tensor]
    nll: list[float]
    greedy: list[bool]
    answers: list["Answer"]
    seconds: float


@torch.no_grad()
def gold(
    lm: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    variant: Variant,
    sites: frozenset[Site] = ATTENTION,
) -> Gold:
    """Read a variant on the gold responses; `acts` stay empty without `attn_out` among the sites."""
    start = time.perf_counter()
    labels = task.labels or ()
    rows = _encode(lm, [variant.prompt(task, e, e.label) for e in examples])
    label_ids = _of_one_token(lm, labels) if all(row.n_response == 1 for row in rows) else []
    acts: list[Tensor] = [torch.empty(0)] * len(rows)
    nll, greedy = [0.0] * len(rows), [False] * len(rows)
    logp_NC = torch.empty(len(rows), len(labels))
    with using(lm, variant.adapter), float32_head(lm.base):
        for chosen, batch, values in passes(lm, rows, sites | {"logits"}):
            sizes = [rows[i].n_response for i in chosen]
            logp_PV = values["logits"].float().log_softmax(-1)
            logp_P = logp_PV.gather(1, batch.response_ids[:, None])[:, 0]
            others_PV = logp_PV.scatter(1, batch.response_ids[:, None], -torch.inf)
            best_P = logp_P > others_PV.max(-1).values
            for i, logp_R, best_R in zip(chosen, logp_P.split(sizes), best_P.split(sizes), strict=True):
                nll[i], greedy[i] = -logp_R.mean().item(), bool(best_R.all())
            if "attn_out" in values:
                for i, acts_RLD in zip(chosen, values["attn_out"].split(sizes), strict=True):
                    acts[i] = acts_RLD
            if label_ids:
                logp_NC[chosen] = logp_PV[:, label_ids].cpu()
    answers = _label_answers(labels, logp_NC, [len(row.ids) - row.n_response for row in rows]) if label_ids else []
    return Gold(acts, nll, greedy, answers, time.perf_counter() - start)


@dataclass(frozen=True)
class Answer:
    """An answer to one query; see `Prediction`."""

    text: str
    confidence: float
    p_answer: float
    n_tokens: int
    logp_labels: dict[str, float]

    @property
    def p_labels(self) -> dict[str, float] | None:
        """Probability of each label; None where the answer was generated."""
        return {label: math.exp(logp) for label, logp in self.logp_labels.items()} or None


@torch.no_grad()
def answer(lm: LanguageModel, task: Task, examples: Sequence[Example], variant: Variant) -> list[Answer]:
    """Answer queries: the most probable label, or a greedy generation up to the task's separator."""
    prompts = [variant.prompt(task, example) for example in examples]
    with using(lm, variant.adapter):
        if task.labels:
            logp_NC = label_logps(lm, task.labels, prompts, task.length_normalised)
            return _label_answers(task.labels, logp_NC, [len(row.ids) for row in _encode(lm, prompts)])
        return _generated_answers(lm, task, prompts)


@torch.no_grad()
def sampled_answers(
    lm: LanguageModel, task: Task, examples: Sequence[Example], variant: Variant, n: int, seed: int
) -> list[list[str]]:
    """`n` answers to each query, drawn from the model's distribution over the labels, or over texts."""
    prompts = [variant.prompt(task, example) for example in examples]
    with using(lm, variant.adapter):
        if task.labels:
            p_NC = label_logps(lm, task.labels, prompts, task.length_normalised).double().softmax(-1).numpy()
            rng = np.random.default_rng(seed)
            return [[str(label) for label in rng.choice(task.labels, n, p=p_C)] for p_C in p_NC]
        rows = [row for row in _encode(lm, prompts) for _ in range(n)]
        set_seed(seed)
        texts = [""] * len(rows)
        for chosen, drawn in in_halves(
            batches(rows, max_tokens=4096), lambda chosen: generate(lm, [rows[i] for i in chosen], task, do_sample=True)
        ):
            for i, ids in zip(chosen, drawn, strict=True):
                texts[i] = _text(lm, task, ids)
        return [texts[i : i + n] for i in range(0, len(texts), n)]


def _label_answers(labels: Sequence[str], logp_NC: Tensor, n_tokens: Sequence[int]) -> list[Answer]:
    answers = []
    for logp_C, n in zip(logp_NC.log_softmax(-1).double().tolist(), n_tokens, strict=True):
        best = max(logp_C)
        winners = [label for label, logp in zip(labels, logp_C, strict=True) if logp == best]
        p = math.exp(best)
        text = winners[0] if len(winners) == 1 else ""
        answers.append(Answer(text, p, p, n, dict(zip(labels, logp_C, strict=True))))
    return answers


def _of_one_token(lm: LanguageModel, labels: Sequence[str]) -> list[int]:
    """The ids of labels that are one token each; none where one of them is not."""
    ids = lm.encoder.label_ids(labels)
    return [of[0] for of in ids] if all(len(of) == 1 for of in ids) else []


def label_logps(
    lm: LanguageModel, labels: Sequence[str], prompts: Sequence[Prompt], length_normalised: bool = False
) -> Tensor:
    """Log-probability of each label's tokens behind each prompt, float32 (N, C). One forward if all are one token.

    Summed over a label's tokens, or, if `length_normalised`, their mean. Where the tokens of one label begin those of
    another, the separator behind each is scored too: "1" would hold all the probability of "10".
    """
    ids = lm.encoder.label_ids(labels)
    nested = any(a is not b and b[: len(a)] == a for a in ids for b in ids)
    single = _of_one_token(lm, labels)
    scored = [labels[0]] if single else labels
    texts = [(p, label + p.separator if nested else label) for p in prompts for label in scored]
    rows = _encode(lm, [replace(p, response=text) for p, text in texts])
    logp = torch.empty(len(rows), len(labels) if single else 1)
    with float32_head(lm.base):
        for chosen, batch, values in passes(lm, rows, {"logits"}):
            logp_PV, ids_P = values["logits"].float().log_softmax(-1), batch.response_ids
            if single:
                logp[chosen] = logp_PV[:, single].cpu()
            else:
                logp_P = logp_PV.gather(1, ids_P[:, None])[:, 0]
                sizes = [rows[i].n_response for i in chosen]
                parts = [part.mean() if length_normalised else part.sum() for part in logp_P.split(sizes)]
                logp[chosen, 0] = torch.stack(parts).cpu()
    return logp.view(len(prompts), len(labels))


def _generated_answers(lm: LanguageModel, task: Task, prompts: Sequence[Prompt]) -> list[Answer]:
    rows = _encode(lm, prompts)
    if n_short := sum(len(row.ids) + task.max_new_tokens > lm.encoder.max_length for row in rows):
        say(
            f"{n_short} of {len(rows)} prompts leave room for less than {task.max_new_tokens} new tokens in the window "
            f"of {lm.encoder.max_length}: longer answers are cut off; drop_demos=true leaves demos out"
        )
    answers = [Answer("", 0.0, 0.0, len(row.ids), {}) for row in rows]
    for chosen, generated in in_halves(
        batches(rows, max_tokens=4096), lambda chosen: generate(lm, [rows[i] for i in chosen], task)
    ):
        written = [
            Tokens((*rows[i].ids, *ids), len(ids), rows[i].n_query) for i, ids in zip(chosen, generated, strict=True)
        ]
        for part, batch, values in passes(lm, written, {"logits"}):
            p_P = values["logits"].float().softmax(-1).gather(1, batch.response_ids[:, None])[:, 0]
            for k, p_R in zip(part, p_P.split([written[k].n_response for k in part]), strict=True):
                i, ids = chosen[k], generated[k]
                mean, joint = p_R.mean().item(), p_R.log().sum().exp().item()
                answers[i] = Answer(_text(lm, task, ids), mean, joint, len(rows[i].ids), {})
    return answers


def _text(lm: LanguageModel, task: Task, ids: list[int]) -> str:
    """A generated answer, up to what ends it."""
    text = str(lm.encoder.tokenizer.decode(ids, skip_special_tokens=True))
    return text.split(lm.encoder.stop or task.separator)[0].strip()


class StopAt(StoppingCriteria):
    """Stops each row once its new text holds the separator, or what ends a turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: str, start: int):
        self.tokenizer, self.separator, self.start = tokenizer, separator, start

    def ends(self, new_ids: list[int]) -> bool:
        """Whether the separator ends within the last token."""
        tail = new_ids[-1 - len(self.separator.encode()) :]  # a token may hold a single byte of it
        return self.separator in self.tokenizer.decode(tail)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """(B,) bool."""
        done = [self.ends(row) for row in input_ids[:, self.start :].tolist()]
        return torch.tensor(done, device=input_ids.device)


def generate(lm: LanguageModel, rows: Sequence[Tokens], task: Task, do_sample: bool = False) -> list[list[int]]:
    """Continuations with a KV cache, greedy or sampled, each up to and with the separator or an end-of-text token.

    PEFT does not number the positions of padded rows behind virtual tokens, so that there rows of one length go
    together.
    """
    tokenizer = lm.encoder.tokenizer
    lengths = {len(row.ids) for row in rows}
    if len(lengths) > 1 and lm.adds_tokens:
        parts = {n: generate(lm, [row for row in rows if len(row.ids) == n], task, do_sample) for n in lengths}
        return [parts[len(row.ids)].pop(0) for row in rows]
    width = max(lengths)
    room = lm.encoder.max_length - width
    if room < 1:
        raise IA2Error(f"a prompt of {width} tokens leaves no room for an answer in a window of {width + room}")
    n = shared_prefix(lm, rows)
    pads = [width - len(row.ids) for row in rows]  # between what is shared and the rest
    ids = torch.tensor(
        [[*row.ids[:n], *[lm.encoder.pad_id] * pad, *row.ids[n:]] for row, pad in zip(rows, pads, strict=True)]
    )
    mask = torch.tensor([[1] * n + [0] * pad + [1] * (width - n - pad) for pad in pads])
    cache = repeated(prefill(lm, rows[0].ids[:n]), len(rows)) if n else None
    stop = StopAt(tokenizer, lm.encoder.stop or task.separator, width)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)  # and not needed, see above
        out = lm.model.generate(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            do_sample=do_sample,
            max_new_tokens=min(task.max_new_tokens, room),
            stopping_criteria=StoppingCriteriaList([stop]),
            pad_token_id=lm.encoder.pad_id,
            past_key_values=cache,
        )
    own = lm.base.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return [_until_end(new, stop, ends) for new in out[:, width:].tolist()]


def _until_end(ids: list[int], stop: StopAt, ends: Collection[int | None]) -> list[int]:
    """Cut the padding that follows the end of a row that others in its batch outlasted."""
    for n in range(1, len(ids) + 1):
        if ids[n - 1] in ends or stop.ends(ids[:n]):
            return ids[:n]
    return ids


def _encode(lm: LanguageModel, prompts: Iterable[Prompt]) -> list[Tokens]:
    return [lm.encoder.encode(prompt) for prompt in prompts]
