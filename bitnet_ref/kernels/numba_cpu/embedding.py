"""Embedding: rows gathered, and added back in token order, each thread over features of its own.

Read after: kernels/numba_cpu/glu. Read next: kernels/numba_cpu/cross_entropy.
"""

import numpy as np
from numba import prange

from bitnet_ref import layers as reference
from bitnet_ref.kernels.numba_cpu.cache import compiled_parallel
from bitnet_ref.kernels.numba_cpu.linear import is_ours
from bitnet_ref.kernels.numba_cpu.threads import team


@compiled_parallel
def _scatter(dy, ids, dw, threads):
    width = dy.shape[1]
    for t in prange(threads):
        a, b = width * t // threads, width * (t + 1) // threads
        for m in range(len(ids)):
            row, source = dw[ids[m]], dy[m]
            for i in range(a, b):
                row[i] += source[i]                                             # (EM.2)


def embedding_backward(dy: np.ndarray, ids: np.ndarray, dw: np.ndarray) -> None:
    """As layers.embedding_backward: each row of dw is summed in token order."""
    fits = dy.shape == (*ids.shape, dw.shape[1]) and ids.dtype.kind in "iu" and ids.size > 0
    if (not is_ours(dy, dw) or not fits or not dw.flags.c_contiguous
            or not 0 <= ids.min() <= ids.max() < len(dw)):
        reference.embedding_backward(dy, ids, dw)
        return
    with team() as t:
        _scatter(np.ascontiguousarray(dy.reshape(-1, dy.shape[-1])), ids.reshape(-1), dw, t.threads)
