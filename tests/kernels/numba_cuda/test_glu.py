"""Gated units on the device, alone and quantised, against the reference."""

import numpy as np
import pytest
from derivative import array_error
from on_device import launched, nothing

from bitnet_ref import layers
from bitnet_ref.layers.bitlinear import rmsnorm_int8
from bitnet_ref.quant import absmax_int8

pytest.importorskip("numba_cuda", reason="CUDA kernels need numba-cuda")
from bitnet_ref.kernels.numba_cuda.glu import GLU, GLU_INT8
from bitnet_ref.kernels.numba_cuda.rmsnorm import BARE, FREE, GAINED

UNITS = ["swiglu", "relu2"]


def stacked(rng, M, F):
    """gate and up in one array, as a stacked product leaves them."""
    return (3 * rng.normal(size=(M, 2 * F))).astype(np.float32)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("F", [1, 20, 300])
def test_floats(device, rng, unit, F, tol):
    both = stacked(rng, 3, F)
    gate, up = np.ascontiguousarray(both[:, :F]), np.ascontiguousarray(both[:, F:])
    gate[0, 0] = -200                                       # exp overflows
    want = getattr(layers, unit)(gate, up)
    u = launched(device, GLU[unit], (3,), gate, up, F, nothing(3, F), F)[2]
    assert array_error(u, want) <= tol["float32"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("mode", [FREE, GAINED, BARE])
@pytest.mark.parametrize("F", [20, 300])
def test_codes(device, rng, unit, mode, F, tol):
    both, g = stacked(rng, 3, F), rng.uniform(0.5, 1.5, F).astype(np.float32)
    u = getattr(layers, unit)(both[:, :F], both[:, F:])
    want = absmax_int8(u) if mode == BARE else rmsnorm_int8(u, g if mode == GAINED else None)[:2]
    there = device.upload(both)
    x_q, x_scale = device.empty((3, 384), np.int8), device.empty((3,), np.float32)
    x_sum, rstd = device.empty((3,), np.int32), device.empty((3,), np.float32)
    device.launch(GLU_INT8[unit], (3,), there, there.part(F, (1, F)), 2 * F, device.upload(g), mode, 1e-5,
                  x_q, x_scale, x_sum, rstd, F, 384)
    codes = device.read(x_q)[:, :F]
    np.testing.assert_allclose(device.read(x_scale)[:, None], want[1], rtol=tol["float32"])
    assert np.abs(codes.astype(int) - want[0]).max() <= 1
    assert (codes != want[0]).mean() <= 1e-3
    np.testing.assert_array_equal(device.read(x_sum), codes.sum(axis=1, dtype=np.int32))


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_no_number_stays_none(device, unit):
    gate = np.array([[np.nan, 1, 1]], np.float32)
    u = launched(device, GLU[unit], (1,), gate, np.ones((1, 3), np.float32), 3, nothing(1, 3), 3)[2]
    assert np.isnan(u[0, 0])
    assert np.isfinite(u[0, 1:]).all()
