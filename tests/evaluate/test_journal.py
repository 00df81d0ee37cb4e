"""evaluate/journal: rows are kept one by one, half a line is made again, and nothing is mixed."""

import json
import os

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.evaluate import lines
from bitnet_ref.evaluate.journal import Journal, digest
from bitnet_ref.evaluate.lines import read_rows


def test_what_is_added_is_there_again(tmp_path):
    path = tmp_path / "new" / "rows"
    first = Journal(path, "abc")
    for n in range(3):
        first.add({"n": n, "text": "né\n"})
    assert Journal(path, "abc").rows == first.rows == [{"n": n, "text": "né\n"} for n in range(3)]
    assert path.read_bytes().count(b"\n") == 3


@given(cut=st.integers(0, 200))
def test_cut_anywhere_whole_lines_are_left(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "rows"
    kept = Journal(path, "abc")
    for n in range(4):
        kept.add({"n": n})
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    again = Journal(path, "abc")
    assert again.rows == [{"n": n} for n in range(data.count(b"\n"))]
    again.add({"n": "next"})
    assert Journal(path, "abc").rows == again.rows


def test_without_a_path_nothing_is_kept():
    kept = Journal(None, "abc")
    kept.add({"n": 1})
    assert kept.rows == [{"n": 1}]


def test_read_rows_something_else_are_refused(tmp_path):
    Journal(tmp_path / "rows", "abc").add({"n": 1})
    with tiny.refusal("line 1 of", "same model, data and options", "delete this one"):
        Journal(tmp_path / "rows", "abd")
    (tmp_path / "rows").write_text('{"n": 1}\n')
    with tiny.refusal("same model, data and options"):
        Journal(tmp_path / "rows", "abc")


@pytest.mark.parametrize("content", [
    b"notes without an end", b"two\nlines\nand a half", b'{"n": 1}\n{"half": ', b'{"under": "abd"',
    b'{"under": "abd", "n": 1}\n{"under": "abd", "n"'])
def test_a_file_of_something_else_is_left_as_it_is(content, tmp_path):
    """What --samples or OUTPUT.partial names may be anybody's: not a byte goes before it is known as ours."""
    (tmp_path / "rows").write_bytes(content)
    with tiny.refusal("must be", "rows"):
        Journal(tmp_path / "rows", "abc")
    assert (tmp_path / "rows").read_bytes() == content


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with a name here")
    os.mkfifo(tmp_path / "pipe")
    for read in (lambda path: list(read_rows(path)), lambda path: Journal(path, "abc")):
        with tiny.refusal("must be a readable file", "pipe"):
            read(tmp_path / "pipe")


@pytest.mark.parametrize(("content", "words"), [
    (b'{"n": 1}\n{"n": \n', ["line 2 of", "must be JSON"]),
    (b"[1]\n", ["line 1 of", "must be a JSON object", "[1]"]),
    (b"\xff\n", ["line 1 of", "must be JSON"]),
    (b"[" * 100_000 + b"\n", ["line 1 of", "must be JSON"]),
    (b'{"n": "' + b"x" * 2000 + b'"}\n', ["a line must have at most 1000 bytes", "line 1 of"]),
])
def test_what_is_no_row_is_refused_by_its_line(content, words, tmp_path, monkeypatch):
    if b"x" * 99 in content:
        monkeypatch.setattr(lines, "LONGEST", 1000)
    (tmp_path / "rows").write_bytes(content)
    with tiny.refusal(*words):
        list(read_rows(tmp_path / "rows"))


def test_files_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    with tiny.refusal("must be a readable file"):
        list(read_rows(tmp_path / "nothing"))
    with tiny.refusal("must be"):
        Journal(tmp_path, "abc")
    (tmp_path / "file").write_text("x")
    with tiny.refusal("must be writable"):
        Journal(tmp_path / "file" / "rows", "abc").add({})
    monkeypatch.setattr(lines, "LARGEST", 3)
    (tmp_path / "rows").write_text('{"n": 1}\n')
    with tiny.refusal("must have at most 3 bytes"):
        list(read_rows(tmp_path / "rows"))


def test_a_digest_is_of_all_its_facts():
    facts = [("a", 1), ("a", 2), ("b", 1), ("a", 1, None), (["a", 1],)]
    assert len({digest(*f) for f in facts}) == len(facts)
    assert digest("a", {"x": 1, "y": 2}) == digest("a", json.loads('{"y": 2, "x": 1}'))
