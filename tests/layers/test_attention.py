"""layers/attention: causal, grouped, and equal to a loop over heads and positions."""

import math

import numpy as np
import pytest
from against_golden import golden_test
from derivative import array_error, gradient_errors
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.layers import attention, attention_backward

SHAPES = [(T, S, H, KV) for T, S in ((5, 5), (2, 5), (1, 4)) for H, KV in ((4, 4), (4, 2), (4, 1), (6, 2))]


def example(rng, T=5, S=5, H=4, KV=2, B=2, Dh=3, dtype=np.float64):
    shapes = {"q": (B, T, H, Dh), "k": (B, S, KV, Dh), "v": (B, S, KV, Dh)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def backward(do, q, k, v):
    return dict(zip("qkv", attention_backward(do, q, k, v, *attention(q, k, v))))


def by_hand(q, k, v):
    """One query and one head at a time. Returns o and the log-sum-exp of the scores (B, T, H)."""
    (B, T, H, Dh), (S, KV) = q.shape, k.shape[1:3]
    o, lse = np.zeros_like(q), np.zeros((B, T, H))
    for b, t, h in np.ndindex(B, T, H):
        seen, kv = range(S - T + t + 1), h // (H // KV)
        scores = [math.fsum(q[b, t, h] * k[b, s, kv]) / math.sqrt(Dh) for s in seen]
        total = math.fsum(map(math.exp, scores))
        o[b, t, h] = sum(math.exp(score) / total * v[b, s, kv] for score, s in zip(scores, seen))
        lse[b, t, h] = math.log(total)
    return o, lse


# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("attention")


# --- derivative ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward_is_the_derivative(seed, shape, tol):
    rng = np.random.default_rng(seed)
    errors = gradient_errors(lambda q, k, v: attention(q, k, v)[0], backward, example(rng, *shape), rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


# --- property -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_one_head_and_one_query_at_a_time(shape, tol, rng):
    """Ratio 1 is multi-head attention; with S > T the queries are the last T positions."""
    given = example(rng, *shape)
    o, lse = attention(**given)
    want, want_lse = by_hand(**given)
    assert array_error(o, want) <= tol["float64"]
    B, T, H, _ = o.shape
    assert array_error(lse.reshape(B, H, T).swapaxes(1, 2), want_lse) <= tol["float64"]


@given(seed=seeds, t=st.integers(0, 3))
def test_a_later_key_or_value_cannot_move_an_earlier_output(seed, t):
    rng = np.random.default_rng(seed)
    q, k, v = example(rng).values()
    o, lse = attention(q, k, v)
    k[:, t + 1:] += rng.normal(size=k[:, t + 1:].shape)
    v[:, t + 1:] += rng.normal(size=v[:, t + 1:].shape)
    after, lse_after = attention(q, k, v)
    np.testing.assert_array_equal(after[:, :t + 1], o[:, :t + 1])
    np.testing.assert_array_equal(lse_after[..., :t + 1, :], lse[..., :t + 1, :])
    assert np.all(after[:, t + 1:] != o[:, t + 1:])


@given(seed=seeds, t=st.integers(0, 3))
def test_backward_sends_nothing_to_later_keys(seed, t):
    rng = np.random.default_rng(seed)
    given = example(rng)
    do = rng.normal(size=given["q"].shape)
    do[:, t + 1:] = 0
    grads = backward(do, **given)
    assert not grads["k"][:, t + 1:].any()
    assert not grads["v"][:, t + 1:].any()
    assert grads["v"][:, :t + 1].all()


@given(seed=seeds, ratio=st.sampled_from([2, 4]))
def test_grouped_queries_are_multi_head_with_repeated_keys_and_values(seed, ratio):
    rng = np.random.default_rng(seed)
    q, k, v = example(rng, H=4, KV=4 // ratio).values()
    do = rng.normal(size=q.shape)
    wide = {"q": q, "k": np.repeat(k, ratio, axis=2), "v": np.repeat(v, ratio, axis=2)}
    assert array_error(attention(q, k, v)[0], attention(**wide)[0]) <= 1e-14
    grads, wide_grads = backward(do, q, k, v), backward(do, **wide)
    assert array_error(grads["q"], wide_grads["q"]) <= 1e-13
    for name in "kv":                                   # a shared head receives the sum of its group
        summed = wide_grads[name].reshape(2, 5, 4 // ratio, ratio, 3).sum(axis=3)
        assert array_error(grads[name], summed) <= 1e-13


@given(seed=seeds, T=st.integers(1, 4))
def test_the_last_queries_alone_are_the_last_rows_of_all(seed, T):
    q, k, v = example(np.random.default_rng(seed)).values()
    assert array_error(attention(q[:, -T:], k, v)[0], attention(q, k, v)[0][:, -T:]) <= 1e-14


@given(seed=seeds)
def test_probabilities_sum_to_one(seed):
    """Recomputed from lse as backward does, by an independent product."""
    q, k, v = example(np.random.default_rng(seed)).values()
    _, lse = attention(q, k, v)
    scores = np.einsum("btgrd,bsgd->bgrts", q.reshape(2, 5, 2, 2, 3), k) / np.sqrt(3)
    p = np.exp(np.where(np.tri(5, dtype=bool), scores, -np.inf) - lse)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-14)
    o, _ = attention(q, k, np.ones_like(v))             # so a value that is the same everywhere comes through
    np.testing.assert_allclose(o, 1, rtol=1e-14)


def test_the_first_position_reads_its_own_value(rng):
    q, k, v = example(rng).values()
    np.testing.assert_array_equal(attention(q, k, v)[0][:, 0], np.repeat(v[:, 0], 2, axis=1))


def test_large_scores_do_not_overflow(rng):
    q, k, v = example(rng, dtype=np.float32).values()
    o, lse = attention(1000 * q, k, v)
    assert np.isfinite(o).all()
    assert np.isfinite(lse).all()
    assert all(np.isfinite(d).all() for d in attention_backward(o, 1000 * q, k, v, o, lse))


def test_inputs_are_left_alone(rng):
    given = example(rng)
    before = {name: a.copy() for name, a in given.items()}
    backward(np.ones_like(given["q"]), **given)
    for name, a in given.items():
        np.testing.assert_array_equal(a, before[name])


def test_float32_in_float32_out(rng):
    q, k, v = example(rng, dtype=np.float32).values()
    results = [*attention(q, k, v), *backward(q, q, k, v).values()]
    assert {a.dtype for a in results} == {np.dtype(np.float32)}


# --- twin ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5, 4, 2), (2, 5, 6, 2)], ids=str)
def test_twin(backends, tol, rng, shape):
    given = example(rng, *shape, dtype=np.float32)
    do = rng.normal(size=given["q"].shape).astype(np.float32)
    results = []
    for ops in (backends, layers):
        o, lse = ops.attention(**given)
        results.append([o, lse, *ops.attention_backward(do, *given.values(), o, lse)])
    assert max(map(array_error, *results)) <= tol["float32"]
