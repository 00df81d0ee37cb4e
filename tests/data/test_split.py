"""The two sides share no document and no span; the choice depends on the text alone.

Read after: bitnet_ref/data/split. Read next: tests/data/test_tokenizer.
"""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.checks import CheckError
from bitnet_ref.data import split as module
from bitnet_ref.data.corpus import documents
from bitnet_ref.data.split import (
    choose,
    document_hash,
    normalised,
    remove_repeats,
    repeated_share,
    span_hashes,
    spans,
    split,
    training_side,
    without_repeats,
)

from .conftest import story

DOCS = [story(i) for i in range(200)]
PARTS = st.sampled_from(["aa", "b", "ccc", "\n", " ", "\u3000", "\U0001f600"])
WORDS = st.lists(PARTS, max_size=40).map("".join)


# ---- which side ----

def test_the_hash_is_the_same_forever():
    assert document_hash("BitNet", 0) == 17601848536820459798
    assert document_hash("BitNet", 1) == 2235654249913239591


def test_every_document_is_on_one_side():
    train, val = split(DOCS, 0.1, seed=0)
    assert sorted(train + val) == sorted(DOCS)
    assert 8 <= len(val) <= 35                               # 20 expected, 3.5 standard deviations
    assert split(DOCS, 0.1, seed=1)[1] != val


@given(st.randoms(use_true_random=False))
def test_order_and_neighbours_do_not_matter(rng):
    val = set(split(DOCS, 0.1, seed=0)[1])
    shuffled = DOCS[:]
    rng.shuffle(shuffled)
    assert set(split(shuffled, 0.1, seed=0)[1]) == val
    more = [*shuffled, *(story(1000 + i) for i in range(50))]
    assert set(split(more, 0.1, seed=0)[1]) & set(DOCS) == val
    assert set(split(more, 0.2, seed=0)[1]) > val


def test_equal_documents_stay_together():
    train, val = split(DOCS * 3, 0.1, seed=0)
    assert set(train) & set(val) == set()
    assert len(val) == 3 * len(set(val))


def test_each_side_gets_one():
    for fraction in (1e-9, 0.5, 1 - 1e-9):
        for seed in range(20):
            train, val = split(["a", "b"], fraction, seed)
            assert (len(train), len(val)) == (1, 1)
    assert split(DOCS, 0, seed=0) == (DOCS, [])
    assert choose([], 0, seed=0).documents == 0


@pytest.mark.parametrize("docs", [[], ["a"], ["a", "a"]])
def test_nothing_to_divide(docs):
    with pytest.raises(CheckError, match=r"a split needs at least two different documents; got .*; "
                                         r"give more text, separate documents by blank lines, or set val"):
        split(docs, 0.1, seed=0)


@pytest.mark.parametrize("fraction", [-0.1, 1, 2, float("nan")])
def test_impossible_fractions(fraction):
    with pytest.raises(CheckError, match=r"val_fraction must lie in \[0, 1\); got"):
        split(DOCS, fraction, seed=0)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_impossible_seeds(seed):
    with pytest.raises(CheckError, match=r"seed must lie in \[0, 2\^64\); got"):
        split(DOCS, 0.1, seed)


@given(st.randoms(use_true_random=False))
def test_the_validation_side_is_bounded(rng):
    docs = DOCS * 2
    rng.shuffle(docs)
    most = 5000
    choice = choose(docs, 0.9, 0, most)
    held = sum(len(t.encode()) for t in choice.held_out)
    assert most - 2 * max(map(len, docs)) <= held <= most
    assert set(choice.held_out) == set(choose(DOCS * 2, 0.9, 0, most).held_out)
    assert choice.held_out == [t for t in docs if document_hash(t, 0) < choice.cut]
    assert sorted([*training_side(docs, choice, 0), *choice.held_out]) == sorted(docs)


def test_a_document_above_the_bound_is_still_held_out():
    docs = ["a" * 50, "b" * 50]
    choice = choose(docs, 0.5, 0, most=10)
    assert len(choice.held_out) == 1
    assert [*training_side(docs, choice, 0), *choice.held_out] in (docs, docs[::-1])


# ---- spans ----

@given(WORDS)
def test_normalised_is_split_and_join(text):
    chars, where = normalised(text)
    assert "".join(map(chr, chars)) == " ".join(text.split())
    assert all(text[i] == chr(c) or c == 32 for i, c in zip(where, chars))


@given(WORDS, st.integers(1, 40))
def test_span_hashes_are_the_polynomial(text, span):
    chars, _ = normalised(text)
    expected = []
    for i in range(len(chars) - span + 1):
        h = 0
        for c in chars[i:i + span]:
            h = (h * 0x9E3779B97F4A7C15 + int(c) + 1) % 2**64
        expected.append(h)
    assert span_hashes(chars, span).tolist() == expected


def brute_spans(texts, span):
    """Every span of every text, as strings: what the hashes stand for."""
    flat = [" ".join(t.split()) for t in texts]
    return [t[i:i + span] for t in flat for i in range(len(t) - span + 1)]


@given(st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=5), st.integers(1, 12))
def test_share_and_removal_agree_with_strings(train, val, span):
    ours, theirs = set(brute_spans(train, span)), brute_spans(val, span)
    expected = sum(s in ours for s in theirs) / max(1, len(theirs))
    assert repeated_share(train, val, span) == pytest.approx(expected)
    kept, removed = remove_repeats(train, val, span)
    assert set(brute_spans(kept, span)) & set(theirs) == set()
    assert repeated_share(kept, val, span) == 0
    assert removed == sum(len(t.encode()) for t in train) - sum(len(t.encode()) for t in kept)
    assert all(t.strip() for t in kept)
    if not expected:
        assert kept == [t for t in train if t.strip()]


def test_only_the_lines_that_repeat_go():
    shared = "It is a truth universally acknowledged, that whoever copies a line is found out.\n"
    known = spans([f"Ahead!\n{shared}Behind?"])
    assert without_repeats(f"One.\n\n{shared}\nTwo.\n", known) == "One.\n\n\nTwo.\n"
    assert without_repeats(f"One.\n   {shared.replace(' ', '  ')}Two.\n", known) == "One.\nTwo.\n"
    assert without_repeats(shared, known) == ""
    short = shared[:59] + "\n"                                # one character less than a span
    assert without_repeats(short, known) == short


def test_a_span_takes_all_lines_it_crosses_and_no_others():
    words = [f"word{i:02d}" for i in range(30)]
    known = spans([" ".join(words)])
    text = "start\n" + "\n".join(words) + "\nend\n"
    assert without_repeats(text, known) == "start\nend\n"
    known_end = spans(["a" * 58 + " b"])                        # one span; its last character stands alone
    assert without_repeats("start\n" + "a" * 58 + "\nb\nend\n", known_end) == "start\nend\n"
    half = "start\n" + "\n".join(words[:8]) + "\nend\n"       # 55 characters: shorter than a span
    assert without_repeats(half, known) == half


def test_closing_a_gap_may_not_make_a_repeat():
    left, right = "a" * 30, "b" * 30
    other = "c" * 60
    known = spans([left + " " + right, other])
    assert without_repeats(f"x\n{left}\n{other}\n{right}\ny\n", known) == "x\ny\n"


def test_a_long_line_loses_a_piece_only():
    known = spans(["needle " * 20])
    text = "hay " * 1100 + "needle " * 20 + "hay " * 2000      # no newline; the needles lie in one piece
    rest = without_repeats(text, known)
    assert len(text) - len(rest) == 4096
    assert set(rest.split()) == {"hay"}


def test_empty_sides():
    assert repeated_share([], []) == repeated_share(DOCS, []) == repeated_share([], DOCS) == 0
    assert repeated_share(DOCS, DOCS) == 1
    assert remove_repeats(DOCS, []) == (DOCS, 0)
    with pytest.raises(CheckError, match=r"span must be greater than 0; got 0"):
        spans(DOCS, 0)


def test_the_table_never_says_no_to_a_member():
    known = spans(DOCS)
    assert len(known.hashes) == len(brute_spans(DOCS, module.SPAN))
    assert len(set(known.hashes.tolist())) == len(set(brute_spans(DOCS, module.SPAN)))
    assert module._among(known.hashes, known).all()
    rng = np.random.default_rng(0)
    assert not module._among(rng.integers(0, 2**63, 10_000, np.uint64), known).any()


def test_the_default_corpus_has_repeats_and_then_none():
    train, val = split(documents("python-docs"), 0.05, seed=0)
    assert repeated_share(train, val) > 0.05
    kept, removed = remove_repeats(train, val)
    assert repeated_share(kept, val) == 0
    assert 0 < removed < 0.1 * sum(len(t.encode()) for t in train)


def test_hashes_are_uniform():
    rng = random.Random(0)
    low = sum(document_hash(f"{rng.random()}", 5) < 2**63 for _ in range(4000))
    assert abs(low - 2000) < 4 * 32
