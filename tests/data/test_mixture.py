"""A mixture is named without ambiguity, and any stretch of a run has its weights.

Read after: bitnet_ref/data/mixture. Read next: tests/data/test_feed.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.checks import CheckError
from bitnet_ref.data.mixture import MOST, Part, drawn, parts

WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=6)


# ---- names ----

@pytest.mark.parametrize(("text", "expected"), [
    ("python-docs", [("python-docs", 1)]),
    ("a, b", [("a, b", 1)]),
    ("wikitext-2=0.7,tinystories=0.3", [("wikitext-2", 7), ("tinystories", 3)]),
    ("a=2,b=4,c=6", [("a", 1), ("b", 2), ("c", 3)]),
    ("a=0.125,b=1", [("a", 1), ("b", 8)]),
])
def test_names_and_weights(text, expected):
    assert parts(text) == [Part(*e) for e in expected]


@pytest.mark.parametrize(("text", "message"), [
    ("a=0.7,b", "must exist, or be a mixture of names without = and ,; got 'a=0.7,b'; write NAME=WEIGHT,N"),
    ("a=", "must exist, or be a mixture"), ("=1", "must exist, or be a mixture"),
    ("a=1,", "must exist, or be a mixture"), ("a=x,b=1", "must exist, or be a mixture"),
    ("a=1", "must exist, or be a mixture"), ("a=-1,b=1", "must exist, or be a mixture"),
    ("a=1e3,b=1", "must exist, or be a mixture"), ("a=nan", "must exist, or be a mixture"),
    ("no-such-folder/x=.txt", "must exist, or be a mixture"),
    ("a=0,b=1", "each weight of a mixture must be greater than 0; got 'a=0,b=1'; leave out"),
    ("a=1,a=2", "must name each corpus once; got 'a=1,a=2'; add up its weights"),
    ("a=0.123456789,b=99999999",
     "must be integers to one another, below 1073741824; got .*; give them fewer"),
])
def test_what_is_no_mixture(text, message):
    with pytest.raises(CheckError, match=message):
        parts(text)


def test_what_exists_is_one_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=1,b=2").mkdir()
    (tmp_path / "a=1,b=2" / "x.txt").write_text("text")
    for name in ("a=1,b=2", "a=1,b=2/x.txt", "a=1,b=2/*.txt"):
        assert parts(name) == [Part(name, 1)]
    assert parts("./a=1,b=1") == [Part("./a", 1), Part("b", 1)]
    for name in ("x=y.txt", "e,f.txt"):
        (tmp_path / name).write_text("text")
        assert parts(name) == [Part(name, 1)]
        for text in (f"{name}=3,b=1", f"b=1,{name}=3"):    # of which no reading is the only one
            with pytest.raises(CheckError, match=r"a mixture of names without = and ,; got"):
                parts(text)


def test_one_corpus_under_two_spellings_is_named_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.txt").write_text("text")
    for text in ("b.txt=1,./b.txt=1", f"b.txt=1,{tmp_path / 'b.txt'}=2", "x/../b.txt=1,b.txt=1"):
        with pytest.raises(CheckError, match="must name each corpus once"):
            parts(text)
    assert len(parts("tinystories=1,./tinystories=1")) == 2          # a name wins over a path


# ---- the schedule ----

def test_the_order_is_the_same_forever():
    assert drawn(np.arange(10), [7, 3])[0].tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    assert drawn(np.arange(10), [7, 3])[1].tolist() == [0, 0, 1, 1, 2, 3, 2, 4, 5, 6]
    assert drawn(np.arange(8), [1, 1, 2])[0].tolist() == [2, 2, 1, 0, 2, 2, 1, 0]


@given(WEIGHTS, st.integers(0, 2**45))
def test_rows_of_a_source_are_numbered_without_a_gap(weights, first):
    row = np.arange(first, first + 300)
    source, number = drawn(row, weights)
    for k in range(len(weights)):
        numbers = number[source == k]
        assert np.array_equal(numbers, np.arange(len(numbers)) + (numbers[0] if len(numbers) else 0))
        exact = [n * weights[k] / sum(weights) for n in row[source == k].tolist()]
        assert all(abs(a - b) < len(weights) for a, b in zip(numbers.tolist(), exact))
    if first == 0:
        assert all(number[source == k][:1].sum() == 0 for k in range(len(weights)))


@given(WEIGHTS)
def test_any_stretch_has_the_weights(weights):
    source, _ = drawn(np.arange(3000), weights)
    for k, weight in enumerate(weights):
        counts = np.cumsum(source == k)
        exact = np.arange(1, 3001) * weight / sum(weights)
        assert np.abs(counts - exact).max() < len(weights)


@given(WEIGHTS)
def test_after_a_whole_period_the_weights_are_exact(weights):
    period = sum(weights)
    source, number = drawn(np.arange(period), weights)
    assert np.bincount(source, minlength=len(weights)).tolist() == weights
    later, next_number = drawn(np.arange(period) + period * 10**9, weights)
    assert np.array_equal(source, later)
    assert np.array_equal(number + 10**9 * np.array(weights)[source], next_number)


def test_rows_are_drawn_alone_as_together():
    rows = np.random.default_rng(0).integers(0, 2**50, 100)
    together = drawn(rows, [5, 3, 11])
    assert [(int(s), int(n)) for s, n in zip(*together)] == [
        tuple(int(a[0]) for a in drawn(np.array([r]), [5, 3, 11])) for r in rows.tolist()]


def test_the_largest_numbers_do_not_overflow():
    row = np.array([2**62])
    source, number = drawn(row, [MOST - 1, 1])
    assert source[0] in (0, 1)
    assert 0 <= int(number[0]) == (2**62 * (MOST - 1) // MOST if source[0] == 0
                                   else 2**62 - 2**62 * (MOST - 1) // MOST)
