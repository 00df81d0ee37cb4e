"""RoPE of a call's queries and keys; keys and values go to the cache, each to its text's next place.

A row knows its text and its position, so texts of different lengths are one launch. The cache is (B, KV,
room, Dh), in float32 or float16.
Read after: kernels/numba_cuda/embedding. Read next: kernels/numba_cuda/attention.
"""

from typing import Any

from numba import cuda, int32, int64

from bitnet_ref.kernels.numba_cuda.launch import Kernel, kernel
from bitnet_ref.kernels.numba_cuda.precision import narrow_float, narrow_half

THREADS = 256


def _turning(name: str, c_type: str, narrow: Any) -> Kernel:
    @kernel(f"f32* q, f32* k, f32* v, i32 q_row, i32 k_row, i32 v_row, i32* slot, i32* position, f32* cos, "
            f"f32* sin, f32* turned, {c_type}* keys, {c_type}* values, i32 H, i32 KV, i32 Dh, i32 room",
            THREADS, registers=80)
    def turn(q: Any, k: Any, v: Any, q_row: Any, k_row: Any, v_row: Any, slot: Any, position: Any, cos: Any,
             sin: Any, turned: Any, keys: Any, values: Any, H: Any, KV: Any, Dh: Any, room: Any) -> None:
        m, half = int64(cuda.blockIdx.x), int32(Dh >> 1)
        s, at = int64(slot[m]), position[m]
        warp, lane = int32(cuda.threadIdx.x >> 5), int32(cuda.threadIdx.x & 31)
        for h in range(warp, H, THREADS // 32):
            for i in range(lane, half, 32):
                c, d = cos[at * half + i], sin[at * half + i]
                a, b = q[m * q_row + h * Dh + i], q[m * q_row + h * Dh + half + i]
                turned[(m * H + h) * Dh + i] = a * c - b * d                    # (RO.2)
                turned[(m * H + h) * Dh + half + i] = b * c + a * d             # (RO.3)
        for g in range(warp, KV, THREADS // 32):
            to = ((s * KV + g) * room + at) * Dh
            for i in range(lane, half, 32):
                c, d = cos[at * half + i], sin[at * half + i]
                a, b = k[m * k_row + g * Dh + i], k[m * k_row + g * Dh + half + i]
                keys[to + i], keys[to + half + i] = narrow(a * c - b * d), narrow(b * c + a * d)
            for i in range(lane, Dh, 32):
                values[to + i] = narrow(v[m * v_row + g * Dh + i])
    return turn._replace(name=name)


# q (M, H Dh), k, v (M, KV Dh), each with the length of its row; tables (positions, Dh/2)  ->  turned
# (M, H, Dh), and the new places of a layer's keys and values. Grid (M,).
ROPE = {"f32": _turning("rope_f32", "f32", narrow_float), "f16": _turning("rope_f16", "u16", narrow_half)}


@kernel("u16* before, u16* now, i64 held, i64 room", THREADS)
def moved(before: Any, now: Any, held: Any, room: Any) -> None:
    """What a head had in a smaller cache, to its place in a larger one: pieces of 16 bits. Grid (heads,)."""
    for n in range(int64(cuda.threadIdx.x), held, THREADS):
        now[cuda.blockIdx.x * room + n] = before[cuda.blockIdx.x * held + n]
