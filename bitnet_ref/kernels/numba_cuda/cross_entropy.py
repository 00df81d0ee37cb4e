"""The loss of a chunk of rows, and what their logits become: their own gradient, in place. A block to a row.

Read after: kernels/numba_cuda/embedding_backward. Read next: kernels/numba_cuda/adamw.
"""

import math
from typing import Any

from numba import cuda, float32, int32, int64

from bitnet_ref.kernels.numba_cuda.device import BLOCK_WARPS, THREADS, block_sum, warp_max
from bitnet_ref.kernels.numba_cuda.launch import kernel


@kernel("f32* logits, i32* targets, f32 scale, f32* losses, i32 V", THREADS)
def cross_entropy(logits: Any, targets: Any, scale: Any, losses: Any, V: Any) -> None:
    """logits (M, V), targets (M,)  ->  losses (M,); logits become scale (softmax - onehot). Grid (M,)."""
    tops = cuda.shared.array(BLOCK_WARPS, float32)
    tid = int32(cuda.threadIdx.x)
    row = int64(cuda.blockIdx.x) * V
    top = float32(-math.inf)
    for j in range(tid, V, THREADS):
        top = max(top, logits[row + j])
    top = warp_max(top)
    if (tid & int32(31)) == 0:
        tops[tid >> int32(5)] = top
    cuda.syncthreads()
    for i in range(BLOCK_WARPS):
        top = max(top, tops[i])
    total = float32(0)
    for j in range(tid, V, THREADS):
        total += math.exp(logits[row + j] - top)
    lse = math.log(block_sum(total)) + top                                                  # (CE.1)
    at = row + targets[cuda.blockIdx.x]
    if tid == 0:
        losses[cuda.blockIdx.x] = lse - logits[at]                                          # (CE.2)
    cuda.syncthreads()
    for j in range(tid, V, THREADS):
        p = math.exp(logits[row + j] - lse)                                                 # (CE.3)
        logits[row + j] = (p - float32(1) if row + j == at else p) * scale                  # (CE.4)
