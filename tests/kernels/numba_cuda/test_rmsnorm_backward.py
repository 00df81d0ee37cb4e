"""Small kernels of training, by row or by number: norms, gated units, embedding, loss; against layers."""

from importlib import import_module

import numpy as np
import pytest
from derivative import array_error

from bitnet_ref import layers

pytest.importorskip("numba_cuda")
# not the ops of these names
cross_entropy = import_module("bitnet_ref.kernels.numba_cuda.cross_entropy")
embedding = import_module("bitnet_ref.kernels.numba_cuda.embedding")
embedding_backward = import_module("bitnet_ref.kernels.numba_cuda.embedding_backward")
glu_backward = import_module("bitnet_ref.kernels.numba_cuda.glu_backward")
rmsnorm = import_module("bitnet_ref.kernels.numba_cuda.rmsnorm")
rmsnorm_backward = import_module("bitnet_ref.kernels.numba_cuda.rmsnorm_backward")

F32 = np.float32
EPS = 1e-5


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(F32)


@pytest.mark.parametrize("gained", [True, False])
@pytest.mark.parametrize(("M", "K"), [(1, 1), (19, 33), (3, 700)])
def test_rmsnorm(device, M, K, gained, tol, rng):
    x, dy, g = normal(rng, M, K), normal(rng, M, K), normal(rng, K) if gained else None
    y, rstd, there = device.empty((M, K), F32), device.empty((M,), F32), device.upload(x)
    gain = device.upload(g) if gained else there
    mode = rmsnorm.GAINED if gained else rmsnorm.FREE
    device.launch(rmsnorm.rmsnorm, (M,), there, gain, mode, EPS, y, rstd, K, K)
    want, want_rstd = layers.rmsnorm(x, g, EPS)
    assert array_error(device.read(y), want) <= tol["float32"]
    dg, start = (normal(rng, K), normal(rng, M, K)) if gained else (None, normal(rng, M, K))
    dg_there, dx = device.upload(dg) if gained else None, device.upload(start)
    rmsnorm_backward.norm_backward(device, device.upload(dy), there, gain if gained else None, rstd, dx,
                                   dg_there, True, M, K)
    want = layers.rmsnorm_backward(dy, x, g, want_rstd, dg) + start
    assert array_error(device.read(dx), want) <= tol["float32"]
    if gained:
        assert array_error(device.read(dg_there), dg) <= tol["float32"]


@pytest.mark.parametrize("unit", ["swiglu", "relu2"])
def test_gated_units_side_by_side(device, unit, rng):
    M, F = 7, 45
    both, du = 3 * normal(rng, M, 2 * F), normal(rng, M, F)
    both[0, 0], both[1, 1] = -200, np.nan
    gate, up = both[:, :F], both[:, F:]
    there, d = device.upload(both), device.empty((M, 2 * F), F32)
    sides = there.part(0, (1,)), there.part(F, (1,)), 2 * F, int(unit == "relu2")
    device.launch(glu_backward.gated_backward, (2,), device.upload(du), *sides, d.part(0, (1,)),
                  d.part(F, (1,)), F, M * F)
    want = np.concatenate(getattr(layers, f"{unit}_backward")(du, gate, up), axis=1)
    np.testing.assert_allclose(device.read(d), want, rtol=4e-6, atol=4e-6)


def test_embedding_is_exact_in_both_directions(device, rng):
    ids, w, dx, dw = rng.integers(0, 5, 40), normal(rng, 9, 33), normal(rng, 40, 33), normal(rng, 9, 33)
    x, there = device.empty((40, 33), F32), device.upload(dw)
    device.launch(embedding.EMBEDDING["f32"], (40,), device.upload(ids.astype(np.int32)), device.upload(w), x,
                  33, 33)
    np.testing.assert_array_equal(device.read(x), w[ids])
    rows = embedding_backward.rows(ids)
    device.launch(embedding_backward.embedding_dw, (len(rows.ids),), device.upload(dx),
                  *map(device.upload, rows), there, 33)
    layers.embedding_backward(dx, ids, dw)
    np.testing.assert_array_equal(device.read(there), dw)


@pytest.mark.parametrize(("M", "V"), [(1, 1), (5, 300), (3, 31)])
def test_cross_entropy(device, M, V, tol, rng):
    logits, targets = 20 * normal(rng, M, V), rng.integers(0, V, M)
    there, losses = device.upload(logits), device.empty((M,), F32)
    device.launch(cross_entropy.cross_entropy, (M,), there, device.upload(targets.astype(np.int32)), 0.5 / M,
                  losses, V)
    loss, lse = layers.cross_entropy(logits, targets)
    assert device.read(losses).mean() == pytest.approx(loss, rel=1e-6, abs=1e-6)
    want = layers.cross_entropy_backward(0.5, logits, targets, lse)
    # p - 1 of the largest logit cancels: the error is that of p, at most 1
    assert np.abs(device.read(there) - want).max() <= 2 * tol["float32"] / M


def test_a_logit_that_is_no_number_shows_in_its_row_alone(device, rng):
    logits = normal(rng, 2, 40)
    logits[1, 7] = np.nan
    losses = device.empty((2,), F32)
    device.launch(cross_entropy.cross_entropy, (2,), device.upload(logits),
                  device.upload(np.zeros(2, np.int32)), 1.0, losses, 40)
    assert np.isnan(device.read(losses)).tolist() == [False, True]
