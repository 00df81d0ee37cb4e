"""The memory of a training step, carved once: what backward needs of each layer, and what is needed briefly.

Its size is known before anything is allocated. Nothing else is allocated per step.
Read after: kernels/numba_cpu/adamw. Read next: kernels/numba_cpu/train_step.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.kernels.numba_cpu.bf16 import buffer_size
from bitnet_ref.kernels.numba_cpu.cross_entropy import rows_at_once
from bitnet_ref.kernels.numba_cpu.program import aligned


class Entered(NamedTuple):
    """An input as its products read it: codes and their scales, or floats; rstd where it is normalised."""

    x_q: np.ndarray              # int8 (M, K), empty for floats
    x_scale: np.ndarray          # (M,)
    rstd: np.ndarray             # (M,)
    floats: np.ndarray           # (M, K), empty for codes and for floats that are not normalised


class Saved(NamedTuple):
    """What a layer keeps until its backward."""

    x: np.ndarray                # (M, D)
    q: np.ndarray                # (M, D), turned
    k: np.ndarray                # (M, KV Dh), turned
    v: np.ndarray                # (M, KV Dh)
    o: np.ndarray                # (M, D)
    lse: np.ndarray              # (B, KV, R, T, 1)
    h: np.ndarray                # (M, D)
    gate: np.ndarray             # (M, F)
    up: np.ndarray               # (M, F)
    u: np.ndarray                # (M, F)
    entered: dict[str, Entered]  # by the first weight that reads it


class Workspace(NamedTuple):
    """Arrays by name; float32 unless said."""

    B: int
    T: int
    layers: list[Saved]
    x: np.ndarray                # (M, D): the final stream
    head: Entered
    a: np.ndarray                # (M, D): what is added to the stream
    dx: np.ndarray               # (M, D): gradient of the stream
    do: np.ndarray               # (M, D)
    dq: np.ndarray               # (M, D)
    dk: np.ndarray               # (M, KV Dh)
    dv: np.ndarray               # (M, KV Dh)
    du: np.ndarray               # (M, F)
    dgate: np.ndarray            # (M, F)
    dup: np.ndarray              # (M, F)
    dn: np.ndarray               # (M, widest input): gradient behind a norm
    logits: np.ndarray           # (chunk, V)
    lse: np.ndarray              # (M,)
    losses: np.ndarray           # (M,)
    pairs: np.ndarray            # uint16: a gradient in bfloat16; empty for --backward float32
    ones: np.ndarray             # (M,), as long
    n_bytes: int


class Carver:
    """Hands out parts of one block of memory; with no block yet, only counts."""

    def __init__(self, memory: np.ndarray | None) -> None:
        self.memory, self.end = memory, 0

    def __call__(self, *shape: int, dtype: type = np.float32) -> np.ndarray:
        """An array of this shape."""
        begin, size = self.end, math.prod(shape) * np.dtype(dtype).itemsize
        self.end += (size + 63) // 64 * 64
        if self.memory is None:
            return np.broadcast_to(dtype(0), shape)
        return self.memory[begin:begin + size].view(dtype).reshape(shape)


def workspace(plan: Any, B: int, T: int, bf16: bool = False) -> Workspace:
    """For micro-batches of B sequences of T tokens."""
    ws = _carved(plan, B, T, Carver(aligned(needed(plan, B, T, bf16))), bf16)
    ws.ones[:] = 1
    return ws


def needed(plan: Any, B: int, T: int, bf16: bool = False) -> int:
    """Its bytes; nothing is allocated."""
    return _carved(plan, B, T, Carver(None), bf16).n_bytes


def _carved(plan: Any, B: int, T: int, new: Carver, bf16: bool) -> Workspace:
    cfg, M = plan.cfg, B * T
    D, F, V, KV = cfg.d_model, cfg.d_ff, cfg.vocab_size, cfg.n_kv_heads * cfg.head_dim

    def entered(width: int, normed: bool, ternary: bool) -> Entered:
        kept = normed and not ternary
        codes = new(M if ternary else 0, width, dtype=np.int8)
        return Entered(codes, new(M), new(M), new(M if kept else 0, width))

    layers = []
    for _ in range(cfg.n_layers):
        inputs = {e.weights[0]: entered(width, e.norm is not None, cfg.linear == "ternary")
                  for place, width in zip(plan.layout, (D, D, D, F)) for e in place}
        layers.append(Saved(new(M, D), new(M, D), new(M, KV), new(M, KV), new(M, D),
                            new(B, cfg.n_kv_heads, cfg.n_heads // cfg.n_kv_heads, T, 1), new(M, D), new(M, F),
                            new(M, F), new(M, F), inputs))
    parts = (new(M, D), entered(D, True, cfg.head == "ternary"), new(M, D), new(M, D), new(M, D), new(M, D),
             new(M, KV), new(M, KV), new(M, F), new(M, F), new(M, F), new(M, max(D, F)),
             new(rows_at_once(M, V), V), new(M), new(M),
             new(max(buffer_size(M, max(D, F)), buffer_size(rows_at_once(M, V), V)) if bf16 else 0,
                 dtype=np.uint16), new(M if bf16 else 0))
    return Workspace(B, T, layers, *parts, new.end)
