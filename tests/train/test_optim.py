"""train/optim: clipping keeps the direction, decay touches the matrices alone, micro-batches add up."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import NORMS, seeds, small_batch, small_config, small_params

from bitnet_ref.config import TrainConfig
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.train.optim import Adam, clip_, update_

OPS = load("numpy")
HOW = TrainConfig(beta1=0.8, beta2=0.9, adam_eps=1e-7)


# --- clipping ----------------------------------------------------------------------------------------------


@given(seed=seeds, n=st.integers(1, 500), scale=st.floats(1e-3, 1e3), max_norm=st.floats(1e-2, 1e2))
def test_a_clipped_gradient_keeps_its_direction_and_has_the_norm_allowed(seed, n, scale, max_norm):
    before = np.random.default_rng(seed).normal(0, scale, n)
    after = before.copy()
    norm = clip_(after, max_norm)
    assert norm == pytest.approx(np.linalg.norm(before), rel=1e-12)
    np.testing.assert_allclose(after, before * min(1, max_norm / norm), rtol=1e-12)
    assert np.linalg.norm(after) <= max_norm * (1 + 1e-12) or norm <= max_norm


@given(seed=seeds)
def test_a_short_gradient_is_not_touched(seed):
    before = np.random.default_rng(seed).normal(0, 1, 50).astype(np.float32)
    after = before.copy()
    clip_(after, float(np.linalg.norm(before.astype(np.float64))) * 1.001)
    np.testing.assert_array_equal(after, before)


def test_the_norm_is_summed_in_float64():
    """In float32 the squares would overflow, and those of the small ones would be lost."""
    assert clip_(np.full(100, 1e30, np.float32), 1.0) == pytest.approx(1e31)
    assert clip_(np.full(100, 1e-30, np.float32), 1.0) == pytest.approx(1e-29)
    assert clip_(np.zeros(5, np.float32), 1.0) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_has_a_norm_that_is_not(bad):
    gradient = np.array([1.0, bad, 2.0], np.float32)
    with np.errstate(invalid="ignore"):
        assert not math.isfinite(clip_(gradient, 1.0))


# --- the update --------------------------------------------------------------------------------------------


def updated(params, grads, moments, decay, step=3, lr=0.1):
    """Copies of parameters and moments after one update."""
    p, m, v = (small_params(params) for _ in range(3))
    p.flat[:], m.flat[:], v.flat[:] = moments[0], moments[1], moments[2]
    g = p.zeros_like()
    g.flat[:] = grads
    update_(p, g, Adam(m, v), step, lr, decay, HOW, OPS)
    return p, m, v


@pytest.fixture(params=NORMS)
def given_update(request, rng):
    cfg = small_config(**NORMS[request.param], tied_embeddings=False)
    n = len(small_params(cfg).flat)
    return cfg, rng.normal(size=n), (rng.normal(size=n), rng.normal(size=n), rng.uniform(0, 1, n))


def test_gains_do_not_decay_and_matrices_do(given_update):
    (with_decay, *_), (without, *_) = updated(*given_update, 0.5), updated(*given_update, 0.0)
    for spec in with_decay.specs:
        same = np.array_equal(with_decay[spec.name], without[spec.name])
        assert same == (not spec.decay), spec.name
        assert spec.decay == (len(spec.shape) == 2), spec.name


def test_the_decay_shrinks_a_matrix_by_the_rate_times_the_decay(given_update):
    _, _, (start, *_) = given_update
    (with_decay, *_), (without, *_) = updated(*given_update, 0.5), updated(*given_update, 0.0)
    n = with_decay.n_decayed
    np.testing.assert_allclose(without.flat[:n] - with_decay.flat[:n], 0.1 * 0.5 * start[:n], atol=1e-12)


def test_an_update_is_adamw_on_each_tensor_of_its_own(given_update):
    cfg, grads, moments = given_update
    p, m, v = updated(cfg, grads, moments, 0.5)
    whole, parts = small_params(cfg), [small_params(cfg).zeros_like() for _ in range(4)]
    for part, values in zip(parts, (moments[0], grads, moments[1], moments[2])):
        part.flat[:] = values
    for spec in whole.specs:
        OPS.adamw_(*(part[spec.name].reshape(-1) for part in parts), 3, 0.1, 0.5 if spec.decay else 0.0,
                   HOW.beta1, HOW.beta2, HOW.adam_eps)
    for got, want in zip((p, m, v), (parts[0], parts[2], parts[3])):
        np.testing.assert_array_equal(got.flat, want.flat)


# --- accumulation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", ["ternary", "full"])
def test_two_micro_batches_have_the_gradient_of_one_twice_as_large(linear):
    cfg = small_config(linear=linear)
    params = small_params(cfg)
    model, once, twice = Transformer(cfg, params, OPS), params.zeros_like(), params.zeros_like()
    ids, targets = small_batch(cfg, B=6)
    loss = model.loss_and_grads([(ids, targets)], once)
    halves = [(ids[:3], targets[:3]), (ids[3:], targets[3:])]
    assert model.loss_and_grads(halves, twice) == pytest.approx(loss)
    np.testing.assert_allclose(twice.flat, once.flat, atol=1e-12)
