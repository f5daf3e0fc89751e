"""Whatever options and texts are: a configuration is what it was after a file, and teacher and student agree."""

from contextlib import suppress
from typing import Any

import torch
import yaml
from conftest import GENERATED, LABELS
from hypothesis import given, settings
from hypothesis import strategies as st

from ia2.config import RunConfig, make_config
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.prompt import Encoder, build_prompt
from ia2.world.tokenizer import build_tokenizer

ENCODER = Encoder(build_tokenizer(), max_length=10_000)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 20)
    | st.floats(allow_nan=False)
    | st.sampled_from(["all", "ia2", "mean"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["ia2", "terms", "hidden"]), inner),
    max_leaves=3,
)
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(["sft", "ia2-sft", "joint"])
    | st.just({"own": {"terms": {"attn_out": {"mse": 0.5}, "logits": "ce"}, "learning_rate": [1e-3]}}),
    "labels": st.lists(st.text(min_size=1), min_size=2, max_size=3) | st.just("none"),
    "learning_rate": st.lists(st.floats(1e-9, 1), min_size=1, max_size=3),
    "beta": st.floats(0, 1),
    "context": st.text(),
    "separator": st.text(min_size=1),
    "adapter_options": st.dictionaries(st.text(max_size=3), st.integers() | st.booleans(), max_size=2),
    "layers": st.sampled_from(["all", "first:2", "0,2-3"]),
}
WORDS = st.text("ab 01:?\n.", max_size=8) | st.sampled_from(["Text:gloomy soup\nLabel:", "\n\n", "happy "])
SPOKEN = st.sampled_from(["0", "1", "gloomy 0 #### 1", "happy summer"])


@settings(deadline=None, max_examples=20)
@given(st.fixed_dictionaries({}, optional=RIGHT))
def test_a_configuration_survives_a_file(values: dict[str, Any]) -> None:
    config = make_config({"model": "tiny", **values})
    again = make_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True)))
    assert again == config
    assert again.stages() == config.stages()
    assert list(config.stages())[-1] == config.result
    for name in config.stages():
        assert all(0 < one.per_device_train_batch_size <= 3 for one in config.settings(name, 3))


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(sorted(RunConfig.model_fields)) | st.text(max_size=4), VALUES, max_size=3))
def test_any_options_are_a_configuration_or_a_mistake(values: dict[str, Any]) -> None:
    with suppress(IA2Error):
        assert make_config({"model": "tiny", **values}).stages()


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, SPOKEN), max_size=3), WORDS, SPOKEN, st.booleans())
def test_teacher_and_student_agree_on_every_token(
    demos: list[tuple[str, str]], query: str, response: str, labelled: bool
) -> None:
    task = LABELS if labelled else GENERATED
    shown = [Example(*demo) for demo in demos]
    teacher, student = (ENCODER.encode(build_prompt(task, context, query, response)) for context in (shown, []))
    n = student.n_query + student.n_response
    assert teacher.ids[len(teacher.ids) - n :] == student.ids[len(student.ids) - n :]
    assert (teacher.n_query, teacher.n_response) == (student.n_query, student.n_response)
    wanted = ENCODER.tokenizer(task.completion(response), add_special_tokens=False).input_ids
    assert [teacher.ids[t + 1] for t in teacher.aligned("response")] == wanted
    both = ENCODER.collate([teacher, student])
    assert both.response_ids.tolist() == [*wanted, *wanted]
    assert torch.equal(both.attention_mask.sum(1), torch.tensor([len(teacher.ids), len(student.ids)]) - 1)
