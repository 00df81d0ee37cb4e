"""Products with floats, rows of tables and the most probable token, on the device."""

import ml_dtypes
import numpy as np
import pytest
from derivative import array_error
from on_device import launched, nothing

pytest.importorskip("numba_cuda", reason="CUDA kernels need numba-cuda")
from bitnet_ref.kernels.numba_cuda.embedding import EMBEDDING
from bitnet_ref.kernels.numba_cuda.linear import in_sixteens, linear
from bitnet_ref.kernels.numba_cuda.precision import NAMES, bits
from bitnet_ref.kernels.numba_cuda.sampling import argmax

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def table(rng, shape, dtype):
    if dtype is np.int8:
        return rng.integers(-127, 128, shape).astype(np.int8)
    return rng.normal(size=shape).astype(dtype)


def multiplied(device, x, w, scales=None, add=None):
    y = device.empty((len(x), len(w)), "f4")
    scales, add = (None if a is None else device.upload(a) for a in (scales, add))
    x, rows = in_sixteens(x), in_sixteens(bits(w))
    linear(device, device.upload(x), device.upload(rows), NAMES[w.dtype.name], scales, y, len(x), add)
    return device.read(y)


@pytest.mark.parametrize("dtype", [*DTYPES, np.int8])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 13, 16), (3, 9, 37), (5, 8, 700)])
def test_products(device, rng, dtype, M, N, K, tol):
    x, w = rng.normal(size=(M, K)).astype(np.float32), table(rng, (N, K), dtype)
    scales = rng.uniform(0.5, 2, N).astype(np.float32) if dtype is np.int8 else None
    want = x.astype(float) @ w.astype(float).T * (1 if scales is None else scales)
    assert array_error(multiplied(device, x, w, scales), want) <= tol["float32"]
    add = rng.normal(size=(M, N)).astype(np.float32)
    assert array_error(multiplied(device, x, w, scales, add), want + add) <= tol["float32"]


def test_a_row_is_the_same_alone_and_among_others(device, rng):
    x, w = rng.normal(size=(6, 70)).astype(np.float32), table(rng, (9, 70), np.float32)
    together = multiplied(device, x, w)
    for m in range(6):
        np.testing.assert_array_equal(multiplied(device, x[m:m + 1], w)[0], together[m])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_table(device, rng, dtype):
    w, ids = table(rng, (11, 300), dtype), np.array([3, 0, 10, 3], np.int32)
    k = EMBEDDING[NAMES[np.dtype(dtype).name]]
    y = launched(device, k, (4,), ids, bits(w), nothing(4, 300), 300, 300)[2]
    np.testing.assert_array_equal(y, w[ids].astype(np.float32))


def test_the_most_probable_token_and_of_equals_the_first(device, rng):
    logits = rng.normal(size=(4, 1500)).astype(np.float32)
    logits[0, [1499, 700, 20]] = 9
    logits[1, 1499] = 9
    logits[3] = -np.inf
    position = np.array([2, 0, 5, 1], np.int32)
    _, ids, after, found = launched(device, argmax, (4,), logits, nothing(4, dtype=np.int32), position,
                                    np.zeros((4, 8), np.int32), 1500, 8)
    np.testing.assert_array_equal(ids, logits.argmax(axis=1))
    np.testing.assert_array_equal(after, position + 1)
    want = np.zeros((4, 8), np.int32)
    want[np.arange(4), position + 1] = ids
    np.testing.assert_array_equal(found, want)
