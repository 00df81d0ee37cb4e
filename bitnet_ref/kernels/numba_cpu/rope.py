"""RoPE, a rotation of pairs in place or into `out`; backward turns the other way.

Read after: kernels/numba_cpu/rmsnorm. Read next: kernels/numba_cpu/glu.
"""

import numpy as np
from numba import prange

from bitnet_ref import layers as reference
from bitnet_ref.kernels.numba_cpu.cache import compiled_parallel
from bitnet_ref.kernels.numba_cpu.linear import delivered, given, is_ours
from bitnet_ref.kernels.numba_cpu.threads import team


@compiled_parallel
def turn(x, cos, sin, sign, y, threads):
    """y (B, T, H, Dh) = x turned by the angles (T, Dh/2), times `sign`."""
    B, T, H, Dh = x.shape
    half = Dh // 2
    for t in prange(threads):
        for m in range(B * T * t // threads, B * T * (t + 1) // threads):
            b, at = m // T, m % T
            for h in range(H):
                source, result = x[b, at, h], y[b, at, h]
                for i in range(half):
                    c, s = cos[at, i], sign * sin[at, i]
                    first, second = source[i], source[half + i]
                    result[i] = first * c - second * s                          # (RO.2)
                    result[half + i] = second * c + first * s                   # (RO.3)


def _turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, sign: float,
            out: np.ndarray | None) -> np.ndarray:
    y = given(out, x.shape)
    with team() as t:
        turn(np.ascontiguousarray(x), cos[:, 0], sin[:, 0], np.float32(sign), y, t.threads)
    return delivered(y, out)


def _fits(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> bool:
    """Whether compiled code may read these; what does not fit is left to the reference to refuse."""
    return (is_ours(x, cos, sin) and x.ndim == 4
            and cos.shape == sin.shape == (x.shape[1], 1, x.shape[3] // 2))


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """As layers.rope; `out` may be x."""
    if not _fits(x, cos, sin):
        return reference.rope(x, cos, sin, out)
    return _turned(x, cos, sin, 1, out)


def rope_backward(dy: np.ndarray, cos: np.ndarray, sin: np.ndarray,
                  out: np.ndarray | None = None) -> np.ndarray:
    """As layers.rope_backward; `out` may be dy."""
    if not _fits(dy, cos, sin):
        return delivered(reference.rope_backward(dy, cos, sin), out)
    return _turned(dy, cos, sin, -1, out)
