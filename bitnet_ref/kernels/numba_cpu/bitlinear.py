"""BitLinear on packed weights: decode reads two (or 1.6) bits for each weight; all sums are exact integers.

A few rows (decode) walk the packed panels, whose bytes are decoded in registers. Many rows (prefill,
training) have a block of outputs unpacked into codes once and walk it by register tiles. Both give the sum of
(w + 1) x less the sum of x, and then the scales, in the reference's order: the same bits as the reference,
whatever the number of rows. Inputs are padded to whole blocks with zeros; a zero times any code is nothing.
Read after: kernels/numba_cpu/linear. Read next: kernels/numba_cpu/bf16.
"""

import math
from collections.abc import Iterator
from mmap import mmap
from typing import Any

import numpy as np
from numba import prange

from bitnet_ref import layers as reference
from bitnet_ref.checks import check, lookup
from bitnet_ref.kernels.numba_cpu.cache import compiled, compiled_parallel
from bitnet_ref.kernels.numba_cpu.linear import (
    CODES,
    NO_FLOATS,
    SCRATCH,
    TRITS,
    delivered,
    flat,
    given,
    is_ours,
    multiply,
)
from bitnet_ref.kernels.numba_cpu.quant import quantise_row
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.tiles import (
    GROUPS,
    PANEL,
    TIER,
    emit_codes,
    emit_packed,
    emit_unpack,
    kernel,
)
from bitnet_ref.kernels.numba_cpu.vectors import rstd_of
from bitnet_ref.layers.bitlinear import EXACT_IN_FLOAT32

FEW = 8                      # rows up to which packed panels are walked directly
MOST_K = {"i2": EXACT_IN_FLOAT32, "b3": 32_760}    # widest rows whose sums are exact
BLOCK, ROWS = PANEL * TIER.panels, TIER.rows
NO_GAIN = np.zeros(0, np.float32)
TOGETHER = 4                 # rows that share one decoding of the packed panels
_packed_i2, _packed_b3 = (kernel(emit_packed, bits=bits, rows=(1, 2, 3, TOGETHER)) for bits in ("i2", "b3"))
_unpack_i2, _unpack_b3 = kernel(emit_unpack, bits="i2"), kernel(emit_unpack, bits="b3")
_tile = kernel(emit_codes, rows=ROWS, panels=TIER.panels)
_row = kernel(emit_codes, rows=1, panels=TIER.panels)


class Prepared:
    """A ternary matrix: int8 trits (N, K), their scale, and, from the first decode on, the packed panels.

    Without `keep` there are the panels alone, and trits are made from them when somebody asks.
    """

    def __init__(self, w_q: np.ndarray, w_scale: Any, bits: str = "b3", keep: bool = True) -> None:
        self.shape, self.w_scale, self.bits = w_q.shape, w_scale, bits
        self._w_q = w_q if keep else None
        self._packed = None if keep else pack_panels(w_q, bits, mapped(packed_shape(w_q.shape, bits)))

    def __iter__(self) -> Iterator[Any]:
        """(w_q, w_scale), as the reference's Prepared."""
        return iter((self.w_q, self.w_scale))

    @property
    def w_q(self) -> np.ndarray:
        """int8 (N, K)."""
        return unpack_panels(self.packed, self.shape, self.bits) if self._w_q is None else self._w_q

    @property
    def packed(self) -> np.ndarray:
        """uint8 (panels, blocks, 64): see pack_panels."""
        if self._packed is None:
            self._packed = pack_panels(self.w_q, self.bits)
        return self._packed

    @property
    def only_packed(self) -> bool:
        """Whether trits would have to be made anew."""
        return self._w_q is None

    def move(self, bits: str, part: np.ndarray) -> None:
        """Put panels of that packing into `part`, uint8 of their bytes; they live there if they are ours."""
        place = part.reshape(packed_shape(self.shape, bits))
        if bits == self.bits and self._packed is not None:
            place[:] = self._packed
        else:
            pack_panels(self.w_q, bits, place)
        if bits == self.bits:
            self._packed = place


def prepare(w_q: np.ndarray, w_scale: Any, bits: str = "b3", keep: bool = True) -> Prepared:
    """As layers.prepare. `bits`: i2 (2 bits a trit) or b3 (1.6). Raises CheckError for others."""
    lookup(GROUPS, bits, "packing")
    return Prepared(w_q, w_scale, "i2" if w_q.shape[1] > MOST_K["b3"] else bits, keep)


# ---- packing, at load ----

def mapped(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 zeros in pages of their own, which the system has back at once when they are let go."""
    return np.frombuffer(mmap(-1, max(1, math.prod(shape))), np.uint8)[:math.prod(shape)].reshape(shape)


def packed_shape(shape: tuple[int, ...], bits: str) -> tuple[int, int, int]:
    """Of the panels of a matrix (N, K): (ceil(N/16), ceil(K / (4 groups)), 64)."""
    n, k = shape
    return -(-n // PANEL), -(-k // (4 * GROUPS[bits])), 64


def pack_panels(w_q: np.ndarray, bits: str, out: np.ndarray | None = None) -> np.ndarray:
    """w_q int8 (N, K)  ->  uint8 of packed_shape: what the tiles read.

    Byte 4 n + i of block b of panel p has the trits of output 16 p + n, inputs 4 (groups b + j) + i for every
    j: i2 has code j in bits 2j; b3 has floor(256 s) + 1 of the fraction s = sum_j code_j 3^-(j+1), which is
    never 0 (tiles.b3_raised). What lacks to whole panels and blocks is the code of 0. Raises CheckError for
    other than trits.
    """
    K = w_q.shape[1]
    check(MOST_K[bits] >= K, f"a row of weights packed as {bits} must have at most {MOST_K[bits]} inputs", K,
          "use packing i2" if bits == "b3" else "use backend numpy")
    packed = np.empty(packed_shape(w_q.shape, bits), np.uint8) if out is None else out
    with team() as t:
        bad = _pack_panels(np.ascontiguousarray(w_q), GROUPS[bits], packed, t.threads)
    _only_trits(bad)
    return packed


@compiled_parallel
def _pack_panels(w_q, groups, packed, threads):
    n_out, n_in = w_q.shape
    bad = 0
    for t in prange(threads):
        for p in range(len(packed) * t // threads, len(packed) * (t + 1) // threads):
            for b in range(packed.shape[1]):
                for n in range(PANEL):
                    for i in range(4):
                        value = 0
                        for j in range(groups):
                            k, code = 4 * (groups * b + j) + i, 1
                            if PANEL * p + n < n_out and k < n_in:
                                code = w_q[PANEL * p + n, k] + 1
                            bad += code < 0 or code > 2
                            value = value | code << 2 * j if groups == 4 else 3 * value + code
                        packed[p, b, 4 * n + i] = value if groups == 4 else value * 256 // 243 + 1
    return bad


@compiled
def unpack_block(packed, groups, first, codes):
    """codes uint8 (panels, groups * blocks, 16, 4): the codes of the packed panels from `first` on."""
    blocks = packed.shape[1]
    for p in range(min(len(codes), len(packed) - first)):
        at = (packed.ctypes.data + (first + p) * blocks * 64, blocks,
              codes.ctypes.data + p * codes.shape[1] * 64)
        if groups == 4:
            _unpack_i2(at)
        else:
            _unpack_b3(at)


def unpack_panels(packed: np.ndarray, shape: tuple[int, ...], bits: str) -> np.ndarray:
    """The inverse of pack_panels: w_q int8 (N, K)."""
    n, k = shape
    w_q = np.empty(shape, np.int8)
    codes = np.empty((1, packed.shape[1] * GROUPS[bits], PANEL, 4), np.uint8)
    for p in range(len(packed)):
        unpack_block(packed, GROUPS[bits], p, codes)
        rows = codes[0].transpose(1, 0, 2).reshape(PANEL, -1)
        w_q[PANEL * p:PANEL * (p + 1)] = rows[:n - PANEL * p, :k]
    w_q -= 1
    return w_q


@compiled
def codes_of_trits(w_q, first, codes):
    """The same from unpacked trits int8 (N, K): training packs nothing, its weights change every step.

    Returns how many codes are none of a trit.
    """
    n_out, n_in = w_q.shape
    bad = np.int64(0)
    for p in range(len(codes)):
        for n in range(PANEL):
            row = PANEL * (first + p) + n
            for k in range(codes.shape[1]):
                for i in range(4):
                    inside = row < n_out and 4 * k + i < n_in
                    code = np.uint8(w_q[row, 4 * k + i] + 1) if inside else np.uint8(1)
                    codes[p, k, n, i] = code
                    bad += code > 2
    return bad


# ---- the product ----

@compiled
def few_rows(packed, groups, panel0, panel1, x, x_scale, w_scale, sums, y, edge):
    """y (M, N) of outputs 16 panel0 up to 16 panel1, M small, straight from packed panels.

    x int8 (M, at least 4 groups blocks); x_scale float32 (M,); w_scale float32 (1,); sums int32 (M,): of x;
    edge float32 (4, 16): scratch for a panel that is narrower than 16.
    """
    n_rows, n_out = y.shape
    whole, m = min(panel1, n_out // PANEL), 0
    while m < n_rows:
        rows = next_rows(n_rows - m, TOGETHER)
        at = (x.ctypes.data + m * x.shape[1], x.shape[1], x_scale.ctypes.data + 4 * m, w_scale.ctypes.data,
              sums.ctypes.data + 4 * m)
        _walk_panels(rows, packed, groups, panel0, whole, at,
                     y.ctypes.data + 4 * (m * n_out + PANEL * panel0), 4 * n_out)
        if whole < panel1:                                 # the last panel has fewer than sixteen outputs
            _walk_panels(rows, packed, groups, whole, panel1, at, edge.ctypes.data, 4 * PANEL)
            for r in range(rows):
                y[m + r, PANEL * whole:] = edge[r, :n_out - PANEL * whole]
        m += rows


@compiled
def next_rows(left, most):
    """How many of the rows that are left come next, so that all turns are about as long: 5 are 3 and 2."""
    turns = (left + most - 1) // most
    return (left + turns - 1) // turns


@compiled
def _walk_panels(rows, packed, groups, panel0, panel1, at, out, ldy):
    blocks = packed.shape[1]
    args = (rows, packed.ctypes.data + panel0 * blocks * 64, panel1 - panel0, blocks, *at, out, ldy)
    if groups == 4:
        _packed_i2(args)
    else:
        _packed_b3(args)


@compiled
def many_rows(codes, n0, row0, row1, x, x_scale, w_scale, sums, y, edge):
    """y[row0:row1] of the BLOCK outputs from n0 on, whose codes (panels, fours, 16, 4) are unpacked.

    edge float32 (ROWS, BLOCK): scratch for a block that is narrower.
    """
    n_out, ldx, stride = y.shape[1], x.shape[1], codes.shape[1] * 64
    width = min(BLOCK, n_out - n0)
    for m in range(row0, row1, ROWS):
        rows = min(ROWS, row1 - m)
        out, ldy = y.ctypes.data + 4 * (m * n_out + n0), 4 * n_out
        if width < BLOCK:
            out, ldy = edge.ctypes.data, 4 * BLOCK
        if rows == ROWS:
            _tile((codes.ctypes.data, stride, codes.shape[1], x.ctypes.data + m * ldx, ldx,
                   x_scale.ctypes.data + 4 * m, w_scale.ctypes.data, sums.ctypes.data + 4 * m, out, ldy))
        else:
            for r in range(m, row1):
                _row((codes.ctypes.data, stride, codes.shape[1], x.ctypes.data + r * ldx, ldx,
                      x_scale.ctypes.data + 4 * r, w_scale.ctypes.data, sums.ctypes.data + 4 * r,
                      out + (r - m) * ldy, ldy))
        if width < BLOCK:
            for r in range(rows):
                y[m + r, n0:] = edge[r, :width]


@compiled
def many_scratch(n_in):
    """Bytes that a product needs of a thread: codes, and the edge of either way."""
    return BLOCK * ((n_in + 3) // 4 * 4) + 4 * max(BLOCK * ROWS, 4 * PANEL)


@compiled_parallel
def _product(w_q, packed, groups, x, x_scale, w_scale, sums, y, threads, scratch):
    """From packed panels if there are any (few or many rows), else from trits. Returns codes of no trit."""
    n_rows, n_out = y.shape
    fours = (x.shape[1] + 3) // 4
    for m in range(n_rows):
        total = np.int32(0)
        for k in range(x.shape[1]):
            total += np.int32(x[m, k])
        sums[m] = total
    blocks = (n_out + BLOCK - 1) // BLOCK
    strips = (2 * threads + blocks - 1) // blocks
    strip, bad = (n_rows + strips * ROWS - 1) // (strips * ROWS) * ROWS, 0
    for t in prange(threads):
        n_codes = BLOCK * fours * 4
        codes = scratch[t][:n_codes].reshape(BLOCK // PANEL, fours, PANEL, 4)
        floats = scratch[t][n_codes:].view(np.float32)
        edge, narrow = floats[:ROWS * BLOCK].reshape(ROWS, BLOCK), floats[:4 * PANEL].reshape(4, PANEL)
        if len(packed) and n_rows <= FEW:
            few_rows(packed, groups, len(packed) * t // threads, len(packed) * (t + 1) // threads, x, x_scale,
                     w_scale, sums, y, narrow)
        else:
            for task in range(blocks * strips * t // threads, blocks * strips * (t + 1) // threads):
                first, m0 = task // strips * (BLOCK // PANEL), task % strips * strip
                if len(packed):
                    unpack_block(packed, groups, first, codes)
                else:
                    bad += codes_of_trits(w_q, first, codes)
                many_rows(codes, first * PANEL, m0, min(m0 + strip, n_rows), x, x_scale, w_scale, sums,
                          y, edge)
    return bad


NOT_PACKED = np.zeros((0, 0, 64), np.uint8)
NO_TRITS = np.zeros((0, 0), np.int8)


def ternary_product(x_q: np.ndarray, x_scale: np.ndarray, w_q: np.ndarray, w_scale: Any, y: np.ndarray,
                    packed: np.ndarray = NOT_PACKED, bits: str = "b3") -> np.ndarray:
    """y float32 (M, N) from x_q int8 (M, K), x_scale (M,) and trits int8 (N, K), or packed panels of them.

    Raises CheckError for other than trits.
    """
    M, K = x_q.shape
    padded = -(-K // 4) * 4 if not len(packed) else packed.shape[1] * 4 * GROUPS[bits]
    if padded != K:
        wide = np.zeros((M, padded), np.int8)
        wide[:, :K] = x_q
        x_q = wide
    with team(many_scratch(padded)) as t:
        bad = _product(w_q, packed, GROUPS[bits], x_q, x_scale, np.full(1, w_scale, np.float32),
                       np.empty(M, np.int32), y, t.threads, t.scratch)
    _only_trits(bad)
    return y


def _only_trits(bad: int) -> None:
    check(bad == 0, "a ternary matrix must hold -1, 0 and +1 only", f"{bad} other values",
          "ternarise it first")


def ternary_dx(dy: np.ndarray, w_q: np.ndarray, w_scale: Any, dx: np.ndarray,
               onto: bool = False) -> np.ndarray:
    """dx (M, K) = (or +=) dy (M, N) @ (w_q (N, K) * w_scale)."""
    with team(SCRATCH) as t:
        multiply(TRITS, dy, dy.shape[1], 1, NO_FLOATS, w_q, np.full(1, w_scale, np.float32), dx, dy.shape[1],
                 onto, t.threads, t.scratch)
    return dx


def ternary_dw(dy: np.ndarray, x_q: np.ndarray, x_scale: np.ndarray, dw: np.ndarray) -> np.ndarray:
    """dw (N, K) += dy (M, N).T @ (x_q (M, K) * x_scale (M,))."""
    with team(SCRATCH) as t:
        multiply(CODES, dy, 1, dy.shape[1], NO_FLOATS, x_q, x_scale, dw, len(dy), True, t.threads, t.scratch)
    return dw


# ---- norm and quantise ----

@compiled
def norm_row(x, g, eps, normed, x_q):
    """RMSNorm (if `normed`) and absmax int8 of one row. Returns x_scale, the sum of the codes, rstd."""
    rstd = np.float32(1)
    if normed:
        rstd = rstd_of(x, eps)                                                  # (BL.1)
    scale, total = quantise_row(x, g, rstd, x_q)                                # (BL.2)
    return scale, total, rstd


@compiled_parallel
def _norm_int8(x, g, eps, normed, x_q, x_scale, rstd, threads):
    for t in prange(threads):
        for m in range(len(x) * t // threads, len(x) * (t + 1) // threads):
            x_scale[m], _, rstd[m] = norm_row(x[m], g, eps, normed, x_q[m])


def norm_int8(x: np.ndarray, g: np.ndarray, eps: float, normed: bool, x_q: np.ndarray, x_scale: np.ndarray,
              rstd: np.ndarray) -> None:
    """x float32 (M, K), g (K,) or empty  ->  x_q int8 (M, K), x_scale (M,), rstd (M,), row by row."""
    with team() as t:
        _norm_int8(x, g, eps, normed, x_q, x_scale, rstd, t.threads)


# ---- the ops ----

def rmsnorm_int8(x: np.ndarray, g: np.ndarray | None,
                 eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As layers.rmsnorm_int8; norm and quantiser in one pass, the mean square in float64."""
    if not is_ours(x) or x.size == 0 or not (g is None or (is_ours(g) and g.shape == x.shape[-1:])):
        return reference.rmsnorm_int8(x, g, eps)
    rows = flat(x)
    x_q, x_scale = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    rstd = np.empty_like(x_scale)
    norm_int8(rows, NO_GAIN if g is None else g, eps, True, x_q, x_scale, rstd)
    lead = (*x.shape[:-1], 1)
    return x_q.reshape(x.shape), x_scale.reshape(lead), rstd.reshape(lead)


def ternary_linear(x_q: np.ndarray, x_scale: np.ndarray, w: Any, out: np.ndarray | None = None) -> np.ndarray:
    """As layers.ternary_linear."""
    if not _fits(x_q, x_scale, w) or x_q.shape[-1] > MOST_K["i2"]:
        return delivered(reference.ternary_linear(x_q, x_scale, w), out)
    rows, y = flat(x_q), given(out, (*x_q.shape[:-1], w.shape[0]))
    scales = np.ascontiguousarray(x_scale.reshape(-1))
    packed = w.packed if len(rows) <= FEW or w.only_packed else NOT_PACKED
    w_q = NO_TRITS if len(packed) else np.ascontiguousarray(w.w_q)
    ternary_product(rows, scales, w_q, w.w_scale, y.reshape(len(rows), w.shape[0]), packed, w.bits)
    return delivered(y, out)


def _fits(x_q: np.ndarray, x_scale: np.ndarray, w: Any) -> bool:
    """Whether compiled code may read these; what does not fit is left to the reference to refuse."""
    whole = w.only_packed or w.w_q.dtype == np.int8
    return (is_ours(x_scale) and x_q.dtype == np.int8 and whole and x_q.shape[-1:] == w.shape[1:]
            and x_scale.shape == (*x_q.shape[:-1], 1))


def ternary_linear_backward(dy: np.ndarray, x_q: np.ndarray, x_scale: np.ndarray, w: Any,
                            dw: np.ndarray) -> np.ndarray:
    """As layers.ternary_linear_backward."""
    if (not is_ours(dy, dw) or not _fits(x_q, x_scale, w) or not dw.flags.c_contiguous
            or dw.shape != w.shape or dy.shape != (*x_q.shape[:-1], w.shape[0])):
        return reference.ternary_linear_backward(dy, x_q, x_scale, w, dw)
    rows, codes = flat(dy), flat(x_q)
    dx = np.empty(codes.shape, np.float32)
    ternary_dw(rows, codes, np.ascontiguousarray(x_scale.reshape(-1)), dw)
    return ternary_dx(rows, np.ascontiguousarray(w.w_q), w.w_scale, dx).reshape(x_q.shape)
