"""Gradients of causal attention, without the matrix of scores and without atomics.

A warp has one row: of queries for dq, of keys for dk and dv. It passes over the other side in tiles of 32
rows that the block's eight warps share: lane i has the score with row i of the tile, and then a few columns
of the result. Probabilities are recomputed from the log-sum-exp. Forward is attention.py's, over a cache
whose room is the sequence.
Read after: kernels/numba_cuda/rope_backward. Read next: kernels/numba_cuda/glu_backward.
"""

import math
from typing import Any

from numba import cuda, float32, int32, int64

from bitnet_ref.checks import check
from bitnet_ref.kernels.numba_cuda.device import warp_sum
from bitnet_ref.kernels.numba_cuda.launch import Kernel, kernel
from bitnet_ref.kernels.numba_cuda.memory import Array, Device

WARPS, LANES = 8, 32
THREADS = WARPS * LANES
WIDTHS = (64, 128)                                        # of heads, at most: a kernel for each
GIVEN = "f32* do, f32* q, f32* k, f32* v, f32* delta, f32* lse"
SHAPE = "i32 T, i32 H, i32 KV, i32 Dh"


@cuda.jit(device=True, inline="always")
def bring(source: Any, start: Any, step: Any, have: Any, Dh: Any, tile: Any, apart: Any) -> None:
    """Rows start, start + step, ... of `have`, into the tile; zeros after them."""
    tid = int32(cuda.threadIdx.x)
    for row in range(tid >> int32(5), LANES, WARPS):
        for d in range(tid & int32(31), Dh, LANES):
            tile[row * apart + d] = source[start + row * step + d] if row < have else float32(0)


@cuda.jit(device=True, inline="always")
def dot(a: Any, a_row: Any, b: Any, b_row: Any, Dh: Any,
        apart: Any) -> Any:
    """The product of row a_row of one tile and row b_row of another."""
    total = float32(0)
    for d in range(Dh):
        total += a[a_row * apart + d] * b[b_row * apart + d]
    return total


def _dq(width: int) -> Kernel:
    """The gradient of the queries."""
    columns, apart = width // LANES, width + 1             # of a lane; rows of a tile, so that no banks clash
    tile_size, rows_size, scores_size = LANES * apart, WARPS * apart, WARPS * LANES

    def dq(do: Any, q: Any, k: Any, v: Any, delta: Any, lse: Any, out: Any, T: Any, H: Any, KV: Any,
           Dh: Any) -> None:
        ks = cuda.shared.array(tile_size, float32)
        vs = cuda.shared.array(tile_size, float32)
        qs = cuda.shared.array(rows_size, float32)
        dos = cuda.shared.array(rows_size, float32)
        ps = cuda.shared.array(scores_size, float32)
        lane, warp = int32(cuda.threadIdx.x) & int32(31), int32(cuda.threadIdx.x) >> int32(5)
        h, b = int64(cuda.blockIdx.y) % H, int64(cuda.blockIdx.y) // H
        t = int64(cuda.blockIdx.x) * WARPS + warp
        row, head = ((b * T + t) * H + h) * Dh, (b * KV + h // (H // KV)) * T * Dh
        factor = float32(1) / math.sqrt(float32(Dh))
        for d in range(lane, Dh, LANES):
            qs[warp * apart + d] = q[row + d] * factor if t < T else float32(0)
            dos[warp * apart + d] = do[row + d] if t < T else float32(0)
        here, minus = float32(0), float32(0)
        if t < T:
            here, minus = lse[(b * T + t) * H + h], delta[(b * T + t) * H + h]
        sums = cuda.local.array(columns, float32)
        for c in range(columns):
            sums[c] = float32(0)
        for j0 in range(0, min(T, (cuda.blockIdx.x + 1) * WARPS), LANES):
            cuda.syncthreads()
            bring(k, head + j0 * Dh, Dh, T - j0, Dh, ks, apart)
            bring(v, head + j0 * Dh, Dh, T - j0, Dh, vs, apart)
            cuda.syncthreads()
            ds = float32(0)
            if j0 + lane <= t and t < T:
                p = math.exp(dot(qs, warp, ks, lane, Dh, apart) - here)                            # (AT.5)
                ds = (dot(dos, warp, vs, lane, Dh, apart) - minus) * p * factor             # (AT.7), (AT.8)
            ps[warp * LANES + lane] = ds
            cuda.syncwarp()
            for c in range(columns):
                d = int32(lane + int32(c * LANES))
                if d < Dh:
                    part = sums[c]
                    for j in range(LANES):
                        part += ps[warp * LANES + j] * ks[j * apart + d]                    # (AT.9)
                    sums[c] = part
        if t < T:
            for c in range(columns):
                d = int32(lane + int32(c * LANES))
                if d < Dh:
                    out[row + d] = sums[c]

    dq.__name__ = f"attention_dq_{width}"
    return kernel(f"{GIVEN}, f32* out, {SHAPE}", THREADS, registers=128)(dq)


def _dkv(width: int) -> Kernel:
    """The gradients of keys and values: over all queries of the heads that share them."""
    columns, apart = width // LANES, width + 1             # of a lane; rows of a tile, so that no banks clash
    tile_size, rows_size, scores_size = LANES * apart, WARPS * apart, WARPS * LANES

    def dkv(do: Any, q: Any, k: Any, v: Any, delta: Any, lse: Any, dk: Any, dv: Any, T: Any, H: Any, KV: Any,
            Dh: Any) -> None:
        qs = cuda.shared.array(tile_size, float32)
        dos = cuda.shared.array(tile_size, float32)
        ks = cuda.shared.array(rows_size, float32)
        vs = cuda.shared.array(rows_size, float32)
        ps = cuda.shared.array(scores_size, float32)
        dss = cuda.shared.array(scores_size, float32)
        lane, warp = int32(cuda.threadIdx.x) & int32(31), int32(cuda.threadIdx.x) >> int32(5)
        group, b = int64(cuda.blockIdx.y) % KV, int64(cuda.blockIdx.y) // KV
        j = int64(cuda.blockIdx.x) * WARPS + warp
        row = ((b * KV + group) * T + j) * Dh
        factor = float32(1) / math.sqrt(float32(Dh))
        for d in range(lane, Dh, LANES):
            ks[warp * apart + d] = k[row + d] * factor if j < T else float32(0)
            vs[warp * apart + d] = v[row + d] if j < T else float32(0)
        k_sums, v_sums = cuda.local.array(columns, float32), cuda.local.array(columns, float32)
        for c in range(columns):
            k_sums[c] = v_sums[c] = float32(0)
        first = int64(cuda.blockIdx.x) * WARPS // LANES * LANES
        for h in range(group * (H // KV), (group + 1) * (H // KV)):
            for t0 in range(first, T, LANES):
                cuda.syncthreads()
                bring(q, ((b * T + t0) * H + h) * Dh, int64(H) * Dh, T - t0, Dh, qs, apart)
                bring(do, ((b * T + t0) * H + h) * Dh, int64(H) * Dh, T - t0, Dh, dos, apart)
                cuda.syncthreads()
                t, p, ds = t0 + lane, float32(0), float32(0)
                if j <= t and t < T:
                    at = (b * T + t) * H + h
                    p = math.exp(dot(ks, warp, qs, lane, Dh, apart) - lse[at])
                    ds = (dot(vs, warp, dos, lane, Dh, apart) - delta[at]) * p * factor
                ps[warp * LANES + lane] = p
                dss[warp * LANES + lane] = ds
                cuda.syncwarp()
                for c in range(columns):
                    d = int32(lane + int32(c * LANES))
                    if d < Dh:
                        k_part, v_part = k_sums[c], v_sums[c]
                        for i in range(LANES):
                            v_part += ps[warp * LANES + i] * dos[i * apart + d]             # (AT.6)
                            k_part += dss[warp * LANES + i] * qs[i * apart + d]             # (AT.10)
                        k_sums[c], v_sums[c] = k_part, v_part
        if j < T:
            for c in range(columns):
                d = int32(lane + int32(c * LANES))
                if d < Dh:
                    dk[row + d] = k_sums[c]
                    dv[row + d] = v_sums[c]

    dkv.__name__ = f"attention_dkv_{width}"
    return kernel(f"{GIVEN}, f32* dk, f32* dv, {SHAPE}", THREADS, registers=128)(dkv)


@kernel("f32* do, f32* o, f32* delta, i32 Dh, i64 n", THREADS)
def attention_delta(do: Any, o: Any, delta: Any, Dh: Any, n: Any) -> None:
    """do, o (n, Dh)  ->  delta (n,), the sum of their product: a warp to a row.   (AT.8)"""
    tid = int32(cuda.threadIdx.x)
    i = int64(cuda.blockIdx.x) * WARPS + (tid >> int32(5))
    total = float32(0)
    if i < n:
        for d in range(tid & int32(31), Dh, LANES):
            total += do[i * Dh + d] * o[i * Dh + d]
    total = warp_sum(total)
    if i < n and (tid & int32(31)) == 0:
        delta[i] = total


FORMS = {width: (_dq(width), _dkv(width)) for width in WIDTHS}


def _of(Dh: int) -> tuple[Kernel, Kernel]:
    check(Dh <= WIDTHS[-1], f"heads must have at most {WIDTHS[-1]} columns on this backend", Dh,
          "use more heads, or --backend numba")
    return FORMS[next(w for w in WIDTHS if Dh <= w)]


def attention_backward(device: Device, do: Array, q: Array, k: Array, v: Array, o: Array, lse: Array,
                       delta: Array, dq: Array, dk: Array, dv: Array) -> None:
    """dq (B, T, H, Dh), dk and dv (B, KV, T, Dh). `delta` (B, T, H): memory of its own."""
    (B, T, H, Dh), KV = q.shape, k.shape[1]
    for_q, for_kv = _of(Dh)
    device.launch(attention_delta, (-(-B * T * H // WARPS),), do, o, delta, Dh, B * T * H)
    device.launch(for_q, (-(-T // WARPS), B * H), do, q, k, v, delta, lse, dq, T, H, KV, Dh)
    device.launch(for_kv, (-(-T // WARPS), B * KV), do, q, k, v, delta, lse, dk, dv, T, H, KV, Dh)
