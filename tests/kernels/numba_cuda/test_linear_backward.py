"""kernels/numba_cuda/linear_backward: products in tiles, at sizes that fit no tile, against layers."""

from importlib import import_module

import numpy as np
import pytest
from derivative import array_error

from bitnet_ref.layers import linear, linear_backward, ternary_linear_backward
from bitnet_ref.layers.bitlinear import Prepared

pytest.importorskip("numba_cuda")
# not the op of this name
ours = import_module("bitnet_ref.kernels.numba_cuda.linear_backward")

SIZES = [(1, 1, 1), (3, 17, 65), (66, 5, 33)]              # M, N, K: less than a tile, and little more
WIDE = [(3, 2560, 6912), (70, 640, 2560)]


@pytest.fixture(params=[*SIZES, *(pytest.param(s, marks=pytest.mark.slow) for s in WIDE)], ids=str)
def given(request, rng):
    M, N, K = request.param
    return M, N, K, *(rng.standard_normal(s).astype(np.float32) for s in ((M, N), (M, K), (N, K)))


def test_forward(device, given, tol):
    M, N, K, add, x, w = given
    y = device.empty((M, N), np.float32)
    ours.product(device, device.upload(x), device.upload(w), y, M, N, K)
    assert array_error(device.read(y), linear(x, w)) <= tol["float32"]
    ours.product(device, device.upload(x), device.upload(w), y, M, N, K, device.upload(add))
    assert array_error(device.read(y), linear(x, w) + add) <= tol["float32"]


def test_backward(device, given, tol, rng):
    M, N, K, dy, x, w = given
    start = rng.standard_normal((N, K)).astype(np.float32)
    want_dw = start.copy()
    want = linear_backward(dy, x, w, want_dw)
    there, dw, dx = device.upload(dy), device.upload(start), device.upload(x)
    ours.product_dw(device, there, device.upload(x), None, K, dw, M, N, K)
    ours.product_dx(device, there, device.upload(w), None, dx, True, M, N, K)
    assert array_error(device.read(dw), want_dw) <= tol["float32"]
    assert array_error(device.read(dx), want + x) <= tol["float32"]


def test_backward_of_codes(device, given, tol, rng):
    """Activations in rows that lie further apart than they are long; a scale for each row of weights."""
    M, N, K, dy, _, _ = given
    apart, w_scale = K + 7, np.float32(0.013)
    x_q, w_q = rng.integers(-127, 128, (M, apart), np.int8), rng.integers(-1, 2, (N, K), np.int8)
    x_scale = rng.random((M, 1), np.float32) + np.float32(0.1)
    want_dw = np.zeros((N, K), np.float32)
    want = ternary_linear_backward(dy, x_q[:, :K], x_scale, Prepared(w_q, w_scale), want_dw)
    there, dw, dx = device.upload(dy), device.zeros((N, K), np.float32), device.empty((M, K), np.float32)
    ours.product_dw(device, there, device.upload(x_q), device.upload(x_scale), apart, dw, M, N, K)
    ours.product_dx(device, there, device.upload(w_q), device.upload(np.full(N, w_scale)), dx, False, M, N, K)
    assert array_error(device.read(dw), want_dw) <= tol["float32"]
    assert array_error(device.read(dx), want) <= tol["float32"]
