"""Products of floats on the device, forward and backward: one tiled kernel, of which there are a few forms.

Both operands pass through shared memory in tiles of 64 x 16; a thread holds 4 x 4 results. An operand may be
int8 codes, whose scale belongs to a row of the sum: so dw reads x_q x_scale, and dx reads w_q w_scale,
without floats of either ever lying in memory. One thread sums each result, in order: the same on every run.
Read after: kernels/numba_cuda/threads. Read next: kernels/numba_cuda/rmsnorm_backward.
"""

from typing import Any

from numba import cuda, float32, int32, int64

from bitnet_ref.kernels.numba_cuda.launch import Kernel, kernel
from bitnet_ref.kernels.numba_cuda.memory import Array, Device

TILE, DEEP, THREADS = 64, 16, 256
EACH = TILE * DEEP // THREADS            # numbers of a tile that a thread brings
SIDE = TILE // 16                        # results of a thread, in either direction
APART = TILE + 1                         # rows of a tile lie so far apart: no two lanes want one bank


def _form(name: str, a_turned: bool, b_turned: bool, codes: bool) -> Kernel:
    """C (I, J) = A (I, R) B (R, J) [+ D]. `a_turned`: A lies in memory as (R, I); `b_turned`: B as (J, R)."""

    def gemm(a: Any, lda: Any, b: Any, ldb: Any, scale: Any, d: Any, added: Any, c: Any, ldc: Any, I: Any,
             J: Any, R: Any) -> None:
        a_tile = cuda.shared.array((DEEP, APART), float32)
        b_tile = cuda.shared.array((DEEP, APART), float32)
        tid = int32(cuda.threadIdx.x)
        tx, ty = tid & int32(15), tid >> int32(4)
        i0, j0 = int64(cuda.blockIdx.y) * TILE, int64(cuda.blockIdx.x) * TILE
        sums = cuda.local.array((SIDE, SIDE), float32)
        some = cuda.local.array((SIDE, SIDE), float32)     # of DEEP products: a long chain would lose digits
        for u in range(SIDE):
            for v in range(SIDE):
                sums[u, v] = float32(0)
        for r0 in range(0, R, DEEP):
            for s in range(EACH):
                e = int32(tid + int32(s * THREADS))
                if a_turned:                               # neighbours in memory go to neighbouring threads
                    r, i = e >> int32(6), e & int32(63)
                else:
                    r, i = e & int32(15), e >> int32(4)
                value = float32(0)
                if i0 + i < I and r0 + r < R:
                    value = a[(r0 + r) * lda + i0 + i] if a_turned else a[(i0 + i) * lda + r0 + r]
                a_tile[r, i] = value
                if b_turned:
                    r, j = e & int32(15), e >> int32(4)
                else:
                    r, j = e >> int32(6), e & int32(63)
                value = float32(0)
                if j0 + j < J and r0 + r < R:
                    if codes:
                        value = float32(b[(r0 + r) * ldb + j0 + j]) * scale[r0 + r]
                    else:
                        value = b[(j0 + j) * ldb + r0 + r] if b_turned else b[(r0 + r) * ldb + j0 + j]
                b_tile[r, j] = value
            cuda.syncthreads()
            for u in range(SIDE):
                for v in range(SIDE):
                    some[u, v] = float32(0)
            for r in range(DEEP):
                for u in range(SIDE):
                    x = a_tile[r, int32(ty + int32(16 * u))]
                    for v in range(SIDE):
                        some[u, v] += x * b_tile[r, int32(tx + int32(16 * v))]
            for u in range(SIDE):
                for v in range(SIDE):
                    sums[u, v] += some[u, v]
            cuda.syncthreads()
        for u in range(SIDE):
            i = i0 + ty + 16 * u
            for v in range(SIDE):
                j = j0 + tx + 16 * v
                if i < I and j < J:
                    at = i * ldc + j
                    c[at] = d[at] + sums[u, v] if added else sums[u, v]

    gemm.__name__ = name
    b_type = "i8" if codes else "f32"
    return kernel(f"f32* a, i32 lda, {b_type}* b, i32 ldb, f32* scale, f32* d, i32 added, f32* c, i32 ldc, "
                  "i32 I, i32 J, i32 R", THREADS, registers=96)(gemm)


linear_y = _form("linear_y", False, True, False)           # x (M, K) times w (N, K) turned
linear_dx = _form("linear_dx", False, False, False)        # dy (M, N) times w (N, K)
linear_dw = _form("linear_dw", True, False, False)         # dy (M, N) turned, times x (M, K)
codes_dx = _form("codes_dx", False, False, True)           # the same with w_q, w_scale
codes_dw = _form("codes_dw", True, False, True)            # the same with x_q, x_scale


def product(device: Device, x: Array, w: Array, y: Array, M: int, N: int, K: int,
            add: Array | None = None) -> None:
    """y (M, N) = x (M, K) w (N, K)' [+ add (M, N), which may be y].

    For many rows, and for any K: w is the parameters as they lie. linear.py wants tables in whole sixteens.
    """
    device.launch(linear_y, _grid(M, N), x, K, w, K, x, add or y, int(add is not None), y, N, M, N, K)


def product_dx(device: Device, dy: Array, w: Array, w_scale: Array | None, dx: Array, onto: bool, M: int,
               N: int, K: int) -> None:
    """dx (M, K) = (or +=) dy (M, N) w (N, K); with `w_scale` (N,), w is int8 codes.   (LI.3), (BL.4)"""
    form = linear_dx if w_scale is None else codes_dx
    device.launch(form, _grid(M, K), dy, N, w, K, w_scale or dy, dx, int(onto), dx, K, M, K, N)


def product_dw(device: Device, dy: Array, x: Array, x_scale: Array | None, apart: int, dw: Array, M: int,
               N: int, K: int) -> None:
    """dw (N, K) += dy (M, N)' x, whose M rows lie `apart`; with `x_scale` (M,), x is int8 codes.

    (LI.2), (BL.5)
    """
    form = linear_dw if x_scale is None else codes_dw
    device.launch(form, _grid(N, K), dy, N, x, apart, x_scale or dy, dw, 1, dw, K, N, K, M)


def _grid(I: int, J: int) -> tuple[int, int]:
    return -(-J // TILE), -(-I // TILE)
