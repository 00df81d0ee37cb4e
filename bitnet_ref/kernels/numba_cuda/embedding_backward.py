"""The way back of the gradient of the embedding: each row by one block, in token order.

The host sorts the ids of a batch (stable), so that a row's tokens are known: no atomics, and the very sums of
the reference.
Read after: kernels/numba_cuda/glu_backward. Read next: kernels/numba_cuda/cross_entropy.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import cuda, int64

from bitnet_ref.kernels.numba_cuda.launch import kernel

THREADS = 128


class Rows(NamedTuple):
    """Which tokens go into which row: tokens order[starts[i]:starts[i + 1]] into row ids[i]. All int32."""

    ids: np.ndarray
    starts: np.ndarray
    order: np.ndarray


def rows(ids: np.ndarray) -> Rows:
    """The rows that tokens `ids` (M,) go into, each token in its turn."""
    order = np.argsort(ids, kind="stable").astype(np.int32)
    found, starts = np.unique(ids[order], return_index=True)
    return Rows(found.astype(np.int32), np.append(starts, len(ids)).astype(np.int32), order)


@kernel("f32* dx, i32* ids, i32* starts, i32* order, f32* dw, i32 D", THREADS)
def embedding_dw(dx: Any, ids: Any, starts: Any, order: Any, dw: Any, D: Any) -> None:
    """dw (V, D) += rows of dx (M, D), in token order. Grid: the number of rows."""
    i = cuda.blockIdx.x
    row = int64(ids[i]) * D
    for d in range(cuda.threadIdx.x, D, THREADS):
        total = dw[row + d]
        for j in range(starts[i], starts[i + 1]):
            total += dx[int64(order[j]) * D + d]                                            # (EM.2)
        dw[row + d] = total
