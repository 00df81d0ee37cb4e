"""The rungs for a few rows on a card: from a thread to an output, to the first that the backend ships.

Every rung is y = x @ w.T in exact integers: x int8 (M, K), y int32 (M, N). Scales are left to the kernels
that ship. The first three read weights as layouts.ROWS has them, four to a byte.
Read after: bench/cuda_report. Read next: bench/ladders/bitlinear_cuda.
"""

from typing import Any

from numba import cuda, int8, int32, int64

from bitnet_ref.kernels.numba_cuda.device import dp4a, load16, load16_once, warp_sum_int
from bitnet_ref.kernels.numba_cuda.launch import kernel
from bitnet_ref.kernels.numba_cuda.tensor import mma

THREADS = 128
WARPS = THREADS // 32
TILE_WARPS = 8
M0, M1, M2, M3 = 0x03030303, 0x0C0C0C0C, 0x30303030, -0x3F3F3F40       # the four codes of a byte, in place


@kernel("u8* w, i8* x, i32* y, i32 N, i32 K", THREADS)
def naive(w: Any, x: Any, y: Any, N: Any, K: Any) -> None:
    """A thread to an output, and a loop over bytes: what one would write for a processor.

    w (N, K / 4). Grid (ceil(N / 128), M). Neighbours in a warp read bytes that lie K / 4 apart: a request
    for 32 bytes fetches 32 sectors of 32 bytes each, of which one byte is used. Look at: over-fetch.
    """
    n = int32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
    m = int32(cuda.blockIdx.y)
    if n < N:
        total = int32(0)
        for i in range(K // 4):
            b = int32(w[int64(n) * (K // 4) + i])
            for j in range(4):
                total = int32(total + (((b >> (2 * j)) & 3) - 1) * int32(x[m * K + 4 * i + j]))
        y[m * N + n] = total


@kernel("u8* w, i8* x, i32* y, i32 N, i32 K", THREADS)
def coalesced(w: Any, x: Any, y: Any, N: Any, K: Any) -> None:
    """A warp to an output: neighbours read neighbouring bytes, and a tree of shuffles adds their sums.

    Grid (ceil(N / 4), M). The 32 bytes of a request are one sector. Look at: sectors per request of the
    weights, and that x now costs as many requests as instructions: each lane reads four bytes one by one.
    """
    tid = int32(cuda.threadIdx.x)
    lane = int32(tid & 31)
    n = int32(cuda.blockIdx.x * WARPS + (tid >> 5))
    m = int32(cuda.blockIdx.y)
    if n < N:
        total = int32(0)
        for i in range(lane, K // 4, 32):
            b = int32(w[int64(n) * (K // 4) + i])
            for j in range(4):
                total = int32(total + (((b >> (2 * j)) & 3) - 1) * int32(x[m * K + 4 * i + j]))
        total = warp_sum_int(total)
        if lane == 0:
            y[m * N + n] = total


@kernel("u8* w, i8* x, i32* y, i32 N, i32 K", THREADS)
def shared(w: Any, x: Any, y: Any, N: Any, K: Any) -> None:
    """The row of x is fetched once for the four outputs of a block, into memory that they share.

    Grid (ceil(N / 4), M); K bytes of dynamic shared memory. Look at: hardly any byte is fetched twice now,
    and yet each weight still costs ten instructions and more. It is no longer memory that is slow.
    """
    staged = cuda.shared.array(0, int8)
    tid = int32(cuda.threadIdx.x)
    lane = int32(tid & 31)
    n = int32(cuda.blockIdx.x * WARPS + (tid >> 5))
    m = int32(cuda.blockIdx.y)
    for k in range(tid, K, THREADS):
        staged[k] = x[m * K + k]
    cuda.syncthreads()
    if n < N:
        total = int32(0)
        for i in range(lane, K // 4, 32):
            b = int32(w[int64(n) * (K // 4) + i])
            for j in range(4):
                total = int32(total + (((b >> (2 * j)) & 3) - 1) * int32(staged[4 * i + j]))
        total = warp_sum_int(total)
        if lane == 0:
            y[m * N + n] = total


@kernel("i32* w, i8* x, i32* x_sum, i32* y, i32 N, i32 K", THREADS)
def vector_dp4a(w: Any, x: Any, x_sum: Any, y: Any, N: Any, K: Any) -> None:
    """Sixteen bytes to a load and four products to an instruction, on codes that stay where they are.

    w (N, K / 16): bits 2 j of byte b hold the code of column 16 i + 4 j + b, so a mask makes four codes,
    times 4^j, that meet four neighbours of x. Nothing is shifted: the four sums are divided by 4^j once,
    exactly, and the sum of x, which codes instead of trits add, is taken off once. K a multiple of 64. Look
    at: instructions per weight, a tenth of what they were.
    """
    tid = int32(cuda.threadIdx.x)
    lane = int32(tid & 31)
    n = int32(cuda.blockIdx.x * WARPS + (tid >> 5))
    m = int32(cuda.blockIdx.y)
    if n < N:
        a, b, c, d = int32(0), int32(0), int32(0), int32(0)
        for i in range(lane, K // 64, 32):
            u = load16(w, int64(n) * (K // 16) + 4 * i)
            for q in range(4):
                v = load16(x, m * K + 64 * i + 16 * q)
                word = u[0] if q == 0 else u[1] if q == 1 else u[2] if q == 2 else u[3]
                a = dp4a(word & int32(M0), v[0], a)
                b = dp4a(word & int32(M1), v[1], b)
                c = dp4a(word & int32(M2), v[2], c)
                d = dp4a(word & int32(M3), v[3], d)
        total = warp_sum_int(int32(a + (b >> 2) + (c >> 4) + (d >> 6)))
        if lane == 0:
            y[m * N + n] = int32(total - x_sum[m])


@kernel("i32* w, i8* x, i32* x_sum, i32* y, i32 M, i32 N, i32 tiles", 32 * TILE_WARPS)
def tensor_core(w: Any, x: Any, x_sum: Any, y: Any, M: Any, N: Any, tiles: Any) -> None:
    """Eight rows for the price of one: 16 outputs, 32 columns and 8 rows of x meet in one instruction.

    w as pack/tiles.py has it (N / 16, tiles, 32, 4): a lane's 16 bytes, masked, are its operands of four
    products of a tile 16 x 128. Grid (N / 16,); warps share the tiles out, x has 8 rows. Look at: wavefronts
    over ideal: sums that lie four to a lane meet in the same banks of shared memory; and each load waits for
    the products of the one before it.
    """
    sums = cuda.shared.array((TILE_WARPS, 32, 4), int32)
    lane, warp = int32(cuda.threadIdx.x) & int32(31), int32(cuda.threadIdx.x) >> int32(5)
    g, t = lane >> int32(2), lane & int32(3)
    strip = int32(cuda.blockIdx.x)
    P = (int32(0), int32(0), int32(0), int32(0))           # of codes times 1, and 4 in the lower rows
    Q = P                                                  # times 16, and 64
    for k in range(warp, tiles, TILE_WARPS):
        u = load16_once(w, (int64(strip) * tiles + k) * 128 + lane * 4, True)
        at = int64(g) * tiles * 128 + k * 128 + t * 16
        v, z = load16(x, at), load16(x, at + 64)
        P = mma(P, u[0] & int32(M0), u[0] & int32(M1), u[1] & int32(M0), u[1] & int32(M1), v[0], v[1])
        Q = mma(Q, u[0] & int32(M2), u[0] & int32(M3), u[1] & int32(M2), u[1] & int32(M3), v[2], v[3])
        P = mma(P, u[2] & int32(M0), u[2] & int32(M1), u[3] & int32(M0), u[3] & int32(M1), z[0], z[1])
        Q = mma(Q, u[2] & int32(M2), u[2] & int32(M3), u[3] & int32(M2), u[3] & int32(M3), z[2], z[3])
    sums[warp, lane, 0] = P[0] + (Q[0] >> int32(4))
    sums[warp, lane, 1] = P[1] + (Q[1] >> int32(4))
    sums[warp, lane, 2] = (P[2] >> int32(2)) + (Q[2] >> int32(6))
    sums[warp, lane, 3] = (P[3] >> int32(2)) + (Q[3] >> int32(6))
    cuda.syncthreads()
    if warp < 4:                                           # warp i finishes the i-th sum of every lane
        total = int32(0)
        for i in range(TILE_WARPS):
            total = int32(total + sums[i, lane, warp])
        n = strip * int32(16) + g + int32(8) * (warp >> int32(1))
        m = int32(2) * t + (warp & int32(1))
        if m < M and n < N:
            y[m * N + n] = int32(total - x_sum[m])
