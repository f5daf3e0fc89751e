import pytest
import torch
from conftest import GENERATED, LABELS, example_rows, reasoned_rows

from ia2.data import Example
from ia2.errors import IA2Error
from ia2.models import LanguageModel
from ia2.prompt import Encoder, Prompt, build_prompt
from ia2.task import infer_labels
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
        next_ids = batch.input_ids[i, 1:][batch.response_mask[i, :-1]]
        assert lm.encoder.tokenizer.decode(next_ids) == row.label + "\n\n"
    assert torch.equal(batch.response_ids, batch.input_ids[:, 1:][batch.response_mask[:, :-1]])
    assert batch.response_mask.sum() == sum(t.n_response for t in tokens)


def test_padding_is_on_the_right_and_masked(lm: LanguageModel) -> None:
    rows = [lm.encoder.encode(build_prompt(LABELS, [], row.query, row.label)) for row in example_rows(4)]
    batch = lm.encoder.collate(rows)
    for i, row in enumerate(rows):
        assert batch.input_ids[i, : len(row.ids)].tolist() == list(row.ids)
        assert batch.attention_mask[i].tolist() == [1] * len(row.ids) + [0] * (batch.input_ids.shape[1] - len(row.ids))


def test_too_long_a_prompt_names_lengths() -> None:
    encoder = Encoder(build_tokenizer(), max_length=20)
    with pytest.raises(IA2Error, match=r"a prompt of \d+ tokens \(\d+ of context, \d+ of query, 1 of response\).*20"):
        encoder.encode(build_prompt(LABELS, example_rows(9), "Text:soup\nLabel:", "0"))


def test_a_response_without_tokens_is_an_error() -> None:
    with pytest.raises(IA2Error, match="no tokens"):
        Encoder(build_tokenizer(), 99).encode(Prompt((), "Text:soup\nLabel:", "  "))


def test_labels_are_inferred_from_the_rows() -> None:
    assert infer_labels(example_rows(4)) == ("0", "1")
    assert infer_labels([Example("q", str(i)) for i in range(30)]) is None
    assert infer_labels([Example("q", str(i % 20)) for i in range(40)]) is not None
