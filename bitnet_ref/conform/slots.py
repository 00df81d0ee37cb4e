"""Every decision at which a port can go wrong, as one small function each: a slot.

The graph (conform/graph) computes the homework through these; with this table it computes what the reference
computes, which tests hold to layers/ and model/. A known fault (conform/faults) is a table in which one or
two slots are replaced, so faults in different slots compose. A slot is as small as a line that a port may
get wrong, and no smaller. T tokens stand in rows, there is no batch axis.
Read after: conform/homework. Read next: conform/training_slots.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from bitnet_ref.layers.glu import relu2, swiglu
from bitnet_ref.layers.rmsnorm import rmsnorm
from bitnet_ref.layers.rope import rope, rope_table
from bitnet_ref.quant import FLOOR

Slots = SimpleNamespace
Array = np.ndarray

LOW_FIRST, HIGH_FIRST = (0, 2, 4, 6), (6, 4, 2, 0)

# ---- files: bytes -> trits and a scale -------------------------------------------------------------


def fields(packed: Array, shifts: tuple[int, ...]) -> Array:
    """The four 2-bit fields of every byte.   packed uint8 (n/4,)  ->  codes uint8 (4, n/4)"""
    return np.stack([packed >> s & 3 for s in shifts]).astype(np.uint8)


def row_blocks(codes: Array, shape: tuple[int, int]) -> Array:
    """Hugging Face: field i of byte (r, c) is row r + i N/4.   codes (4, n/4)  ->  flat codes (n,)"""
    return codes.reshape(-1)


def four_rows(codes: Array, shape: tuple[int, int]) -> Array:
    """I2_S, four rows to a byte: field i of byte (r, c) is row 4 r + i."""
    return codes.reshape(4, -1, shape[1]).transpose(1, 0, 2).reshape(-1)


def consecutive(codes: Array, shape: tuple[int, int]) -> Array:
    """Field i of byte m is element 4 m + i."""
    return codes.T.reshape(-1)


def blocks(codes: Array, shape: tuple[int, int], size: int) -> Array:
    """I2_S: blocks of `size` elements; field i of the block's byte j is element j + i size/4."""
    return codes.reshape(4, -1, size // 4).transpose(1, 0, 2).reshape(-1)


def blocks_of_128(codes: Array, shape: tuple[int, int]) -> Array:
    """I2_S on x86."""
    return blocks(codes, shape, 128)


def blocks_of_64(codes: Array, shape: tuple[int, int]) -> Array:
    """I2_S on ARM."""
    return blocks(codes, shape, 64)


# What a file stores: the order of elements, the first field's place. "plain" stores trits.
LAYOUTS: dict[str, tuple[str, tuple[int, ...]] | None] = {
    "plain": None, "hf": ("row_blocks", LOW_FIRST), "128": ("blocks_of_128", HIGH_FIRST),
    "64": ("blocks_of_64", HIGH_FIRST), "4row": ("four_rows", HIGH_FIRST)}


def decode(s: Slots, stored: Array, shape: tuple[int, int], layout: str) -> Array:
    """What is stored, uint8 (n/4,) or trits (N, K)  ->  w_q (N, K)."""
    if LAYOUTS[layout] is None:
        return s.rows_first(stored.reshape(-1), shape)
    order, shifts = LAYOUTS[layout]                                             # type: ignore[misc]
    codes = fields(stored.reshape(-1), s.bit_fields(shifts))
    return s.rows_first(s.code_map(s.order(order)(codes, shape)), shape)


def code_map(codes: Array) -> Array:
    """00 = -1, 01 = 0, 10 = +1."""
    return codes.astype(np.int8) - 1


def rows_first(flat: Array, shape: tuple[int, int]) -> Array:
    """Row after row: (out, in), the last axis runs fastest."""
    return flat.reshape(shape)


def stored_scale(stored: Any, inverse: bool) -> Any:
    """The multiplier: what the file stores, or its reciprocal where the file's family stores that."""
    return 1 / stored if inverse else stored


# ---- quantisers ------------------------------------------------------------------------------------


def absmax(x: Array) -> Array:
    """x (T, K)  ->  (T, 1): the largest magnitude of each token, floored."""
    return np.maximum(np.abs(x).max(axis=-1, keepdims=True), x.dtype.type(FLOOR))


def scaled(x: Array, a: Array) -> Array:
    """Multiply by the reciprocal scale; not yet rounded. Only a port without a floor meets a = 0."""
    return x * np.where(a == 0, 0, 127 / a)


def to_codes(s: Slots, z: Array) -> Array:
    """Round, then clamp."""
    return np.clip(s.round(z), -128, 127)


def spread(x_scale: Array, K: int) -> Array:
    """x_scale with one entry for every feature: some faults have scales per block, feature or tensor."""
    x_scale = np.atleast_2d(x_scale)
    return np.repeat(x_scale, -(-K // x_scale.shape[-1]), axis=-1)[:, :K]


def absmean(w: Array) -> Any:
    """w (N, K)  ->  (): the mean magnitude, floored."""
    return np.maximum(np.mean(np.abs(w)), w.dtype.type(FLOOR))


def to_trits(s: Slots, w: Array, mean: Any) -> Array:
    """Multiply by the reciprocal, round, clamp."""
    return np.clip(s.round(w * (1 / mean)), -1, 1)


# ---- the product -----------------------------------------------------------------------------------


def accumulate(x_q: Array, w_q: Array) -> Array:
    """The exact sum.   x_q (T, K)  w_q (N, K)  ->  (T, N)"""
    return x_q.astype(np.float64) @ w_q.T.astype(np.float64)


def product(s: Slots, x_q: Array, x_scale: Array, w_q: Array, w_scale: Any, x: Array | None = None) -> Array:
    """y = (x_q @ w_q.T) * (x_scale * w_scale).   ->  (T, N)"""
    x_q, x_scale = s.operand(x_q, x_scale, x)
    x_scale, w_scale = s.x_factor(x_scale), s.w_factor(w_scale)
    if np.size(x_scale) in (1, len(x_q)):                                       # one scale, or one per token
        return s.accumulate(x_q, w_q) * (np.reshape(x_scale, (-1, 1)) * w_scale)
    return s.accumulate(x_q * spread(x_scale, x_q.shape[-1]), w_q) * w_scale    # what wrong scales amount to


# ---- norms, positions, attention, gated unit, stream, head -----------------------------------------


def rstd(x: Array, eps: float) -> Array:
    """x (T, K)  ->  (T, 1)"""
    return rmsnorm(x, None, eps)[1]


def norm(s: Slots, x: Array, g: Array, eps: float) -> Array:
    """RMSNorm with gain."""
    return s.centre(x) * s.rstd(x, eps) * s.gain(g)


def entry_norm(s: Slots, x: Array, g: Array, sub: Array | None, eps: float) -> Array:
    """The norm before q, k and v. `sub` is the gain of the sub-norm, which has no business here."""
    return norm(s, x, g, eps)


def angles(positions: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """cos, sin (T, 1, Dh/2)"""
    return rope_table(positions, head_dim, theta, np.float64)


def turn_key(s: Slots, k: Array, cos: Array, sin: Array, R: int) -> Array:
    """k (T, KV, Dh), turned once, although R query heads read it."""
    return s.rotate(k, cos, sin)


def share_heads(k: Array, R: int) -> Array:
    """(T, KV, Dh)  ->  (T, H, Dh): head h reads key/value head h // R."""
    return np.repeat(k, R, axis=1)


def visible(T: int) -> Array:
    """(T, T): whether query t sees key s."""
    return np.tri(T, dtype=bool)


def probabilities(s: Slots, q: Array, k: Array) -> Array:
    """q (T, H, Dh)  k (T, KV, Dh)  ->  (H, T, T)"""
    T, H, Dh = q.shape
    scores = np.einsum("thd,shd->hts", q, s.share_heads(k, H // k.shape[1])) * s.score_scale(Dh)
    masked = np.where(s.visible(T), scores, -np.inf)
    p = np.exp(masked - masked.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def mix(s: Slots, p: Array, v: Array) -> Array:
    """p (H, T, T)  v (T, KV, Dh)  ->  (T, H Dh)"""
    return np.einsum("hts,shd->thd", p, s.share_heads(v, len(p) // v.shape[1])).reshape(len(v), -1)


REFERENCE: dict[str, Any] = {
    "bit_fields": lambda shifts: shifts,
    "order": lambda name: globals()[name],
    "code_map": code_map,
    "rows_first": rows_first,
    "stored_scale": stored_scale,
    "round": np.rint,
    "absmax": absmax,
    "scaled": scaled,
    "to_codes": to_codes,
    "x_scale": lambda a: a / 127,
    "absmean": absmean,
    "to_trits": to_trits,
    "accumulate": accumulate,
    "operand": lambda x_q, x_scale, x: (x_q, x_scale),
    "x_factor": lambda x_scale: x_scale,
    "w_factor": lambda w_scale: w_scale,
    "centre": lambda x: x,
    "rstd": rstd,
    "gain": lambda g: g,
    "entry_norm": entry_norm,
    "attn_sub_norm": norm,
    "ffn_sub_norm": norm,
    "positions": np.arange,
    "theta": lambda theta: theta,
    "angles": angles,
    "rotate": lambda x, cos, sin: rope(x[None], cos, sin)[0],
    "turn_key": turn_key,
    "turn_value": lambda s, v, cos, sin: v,
    "share_heads": share_heads,
    "score_scale": lambda head_dim: head_dim**-0.5,
    "visible": visible,
    "relu2": relu2,
    "swiglu": swiglu,
    "gate_and_up": lambda gate, up: (gate, up),
    "add": np.add,
    "embedding": lambda ids, table: table[ids],
    "head": lambda table, tied, got: table,
    "got": None,                             # a fault may look at the port's own tensor: where it is zeros
}
