"""Both quantisers in one pass over memory each.

The largest magnitude is taken over the bits of the floats as integers: a reduction that vectorises, is exact
in any order, and in which NaN lies above infinity, so that what is not finite is found for nothing.
Read after: kernels/numba_cpu/threads. Read next: kernels/numba_cpu/rans.
"""

from typing import Any

import numpy as np
from numba import prange

from bitnet_ref import quant as reference
from bitnet_ref.kernels.numba_cpu.cache import compiled, compiled_parallel
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.vectors import INFINITE, MAGNITUDE, bits_of, float_of, round_even
from bitnet_ref.quant import FLOOR

PART = 1 << 14               # weights of a partial sum of |w|, so that the sum does not depend on threads
_floor = np.float32(FLOOR)


@compiled
def quantise_row(x, g, rstd, x_q):
    """x_q int8 (K,) of float32 x * rstd * g (g empty: no gain). Returns x_scale and the sum of the codes."""
    top = np.int32(0)
    if g.size:
        for i in range(x.size):
            top = max(top, np.int32(bits_of(x[i] * rstd * g[i]) & MAGNITUDE))
    else:
        for i in range(x.size):
            top = max(top, np.int32(bits_of(x[i] * rstd) & MAGNITUDE))
    if top >= INFINITE:
        x_q[:] = 0
        return np.float32(np.nan), np.int32(0)
    absmax = max(float_of(top), _floor)                                         # (QU.5)
    inv_scale = np.float32(127) / absmax                                        # (QU.6)
    total = np.int32(0)
    if g.size:
        for i in range(x.size):
            code = np.int8(round_even(x[i] * rstd * g[i] * inv_scale))          # (QU.7)
            x_q[i] = code
            total += np.int32(code)
    else:
        for i in range(x.size):
            code = np.int8(round_even(x[i] * rstd * inv_scale))
            x_q[i] = code
            total += np.int32(code)
    return absmax / np.float32(127), np.int32(total)


@compiled_parallel
def _absmax_int8(x, g, x_q, x_scale, threads):
    for t in prange(threads):
        for m in range(len(x) * t // threads, len(x) * (t + 1) // threads):
            x_scale[m], _ = quantise_row(x[m], g, np.float32(1), x_q[m])


@compiled_parallel
def magnitude_sums(w, sums, threads):
    """sums (parts,) float64: of |w| (n,), PART weights each. Not finite if a weight is not."""
    for t in prange(threads):
        for p in range(sums.size * t // threads, sums.size * (t + 1) // threads):
            a = b = c = d = 0.0
            part = w[p * PART:(p + 1) * PART]
            whole = part.size // 4 * 4
            for i in range(0, whole, 4):
                a += np.float64(abs(part[i]))
                b += np.float64(abs(part[i + 1]))
                c += np.float64(abs(part[i + 2]))
                d += np.float64(abs(part[i + 3]))
            for i in range(whole, part.size):
                a += np.float64(abs(part[i]))
            sums[p] = (a + b) + (c + d)


@compiled_parallel
def round_to_trits(w, inv_scale, w_q, threads):
    """w_q int8 (n,) = clip(rint(w * inv_scale), -1, 1). Half rounds to even, that is to 0."""
    for t in prange(threads):
        for i in range(w.size * t // threads, w.size * (t + 1) // threads):
            scaled = w[i] * inv_scale
            w_q[i] = np.int8(scaled > np.float32(0.5)) - np.int8(scaled < np.float32(-0.5))   # (QU.3)


def ternarise(w: np.ndarray, w_q: np.ndarray) -> np.float32:
    """w_q int8 (N, K) from float32 w (N, K), both C-contiguous; returns w_scale, the floored mean of |w|."""
    with team() as t:
        sums = np.empty(-(-w.size // PART))
        magnitude_sums(w.reshape(-1), sums, t.threads)
        mean = np.float32(np.sum(sums) / w.size)                                # (QU.1)
        if not np.isfinite(mean):
            w_q[...] = 0
            return np.float32(np.nan)
        w_scale = np.maximum(mean, _floor)                                      # (QU.2)
        round_to_trits(w.reshape(-1), np.float32(1) / w_scale, w_q.reshape(-1), t.threads)
    return w_scale


def absmean_ternary(w: np.ndarray, rule: str = "official") -> tuple[np.ndarray, Any]:
    """As quant.absmean_ternary; the mean is summed in float64."""
    if w.dtype != np.float32 or rule != "official" or w.size == 0:
        return reference.absmean_ternary(w, rule)
    w_q = np.empty(w.shape, np.int8)
    return w_q, ternarise(np.ascontiguousarray(w), w_q)


def absmax_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As quant.absmax_int8."""
    if x.dtype != np.float32 or x.size == 0:
        return reference.absmax_int8(x)
    rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
    x_q, x_scale = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    with team() as t:
        _absmax_int8(rows, np.zeros(0, np.float32), x_q, x_scale, t.threads)
    return x_q.reshape(x.shape), x_scale.reshape(*x.shape[:-1], 1)
