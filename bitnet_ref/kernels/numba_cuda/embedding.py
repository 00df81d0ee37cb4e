"""Rows of a table, gathered: the embedding of tokens, and the rows whose logits are asked for.

Read after: kernels/numba_cuda/rmsnorm. Read next: kernels/numba_cuda/rope.
"""

from typing import Any

from numba import cuda, int32, int64

from bitnet_ref.kernels.numba_cuda.launch import Kernel, kernel
from bitnet_ref.kernels.numba_cuda.precision import KEPT

THREADS = 256


def _gather(kept: str) -> Kernel:
    c_type, wide = KEPT[kept]

    @kernel(f"i32* ids, {c_type}* table, f32* y, i32 D, i32 apart", THREADS)
    def gather(ids: Any, table: Any, y: Any, D: Any, apart: Any) -> None:
        row = int64(ids[cuda.blockIdx.x]) * apart
        for d in range(int32(cuda.threadIdx.x), D, THREADS):
            y[cuda.blockIdx.x * D + d] = wide(table[row + d])
    return gather._replace(name=f"embedding_{kept}")


# ids int32 (M,), table (V, D) kept in that precision, in rows `apart`  ->  y (M, D). Grid (M,).
EMBEDDING = {kept: _gather(kept) for kept in ("f32", "f16", "bf16")}
