"""Texts, questions and sums of the world, drawn many at a time as arrays of token ids.

Every draw returns the ids of whole samples, query and response, and says where the response begins; `decode` turns
them into the very text that a reader and the tokenizer see.  Shapes: B sequences, K samples in each, S words in a text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ia2.world.words import (
    ATTRIBUTES,
    HELD_OUT_PAIRS,
    HELD_OUT_SUMS,
    LABEL_WORDS,
    N_ATTRIBUTES,
    N_USED,
    N_WORDS,
    OPTION_WORDS,
    WORDS,
)

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

STOP = "\n\n"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CUES = tuple(f"\n{a.name.capitalize()}:" for a in ATTRIBUTES)  # "\nMood:" names the attribute that "\nLabel:" hides
TEMPLATE = (STOP, "Text:", "\nLabel:", "\nAnswer:", "Question:", "\nChoices:", "\n\nAnswer:", *CUES)
DIGITS = tuple("0123456789")
OPTIONS = tuple(f"\n[{word}]" for word in OPTION_WORDS)
VOCABULARY = (*SPECIAL, *TEMPLATE, "####", *DIGITS, *LABEL_WORDS, *OPTIONS, *WORDS)
ID = {token: i for i, token in enumerate(VOCABULARY)}
PAD, BOS, EOS, UNK = (ID[token] for token in SPECIAL)
WORD0, CUE0 = ID[WORDS[0]], ID[CUES[0]]
LABEL0, OPTION0 = ID[LABEL_WORDS[0]], ID[OPTIONS[0]]
ZERO = ID["0"]

_HELD_OUT_PAIRS = [(LABEL_WORDS.index(a), LABEL_WORDS.index(b)) for a, b in HELD_OUT_PAIRS]
_UNORDERED = [(a, b) for b in range(len(LABEL_WORDS)) for a in range(b)]
KNOWN_PAIRS = np.array([pair for pair in _UNORDERED if pair not in _HELD_OUT_PAIRS])
KNOWN_OPTIONS = np.array([(a, b) for a, b in KNOWN_PAIRS if b < len(OPTION_WORDS)])
KNOWN_SUMS = np.array([(a, b) for b in range(N_ATTRIBUTES) for a in range(b) if (a, b) not in HELD_OUT_SUMS])


@dataclass(frozen=True)
class Samples:
    """Token ids of B x K samples (query, then response, no separator), all of one length."""

    ids: Ints  # B K tokens
    n_response: int


def decode(ids: Ints) -> str:
    """The text of some ids: words are apart by a space, nothing else is."""
    text = ""
    for token in (VOCABULARY[i] for i in ids):
        glued = not text or text[-1] in ":]\n" or token[0] == "\n"
        text += token if glued else " " + token
    return text


def join(samples: Samples) -> tuple[Ints, Ints]:
    """Whole sequences, `<s> sample STOP sample STOP ...`: ids (B, T), places (K, R+1) of responses and their STOPs."""
    B, K, length = samples.ids.shape
    stops = np.full((B, K, 1), ID[STOP])
    body = np.concatenate([samples.ids, stops], -1).reshape(B, -1)
    ids = np.concatenate([np.full((B, 1), BOS), body], 1)
    first = 1 + np.arange(K) * (length + 1) + length - samples.n_response
    return ids, first[:, None] + np.arange(samples.n_response + 1)


def draw_words(
    rng: np.random.Generator, deciding: Ints, S: int, low: int = 0, high: Any = N_USED, active: int = N_ATTRIBUTES
) -> tuple[Ints, Ints, Ints]:
    """S words of different attributes in random order, the `deciding` ones (..., D) among them.

    `low` and `high` bound the words of a class, `active` the attributes.  Returns words (..., S), their attributes
    (..., S), and the class that every attribute would have (..., 8).
    """
    shape = deciding.shape[:-1]
    key = rng.random((*shape, N_ATTRIBUTES))
    key[..., active:] = 2.0
    np.put_along_axis(key, deciding, -1.0, -1)
    attributes = np.argsort(key, -1)[..., :S]
    attributes = np.take_along_axis(attributes, np.argsort(rng.random(attributes.shape), -1), -1)
    classes = rng.integers(0, 2, (*shape, N_ATTRIBUTES))
    place = rng.integers(low, np.broadcast_to(np.asarray(high)[..., None], attributes.shape))
    return (attributes * 2 + np.take_along_axis(classes, attributes, -1)) * N_WORDS + place, attributes, classes


def _full(value: int, like: Ints) -> Ints:
    return np.full((*like.shape[:2], 1), value)


def label_samples(words: Ints, cue: Ints, label: Ints) -> Samples:
    """`Text:gloomy harbour\\nLabel:0` from words (B, K, S), cue ids and label ids (B, K)."""
    return Samples(np.concatenate([_full(ID["Text:"], words), WORD0 + words, cue[..., None], label[..., None]], -1), 1)


def sum_samples(words: Ints, attributes: Ints, classes: Ints, pair: Ints) -> Samples:
    """`Text:gloomy harbour soup\\nAnswer:gloomy 0 soup 1 #### 1`: the words of a pair of attributes, and their sum."""
    decides = (attributes[..., None] == pair[..., None, :]).any(-1)
    place = np.sort(np.argsort(~decides, -1, kind="stable")[..., :2], -1)  # in the order of the text
    word, value = np.take_along_axis(words, place, -1), np.take_along_axis(classes, pair, -1)
    of_word = np.take_along_axis(classes, np.take_along_axis(attributes, place, -1), -1)
    parts = [_full(ID["Text:"], words), WORD0 + words, _full(ID["\nAnswer:"], words)]
    for i in (0, 1):
        parts += [WORD0 + word[..., i : i + 1], ZERO + of_word[..., i : i + 1]]
    parts += [_full(ID["####"], words), ZERO + value.sum(-1, keepdims=True)]
    return Samples(np.concatenate(parts, -1), 6)


def choice_samples(words: Ints, options: Ints, cue: Ints, value: Ints, listed: int = 2) -> Samples:
    """`Question:gloomy harbour\\nChoices:\\n[apple]0\\n[Friday]1\\n\\nAnswer:apple`: which option has the value.

    Words (B, K, S), options (B, 2) as places in OPTION_WORDS, of values 0 and 1; cue ids and values (B, K);
    only the first `listed` options are shown.
    """
    named = np.broadcast_to(options[:, None], (*value.shape, 2))
    parts = [_full(ID["Question:"], words), WORD0 + words, _full(ID["\nChoices:"], words)]
    for i in range(listed):
        parts += [OPTION0 + named[..., i : i + 1], _full(ZERO + i, words)]
    answer = LABEL0 + np.take_along_axis(named, value[..., None], -1)
    return Samples(np.concatenate([*parts, cue[..., None], answer], -1), 1)
