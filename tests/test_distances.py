"""Distances of activations: against naive ones, and where the answer is known."""

import sys
from dataclasses import astuple, dataclass
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import GENERATED, LABELS, reasoned_rows

from ia2 import world
from ia2.analysis import Activations, distances, read_activations
from ia2.analysis.distances import SITES, cka, cka_intervals, gram, hsic
from ia2.capture import read
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.evaluation import Variant
from ia2.models import LanguageModel, load_model
from ia2.prompt import Prompt
from ia2.statistics import Array, bootstrap
from ia2.task import Task

ROWS = reasoned_rows(20)
ICL, ZERO = Variant("icl", Contexts(tuple(ROWS[:4]))), Variant("zero-shot")


def read_all(lm: LanguageModel, *variants: Variant) -> Activations:
    return read_activations(lm, GENERATED, ROWS[4:], [ZERO, ICL, *variants], SITES)


@torch.no_grad()
def test_distances_are_those_of_rows_read_one_by_one(any_lm: LanguageModel) -> None:
    lm = any_lm
    acts, n = read_all(lm), 3
    for i, example in enumerate(ROWS[4 : 4 + n]):
        values = []
        for variant in (ZERO, ICL):
            row = lm.encoder.encode(variant.prompt(GENERATED, example, example.label))
            values.append(read(lm.base, lm.anatomy, lm.encoder.collate([row]), SITES))
        for site in SITES:
            a_RLD, b_RLD = (of[site].double().numpy() for of in values)
            l2 = np.sqrt(((a_RLD - b_RLD) ** 2).sum(-1))
            size_a, size_b = np.sqrt((a_RLD**2).sum(-1)), np.sqrt((b_RLD**2).sum(-1))
            gaps = acts.gaps[site, "icl", "zero-shot"]
            assert gaps["cosine"][i] == pytest.approx(((a_RLD * b_RLD).sum(-1) / size_a / size_b).mean(0), abs=1e-4)
            assert gaps["l2"][i] == pytest.approx(l2.mean(0), rel=1e-3)
            assert gaps["relative_l2"][i] == pytest.approx((l2 / size_b).mean(0), rel=1e-3)
            assert acts.means["icl"][site][i].numpy() == pytest.approx(b_RLD.mean(0), rel=1e-3, abs=1e-4)


def test_similarity_by_position_is_over_the_rows_that_have_it(lm: LanguageModel) -> None:
    acts = read_all(lm)
    lengths = [len(cosine_R) for cosine_R in acts.cosines["hidden", "icl", "zero-shot"]]
    assert len(set(lengths)) > 1
    gaps_NL = acts.gaps["hidden", "icl", "zero-shot"]["cosine"]
    means = [cosine_R.mean() for cosine_R in acts.cosines["hidden", "icl", "zero-shot"]]
    assert means == pytest.approx(gaps_NL.mean(1), abs=1e-5)
    found = distances(acts)["hidden"]["icl"]["zero-shot"]["by_position"]
    assert len(found) == max(r for r in range(99) if sum(n >= r for n in lengths) >= 16)
    first = [cosine_R[1] for cosine_R in acts.cosines["hidden", "icl", "zero-shot"]]
    assert found[1]["value"] == pytest.approx(np.mean(first))


def test_identical_models_have_no_distance(lm: LanguageModel) -> None:
    found = distances(read_all(lm, Variant("twin")))
    for site in SITES:
        assert found[site]["layers"] == [0, 1, 2]
        twin, other = found[site]["zero-shot"]["twin"], found[site]["zero-shot"]["icl"]
        for metric, same in (("cosine", 1.0), ("l2", 0.0), ("relative_l2", 0.0), ("cka", 1.0)):
            for interval in twin[metric]:
                assert list(interval.values()) == pytest.approx([same] * 3, abs=1e-5)
            assert all(abs(interval["value"] - same) > 1e-3 for interval in other[metric])
        assert found[site]["icl"]["twin"]["cosine"] == found[site]["icl"]["zero-shot"]["cosine"]
        values = [interval["value"] for interval in other["l2"]]
        assert other["mean"]["l2"]["value"] == pytest.approx(np.mean(values))


@dataclass(frozen=True)
class Shuffled(Variant):
    """Shows each query's response behind another query."""

    rows: tuple[Example, ...] = ()

    def prompt(self, task: Task, example: Example, response: str | None = None) -> Prompt:
        return super().prompt(task, self.rows[(self.rows.index(example) + 5) % len(self.rows)], response)


def test_a_teacher_of_other_rows_is_less_similar() -> None:
    lm = load_model("tiny", device="cpu")
    demos, rows = (
        tuple(Example(**r) for r in world.TASKS["mood"].rows(*of)) for of in ((8, 0, "train"), (60, 0, "test"))
    )
    contexts = Contexts(demos)
    icl, again = (Variant(name, contexts, seed=seed) for seed, name in enumerate(("icl", "again")))
    variants = [icl, again, Shuffled("shuffled", contexts, seed=1, rows=rows)]
    found = distances(read_activations(lm, LABELS, rows, variants, ("hidden",), ("icl",)))["hidden"]["icl"]
    assert found["shuffled"]["mean"]["cosine"]["high"] < found["again"]["mean"]["cosine"]["low"]
    for own, shuffled in list(zip(found["again"]["cka"], found["shuffled"]["cka"], strict=True))[1:]:
        assert own["low"] > 0.7  # but for the first layer, where demos leave next to nothing of the query
        assert shuffled["value"] < 0.2


def test_cka_is_the_mean_over_different_rows() -> None:
    rng = np.random.default_rng(0)
    a, b = (gram(rng.normal(size=(6, 3))) for _ in range(2))
    counts = np.array([1.0, 2.0, 0.0, 1.0, 3.0, 1.0])
    for n_times in (np.ones(6), counts):

        def naive(a: np.ndarray, b: np.ndarray, n_times: np.ndarray = n_times) -> float:
            def average(n: int, term: object) -> float:
                weights, values = [], []
                for rows in permutations(range(6), n):
                    weights.append(np.prod(n_times[list(rows)]))
                    values.append(term(*rows))  # type: ignore[operator]
                return float(np.average(values, weights=weights))

            pairs = average(2, lambda i, j: a[i, j] * b[i, j])
            triples = average(3, lambda i, j, k: a[i, j] * b[i, k])
            return pairs - 2 * triples + average(4, lambda i, j, k, m: a[i, j] * b[k, m])

        expected = naive(a, b) / np.sqrt(naive(a, a) * naive(b, b))
        assert cka(a, b, counts=n_times) == pytest.approx(expected)
    assert cka(a, b, counts=np.stack([np.ones(6), counts])) == pytest.approx(np.array([cka(a, b), expected]))


def test_cka_does_not_see_rotations_and_factors_and_is_zero_for_what_is_unrelated() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 16))
    rotation, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    assert cka(gram(x), gram(3 * x @ rotation + 1)) == pytest.approx(1)
    unrelated = [float(cka(gram(rng.normal(size=(20, 64))), gram(rng.normal(size=(20, 64))))) for _ in range(200)]
    assert abs(np.mean(unrelated)) < 0.02  # the usual estimate would be near 0.77
    assert cka(gram(x), gram(np.ones((40, 16)))) == 0
    half = np.concatenate([x[:, :8], rng.normal(size=(40, 8))], 1)
    interval = bootstrap(cka, gram(x), gram(half))
    assert 0 < interval.low < interval.value < interval.high < 1


def test_cka_of_many_pairs_is_that_of_each_and_what_is_of_one_set_is_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    grams = {name: gram(rng.normal(size=(20, 4)) + k) for k, name in enumerate("abcd")}
    alone: list[str] = []

    def counted(a: Array, b: Array, counts: Array) -> Array:
        alone.extend(name for name, of in grams.items() if a is b is of and len(counts) == 1)
        return hsic(a, b, counts)

    monkeypatch.setattr(sys.modules["ia2.analysis.distances"], "hsic", counted)
    found = cka_intervals(grams, [("a", "b"), ("b", "a"), ("a", "c"), ("a", "d")])
    assert alone == ["a", "b", "c", "d"]
    for (a, b), interval in found.items():
        expected = bootstrap(cka, grams[a], grams[b])
        assert astuple(interval) == pytest.approx(astuple(expected))


def test_too_few_rows_are_refused(lm: LanguageModel) -> None:
    with pytest.raises(IA2Error, match="found 15 test rows; expected at least 16"):
        distances(read_activations(lm, GENERATED, ROWS[:15], [ZERO, ICL], ("hidden",)))
