"""How well running text is read before training and after: what general ability is lost."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ia2.adapters import using
from ia2.analysis.forgetting import BEFORE, MIN_ROWS
from ia2.data import column, read_rows, text_of
from ia2.errors import IA2Error
from ia2.evaluation import Variant
from ia2.models import LanguageModel
from ia2.passes import passes
from ia2.progress import step
from ia2.prompt import Tokens
from ia2.statistics import Array, bootstrap, mean, paired
from ia2.world.curriculum import passages

WORLD, N_PASSAGES = "world", 200
MAX_TOKENS, TOKENS_PER_BATCH = 512, 2048  # logits of every token are held


class Passage(NamedTuple):
    """A text of which the end is scored; all of it, but for its first token, where nothing is before."""

    before: str
    scored: str


def read_texts(name: str) -> list[Passage]:
    """The paragraphs of a `.txt` file, the column `text` of a file of rows, or `world`.

    `world` are 200 sequences as the embedded models met in pretraining, drawn anew, each with its last response scored:
    in them nothing else was learnt.

    Raises:
        IA2Error: no such file, no such column, or fewer than 16 texts.
    """
    if name == WORLD:
        return [Passage(*of) for of in passages(N_PASSAGES)]
    if Path(name).suffix == ".txt":
        try:
            parts = re.split(r"\n\s*\n", Path(name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise IA2Error(f"{name}: cannot be read as UTF-8 text: {error}") from None
        texts = [part.strip() for part in parts if part.strip()]
    else:
        texts = [text_of(column(row, "text"), "'text'", row.where) for row in read_rows(name)]
    if len(texts) < MIN_ROWS:
        raise IA2Error(f"{name}: found {len(texts)} texts; expected {MIN_ROWS} or more; in a .txt, by blank lines")
    return [Passage("", text) for text in texts]


def perplexities(lm: LanguageModel, texts: Sequence[Passage], adapters: Sequence[Variant]) -> dict[str, Any]:
    """Read texts, at most 512 tokens of each, without an adapter (`before`) and with each.

    Returns:
        `n` texts and `n_tokens` scored; `methods`, by name `nll` (nats, mean over tokens of all texts) and `perplexity`
        (exp of that); `differences` of the NLL from `before`, paired; with bootstrap intervals over texts.
    """
    rows = [_tokens(lm, text) for text in texts]
    n = np.array([row.n_response for row in rows], float)
    found: dict[str, Any] = {"n": len(rows), "n_tokens": int(n.sum()), "methods": {}, "differences": {}}
    sums: dict[str, Array] = {}
    with step("texts", 1 + len(adapters)) as advance:
        for variant in (Variant(BEFORE), *adapters):
            sums[variant.name] = _nll(lm, rows, variant)
            nll = asdict(bootstrap(per_token, sums[variant.name], n))
            perplexity = {end: math.exp(value) for end, value in nll.items()}
            found["methods"][variant.name] = {"nll": nll, "perplexity": perplexity}
            advance(1, variant.name)
    for variant in adapters:
        gap, columns = paired(per_token, [sums[variant.name], n], [sums[BEFORE], n])
        found["differences"][f"{variant.name} - {BEFORE}"] = {"nll": asdict(bootstrap(gap, *columns))}
    return found


def _tokens(lm: LanguageModel, text: Passage) -> Tokens:
    before, scored = lm.encoder.piece(text.before) if text.before else [], lm.encoder.piece(text.scored)
    before = [*lm.encoder.bos, *before] or scored[:1]
    scored = scored if text.before or lm.encoder.bos else scored[1:]
    ids = [*before, *scored][: min(lm.encoder.max_length, MAX_TOKENS)]
    return Tokens(tuple(ids), max(0, len(ids) - len(before)), 0)


@torch.no_grad()
def _nll(lm: LanguageModel, rows: Sequence[Tokens], variant: Variant) -> Array:
    """Of each row, summed over its scored tokens. (N,)"""
    found = np.zeros(len(rows))
    with using(lm, variant.adapter):
        for chosen, batch, values in passes(lm, rows, {"logits"}, max_tokens=TOKENS_PER_BATCH):
            logp_PV = values["logits"].float().log_softmax(-1)
            logp_P = logp_PV.gather(1, batch.response_ids[:, None])[:, 0].cpu().double()
            parts = logp_P.split([rows[i].n_response for i in chosen])
            found[chosen] = [-part.sum().item() for part in parts]
    return found


def per_token(nll_N: Array, n_N: Array, *, counts: Array | None = None) -> Array:
    """Mean over the tokens of all texts, from sums over those of each."""
    return np.asarray(mean(nll_N, counts=counts) / mean(n_N, counts=counts))
