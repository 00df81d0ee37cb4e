"""Weights to trits on the device, and trits into the tiles of a stack, where several matrices stand.

The mean is taken in float64, so that it is nearly always the correctly rounded one; NumPy's pairwise float32
sum may differ from it in the last digit, and with it a weight at a tie. What is not finite shows: a matrix
that holds NaN or infinity gets trits 0 and the scale NaN.
Read after: kernels/numba_cuda/adamw. Read next: kernels/numba_cuda/vectors.
"""

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int8, int32, int64

from bitnet_ref.kernels.numba_cuda.adamw import ABSOLUTE, blocks, summed
from bitnet_ref.kernels.numba_cuda.bitlinear import Packed
from bitnet_ref.kernels.numba_cuda.device import round_int
from bitnet_ref.kernels.numba_cuda.launch import kernel
from bitnet_ref.kernels.numba_cuda.memory import Array, Device
from bitnet_ref.pack.tiles import ROWS

THREADS = 256
FLOOR = float32(1e-5)


@kernel("f64* total, i64 n, f32* w_scale", 32)
def absmean_scale(total: Any, n: Any, w_scale: Any) -> None:
    """The sum of |w| of n weights  ->  w_scale. One thread matters."""
    if cuda.threadIdx.x == 0:
        mean = float32(total[0] / n)                                                        # (QU.1)
        w_scale[0] = max(mean, FLOOR) if abs(mean) < float32(math.inf) else float32(math.nan)  # (QU.2)


@kernel("f32* w, f32* w_scale, i8* w_q, i64 n", THREADS)
def absmean_trits(w: Any, w_scale: Any, w_q: Any, n: Any) -> None:
    """w (n,), w_scale (1,)  ->  w_q (n,)."""
    i = cuda.grid(1)
    if i < n:
        code = min(max(round_int(w[i] * (float32(1) / w_scale[0])), int32(-1)), int32(1))   # (QU.3)
        w_q[i] = int8(code)


def absmean(device: Device, w: Array, w_q: Array, w_scale: Array) -> None:
    """w (N, K)  ->  w_q int8 (N, K), w_scale (). Nothing comes to the host."""
    device.launch(absmean_scale, (1,), summed(device, w, ABSOLUTE), w.size, w_scale)
    device.launch(absmean_trits, blocks(w.size), w, w_scale, w_q, w.size)


@kernel("i8* w_q, f32* w_scale, i32* words, f32* scales, i32 N, i32 K, i32 row, i32 tiles", THREADS)
def pack_trits(w_q: Any, w_scale: Any, words: Any, scales: Any, N: Any, K: Any, row: Any, tiles: Any) -> None:
    """w_q (N, K), w_scale ()  ->  rows row.. of tiles as pack/tiles.py has them (i2), and of their scales.

    Grid: the strips of 16 rows that these touch. A thread makes a word; rows of another matrix stay.
    """
    tid = int32(cuda.threadIdx.x)
    strip = row // 16 + int32(cuda.blockIdx.x)
    n = strip * 16 + tid - row
    if tid < 16 and n >= 0 and n < N:
        scales[strip * 16 + tid] = w_scale[0]
    for i in range(tid, tiles * 128, THREADS):
        word, lane = int32(i & 3), int32((i >> 2) & 31)
        column = int32((i >> 7) * 128 + 64 * (word >> 1) + 16 * (lane & 3) + 4 * (word & 1))
        at = int64(strip) * tiles * 128 + i
        codes = words[at]
        for r in range(2):
            n = strip * 16 + (lane >> 2) + 8 * r - row
            if n >= 0 and n < N:
                for j in range(2):
                    for b in range(4):
                        k, bit = int32(column + 8 * j + b), int32(8 * b + 2 * (2 * j + r))
                        code = int32(w_q[int64(n) * K + k] + 1) if k < K else int32(0)
                        codes = int32((codes & ~int32(3 << bit)) | int32(code << bit))
        words[at] = codes


def pack_rows(device: Device, w_q: Array, w_scale: Array, packed: Packed, row: int) -> None:
    """w_q int8 (N, K), w_scale () on the device, as rows `row`.. of `packed`, of kind i2."""
    N, K = w_q.shape
    assert packed.kind == "i2"
    assert packed.K == K
    assert row + N <= packed.N
    strips = (row + N - 1) // ROWS - row // ROWS + 1
    device.launch(pack_trits, (strips,), w_q, w_scale, packed.words, packed.w_scale, N, K, row,
                  packed.words.shape[1])


def trits(device: Device, w: Array) -> tuple[Array, Array]:
    """w (N, K)  ->  w_q int8 (N, K), w_scale (), both on the device."""
    w_q, w_scale = device.empty(w.shape, np.int8), device.empty((), np.float32)
    absmean(device, w, w_q, w_scale)
    return w_q, w_scale
