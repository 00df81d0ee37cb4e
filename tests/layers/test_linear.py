"""layers/linear: y = x @ w.T with weights (out, in), for any number of leading dimensions."""

import math

import ml_dtypes
import numpy as np
import pytest
from against_golden import golden_test
from derivative import array_error, gradient_errors

from bitnet_ref import layers
from bitnet_ref.layers import absmax_int8, linear, linear_backward, prepare_rows


def example(rng, dtype=np.float64, lead=(2, 3)):
    return {"x": rng.normal(size=(*lead, 5)).astype(dtype), "w": rng.normal(size=(4, 5)).astype(dtype)}


def backward(dy, x, w):
    dw = np.zeros_like(w)
    return {"x": linear_backward(dy, x, w, dw), "w": dw}


# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("linear")


# --- derivative ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lead", [(), (6,), (2, 3)], ids=str)
def test_backward_is_the_derivative(seed, lead, tol):
    rng = np.random.default_rng(seed)
    errors = gradient_errors(linear, backward, example(rng, lead=lead), rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


# --- property -----------------------------------------------------------------------------------------------


def test_against_sums_of_products(rng):
    x, w = example(rng).values()
    y = linear(x, w)
    assert y.shape == (2, 3, 4)
    for b, t, n in np.ndindex(y.shape):
        assert y[b, t, n] == pytest.approx(math.fsum(x[b, t] * w[n]), rel=1e-12)


def test_backward_sums_over_all_rows(rng):
    """A gradient of ones: dw holds the sum of the inputs in every row, dx the sum of the weights."""
    x, w = example(rng).values()
    grads = backward(np.ones((2, 3, 4)), x, w)
    np.testing.assert_allclose(grads["w"], np.tile(x.sum(axis=(0, 1)), (4, 1)), rtol=1e-13)
    np.testing.assert_allclose(grads["x"], np.tile(w.sum(axis=0), (2, 3, 1)), rtol=1e-13)


def test_gradients_accumulate(rng):
    x, w = example(rng).values()
    dy, dw = rng.normal(size=(2, 3, 4)), np.ones((4, 5))
    linear_backward(dy, x, w, dw)
    np.testing.assert_allclose(dw, 1 + backward(dy, x, w)["w"], rtol=1e-13)


def test_float32_in_float32_out(rng):
    x, w = example(rng, np.float32).values()
    y = linear(x, w)
    assert {a.dtype for a in (y, *backward(y, x, w).values())} == {np.dtype(np.float32)}


def test_rows_of_int8_are_their_codes_times_a_scale_each(rng):
    w_q, w_scale = np.array([[-127, 0, 5], [1, 2, 3]], np.int8), np.array([[0.5], [2.0]])
    x = rng.normal(size=(4, 3))
    y = linear(x, prepare_rows(w_q, w_scale))
    np.testing.assert_allclose(y, np.stack([0.5 * x @ w_q[0], 2.0 * x @ w_q[1]], axis=1), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_table_in_16_bits_is_widened_exactly(dtype, backends, rng):
    w, x = rng.normal(size=(9, 5)).astype(dtype), rng.normal(size=(3, 5)).astype(np.float32)
    ids = np.array([[8, 0], [3, 3]])
    table, wide = backends.prepare_table(w), w.astype(np.float32)
    np.testing.assert_array_equal(backends.linear(x, table), backends.linear(x, wide))
    np.testing.assert_array_equal(backends.embedding(ids, table), wide[ids])
    assert backends.embedding(ids, table).dtype == np.float32


# --- twin ---------------------------------------------------------------------------------------------------


def test_twin(backends, tol, rng):
    x, w = example(rng, np.float32).values()
    dy, results = rng.normal(size=(2, 3, 4)).astype(np.float32), []
    for ops in (backends, layers):
        dw = np.zeros_like(w)
        results.append([ops.linear(x, w), ops.linear_backward(dy, x, w, dw), dw])
    assert max(map(array_error, *results)) <= tol["float32"]


@pytest.mark.parametrize(("M", "K", "N"), [(1, 1, 1), (3, 37, 19), (2, 1100, 130)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_twin_of_int8_rows(M, K, N, dtype, backends, tol, rng):
    x, w = (rng.normal(size=s).astype(dtype) for s in ((2, M, K), (N, K)))
    w_q, w_scale = absmax_int8(w)
    y = backends.linear(x, backends.prepare_rows(w_q, w_scale))
    assert y.dtype == dtype
    want = linear(x.astype(np.float64), prepare_rows(w_q, w_scale.astype(np.float64)))
    assert array_error(y, want) <= tol[np.dtype(dtype).name]
