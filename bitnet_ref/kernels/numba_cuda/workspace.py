"""The device's memory of a training step: what backward needs of each layer, and what is needed briefly.

Made once for a shape of micro-batches. A place of a block is the entries that read one input; the results of
an entry's matrices stand side by side in its rows, the entries one after the other.
Read after: kernels/numba_cuda/vectors. Read next: kernels/numba_cuda/train_step.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.kernels.numba_cuda.attention import Queries, tiled
from bitnet_ref.kernels.numba_cuda.bitlinear import padded
from bitnet_ref.kernels.numba_cuda.memory import Array, Device
from bitnet_ref.layers.rope import rope_table

GRAIN = 512                              # bytes of which memory is handed out in multiples
LOGITS, LEAST = 1 << 26, 64              # logits held at a time, but at least LEAST rows of them


class Column(NamedTuple):
    """Where the result of one matrix is in the memory of its place: its first number, its width, its rows."""

    start: int
    width: int
    apart: int


class Codes(NamedTuple):
    """An input as products of trits read it, and rstd where it is normalised."""

    x_q: Array                   # int8, M rows of K codes
    x_scale: Array               # (M,)
    x_sum: Array                 # (M,), int32
    rstd: Array                  # (M,)


class Floats(NamedTuple):
    """An input as products of floats read it, and rstd where it is normalised."""

    n: Array | None              # (M, K); None where it is read as it is
    rstd: Array                  # (M,)


Entered = Codes | Floats


class Saved(NamedTuple):
    """What a layer keeps until its backward."""

    x: Array                     # (M, D)
    q: Array                     # (B, T, H, Dh), turned
    k: Array                     # (B, KV, T, Dh), turned
    v: Array                     # (B, KV, T, Dh)
    o: Array                     # (B, T, H, Dh)
    lse: Array                   # (B, T, H)
    h: Array                     # (M, D)
    gate_up: Array               # M 2F numbers, as the place has them
    u: Array                     # (M, F)
    entered: dict[str, Entered]  # by the first weight that reads it


class Workspace(NamedTuple):
    """Arrays by name; float32 unless said."""

    B: int
    T: int
    layers: list[Saved]
    x: Array                     # (M, D): the final stream
    head: Entered
    cos: Array                   # (T, Dh / 2)
    sin: Array
    queries: Queries             # of attention: rows by text and place
    ids: Array                   # (M,), int32
    targets: Array               # (M,), int32
    rows: Array                  # (M,), (M + 1,) and (M,), int32: embedding_backward.Rows
    starts: Array
    order: Array
    qkv: Array                   # M (D + 2 KV Dh) numbers: what attention reads, and its gradient
    dx: Array                    # (M, D): gradient of the stream
    do: Array                    # (B, T, H, Dh)
    delta: Array                 # (B, T, H)
    dq: Array                    # (B, T, H, Dh)
    dk: Array                    # (B, KV, T, Dh)
    dv: Array                    # (B, KV, T, Dh)
    du: Array                    # (M, F)
    dgate_up: Array              # as gate_up
    dn: Array                    # M times the widest input: gradient behind a norm
    logits: Array                # (chunk, V)
    losses: Array                # (M,)


def columns(place: Any, widths: dict[str, int], M: int) -> dict[str, Column]:
    """Where the result of each matrix of a place is. `widths`: of the matrices."""
    found, start = {}, 0
    for entry in place:
        apart, within = sum(widths[name] for name in entry.weights), 0
        for name in entry.weights:
            found[name] = Column(start + within, widths[name], apart)
            within += widths[name]
        start += M * apart
    return found


def rows_at_once(M: int, V: int) -> int:
    """Of logits."""
    return min(M, max(LEAST, LOGITS // V))


class Tally:
    """Stands for a device whose memory is only counted, in bytes, before any of it is taken."""

    def __init__(self) -> None:
        self.n_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """As of a device, but nowhere."""
        made = Array(0, shape, np.dtype(dtype), None)      # type: ignore[arg-type]
        self.n_bytes += -(-made.nbytes // GRAIN) * GRAIN
        return made

    zeros = empty

    def upload(self, values: np.ndarray) -> Array:
        """As of a device."""
        return self.empty(values.shape, values.dtype)


def workspace(device: Device, plan: Any, B: int, T: int) -> Workspace:
    """For micro-batches of B sequences of T tokens. Raises CheckError, with the numbers, where the device has
    not the memory.
    """
    tally = Tally()
    _arrays(tally, plan, B, T)
    device.require(tally.n_bytes, f"a training step of {B} x {T} tokens")
    return _arrays(device, plan, B, T)


def _arrays(device: Device | Tally, plan: Any, B: int, T: int) -> Workspace:
    cfg, M = plan.cfg, B * T
    D, F, V, H, KV, Dh = cfg.d_model, cfg.d_ff, cfg.vocab_size, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim

    def new(*shape: int, dtype: type = np.float32) -> Array:
        return device.empty(shape, dtype)

    def entered(width: int, normed: bool, ternary: bool) -> Entered:
        if ternary:                                        # zeros: what stands between K and padded(K) stays
            codes = device.zeros((M, padded(width)), np.int8)
            return Codes(codes, new(M), new(M, dtype=np.int32), new(M))
        return Floats(new(M, width) if normed else None, new(M))

    layers = []
    for _ in range(cfg.n_layers):
        inputs = {e.weights[0]: entered(width, e.norm is not None, cfg.linear == "ternary")
                  for place, width in zip(plan.layout, (D, D, D, F)) for e in place}
        layers.append(Saved(new(M, D), new(B, T, H, Dh), new(B, KV, T, Dh), new(B, KV, T, Dh),
                            new(B, T, H, Dh), new(B, T, H), new(M, D), new(M * 2 * F), new(M, F), inputs))
    slot, position = np.divmod(np.arange(M, dtype=np.int32), np.int32(T))
    queries = Queries(M, *map(device.upload, (slot, position, tiled([T] * B))))
    cos, sin = (device.upload(a.reshape(T, -1)) for a in rope_table(np.arange(T), Dh, cfg.rope_theta))
    ids, targets, rows, starts, order = (new(n, dtype=np.int32) for n in (M, M, M, M + 1, M))
    return Workspace(B, T, layers, new(M, D), entered(D, True, cfg.head == "ternary"), cos, sin,
                     queries, ids, targets, rows, starts, order,
                     new(M * (D + 2 * KV * Dh)), new(M, D), new(B, T, H, Dh), new(B, T, H), new(B, T, H, Dh),
                     new(B, KV, T, Dh), new(B, KV, T, Dh), new(M, F), new(M * 2 * F), new(M * max(D, F)),
                     new(rows_at_once(M, V), V), new(M))
