"""The small models of the notebooks: the reference's own parts, and what they are compared with."""

from dataclasses import replace

import letters
import numpy as np
import pytest

from bitnet_ref.walk import twin


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text in which a letter is followed by one of two: a bit a letter."""
    return letters.corpus(tmp_path_factory.mktemp("text"), ["ab", "cd"])


def few(steps):
    return replace(twin.RECIPE, steps=steps)


@pytest.mark.parametrize("linear", ["ternary", "full"])
def test_it_learns_and_starts_alike(data, linear):
    start, later = twin.trained(linear, data, few(1)), twin.trained(linear, data, few(12))
    assert start.cfg.linear == linear
    assert twin.loss(later, data, 8) < twin.loss(start, data, 8)


def test_rounded_shares_no_memory_and_has_trits(data):
    full = twin.trained("full", data, few(2))
    after = twin.rounded(full)
    assert np.array_equal(after.params.flat, full.params.flat)
    assert not np.shares_memory(after.params.flat, full.params.flat)
    assert len(after.weights.trits()) == 7 * full.cfg.n_layers
    assert twin.loss(after, data, 8) != twin.loss(full, data, 8)


def test_what_a_model_must_beat(data):
    assert twin.guessing(data) == pytest.approx(np.log(data.tokenizer.vocab_size))
    assert 0 < twin.by_pairs(data) < twin.guessing(data)
    assert twin.by_pairs(data, data.val.tokens) == twin.by_pairs(data)
    some = [twin.by_pairs(data, data.val.tokens[a:a + 2]) for a in range(8)]       # a pair each
    assert twin.by_pairs(data, data.val.tokens[:9]) == pytest.approx(np.mean(some))


def test_cosine():
    a = np.array([[3.0, 4.0]])
    assert twin.cosine(a, 2 * a) == pytest.approx(1)
    assert twin.cosine(a, np.array([[4.0, -3.0]])) == pytest.approx(0)
