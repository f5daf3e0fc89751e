import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import GENERATED, LABELS, example_rows, reasoned_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ia2.data import Example
from ia2.errors import IA2Error
from ia2.models import LanguageModel
from ia2.prompt import Encoder, Prompt, build_prompt
from ia2.task import Task, infer_labels
from ia2.world.tokenizer import build_tokenizer


def test_the_papers_form() -> None:
    demos = [Example("Text:good film\nLabel:", "1"), Example("Text:bad film\nLabel:", "0")]
    prompt = build_prompt(LABELS, demos, "Text:dull\nLabel:", "0")
    text = "".join((*prompt.context, prompt.query, prompt.response))
    assert text == "Text:good film\nLabel:1\n\nText:bad film\nLabel:0\n\nText:dull\nLabel:0"


def test_teacher_and_student_share_every_query_and_response_id(lm: LanguageModel) -> None:
    for row in reasoned_rows(4):
        student = lm.encoder.encode(build_prompt(GENERATED, [], row.query, row.label))
        teacher = lm.encoder.encode(build_prompt(GENERATED, example_rows(5), row.query, row.label))
        n = len(student.ids) - 1  # all but <s>
        assert teacher.ids[-n:] == student.ids[1:]
        assert teacher.n_response == student.n_response


def test_aligned_positions_decode_to_the_response(lm: LanguageModel) -> None:
    rows = reasoned_rows(4)
    tokens = [lm.encoder.encode(build_prompt(GENERATED, rows[:1], row.query, row.label)) for row in rows]
    batch = lm.encoder.collate(tokens)
    for i, row in enumerate(rows):
        places = batch.response_mask[i].nonzero()[:, 0].tolist()
        assert lm.encoder.tokenizer.decode([tokens[i].ids[t + 1] for t in places]) == row.label + "\n\n"
    assert batch.response_ids.tolist() == [i for of in tokens for i in of.ids[len(of.ids) - of.n_response :]]
    assert batch.response_mask.sum() == sum(t.n_response for t in tokens)


def test_padding_is_on_the_right_and_masked(lm: LanguageModel) -> None:
    rows = [lm.encoder.encode(build_prompt(LABELS, [], row.query, row.label)) for row in example_rows(4)]
    batch = lm.encoder.collate(rows)
    for i, row in enumerate(rows):
        n = len(row.ids) - 1  # nothing is predicted behind the last response token
        assert batch.input_ids[i, :n].tolist() == list(row.ids[:n])
        assert batch.attention_mask[i].tolist() == [1] * n + [0] * (batch.input_ids.shape[1] - n)
    assert batch.input_ids.shape[1] == max(len(row.ids) for row in rows) - 1


def test_too_long_a_prompt_names_lengths() -> None:
    encoder = Encoder(build_tokenizer(), max_length=20)
    with pytest.raises(IA2Error, match=r"a prompt of \d+ tokens \(\d+ of context, \d+ of query, 1 of response\).*20"):
        encoder.encode(build_prompt(LABELS, example_rows(9), "Text:soup\nLabel:", "0"))


@pytest.mark.parametrize(
    ("task", "response", "n_answer"),
    [
        (LABELS, None, 1),
        (LABELS, "0", 1),
        (Task(("0", "apple banana apple")), None, 3),
        (Task(("0", "apple banana apple")), "0", 3),
        (GENERATED, None, 8),
        (GENERATED, "apple " * 20, 21),
    ],
)
def test_a_prompt_fits_if_its_longest_answer_does(task: Task, response: str | None, n_answer: int) -> None:
    prompt = build_prompt(task, example_rows(5), "Text:soup\nLabel:", response)
    wide = Encoder(build_tokenizer(), 10**6)
    row = wide.encode(prompt)
    n = len(row.ids) - row.n_response + n_answer
    assert [Encoder(build_tokenizer(), window).fits(prompt, task) for window in (n - 1, n, n + 1)] == [
        False,
        True,
        True,
    ]


def test_a_response_without_tokens_is_an_error() -> None:
    with pytest.raises(IA2Error, match="no tokens"):
        Encoder(build_tokenizer(), 99).encode(Prompt((), "Text:soup\nLabel:", "  "))


def test_labels_are_inferred_from_the_rows() -> None:
    assert infer_labels(example_rows(4)) == ("0", "1")
    assert infer_labels([Example("q", str(i)) for i in range(30)]) is None
    assert infer_labels([Example("q", str(i % 20)) for i in range(40)]) is not None


TEXTS = [f"{row.query}{row.label}\n\n" for row in (*reasoned_rows(12), *example_rows(12))] + ["Text:it is 10 \n\n\n"]
ALPHABET = sorted({char for text in TEXTS for char in text} | set("0123456789"))


def trained(kind: str, template: str = "$A") -> PreTrainedTokenizerFast:
    """A tokenizer of one of the kinds in use, trained on a few texts; `template` says what special tokens it adds."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    model, spaces = kind.split()
    if model == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(
            vocab_size=200, special_tokens=special, initial_alphabet=ALPHABET, show_progress=False
        )
    if spaces == "bytes":  # as GPT-2 with add_prefix_space
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
    else:  # as sentencepiece
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(TEXTS, trainer)
    numbered = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=numbered)
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)


KINDS = ["unigram always", "unigram first", "bpe always", "bpe first", "bpe bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_adds_spaces_adds_none_between_pieces(kind: str) -> None:
    tokenizer = trained(kind)
    assert tokenizer.decode(tokenizer("1").input_ids) == " 1"  # it does
    encoder = Encoder(tokenizer, 10**6)
    for rows in (example_rows(6), reasoned_rows(6)):
        prompt = build_prompt(GENERATED, rows[1:], rows[0].query, rows[0].label)
        text = "".join((*prompt.context, prompt.query, prompt.response))
        assert tokenizer.decode(encoder.encode(prompt).ids) == text
        assert [tokenizer.decode(encoder.piece(piece)) for piece in prompt.context] == list(prompt.context)
    whole = tokenizer("Text:soup\nLabel:1").input_ids
    assert encoder.piece("1") == whole[-1:]  # as in a text that is tokenised in one


def test_a_piece_that_begins_as_its_neighbour_ends_is_still_told_apart() -> None:
    encoder = Encoder(trained("bpe always"), 99)
    assert [encoder.tokenizer.decode(encoder.piece("\n" * n)) for n in range(1, 5)] == ["\n" * n for n in range(1, 5)]


@pytest.mark.parametrize(
    ("template", "begins"),
    [("$A", ""), ("<s> $A", "<s>"), ("$A </s>", ""), ("<s> $A </s>", "<s>"), ("<s> <pad> $A", "<s><pad>")],
)
@pytest.mark.parametrize("kind", KINDS[1:3])
def test_what_a_tokenizer_puts_before_a_text_is_kept_and_what_it_puts_behind_is_not(
    kind: str, template: str, begins: str
) -> None:
    tokenizer = trained(kind, template)
    encoder = Encoder(tokenizer, 10**6)
    row, *demos = reasoned_rows(4)
    for shown in ([], demos):
        ids = encoder.encode(build_prompt(GENERATED, shown, row.query, row.label)).ids
        assert tokenizer.decode(ids).startswith(f"{begins}Text:")
        assert tokenizer.eos_token_id not in ids


def test_a_tokenizer_whose_first_special_token_is_its_last_one() -> None:
    """GPT-2 calls one token both; one that puts it behind a text has none before it."""
    tokenizer = trained("bpe bytes", "$A </s>")
    tokenizer.bos_token = "</s>"
    assert Encoder(tokenizer, 99).bos == []


def test_a_tokenizer_that_pads_on_the_left_is_not_asked_to() -> None:
    encoder = Encoder(trained("bpe first", "<s> $A"), 10**6)
    rows = [encoder.encode(build_prompt(LABELS, [], row.query, row.label)) for row in example_rows(4)]
    batch = encoder.collate(rows)
    assert all(batch.attention_mask[i, : row.n_inputs].all() for i, row in enumerate(rows))
    assert batch.input_ids[0, -1] == encoder.pad_id


@pytest.mark.skipif("IA2_DATA" not in os.environ, reason="IA2_DATA names no folder")
def test_the_real_tokenizer_of_gpt2() -> None:
    data = Path(os.environ["IA2_DATA"])
    folder = data.parent / "tokenizers" / "gpt2"
    lines = (data / "sst2" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    texts = [json.loads(line)["sentence"] for line in lines]
    for options in ({}, {"add_prefix_space": True}):
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        encoder = Encoder(tokenizer, 10**6)
        demos = [Example(f"Text:{text}\nLabel:", str(i % 2)) for i, text in enumerate(texts)]
        prompt = build_prompt(LABELS, demos[1:], demos[0].query, "very positive")
        tokens = encoder.encode(prompt)
        text = "".join((*prompt.context, prompt.query, prompt.response))
        assert encoder.bos == []
        assert tokenizer.decode(tokens.ids) == text
        end = prompt.query + prompt.response
        whole = AutoTokenizer.from_pretrained(folder)(end).input_ids
        assert list(tokens.ids[-len(whole) :]) == whole
        assert tokens.n_response == len(encoder.piece("very positive")) == 2
