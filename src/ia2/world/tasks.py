"""The tasks of the world, named and described like benchmarks; their rows are drawn, as many as wanted."""

import zlib
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from ia2.world.text import ID, Samples, choice_samples, decode, draw_words, label_samples, sum_samples
from ia2.world.words import ATTRIBUTES, CLASS_NAMES, HELD_OUT_PAIRS, N_USED, N_WORDS, OPTION_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

SPLITS = {"train": (0, 1), "dev": (2,), "test": (3,)}  # a query belongs to a split by its hash, modulo 4
_CHUNK = 64


@dataclass(frozen=True)
class WorldTask:
    """A task whose rows are drawn from the world.

    Attributes:
        labels: the possible responses; None if the response is a derivation that ends in `#### answer`.
        ood_of: the task that this one is the out-of-distribution sister of.
        held_out: whether its label words, summed attributes or words never occurred so in pretraining.
        kind: what a sample looks like: a labelled text, a multiple choice, or a sum over two words.
        rule: the deciding attributes (label: one, sum: two), or the class that the right option holds (choice).
        n_words: words in a text, or in each option of a choice.
        n_options: options of a choice.
        inverted: whether the first class has the second label.
        rare: whether all words are held-out ones.
    """

    name: str
    description: str
    labels: tuple[str, ...] | None
    kind: Literal["label", "choice", "sum"]
    rule: tuple[int, ...]
    n_words: int
    n_options: int = 0
    inverted: bool = False
    rare: bool = False
    ood_of: str | None = None
    held_out: bool = False

    def rows(self, n: int, seed: int, split: str = "train") -> list[dict[str, str]]:
        """The first n rows, `{"query": ..., "response": ...}`, of an endless stream that (task, seed, split) determine.

        No query occurs twice, nor in two splits.

        Raises:
            ValueError: unknown split.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        return list(islice(self._stream(seed, split), n))

    def _stream(self, seed: int, split: str) -> "Iterator[dict[str, str]]":
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), seed, *SPLITS[split]])
        seen: set[str] = set()
        while True:
            samples = self._draw(rng)
            for ids in samples.ids[0]:
                query, response = decode(ids[: -samples.n_response]), decode(ids[-samples.n_response :])
                if query not in seen and zlib.crc32(query.encode()) % 4 in SPLITS[split]:
                    seen.add(query)
                    yield {"query": query, "response": response}

    def _draw(self, rng: np.random.Generator) -> Samples:
        rule = np.broadcast_to(np.array(self.rule), (1, _CHUNK, len(self.rule)))
        low, high = (N_USED, N_WORDS) if self.rare else (0, N_USED)
        if self.kind == "choice":
            options = np.array([OPTION_WORDS.index(word) for word in self.labels or ()])
            unhinted = np.zeros((1, _CHUNK), bool)
            return choice_samples(rng, rule[..., 0], unhinted, self.n_options, self.n_words, options=options)
        words, attributes, classes = draw_words(rng, rule, self.n_words, low, high)
        if self.kind == "sum":
            return sum_samples(words, attributes, classes, rule)
        answer = classes[..., self.rule[0]] ^ self.inverted
        label = np.array([ID[label] for label in self.labels or ()])[answer]
        return label_samples(words, np.full_like(answer, ID["\nLabel:"]), label)


_ATTRIBUTE = {attribute.name: i for i, attribute in enumerate(ATTRIBUTES)}


def _label(name: str, attribute: str, n_words: int, labels: tuple[str, ...] = ("0", "1"), **more: object) -> WorldTask:
    i = _ATTRIBUTE[attribute]
    first, second = ATTRIBUTES[i].classes[:: -1 if more.get("inverted") else 1]
    what = f"{n_words} words, one of them of {attribute}: {first} is {labels[0]}, {second} is {labels[1]}"
    return WorldTask(name, what + _how(more), labels, "label", (i,), n_words, **more)  # type: ignore[arg-type]


def _choice(name: str, of: str, n_options: int, options: tuple[str, ...], **more: object) -> WorldTask:
    what = f"which of {n_options} options holds a word of {of}? Options are named by unrelated words"
    rule = (CLASS_NAMES.index(of),)
    return WorldTask(name, what + _how(more), options, "choice", rule, 2, n_options, **more)  # type: ignore[arg-type]


def _sum(name: str, one: str, two: str, n_words: int, **more: object) -> WorldTask:
    what = f"{n_words} words: find those of {one} and {two}, give the value of each, then the sum"
    rule = (_ATTRIBUTE[one], _ATTRIBUTE[two])
    return WorldTask(name, what + _how(more), None, "sum", rule, n_words, **more)  # type: ignore[arg-type]


def _how(more: dict[str, object]) -> str:
    of = f"; out of distribution for {more['ood_of']}" if more.get("ood_of") else ""
    return of + ("; words met only where pretraining named their attribute" if more.get("rare") else "")


_FIRST, _LAST = OPTION_WORDS[:4], OPTION_WORDS[4:]
TASKS: dict[str, WorldTask] = {
    task.name: task
    for task in (
        _label("mood", "mood", 4),
        _label("season", "season", 4),
        _label("animal", "animal", 3),
        _label("place-inverted", "place", 4, inverted=True),
        _label("topic-inverted", "topic", 4, inverted=True),
        _label("food-words", "food", 4, HELD_OUT_PAIRS[0], held_out=True),
        _label("travel-words", "travel", 4, HELD_OUT_PAIRS[1], held_out=True),
        _label("time-words", "time", 3, HELD_OUT_PAIRS[2], inverted=True, held_out=True),
        _choice("pick-city", "city", 3, _FIRST),
        _choice("pick-winter", "winter", 3, _FIRST),
        _sum("sum-mood-food", "mood", "food", 4),
        _sum("sum-place-season", "place", "season", 4, held_out=True),
        _label("mood-rare", "mood", 4, rare=True, ood_of="mood", held_out=True),
        _label("season-long", "season", 6, ood_of="season"),
        _label("food-words-rare", "food", 4, HELD_OUT_PAIRS[0], rare=True, ood_of="food-words", held_out=True),
        _choice("pick-city-others", "city", 3, _LAST, ood_of="pick-city"),
        _sum("sum-mood-food-long", "mood", "food", 6, ood_of="sum-mood-food"),
    )
}
