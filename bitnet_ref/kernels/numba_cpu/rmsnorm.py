"""RMSNorm, one pass over a row forward and one back. The gain's gradient is summed by strips of rows.

Read after: kernels/numba_cpu/attention. Read next: kernels/numba_cpu/rope.
"""

import numpy as np
from numba import prange

from bitnet_ref import layers as reference
from bitnet_ref.kernels.numba_cpu.cache import compiled, compiled_parallel
from bitnet_ref.kernels.numba_cpu.linear import delivered, flat, given, is_ours
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.vectors import rstd_of

STRIP = 64                   # rows whose part of dg is summed on its own, in row order: not by threads
NO_GAIN = np.zeros(0, np.float32)


@compiled
def norm_floats(x, g, eps, y):
    """y = x * rstd * g of one row (g empty: no gain); returns rstd."""
    rstd = rstd_of(x, eps)                                                      # (RN.1)
    for i in range(x.size):
        y[i] = x[i] * rstd
    if g.size:
        for i in range(x.size):
            y[i] *= g[i]                                                        # (RN.2)
    return rstd


@compiled_parallel
def _forward(x, g, eps, y, rstd, threads):
    for t in prange(threads):
        for m in range(len(x) * t // threads, len(x) * (t + 1) // threads):
            rstd[m] = norm_floats(x[m], g, eps, y[m])


@compiled
def _row_backward(dy, x, g, rstd, dx, onto, dg):
    """dx = (or +=) of one row; its part is added to dg."""
    total = np.float64(0)
    if g.size:
        for i in range(x.size):
            n = x[i] * rstd
            dg[i] += dy[i] * n                                                  # (RN.3)
        for i in range(x.size):
            total += np.float64(dy[i] * g[i] * (x[i] * rstd))
    else:
        for i in range(x.size):
            total += np.float64(dy[i] * (x[i] * rstd))
    mean = np.float32(total / x.size)
    for i in range(x.size):
        dn = dy[i] * g[i] if g.size else dy[i]
        d = (dn - x[i] * rstd * mean) * rstd                                    # (RN.4)
        dx[i] = dx[i] + d if onto else d


@compiled_parallel
def _backward(dy, x, g, rstd, dx, onto, parts, dg, threads):
    strips = len(parts)
    for t in prange(threads):
        for s in range(strips * t // threads, strips * (t + 1) // threads):
            parts[s] = 0
            for m in range(s * STRIP, min((s + 1) * STRIP, len(x))):
                _row_backward(dy[m], x[m], g, rstd[m], dx[m], onto, parts[s])
    for s in range(strips if g.size else 0):
        for i in range(g.size):
            dg[i] += parts[s, i]


def forward(x: np.ndarray, g: np.ndarray | None, eps: float, y: np.ndarray, rstd: np.ndarray) -> None:
    """x, y (M, D), rstd (M,)."""
    with team() as t:
        _forward(x, NO_GAIN if g is None else g, eps, y, rstd, t.threads)


def backward(dy: np.ndarray, x: np.ndarray, g: np.ndarray | None, rstd: np.ndarray, dx: np.ndarray,
             dg: np.ndarray | None, onto: bool = False) -> None:
    """dx (M, D) = (or +=) the gradient; dx may be dy. Accumulates into dg (D,)."""
    strips = -(-len(x) // STRIP)
    with team(4 * strips * x.shape[1]) as t:
        parts = t.scratch.reshape(-1).view(np.float32)[:strips * x.shape[1]].reshape(strips, x.shape[1])
        _backward(dy, x, NO_GAIN if g is None else g, rstd, dx, onto, parts, NO_GAIN if dg is None else dg,
                  t.threads)


def rmsnorm(x: np.ndarray, g: np.ndarray | None, eps: float = 1e-5,
            out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """As layers.rmsnorm; the mean square in float64."""
    if not is_ours(x) or x.size == 0 or not _gain_fits(g, x):
        return reference.rmsnorm(x, g, eps, out)
    rows, y = flat(x), given(out, x.shape)
    rstd = np.empty(len(rows), np.float32)
    forward(rows, g, eps, y.reshape(rows.shape), rstd)
    return delivered(y, out), rstd.reshape(*x.shape[:-1], 1)


def _gain_fits(g: np.ndarray | None, x: np.ndarray) -> bool:
    return g is None or (is_ours(g) and g.shape == x.shape[-1:])


def rmsnorm_backward(dy: np.ndarray, x: np.ndarray, g: np.ndarray | None, rstd: np.ndarray,
                     dg: np.ndarray | None) -> np.ndarray:
    """As layers.rmsnorm_backward."""
    fits = dy.shape == x.shape and rstd.size == x.size // x.shape[-1] and _gain_fits(g, x)
    if not is_ours(dy, x, rstd) or not fits or not _gain_fits(dg, x):
        return reference.rmsnorm_backward(dy, x, g, rstd, dg)
    dx = np.empty((x.size // x.shape[-1], x.shape[-1]), np.float32)
    backward(flat(dy), flat(x), g, np.ascontiguousarray(rstd.reshape(-1)), dx, dg)
    return dx.reshape(x.shape)
