"""A model's weights as the whole-model path reads them: one arena of packed panels, and a table of where.

Made once for a set of weights, at the first prefill, and kept beside them. Ternary matrices are packed; full
ones (the twin, the head) become panels of sixteen outputs in the precision they are stored in.
Read after: kernels/numba_cpu/train_step. Read next: kernels/numba_cpu/frame.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from bitnet_ref.kernels.numba_cpu.bitlinear import MOST_K, Prepared, packed_shape
from bitnet_ref.kernels.numba_cpu.cache import compiled_parallel
from bitnet_ref.kernels.numba_cpu.linear import ByteRows, Table
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.tiles import PANEL

PLACES = ("attn.wq", "attn.wk", "attn.wv", "attn.wo", "ffn.w_gate", "ffn.w_up", "ffn.w_down")
Q, K, V, O, GATE, UP, DOWN = range(7)
# What the table says of a projection: its kind, where it begins in the arena (bytes), outputs, inputs, blocks
# of a packed panel; whether its input is normalised, by how long a gain, and quantised anew for it.
KIND, AT, N_OUT, N_IN, BLOCKS, NORMED, GAIN, FRESH, FIELDS = range(9)
PACKED_I2, PACKED_B3, FLOAT32, FLOAT16, INT8, BFLOAT16 = range(6)
KINDS = {"i2": PACKED_I2, "b3": PACKED_B3}
SIZE = {FLOAT32: 4, FLOAT16: 2, INT8: 1, BFLOAT16: 2}      # bytes of a weight
HALVES = {"float16": FLOAT16, "bfloat16": BFLOAT16}
N_LAYERS, HEAD_DIM, RELU2 = 0, 4, 7          # places in Tables.dims


class Tables(NamedTuple):
    """The arena and its tables, as compiled code takes them. Row L of each table is the head."""

    arena: np.ndarray            # (bytes,), uint8
    table: np.ndarray            # (L + 1, 7, FIELDS), int64
    scales: np.ndarray           # (L + 1, 7): w_scale of ternary matrices
    gains: np.ndarray            # (L + 1, 7, largest width), float32
    dims: np.ndarray             # int64: L, D, H, KV, Dh, F, V, relu2
    eps: np.ndarray              # (1,): of the norms


class Program(NamedTuple):
    """The tables, and what is asked of them before a call."""

    tables: Tables
    widest: int                  # inputs of the widest product
    head_dim: int
    work: int                    # multiply-adds of a row
    floats: bool                 # whether a product is in float32
    buffers: dict[Any, Any]      # of calls by their kind, whatever the texts


def build(plan: Any, w: dict[str, Any], bits: str | None = None) -> Program:
    """The program of the weights `w` of `plan`. `bits`: pack as i2 or b3 (default: as prepared).

    Matrices go into the arena one by one: beside it no second copy is made of all.
    """
    cfg = plan.cfg
    L, width = cfg.n_layers, max(cfg.d_model, cfg.d_ff)
    table, scales = np.zeros((L + 1, 7, FIELDS), np.int64), np.zeros((L + 1, 7), np.float32)
    gains, parts, end = np.zeros((L + 1, 7, width), np.float32), [], 0
    for l in range(L + 1):
        entries = [e for place in plan.layout for e in place] if l < L else plan.head_entry
        prefix = f"layers.{l}." if l < L else ""
        for entry in entries:
            for i, name in enumerate(entry.weights):
                p, matrix = PLACES.index(name) if l < L else 0, w[prefix + name]
                fields, size = _fields(matrix, bits)
                scales[l, p] = matrix.w_scale if isinstance(matrix, Prepared) else 1
                gain = w[prefix + entry.norm] if entry.norm not in (None, "free") else np.zeros(0, np.float32)
                gains[l, p, :len(gain)] = gain
                table[l, p] = (fields[0], end, *fields[1:], entry.norm is not None, len(gain), i == 0)
                parts.append((matrix, fields[0], slice(end, end + size)))
                end += (size + 63) // 64 * 64
    arena = aligned(end)
    for matrix, kind, place in parts:
        _fill(matrix, kind, arena[place])
    dims = np.array([L, cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.d_ff, cfg.vocab_size,
                     cfg.glu == "relu2"])
    return Program(Tables(arena, table, scales, gains, dims,
                          np.full(1, cfg.norm_eps, np.float32)), int(table[:, :, N_IN].max()),
                   cfg.head_dim, int(np.sum(table[:, :, N_OUT] * table[:, :, N_IN])),
                   bool((table[:, :, KIND] >= FLOAT32).any()), {})


def _fields(w: Any, bits: str | None) -> tuple[tuple[int, int, int, int], int]:
    """(kind, outputs, inputs, blocks) of one matrix, and its bytes in the arena."""
    if isinstance(w, Prepared):
        how = bits or w.bits
        how = "i2" if w.shape[1] > MOST_K[how] else how
        (n, k), shape = w.shape, packed_shape(w.shape, how)
        return (KINDS[how], n, k, shape[1]), int(np.prod(shape))
    kind = INT8 if isinstance(w, ByteRows) else HALVES.get(w.dtype.name, FLOAT32)
    n, k = w.w_q.shape if isinstance(w, ByteRows) else w.shape
    panels = -(-n // PANEL)
    return (kind, n, k, 0), panels * PANEL * (k * SIZE[kind] + 4 * (kind == INT8))


def _fill(w: Any, kind: int, part: np.ndarray) -> None:
    """One matrix into its part of the arena. The scales of int8 rows follow their panels."""
    if isinstance(w, Prepared):
        w.move(next(bits for bits, k in KINDS.items() if k == kind), part)
        return
    full = w.w_q if isinstance(w, ByteRows) else w.whole() if isinstance(w, Table) else w
    if kind == FLOAT32:
        full = full.astype(np.float32, copy=False)
    (n, k), panels = full.shape, -(-len(full) // PANEL)
    end = panels * PANEL * k * SIZE[kind]
    words = f"u{SIZE[kind]}"                               # the bits move, their meaning does not
    with team() as t:
        _into_panels(np.ascontiguousarray(full).view(words), part[:end].view(words).reshape(panels, k, PANEL),
                     t.threads)
    if isinstance(w, ByteRows):
        part[end:].view(np.float32)[:n] = w.w_scale.reshape(-1)
    if isinstance(w, Table):                               # the arena has it now, and nobody else need
        w.live_in(part[:end].view(words).reshape(panels, k, PANEL))


@compiled_parallel
def _into_panels(w, panels, threads):
    n_out, n_in = w.shape
    for t in prange(threads):
        for p in range(len(panels) * t // threads, len(panels) * (t + 1) // threads):
            for k0 in range(0, n_in, PANEL):
                for i in range(min(PANEL, n_out - PANEL * p)):
                    for k in range(k0, min(k0 + PANEL, n_in)):
                        panels[p, k, i] = w[PANEL * p + i, k]


def aligned(n_bytes: int) -> np.ndarray:
    """uint8 (n_bytes,), zeros, that begins at a multiple of 64 bytes."""
    whole = np.zeros(n_bytes + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start:start + n_bytes]
