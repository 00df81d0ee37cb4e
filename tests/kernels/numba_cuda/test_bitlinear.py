"""Ternary products of the CUDA backend, run by the interpreter: the reference's to the last digit."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.checks import CheckError

KERNELS = {"gemv_i2": "i2", "gemv_b3": "b3", "gemm_i2": "i2", "gemm_hopper": "i2"}       # and its packing
EACH = pytest.mark.parametrize("kernel", KERNELS)
WIDTHS = ((2560, 2560), (3840, 2560), (13824, 2560), (2560, 6912))       # of 2B4T: o, qkv, gate and up, down
W_SCALE = np.float32(0.37)


def operands(rng, M, N, K):
    """Codes of every value, of which a row's last columns are rubbish that nobody may look at."""
    from bitnet_ref.kernels.numba_cuda.bitlinear import padded
    return (rng.integers(-128, 128, (M, padded(K))).astype(np.int8), rng.random((M, 1), np.float32),
            rng.integers(-1, 2, (N, K)).astype(np.int8))


def on_device(device, x_q, x_scale, w_q, kernel, add=None, w_scale=W_SCALE):
    """The product by that kernel, whatever would be chosen for so many rows; `add` is added in place."""
    from bitnet_ref.kernels.numba_cuda import bitlinear
    M, (N, K) = len(x_q), w_q.shape
    x_sum = device.upload(x_q[:, :K].sum(1, dtype=np.int32))
    y = device.upload(np.full((M, N), np.nan, np.float32) if add is None else add)
    scratch = device.empty((bitlinear.scratch_size(M, K),), np.int8)
    packed = bitlinear.pack(device, [(w_q, w_scale)], KERNELS[kernel])
    with patch.object(bitlinear, "chosen", lambda *_: getattr(bitlinear, kernel)):
        bitlinear.product(device, device.upload(x_q), device.upload(x_scale), x_sum, packed, y, M,
                          None if add is None else y, scratch)
    return device.read(y)


def reference(x_q, x_scale, w_q):
    return layers.ternary_linear(x_q[:, :w_q.shape[1]], x_scale, layers.prepare(w_q, W_SCALE))


@EACH
@given(seed=seeds, M=st.integers(1, 20) | st.just(131), N=st.integers(1, 40) | st.just(131),
       K=st.integers(1, 200))
def test_the_product_is_the_references_bit_for_bit(device, kernel, seed, M, N, K):
    given = operands(np.random.default_rng(seed), M, N, K)
    np.testing.assert_array_equal(on_device(device, *given, kernel), reference(*given))


@pytest.mark.parametrize(("kernel", "M"), [*[("gemv_i2", M) for M in (1, 3, 8, 64)], ("gemv_b3", 1),
                                           ("gemv_b3", 8), ("gemm_i2", 64), ("gemm_hopper", 64)])
@pytest.mark.parametrize("K", [2560, 6912])
def test_the_widths_of_2b4t(device, rng, kernel, M, K):
    """All columns, a few of the rows: a strip of 16 does not know how many there are."""
    given = operands(rng, M, 24, K)
    np.testing.assert_array_equal(on_device(device, *given, kernel), reference(*given))


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("M", [1, 3, 8, 64])
@pytest.mark.parametrize("K", [2560, 6912])
def test_the_widths_of_2b4t_in_two_blocks(device, rng, kernel, M, K):
    given = operands(rng, M, 140, K)
    np.testing.assert_array_equal(on_device(device, *given, kernel), reference(*given))


@pytest.mark.nightly
@EACH
@pytest.mark.parametrize("M", [1, 3, 8, 64])
@pytest.mark.parametrize(("N", "K"), WIDTHS)
def test_whole_matrices_of_2b4t(device, rng, kernel, M, N, K):
    given = operands(rng, M, N, K)
    np.testing.assert_array_equal(on_device(device, *given, kernel), reference(*given))


@EACH
@pytest.mark.parametrize("code", [127, -128])
@pytest.mark.parametrize("trit", [1, -1])
def test_the_largest_sums_are_exact(device, kernel, code, trit):
    K = 1280
    x_q, x_scale = np.full((9, K), code, np.int8), np.ones((9, 1), np.float32)
    w_q = np.full((17, K), trit, np.int8)
    np.testing.assert_array_equal(on_device(device, x_q, x_scale, w_q, kernel), reference(x_q, x_scale, w_q))


@pytest.mark.parametrize("kernel", ["gemv_i2", "gemv_b3"])
def test_sums_do_not_overflow_at_the_largest_width(device, kernel):
    from bitnet_ref.kernels.numba_cuda.bitlinear import MOST_K, padded
    x_q = np.full((1, padded(MOST_K)), -128, np.int8)
    w_q = np.ones((16, MOST_K), np.int8)
    y = on_device(device, x_q, np.ones((1, 1), np.float32), w_q, kernel, w_scale=np.float32(1))
    assert (y == -128 * MOST_K).all()


@EACH
def test_a_row_does_not_depend_on_the_others(device, rng, kernel):
    x_q, x_scale, w_q = operands(rng, 11, 20, 300)
    together = on_device(device, x_q, x_scale, w_q, kernel)
    for m in (0, 7, 10):
        np.testing.assert_array_equal(on_device(device, x_q[m:m + 1], x_scale[m:m + 1], w_q, kernel),
                                      together[m:m + 1])


@EACH
def test_the_residual_is_added_in_place(device, rng, kernel):
    x_q, x_scale, w_q = operands(rng, 3, 20, 200)
    add = rng.standard_normal((3, 20)).astype(np.float32)
    np.testing.assert_array_equal(on_device(device, x_q, x_scale, w_q, kernel, add),
                                  reference(x_q, x_scale, w_q) + add)


@EACH
def test_stacked_matrices_have_their_own_scales(device, rng, kernel):
    x_q, x_scale, w_q = operands(rng, 2, 25, 140)
    scales = np.repeat(np.array([0.5, 3, 0.1], np.float32), (5, 16, 4))
    want = (x_q[:, :140].astype(np.float32) @ w_q.T.astype(np.float32)) * (x_scale * scales)
    np.testing.assert_array_equal(on_device(device, x_q, x_scale, w_q, kernel, w_scale=scales), want)


def test_pack_stacks(device, rng):
    from bitnet_ref.kernels.numba_cuda.bitlinear import pack
    from bitnet_ref.pack.tiles import unpack_tiles
    parts = [(rng.integers(-1, 2, (n, 30)).astype(np.int8), np.float32(n)) for n in (5, 16, 4)]
    packed = pack(device, parts)
    assert (packed.N, packed.K) == (25, 30)
    np.testing.assert_array_equal(unpack_tiles(device.read(packed.words), 25, 30),
                                  np.concatenate([w_q for w_q, _ in parts]))
    np.testing.assert_array_equal(device.read(packed.w_scale), np.repeat([5, 16, 4], (5, 16, 4)))


@pytest.mark.parametrize(("M", "capability", "kind", "scratch", "name"), [
    (1, (9, 0), "i2", True, "gemv_i2"), (64, (9, 0), "i2", True, "gemv_i2"),
    (500, (9, 0), "b3", True, "gemv_b3"), (65, (9, 0), "i2", True, "gemm_hopper"),
    (65, (9, 0), "i2", False, "gemm_i2"),
    (65, (8, 0), "i2", True, "gemm_i2"), (65, (10, 0), "i2", True, "gemm_i2"),
])
def test_the_choice(device, M, capability, kind, scratch, name):
    from bitnet_ref.kernels.numba_cuda.bitlinear import chosen
    assert chosen(capability, kind, M, scratch).name == name


@pytest.mark.parametrize("M", [2, 65])
def test_a_card_without_wgmma(device, rng, M):
    """The choice is left to product; on such a card the Hopper kernel could not even be loaded."""
    from bitnet_ref.kernels.numba_cuda import bitlinear
    from bitnet_ref.kernels.numba_cuda.memory import Device
    from bitnet_ref.kernels.ptx.driver import Driver
    older = Device(Driver(capability=(8, 0)))
    x_q, x_scale, w_q = operands(rng, M, 20, 200)
    y, scratch = older.empty((M, 20), np.float32), older.empty((bitlinear.scratch_size(M, 200),), np.int8)
    bitlinear.product(older, older.upload(x_q), older.upload(x_scale),
                      older.upload(x_q[:, :200].sum(1, dtype=np.int32)),
                      bitlinear.pack(older, [(w_q, W_SCALE)]), y, M, scratch=scratch)
    np.testing.assert_array_equal(older.read(y), reference(x_q, x_scale, w_q))


def test_what_cannot_be_packed_is_refused(device):
    from bitnet_ref.kernels.numba_cuda.bitlinear import MOST_K, pack
    trits = np.zeros((1, 8), np.int8)
    for matrices, kind, message in (([(np.zeros((1, MOST_K + 1), np.int8), 1)], "i2", f"at most {MOST_K}"),
                                    ([(trits, 1), (trits[:, :7], 1)], "i2", "must have one K.*7, 8"),
                                    ([(trits + np.int8(2), 1)], "i2", "-1, 0 and [+]1 only"),
                                    ([(trits, 1)], "b4", "one of i2, b3")):
        with pytest.raises(CheckError, match=message):
            pack(device, matrices, kind)
