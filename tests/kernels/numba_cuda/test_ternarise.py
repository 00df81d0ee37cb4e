"""kernels/numba_cuda/ternarise: weights to trits, and trits into tiles, against the reference's."""

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import dyadic, seeds

from bitnet_ref import quant
from bitnet_ref.pack.tiles import pack_tiles

pytest.importorskip("numba_cuda")
from bitnet_ref.kernels.numba_cuda import ternarise

bitlinear = import_module("bitnet_ref.kernels.numba_cuda.bitlinear")               # not the op of this name

F32 = np.float32


WIDE = pytest.param((6912, 2560), marks=pytest.mark.slow)


@pytest.mark.parametrize("shape", [(1, 1), (13, 37), WIDE], ids=str)
def test_weights(device, shape, tol, rng):
    """The mean is correctly rounded. The reference's may differ in the last digit, and trits at ties."""
    w = (0.02 * rng.standard_normal(shape)).astype(F32)
    w_q, w_scale = (device.read(a) for a in ternarise.trits(device, device.upload(w)))
    assert w_scale == F32(np.abs(w).mean(dtype=np.float64))
    np.testing.assert_array_equal(w_q, np.clip(np.rint(w * (1 / w_scale)), -1, 1))
    want, scale = quant.absmean_ternary(w)
    np.testing.assert_allclose(w_scale, scale, rtol=tol["float32"])
    assert np.all(np.abs(np.abs(w[w_q != want]) / scale - 0.5) < tol["float32"])


@pytest.mark.parametrize(("value", "scale"), [(0, 1e-5), (np.nan, np.nan), (-np.inf, np.nan)])
def test_weights_that_are_zero_or_no_numbers(device, value, scale):
    w = np.zeros((3, 5), F32)
    w[1, 2] = value
    w_q, w_scale = (device.read(a) for a in ternarise.trits(device, device.upload(w)))
    np.testing.assert_array_equal(w_scale, F32(scale))
    assert not w_q.any()


@given(w=dyadic(np.float32))
def test_where_sums_are_exact_all_is_the_references(device, w):
    w_q, w_scale = (device.read(a) for a in ternarise.trits(device, device.upload(w)))
    want, scale = quant.absmean_ternary(w)
    np.testing.assert_array_equal(w_q, want)
    np.testing.assert_array_equal(w_scale, scale)


@given(seed=seeds, rows=st.lists(st.integers(1, 40), min_size=1, max_size=3), K=st.integers(1, 150))
def test_a_stack_of_any_matrices(device, tol, seed, rows, K):
    rng = np.random.default_rng(seed)
    packed, row, made = bitlinear.empty(device, sum(rows), K), 0, []
    for n in rows:
        w = rng.standard_normal((n, K)).astype(F32) * F32(n)
        w_q, w_scale = ternarise.trits(device, device.upload(w))
        ternarise.pack_rows(device, w_q, w_scale, packed, row)
        own = device.read(packed.w_scale)[row:row + n]
        np.testing.assert_array_equal(own, device.read(w_scale))
        np.testing.assert_allclose(own[0], quant.absmean_ternary(w)[1], rtol=tol["float32"])
        made.append(device.read(w_q))
        np.testing.assert_array_equal(made[-1], np.clip(np.rint(w * (F32(1) / own[0])), -1, 1))
        row += n
    np.testing.assert_array_equal(device.read(packed.words), pack_tiles(np.concatenate(made)))


def test_weights_that_begin_anywhere_in_memory(device, rng):
    """Parts of larger buffers, as parameters are."""
    w = rng.integers(-256, 257, (20, 64)).astype(F32) / 64
    flat = device.upload(np.concatenate([np.zeros(1, F32), w.reshape(-1)]))
    w_q, _ = ternarise.trits(device, flat.part(1, (20, 64)))
    np.testing.assert_array_equal(device.read(w_q), quant.absmean_ternary(w)[0])


def test_rows_of_several_matrices_share_a_strip(device, rng):
    """Packed one by one, in any order, as bitlinear.pack packs them all."""
    matrices = [(rng.integers(-1, 2, (n, 150), np.int8), F32(0.1 * n)) for n in (3, 20, 5, 16)]
    packed = bitlinear.empty(device, 44, 150)
    for i, row in ((2, 23), (0, 0), (3, 28), (1, 3)):
        w_q, w_scale = matrices[i]
        ternarise.pack_rows(device, device.upload(w_q), device.upload(np.asarray(w_scale)), packed, row)
    want = bitlinear.pack(device, matrices)
    np.testing.assert_array_equal(device.read(packed.words), device.read(want.words))
    np.testing.assert_array_equal(device.read(packed.w_scale), device.read(want.w_scale))
