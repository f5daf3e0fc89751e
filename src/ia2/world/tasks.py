"""The tasks of the world, named and described like benchmarks; their rows are drawn, as many as wanted."""

import zlib
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ia2.world.text import ID, Samples, choice_samples, decode, draw_words, label_samples, sum_samples
from ia2.world.words import ATTRIBUTES, HELD_OUT_PAIRS, N_USED, N_WORDS, OPTION_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

SPLITS = {"train": (0, 1), "dev": (2,), "test": (3,)}  # a query belongs to a split by its hash, modulo 4
_CHUNK = 64
_PATIENCE = 20  # chunks without a new row, after which there are no more


@dataclass(frozen=True)
class WorldTask:
    """A task whose rows are drawn from the world.

    Attributes:
        labels: the possible responses, of the value 0 and of 1; None if it is a derivation that ends in `#### answer`.
        kind: what a row looks like: a labelled text, a multiple choice, or a sum over two words.
        rule: the attributes that decide: two for a sum, else one.
        n_words: words in a text.
        inverted: whether the first class of the attribute has the value 1.
        rare: whether all words are held-out ones.
        ood_of: the task that this one is the out-of-distribution sister of.
        held_out: whether its label words, summed attributes or words never occurred so in pretraining.
    """

    name: str
    description: str
    labels: tuple[str, ...] | None
    kind: Literal["label", "choice", "sum"]
    rule: tuple[int, ...]
    n_words: int
    inverted: bool = False
    rare: bool = False
    ood_of: str | None = None
    held_out: bool = False

    def rows(self, n: int, seed: int, split: str = "train") -> list[dict[str, str]]:
        """The first n rows, `{"query": ..., "response": ...}`, of a stream that (task, seed, split) determine.

        No query occurs twice, nor in two splits.

        Raises:
            ValueError: unknown split, or fewer than n different rows in it.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        return list(islice(self._stream(seed, split), n))

    def _stream(self, seed: int, split: str) -> "Iterator[dict[str, str]]":
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), seed, *SPLITS[split]])
        seen: set[str] = set()
        n_seen, idle = 0, 0
        while idle < _PATIENCE:
            idle = idle + 1 if len(seen) == n_seen else 0
            n_seen = len(seen)
            samples = self._draw(rng)
            for ids in samples.ids[0]:
                query, response = decode(ids[: -samples.n_response]), decode(ids[-samples.n_response :])
                if query not in seen and zlib.crc32(query.encode()) % 4 in SPLITS[split]:
                    seen.add(query)
                    yield {"query": query, "response": response}
        raise ValueError(f"'{self.name}' has no more than {n_seen} different rows in its split {split!r}")

    def _draw(self, rng: np.random.Generator) -> Samples:
        rule = np.broadcast_to(np.array(self.rule), (1, _CHUNK, len(self.rule)))
        low, high = (N_USED, N_WORDS) if self.rare else (0, N_USED)
        words, attributes, classes = draw_words(rng, rule, self.n_words, low, high)
        if self.labels is None:
            return sum_samples(words, attributes, classes ^ self.inverted, rule)
        value = classes[..., self.rule[0]] ^ self.inverted
        if self.kind == "choice":
            options = np.array([[OPTION_WORDS.index(word) for word in self.labels]])
            return choice_samples(words, options, np.full_like(value, ID["\n\nAnswer:"]), value)
        label = np.array([ID[label] for label in self.labels])[value]
        return label_samples(words, np.full_like(value, ID["\nLabel:"]), label)


_ATTRIBUTE = {attribute.name: i for i, attribute in enumerate(ATTRIBUTES)}
_DIGITS = ("0", "1")


def _label(name: str, attribute: str, n_words: int, labels: tuple[str, str] = _DIGITS, **more: Any) -> WorldTask:
    zero, one = ATTRIBUTES[_ATTRIBUTE[attribute]].classes[:: -1 if more.get("inverted") else 1]
    what = f"{n_words} words, one of {attribute}: {labels[0]} if it is of {zero}, {labels[1]} if of {one}"
    return WorldTask(name, what + _how(more), labels, "label", (_ATTRIBUTE[attribute],), n_words, **more)


def _choice(name: str, attribute: str, n_words: int, options: tuple[str, str], **more: Any) -> WorldTask:
    zero, one = ATTRIBUTES[_ATTRIBUTE[attribute]].classes
    what = f"{n_words} words, one of {attribute}: choose [{options[0]}] if it is of {zero}, [{options[1]}] if of {one}"
    return WorldTask(name, what + _how(more), options, "choice", (_ATTRIBUTE[attribute],), n_words, **more)


def _sum(name: str, one: str, two: str, n_words: int, **more: Any) -> WorldTask:
    values = "1 or 0" if more.get("inverted") else "0 or 1"
    what = f"{n_words} words: write those of {one} and {two} each with its class ({values}), then #### and the sum"
    return WorldTask(name, what + _how(more), None, "sum", (_ATTRIBUTE[one], _ATTRIBUTE[two]), n_words, **more)


def _how(more: dict[str, Any]) -> str:
    of = f"; out of distribution for {more['ood_of']}" if more.get("ood_of") else ""
    return of + ("; its words were met in pretraining only where their attribute was named" if more.get("rare") else "")


TASKS: dict[str, WorldTask] = {
    task.name: task
    for task in (
        _label("mood", "mood", 3),
        _label("season", "season", 3),
        _label("animal", "animal", 3),
        _label("place-inverted", "place", 3, inverted=True),
        _label("topic-inverted", "topic", 4, inverted=True),
        _label("food-words", "food", 2, HELD_OUT_PAIRS[2], held_out=True),
        _label("travel-words", "travel", 2, HELD_OUT_PAIRS[3], held_out=True),
        _choice("time-choice", "time", 2, HELD_OUT_PAIRS[0], held_out=True),
        _choice("place-choice", "place", 2, ("Thursday", "Monday")),
        _sum("sum-mood-food", "mood", "food", 3),
        _sum("sum-place-season", "place", "season", 3, inverted=True, held_out=True),
        _label("mood-rare", "mood", 3, rare=True, ood_of="mood", held_out=True),
        _label("season-long", "season", 5, ood_of="season"),
        _label("food-other-words", "food", 2, HELD_OUT_PAIRS[4], ood_of="food-words", held_out=True),
        _choice("place-choice-others", "place", 2, HELD_OUT_PAIRS[1], ood_of="place-choice", held_out=True),
        _sum("sum-mood-food-long", "mood", "food", 4, ood_of="sum-mood-food"),
    )
}
