"""generate/sampling: greedy is argmax, draws follow the softmax, one seed and place give one draw."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref.generate.sampling import sample


def some_logits(seed, n, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, n).astype(np.float32)


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max())
    return e / e.sum()


def counts(logits, n, **given):
    how = {"temperature": 1.0, "top_k": None, **given}
    drawn = [sample(logits, seed=3, position=t, **how) for t in range(n)]
    return np.bincount(drawn, minlength=len(logits))


def chi_square(count, p):
    """Divided by the degrees of freedom: about 1 if `count` was drawn from `p`."""
    seen = p > 0
    assert count[~seen].sum() == 0
    expected = count.sum() * p[seen]
    return float(np.sum((count[seen] - expected) ** 2 / expected)) / max(1, seen.sum() - 1)


@given(seed=seeds, n=st.integers(1, 50))
def test_temperature_zero_is_argmax(seed, n):
    logits = some_logits(seed, n)
    assert sample(logits, 0, None, 0, 0) == np.argmax(logits)


def test_among_equals_the_lowest_id_is_greedy():
    assert sample(np.array([1.0, 3.0, 3.0, 3.0]), 0, None, 0, 0) == 1


@given(seed=seeds, n=st.integers(1, 50), temperature=st.floats(1e-3, 1e3), position=st.integers(0, 2**40))
def test_the_best_alone_is_greedy_at_any_temperature(seed, n, temperature, position):
    logits = some_logits(seed, n)
    assert sample(logits, temperature, 1, seed, position) == np.argmax(logits)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 20, 3])
def test_draws_follow_the_softmax_of_the_top_k(temperature, top_k):
    logits = some_logits(7, 12)
    p = softmax(logits / temperature)
    if top_k is not None:
        p = np.where(np.argsort(np.argsort(-logits)) < top_k, p, 0)
    p /= p.sum()
    assert chi_square(counts(logits, 4000, temperature=temperature, top_k=top_k), p) < 2.2
    wrong = softmax(logits / (temperature * 1.3))
    assert chi_square(counts(logits, 4000, temperature=temperature), wrong) > 3


@given(seed=seeds, n=st.integers(2, 50), k=st.integers(1, 60), position=st.integers(0, 1000))
def test_only_the_top_k_are_drawn(seed, n, k, position):
    logits = some_logits(seed, n)
    assert sample(logits, 5.0, k, seed, position) in np.argsort(-logits)[:k]


@given(seed=seeds, position=st.integers(0, 2**63))
def test_a_draw_depends_on_seed_and_place_alone(seed, position):
    logits = some_logits(0, 400)
    first = sample(logits, 1.0, None, seed, position)
    np.random.default_rng(0).normal(size=100)
    assert sample(logits, 1.0, None, seed, position) == first


@pytest.mark.parametrize("moved", ["seed", "position"])
def test_other_seeds_and_other_places_are_other_draws(moved):
    logits = np.zeros(1000, np.float32)
    drawn = [sample(logits, 1.0, None, **{"seed": 5, "position": 5, moved: n}) for n in range(200)]
    assert len(set(drawn)) > 150


@pytest.mark.parametrize("temperature", [1e-320, 1e-300, 1e-30])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = some_logits(1, 30)
    drawn = {sample(logits, temperature, k, 0, t) for k in (None, 5) for t in range(20)}
    assert drawn == {int(np.argmax(logits))}


def test_an_infinite_temperature_is_uniform():
    assert chi_square(counts(some_logits(1, 8), 4000, temperature=float("inf")), np.full(8, 1 / 8)) < 2


def test_large_logits_do_not_overflow():
    assert sample(np.array([1e38, -1e38, 3e38], np.float32), 0.8, None, 0, 0) == 2


@pytest.mark.parametrize("k", [3, 4, None])
def test_a_token_of_no_probability_is_never_drawn(k):
    logits = np.array([0.0, -np.inf, 0.0, -np.inf])
    assert {sample(logits, 1.0, k, 0, t) for t in range(100)} == {0, 2}
