"""layers/adamw: against PyTorch's documented algorithm on plain Python numbers, one parameter at a time."""

import math

import numpy as np
import pytest
from against_golden import golden_test
from derivative import array_error
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.layers import adamw, adamw_

RATES = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3}       # far from the defaults, and an eps that shows


def scalar_adamw(p, grads, rates, decay, beta1, beta2, eps):
    """The parameter, and both moments, after one step per gradient."""
    m = v = 0.0
    for t, (g, lr) in enumerate(zip(grads, rates), start=1):
        p = p - lr * decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
    return p, m, v


def run(p, grads, rates, decay, **betas):
    p, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for t, (g, lr) in enumerate(zip(grads, rates), start=1):
        adamw_(p, g, m, v, t, lr, decay, **betas)
    return p, m, v


# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("adamw")


# --- property -----------------------------------------------------------------------------------------------


@given(seed=seeds, decay=st.sampled_from([0.0, 0.1, 1.0]))
def test_several_steps_against_plain_numbers(seed, decay):
    rng = np.random.default_rng(seed)
    p, grads, rates = rng.normal(size=6), rng.normal(size=(7, 6)), rng.uniform(0, 0.3, 7)
    got = np.stack(run(p, grads, rates, decay, **RATES), axis=1)
    want = np.array([scalar_adamw(p[i], grads[:, i], rates, decay, **RATES) for i in range(6)])
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_the_defaults_are_those_of_the_recipe(rng):
    p, grads = rng.normal(size=6), rng.normal(size=(3, 6))
    given = run(p, grads, [0.1] * 3, 0.1, beta1=0.9, beta2=0.95, eps=1e-8)
    for got, want in zip(run(p, grads, [0.1] * 3, 0.1), given):
        np.testing.assert_array_equal(got, want)


def test_the_first_step_is_lr_times_the_sign():
    """Bias correction makes m / sqrt(v) exactly +-1 at step 1, whatever the size of the gradient."""
    p, _, _ = run(np.zeros(3), [np.array([1e-3, -5.0, 700.0])], [0.25], 0.0, eps=0)
    np.testing.assert_allclose(p, [-0.25, 0.25, -0.25], rtol=1e-12)


def test_decay_acts_on_the_weight_and_not_through_the_moments():
    p, m, v = run(np.array([2.0, -4.0]), [np.zeros(2)], [0.5], 0.1)
    np.testing.assert_allclose(p, [1.9, -3.8], rtol=1e-15)
    assert not m.any()
    assert not v.any()


@pytest.mark.parametrize("block", [1, 7, 32])
def test_the_block_size_changes_no_bit(block, rng, monkeypatch):
    p, grads = rng.normal(size=65).astype(np.float32), rng.normal(size=(3, 65)).astype(np.float32)
    whole = run(p, grads, [0.1] * 3, 0.1)
    monkeypatch.setattr(adamw, "BLOCK", block)
    for got, want in zip(run(p, grads, [0.1] * 3, 0.1), whole):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_every_element_around_a_block_boundary_moves(beyond):
    n = adamw.BLOCK + beyond
    p, _, _ = run(np.zeros(n, np.float32), [np.ones(n, np.float32)], [0.5], 0.0)
    np.testing.assert_array_equal(p, p[0])
    assert p[0] == pytest.approx(-0.5)


def test_the_gradient_is_left_alone_and_float32_stays(rng):
    p, m, v, g = rng.uniform(1, 2, (4, 9)).astype(np.float32)
    before, held = g.copy(), p
    assert adamw_(p, g, m, v, 2, 0.1, 0.1) is None
    np.testing.assert_array_equal(g, before)
    assert held is p
    assert p.dtype == m.dtype == v.dtype == np.float32


# --- twin ---------------------------------------------------------------------------------------------------


def test_twin(backends, tol, rng):
    results = []
    start = rng.uniform(1, 2, (4, 9)).astype(np.float32)
    for update in (backends.adamw_, layers.adamw_):
        p, g, m, v = start.copy()
        update(p, g, m, v, 3, 0.1, 0.1, **RATES)
        results.append([p, m, v])
    assert max(map(array_error, *results)) <= tol["float32"]
