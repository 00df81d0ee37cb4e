"""The update on the device, and what else is done to whole vectors there: sums, in an order that stays.

A sum is that of 256 threads of each of some blocks, in float64, then of the blocks; how many depends on the
length alone.
Read after: kernels/numba_cuda/cross_entropy. Read next: kernels/numba_cuda/ternarise.
"""

import math
from typing import Any

import numpy as np
from numba import cuda, float64

from bitnet_ref.kernels.numba_cuda.device import THREADS, block_sum64
from bitnet_ref.kernels.numba_cuda.launch import kernel
from bitnet_ref.kernels.numba_cuda.memory import Array, Device

MOST_BLOCKS = 1024
EACH = 16                                                  # numbers of a thread, before there are more blocks
SUM, ABSOLUTE, SQUARES = 0, 1, 2


@kernel("f32* x, i64 n, i32 what, f64* sums", THREADS)
def sum_parts(x: Any, n: Any, what: Any, sums: Any) -> None:
    """x (n,)  ->  sums (blocks,) of x, |x| or x^2."""
    total = float64(0)
    for i in range(cuda.grid(1), n, cuda.gridsize(1)):
        v = float64(x[i])
        total += v if what == SUM else abs(v) if what == ABSOLUTE else v * v
    total = block_sum64(total)
    if cuda.threadIdx.x == 0:
        sums[cuda.blockIdx.x] = total


@kernel("f64* sums, i32 n", THREADS)
def sum_sums(sums: Any, n: Any) -> None:
    """sums (n,)  ->  their sum in sums[0]. One block."""
    total = float64(0)
    for i in range(cuda.threadIdx.x, n, THREADS):
        total += sums[i]
    total = block_sum64(total)
    if cuda.threadIdx.x == 0:
        sums[0] = total


def summed(device: Device, x: Array, what: int = SUM) -> Array:
    """The sum of x, of |x| or of x^2: float64, the first number of the array."""
    n = min(MOST_BLOCKS, max(1, -(-x.size // (THREADS * EACH))))
    sums = device.empty((n,), np.float64)
    device.launch(sum_parts, (n,), x, x.size, what, sums)
    device.launch(sum_sums, (1,), sums, n)
    return sums


@kernel("f32* p, f32* g, f32* m, f32* v, i64 n, f32 beta1, f32 beta2, f32 rest1, f32 rest2, f32 keep, "
        "f32 rate, f32 correct2, f32 eps", THREADS)
def adamw(p: Any, g: Any, m: Any, v: Any, n: Any, beta1: Any, beta2: Any, rest1: Any, rest2: Any, keep: Any,
          rate: Any, correct2: Any, eps: Any) -> None:
    """One update in place of p, m, v (n,) from the gradient g (n,)."""
    i = cuda.grid(1)
    if i < n:
        m_i = m[i] * beta1 + rest1 * g[i]                                                   # (AW.1)
        v_i = v[i] * beta2 + rest2 * (g[i] * g[i])                                          # (AW.2)
        m[i] = m_i
        v[i] = v_i
        p[i] = p[i] * keep - rate * m_i / (math.sqrt(v_i / correct2) + eps)                 # (AW.3), (AW.4)


@kernel("f32* x, i64 n, f32 value", THREADS)
def fill(x: Any, n: Any, value: Any) -> None:
    """x (n,) = value."""
    i = cuda.grid(1)
    if i < n:
        x[i] = value


@kernel("f32* x, i64 n, f32 factor", THREADS)
def scale(x: Any, n: Any, factor: Any) -> None:
    """x (n,) *= factor."""
    i = cuda.grid(1)
    if i < n:
        x[i] *= factor


@kernel("f32* x, f32* y, i64 n", THREADS)
def add(x: Any, y: Any, n: Any) -> None:
    """x (n,) += y."""
    i = cuda.grid(1)
    if i < n:
        x[i] += y[i]


@kernel("f32* x, f32* y, i64 n, f32 weight", THREADS)
def approach(x: Any, y: Any, n: Any, weight: Any) -> None:
    """x (n,) += weight (y - x)."""
    i = cuda.grid(1)
    if i < n:
        x[i] += weight * (y[i] - x[i])


def blocks(n: int) -> tuple[int]:
    """The grid in which every number has a thread."""
    return (max(1, -(-n // THREADS)),)
