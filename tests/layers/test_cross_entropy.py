"""layers/cross_entropy: the mean of -log p(target) in nats, and softmax minus one-hot back."""

import math

import numpy as np
import pytest
from against_golden import golden_test
from derivative import array_error, gradient_errors
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.layers import (
    cross_entropy,
    cross_entropy_backward,
    linear,
    linear_backward,
    linear_cross_entropy,
)

TARGETS = np.array([0, 3, 6, 3])


def example(rng, dtype=np.float64):
    return rng.normal(0, 2, (4, 7)).astype(dtype)


# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("cross_entropy")


# --- derivative ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_backward_is_the_derivative(seed, tol):
    rng = np.random.default_rng(seed)

    def forward(logits):
        return cross_entropy(logits, TARGETS)[0]

    def backward(dloss, logits):
        return {"logits": cross_entropy_backward(dloss, logits, TARGETS, cross_entropy(logits, TARGETS)[1])}

    errors = gradient_errors(forward, backward, {"logits": example(rng)}, rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


@pytest.mark.parametrize("seed", range(3))
def test_the_fused_op_has_the_derivative_of_its_loss(seed, tol):
    """With respect to both of its inputs; `share` scales the gradient and not the loss."""
    rng = np.random.default_rng(seed)

    def forward(x, w):
        return cross_entropy(linear(x, w), TARGETS)[0]

    def backward(dloss, x, w):
        dw = np.zeros_like(w)
        loss, dx = linear_cross_entropy(x, w, TARGETS, dloss, dw)
        assert loss == pytest.approx(forward(x, w), rel=1e-14)
        return {"x": dx, "w": dw}

    args = {"x": rng.normal(size=(4, 5)), "w": rng.normal(size=(7, 5))}
    errors = gradient_errors(forward, backward, args, rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


# --- property -----------------------------------------------------------------------------------------------


def test_against_python_numbers(rng):
    logits = example(rng)
    loss, lse = cross_entropy(logits, TARGETS)
    p = [math.exp(row[t]) / math.fsum(map(math.exp, row)) for row, t in zip(logits, TARGETS)]
    assert loss == pytest.approx(-sum(map(math.log, p)) / 4, rel=1e-14)
    assert lse.shape == (4, 1)
    assert lse[2, 0] == pytest.approx(math.log(math.fsum(map(math.exp, logits[2]))), rel=1e-14)


@pytest.mark.parametrize("V", [2, 7, 1000])
def test_a_uniform_model_has_loss_log_v(V):
    loss, _ = cross_entropy(np.full((3, V), 5.0), np.array([0, 1, V - 1]))
    assert loss == pytest.approx(math.log(V), rel=1e-14)


@given(seed=seeds, shift=st.floats(-1e3, 1e3))
def test_a_shift_of_a_row_changes_nothing(seed, shift):
    rng = np.random.default_rng(seed)
    logits = example(rng)
    moved = logits + shift * np.array([[1], [0], [-1], [0.5]])
    (loss, lse), (loss_moved, lse_moved) = cross_entropy(logits, TARGETS), cross_entropy(moved, TARGETS)
    assert loss_moved == pytest.approx(loss, rel=1e-11)
    np.testing.assert_allclose(cross_entropy_backward(1.0, moved, TARGETS, lse_moved),
                               cross_entropy_backward(1.0, logits, TARGETS, lse), atol=1e-12)


@given(seed=seeds)
def test_probabilities_sum_to_one_and_gradients_to_zero(seed):
    logits = example(np.random.default_rng(seed))
    _, lse = cross_entropy(logits, TARGETS)
    np.testing.assert_allclose(np.exp(logits - lse).sum(axis=1), 1, rtol=1e-14)
    d = cross_entropy_backward(1.0, logits, TARGETS, lse)
    np.testing.assert_allclose(d.sum(axis=1), 0, atol=1e-15)
    assert (np.sign(d) == np.where(np.arange(7) == TARGETS[:, None], -1, 1)).all()


def test_huge_logits_do_not_overflow():
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]], np.float32)
    loss, lse = cross_entropy(logits, np.array([0, 2]))
    assert loss == pytest.approx(math.log(2) / 2, abs=1e-3)         # a float32 near 1e4 has steps of 1e-3
    d = cross_entropy_backward(1.0, logits, np.array([0, 2]), lse)
    np.testing.assert_allclose(d, [[0, 0, 0], [0, 0.25, -0.25]], atol=1e-3)


def test_the_gradient_is_of_the_mean_times_dloss(rng):
    logits = example(rng)
    _, lse = cross_entropy(logits, TARGETS)
    whole = cross_entropy_backward(3.0, logits, TARGETS, lse)
    rows = [cross_entropy_backward(1.0, logits[i:i + 1], TARGETS[i:i + 1], lse[i:i + 1]) for i in range(4)]
    np.testing.assert_allclose(whole, 3 / 4 * np.concatenate(rows), rtol=1e-14)


def test_out_may_be_the_logits_themselves(rng):
    logits = example(rng)
    _, lse = cross_entropy(logits, TARGETS)
    before, want = logits.copy(), cross_entropy_backward(1.0, logits, TARGETS, lse)
    np.testing.assert_array_equal(logits, before)       # without out they are left alone
    assert cross_entropy_backward(1.0, logits, TARGETS, lse, out=logits) is logits
    np.testing.assert_array_equal(logits, want)


def test_float32_in_float32_out(rng):
    logits = example(rng, np.float32)
    loss, lse = cross_entropy(logits, TARGETS)
    d = cross_entropy_backward(1.0, logits, TARGETS, lse)
    assert {a.dtype for a in (loss, lse, d)} == {np.dtype(np.float32)}


def test_the_fused_op_is_the_four_it_stands_for(rng):
    x, w, dw = rng.normal(size=(4, 5)), rng.normal(size=(7, 5)), np.ones((7, 5))
    want, logits = dw.copy(), linear(x, w)
    loss, lse = cross_entropy(logits, TARGETS)
    dx = linear_backward(cross_entropy_backward(0.25, logits, TARGETS, lse), x, w, want)
    got = linear_cross_entropy(x, w, TARGETS, 0.25, dw)
    for a, b in zip((*got, dw), (loss, dx, want)):
        np.testing.assert_array_equal(a, b)


# --- twin ---------------------------------------------------------------------------------------------------


def test_twin(backends, tol, rng):
    logits, results = example(rng, np.float32), []
    for ops in (backends, layers):
        loss, lse = ops.cross_entropy(logits, TARGETS)
        results.append([np.asarray(loss), lse, ops.cross_entropy_backward(0.5, logits, TARGETS, lse)])
    assert max(map(array_error, *results)) <= tol["float32"]


@pytest.mark.parametrize(("M", "K", "V"), [(1, 1, 2), (150, 37, 19), (300, 24, 10_001)])
def test_twin_of_the_fused_op(M, K, V, backends, tol, rng):
    """Also where a backend takes several chunks of logits, and the last is smaller; judged by float64."""
    x, w, start = (0.1 * rng.normal(size=s).astype(np.float32) for s in ((M, K), (V, K), (V, K)))
    targets, results = rng.integers(0, V, M), []
    for ops, dtype in ((backends, np.float32), (layers, np.float64)):
        dw = (start * np.float32(1e-3)).astype(dtype)
        loss, dx = ops.linear_cross_entropy(x.astype(dtype), w.astype(dtype), targets, 0.5, dw)
        assert dx.dtype == dtype
        results.append([np.asarray(loss), dx, dw])
    assert max(map(array_error, *results)) <= tol["float32"]
