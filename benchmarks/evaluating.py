"""ICL with shared demos beside whole prompts."""

import torch

from benchmarks.harness import Row, beside
from benchmarks.subject import examples, load, task
from ia2.capture import read
from ia2.contexts import Contexts
from ia2.evaluation import Variant, label_logps
from ia2.passes import batches

N_DEMOS, N_QUERIES = 16, 500


def run(quick: bool) -> list[Row]:
    """Log-probabilities of the labels."""
    lm, of = load(), task("mood")
    labels = of.labels or ()
    rows = examples("mood", N_DEMOS + N_QUERIES)
    icl = Variant("icl", Contexts(tuple(rows[:N_DEMOS]), "fixed"))
    queries = [icl.prompt(of, row) for row in rows[N_DEMOS:]]
    encoded = [lm.encoder.encode(icl.prompt(of, row, labels[0])) for row in rows[N_DEMOS:]]
    ids = [lm.encoder.piece(label)[0] for label in labels]

    @torch.no_grad()
    def whole() -> torch.Tensor:
        logp = torch.empty(len(encoded), len(labels))
        for chosen in batches(encoded):
            batch = lm.encoder.collate([encoded[i] for i in chosen])
            logp[chosen] = read(lm.model, lm.anatomy, batch, {"logits"})["logits"].log_softmax(-1)[:, ids]
        return logp

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return label_logps(lm, labels, queries)

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return torch.allclose(a, b, atol=1e-4)

    name = f"ICL, {N_QUERIES} queries behind {N_DEMOS} shared demos: beside whole prompts"
    return [beside(name, ours, whole, 5, 2 if quick else 5, same)]
