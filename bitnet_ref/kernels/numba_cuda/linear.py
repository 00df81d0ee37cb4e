"""Products with floats: the head, and every projection of the full-precision twin.

A warp makes one output of up to four rows; each lane sums its own columns, in order, then the warp its lanes:
an order that the width alone decides, so a row's result does not depend on the others. Tables stay in the
precision that they are stored in (float32, float16, bfloat16, or int8 rows with a scale each), and a lane
reads 16 bytes of them at a time: rows of tables and of inputs are padded with zeros to whole sixteens.
Read after: kernels/numba_cuda/glu. Read next: kernels/numba_cuda/sampling.
"""

from typing import Any

import numpy as np
from numba import cuda, float32, int8, int32, int64, uint16

from bitnet_ref.kernels.numba_cuda.device import load16, warp_sum
from bitnet_ref.kernels.numba_cuda.launch import Kernel, kernel
from bitnet_ref.kernels.numba_cuda.memory import Array, Device
from bitnet_ref.kernels.numba_cuda.precision import KEPT, float_of, from_half

THREADS = 256
WARPS = THREADS // 32
SEVERAL = 4                  # rows that share a pass over the table
SIDE = 16                    # numbers that rows are whole multiples of
HIGH = -65536                # the upper half of 32 bits


@cuda.jit(device=True, inline="always")
def dot4(a: Any, b: Any, c: Any, d: Any, x: Any, at: Any, s: Any) -> Any:
    """s and four numbers times those of x from place `at` on, added in their order."""
    v = load16(x, at)                                                           # (LI.1)
    s = cuda.fma(float_of(v[0]), a, s)
    s = cuda.fma(float_of(v[1]), b, s)
    s = cuda.fma(float_of(v[2]), c, s)
    return cuda.fma(float_of(v[3]), d, s)


@cuda.jit(device=True, inline="always")
def dot_floats(w: Any, x: Any, at: Any, s: Any) -> Any:
    """The same of 16 bytes of a table: four float32."""
    return dot4(float_of(w[0]), float_of(w[1]), float_of(w[2]), float_of(w[3]), x, at, s)


@cuda.jit(device=True, inline="always")
def low_half(word: Any) -> Any:
    """The float16 in the lower 16 bits."""
    return from_half(uint16(word))


@cuda.jit(device=True, inline="always")
def high_half(word: Any) -> Any:
    """The float16 in the upper 16 bits."""
    return from_half(uint16(word >> int32(16)))


@cuda.jit(device=True, inline="always")
def low_bf16(word: Any) -> Any:
    """The bfloat16 in the lower 16 bits."""
    return float_of(int32(word << int32(16)))


@cuda.jit(device=True, inline="always")
def high_bf16(word: Any) -> Any:
    """The bfloat16 in the upper 16 bits."""
    return float_of(word & int32(HIGH))


def _of_halves(low: Any, high: Any) -> Any:
    """The same of eight numbers of 16 bits, each word of which holds two."""
    @cuda.jit(device=True, inline="always")
    def dot(w: Any, x: Any, at: Any, s: Any) -> Any:
        s = dot4(low(w[0]), high(w[0]), low(w[1]), high(w[1]), x, at, s)
        return dot4(low(w[2]), high(w[2]), low(w[3]), high(w[3]), x, at + 4, s)
    return dot


@cuda.jit(device=True, inline="always")
def dot_word(word: Any, x: Any, at: Any, s: Any) -> Any:
    """The same of the four int8 of a word."""
    return dot4(float32(int8(word)), float32(int8(word >> int32(8))), float32(int8(word >> int32(16))),
                float32(int8(word >> int32(24))), x, at, s)


@cuda.jit(device=True, inline="always")
def dot_bytes(w: Any, x: Any, at: Any, s: Any) -> Any:
    """The same of sixteen int8."""
    s = dot_word(w[1], x, at + 4, dot_word(w[0], x, at, s))
    return dot_word(w[3], x, at + 12, dot_word(w[2], x, at + 8, s))


# How 16 bytes of a table are multiplied, and how many numbers they are.
DOTS = {"f32": (dot_floats, 4), "f16": (_of_halves(low_half, high_half), 8),
        "bf16": (_of_halves(low_bf16, high_bf16), 8), "i8": (dot_bytes, 16)}


def _product(kept: str, several: bool) -> Kernel:
    c_type, (dot, once) = KEPT[kept][0], DOTS[kept]
    step = 32 * once

    @kernel(f"f32* x, {c_type}* w, f32* scales, i32 scaled, f32* add, i32 added, f32* y, i32 M, i32 N, i32 K",
            THREADS, registers=80)
    def product(x: Any, w: Any, scales: Any, scaled: Any, add: Any, added: Any, y: Any, M: Any, N: Any,
                K: Any) -> None:
        lane = int32(cuda.threadIdx.x & 31)
        n = int64(cuda.blockIdx.x) * WARPS + (cuda.threadIdx.x >> 5)
        if n >= N:
            return
        m, last = int64(cuda.blockIdx.y) * (SEVERAL if several else 1), int64(M - 1)
        w0, x0, x1 = n * K, m * K, min(m + 1, last) * K
        x2, x3 = min(m + 2, last) * K, min(m + 3, last) * K
        s0, s1, s2, s3 = float32(0), float32(0), float32(0), float32(0)
        for k in range(lane * once, K, step):
            v = load16(w, w0 + k)
            s0 = dot(v, x, x0 + k, s0)
            if several:
                s1, s2, s3 = dot(v, x, x1 + k, s1), dot(v, x, x2 + k, s2), dot(v, x, x3 + k, s3)
        s0 = warp_sum(s0)
        if several:                                        # a lane writes a row
            s1, s2, s3 = warp_sum(s1), warp_sum(s2), warp_sum(s3)
            s0 = s1 if lane == 1 else s2 if lane == 2 else s3 if lane == 3 else s0
            m += lane
        if lane < (SEVERAL if several else 1) and m < M:
            if scaled:
                s0 *= scales[n]
            if added:
                s0 += add[m * N + n]
            y[m * N + n] = s0
    return product._replace(name=f"linear_{kept}{'_several' if several else ''}")


LINEAR = {(kept, several): _product(kept, several) for kept in KEPT for several in (False, True)}


def in_sixteens(table: np.ndarray) -> np.ndarray:
    """A table (N, K) with rows of whole sixteens, as `linear` reads it: zeros behind."""
    behind = -table.shape[1] % SIDE
    return np.pad(table, ((0, 0), (0, behind))) if behind else table


def linear(device: Device, x: Array, w: Array, kept: str, scales: Array | None, y: Array, M: int,
           add: Array | None = None) -> None:
    """y = x @ w.T [* scales] [+ add].   x (M, K)  w (N, K) kept as f32, f16, bf16 or i8  ->  y (M, N)

    K is a multiple of 16, both padded with zeros where the matrix is narrower.
    """
    (N, K), several = w.shape, M > 1
    assert K % SIDE == 0, "rows are whole sixteens"
    device.launch(LINEAR[kept, several], (-(-N // WARPS), -(-M // SEVERAL) if several else 1), x, w,
                  y if scales is None else scales, int(scales is not None), y if add is None else add,
                  int(add is not None), y, M, N, K)
