"""Many rows times packed trits on compute capability 9.0: the trits are decoded into the operands of wgmma.

A block has 128 outputs (two groups of four warps) by 128 rows of activations. These come in the order in
which wgmma wants them: pieces of 16 codes of one row, the 128 rows of a piece one after the other; one bulk
copy brings a whole tile. `in_core_order` makes that order, and gives the columns that of the tiles.
Not yet run on a card: what its descriptor says of strides is the first thing to check there.
Read after: kernels/numba_cuda/gemm. Read next: kernels/numba_cuda/bitlinear.
"""

from typing import Any

from numba import cuda, int8, int32, int64

from bitnet_ref.kernels.numba_cuda.device import load16, store16
from bitnet_ref.kernels.numba_cuda.gemm import SIDE, STAGE, finish_rows, leave
from bitnet_ref.kernels.numba_cuda.gemv import M0, M1
from bitnet_ref.kernels.numba_cuda.hopper import (
    SUMS,
    barrier_expect,
    barrier_init,
    barrier_wait,
    barriers_made,
    copy_bulk,
    shared_address,
    wgmma,
    wgmma_end,
    wgmma_fence,
    wgmma_wait,
)
from bitnet_ref.kernels.numba_cuda.launch import kernel

STAGES = 4
SHARED = STAGES * STAGE                                    # bytes, dynamic
NEXT_K, NEXT_ROWS = SIDE * 16, 8 * 16                      # bytes to the next 16 columns, the next 8 rows


@kernel("i8* x_q, i8* x_t, i32 M, i32 ld", 256)
def in_core_order(x_q: Any, x_t: Any, M: Any, ld: Any) -> None:
    """x_q (M, ld)  ->  x_t (M/128, ld/128, 8, 128, 16). Grid (M/128 rounded up, ld/128).

    Piece 4p + 2j + h of a tile has columns 64p + 16t + 8j + 4h + b, in the order of t, b. A row too many
    repeats the last.
    """
    tid = int32(cuda.threadIdx.x)
    row, p = tid & int32(SIDE - 1), tid >> int32(7)
    m = min(int32(cuda.blockIdx.x * SIDE + row), int32(M - 1))
    at = int64(m) * ld + cuda.blockIdx.y * 128 + 64 * p
    a, b, c, d = load16(x_q, at), load16(x_q, at + 16), load16(x_q, at + 32), load16(x_q, at + 48)
    into = ((int64(cuda.blockIdx.x) * (ld // 128) + cuda.blockIdx.y) * 8 + 4 * p) * NEXT_K + 16 * row
    store16(x_t, into, a[0], b[0], c[0], d[0])
    store16(x_t, into + NEXT_K, a[1], b[1], c[1], d[1])
    store16(x_t, into + 2 * NEXT_K, a[2], b[2], c[2], d[2])
    store16(x_t, into + 3 * NEXT_K, a[3], b[3], c[3], d[3])


@cuda.jit(device=True, inline="always")
def decode(w: Any, a: Any) -> None:
    """A lane's 16 bytes of a tile as its operands of four multiplications, four registers each."""
    for p in range(2):
        u, v = (w[0], w[1]) if p == 0 else (w[2], w[3])
        for j in range(2):
            a[8 * p + 4 * j] = u & int32(M0)
            a[8 * p + 4 * j + 1] = u & int32(M1)
            a[8 * p + 4 * j + 2] = v & int32(M0)
            a[8 * p + 4 * j + 3] = v & int32(M1)
            u, v = u >> int32(4), v >> int32(4)


@cuda.jit(device=True, inline="always")
def fetch(stages: Any, stage: Any, x_t: Any, tile: Any, ready: Any) -> None:
    """Begin to copy a tile of activations."""
    barrier_expect(ready, stage, STAGE)
    copy_bulk(stages, stage * STAGE, x_t, tile * STAGE, STAGE, ready, stage)


@kernel("i32* words, i8* x_t, f32* x_scale, i32* x_sum, f32* w_scale, f32* add, i32 added, f32* y, i32 M, "
        "i32 N, i32 tiles, i32 ld", 256, needs="90a", registers=128)
def gemm_hopper(words: Any, x_t: Any, x_scale: Any, x_sum: Any, w_scale: Any, add: Any, added: Any, y: Any,
                M: Any, N: Any, tiles: Any, ld: Any) -> None:
    """x_t of in_core_order, words (N/16, tiles, 32, 4)  ->  y (M, N). Grid (N/128, M/128), rounded up."""
    stages = cuda.shared.array(0, int8, 128)
    ready = cuda.shared.array(STAGES, int64)
    sums, a = cuda.local.array(SUMS, int32), cuda.local.array(16, int32)
    lane, warp = int32(cuda.threadIdx.x) & int32(31), int32(cuda.threadIdx.x) >> int32(5)
    g, t = lane >> int32(2), lane & int32(3)
    first = int32(cuda.blockIdx.y * SIDE)
    x_tile = int64(cuda.blockIdx.y) * tiles
    strip = int64(min(int32(cuda.blockIdx.x * 8 + warp), int32((N + 15) // 16 - 1)))
    w_at = strip * tiles * 128 + lane * 4
    if cuda.threadIdx.x == 0:
        for s in range(STAGES):
            barrier_init(ready, s, 1)
        barriers_made()
        for s in range(STAGES - 1):
            if s < tiles:
                fetch(stages, s, x_t, x_tile + s, ready)
    cuda.syncthreads()
    for i in range(SUMS):
        sums[i] = int32(0)
    decode(load16(words, w_at), a)
    w = load16(words, w_at + 128 * min(1, tiles - 1))
    stage, parity = int32(0), int32(0)
    for k in range(tiles):
        if cuda.threadIdx.x == 0 and k + STAGES - 1 < tiles:             # all have read what this overwrites
            fetch(stages, (stage + STAGES - 1) % STAGES, x_t, x_tile + k + STAGES - 1, ready)
        barrier_wait(ready, stage, parity)
        b = int64((shared_address(stages, stage * STAGE) & int32(0x3FFFF)) >> int32(4))
        b = b | (int64(NEXT_K >> 4) << 16) | (int64(NEXT_ROWS >> 4) << 32)
        wgmma_fence()
        for s in range(4):
            wgmma(sums, a[4 * s], a[4 * s + 1], a[4 * s + 2], a[4 * s + 3], b + s * (2 * NEXT_K >> 4))
        wgmma_end()
        wgmma_wait()
        decode(w, a)
        w = load16(words, w_at + 128 * min(k + 2, tiles - 1))
        cuda.syncthreads()
        stage = int32(stage + 1)
        if stage == STAGES:
            stage, parity = int32(0), parity ^ int32(1)
    for q in range(4):                                     # a quarter of the sums at a time
        for i in range(4):
            for c in range(4):
                leave(stages, 8 * i + 2 * t + (c & 1), 16 * warp + 8 * (c >> 1) + g,
                      sums[4 * (q + 4 * i) + c] >> int32(2 * (c >> 1)))
        cuda.syncthreads()
        finish_rows(stages, first + 8 * q, M, N, x_scale, x_sum, w_scale, add, added, y)
        cuda.syncthreads()
