"""Norms and their quantisation on the device, against the reference, row by row."""

import numpy as np
import pytest
from derivative import array_error
from on_device import launched, nothing

from bitnet_ref.layers.bitlinear import rmsnorm_int8 as reference_int8
from bitnet_ref.layers.rmsnorm import rmsnorm as reference
from bitnet_ref.quant import absmax_int8

pytest.importorskip("numba_cuda", reason="CUDA kernels need numba-cuda")
from bitnet_ref.kernels.numba_cuda.rmsnorm import BARE, FREE, GAINED, rmsnorm, rmsnorm_int8

WIDTHS = [1, 20, 256, 2560]


def quantised(device, x, g, mode, apart=None):
    (M, K), apart = x.shape, apart or x.shape[1] + 5
    out = launched(device, rmsnorm_int8, (M,), x, x, K, g, mode, 1e-5, nothing(M, apart, dtype=np.int8),
                   nothing(M), nothing(M, dtype=np.int32), nothing(M), K, apart)
    x_q, x_scale, x_sum, rstd = out[3:]
    assert (x_q[:, K:] == 77).all()
    np.testing.assert_array_equal(x_sum, x_q[:, :K].sum(axis=1, dtype=np.int32))
    return x_q[:, :K], x_scale[:, None], rstd[:, None]


def want_int8(x, g, mode):
    if mode == BARE:
        return *absmax_int8(x), np.ones((len(x), 1), np.float32)
    return reference_int8(x, g if mode == GAINED else None)


@pytest.mark.parametrize("mode", [FREE, GAINED, BARE])
@pytest.mark.parametrize("K", WIDTHS)
def test_codes_are_the_reference_s(device, rng, mode, K, tol):
    x, g = rng.normal(size=(3, K)).astype(np.float32), rng.uniform(0.5, 1.5, K).astype(np.float32)
    x[1] *= 1e4
    x_q, x_scale, rstd = quantised(device, x, g, mode)
    want_q, want_scale, want_rstd = want_int8(x, g, mode)
    assert np.abs(x_q.astype(int) - want_q).max() <= 1
    assert (x_q != want_q).mean() <= 1e-3                   # a last bit of the scale, at a tie
    for got, want in ((x_scale, want_scale), (rstd, want_rstd)):
        np.testing.assert_allclose(got, want, rtol=tol["float32"])


@pytest.mark.parametrize("mode", [FREE, GAINED, BARE])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_poisons_itself_alone(device, rng, mode, bad):
    x, g = rng.normal(size=(3, 300)).astype(np.float32), np.ones(300, np.float32)
    want = quantised(device, x, g, mode)
    x[1, 250] = bad
    got = quantised(device, x, g, mode)
    assert np.isnan(got[1][1, 0])
    assert not got[0][1].any()
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a[[0, 2]], b[[0, 2]])


def test_a_gain_that_is_not_finite_poisons(device, rng):
    x, g = rng.normal(size=(2, 40)).astype(np.float32), np.ones(40, np.float32)
    g[3] = np.nan
    x_q, x_scale, _ = quantised(device, x, g, GAINED)
    assert np.isnan(x_scale).all()
    assert not x_q.any()


@pytest.mark.parametrize("row", [np.zeros(64), np.full(64, 1e-7), np.full(64, 1e20), np.full(64, -127.0)],
                         ids=["zeros", "below the floor", "squares overflow", "negative"])
@pytest.mark.parametrize("mode", [FREE, BARE])
def test_extremes(device, mode, row):
    x = row.astype(np.float32)[None]
    with np.errstate(over="ignore"):
        want = want_int8(x, None, mode)
    for a, b in zip(quantised(device, x, np.ones(64, np.float32), mode), want):
        np.testing.assert_allclose(a, b, rtol=2e-7)


@pytest.mark.parametrize("mode", [FREE, GAINED, BARE])
@pytest.mark.parametrize("K", WIDTHS)
def test_floats(device, rng, mode, K, tol):
    x, g = rng.normal(size=(3, K)).astype(np.float32), rng.uniform(0.5, 1.5, K).astype(np.float32)
    *_, y, rstd = launched(device, rmsnorm, (3,), x, g, mode, 1e-5, nothing(3, K + 2), nothing(3), K, K + 2)
    assert not y[:, K:].any()
    y = y[:, :K]
    want = (x, np.ones((3, 1))) if mode == BARE else reference(x, g if mode == GAINED else None)
    assert array_error(y, want[0]) <= tol["float32"]
    assert array_error(rstd[:, None], want[1]) <= tol["float32"]
