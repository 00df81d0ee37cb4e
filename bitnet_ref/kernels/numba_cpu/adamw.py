"""AdamW in one pass over the four flat arrays, in parallel; per element the same operations as the reference.

Read after: kernels/numba_cpu/cross_entropy. Read next: kernels/numba_cpu/workspace.
"""

import numpy as np
from numba import prange

from bitnet_ref import layers as reference
from bitnet_ref.kernels.numba_cpu.cache import compiled_parallel
from bitnet_ref.kernels.numba_cpu.linear import is_ours
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.vectors import square_sum as square_of

PART = 1 << 14               # elements of a partial sum


@compiled_parallel
def _update(p, g, m, v, beta1, beta2, rest1, rest2, keep, rate, correct2, eps, threads):
    for t in prange(threads):
        a, b = p.size * t // threads, p.size * (t + 1) // threads
        pb, gb, mb, vb = p[a:b], g[a:b], m[a:b], v[a:b]
        for i in range(pb.size):
            first = mb[i] * beta1 + rest1 * gb[i]                               # (AW.1)
            second = vb[i] * beta2 + rest2 * (gb[i] * gb[i])                    # (AW.2)
            mb[i], vb[i] = first, second
            step = rate * first / (np.sqrt(second / correct2) + eps)
            pb[i] = pb[i] * keep - step                                         # (AW.3), (AW.4)


@compiled_parallel
def _square_sums(x, sums, threads):
    for t in prange(threads):
        for p in range(sums.size * t // threads, sums.size * (t + 1) // threads):
            sums[p] = square_of(x[p * PART:(p + 1) * PART])


def square_sum(x: np.ndarray) -> float:
    """As layers.square_sum; PART by PART, so that the sum does not depend on threads."""
    if not is_ours(x) or not x.flags.c_contiguous:
        return reference.square_sum(x)
    sums = np.zeros(-(-x.size // PART))
    with team() as t:
        _square_sums(x.reshape(-1), sums, t.threads)
    return float(np.sum(sums))


def adamw_(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, lr: float, decay: float,
           beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8) -> None:
    """As layers.adamw_."""
    ours = is_ours(p, g, m, v) and p.shape == g.shape == m.shape == v.shape
    if not ours or not all(a.flags.c_contiguous for a in (p, g, m, v)):
        reference.adamw_(p, g, m, v, step, lr, decay, beta1, beta2, eps)
        return
    rate, correct2 = lr / (1 - beta1**step), 1 - beta2**step
    numbers = (beta1, beta2, 1 - beta1, 1 - beta2, 1 - lr * decay, rate, correct2, eps)
    with team() as t:
        _update(*(a.reshape(-1) for a in (p, g, m, v)), *(np.float32(x) for x in numbers), t.threads)
