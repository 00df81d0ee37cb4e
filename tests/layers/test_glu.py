"""layers/glu: SwiGLU and squared ReLU against Python's math, at the ends of the range, and differentiated."""

import math

import numpy as np
import pytest
from against_golden import golden_test
from derivative import array_error, gradient_errors
from hypothesis import given
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.layers import relu2, relu2_backward, swiglu, swiglu_backward

PAIRS = {"swiglu": (swiglu, swiglu_backward), "relu2": (relu2, relu2_backward)}
EACH = pytest.mark.parametrize("name", PAIRS)


# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("glu")


# --- derivative ---------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_backward_is_the_derivative(name, seed, tol):
    forward, backward = PAIRS[name]
    rng = np.random.default_rng(seed)
    given = {"gate": 3 * rng.normal(size=(2, 3, 7)), "up": rng.normal(size=(2, 3, 7))}
    errors = gradient_errors(forward, lambda dy, **x: dict(zip(x, backward(dy, **x))), given, rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


# --- property -----------------------------------------------------------------------------------------------


@given(seed=seeds)
def test_against_python_numbers(seed):
    gate, up = np.random.default_rng(seed).normal(0, 3, (2, 11))
    for got, z, u in zip(swiglu(gate, up), gate, up):
        assert got == pytest.approx(z / (1 + math.exp(-z)) * u, rel=1e-14)
    for got, z, u in zip(relu2(gate, up), gate, up):
        assert got == pytest.approx(max(z, 0) ** 2 * u, rel=1e-15)


def test_known_values():
    gate, up = np.array([0.0, 3.0, -3.0]), np.array([5.0, 2.0, 2.0])
    assert relu2(gate, up).tolist() == [0, 18, 0]
    dgate, dup = relu2_backward(np.ones(3), gate, up)
    assert (dgate.tolist(), dup.tolist()) == ([0, 12, 0], [0, 9, 0])
    assert swiglu(gate, up)[0] == 0
    dgate, dup = swiglu_backward(np.ones(3), gate, up)
    assert (dgate[0], dup[0]) == (2.5, 0)               # silu'(0) = 1/2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_from_zero_silu_is_zero_or_the_identity_without_a_warning(dtype):
    gate, up = np.array([-1e4, -800, 800, 1e4], dtype), np.ones(4, dtype)
    assert swiglu(gate, up).tolist() == [0, 0, 800, 1e4]
    dgate, dup = swiglu_backward(up, gate, up)
    assert dgate.tolist() == [0, 0, 1, 1]
    assert dup.tolist() == [0, 0, 800, 1e4]


@EACH
def test_nan_stays_nan(name):
    """A unit that turns NaN into 0 would hide a poisoned weight from the loss."""
    forward, backward = PAIRS[name]
    gate, up = np.array([np.nan, 1.0]), np.ones(2)
    assert np.isnan(forward(gate, up)).tolist() == [True, False]
    assert all(np.isnan(d).tolist() == [True, False] for d in backward(up, gate, up))


@EACH
def test_inputs_are_left_alone_and_float32_stays(name, rng):
    forward, backward = PAIRS[name]
    given = rng.normal(size=(3, 2, 5)).astype(np.float32)
    before = given.copy()
    dy, gate, up = given
    assert {a.dtype for a in (forward(gate, up), *backward(dy, gate, up))} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(given, before)


# --- twin ---------------------------------------------------------------------------------------------------


@EACH
def test_twin(backends, tol, rng, name):
    dy, gate, up = rng.normal(0, 3, (3, 5, 7)).astype(np.float32)
    got, want = ([getattr(ops, name)(gate, up), *getattr(ops, f"{name}_backward")(dy, gate, up)]
                 for ops in (backends, layers))
    assert max(map(array_error, got, want)) <= tol["float32"]
