"""Attention over the cache: for few rows split over the keys and combined, for many in tiles of queries.

Both go over the keys in the same chunks, and do the same sums in the same order: the scores of a chunk, its
largest, the exponentials and their sum, its share of the values; then chunk is merged after chunk, from the
first. So a token decoded alone is, bit for bit, the token of a prompt. Keys and values are (B, KV, room, Dh).
Read after: kernels/numba_cuda/rope. Read next: kernels/numba_cuda/glu.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32, int32, int64

from bitnet_ref.kernels.numba_cuda.device import warp_max, warp_sum
from bitnet_ref.kernels.numba_cuda.launch import Kernel, kernel
from bitnet_ref.kernels.numba_cuda.memory import Array, Device
from bitnet_ref.kernels.numba_cuda.precision import wide_float, wide_half

CHUNK = 64                   # keys whose scores stand together
SLICE = 32                   # columns of keys that stand in shared memory at a time
PITCH = SLICE + 1            # of a row there: no two rows begin in the same bank
HEADS, FEW_THREADS = 4, 256  # heads that share a chunk of keys; a thread has a key and a head
ROWS, MANY_THREADS = 32, 256 # queries of a tile; a thread has two of them, and four keys
WIDE = CHUNK + 1
KEYS, FEW_QUERIES, MANY_QUERIES = CHUNK * PITCH, HEADS * SLICE, ROWS * PITCH      # numbers of shared arrays
FEW_SCORES, MANY_SCORES = HEADS * CHUNK, ROWS * WIDE
AHEAD = 4                    # chunks that are read before they are merged
LOWEST = -3.0e38             # below every score: of no key yet


class Queries(NamedTuple):
    """The rows of a call as attention needs them. `tiles` int32 (n, 2): first row, rows; of one text each."""

    M: int
    slot: Array
    position: Array
    tiles: Array | None          # None: each row by itself


class Parts(NamedTuple):
    """What the chunks of each row say: values (M, chunks, H, Dh), largest and sum (M, chunks, H)."""

    o: Array
    top: Array
    total: Array


@cuda.jit(device=True, inline="always")
def chunk_softmax(scores: Any, row: Any, n: Any) -> Any:
    """A warp, on CHUNK scores of which the first n count: they become exponentials  ->  largest, sum."""
    lane = int32(cuda.threadIdx.x & 31)
    a = scores[row + lane] if lane < n else float32(LOWEST)
    b = scores[row + lane + 32] if lane + 32 < n else float32(LOWEST)
    top = warp_max(max(a, b))
    a = math.exp(a - top) if lane < n else float32(0)                           # (AT.3)
    b = math.exp(b - top) if lane + 32 < n else float32(0)
    scores[row + lane], scores[row + lane + 32] = a, b
    return top, warp_sum(a + b)


@cuda.jit(device=True, inline="always")
def merged(before: Any, a: Any, new: Any, b: Any) -> Any:
    """before a + new b, rounded in one way wherever it stands."""
    return cuda.fma(before, a, new * b)


def _few(name: str, c_type: str, wide: Any) -> Kernel:
    @kernel(f"f32* q, {c_type}* keys, {c_type}* values, i32* slot, i32* position, f32* part, f32* part_top, "
            "f32* part_total, i32 KV, i32 R, i32 Dh, i32 room, f32 scale", FEW_THREADS, registers=128)
    def few(q: Any, keys: Any, values: Any, slot: Any, position: Any, part: Any, part_top: Any,
            part_total: Any, KV: Any, R: Any, Dh: Any, room: Any, scale: Any) -> None:
        k_tile = cuda.shared.array(KEYS, float32)
        q_tile = cuda.shared.array(FEW_QUERIES, float32)
        p = cuda.shared.array(FEW_SCORES, float32)
        tid, m = int32(cuda.threadIdx.x), int64(cuda.blockIdx.z)
        first, g = int32(cuda.blockIdx.x * CHUNK), int32(cuda.blockIdx.y)
        if first > position[m]:                            # the grid covers the cache, not the text
            return
        n, H = min(int32(position[m] + 1 - first), int32(CHUNK)), int32(KV * R)
        base = ((int64(slot[m]) * KV + g) * room + first) * Dh
        j, r = tid % int32(CHUNK), tid // int32(CHUNK)
        for r0 in range(0, R, HEADS):
            heads = min(int32(R - r0), int32(HEADS))
            q0 = (m * H + g * R + r0) * Dh
            score = float32(0)
            for d0 in range(0, Dh, SLICE):
                for i in range(tid, CHUNK * SLICE, FEW_THREADS):
                    row, d = i // SLICE, d0 + i % SLICE
                    k_tile[row * PITCH + i % SLICE] = (
                        wide(keys[base + row * Dh + d]) if row < n and d < Dh else float32(0))
                if tid < HEADS * SLICE:
                    row, d = tid // SLICE, d0 + tid % SLICE
                    q_tile[tid] = q[q0 + row * Dh + d] * scale if row < heads and d < Dh else float32(0)
                cuda.syncthreads()
                for i in range(SLICE):
                    score = cuda.fma(q_tile[r * SLICE + i], k_tile[j * PITCH + i], score)    # (AT.1)
                cuda.syncthreads()
            p[tid] = score
            cuda.syncthreads()
            if tid < HEADS * 32:
                top, total = chunk_softmax(p, (tid >> int32(5)) * CHUNK, n)
                if tid & int32(31) == 0 and (tid >> int32(5)) < heads:
                    at = (m * cuda.gridDim.x + cuda.blockIdx.x) * H + g * R + r0 + (tid >> int32(5))
                    part_top[at], part_total[at] = top, total
            cuda.syncthreads()
            out = ((m * cuda.gridDim.x + cuda.blockIdx.x) * H + g * R + r0) * Dh
            for row in range(tid >> int32(7), heads, FEW_THREADS // 128):
                for d in range(tid & int32(127), Dh, 128):
                    s = float32(0)
                    for key in range(n):                                        # (AT.4)
                        s = cuda.fma(p[row * CHUNK + key], wide(values[base + key * Dh + d]), s)
                    part[out + row * Dh + d] = s
            cuda.syncthreads()
    return few._replace(name=name)


@kernel("f32* part, f32* part_top, f32* part_total, i32* position, f32* o, f32* lse, i32 H, i32 Dh, "
        "i32 chunks", 128, registers=80)
def combine(part: Any, part_top: Any, part_total: Any, position: Any, o: Any, lse: Any, H: Any, Dh: Any,
            chunks: Any) -> None:
    """The chunks of each row and head, merged in order  ->  o (M, H Dh), lse (M, H). Grid (H, M)."""
    m, h, n = int64(cuda.blockIdx.y), int32(cuda.blockIdx.x), int32(position[cuda.blockIdx.y] // CHUNK + 1)
    top, total = float32(LOWEST), float32(0)
    for d in range(int32(cuda.threadIdx.x), Dh, 128):
        top, total, s = float32(LOWEST), float32(0), float32(0)
        for c0 in range(0, n, AHEAD):
            at = (m * chunks + c0) * H + h
            x0 = part[at * Dh + d]
            x1 = part[(at + H) * Dh + d] if c0 + 1 < n else float32(0)
            x2 = part[(at + 2 * H) * Dh + d] if c0 + 2 < n else float32(0)
            x3 = part[(at + 3 * H) * Dh + d] if c0 + 3 < n else float32(0)
            for i in range(AHEAD):
                if c0 + i < n:
                    new, x = part_top[at + i * H], x0 if i == 0 else x1 if i == 1 else x2 if i == 2 else x3
                    both = max(top, new)
                    a, b = math.exp(top - both), math.exp(new - both)
                    total = merged(total, a, part_total[at + i * H], b)
                    s = merged(s, a, x, b)
                    top = both
        o[(m * H + h) * Dh + d] = s / total
    if cuda.threadIdx.x == 0:
        lse[m * H + h] = math.log(total) + top


def _many(name: str, c_type: str, wide: Any) -> Kernel:
    @kernel(f"f32* q, {c_type}* keys, {c_type}* values, i32* slot, i32* position, i32* tiles, f32* o, "
            "f32* lse, i32 KV, i32 R, i32 Dh, i32 room, f32 scale", MANY_THREADS, registers=128)
    def many(q: Any, keys: Any, values: Any, slot: Any, position: Any, tiles: Any, o: Any, lse: Any,
             KV: Any, R: Any, Dh: Any, room: Any, scale: Any) -> None:
        k_tile = cuda.shared.array(KEYS, float32)          # of keys, then of values
        q_tile = cuda.shared.array(MANY_QUERIES, float32)
        p = cuda.shared.array(MANY_SCORES, float32)
        tops, totals = cuda.shared.array(ROWS, float32), cuda.shared.array(ROWS, float32)
        before, now = cuda.shared.array(ROWS, float32), cuda.shared.array(ROWS, float32)
        tid, H, h = int32(cuda.threadIdx.x), int32(KV * R), int32(cuda.blockIdx.y * R + cuda.blockIdx.z)
        ty, tx = tid // int32(16), tid % int32(16)
        m, rows = int64(tiles[2 * cuda.blockIdx.x]), tiles[2 * cuda.blockIdx.x + 1]
        at = position[m]
        base = (int64(slot[m]) * KV + cuda.blockIdx.y) * room
        if tid < ROWS:
            tops[tid], totals[tid] = float32(LOWEST), float32(0)
        for first in range(0, at + rows, CHUNK):
            n = min(int32(at + rows - first), int32(CHUNK))
            s00, s01, s02, s03 = float32(0), float32(0), float32(0), float32(0)
            s10, s11, s12, s13 = float32(0), float32(0), float32(0), float32(0)
            for d0 in range(0, Dh, SLICE):
                cuda.syncthreads()
                for i in range(tid, CHUNK * SLICE, MANY_THREADS):
                    row, d = i // SLICE, d0 + i % SLICE
                    k_tile[row * PITCH + i % SLICE] = (
                        wide(keys[(base + first + row) * Dh + d]) if row < n and d < Dh else float32(0))
                for i in range(tid, ROWS * SLICE, MANY_THREADS):
                    row, d = i // SLICE, d0 + i % SLICE
                    q_tile[row * PITCH + i % SLICE] = (
                        q[((m + row) * H + h) * Dh + d] * scale if row < rows and d < Dh else float32(0))
                cuda.syncthreads()
                for i in range(SLICE):                                          # (AT.1)
                    q0, q1 = q_tile[2 * ty * PITCH + i], q_tile[(2 * ty + 1) * PITCH + i]
                    k0, k1 = k_tile[tx * PITCH + i], k_tile[(tx + 16) * PITCH + i]
                    k2, k3 = k_tile[(tx + 32) * PITCH + i], k_tile[(tx + 48) * PITCH + i]
                    s00, s01 = cuda.fma(q0, k0, s00), cuda.fma(q0, k1, s01)
                    s02, s03 = cuda.fma(q0, k2, s02), cuda.fma(q0, k3, s03)
                    s10, s11 = cuda.fma(q1, k0, s10), cuda.fma(q1, k1, s11)
                    s12, s13 = cuda.fma(q1, k2, s12), cuda.fma(q1, k3, s13)
            i = 2 * ty * WIDE + tx
            p[i], p[i + 16], p[i + 32], p[i + 48] = s00, s01, s02, s03
            i += WIDE
            p[i], p[i + 16], p[i + 32], p[i + 48] = s10, s11, s12, s13
            cuda.syncthreads()
            for row in range(tid >> int32(5), ROWS, MANY_THREADS // 32):
                seen = min(max(int32(at + row + 1 - first), int32(0)), n)       # (AT.2)
                top, total = chunk_softmax(p, row * WIDE, seen)
                if tid & int32(31) == 0:
                    both = max(tops[row], top)
                    before[row], now[row] = math.exp(tops[row] - both), math.exp(top - both)
                    totals[row] = merged(totals[row], before[row], total, now[row])
                    tops[row] = both
            for d0 in range(0, Dh, SLICE):
                cuda.syncthreads()
                for i in range(tid, CHUNK * SLICE, MANY_THREADS):
                    row, d = i // SLICE, d0 + i % SLICE
                    k_tile[row * PITCH + i % SLICE] = (
                        wide(values[(base + first + row) * Dh + d]) if row < n and d < Dh else float32(0))
                cuda.syncthreads()
                s00, s01, s10, s11 = float32(0), float32(0), float32(0), float32(0)
                for key in range(n):                                            # (AT.4)
                    p0, p1 = p[2 * ty * WIDE + key], p[(2 * ty + 1) * WIDE + key]
                    v0, v1 = k_tile[key * PITCH + tx], k_tile[key * PITCH + tx + 16]
                    s00, s01 = cuda.fma(p0, v0, s00), cuda.fma(p0, v1, s01)
                    s10, s11 = cuda.fma(p1, v0, s10), cuda.fma(p1, v1, s11)
                new, last = first == 0, first + CHUNK >= at + rows
                _keep(o, m, 2 * ty, rows, h, H, d0 + tx, Dh, before, now, totals, s00, new, last)
                _keep(o, m, 2 * ty, rows, h, H, d0 + tx + 16, Dh, before, now, totals, s01, new, last)
                _keep(o, m, 2 * ty + 1, rows, h, H, d0 + tx, Dh, before, now, totals, s10, new, last)
                _keep(o, m, 2 * ty + 1, rows, h, H, d0 + tx + 16, Dh, before, now, totals, s11, new, last)
        if tid < rows:
            lse[(m + tid) * H + h] = math.log(totals[tid]) + tops[tid]
    return many._replace(name=name)


@cuda.jit(device=True, inline="always")
def _keep(o: Any, m: Any, row: Any, rows: Any, h: Any, H: Any, d: Any, Dh: Any, before: Any, now: Any,
          totals: Any, new: Any, is_first: Any, is_last: Any) -> None:
    """A chunk's share `new` of one number of o, merged into what it was."""
    if row < rows and d < Dh:
        to = ((m + row) * H + h) * Dh + d
        s = merged(float32(0) if is_first else o[to], before[row], new, now[row])
        o[to] = s / totals[row] if is_last else s


FEW = {"f32": _few("attend_few_f32", "f32", wide_float), "f16": _few("attend_few_f16", "u16", wide_half)}
MANY = {"f32": _many("attend_many_f32", "f32", wide_float), "f16": _many("attend_many_f16", "u16", wide_half)}


def tiled(counts: Any) -> np.ndarray:
    """int32 (n, 2): the first row of each tile of at most ROWS rows of one text, and how many they are."""
    ends = np.cumsum(counts).tolist()
    found = [(end - n + i, min(ROWS, n - i)) for n, end in zip(counts, ends) for i in range(0, n, ROWS)]
    return np.array(found, np.int32)


def parts(device: Device, M: int, room: int, H: int, Dh: int) -> Parts:
    """Memory for what the chunks of M rows say, in a cache of `room` positions."""
    chunks = -(-room // CHUNK)
    return Parts(device.empty((M, chunks, H, Dh), "f4"), device.empty((M, chunks, H), "f4"),
                 device.empty((M, chunks, H), "f4"))


def attention(device: Device, q: Array, keys: Array, values: Array, rows: Queries, o: Array, lse: Array,
              between: Parts | None) -> None:
    """q (M, H, Dh), keys, values (B, KV, room, Dh) in float32 or float16  ->  o (M, H Dh), lse (M, H).

    Row m sees the first position[m] + 1 places of text slot[m]. `between`: where `rows` has no tiles.
    """
    (_, H, Dh), (_, KV, room, _) = q.shape, keys.shape
    kept = "f32" if keys.dtype.itemsize == 4 else "f16"
    sizes = (KV, H // KV, Dh, room, Dh ** -0.5)
    if rows.tiles is not None:
        device.launch(MANY[kept], (rows.tiles.shape[0], KV, H // KV), q, keys, values, rows.slot,
                      rows.position, rows.tiles, o, lse, *sizes)
        return
    assert between is not None
    chunks = between.top.shape[1]
    device.launch(FEW[kept], (chunks, KV, rows.M), q, keys, values, rows.slot, rows.position, *between,
                  *sizes)
    device.launch(combine, (H, rows.M), *between, rows.position, o, lse, H, Dh, chunks)
