"""evaluate/lines: lines have their numbers, packed or not; what is damaged is refused by its name.

What a file of samples or a journal may not hold is in test_journal, of questions in test_tasks.
"""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.evaluate import lines
from bitnet_ref.evaluate.lines import read_rows, rows_in, unpacked

ROWS = st.lists(st.none() | st.dictionaries(st.text(), st.integers() | st.text()), max_size=9)


@given(rows=ROWS, end=st.sampled_from(["\n", "\r\n"]))
def test_each_object_has_the_number_of_its_line(rows, end):
    """Empty lines are counted and are no rows."""
    data = end.join(" " if row is None else json.dumps(row) for row in rows).encode()
    assert list(rows_in(data, "f")) == [(f"line {n} of f", row) for n, row in enumerate(rows, 1)
                                        if row is not None]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a"])
def test_what_is_packed_is_known_by_its_first_bytes_too(name):
    assert unpacked(gzip.compress(b"text"), Path(name), 4, "a task") == b"text"
    with tiny.refusal("a task must have at most 3 bytes", f"more in {name}, unpacked"):
        unpacked(gzip.compress(b"text"), Path(name), 3, "a task")


def test_what_is_not_packed_stays_unless_its_name_says_otherwise():
    assert unpacked(b"text", Path("a.jsonl"), 1, "a task") == b"text"      # its reader has looked at its size
    with tiny.refusal("a.gz must be a whole gzip file"):
        unpacked(b"text", Path("a.gz"), 9, "a task")


def test_a_file_may_be_packed(tmp_path):
    for name, data in (("a.jsonl", b'{"n": 1}\n'), ("a.jsonl.gz", gzip.compress(b'{"n": 1}\n'))):
        (tmp_path / name).write_bytes(data)
        assert [row for _, row in read_rows(tmp_path / name)] == [{"n": 1}]


def test_lines_have_a_bound_and_empty_ones_cost_nothing(monkeypatch):
    """A few bytes of gzip are many megabytes of ends of lines: no list of them, no words about them."""
    data = b"\n" * (1 << 22)
    tracemalloc.start()
    try:
        with tiny.refusal(f"f must have at most {lines.MOST} lines"):
            list(rows_in(data, "f"))
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(lines, "MOST", 2)
    assert list(rows_in(b"{}\n\n", "f")) == [("line 1 of f", {})]
    with tiny.refusal("f must have at most 2 lines"):
        list(rows_in(b"{}\n\n{}", "f"))


def test_a_line_has_a_bound(monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 10)
    for end in (b"", b"\n"):
        assert list(rows_in(b'{"n": 123}' + end, "f")) == [("line 1 of f", {"n": 123})]
    with tiny.refusal("a line must have at most 10 bytes", "line 1 of f"):
        list(rows_in(b" " * 11, "f"))
    with tiny.refusal("a line must have at most 10 bytes", "line 2 of f"):
        list(rows_in(b'{}\n{"n": 1234}', "f"))
