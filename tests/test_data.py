"""Reading rows: what is accepted, and what each mistake is told."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import example_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from ia2.data import Example, hold_out, n_dev, parse_examples, read_examples
from ia2.errors import IA2Error

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2 + 2?"}
TOOL = {"role": "tool", "content": "4"}
AGAIN = {"role": "user", "content": "Sure?"}
ASSISTANT = {"role": "assistant", "content": "4"}


def lines(*rows: Any) -> str:
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"query": "a", "response": "b"}, Example("a", "b")),
        ({"prompt": "c", "completion": 1}, Example("c", "1")),
        ({"prompt": [USER], "completion": [ASSISTANT]}, Example("2 + 2?", "4")),
        ({"prompt": [SYSTEM, USER], "completion": "4"}, Example("2 + 2?", "4", "Be brief.")),
        ({"messages": [SYSTEM, USER, ASSISTANT]}, Example("2 + 2?", "4", "Be brief.")),
        ({"messages": [USER, ASSISTANT, AGAIN, ASSISTANT]}, Example("2 + 2?\n4\nSure?", "4")),
        ({"query": "a", "response": "b", "privileged_context": "c"}, Example("a", "b", "c")),
        ({"query": "a", "response": "b", "privileged_context": None}, Example("a", "b")),
        ({"messages": [USER, ASSISTANT], "privileged_context": "c"}, Example("2 + 2?", "4", "c")),
    ],
)
def test_the_forms_of_a_row(row: dict[str, Any], example: Example) -> None:
    assert parse_examples(lines(row), "x") == [example]
    without = Example(example.query, None, example.context)
    assert parse_examples(lines(row), "x", labelled=False) == [without]


def test_without_labels_a_response_may_be_absent() -> None:
    assert parse_examples(lines({"query": "a"}), "x", labelled=False) == [Example("a")]
    assert parse_examples(lines({"messages": [USER]}), "x", labelled=False) == [Example("2 + 2?")]


def test_blank_lines_are_ignored_and_a_line_separator_inside_a_text_is_no_new_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps({"query": "a\u2028b", "response": "c"}, ensure_ascii=False)
    path.write_text(f"\ufeff{row}\n\n{row}\n", encoding="utf-8")  # as some editors begin a file
    assert read_examples(path) == 2 * [Example("a\u2028b", "c")]


def test_csv_and_parquet_say_the_same_as_json_lines(tmp_path: Path) -> None:
    rows = [
        {"query": 'one, "two"\nthree', "response": "0", "privileged_context": "é"},
        {"query": "four", "response": "1", "privileged_context": ""},
    ]
    (tmp_path / "a.jsonl").write_text(lines(*rows))
    (tmp_path / "a.csv").write_text(
        'query,response,privileged_context\r\n"one, ""two""\nthree",0,é\r\nfour,1,\r\n', encoding="utf-8", newline=""
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = [Example('one, "two"\nthree', "0", "é"), Example("four", "1")]
    (tmp_path / "A.CSV").write_bytes((tmp_path / "a.csv").read_bytes())
    assert [read_examples(tmp_path / name) for name in ("a.jsonl", "a.csv", "A.CSV", "a.parquet")] == 4 * [expected]


def test_parquet_holds_conversations(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"messages": [USER, ASSISTANT]}]), tmp_path / "a.parquet")
    assert read_examples(tmp_path / "a.parquet") == [Example("2 + 2?", "4")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x: no rows"),
        ("\n \n", "x: no rows"),
        ('{"query": "a", "response": "b"}\n{"query": ', r"x:2: not JSON \(Expecting value at column 11\)"),
        ('{"query": "a", "response": NaN}', r"x:1: not JSON \(NaN is no number\)"),
        ("[" * 100_000, r"x:1: not JSON \(maximum recursion"),
        ('{"query": ' + "9" * 5000 + "}", r"x:1: not JSON \(Exceeds the limit"),
        ("[1]", "x:1: found list, expected an object"),
        ('{"response": "b"}', "x:1: no 'query'; the row has 'response'"),
        ("{}", "x:1: no 'query'; the row has no columns"),
        ('{"query": "a"}', "x:1: no 'response'; the row has 'query'"),
        ('{"prompt": "a"}', "x:1: no 'completion'"),
        ('{"query": "", "response": "b"}', "x:1: 'query' is ''"),
        ('{"query": "a", "response": null}', "x:1: 'response' is None"),
        ('{"query": "a", "response": true}', "x:1: 'response' is True"),
        ('{"query": ["a"], "response": "b"}', r"x:1: 'query' is \['a'\]"),
        ('{"query": "\\ud800", "response": "b"}', "x:1: 'query' holds half a character"),
        ('{"query": "a", "response": "b", "privileged_context": []}', r"x:1: 'privileged_context' is \[\]"),
        (lines({"query": "a", "response": "b"}, {"prompt": "a", "completion": "b"}), "x:2: has 'prompt', but x:1 has"),
        (lines({"messages": "hello"}), "x:1: 'messages' is 'hello', expected a list of messages"),
        (lines({"messages": []}), r"x:1: 'messages' is \[\], expected a list of messages"),
        (lines({"messages": [USER, {"role": "assistant"}]}), "expected a message with 'role' and 'content'"),
        (lines({"messages": [USER, {"role": "assistant", "content": None}]}), "x:1: the content in 'messages' is None"),
        (
            lines({"messages": [ASSISTANT, USER]}),
            "x:1: the messages are of assistant, user; expected one of the system",
        ),
        (lines({"messages": [ASSISTANT]}), "x:1: the messages are of assistant; expected"),
        (lines({"messages": [SYSTEM, ASSISTANT]}), "x:1: the messages are of system, assistant; expected"),
        (
            lines({"messages": [USER, SYSTEM, USER, ASSISTANT]}),
            "x:1: the messages are of user, system, user, assistant;",
        ),
        (lines({"messages": [USER, ASSISTANT, ASSISTANT]}), "x:1: the messages are of user, assistant, assistant;"),
        (lines({"messages": [USER, TOOL, USER, ASSISTANT]}), "x:1: a message of 'tool'; expected one of system, user,"),
        (
            lines({"messages": [USER, {**ASSISTANT, "content": [{"type": "text"}]}]}),
            "x:1: the content in 'messages' is",
        ),
        (lines({"prompt": [USER], "completion": [ASSISTANT, USER]}), "x:1: the messages are of user, assistant, user;"),
        (
            lines({"messages": [SYSTEM, USER, ASSISTANT], "privileged_context": "c"}),
            "x:1: a system message and a 'privileged_context'; expected one",
        ),
        (lines({"prompt": [], "completion": "a"}), r"x:1: 'prompt' is \[\]"),
    ],
    ids=lambda value: value[:40],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(IA2Error, match=message):
        parse_examples(text, "x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "latin.jsonl",
            '{"query": "a", "response": "b"}\n{"query": "é"}'.encode("latin-1"),
            "latin.jsonl:2: not UTF-8",
        ),
        ("latin.csv", "query,response\né,1".encode("latin-1"), "latin.csv:2: not UTF-8"),
        ("few.csv", b"query,response\na,1\nb\n", "few.csv:3: not 2 fields"),
        ("many.csv", b"query,response\na,1,2\n", "many.csv:2: not 2 fields"),
        ("same.csv", b"query,query\na,1\n", "same.csv:1: two columns have the same name"),
        ("open.csv", b'query,response\n"a,1\n', r"open.csv:2: not CSV \(unexpected end of data\)"),
        ("header.csv", b"query,response\n", "header.csv: no rows"),
        ("empty.csv", b"", "empty.csv: no rows"),
        ("bad.parquet", b"no parquet", "bad.parquet: not Parquet"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(IA2Error, match="no such file"):
        read_examples(tmp_path / name)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IA2Error, match=message):
        read_examples(tmp_path / name)


def test_a_pipe_is_read_and_a_folder_is_called_one(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"query": "a", "response": "b"}')
    os.close(writing)
    assert read_examples(f"/dev/fd/{reading}") == [Example("a", "b")]
    os.close(reading)
    with pytest.raises(IA2Error, match="is a directory; expected a text file"):
        read_examples(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["query", "response", "prompt", "completion", "messages", "role", "content"]), inner
        )
    ),
)


@settings(deadline=None)
@given(JSON.map(json.dumps) | st.text())
def test_whatever_a_line_says_it_is_an_example_or_a_mistake_that_names_it(text: str) -> None:
    said, examples = "x", [Example("a", "b")]
    try:
        examples = parse_examples(text, "x")
    except IA2Error as error:
        said = str(error)
    assert re.fullmatch("x.*", said)
    assert all(example.query and example.label for example in examples)


@pytest.mark.parametrize(("n", "n_held"), [(2, 0), (3, 1), (6, 2), (48, 16), (144, 48), (1000, 48)])
def test_held_out_is_min_48_and_half_of_what_is_left(n: int, n_held: int) -> None:
    rows = example_rows(n)
    train, dev = hold_out(rows, seed=0)
    assert len(dev) == n_held <= n_dev(len(train)) == min(48, len(train) // 2)
    assert sorted([*train, *dev], key=repr) == sorted(rows, key=repr)
    assert hold_out(rows, seed=0) == (train, dev)
