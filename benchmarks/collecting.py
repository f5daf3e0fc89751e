"""Collecting what the teacher does."""

from dataclasses import replace

import torch

from benchmarks.harness import Row, beside
from benchmarks.subject import ATTENTION, alike, examples, load, plain_collect, plain_generate, prompts
from ia2.contexts import Contexts
from ia2.evaluation import generate
from ia2.passes import batches, passes
from ia2.prompt import Tokens
from ia2.targets import collect
from ia2.task import Task


def run(quick: bool) -> list[Row]:
    """Beside the published procedure, a bare forward, and whole prompts."""
    lm, repeats = load(), 3 if quick else 7

    def ours() -> list[torch.Tensor]:
        return collect(lm, given, ATTENTION).values["attn_out"]

    def for_each_rate() -> list[torch.Tensor]:
        return [part for _ in range(3) for part in plain_collect(lm, rows)][: len(rows)]

    def bare() -> None:
        with torch.no_grad():
            for chosen in batches(rows):
                batch = lm.encoder.collate([rows[i] for i in chosen])
                lm.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    found = []
    train = examples("mood", 64)
    given = prompts("mood", train, Contexts(tuple(train)))
    rows = [lm.encoder.encode(prompt) for prompt in given]
    plain = "collect, one-token responses, N=64: beside a row at a time"
    found.append(beside(plain, ours, lambda: plain_collect(lm, rows), 4, repeats, alike))
    grid = "collect, one-token responses, N=64, for 3 learning rates: beside a row at a time, again for each"
    found.append(beside(grid, ours, for_each_rate, 4, repeats, alike))
    limit = "collect, one-token responses, N=64: beside a bare batched forward"
    found.append(beside(limit, ours, bare, 1.15, repeats, higher_is_better=False))

    train = examples("mood", 16 + 128)
    given = prompts("mood", train[16:], Contexts(tuple(train[:16]), "fixed"))
    rows = [lm.encoder.encode(prompt) for prompt in given]
    whole = "collect, 128 queries behind the same 16 demos: beside whole prompts, batched"
    found.append(beside(whole, ours, bare, 5, repeats))
    one = "collect, 128 queries behind the same 16 demos: beside whole prompts, a row at a time"
    found.append(beside(one, ours, lambda: plain_collect(lm, rows), 5, repeats, alike))

    train = examples("mood", 16)
    unending = Task(None, separator="~", max_new_tokens=200)
    asked = [replace(prompt, response="") for prompt in prompts("mood", train, Contexts(tuple(train)))]
    rows = [lm.encoder.encode(prompt) for prompt in asked]

    def generated() -> list[torch.Tensor]:
        texts = zip(rows, generate(lm, rows, unending), strict=True)
        written = [Tokens((*row.ids, *new), len(new), row.n_query) for row, new in texts]
        found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        with torch.no_grad():
            for chosen, _, values in passes(lm, written, ATTENTION.sites):
                parts = values["attn_out"].split([written[i].n_response for i in chosen])
                for i, part in zip(chosen, parts, strict=True):
                    found[i] = part
        return found

    name = "collect, generated responses of 200 tokens, N=16: beside a full forward for each token"
    found.append(beside(name, generated, lambda: plain_generate(lm, rows, 200), 20, 3, alike))
    return found
