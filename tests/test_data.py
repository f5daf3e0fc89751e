"""Reading rows: what is accepted, and what each mistake is told."""

import json
from pathlib import Path

import pytest
from conftest import example_rows

from ia2.data import Example, hold_out, parse_examples, read_examples
from ia2.errors import IA2Error


def test_both_names_of_the_columns() -> None:
    assert parse_examples('{"query": "a", "response": "b"}\n\n{"prompt": "c", "completion": 1}\n', "x") == [
        Example("a", "b"),
        Example("c", "1"),
    ]
    assert parse_examples('{"query": "a"}', "x", labelled=False) == [Example("a")]


def test_a_line_separator_inside_a_text_is_not_a_new_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"query": "a\u2028b", "response": "c"}, ensure_ascii=False), encoding="utf-8")
    assert read_examples(path) == [Example("a\u2028b", "c")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x: no rows"),
        ("\n \n", "x: no rows"),
        ('{"query": "a", "response": "b"}\n{"query": ', r"x:2: not JSON \(Expecting value at column 11\)"),
        ("[1]", "x:1: found list, expected an object"),
        ('{"response": "b"}', "x:1: no 'query'; the row has 'response'"),
        ('{"query": "a"}', "x:1: no 'response'; the row has 'query'"),
        ('{"prompt": "a"}', "x:1: no 'completion'"),
        ('{"query": "", "response": "b"}', "x:1: 'query' is ''"),
        ('{"query": "a", "response": null}', "x:1: 'response' is None"),
        ('{"query": "a", "response": true}', "x:1: 'response' is True"),
        ('{"query": ["a"], "response": "b"}', r"x:1: 'query' is \['a'\]"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(IA2Error, match=message):
        parse_examples(text, "x")


def test_missing_file_and_wrong_encoding(tmp_path: Path) -> None:
    with pytest.raises(IA2Error, match="no such file"):
        read_examples(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"query": "é", "response": "b"}'.encode("latin-1"))
    with pytest.raises(IA2Error, match="not UTF-8"):
        read_examples(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(("n", "n_dev"), [(2, 0), (3, 1), (6, 2), (48, 16), (144, 48), (1000, 48)])
def test_held_out_is_min_48_and_half_of_what_is_left(n: int, n_dev: int) -> None:
    rows = example_rows(n)
    train, dev = hold_out(rows, seed=0)
    assert len(dev) == n_dev <= min(48, len(train) // 2)
    assert sorted([*train, *dev], key=repr) == sorted(rows, key=repr)
    assert hold_out(rows, seed=0) == (train, dev)
