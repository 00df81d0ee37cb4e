"""layers/rmsnorm: with a gain and without, at any scale of the input."""

import math

import numpy as np
import pytest
from against_golden import golden_test
from derivative import array_error, gradient_errors
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.layers import rmsnorm, rmsnorm_backward


def backward(dy, x, g=None):
    dg = None if g is None else np.zeros_like(g)
    dx = rmsnorm_backward(dy, x, g, rmsnorm(x, g)[1], dg)
    return {"x": dx} if g is None else {"x": dx, "g": dg}


def example(rng, dtype=np.float64, shape=(2, 3, 7)):
    return {"x": rng.normal(size=shape).astype(dtype), "g": rng.normal(1, 0.5, shape[-1]).astype(dtype)}


# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("rmsnorm")


# --- derivative ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(2, 3, 7), (5, 2), (1, 64)])
def test_backward_is_the_derivative(seed, shape, tol):
    rng = np.random.default_rng(seed)
    errors = gradient_errors(lambda x, g: rmsnorm(x, g)[0], backward, example(rng, shape=shape), rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_backward_without_a_gain_is_the_derivative(scale, tol, rng):
    """At 1e-3 eps weighs ten times as much as the input."""
    x = scale * rng.normal(size=(2, 3, 7))
    errors = gradient_errors(lambda x: rmsnorm(x, None)[0], backward, {"x": x}, rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


# --- property -----------------------------------------------------------------------------------------------


def test_against_the_formula_number_by_number(rng):
    x, g = rng.normal(size=(3, 5)), rng.normal(size=5)
    y, rstd = rmsnorm(x, g, eps=0.25)
    assert rstd.shape == (3, 1)
    for got, stat, row in zip(y, rstd, x):
        root = math.sqrt(math.fsum(v * v for v in row) / 5 + 0.25)
        assert stat[0] == pytest.approx(1 / root, rel=1e-15)
        assert got.tolist() == pytest.approx([v / root * w for v, w in zip(row, g)], rel=1e-14)


def test_eps_stands_inside_the_root():
    y, rstd = rmsnorm(np.zeros((1, 4)), None, eps=1e-4)
    assert rstd[0, 0] == pytest.approx(100, rel=1e-15)
    assert not y.any()


@given(seed=seeds, times=st.floats(1e-3, 1e3))
def test_the_scale_of_the_input_does_not_matter(seed, times):
    x, g = example(np.random.default_rng(seed)).values()
    np.testing.assert_allclose(rmsnorm(times * x, g, eps=0)[0], rmsnorm(x, g, eps=0)[0], rtol=1e-13)


@given(seed=seeds)
def test_the_output_has_mean_square_one_and_its_gradient_none_along_x(seed):
    """Scale invariance again, seen by backward: dx is orthogonal to x when eps is negligible."""
    rng = np.random.default_rng(seed)
    x, dy = rng.normal(size=(2, 4, 9))
    y, rstd = rmsnorm(x, None, eps=1e-30)
    np.testing.assert_allclose(np.mean(y * y, axis=-1), 1, rtol=1e-13)
    dx = rmsnorm_backward(dy, x, None, rstd, None)
    assert np.all(np.abs(np.sum(dx * x, axis=-1)) <= 1e-13 * np.linalg.norm(dx) * np.linalg.norm(x))


def test_no_gain_is_a_gain_of_one(rng):
    x = example(rng)["x"]
    np.testing.assert_array_equal(rmsnorm(x, None)[0], rmsnorm(x, np.ones(7))[0])


def test_gradients_accumulate(rng):
    x, g = example(rng).values()
    dy, dg = rng.normal(size=x.shape), np.ones(7)
    rmsnorm_backward(dy, x, g, rmsnorm(x, g)[1], dg)
    np.testing.assert_allclose(dg, 1 + backward(dy, x, g)["g"], rtol=1e-13)


def test_backward_leaves_its_inputs_alone(rng):
    x, g = example(rng).values()
    dy, rstd = rng.normal(size=x.shape), rmsnorm(x, g)[1]
    before = [a.copy() for a in (dy, x, g, rstd)]
    rmsnorm_backward(dy, x, g, rstd, np.zeros(7))
    for now, then in zip((dy, x, g, rstd), before):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("with_gain", [True, False])
def test_out_receives_the_result(with_gain, rng):
    x, g = example(rng).values()
    g = g if with_gain else None
    out = np.empty_like(x)
    y, _ = rmsnorm(x, g, out=out)
    assert y is out
    np.testing.assert_array_equal(out, rmsnorm(x, g)[0])


def test_float32_in_float32_out(rng):
    x, g = example(rng, np.float32).values()
    results = [*rmsnorm(x, g), *rmsnorm(x, None), *backward(x, x, g).values(), *backward(x, x).values()]
    assert {a.dtype for a in results} == {np.dtype(np.float32)}


# --- twin ---------------------------------------------------------------------------------------------------


def test_twin(backends, tol, rng):
    x, g = example(rng, np.float32).values()
    dy = rng.normal(size=x.shape).astype(np.float32)
    for gain in (g, None):
        results = []
        for ops in (backends, layers):
            y, rstd = ops.rmsnorm(x, gain)
            dg = None if gain is None else np.zeros_like(g)
            dx = ops.rmsnorm_backward(dy, x, gain, rstd, dg)
            results.append([y, rstd, dx] + ([] if gain is None else [dg]))
        assert max(map(array_error, *results)) <= tol["float32"]
