"""Task files: what they may say, and what each mistake is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ia2.data import Row
from ia2.errors import IA2Error
from ia2.tasks import load_task
from ia2.tasks.taskfile import TaskFile, read_task_file
from ia2.tasks.templates import fill, parse


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Text:{t}\nLabel:", "Text:one two\nLabel:"),
        ("{t:.3}|{n}|{yes}|{{t}}", "one|3|True|{t}"),
        ("{list[1]}{map[k]}{deep[a][0]}{odd.name}", "bvxw"),
        ("", ""),
    ],
)
def test_templates(template: str, text: str) -> None:
    columns = {"t": "one two", "n": 3, "yes": True, "list": ["a", "b"], "map": {"k": "v"}, "deep": {"a": ["x"]}}
    assert fill(template, Row("x:1", {**columns, "odd.name": "w", "{n}": "never"})) == text


@settings(deadline=None)
@given(st.text("{}[].:!ab0 ", max_size=12), st.dictionaries(st.sampled_from("ab"), st.none() | st.text() | st.floats()))
def test_any_template_is_filled_or_refused(template: str, columns: dict[str, Any]) -> None:
    said = ""
    try:
        fill(template, Row("x:1", columns))
    except IA2Error as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("template", ["{a!r}", "{a:>9999999999}", "{}", "{0}", "{a", "}", "{a[}", "{a:{b}}"])
def test_templates_do_nothing_but_put_columns_into_text(template: str) -> None:
    with pytest.raises(IA2Error, match="the template"):
        parse(template)


SST2 = {"dataset": "x/y", "query": "{text}", "response": "{label}", "labels": ["0", "1"]}
OPTIONS = {"texts": ["text", "label"], "answer": "text"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({**SST2, "querry": "a"}, "unknown key 'querry': did you mean 'query'?"),
        ({**SST2, "splits": {"trian": "train"}}, "unknown key 'trian': did you mean 'train'?"),
        ({**SST2, "options": {**OPTIONS, "text": "a"}}, "unknown key 'text': did you mean 'texts'?"),
        ({**SST2, "name": "../../x"}, "'name' is '../../x'"),
        ({**SST2, "folder": "../secret"}, "'folder' is '../secret'"),
        ({**SST2, "dataset": "../x"}, "'dataset' is '../x'"),
        ({"dataset": "x/y"}, "no 'query'; expected a template such as"),
        ({**SST2, "files": {"train": "a"}}, "expected either 'dataset' or 'files'"),
        ({"query": "{a}", "response": "{b}"}, "expected either 'dataset' or 'files'"),
        ({"files": {}}, "no 'files.train'"),
        ({"files": {"train": "a"}, "config": "b"}, "belong to 'dataset'"),
        ({**SST2, "options": OPTIONS}, "expected either 'response' or 'options'"),
        ({"dataset": "x/y", "query": "{a}"}, "expected either 'response' or 'options'"),
        ({"dataset": "x/y", "query": "{a}", "options": OPTIONS}, "'options' need {options} in 'query'"),
        ({"dataset": "x/y", "query": "{options}", "options": OPTIONS}, "'options' need 'labels', a list"),
        (
            {"dataset": "x/y", "query": "{options}", "options": OPTIONS, "labels": {"a": "x", "b": "y"}},
            "'options' need 'labels', a list",
        ),
        ({**SST2, "labels": ["0", "0"]}, "two labels are the same text: '0', '0'"),
        ({**SST2, "labels": ["yes", "yes "]}, "two labels are the same text: 'yes', 'yes '"),
        ({**SST2, "labels": ["0"]}, "labels are '0'; expected at least two"),
        ({**SST2, "labels": [True, False]}, "the label True is not a text; put quotes around yes"),
        ({**SST2, "labels": ["0", ""]}, "the label '' is not a text"),
        ({**SST2, "labels": "0,1"}, "'labels' is '0,1'"),
        ({**SST2, "metric": "rouge"}, "'metric' is for generated answers, and this task has labels"),
        ({**SST2, "query": "{text!r}"}, "the template '{text!r}' has {text!r}"),
        ({**SST2, "max_new_tokens": 0, "labels": None}, "'max_new_tokens' is 0"),
        ({**SST2, "parser": "hsah", "labels": None}, "'parser' is 'hsah': input should be 'auto', 'hash'"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_mistakes_in_a_task_file(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({"name": "own", **keys}))
    with pytest.raises(IA2Error) as error:
        load_task(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [a", "not YAML"),
        (b"name: 2020-99-99", "not YAML: month must be in 1..12"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"!!python/object/apply:os.system ['true']", "not YAML: could not determine a constructor"),
        (b"- a", "found list, expected 'key: value' lines"),
        (b"dataset: x/y", "no 'name'"),
        (b"", "found NoneType"),
        (None, "no such file or directory; expected a task file"),
    ],
)
def test_what_is_no_task_file(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IA2Error) as error:
        load_task(path)
    assert str(error.value).startswith(f"{path}: {message}")


KEYS = st.sampled_from([*TaskFile.model_fields, "train", "texts", "answer", "x"])
YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda i: st.lists(i) | st.dictionaries(KEYS, i)
)


@settings(max_examples=50, deadline=None)
@given(YAML.map(json.dumps) | st.text())
def test_any_text_is_a_task_file_or_a_mistake_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(content, encoding="utf-8")
    said = f"{path}: "
    try:
        read_task_file(path)
    except IA2Error as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sst", "unknown task 'sst': did you mean 'sst2'?"),
        ("../../x", "'../../x' is no name of a task; expected a path that ends in .yaml"),
        ("/etc/passwd", "'/etc/passwd' is no name of a task"),
        ("..\\x", "is no name of a task"),
        ("../../x.yaml", "../../x.yaml: no such file"),
        ("", "unknown task ''"),
    ],
)
def test_a_name_is_never_a_path(name: str, message: str) -> None:
    with pytest.raises(IA2Error) as error:
        load_task(name)
    assert message in str(error.value)
