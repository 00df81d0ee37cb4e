"""Few rows times packed trits: tensor cores take eight rows for the price of one.

A block owns 16 outputs (a strip of tiles); its warps share out the columns, and their sums meet in shared
memory. A lane's 16 bytes of weights are its operands of four multiplications once masked: no shift and no
subtraction, for a code left in its place is the code times 1, 4, 16 or 64, the sums are divided by that once
at the end (exactly), and the sum of the activations, which the codes' + 1 brought in, is taken off once.
Read after: kernels/numba_cuda/hopper. Read next: kernels/numba_cuda/gemm.
"""

from typing import Any

from numba import cuda, float32, int32, int64

from bitnet_ref.kernels.numba_cuda.device import load8_if, load16_if, load16_once, plus, prmt, times
from bitnet_ref.kernels.numba_cuda.launch import kernel
from bitnet_ref.kernels.numba_cuda.tensor import mma

WARPS = 8
LOW = 0x00FF00FF
M0, M1, M2, M3 = 0x03030303, 0x0C0C0C0C, 0x30303030, -0x3F3F3F40       # the four codes of a byte, in place


@cuda.jit(device=True, inline="always")
def finish(total: Any, m: Any, n: Any, N: Any, x_scale: Any, x_sum: Any, w_scale: Any, add: Any, added: Any,
           y: Any) -> None:
    """y[m, n] = (total - x_sum) (x_scale w_scale) [+ add], each step rounded as the reference rounds it."""
    at = int64(m) * N + n
    value = times(float32(int32(total - x_sum[m])), times(x_scale[m], w_scale[n]))
    if added:
        value = plus(value, add[at])
    y[at] = value


@cuda.jit(device=True, inline="always")
def tile_product(w: Any, x: Any, z: Any, P: Any, Q: Any) -> Any:
    """Four multiplications of a tile: P gathers codes times 1 (and 4 in rows + 8), Q times 16 (and 64)."""
    P = mma(P, w[0] & int32(M0), w[0] & int32(M1), w[1] & int32(M0), w[1] & int32(M1), x[0], x[1])
    Q = mma(Q, w[0] & int32(M2), w[0] & int32(M3), w[1] & int32(M2), w[1] & int32(M3), x[2], x[3])
    P = mma(P, w[2] & int32(M0), w[2] & int32(M1), w[3] & int32(M0), w[3] & int32(M1), z[0], z[1])
    Q = mma(Q, w[2] & int32(M2), w[2] & int32(M3), w[3] & int32(M2), w[3] & int32(M3), z[2], z[3])
    return P, Q


@cuda.jit(device=True, inline="always")
def codes_i2(x_q: Any, at: Any, k: Any, half: Any, tiles: Any) -> Any:
    """Activations for half a tile k: 16 bytes of a row, zeros where there is no such tile."""
    return load16_if(x_q, at + k * 128 + half, k < tiles)


@cuda.jit(device=True, inline="always")
def gather(sums: Any, strip: Any, first: Any, M: Any, N: Any, x_scale: Any, x_sum: Any, w_scale: Any,
           add: Any, added: Any, y: Any) -> None:
    """The warps' sums, four to a lane, summed; warp i < 4 finishes the i-th of every lane."""
    lane, warp = int32(cuda.threadIdx.x) & int32(31), int32(cuda.threadIdx.x) >> int32(5)
    cuda.syncthreads()
    if warp < 4:
        total = int32(0)
        for i in range(WARPS):
            total = int32(total + sums[i, warp, lane])
        n = int32(strip * 16 + (lane >> int32(2)) + 8 * (warp >> int32(1)))
        m = int32(first + 2 * (lane & int32(3)) + (warp & int32(1)))
        if m < M and n < N:
            finish(total, m, n, N, x_scale, x_sum, w_scale, add, added, y)


@kernel("i32* words, i8* x_q, f32* x_scale, i32* x_sum, f32* w_scale, f32* add, i32 added, f32* y, i32 M, "
        "i32 N, i32 tiles, i32 ld", 32 * WARPS, registers=96)
def gemv_i2(words: Any, x_q: Any, x_scale: Any, x_sum: Any, w_scale: Any, add: Any, added: Any, y: Any,
            M: Any, N: Any, tiles: Any, ld: Any) -> None:
    """x_q (M, ld), words (N/16, tiles, 32, 4)  ->  y (M, N). Grid (M/8, N/16), rounded up."""
    sums = cuda.shared.array((WARPS, 4, 32), int32)
    lane, warp = int32(cuda.threadIdx.x) & int32(31), int32(cuda.threadIdx.x) >> int32(5)
    first, strip = int32(cuda.blockIdx.x) * int32(8), int32(cuda.blockIdx.y)
    g, t = lane >> int32(2), lane & int32(3)
    zero = (int32(0), int32(0), int32(0), int32(0))
    P, Q = zero, zero
    w_at = int64(strip) * tiles * 128 + lane * 4
    x_at = int64(min(first + g, M - 1)) * ld + t * 16      # a row too many repeats the last; nobody keeps it
    for step in range((tiles + 4 * WARPS - 1) // (4 * WARPS)):
        k = int32(step * 4 * WARPS + warp)                 # all is under way before the first is used: the
        k1, k2, k3 = int32(k + WARPS), int32(k + 2 * WARPS), int32(k + 3 * WARPS)     # branches see to it
        w0 = load16_once(words, w_at + k * 128, k < tiles)
        w1 = load16_once(words, w_at + k1 * 128, k1 < tiles)
        w2 = load16_once(words, w_at + k2 * 128, k2 < tiles)
        w3 = load16_once(words, w_at + k3 * 128, k3 < tiles)
        x0, z0 = codes_i2(x_q, x_at, k, 0, tiles), codes_i2(x_q, x_at, k, 64, tiles)
        x1, z1 = codes_i2(x_q, x_at, k1, 0, tiles), codes_i2(x_q, x_at, k1, 64, tiles)
        x2, z2 = codes_i2(x_q, x_at, k2, 0, tiles), codes_i2(x_q, x_at, k2, 64, tiles)
        x3, z3 = codes_i2(x_q, x_at, k3, 0, tiles), codes_i2(x_q, x_at, k3, 64, tiles)
        if k < tiles:
            P, Q = tile_product(w0, x0, z0, P, Q)
        if k1 < tiles:
            P, Q = tile_product(w1, x1, z1, P, Q)
        if k2 < tiles:
            P, Q = tile_product(w2, x2, z2, P, Q)
        if k3 < tiles:
            P, Q = tile_product(w3, x3, z3, P, Q)
    sums[warp, 0, lane] = P[0] + (Q[0] >> int32(4))
    sums[warp, 1, lane] = P[1] + (Q[1] >> int32(4))
    sums[warp, 2, lane] = (P[2] >> int32(2)) + (Q[2] >> int32(6))
    sums[warp, 3, lane] = (P[3] >> int32(2)) + (Q[3] >> int32(6))
    gather(sums, strip, first, M, N, x_scale, x_sum, w_scale, add, added, y)


@cuda.jit(device=True, inline="always")
def fractions(word: Any) -> Any:
    """Four bytes as fractions of 16 bits: bytes 0 and 2 in one register, 1 and 3 in another."""
    return word & int32(LOW), (word >> int32(8)) & int32(LOW)


@cuda.jit(device=True, inline="always")
def next_digits(e: Any, o: Any) -> Any:
    """The next digit of four fractions, a byte each, and what remains of the fractions."""
    e, o = int32(e * int32(3)), int32(o * int32(3))        # a digit steps over the point: bits 8, 9
    return prmt(e, o, int32(0x7351)), e & int32(LOW), o & int32(LOW)


@cuda.jit(device=True, inline="always")
def tile_product_b3(w: Any, x0: Any, x1: Any, x2: Any, x3: Any, x4: Any, S: Any) -> Any:
    """Five multiplications of a tile, a digit of each byte after the other."""
    e0, o0 = fractions(w[0])
    e1, o1 = fractions(w[1])
    e2, o2 = fractions(w[2])
    e3, o3 = fractions(w[3])
    for d in range(5):
        a0, e0, o0 = next_digits(e0, o0)
        a1, e1, o1 = next_digits(e1, o1)
        a2, e2, o2 = next_digits(e2, o2)
        a3, e3, o3 = next_digits(e3, o3)
        b0 = x0[0] if d == 0 else x1[0] if d == 1 else x2[0] if d == 2 else x3[0] if d == 3 else x4[0]
        b1 = x0[1] if d == 0 else x1[1] if d == 1 else x2[1] if d == 2 else x3[1] if d == 3 else x4[1]
        S = mma(S, a0, a1, a2, a3, b0, b1)
    return S


@cuda.jit(device=True, inline="always")
def codes_b3(x_q: Any, at: Any, k: Any, d: Any, ld: Any) -> Any:
    """Activations for digit d of tile k: eight bytes of a row, zeros behind its end."""
    column = int32(k * 160 + 32 * d)
    return load8_if(x_q, at + column, column < ld)


@kernel("i32* words, i8* x_q, f32* x_scale, i32* x_sum, f32* w_scale, f32* add, i32 added, f32* y, i32 M, "
        "i32 N, i32 tiles, i32 ld", 32 * WARPS)
def gemv_b3(words: Any, x_q: Any, x_scale: Any, x_sum: Any, w_scale: Any, add: Any, added: Any, y: Any,
            M: Any, N: Any, tiles: Any, ld: Any) -> None:
    """As gemv_i2, words of 1.6 bits a trit: a fifth less to load, three times the instructions."""
    sums = cuda.shared.array((WARPS, 4, 32), int32)
    lane, warp = int32(cuda.threadIdx.x) & int32(31), int32(cuda.threadIdx.x) >> int32(5)
    first, strip = int32(cuda.blockIdx.x) * int32(8), int32(cuda.blockIdx.y)
    g, t = lane >> int32(2), lane & int32(3)
    S = (int32(0), int32(0), int32(0), int32(0))
    w_at = int64(strip) * tiles * 128 + lane * 4
    x_at = int64(min(first + g, M - 1)) * ld + t * 8
    for step in range((tiles + 2 * WARPS - 1) // (2 * WARPS)):
        k = int32(step * 2 * WARPS + warp)
        l = int32(k + WARPS)
        w = load16_once(words, w_at + k * 128, k < tiles)
        v = load16_once(words, w_at + l * 128, l < tiles)
        x0, z0 = codes_b3(x_q, x_at, k, 0, ld), codes_b3(x_q, x_at, l, 0, ld)
        x1, z1 = codes_b3(x_q, x_at, k, 1, ld), codes_b3(x_q, x_at, l, 1, ld)
        x2, z2 = codes_b3(x_q, x_at, k, 2, ld), codes_b3(x_q, x_at, l, 2, ld)
        x3, z3 = codes_b3(x_q, x_at, k, 3, ld), codes_b3(x_q, x_at, l, 3, ld)
        x4, z4 = codes_b3(x_q, x_at, k, 4, ld), codes_b3(x_q, x_at, l, 4, ld)
        if k < tiles:
            S = tile_product_b3(w, x0, x1, x2, x3, x4, S)
        if l < tiles:
            S = tile_product_b3(v, z0, z1, z2, z3, z4, S)
    sums[warp, 0, lane] = S[0]
    sums[warp, 1, lane] = S[1]
    sums[warp, 2, lane] = S[2]
    sums[warp, 3, lane] = S[3]
    gather(sums, strip, first, M, N, x_scale, x_sum, w_scale, add, added, y)
