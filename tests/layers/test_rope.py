"""layers/rope: a rotation of half-split pairs; the product of query and key knows their distance only."""

import math

import numpy as np
import pytest
from against_golden import golden_test
from derivative import array_error, gradient_errors
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.layers import rope, rope_backward
from bitnet_ref.layers.rope import rope_table


def table(T=5, head_dim=6, theta=100.0, dtype=np.float64, start=0):
    return rope_table(np.arange(start, start + T), head_dim, theta, dtype)


# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("rope")


# --- derivative ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_backward_is_the_derivative(seed, tol):
    rng = np.random.default_rng(seed)
    errors = gradient_errors(lambda x: rope(x, *table()), lambda dy, x: {"x": rope_backward(dy, *table())},
                             {"x": rng.normal(size=(2, 5, 3, 6))}, rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


# --- property -----------------------------------------------------------------------------------------------


def test_the_angles():
    cos, sin = table(T=4, head_dim=6, theta=1000.0)
    assert cos.shape == sin.shape == (4, 1, 3)
    for t in range(4):
        for i in range(3):
            angle = t * 1000.0 ** (-2 * i / 6)
            assert cos[t, 0, i] == pytest.approx(math.cos(angle), rel=1e-14)
            assert sin[t, 0, i] == pytest.approx(math.sin(angle), rel=1e-14)


def test_pairs_are_half_split_and_turn_counterclockwise():
    """(i, i + Dh/2), as in Hugging Face: the first of four unit vectors turns into the third."""
    x = np.zeros((1, 2, 1, 4))
    x[..., 0] = 1
    y = rope(x, *table(T=2, head_dim=4))
    assert y[0, 0, 0].tolist() == [1, 0, 0, 0]
    assert y[0, 1, 0].tolist() == [math.cos(1), 0, math.sin(1), 0]


def test_the_table_is_computed_in_float64(rng):
    """At position 100,000 an angle in float32 would be off by some 4e-3."""
    cos, sin = rope_table(np.array([100_000]), 8, 10_000.0, np.float32)
    assert (cos.dtype, sin.dtype) == (np.float32, np.float32)
    assert cos[0, 0, 1] == np.float32(math.cos(100_000 * 10_000.0 ** -0.25))
    assert sin[0, 0, 3] == np.float32(math.sin(100_000 * 10_000.0 ** -0.75))


@given(seed=seeds, far=st.integers(0, 1000), m=st.integers(0, 20), n=st.integers(0, 20))
def test_the_product_of_query_and_key_depends_on_their_distance_only(seed, far, m, n):
    q, k = np.random.default_rng(seed).normal(size=(2, 1, 1, 1, 8))

    def product(at_q, at_k):
        return np.vdot(rope(q, *table(1, 8, start=at_q)), rope(k, *table(1, 8, start=at_k)))

    assert product(m + far, n + far) == pytest.approx(product(m, n), abs=1e-11)


def test_the_product_does_depend_on_the_distance(rng):
    q, k = rng.normal(size=(2, 1, 1, 1, 8))
    products = [np.vdot(rope(q, *table(1, 8, start=d)), k) for d in range(4)]
    assert np.ptp(products) > 0.1


@given(seed=seeds)
def test_a_rotation_keeps_lengths_and_is_undone_by_backward(seed):
    x = np.random.default_rng(seed).normal(size=(2, 5, 3, 6))
    y = rope(x, *table())
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-13)
    np.testing.assert_allclose(rope_backward(y, *table()), x, atol=1e-14)
    np.testing.assert_array_equal(y[:, 0], x[:, 0])     # position 0 stays


def test_out_receives_the_result(rng):
    x = rng.normal(size=(2, 5, 3, 6))
    out = np.empty_like(x)
    assert rope(x, *table(), out=out) is out
    np.testing.assert_array_equal(out, rope(x, *table()))


def test_float32_in_float32_out(rng):
    x, angles = rng.normal(size=(2, 5, 3, 6)).astype(np.float32), rope_table(np.arange(5), 6, 100.0)
    results = [*angles, rope(x, *angles), rope_backward(x, *angles)]
    assert {a.dtype for a in results} == {np.dtype(np.float32)}


# --- twin ---------------------------------------------------------------------------------------------------


def test_twin(backends, tol, rng):
    x, angles = rng.normal(size=(2, 5, 3, 6)).astype(np.float32), table(dtype=np.float32)
    got, want = ([ops.rope(x, *angles), ops.rope_backward(x, *angles)] for ops in (backends, layers))
    assert max(map(array_error, got, want)) <= tol["float32"]
