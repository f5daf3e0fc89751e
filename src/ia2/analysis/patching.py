"""Which attention heads matter: put what they do in ICL in their place, at the response positions, and look again."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ia2.adapters import using
from ia2.analysis.activations import ROWS_AT_A_TIME, read_rows
from ia2.anatomy import Anatomy
from ia2.capture import places, read
from ia2.data import Example
from ia2.evaluation import Variant
from ia2.models import LanguageModel
from ia2.passes import batches
from ia2.progress import step
from ia2.prompt import Prompt, TokenBatch, Tokens
from ia2.statistics import Array, bootstrap, mean
from ia2.task import Task

Head = tuple[int, int]  # its decoder layer, and its number in it, from 0
N_RANDOM = 3


@contextmanager
def patched(
    anatomy: Anatomy, heads: Collection[Head], n_heads: int, batch: TokenBatch, values_PLD: Tensor
) -> Iterator[None]:
    """Within the block, these heads give the output projection other values at the batch's aligned positions.

    Args:
        anatomy: of the model.
        heads: which.
        n_heads: of a layer.
        batch: the one that runs within the block.
        values_PLD: the site `head_out`, of all layers that have it: L of them, D the heads side by side.
    """
    of_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        of_layer.setdefault(layer, []).append(head)

    def put(values_PD: Tensor, chosen: list[int], args: tuple[Any, ...]) -> tuple[Any, ...]:
        changed_BTD = args[0].clone()
        own_BTD = changed_BTD[:, changed_BTD.shape[1] - batch.input_ids.shape[1] :]  # behind virtual tokens
        acts_PHW = own_BTD[batch.aligned_mask].unflatten(-1, (n_heads, -1))
        acts_PHW[:, chosen] = values_PD.to(acts_PHW).unflatten(-1, (n_heads, -1))[:, chosen]
        own_BTD[batch.aligned_mask] = acts_PHW.flatten(1)
        return (changed_BTD, *args[1:])

    def watch(module: nn.Module, values_PD: Tensor, chosen: list[int]) -> Any:
        return module.register_forward_pre_hook(lambda module, args: put(values_PD, chosen, args))

    with ExitStack() as hooks:
        for i, (layer, path) in enumerate(places(anatomy, "head_out").items()):
            if layer in of_layer:
                handle = watch(anatomy.base.get_submodule(path), values_PLD[:, i], of_layer[layer])
                hooks.callback(handle.remove)
        yield


@torch.no_grad()
def patched_scores(
    lm: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    variant: Variant,
    source: Variant,
    sets: Sequence[Collection[Head]],
    n_heads: int,
) -> tuple[Array, Array]:
    """Whether a variant is right, and its NLL, where sets of heads do what they do in `source`, ICL; (S, N) both.

    With labels, among these, NLL in nats; else right is where each token of the gold response is the most probable, and
    NLL a mean over these tokens. All teacher-forced: heads do what they do on the very same response.
    """
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in sets]
    ids = _label_ids(lm, task, variant.prompt(task, examples[0]))
    with step(f"patch {variant.name}", len(sets) * len(examples)) as advance:
        for start in range(0, len(examples), ROWS_AT_A_TIME):
            chunk = examples[start : start + ROWS_AT_A_TIME]
            texts = task.labels[:1] if task.labels and ids else task.labels
            answered = [replace(e, response=text) for e in chunk for text in texts or (e.label,)]
            values = read_rows(lm, task, answered, source, {"head_out"})["head_out"]
            rows = [lm.encoder.encode(variant.prompt(task, e, e.label)) for e in answered]
            for scores, heads in zip(found, sets, strict=True):
                with using(lm, variant.adapter):
                    logps, greedy = _forced(lm, rows, values, heads, n_heads, ids)
                scores.append(_among_labels(task, chunk, logps) if task.labels else _of_tokens(logps, greedy))
                advance(len(chunk))
    correct, nll = (
        np.stack([torch.cat([part[i] for part in parts]).double().cpu().numpy() for parts in found]) for i in (0, 1)
    )
    return correct, nll


def _label_ids(lm: LanguageModel, task: Task, prompt: Prompt) -> list[int]:
    """The token of each label, where all are of one token behind this prompt: then one row tells of all; else none."""
    rows = [lm.encoder.encode(replace(prompt, response=task.completion(label))) for label in task.labels or ()]
    return [row.ids[-1] for row in rows] if all(row.n_response == 1 for row in rows) else []


def _forced(
    lm: LanguageModel,
    rows: Sequence[Tokens],
    values: Sequence[Tensor],
    heads: Collection[Head],
    n_heads: int,
    label_ids: Sequence[int],
) -> tuple[list[Tensor], list[bool]]:
    """Log-probabilities of each row's response tokens (R,), or of the labels (C,); and whether greedy says them."""
    logps, greedy = [torch.empty(0)] * len(rows), [False] * len(rows)
    for chosen in batches(rows):
        batch = lm.encoder.collate([rows[i] for i in chosen]).to(lm.device)
        with patched(lm.anatomy, heads, n_heads, batch, torch.cat([values[i] for i in chosen])):
            logp_PV = read(lm.model, lm.anatomy, batch, {"logits"})["logits"].float().log_softmax(-1)
        logp_P = logp_PV.gather(1, batch.response_ids[:, None])[:, 0]
        best_P = logp_P > logp_PV.scatter(1, batch.response_ids[:, None], -torch.inf).max(-1).values
        sizes = [rows[i].n_response for i in chosen]
        parts = logp_PV[:, label_ids] if label_ids else logp_P.split(sizes)
        for i, logp, best_R in zip(chosen, parts, best_P.split(sizes), strict=True):
            logps[i], greedy[i] = logp, bool(best_R.all())
    return logps, greedy


def _among_labels(task: Task, examples: Sequence[Example], logps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Whether the gold label is the most probable one, and its NLL among them; (N,) both.

    `logps` are of the labels (C,), one an example, or of the tokens of each label, label by label.
    """
    labels = task.labels or ()
    if len(logps) > len(examples):
        logps = [logp_R.mean() if task.length_normalised else logp_R.sum() for logp_R in logps]
    logp_NC = torch.stack(list(logps)).view(len(examples), len(labels)).log_softmax(-1)
    gold_N1 = torch.tensor([[labels.index(example.label)] for example in examples], device=logp_NC.device)
    logp_N = logp_NC.gather(1, gold_N1)[:, 0]
    return logp_N > logp_NC.scatter(1, gold_N1, -torch.inf).max(-1).values, -logp_N


def _of_tokens(logps: Sequence[Tensor], greedy: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Whether each token of the gold response is the most probable one, and their mean NLL; (N,) both."""
    return torch.tensor(greedy), -torch.stack([logp_R.mean() for logp_R in logps])


def patch_curve(
    lm: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    variant: Variant,
    source: Variant,
    order: Sequence[Head],
    n_heads: int,
) -> list[dict[str, Any]]:
    """Accuracy and NLL with the first k heads of an order patched, and with k random ones; k = 0, 1, 2, 4, ..., all.

    Each with its bootstrap interval over rows; of random ones, the mean over three draws of heads.
    """
    rng = np.random.default_rng(0)
    sizes = [0, *(2**i for i in range(len(order).bit_length()) if 2**i < len(order)), len(order)]
    inner = sizes[1:-1]
    draws = [[order[i] for i in rng.permutation(len(order))[:k]] for k in inner for _ in range(N_RANDOM)]
    correct, nll = patched_scores(lm, task, examples, variant, source, [*(order[:k] for k in sizes), *draws], n_heads)
    found = []
    for name, of_SN in (("accuracy", correct), ("nll", nll)):
        first, random = of_SN[: len(sizes)], of_SN[len(sizes) :].reshape(len(inner), N_RANDOM, len(examples)).mean(1)
        found.append((name, first, np.concatenate([first[:1], random, first[-1:]])))
    return [
        {
            "k": k,
            **{name: asdict(bootstrap(mean, first[i])) for name, first, _ in found},
            **{f"random_{name}": asdict(bootstrap(mean, random[i])) for name, _, random in found},
        }
        for i, k in enumerate(sizes)
    ]
