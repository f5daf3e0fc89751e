"""Which heads and neurons matter: put what they do in ICL in their place, at the response positions, and look again."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ia2.adapters import using
from ia2.analysis.activations import ROWS_AT_A_TIME, read_rows
from ia2.anatomy import Anatomy
from ia2.capture import BEFORE, Site, places, read
from ia2.data import Example
from ia2.evaluation import Variant
from ia2.metrics import ece
from ia2.models import LanguageModel
from ia2.passes import batches
from ia2.progress import step
from ia2.prompt import Prompt, TokenBatch, Tokens
from ia2.statistics import Array, Statistic, bootstrap, mean
from ia2.task import Task

Unit = tuple[int, int]  # a head or a neuron: its decoder layer, and its number in it, from 0
N_RANDOM = 3
FINE = 64  # units, up to which every power of 2 is tried; of more, every power of 4


class Patch(NamedTuple):
    """A variant in which some units of a site do what they do in another one."""

    variant: Variant
    site: Site
    units: Collection[Unit]


@dataclass(frozen=True)
class Scores:
    """Of each of S patches on N rows, (S, N) each; with labels among these, else of the gold tokens, teacher-forced.

    Attributes:
        correct: whether the gold label, or each token of the gold response, is the most probable one.
        nll: of the gold label; or a mean over the tokens; nats.
        confidence: the highest probability of a label; or of a token, mean over positions.
    """

    correct: Array
    nll: Array
    confidence: Array


@contextmanager
def patched(
    anatomy: Anatomy, site: Site, units: Collection[Unit], n_units: int, batch: TokenBatch, values_PLD: Tensor
) -> Iterator[None]:
    """Within the block, these units give the module behind them other values at the batch's aligned positions.

    Args:
        anatomy: of the model.
        site: `head_out` or `neurons`.
        units: which.
        n_units: of a layer.
        batch: the one that runs within the block.
        values_PLD: of the site, of all layers that have it: L of them, D the units side by side.
    """
    if site not in BEFORE:
        raise ValueError(f"{site} cannot be patched: its units are not the input of a module")
    of_layer: dict[int, list[int]] = {}
    for layer, unit in units:
        of_layer.setdefault(layer, []).append(unit)

    def put(values_PD: Tensor, chosen: list[int], args: tuple[Any, ...]) -> tuple[Any, ...]:
        changed_BTD = args[0].clone()
        own_BTD = changed_BTD[:, changed_BTD.shape[1] - batch.input_ids.shape[1] :]  # behind virtual tokens
        acts_PUW = own_BTD[batch.aligned_mask].unflatten(-1, (n_units, -1))
        acts_PUW[:, chosen] = values_PD.to(acts_PUW).unflatten(-1, (n_units, -1))[:, chosen]
        own_BTD[batch.aligned_mask] = acts_PUW.flatten(1)
        return (changed_BTD, *args[1:])

    def watch(module: nn.Module, values_PD: Tensor, chosen: list[int]) -> Any:
        return module.register_forward_pre_hook(lambda module, args: put(values_PD, chosen, args))

    with ExitStack() as hooks:
        for i, (layer, path) in enumerate(places(anatomy, site).items()):
            if layer in of_layer:
                handle = watch(anatomy.base.get_submodule(path), values_PLD[:, i], of_layer[layer])
                hooks.callback(handle.remove)
        yield


@torch.no_grad()
def patched_scores(
    lm: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    source: Variant,
    patches: Sequence[Patch],
    n_units: Mapping[Site, int],
) -> Scores:
    """Score every patch; its units do what they do in `source`, ICL, on the very same response, which is read once."""
    found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in patches]
    ids = _label_ids(lm, task, source.prompt(task, examples[0]))
    with step("patch", len(patches) * len(examples)) as advance:
        for start in range(0, len(examples), ROWS_AT_A_TIME):
            chunk = examples[start : start + ROWS_AT_A_TIME]
            texts = task.labels[:1] if task.labels and ids else task.labels
            answered = [replace(e, response=text) for e in chunk for text in texts or (e.label,)]
            values = read_rows(lm, task, answered, source, {patch.site for patch in patches})
            variants = {patch.variant.name: patch.variant for patch in patches}
            rows = {
                name: [lm.encoder.encode(variant.prompt(task, e, e.label)) for e in answered]
                for name, variant in variants.items()
            }
            for scores, patch in zip(found, patches, strict=True):
                with using(lm, patch.variant.adapter):
                    logps, tops, greedy = _forced(
                        lm, rows[patch.variant.name], values[patch.site], patch, n_units[patch.site], ids
                    )
                scores.append(_among_labels(task, chunk, logps) if task.labels else _of_tokens(logps, tops, greedy))
                advance(len(chunk), patch.variant.name)
    return Scores(
        *(np.stack([torch.cat([part[i] for part in of]).cpu().double().numpy() for of in found]) for i in range(3))
    )


def _label_ids(lm: LanguageModel, task: Task, prompt: Prompt) -> list[int]:
    """The token of each label, where all are of one token behind this prompt: then one row tells of all; else none."""
    rows = [lm.encoder.encode(replace(prompt, response=task.completion(label))) for label in task.labels or ()]
    return [row.ids[-1] for row in rows] if all(row.n_response == 1 for row in rows) else []


def _forced(
    lm: LanguageModel,
    rows: Sequence[Tokens],
    values: Sequence[Tensor],
    patch: Patch,
    n_units: int,
    label_ids: Sequence[int],
) -> tuple[list[Tensor], list[Tensor], list[bool]]:
    """Of each row: log-probabilities of its response tokens (R,), or of the labels (C,); the highest probability at
    each of its positions (R,); whether greedy says the response.
    """
    logps, tops, greedy = [torch.empty(0)] * len(rows), [torch.empty(0)] * len(rows), [False] * len(rows)
    for chosen in batches(rows):
        batch = lm.encoder.collate([rows[i] for i in chosen]).to(lm.device)
        with patched(lm.anatomy, patch.site, patch.units, n_units, batch, torch.cat([values[i] for i in chosen])):
            logp_PV = read(lm.model, lm.anatomy, batch, {"logits"})["logits"].float().log_softmax(-1)
        logp_P = logp_PV.gather(1, batch.response_ids[:, None])[:, 0]
        top_P = logp_PV.max(-1).values.exp()
        best_P = logp_P > logp_PV.scatter(1, batch.response_ids[:, None], -torch.inf).max(-1).values
        sizes = [rows[i].n_response for i in chosen]
        parts = logp_PV[:, label_ids] if label_ids else logp_P.split(sizes)
        for i, logp, top_R, best_R in zip(chosen, parts, top_P.split(sizes), best_P.split(sizes), strict=True):
            logps[i], tops[i], greedy[i] = logp, top_R, bool(best_R.all())
    return logps, tops, greedy


def _among_labels(task: Task, examples: Sequence[Example], logps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Whether the gold label is the most probable one, its NLL among them, and the highest probability; (N,) each.

    `logps` are of the labels (C,), one an example, or of the tokens of each label, label by label.
    """
    labels = task.labels or ()
    if len(logps) > len(examples):
        logps = [logp_R.mean() if task.length_normalised else logp_R.sum() for logp_R in logps]
    logp_NC = torch.stack(list(logps)).view(len(examples), len(labels)).log_softmax(-1)
    gold_N1 = torch.tensor([[labels.index(example.label)] for example in examples], device=logp_NC.device)
    logp_N = logp_NC.gather(1, gold_N1)[:, 0]
    correct_N = logp_N > logp_NC.scatter(1, gold_N1, -torch.inf).max(-1).values
    return correct_N, -logp_N, logp_NC.max(-1).values.exp()


def _of_tokens(
    logps: Sequence[Tensor], tops: Sequence[Tensor], greedy: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each token of the gold response is the most probable one, their mean NLL, and confidence; (N,) each."""
    nll_N, confidence_N = -torch.stack([of.mean() for of in logps]), torch.stack([of.mean() for of in tops])
    return torch.tensor(greedy, device=nll_N.device), nll_N, confidence_N


def patch_sizes(n: int) -> list[int]:
    """0, 1, and so on by factors of 2, or of 4 where there are more than `FINE` units, and all of them."""
    ratio = 2 if n <= FINE else 4
    return [0, *(ratio**i for i in range(n.bit_length()) if ratio**i < n), n]


def patch_curves(
    lm: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    source: Variant,
    orders: Sequence[Patch],
    n_units: Mapping[Site, int],
) -> list[list[dict[str, Any]]]:
    """Of each variant and site: accuracy, ECE and NLL with the first k units of an order patched, and k random ones.

    Args:
        lm, task, examples, source, n_units: see `patched_scores`.
        orders: the units of a site in order.

    Returns:
        For each order its points in order of `k`, see `patch_sizes`: `accuracy`, `ece`, `nll`, and the same of random
        units (`random_...`): the mean over three draws of them; each with its bootstrap interval over rows.
    """
    rng = np.random.default_rng(0)
    patches: list[Patch] = []
    curves: list[list[tuple[int, list[int], list[int]]]] = []  # k, and which patches are of the first and of random k
    for order in orders:
        units, points = list(order.units), []
        for k in patch_sizes(len(units)):
            draws = [[units[i] for i in rng.permutation(len(units))[:k]] for _ in range(N_RANDOM)]
            at = len(patches)
            patches += [order._replace(units=of) for of in (units[:k], *(draws if 0 < k < len(units) else ()))]
            points.append((k, [at], list(range(at + 1, len(patches))) or [at]))
        curves.append(points)
    scores = patched_scores(lm, task, examples, source, patches, n_units)
    return [
        [
            {"k": k, **_measured(scores, first, ""), **_measured(scores, random, "random_")}
            for k, first, random in points
        ]
        for points in curves
    ]


def _measured(scores: Scores, chosen: Sequence[int], prefix: str) -> dict[str, Any]:
    """Each metric, mean over these patches, with its bootstrap interval over rows."""
    correct, nll, confidence = ([of[i] for i in chosen] for of in (scores.correct, scores.nll, scores.confidence))
    pairs = [column for pair in zip(confidence, correct, strict=True) for column in pair]
    return {
        f"{prefix}accuracy": asdict(bootstrap(_mean_of(mean, 1), *correct)),
        f"{prefix}ece": asdict(bootstrap(_mean_of(ece, 2), *pairs)),
        f"{prefix}nll": asdict(bootstrap(_mean_of(mean, 1), *nll)),
    }


def _mean_of(statistic: Statistic, n: int) -> Statistic:
    """Of several times n columns, the mean of the statistic of each n."""

    def averaged(*columns: Array, counts: Array | None = None) -> Array:
        parts = [columns[i : i + n] for i in range(0, len(columns), n)]
        return np.asarray(np.mean([statistic(*part, counts=counts) for part in parts], axis=0))

    return averaged
