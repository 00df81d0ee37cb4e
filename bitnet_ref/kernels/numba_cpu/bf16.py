"""Backward products in bfloat16 (`--backward bf16`): pairs along k, products of 8 bits, sums in float32.

The instruction (AVX512-BF16) adds two products to every float32 lane, so it does twice the work of a fused
multiply-add. Trits and int8 codes are exact in bfloat16; what is rounded, once, is the gradient times the
scale that belongs to it, and with full-precision weights these too. Sums add up parts of DEPTH, as in linear.
Read after: kernels/numba_cpu/bitlinear. Read next: kernels/numba_cpu/attention.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange
from numba.core import cgutils

from bitnet_ref.checks import check
from bitnet_ref.kernels.numba_cpu import isa
from bitnet_ref.kernels.numba_cpu.cache import compiled, compiled_parallel
from bitnet_ref.kernels.numba_cpu.isa import I32, Tier
from bitnet_ref.kernels.numba_cpu.linear import NO_CODES, NO_FLOATS
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.tiles import F32, I64, PANEL, TIER, Memory, kernel, sums
from bitnet_ref.kernels.numba_cpu.vectors import bits_of

FEATURE = "avx512bf16"
ROWS, PANELS = 6, 4
BLOCK, DEPTH = PANEL * PANELS, 512
SCRATCH = 2 * BLOCK * DEPTH + 4 * BLOCK * ROWS


class BFloat(ir.HalfType):
    """LLVM's bfloat, which llvmlite does not name."""

    def __str__(self) -> str:
        return "bfloat"


def emit_pairs(builder: ir.IRBuilder, tier: Tier, a: ir.Value, a_row: ir.Value, a_k: ir.Value, b: ir.Value,
               n_k: ir.Value, c: ir.Value, ldc: ir.Value, *, rows: int, panels: int) -> None:
    """c[r, 16 p ...] += sum over pairs k of a[r, k] . b[k, p], both (2,) bfloat16.

    a: pairs a_row and a_k bytes apart; b (n_k, panels, 16, 2); c float32, its rows ldc bytes apart.
    """
    m, vector, pairs = Memory(builder), ir.VectorType(F32, PANEL), ir.VectorType(BFloat(), 2 * PANEL)
    slots = [sums(builder, vector, panels) for _ in range(rows)]
    kind = ir.FunctionType(vector, [vector, pairs, pairs])
    dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    with cgutils.for_range(builder, n_k) as loop:
        at = builder.mul(loop.index, I64(4 * PANEL * panels))
        vectors = [m.load(b, builder.add(at, I64(4 * PANEL * p)), pairs) for p in range(panels)]
        for r in range(rows):
            here = builder.add(builder.mul(a_k, loop.index), builder.mul(a_row, I64(r)))
            x = builder.bitcast(m.splat(m.load(a, here, I32), PANEL), pairs)
            for slot, v in zip(slots[r], vectors):
                builder.store(builder.call(dot, [builder.load(slot), x, v]), slot)
    for r in range(rows):
        for p in range(panels):
            place = builder.add(builder.mul(ldc, I64(r)), I64(4 * PANEL * p))
            m.store(builder.fadd(m.load(c, place, vector), builder.load(slots[r][p])), c, place)


def available() -> bool:
    """Whether this machine has the instruction, and a tier of 512 bits is in use."""
    return TIER.name == "avx512vnni" and FEATURE in isa.host()[1]


def require() -> None:
    """Raise CheckError where it is not available."""
    check(available(), f"--backward bf16 needs a processor with {FEATURE}", f"tier {TIER.name}",
          "leave it out: float32 runs everywhere")


if available():
    _tile, _row = (kernel(emit_pairs, rows=rows, panels=PANELS) for rows in (ROWS, 1))
else:                                                      # never called: require() comes before

    @compiled
    def _tile(args):
        pass

    _row = _tile


@compiled
def rounded(x):
    """The bfloat16 nearest to a float32, half to even, as uint16; a NaN stays one."""
    bits = np.uint32(bits_of(x))
    if x != x:
        return np.uint16((bits >> np.uint32(16)) | np.uint32(64))
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled_parallel
def _pairs_of_columns(dy, scale, out, threads):
    """out (M, N even) = dy (M, N) * scale[0]: pairs lie along a row."""
    for t in prange(threads):
        for m in range(len(dy) * t // threads, len(dy) * (t + 1) // threads):
            row, x = out[m], dy[m]
            for n in range(x.size):
                row[n] = rounded(x[n] * scale[0])
            if row.size > x.size:
                row[x.size] = 0


@compiled_parallel
def _pairs_of_rows(dy, scale, out, threads):
    """out (M/2 rounded up, N, 2) = dy (M, N) * scale (M,): pairs lie along a column."""
    for t in prange(threads):
        for k in range(len(out) * t // threads, len(out) * (t + 1) // threads):
            row = out[k]
            for i in range(2):
                m = 2 * k + i
                if m < len(dy):
                    x, s = dy[m], scale[m]
                    for n in range(x.size):
                        row[n, i] = rounded(x[n] * s)
                else:
                    row[:, i] = 0


@compiled
def _pack(b, q, n0, width, k0, depth, block):
    """block (depth / 2, BLOCK, 2): rows k0... of floats b or, if there are none, of codes q; then zeros."""
    n_k = len(b) if b.size else len(q)
    for k in range(depth):
        pair = block[k // 2]
        pair[width:, k % 2] = 0
        if k0 + k >= n_k:
            pair[:, k % 2] = 0
        elif b.size:
            for n in range(width):
                pair[n, k % 2] = rounded(b[k0 + k, n0 + n])
        else:
            for n in range(width):
                pair[n, k % 2] = np.uint16(np.uint32(bits_of(np.float32(q[k0 + k, n0 + n]))) >> np.uint32(16))


@compiled_parallel
def _multiply(a, a_row, a_k, b, q, c, n_k, onto, threads, scratch):
    """c (M, N) = (or +=) sum over k of a[m, k] * b[k, n]; as linear.multiply, k in pairs."""
    n_rows, n_out = c.shape
    blocks = (n_out + BLOCK - 1) // BLOCK
    strips = (2 * threads + blocks - 1) // blocks
    strip = (n_rows + strips * ROWS - 1) // (strips * ROWS) * ROWS
    tasks = blocks * strips
    for t in prange(threads):
        block = scratch[t][:2 * BLOCK * DEPTH].view(np.uint16).reshape(DEPTH // 2, BLOCK, 2)
        edge = scratch[t][2 * BLOCK * DEPTH:SCRATCH].view(np.float32).reshape(ROWS, BLOCK)
        for task in range(tasks * t // threads, tasks * (t + 1) // threads):
            n0, m0 = task // strips * BLOCK, task % strips * strip
            m1, width = min(m0 + strip, n_rows), min(BLOCK, n_out - n0)
            if not onto:
                c[m0:m1, n0:n0 + width] = 0
            for k0 in range(0, n_k, DEPTH):
                depth = min(DEPTH, n_k - k0)
                depth += depth % 2
                _pack(b, q, n0, width, k0, depth, block)
                for m in range(m0, m1, ROWS):
                    rows = min(ROWS, m1 - m)
                    out, ldc = c.ctypes.data + 4 * (m * n_out + n0), 4 * n_out
                    if width < BLOCK:
                        out, ldc = edge.ctypes.data, 4 * BLOCK
                        for r in range(rows):
                            edge[r, :width] = c[m + r, n0:n0 + width]
                    at = a.ctypes.data + m * a_row + k0 // 2 * a_k
                    together = ROWS if rows == ROWS else 1
                    for r in range(0, rows, together):
                        args = (at + a_row * r, a_row, a_k, block.ctypes.data, depth // 2, out + ldc * r, ldc)
                        if together == ROWS:
                            _tile(args)
                        else:
                            _row(args)
                    if width < BLOCK:
                        for r in range(rows):
                            c[m + r, n0:n0 + width] = edge[r, :width]


def buffer_size(M: int, N: int) -> int:
    """Elements of uint16 that the products of dy (M, N) need."""
    return (M + 1) * (N + 1)


def product_dx(dy: np.ndarray, w: np.ndarray, scale: Any, dx: np.ndarray, onto: bool,
               buffer: np.ndarray) -> None:
    """dx (M, K) = (or +=) dy (M, N) @ (w (N, K) * scale): w int8, or float32 (then rounded)."""
    M, N = dy.shape
    pairs = buffer[:M * (N + N % 2)].reshape(M, N + N % 2)
    b, q = (NO_FLOATS, w) if w.dtype == np.int8 else (w, NO_CODES)
    with team(SCRATCH) as t:
        _pairs_of_columns(dy, np.full(1, scale, np.float32), pairs, t.threads)
        _multiply(pairs, 2 * pairs.shape[1], 4, b, q, dx, N, onto, t.threads, t.scratch)


def product_dw(dy: np.ndarray, x: np.ndarray, scale: np.ndarray, dw: np.ndarray, buffer: np.ndarray) -> None:
    """dw (N, K) += dy (M, N).T @ (x (M, K) * scale (M,)): x int8, or float32 (then rounded)."""
    M, N = dy.shape
    pairs = buffer[:(M + M % 2) * N].reshape((M + 1) // 2, N, 2)
    b, q = (NO_FLOATS, x) if x.dtype == np.int8 else (x, NO_CODES)
    with team(SCRATCH) as t:
        _pairs_of_rows(dy, scale, pairs, t.threads)
        _multiply(pairs, 4, 4 * N, b, q, dw, M, True, t.threads, t.scratch)
