"""What every method computes on the same teacher-forced tokens, the gold responses of the test rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ia2.adapters import using
from ia2.capture import Site, places
from ia2.data import Example
from ia2.evaluation import Variant
from ia2.models import LanguageModel
from ia2.passes import passes
from ia2.progress import step
from ia2.statistics import Array
from ia2.task import Task

ROWS_AT_A_TIME = 64
Key = tuple[Site, str, str]  # a site, a reference, and what is compared with it


@dataclass(frozen=True)
class Activations:
    """What several variants compute on the same rows, in float32.

    Attributes:
        layers: by site, the decoder layers that have it, from 0.
        means: by variant and site, each row's mean over its response positions (N, L, D).
        gaps: by site, reference and variant, each row's distances (N, L), means over its response positions: `cosine`
            similarity in [-1, 1], `l2` norm of the difference, and `relative_l2`, that over the norm of the reference.
        cosines: likewise, of each row the mean cosine similarity over layers at each of its response positions (R,).
    """

    layers: dict[Site, tuple[int, ...]]
    means: dict[str, dict[Site, Tensor]]
    gaps: dict[Key, dict[str, Array]]
    cosines: dict[Key, list[Array]]


@torch.no_grad()
def read_activations(
    lm: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    variants: Sequence[Variant],
    sites: Collection[Site],
    references: Collection[str] = ("icl", "zero-shot"),
) -> Activations:
    """Read every variant on the gold responses of the examples.

    Row means are kept in memory: rows x layers x features of every site and variant; positions are not.

    Args:
        lm: with the adapters that the variants name loaded.
        task: how prompts look.
        examples: labelled.
        variants: what to read.
        sites: without `logits`.
        references: variants that each other one is compared with.
    """
    means: dict[str, dict[Site, list[Tensor]]] = {v.name: {site: [] for site in sites} for v in variants}
    gaps: dict[Key, list[dict[str, Array]]] = {}
    cosines: dict[Key, list[Array]] = {}
    with step("read activations", len(examples) * len(variants)) as advance:
        for start in range(0, len(examples), ROWS_AT_A_TIME):
            chunk = examples[start : start + ROWS_AT_A_TIME]
            acts: dict[str, dict[Site, list[Tensor]]] = {}
            for variant in variants:
                acts[variant.name] = read_rows(lm, task, chunk, variant, sites)
                advance(len(chunk), variant.name)
            for name, of in acts.items():
                for site, rows in of.items():
                    means[name][site] += [acts_RLD.mean(0).cpu() for acts_RLD in rows]
                    for reference in references:
                        if name != reference:
                            gap, cosine = _gaps(rows, acts[reference][site])
                            gaps.setdefault((site, reference, name), []).append(gap)
                            cosines.setdefault((site, reference, name), []).extend(cosine)
    return Activations(
        {site: tuple(places(lm.anatomy, site)) for site in sites},
        {name: {site: torch.stack(rows) for site, rows in of.items()} for name, of in means.items()},
        {key: {m: np.concatenate([part[m] for part in parts]) for m in parts[0]} for key, parts in gaps.items()},
        cosines,
    )


@torch.no_grad()
def read_rows(
    lm: LanguageModel, task: Task, examples: Sequence[Example], variant: Variant, sites: Collection[Site]
) -> dict[Site, list[Tensor]]:
    """By site, for each example what the variant computes on its gold response, (R, L, D) in float32."""
    rows = [lm.encoder.encode(variant.prompt(task, e, e.label)) for e in examples]
    found: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rows) for site in sites}
    with using(lm, variant.adapter):
        for chosen, _, values in passes(lm, rows, sites):
            sizes = [rows[i].n_response for i in chosen]
            for site, acts_PLD in values.items():
                for i, acts_RLD in zip(chosen, acts_PLD.float().split(sizes), strict=True):
                    found[site][i] = acts_RLD
    return found


def _gaps(rows: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[dict[str, Array], list[Array]]:
    """Each row's distances to the reference, (N, L), and its cosine similarities by position."""
    found: dict[str, list[Tensor]] = {"cosine": [], "l2": [], "relative_l2": []}
    cosines = []
    for a_RLD, b_RLD in zip(rows, reference, strict=True):
        l2_RL = (a_RLD - b_RLD).norm(dim=-1)
        cosine_RL = F.cosine_similarity(a_RLD, b_RLD, dim=-1)
        cosines.append(cosine_RL.mean(1).cpu().double().numpy())
        found["cosine"].append(cosine_RL.mean(0))
        found["l2"].append(l2_RL.mean(0))
        found["relative_l2"].append((l2_RL / b_RLD.norm(dim=-1)).mean(0))
    return {name: torch.stack(values).cpu().double().numpy() for name, values in found.items()}, cosines
