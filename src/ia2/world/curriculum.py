"""What the models meet in pretraining, and in which order.

Learning in context does not appear by itself: on the last phase alone, the loss stays at "count the votes of all
words". Three things get past that plateau: *named* sequences, where every cue names the attribute (they teach the
words); *hinted* ones, where one cue in four does (they teach to carry the task from any demo to the next query); and
few words first. What joins later joins with a weight that grows: at full weight it wipes out what has been learnt.
Multiple choice, whose answer stands far behind its text, begins with none or one of its options listed, hence nearer.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ia2.world.text import (
    CUE0,
    ID,
    KNOWN_OPTIONS,
    KNOWN_PAIRS,
    KNOWN_SUMS,
    LABEL0,
    ZERO,
    Bools,
    Ints,
    choice_samples,
    decode,
    draw_words,
    join,
    label_samples,
    sum_samples,
)
from ia2.world.words import N_USED, N_WORDS

LONGEST = 1000  # tokens
LENGTH = {"label": 4, "words": 4, "choice": 5, "sum": 9}  # tokens of a sample beside its words and options
WINDOW = 20  # batches over which a gate looks


@dataclass(frozen=True)
class Part:
    """Sequences of one family in a phase: labels 0 and 1, label words, multiple choice, or sums.

    Attributes:
        n_words: words in a text; one of these numbers is drawn for a batch.
        K: samples in a sequence.
        tokens: in a batch, about.
        named: share of sequences in which every cue names the attribute.
        hinted: share in which one cue in four does.
        per_class: how many words of a class are in use; one of these is drawn for a sequence.
        active: how many attributes are in use.
        listed: options that a multiple choice lists; one of these numbers is drawn for a batch. The fewer, the nearer
            is an answer to its text.
        weight: of the loss; reached over `ramp` steps, from 1/100 of it.
    """

    family: str
    n_words: tuple[int, ...]
    K: int
    tokens: int
    named: float = 0.0
    hinted: float = 0.0
    per_class: tuple[int, ...] = (N_USED,)
    active: int = 8
    listed: tuple[int, ...] = (2,)
    weight: float = 1.0
    ramp: int = 0


@dataclass(frozen=True)
class Phase:
    """Parts that are met together, for so many steps, or until late accuracy on the longest plain labels passes `gate`.

    Attributes:
        last: whether labels are noisy in half of the sequences, their sign is always free, some sequences are long, and
            learning rates fall.
    """

    name: str
    parts: tuple[Part, ...]
    gate: float | None = None
    steps: int = 0
    last: bool = False


SHORT = (1, 2, 2)
CURRICULUM = (
    Phase("1 word", (Part("label", (1,), 16, 2400, 0.3, 0.3, per_class=(4,)),), gate=0.95),
    Phase("2 attributes", (Part("label", SHORT, 16, 2400, 0.35, 0.35, per_class=(4,), active=2),), gate=0.90),
    Phase("4 attributes", (Part("label", SHORT, 20, 3200, 0.3, 0.3, per_class=(4,), active=4),), gate=0.86),
    Phase("8 attributes", (Part("label", SHORT, 20, 3600, 0.25, 0.25, per_class=(4,)),), gate=0.84),
    Phase("more words", (Part("label", SHORT, 20, 3600, 0.25, 0.25, per_class=(4, 4, N_USED)),), gate=0.82),
    Phase("all words", (Part("label", SHORT, 20, 3600, 0.25, 0.25),), gate=0.84),
    Phase(
        "label words and choices",
        (
            Part("label", SHORT, 20, 1800, 0.2, 0.2),
            Part("words", (1, 1, 2), 16, 1100, 0.2, 0.3, per_class=(4, N_USED), weight=0.5, ramp=60),
            Part("choice", (1,), 16, 1600, 0.3, 0.3, per_class=(4,), listed=(0, 0, 1, 2), weight=0.7, ramp=60),
        ),
        steps=450,
    ),
    Phase(
        "choices of all words, and sums",
        (
            Part("label", SHORT, 20, 1500, 0.15, 0.2),
            Part("words", SHORT, 20, 900, hinted=0.3, weight=0.5),
            Part("choice", (1, 1, 2), 16, 1800, 0.1, 0.3, per_class=(4, N_USED, N_USED), listed=(0, 1, 2)),
            Part("sum", (2,), 12, 700, ramp=100),
        ),
        steps=300,
    ),
    Phase(
        "3 words",
        (
            Part("label", (2, 3, 3), 24, 2000, 0.12, 0.2),
            Part("words", SHORT, 20, 900, hinted=0.3, weight=0.5),
            Part("choice", SHORT, 20, 1500, hinted=0.3, listed=(0, 1, 2, 2)),
            Part("sum", (2, 3), 12, 700),
        ),
        steps=200,
    ),
    Phase(
        "last",
        (
            Part("label", (1, 2, 3, 3, 4), 24, 2000, 0.08, 0.12),
            Part("words", (1, 2, 2, 3), 24, 900, hinted=0.15, weight=0.5),
            Part("choice", SHORT, 20, 1300, hinted=0.2, listed=(1, 2, 2), weight=0.7),
            Part("sum", (2, 3, 3), 16, 700),
        ),
        steps=2000,
        last=True,
    ),
)


@dataclass
class Place:
    """Where a run stands: all of it that is not weights or optimiser state; plain JSON."""

    step: int = 0
    phase: int = 0
    since: int = 0  # steps in this phase
    late: list[float] = field(default_factory=list)
    passed: list[dict[str, Any]] = field(default_factory=list)

    def advance(self, curriculum: tuple[Phase, ...], late: float | None) -> None:
        """One step is done; `late` is its late accuracy on the longest plain labels, if it had any."""
        phase = curriculum[self.phase]
        self.step, self.since = self.step + 1, self.since + 1
        self.late = [*self.late, *([] if late is None else [late])][-WINDOW:]
        through = len(self.late) == WINDOW and float(np.mean(self.late)) > phase.gate if phase.gate else False
        if through or (not phase.gate and self.since == phase.steps):
            self.passed.append({"phase": phase.name, "step": self.step})
            self.phase, self.since, self.late = self.phase + 1, 0, []

    def rate(self, curriculum: tuple[Phase, ...]) -> float:
        """The factor of the learning rates: a short warm-up, then level, then down over the last phase."""
        phase = curriculum[self.phase]
        left = 1 - self.since / phase.steps if phase.last else 1.0
        return min(1.0, (self.step + 1) / 50) * max(0.01, left)

    def weight(self, part: Part) -> float:
        """Of a part's loss."""
        return part.weight * float(0.01 ** max(0.0, 1 - self.since / part.ramp)) if part.ramp else part.weight


@dataclass(frozen=True)
class Batch:
    """Sequences of one family: ids (B, T), places of responses and STOPs (K, R+1), and those without any hint (B,).

    The first answer of a sequence can only be guessed: it counts `first` times as much as another.
    """

    ids: Ints
    places: Ints
    plain: Bools
    longest: bool
    first: float


def draw_batch(rng: np.random.Generator, part: Part, last: bool = False) -> Batch:
    """One batch of a part; in the last phase one in ten is long, and half of the sequences have some wrong labels."""
    S = int(rng.choice(part.n_words))
    listed = int(rng.choice(part.listed)) if part.family == "choice" else 0
    length = S + LENGTH[part.family] + 2 * listed
    K = LONGEST // length if last and rng.random() < 0.1 else part.K
    B = max(2, part.tokens // (K * length))
    first = 1.0 if last else 0.3
    if part.family == "sum":
        pair = np.broadcast_to(KNOWN_SUMS[rng.integers(0, len(KNOWN_SUMS), B)][:, None], (B, K, 2))
        words, attributes, classes = draw_words(rng, pair, S)
        ids, places = join(sum_samples(words, attributes, classes ^ rng.integers(0, 2, (B, 1, 1)), pair))
        return Batch(ids, places, np.ones(B, bool), False, first)
    kind = rng.random(B)
    named, hinted = kind < part.named, (kind >= part.named) & (kind < part.named + part.hinted)
    hint = named[:, None] | (hinted[:, None] & (rng.random((B, K)) < 0.25))
    attribute = np.broadcast_to(rng.integers(0, part.active, (B, 1)), (B, K))
    n_words: Ints = rng.choice(np.array(part.per_class), (B, 1))
    n_words = np.where(named[:, None] & (n_words == N_USED), N_WORDS, n_words)  # held-out words are met when named
    words, _, classes = draw_words(rng, attribute[..., None], S, high=n_words, active=part.active)
    sign: Ints = np.where(named & (not last), 0, rng.integers(0, 2, B))
    value = np.take_along_axis(classes, attribute[..., None], -1)[..., 0] ^ sign[:, None]
    if last:
        p_wrong = np.where(rng.random(B) < 0.5, 0.1, 0.0)
        value = np.where(rng.random((B, K)) < p_wrong[:, None], 1 - value, value)
    if part.family == "choice":
        options = rng.permuted(KNOWN_OPTIONS[rng.integers(0, len(KNOWN_OPTIONS), B)], axis=-1)
        cue = np.where(hint, CUE0 + attribute, ID["\n\nAnswer:"])
        samples = choice_samples(words, options, cue, value, listed)
    else:
        pairs = LABEL0 + rng.permuted(KNOWN_PAIRS[rng.integers(0, len(KNOWN_PAIRS), B)], axis=-1)
        pairs = pairs if part.family == "words" else np.broadcast_to([ZERO, ZERO + 1], (B, 2))
        cue = np.where(hint, CUE0 + attribute, ID["\nLabel:"])
        samples = label_samples(words, cue, np.take_along_axis(pairs, value, -1))
    ids, places = join(samples)
    return Batch(ids, places, ~(named | hinted), max(part.n_words) == S, first)


def passages(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sequences as in the last phase, of all its families, that pretraining did not draw; without wrong labels.

    Each as its text up to the last response, and that response.
    """
    rng, found = np.random.default_rng([seed, len(CURRICULUM), n]), list[tuple[str, str]]()
    while len(found) < n:
        for part in CURRICULUM[-1].parts:
            batch = draw_batch(rng, part)
            start, end = batch.places[-1, 0], batch.places[-1, -1]
            found += [(decode(ids[1:start]), decode(ids[start:end])) for ids in batch.ids]
    return found[:n]
