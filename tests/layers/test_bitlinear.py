"""layers/bitlinear: an exact integer product between two quantisers, and the straight-through backward.

The quantisers have no derivative worth the name; what is differentiated is the map with their residuals
frozen at the evaluation point, x_hat = n + r_x and w_hat = w + r_w, which is what straight-through means.
"""

import numpy as np
import pytest
from against_golden import golden_test
from derivative import array_error, gradient_errors
from hypothesis import given
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.layers import (
    bitlinear,
    bitlinear_backward,
    prepare,
    rmsnorm,
    rmsnorm_int8,
    ternary_linear,
    ternary_linear_backward,
)
from bitnet_ref.layers.bitlinear import EXACT_IN_FLOAT32
from bitnet_ref.quant import absmax_int8, absmean_ternary, dequantise

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def example(rng, dtype=np.float64, lead=(2, 3), K=7, N=5):
    return {"x": rng.normal(size=(*lead, K)).astype(dtype), "g": rng.normal(1, 0.5, K).astype(dtype),
            "w": rng.normal(size=(N, K)).astype(dtype)}


def quantised(rng, dtype=np.float64, **size):
    """x_q, x_scale, prepared w."""
    x, _, w = example(rng, dtype, **size).values()
    return *absmax_int8(x), prepare(*absmean_ternary(w))


def backward(dy, x, w, g=None):
    dg, dw = None if g is None else np.zeros_like(g), np.zeros_like(w)
    dx = bitlinear_backward(dy, x, g, *bitlinear(x, g, w)[1:], dg, dw)
    return {"x": dx, "w": dw} if g is None else {"x": dx, "w": dw, "g": dg}


# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("bitlinear")


# --- derivative ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lead", [(6,), (2, 3)], ids=str)
def test_backward_of_the_product_is_linear_in_the_dequantised_operands(seed, lead, tol):
    rng = np.random.default_rng(seed)
    x_q, x_scale, w = quantised(rng, lead=lead)
    operands = {"x_hat": dequantise(x_q, x_scale), "w_hat": dequantise(*w)}

    def product_backward(dy, x_hat, w_hat):
        dw = np.zeros(w.w_q.shape)
        return {"x_hat": ternary_linear_backward(dy, x_q, x_scale, w, dw), "w_hat": dw}

    errors = gradient_errors(lambda x_hat, w_hat: x_hat @ w_hat.T, product_backward, operands, rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_gain", [True, False])
def test_backward_is_the_derivative_with_frozen_residuals(seed, with_gain, tol):
    rng = np.random.default_rng(seed)
    given = example(rng)
    if not with_gain:
        del given["g"]
    n = rmsnorm(given["x"], given.get("g"))[0]
    r_x = dequantise(*absmax_int8(n)) - n
    r_w = dequantise(*absmean_ternary(given["w"])) - given["w"]

    def frozen(x, w, g=None):
        return (rmsnorm(x, g)[0] + r_x) @ (w + r_w).T

    errors = gradient_errors(frozen, backward, given, rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


# --- exactness ----------------------------------------------------------------------------------------------


@BOTH
@given(seed=seeds)
def test_the_integer_sum_is_exact(dtype, seed):
    """With scales of one the result is the int64 product, to the last digit."""
    rng = np.random.default_rng(seed)
    x_q = rng.integers(-127, 128, (3, 2, 501)).astype(np.int8)
    w_q = rng.integers(-1, 2, (4, 501)).astype(np.int8)
    y = ternary_linear(x_q, np.ones((3, 2, 1), dtype), prepare(w_q, dtype(1)))
    np.testing.assert_array_equal(y, x_q.astype(np.int64) @ w_q.T.astype(np.int64))


@BOTH
def test_the_worst_case_is_exact_up_to_the_largest_width_in_float32(dtype):
    """All 127 against all 1 and -1; one code is changed so that the sum is odd and needs every bit."""
    K = EXACT_IN_FLOAT32
    x_q, w_q = np.full((2, K), 127, np.int8), np.ones((2, K), np.int8)
    x_q[1], w_q[1] = -127, -1
    x_q[0, 0] = 126
    y = ternary_linear(x_q, np.ones((2, 1), dtype), prepare(w_q, dtype(1)))
    assert y.tolist() == [[127 * K - 1, 1 - 127 * K], [-127 * K, 127 * K]]


def test_above_that_width_the_sum_is_in_float64():
    K = 132_201                                     # 127 K is odd and above 2^24: float32 cannot hold it
    x_q, w_q = np.full((1, K), 127, np.int8), np.ones((1, K), np.int8)
    assert int(np.float32(127 * K)) != 127 * K
    y = ternary_linear(x_q, np.ones((1, 1)), prepare(w_q, np.float64(1)))
    assert y.item() == 127 * K
    narrow = ternary_linear(x_q, np.ones((1, 1), np.float32), prepare(w_q, np.float32(1)))
    assert (narrow.dtype, narrow.item()) == (np.float32, np.float32(127 * K))


@BOTH
def test_both_scales_multiply_the_sum(dtype):
    x_q, w_q = np.array([[127, -2], [3, 4]], np.int8), np.array([[1, -1]], np.int8)
    y = ternary_linear(x_q, np.array([[0.5], [2]], dtype), prepare(w_q, dtype(0.25)))
    assert y.tolist() == [[129 * 0.125], [-0.5]]
    assert y.dtype == dtype


# --- property -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("with_gain", [True, False])
def test_rmsnorm_int8_is_the_two_ops_in_a_row(dtype, with_gain, rng):
    x, g, _ = example(rng, dtype).values()
    g = g if with_gain else None
    n, want_rstd = rmsnorm(x, g, 0.1)
    got, want = rmsnorm_int8(x, g, 0.1), (*absmax_int8(n), want_rstd)
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert rmsnorm_int8(x, g)[2][0, 0] == rmsnorm(x, g, 1e-5)[1][0, 0]


@BOTH
def test_bitlinear_is_its_parts(dtype, rng):
    x, g, w = example(rng, dtype).values()
    y, x_q, x_scale, ternary, rstd = bitlinear(x, g, w, eps=0.1)
    np.testing.assert_array_equal(x_q, rmsnorm_int8(x, g, 0.1)[0])
    np.testing.assert_array_equal(ternary.w_q, absmean_ternary(w)[0])
    np.testing.assert_array_equal(y, ternary_linear(x_q, x_scale, ternary))
    np.testing.assert_array_equal(rstd, rmsnorm(x, g, 0.1)[1])


@given(seed=seeds)
def test_the_product_is_that_of_the_dequantised_operands(seed):
    x_q, x_scale, w = quantised(np.random.default_rng(seed))
    assert array_error(ternary_linear(x_q, x_scale, w), dequantise(x_q, x_scale) @ dequantise(*w).T) <= 1e-14


def test_dw_takes_the_quantised_activation(rng):
    given = example(rng)
    dy = rng.normal(size=(2, 3, 5))
    n = rmsnorm(given["x"], given["g"])[0]
    n_hat = dequantise(*absmax_int8(n))
    dw = backward(dy, **given)["w"]
    assert array_error(dw, np.einsum("btn,btk->nk", dy, n_hat)) <= 1e-14
    assert array_error(dw, np.einsum("btn,btk->nk", dy, n)) > 1e-4


def test_backward_keeps_int8(rng):
    """What must live until backward is a quarter of the float activations."""
    _, x_q, _, ternary, _ = bitlinear(*example(rng, np.float32).values())
    assert x_q.dtype == ternary.w_q.dtype == np.int8


def test_gradients_accumulate(rng):
    given = example(rng)
    dy, dg, dw = rng.normal(size=(2, 3, 5)), np.ones(7), np.ones((5, 7))
    bitlinear_backward(dy, given["x"], given["g"], *bitlinear(**given)[1:], dg, dw)
    grads = backward(dy, **given)
    np.testing.assert_allclose(dg, 1 + grads["g"], rtol=1e-13)
    np.testing.assert_allclose(dw, 1 + grads["w"], rtol=1e-13)


def test_nan_in_one_token_reaches_that_token_only(rng):
    x, g, w = example(rng).values()
    clean = bitlinear(x, g, w)[0]
    x[1, 2, 3] = np.nan
    y = bitlinear(x, g, w)[0]
    bad = np.isnan(y).all(axis=-1)
    assert bad.tolist() == [[False] * 3, [False, False, True]]
    np.testing.assert_array_equal(y[~bad], clean[~bad])


def test_float32_in_float32_out(rng):
    given = example(rng, np.float32)
    y, _, x_scale, ternary, rstd = bitlinear(**given)
    results = [y, x_scale, ternary.w_scale, rstd, *backward(y, **given).values()]
    assert {a.dtype for a in results} == {np.dtype(np.float32)}


# --- twin ---------------------------------------------------------------------------------------------------


def test_twin(backends, tol, rng):
    """Codes agree exactly; `prepare` is opaque, so the product is compared, not what it is made of."""
    x, g, w = example(rng, np.float32, K=33).values()
    dy, results = rng.normal(size=(2, 3, 5)).astype(np.float32), []
    for ops in (backends, layers):
        x_q, x_scale, rstd = ops.rmsnorm_int8(x, g)
        w_q, w_scale = ops.absmean_ternary(w)
        prepared, dw = ops.prepare(w_q, w_scale), np.zeros_like(w)
        y = ops.ternary_linear(x_q, x_scale, prepared)
        dx = ops.ternary_linear_backward(dy, x_q, x_scale, prepared, dw)
        results.append([x_q, w_q, x_scale, np.asarray(w_scale), rstd, y, dx, dw])
    for got, want in zip(*(r[:2] for r in results)):
        np.testing.assert_array_equal(got, want)
    assert max(array_error(got, want) for got, want in zip(*(r[2:] for r in results))) <= tol["float32"]
