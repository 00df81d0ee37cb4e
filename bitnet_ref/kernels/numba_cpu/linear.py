"""Products of float32 matrices on the register tile: blocks of 64 outputs, packed once, then walked by rows.

Every output of a forward product is one chain of fused multiply-adds in the order of k; backward products,
which sum over tokens or a vocabulary, are summed in parts of DEPTH. So they are the same bits for any number
of rows or threads. What is packed into the block decides which product it is: a matrix of floats as it
lies or transposed, trits times their scale, int8 codes with theirs or without.
Read after: kernels/numba_cpu/rans. Read next: kernels/numba_cpu/bitlinear.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from bitnet_ref import layers as reference
from bitnet_ref.kernels.numba_cpu.cache import compiled, compiled_parallel
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.tiles import PANEL, TIER, emit_floats, kernel

ROWS, BLOCK = TIER.float_rows, PANEL * TIER.float_panels
DEPTH = 512                                  # of k packed at a time: a block of 128 KiB stays in L2
TRANSPOSED, CODES_TRANSPOSED, AS_IT_IS, TRITS, CODES = range(5)      # what a block is packed from
ONTO = "chain", "sum"                        # how a block of k joins those before: forward, backward
_tile, _tile_sum = (kernel(emit_floats, rows=ROWS, panels=TIER.float_panels, onto=how) for how in ONTO)
_row, _row_sum = (kernel(emit_floats, rows=1, panels=TIER.float_panels, onto=how) for how in ONTO)
NO_FLOATS, NO_CODES = np.zeros((0, 0), np.float32), np.zeros((0, 0), np.int8)
ONE = np.ones(1, np.float32)
TABLE_ROWS = 1 << 12                         # of a table in 16 bits made float32 at a time


@compiled
def pack(kind, b, q, scale, n0, width, k0, depth, block):
    """block (depth, BLOCK): the operand of outputs n0... and of k0...; zeros beyond the width."""
    if kind <= CODES_TRANSPOSED:                           # by squares, so that what is read stays in L1
        for n in range(0, width, PANEL):
            for k in range(0, depth, PANEL):
                for i in range(n, min(n + PANEL, width)):
                    for j in range(k, min(k + PANEL, depth)):
                        block[j, i] = b[n0 + i, k0 + j] if kind == TRANSPOSED else q[n0 + i, k0 + j]
    for k in range(depth):
        row = block[k]
        row[width:] = 0
        if kind == AS_IT_IS:
            for n in range(width):
                row[n] = b[k0 + k, n0 + n]
        elif kind > AS_IT_IS:
            factor = scale[0] if kind == TRITS else scale[k0 + k]
            for n in range(width):
                row[n] = np.float32(q[k0 + k, n0 + n]) * factor


@compiled_parallel
def multiply(kind, a, a_row, a_k, b, q, scale, c, n_k, onto, threads, scratch):
    """c (M, N) = (or +=) sum over k of a[m, k] b[k, n].

    a: float32, its rows a_row and its columns a_k floats apart. Tasks are blocks of outputs; where these are
    fewer than twice the threads, the rows are cut into strips as well.
    """
    n_rows, n_out = c.shape
    blocks = (n_out + BLOCK - 1) // BLOCK
    strips = (2 * threads + blocks - 1) // blocks
    strip = (n_rows + strips * ROWS - 1) // (strips * ROWS) * ROWS
    tasks = blocks * strips
    for t in prange(threads):
        floats = scratch[t].view(np.float32)
        block = floats[:DEPTH * BLOCK].reshape(DEPTH, BLOCK)
        edge = floats[DEPTH * BLOCK:(DEPTH + ROWS) * BLOCK].reshape(ROWS, BLOCK)
        for task in range(tasks * t // threads, tasks * (t + 1) // threads):
            n0, m0 = task // strips * BLOCK, task % strips * strip
            m1, width = min(m0 + strip, n_rows), min(BLOCK, n_out - n0)
            if not onto:
                c[m0:m1, n0:n0 + width] = 0
            for k0 in range(0, n_k, DEPTH):
                depth = min(DEPTH, n_k - k0)
                pack(kind, b, q, scale, n0, width, k0, depth, block)
                for m in range(m0, m1, ROWS):
                    rows = min(ROWS, m1 - m)
                    out, ldc = c.ctypes.data + 4 * (m * n_out + n0), 4 * n_out
                    if width < BLOCK:                      # a narrow block is summed aside, then copied
                        out, ldc = edge.ctypes.data, 4 * BLOCK
                        for r in range(rows):
                            edge[r, :width] = c[m + r, n0:n0 + width]
                    at = a.ctypes.data + 4 * (m * a_row + k0 * a_k)
                    together = ROWS if rows == ROWS else 1
                    for r in range(0, rows, together):
                        args = (at + 4 * a_row * r, 4 * a_row, 4 * a_k, block.ctypes.data, 4 * PANEL,
                                4 * BLOCK, depth, out + ldc * r, ldc)
                        if kind <= CODES_TRANSPOSED:
                            if together == ROWS:
                                _tile(args)
                            else:
                                _row(args)
                        elif together == ROWS:
                            _tile_sum(args)
                        else:
                            _row_sum(args)
                    if width < BLOCK:
                        for r in range(rows):
                            c[m + r, n0:n0 + width] = edge[r, :width]


SCRATCH = 4 * BLOCK * (DEPTH + ROWS)


def product(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y (M, N) = x (M, K) @ w.T, w (N, K). All float32, C-contiguous."""
    with team(SCRATCH) as t:
        multiply(TRANSPOSED, x, x.shape[1], 1, w, NO_CODES, ONE, y, x.shape[1], False, t.threads, t.scratch)
    return y


class ByteRows(NamedTuple):
    """A matrix w_q int8 (N, K) whose rows have scales w_scale float32 (N, 1)."""

    w_q: np.ndarray
    w_scale: np.ndarray


def prepare_rows(w_q: np.ndarray, w_scale: np.ndarray) -> Any:
    """As layers.prepare_rows; the bytes are kept and `linear` takes them."""
    if not is_ours(w_scale):
        return reference.prepare_rows(w_q, w_scale)
    return ByteRows(np.ascontiguousarray(w_q), w_scale)


class Table:
    """A full matrix (N, K) in float16 or bfloat16, as stored. Once it lives in panels, in those alone."""

    def __init__(self, w: np.ndarray) -> None:
        self.shape, self.dtype = w.shape, w.dtype
        self._rows: np.ndarray | None = w
        self._panels = np.zeros((0, 0, PANEL), np.uint16)

    def __getitem__(self, ids: Any) -> np.ndarray:
        """float32 (..., K): these rows."""
        ids, rows = np.asarray(ids), self._rows            # once: another thread may move it
        if rows is not None:
            return rows[ids].astype(np.float32)
        return self._panels[ids // PANEL, :, ids % PANEL].view(self.dtype).astype(np.float32)

    def __len__(self) -> int:
        return int(self.shape[0])

    def part(self, begin: int, end: int) -> np.ndarray:
        """Rows from `begin`, a multiple of 16, to `end` in its dtype."""
        rows = self._rows
        if rows is not None:
            return rows[begin:end]
        panels = self._panels[begin // PANEL:-(-end // PANEL)]
        return panels.swapaxes(1, 2).reshape(-1, self.shape[1])[:end - begin].view(self.dtype)

    def whole(self) -> np.ndarray:
        """All of it in its dtype (N, K)."""
        return self.part(0, len(self))

    def live_in(self, panels: np.ndarray) -> None:
        """uint16 (ceil(N/16), K, 16) has its bits from now on; what was before is let go."""
        self._panels, self._rows = panels, None


def prepare_table(w: np.ndarray) -> Any:
    """As layers.prepare_table; 16 bits stay 16 bits, and `embedding` and `linear` take them."""
    return Table(w) if w.dtype.itemsize == 2 else reference.prepare_table(w)


def product_table(x: np.ndarray, w: Table, y: np.ndarray) -> np.ndarray:
    """y (M, N) = x (M, K) @ w.T, some rows of w made float32 at a time."""
    for n in range(0, len(w), TABLE_ROWS):
        block = np.ascontiguousarray(w.part(n, min(n + TABLE_ROWS, len(w))).astype(np.float32))
        y[:, n:n + TABLE_ROWS] = product(x, block, np.empty((len(x), len(block)), np.float32))
    return y


def product_rows(x: np.ndarray, w: ByteRows, y: np.ndarray) -> np.ndarray:
    """y (M, N) = x (M, K) @ (w_q * w_scale).T, scaled last."""
    with team(SCRATCH) as t:
        multiply(CODES_TRANSPOSED, x, x.shape[1], 1, NO_FLOATS, w.w_q, ONE, y, x.shape[1], False, t.threads,
                 t.scratch)
    return np.multiply(y, w.w_scale.T, out=y)


def product_dx(dy: np.ndarray, w: np.ndarray, dx: np.ndarray, onto: bool = False) -> np.ndarray:
    """dx (M, K) = (or +=) dy (M, N) @ w (N, K)."""
    with team(SCRATCH) as t:
        multiply(AS_IT_IS, dy, dy.shape[1], 1, w, NO_CODES, ONE, dx, dy.shape[1], onto, t.threads, t.scratch)
    return dx


def product_dw(dy: np.ndarray, x: np.ndarray, dw: np.ndarray) -> np.ndarray:
    """dw (N, K) += dy (M, N).T @ x (M, K)."""
    with team(SCRATCH) as t:
        multiply(AS_IT_IS, dy, 1, dy.shape[1], x, NO_CODES, ONE, dw, len(dy), True, t.threads, t.scratch)
    return dw


def flat(x: np.ndarray) -> np.ndarray:
    """(..., K)  ->  (M, K), C-contiguous; a copy only if it must be."""
    return np.ascontiguousarray(x.reshape(-1, x.shape[-1]))


def is_ours(*arrays: Any) -> bool:
    """Whether all are float32: other precisions are the reference's."""
    return all(a.dtype == np.float32 for a in arrays)


def given(out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """`out` where compiled code may write to it (float32, as large, in one piece), else a new array."""
    fits = out is not None and out.dtype == np.float32 and out.shape == shape and out.flags.c_contiguous
    return out if fits and out is not None else np.empty(shape, np.float32)


def delivered(y: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """The result, in `out` if there is one. Raises as NumPy does where it does not fit."""
    if out is None or y is out:
        return y
    np.copyto(out, y, casting="same_kind")
    return out


def linear(x: np.ndarray, w: Any, out: np.ndarray | None = None) -> np.ndarray:
    """As layers.linear; w may be ByteRows, or a Table."""
    weights = w.w_q if isinstance(w, ByteRows) else w
    if not is_ours(x) or x.shape[-1:] != weights.shape[1:] or not (weights is not w or isinstance(w, Table)
                                                                   or is_ours(w)):
        return delivered(reference.linear(x, _floats(w)), out)
    rows, y = flat(x), given(out, (*x.shape[:-1], len(weights)))
    flat_y = y.reshape(len(rows), len(weights))
    if isinstance(w, ByteRows):
        product_rows(rows, w, flat_y)
    elif isinstance(w, Table):
        product_table(rows, w, flat_y)
    else:
        product(rows, np.ascontiguousarray(w), flat_y)
    return delivered(y, out)


def _floats(w: Any) -> np.ndarray:
    """What the reference multiplies by."""
    if isinstance(w, ByteRows):
        return reference.prepare_rows(*w)
    return reference.prepare_table(w.whole()) if isinstance(w, Table) else w


def linear_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, dw: np.ndarray) -> np.ndarray:
    """As layers.linear_backward."""
    if (not is_ours(dy, x, w, dw) or not dw.flags.c_contiguous or dw.shape != w.shape
            or dy.shape != (*x.shape[:-1], len(w)) or x.shape[-1:] != w.shape[1:]):
        return reference.linear_backward(dy, x, w, dw)
    rows, dx = flat(dy), np.empty((dy.size // dy.shape[-1], w.shape[1]), np.float32)
    product_dw(rows, flat(x), dw)
    return product_dx(rows, np.ascontiguousarray(w), dx).reshape(x.shape)
