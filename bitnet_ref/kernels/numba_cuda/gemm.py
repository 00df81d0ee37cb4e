"""Many rows times packed trits: 128 outputs by 128 rows of activations to a block, for prefill and training.

Activations go through three stages of shared memory, copied while the one before is multiplied; weights come
from global memory as they lie, each lane its own 16 bytes, a tile ahead. A stage's 16-byte pieces are stored
with the low bits of their row mixed in (XOR): the eight lanes that read at a time meet eight different banks.
Sums of all codes go to one accumulator: the upper half of a byte is shifted down first, the factor 4 of rows
g + 8 stays, and is divided out at the end.
Read after: kernels/numba_cuda/gemv. Read next: kernels/numba_cuda/gemm_hopper.
"""

from typing import Any

from numba import cuda, int8, int32, int64

from bitnet_ref.kernels.numba_cuda.device import load4_shared, load16, load16_shared, store4_shared
from bitnet_ref.kernels.numba_cuda.gemv import M0, M1, finish
from bitnet_ref.kernels.numba_cuda.launch import kernel
from bitnet_ref.kernels.numba_cuda.tensor import copies_end, copies_wait, copy16, mma

SIDE = 128                                                 # outputs, and rows of activations, of a block
STAGE = SIDE * 128                                         # bytes: so many rows, 128 columns
STAGES = 3
RING = STAGES * STAGE


@cuda.jit(device=True, inline="always")
def piece(row: Any, column: Any) -> Any:
    """Where the 16 bytes `column` (0..7) of a row lie in a stage."""
    mixed = column ^ ((row & int32(1)) << int32(2)) ^ ((row >> int32(1)) & int32(3))
    return row * 128 + (mixed << int32(4))


@cuda.jit(device=True, inline="always")
def fetch(stages: Any, stage: Any, x_q: Any, first: Any, k: Any, M: Any, ld: Any) -> None:
    """Begin to copy tile k of the block's rows; a row too many repeats the last."""
    tid = int32(cuda.threadIdx.x)
    for i in range(SIDE * 8 // 256):
        row, column = int32(tid + i * 256) >> int32(3), tid & int32(7)
        source = int64(min(first + row, M - 1)) * ld + k * 128 + column * 16
        copy16(stages, stage * STAGE + piece(row, column), x_q, source)


@cuda.jit(device=True, inline="always")
def weights(words: Any, strip: Any, strips: Any, tiles: Any, k: Any, w: Any) -> None:
    """Tile k of four strips, this lane's 16 bytes of each; a strip too many repeats the last."""
    lane = int32(cuda.threadIdx.x) & int32(31)
    for i in range(4):
        at = (int64(min(strip + i, strips - 1)) * tiles + k) * 128 + lane * 4
        w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3] = load16(words, at)


@cuda.jit(device=True, inline="always")
def leave(shared: Any, row: Any, n: Any, value: Any) -> None:
    """A sum of row 0..31 and output 0..127, left where others find it; rows 132 apart: the banks differ."""
    store4_shared(shared, 4 * (132 * row + n), value)


@cuda.jit(device=True, inline="always")
def finish_rows(shared: Any, first: Any, M: Any, N: Any, x_scale: Any, x_sum: Any, w_scale: Any, add: Any,
                added: Any, y: Any) -> None:
    """The sums that were left, of rows first + 0..7, 32.., 64.., 96.., to y: neighbours store neighbours."""
    tid = int32(cuda.threadIdx.x)
    n = int32(cuda.blockIdx.x * SIDE + (tid & int32(SIDE - 1)))
    row = tid >> int32(7)
    while row < 32 and n < N:
        m = int32(first + (row >> int32(3)) * 32 + (row & int32(7)))
        if m < M:
            total = load4_shared(shared, 4 * (132 * row + (tid & int32(SIDE - 1))))
            finish(total, m, n, N, x_scale, x_sum, w_scale, add, added, y)
        row = int32(row + 2)


@kernel("i32* words, i8* x_q, f32* x_scale, i32* x_sum, f32* w_scale, f32* add, i32 added, f32* y, i32 M, "
        "i32 N, i32 tiles, i32 ld", 256, registers=224)
def gemm_i2(words: Any, x_q: Any, x_scale: Any, x_sum: Any, w_scale: Any, add: Any, added: Any, y: Any,
            M: Any, N: Any, tiles: Any, ld: Any) -> None:
    """x_q (M, ld), words (N/16, tiles, 32, 4)  ->  y (M, N). Grid (N/128, M/128), rounded up.

    Eight warps, 2 by 4; each has 64 outputs by 32 rows of activations: 4 by 4 sums of 16 x 8.
    """
    stages = cuda.shared.array(RING, int8, 16)
    sums = cuda.local.array(64, int32)                     # in registers: all indices are known when unrolled
    w, coming = cuda.local.array(16, int32), cuda.local.array(16, int32)
    b = cuda.local.array(16, int32)
    lane, warp = int32(cuda.threadIdx.x) & int32(31), int32(cuda.threadIdx.x) >> int32(5)
    g, t = lane >> int32(2), lane & int32(3)
    strips = (N + 15) // 16
    strip = int32(cuda.blockIdx.x * 8 + (warp & int32(1)) * 4)
    first, mine = int32(cuda.blockIdx.y * SIDE), int32((warp >> int32(1)) * 32)
    for i in range(64):
        sums[i] = int32(0)
    for s in range(STAGES - 1):
        if s < tiles:
            fetch(stages, s, x_q, first, s, M, ld)
        copies_end()
    stage = int32(0)
    weights(words, strip, strips, tiles, 0, coming)
    for k in range(tiles):
        for i in range(16):
            w[i] = coming[i]
        copies_wait(1)                                     # this thread's copies of stage k are there,
        cuda.syncthreads()                                 # everyone's are, and nobody reads stage k - 1 now
        if k + STAGES - 1 < tiles:
            fetch(stages, (stage + STAGES - 1) % STAGES, x_q, first, k + STAGES - 1, M, ld)
        copies_end()
        weights(words, strip, strips, tiles, min(k + 1, tiles - 1), coming)
        for p in range(2):
            for j in range(4):
                at = stage * STAGE + piece(mine + 8 * j + g, int32(4 * p + t))
                b[4 * j], b[4 * j + 1], b[4 * j + 2], b[4 * j + 3] = load16_shared(stages, at)
            for i in range(4):
                u, v = w[4 * i + 2 * p], w[4 * i + 2 * p + 1]
                u4, v4 = u >> int32(4), v >> int32(4)
                for j in range(4):
                    o = 16 * i + 4 * j
                    S = (sums[o], sums[o + 1], sums[o + 2], sums[o + 3])
                    S = mma(S, u & int32(M0), u & int32(M1), v & int32(M0), v & int32(M1),
                            b[4 * j], b[4 * j + 1])
                    S = mma(S, u4 & int32(M0), u4 & int32(M1), v4 & int32(M0), v4 & int32(M1),
                            b[4 * j + 2], b[4 * j + 3])
                    sums[o], sums[o + 1], sums[o + 2], sums[o + 3] = S
        stage = int32(0) if stage == STAGES - 1 else int32(stage + 1)
    for j in range(4):                                     # a quarter of the sums at a time
        cuda.syncthreads()
        for i in range(4):
            for c in range(4):
                row = int32((warp >> int32(1)) * 8 + 2 * t + (c & 1))
                leave(stages, row, (warp & int32(1)) * 64 + 16 * i + 8 * (c >> 1) + g,
                      sums[16 * i + 4 * j + c] >> int32(2 * (c >> 1)))
        cuda.syncthreads()
        finish_rows(stages, first + 8 * j, M, N, x_scale, x_sum, w_scale, add, added, y)
