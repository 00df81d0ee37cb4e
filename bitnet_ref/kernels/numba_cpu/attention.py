"""Causal attention on the float32 tile: a few queries at a time, so memory is linear in the length.

Keys lie in panels of sixteen, a feature after the other, so scores are sixteen to a vector; values lie as
they come. For TILE queries all scores are made, then the softmax, then the weighted values: one chain per
output in the order of the keys, in which a masked key adds a zero. So a query gives the same bits alone with
a cache (decode) as among others (prefill). Backward makes the probabilities of QUERIES queries again and runs
the five products on the same tile.
Read after: kernels/numba_cpu/bf16. Read next: kernels/numba_cpu/rmsnorm.
"""

import numpy as np
from numba import prange

from bitnet_ref import layers as reference
from bitnet_ref.kernels.numba_cpu.cache import compiled, compiled_parallel
from bitnet_ref.kernels.numba_cpu.linear import is_ours
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.tiles import PANEL, TIER, emit_floats, kernel
from bitnet_ref.kernels.numba_cpu.vectors import exp, softmax_row

TILE, WIDE = TIER.float_rows, TIER.float_panels          # queries and panels of a register tile
QUERIES = 8 * TILE                                       # of a block of the backward pass
_tile = kernel(emit_floats, rows=TILE, panels=WIDE, ahead=4096)
_tile_1 = kernel(emit_floats, rows=TILE, panels=1)
_row = kernel(emit_floats, rows=1, panels=WIDE)
_row_1 = kernel(emit_floats, rows=1, panels=1)
_tile_16, _tile_1_16 = (kernel(emit_floats, rows=TILE, panels=n, kind="float16") for n in (WIDE, 1))
_row_16, _row_1_16 = (kernel(emit_floats, rows=1, panels=n, kind="float16") for n in (WIDE, 1))
_onto = kernel(emit_floats, rows=TILE, panels=WIDE, onto="sum")
_onto_1 = kernel(emit_floats, rows=TILE, panels=1, onto="sum")


@compiled
def few(half, rows, panels, a, a_row, a_k, b, b_panel, b_k, n_k, c, ldc):
    """c (rows, 16 panels) = a b for up to TILE rows, a register tile after the other. Strides in bytes.

    Two rows or more run as TILE: `a` and `c` must have TILE rows; what lies in those beyond is not looked at.
    `half`: None for b in float32, or True for float16; being a type, it leaves only one of the two compiled.
    """
    p = 0
    while p < panels:
        wide = panels - p >= WIDE
        args = (a, a_row if rows > 1 else 0, a_k, b + p * b_panel, b_panel, b_k, n_k, c + 4 * PANEL * p,
                ldc if rows > 1 else 0)
        if half is None:
            _one_of(rows > 1, wide, args)
        else:
            _one_of_16(rows > 1, wide, args)
        p += WIDE if wide else 1


@compiled
def _one_of(several, wide, args):
    if several:
        if wide:
            _tile(args)
        else:
            _tile_1(args)
    elif wide:
        _row(args)
    else:
        _row_1(args)


@compiled
def _one_of_16(several, wide, args):
    if several:
        if wide:
            _tile_16(args)
        else:
            _tile_1_16(args)
    elif wide:
        _row_16(args)
    else:
        _row_1_16(args)


@compiled
def onto(rows, panels, a, a_row, a_k, b, b_panel, b_k, n_k, c, ldc):
    """c (rows, 16 panels) += a b, rows a multiple of TILE."""
    for r in range(0, rows, TILE):
        p = 0
        while p < panels:
            wide = panels - p >= WIDE
            out = c + r * ldc + 4 * PANEL * p
            at = (a + r * a_row, a_row, a_k, b + p * b_panel, b_panel, b_k, n_k, out, ldc)
            if wide:
                _onto(at)
            else:
                _onto_1(at)
            p += WIDE if wide else 1


@compiled
def padded(n, unit):
    """n rounded up to a multiple of `unit`."""
    return (n + unit - 1) // unit * unit


@compiled
def into_panels(rows, panels):
    """rows (S, Dh, strided)  ->  panels (ceil(S/16), Dh, 16); what lacks to sixteen is zeros."""
    n, width = rows.shape
    for p in range(len(panels)):
        for i in range(PANEL):
            s = PANEL * p + i
            for d in range(width):
                panels[p, d, i] = rows[s, d] if s < n else np.float32(0)


@compiled
def weigh(half, rows, n_first, span, q, ldq, n_d, keys, values, wide, scores, lanes, totals, o, lse):
    """o and log-sum-exp of up to TILE queries: `span` of a head, then as many of the next with the same keys.

    The first of a head sees n_first keys, each next one more.
    q (rows, n_d), scaled; keys: address of panels (n_d, 16); values: address of rows (wide,), both in float32
    or, as few() says, `half`; scores (TILE, all keys padded to 16); o (TILE, n_d padded to 16); lanes,
    totals: scratch.
    """
    n_keys = n_first + span - 1
    panels = (n_keys + PANEL - 1) // PANEL
    lds, size = 4 * scores.shape[1], 4 if half is None else 2
    few(half, rows, panels, q, ldq, 4, keys, size * n_d * PANEL, size * PANEL, n_d, scores.ctypes.data,
        lds)                                                                    # (AT.1)
    for r in range(rows):
        seen = n_first + r % span
        total, top = softmax_row(scores[r], seen, lanes)                        # (AT.3)
        for j in range(padded(seen, PANEL), PANEL * panels):
            scores[r, j] = 0                                                    # (AT.2)
        totals[r] = total
        lse[r] = np.log(total) + top
    few(half, rows, padded(n_d, PANEL) // PANEL, scores.ctypes.data, lds, 4, values, size * PANEL,
        size * wide, n_keys, o.ctypes.data, 4 * o.shape[1])                     # (AT.4)
    for r in range(rows):
        inverse = np.float32(1) / totals[r]
        for d in range(n_d):
            o[r, d] *= inverse


@compiled
def _floats(scratch, at, rows, columns):
    """A float32 (rows, columns) of the scratch, and where the next begins."""
    end = at + rows * columns
    return scratch[at:end].reshape(rows, columns), padded(end, PANEL)


@compiled
def forward_scratch(S, Dh):
    """Floats that a thread needs: keys and values of a head, scores, queries, results."""
    wide = padded(Dh, PANEL)
    return padded(S, PANEL) * (Dh + TILE) + S * wide + 2 * TILE * wide + 7 * PANEL


@compiled_parallel
def _forward(q, k, v, o, lse, scratch, threads):
    B, T, H, Dh = q.shape
    S, KV = k.shape[1], k.shape[2]
    R, wide, scale = H // KV, padded(Dh, PANEL), np.float32(Dh ** -0.5)
    for t in prange(threads):
        floats = scratch[t].view(np.float32)
        keys, at = _floats(floats, 0, padded(S, PANEL) // PANEL, Dh * PANEL)
        values, at = _floats(floats, at, S, wide)
        scores, at = _floats(floats, at, TILE, padded(S, PANEL))
        queries, at = _floats(floats, at, TILE, wide)
        results, at = _floats(floats, at, TILE, wide)
        lanes, totals = floats[at:at + PANEL], floats[at + PANEL:at + 2 * PANEL]
        for task in range(B * KV * t // threads, B * KV * (t + 1) // threads):
            b, g = task // KV, task % KV
            into_panels(k[b, :, g], keys.reshape(len(keys), Dh, PANEL))
            values[:, Dh:] = 0
            values[:, :Dh] = v[b, :, g]
            for h in range(g * R, (g + 1) * R):
                for i in range(0, T, TILE):
                    rows = min(TILE, T - i)
                    for r in range(rows):
                        for d in range(Dh):
                            queries[r, d] = q[b, i + r, h, d] * scale
                    weigh(None, rows, S - T + i + 1, rows, queries.ctypes.data, 4 * wide, Dh,
                          keys.ctypes.data, values.ctypes.data, wide, scores, lanes, totals, results,
                          lse[b, g, h - g * R, i:i + rows, 0])
                    for r in range(rows):
                        o[b, i + r, h] = results[r, :Dh]


@compiled
def backward_scratch(T, S, Dh):
    """Floats that a thread needs: keys and values in panels and rows, gradients, two blocks of scores."""
    wide, keys = padded(Dh, PANEL), padded(padded(S, PANEL), TILE)
    return keys * (2 * Dh + 4 * wide + 2 * QUERIES) + 3 * QUERIES * wide + QUERIES + 12 * PANEL


@compiled_parallel
def _backward(do, q, k, v, o, lse, dq, dk, dv, scratch, threads):
    B, T, H, Dh = q.shape
    S, KV = k.shape[1], k.shape[2]
    R, wide, scale = H // KV, padded(Dh, PANEL), np.float32(Dh ** -0.5)
    n_keys = padded(padded(S, PANEL), TILE)
    for t in prange(threads):
        floats = scratch[t].view(np.float32)
        k_panels, at = _floats(floats, 0, padded(S, PANEL) // PANEL, Dh * PANEL)
        v_panels, at = _floats(floats, at, padded(S, PANEL) // PANEL, Dh * PANEL)
        k_rows, at = _floats(floats, at, n_keys, wide)
        dk_sum, at = _floats(floats, at, n_keys, wide)
        dv_sum, at = _floats(floats, at, n_keys, wide)
        p, at = _floats(floats, at, QUERIES, n_keys)
        ds, at = _floats(floats, at, QUERIES, n_keys)
        q_rows, at = _floats(floats, at, QUERIES, wide)
        do_rows, at = _floats(floats, at, QUERIES, wide)
        dq_rows, at = _floats(floats, at, QUERIES, wide)
        delta = floats[at:at + QUERIES]
        for task in range(B * KV * t // threads, B * KV * (t + 1) // threads):
            b, g = task // KV, task % KV
            into_panels(k[b, :, g], k_panels.reshape(len(k_panels), Dh, PANEL))
            into_panels(v[b, :, g], v_panels.reshape(len(v_panels), Dh, PANEL))
            k_rows[:] = 0
            k_rows[:S, :Dh] = k[b, :, g]
            dk_sum[:], dv_sum[:] = 0, 0
            for h in range(g * R, (g + 1) * R):
                for i in range(0, T, QUERIES):
                    rows = min(QUERIES, T - i)
                    last = S - T + i + rows                # keys that the last of them sees
                    panels = padded(last, PANEL) // PANEL
                    for r in range(QUERIES):
                        q_rows[r], do_rows[r], dq_rows[r], delta[r] = 0, 0, 0, 0
                        if r < rows:
                            total = np.float64(0)
                            for d in range(Dh):
                                q_rows[r, d] = q[b, i + r, h, d] * scale
                                do_rows[r, d] = do[b, i + r, h, d]
                                total += np.float64(do[b, i + r, h, d] * o[b, i + r, h, d])
                            delta[r] = np.float32(total)                        # (AT.8)
                    for r in range(0, QUERIES, TILE):
                        few(None, TILE, panels, q_rows[r].ctypes.data, 4 * wide, 4, k_panels.ctypes.data,
                            4 * Dh * PANEL, 4 * PANEL, Dh, p[r].ctypes.data, 4 * n_keys)
                        few(None, TILE, panels, do_rows[r].ctypes.data, 4 * wide, 4, v_panels.ctypes.data,
                            4 * Dh * PANEL, 4 * PANEL, Dh, ds[r].ctypes.data, 4 * n_keys)  # (AT.7)
                    for r in range(QUERIES):
                        seen = S - T + i + r + 1 if r < rows else 0
                        shift = lse[b, g, h - g * R, i + r, 0] if r < rows else np.float32(0)
                        row, drow = p[r], ds[r]
                        for j in range(seen):
                            row[j] = exp(row[j] - shift)                        # (AT.5)
                        for j in range(seen):
                            drow[j] = (drow[j] - delta[r]) * row[j]
                        row[seen:padded(PANEL * panels, TILE)] = 0
                        drow[seen:padded(PANEL * panels, TILE)] = 0
                    n_rows = padded(last, TILE)
                    at_p, at_ds = p.ctypes.data, ds.ctypes.data
                    onto(n_rows, wide // PANEL, at_p, 4, 4 * n_keys, do_rows.ctypes.data, 4 * PANEL, 4 * wide,
                         rows, dv_sum.ctypes.data, 4 * wide)                    # (AT.6)
                    onto(n_rows, wide // PANEL, at_ds, 4, 4 * n_keys, q_rows.ctypes.data, 4 * PANEL, 4 * wide,
                         rows, dk_sum.ctypes.data, 4 * wide)                    # (AT.10)
                    onto(QUERIES, wide // PANEL, at_ds, 4 * n_keys, 4, k_rows.ctypes.data, 4 * PANEL,
                         4 * wide, last, dq_rows.ctypes.data, 4 * wide)                   # (AT.9)
                    for r in range(rows):
                        for d in range(Dh):
                            dq[b, i + r, h, d] = dq_rows[r, d] * scale
            dk[b, :, g] = dk_sum[:S, :Dh]
            dv[b, :, g] = dv_sum[:S, :Dh]


def forward(q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray, lse: np.ndarray) -> None:
    """o (B, T, H, Dh), lse (B, KV, R, T, 1) of q (B, T, H, Dh), k, v (B, S, KV, Dh). All float32."""
    with team(4 * forward_scratch(k.shape[1], q.shape[3])) as t:
        _forward(q, k, v, o, lse, t.scratch, t.threads)


def backward(do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray, lse: np.ndarray,
             dq: np.ndarray, dk: np.ndarray, dv: np.ndarray) -> None:
    """dq, dk, dv are overwritten."""
    with team(4 * backward_scratch(q.shape[1], k.shape[1], q.shape[3])) as t:
        _backward(do, q, k, v, o, lse, dq, dk, dv, t.scratch, t.threads)


def _fits(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> bool:
    """Whether compiled code may read these; what does not fit is left to the reference to refuse."""
    (B, T, H, Dh), (S, KV) = q.shape, k.shape[1:3]
    return k.shape == v.shape == (B, S, KV, Dh) and H % KV == 0 and T <= S


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As layers.attention."""
    if not is_ours(q, k, v) or not _fits(q, k, v):
        return reference.attention(q, k, v)
    B, T, H, _ = q.shape
    o, lse = np.empty(q.shape, np.float32), np.empty((B, k.shape[2], H // k.shape[2], T, 1), np.float32)
    contiguous = np.ascontiguousarray
    forward(contiguous(q), contiguous(k), contiguous(v), o, lse)
    return o, lse


def attention_backward(do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray,
                       lse: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As layers.attention_backward."""
    if not is_ours(do, q, k, v, o, lse) or not _fits(q, k, v) or not q.shape == o.shape == do.shape:
        return reference.attention_backward(do, q, k, v, o, lse)
    do, q, k, v, o, lse = (np.ascontiguousarray(a) for a in (do, q, k, v, o, lse))
    dq, dk, dv = np.empty(q.shape, np.float32), np.empty(k.shape, np.float32), np.empty(k.shape, np.float32)
    backward(do, q, k, v, o, lse, dq, dk, dv)
    return dq, dk, dv
