"""Collecting what the teacher does."""

import torch

from benchmarks.harness import Row, beside
from benchmarks.subject import ATTENTION, alike, examples, load, plain_collect, prompts
from ia2.contexts import Contexts
from ia2.passes import batches
from ia2.targets import collect


def run(quick: bool) -> list[Row]:
    """Beside the published procedure, a bare forward, and whole prompts."""
    lm, repeats = load(), 3 if quick else 7

    def ours() -> list[torch.Tensor]:
        return collect(lm, given, ATTENTION).values["attn_out"]

    def bare() -> None:
        with torch.no_grad():
            for chosen in batches(rows):
                batch = lm.encoder.collate([rows[i] for i in chosen])
                lm.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    found = []
    train = examples("mood", 64)
    given = prompts("mood", train, Contexts(tuple(train[:16])))
    rows = [lm.encoder.encode(prompt) for prompt in given]
    plain = "collect, one-token responses, N=64: beside a row at a time"
    found.append(beside(plain, ours, lambda: plain_collect(lm, rows), 4, repeats, alike))
    limit = "collect, one-token responses, N=64: beside a bare batched forward"
    found.append(beside(limit, ours, bare, 1.15, repeats, higher_is_better=False))

    train = examples("mood", 16 + 128)
    given = prompts("mood", train[16:], Contexts(tuple(train[:16]), "fixed"))
    rows = [lm.encoder.encode(prompt) for prompt in given]
    whole = "collect, 128 queries behind the same 16 demos: beside whole prompts, batched"
    found.append(beside(whole, ours, bare, 5, repeats))
    one = "collect, 128 queries behind the same 16 demos: beside whole prompts, a row at a time"
    found.append(beside(one, ours, lambda: plain_collect(lm, rows), 5, repeats, alike))

    train = examples("sum-mood-food", 8)
    given = prompts("sum-mood-food", train, Contexts(tuple(train)))
    rows = [lm.encoder.encode(prompt) for prompt in given]
    longest = max(row.n_response for row in rows)
    name = f"collect, generated responses (up to {longest} tokens): beside a full forward for each token"
    found.append(beside(name, ours, lambda: plain_collect(lm, rows, each_token=True), 20, repeats, alike))
    return found
