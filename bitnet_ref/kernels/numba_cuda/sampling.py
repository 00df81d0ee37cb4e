"""The most probable token of each row of logits, found where the logits are.

Read after: kernels/numba_cuda/linear. Read next: kernels/numba_cuda/program.
"""

from typing import Any

from numba import cuda, float32, int32

from bitnet_ref.kernels.numba_cuda.device import ALL
from bitnet_ref.kernels.numba_cuda.launch import kernel

THREADS = 512


@kernel("f32* logits, i32* ids, i32* position, i32* found, i32 V, i32 room", THREADS)
def argmax(logits: Any, ids: Any, position: Any, found: Any, V: Any, room: Any) -> None:
    """logits (M, V)  ->  ids (M,), of equal logits the first; position (M,) goes up by one, and `found`
    (M, room) has the id there. Grid (M,)."""
    best = cuda.shared.array(32, float32)
    where = cuda.shared.array(32, int32)
    tid = int32(cuda.threadIdx.x)
    row = cuda.blockIdx.x * V
    top, at = float32(float("-inf")), int32(V)
    for v in range(tid, V, THREADS):
        if logits[row + v] > top:
            top, at = logits[row + v], int32(v)
    for turn in range(2):
        for d in (16, 8, 4, 2, 1):
            other, place = cuda.shfl_xor_sync(ALL, top, d), cuda.shfl_xor_sync(ALL, at, d)
            if other > top or (other == top and place < at):
                top, at = other, int32(place)
        if turn == 0:
            if tid & int32(31) == 0:
                best[tid >> int32(5)] = top
                where[tid >> int32(5)] = at
            cuda.syncthreads()
            lane = tid & int32(31)
            top = best[lane] if lane < THREADS // 32 else float32(float("-inf"))
            at = where[lane] if lane < THREADS // 32 else int32(V)
    if tid == 0:
        at = at if at < V else int32(0)                    # nothing is above -inf, or a number
        ids[cuda.blockIdx.x] = at
        place = int32(position[cuda.blockIdx.x] + 1)
        position[cuda.blockIdx.x] = place
        found[cuda.blockIdx.x * room + place] = at
