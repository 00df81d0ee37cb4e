"""Faults of the model's forward pass: norms, positions, attention, gated unit, stream, embedding.

Read after: conform/faults/quantisers. Read next: conform/faults/training.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref.conform import slots as op
from bitnet_ref.layers.glu import relu2, swiglu

Table = dict[str, Callable[..., Any]]
Array = np.ndarray


def sub_norm_missing() -> list[Table]:
    """A sub-norm (attn_sub_norm, ffn_sub_norm) is not applied.
    To do: RMSNorm the attention's result before wo, and the gated unit's before w_down.
    """
    def none(s: Any, x: Array, g: Array, eps: float) -> Array:
        return x

    attn, ffn = {"attn_sub_norm": none}, {"ffn_sub_norm": none}
    return [attn, ffn, attn | ffn]


def sub_norm_before_projections() -> Table:
    """attn_sub_norm is applied before q, k and v, not to the attention's result.
    To do: attn_norm before q, k, v; attn_sub_norm between attention and wo.
    """
    def entry(s: Any, x: Array, g: Array, sub: Array | None, eps: float) -> Array:
        n = op.norm(s, x, g, eps)
        return n if sub is None else op.norm(s, n, sub, eps)

    return {"entry_norm": entry, "attn_sub_norm": lambda s, x, g, eps: x}


def norm_gain_dropped() -> Table:
    """A norm's gain is not applied.
    To do: y = x * rstd * g.
    """
    return {"gain": lambda g: 1.0}


def norm_without_eps() -> Table:
    """RMSNorm has no eps.
    To do: rstd = 1 / sqrt(mean(x^2) + 1e-5).
    """
    return {"rstd": lambda x, eps: op.rstd(x, 0.0)}


def norm_eps_misplaced() -> list[Table]:
    """RMSNorm's eps stands outside the root.
    To do: add it to the mean square, inside: 1 / sqrt(mean(x^2) + 1e-5).
    """
    def root(x: Array) -> Array:
        return np.sqrt(np.mean(x * x, axis=-1, keepdims=True))

    return [{"rstd": lambda x, eps: 1 / (root(x) + eps)},
            {"rstd": lambda x, eps: 1 / np.maximum(root(x), eps)}]


def norm_other_eps() -> list[Table]:
    """RMSNorm has another eps than the config says (1e-6 is a frequent default).
    To do: read rms_norm_eps; 2B4T has 1e-5.
    """
    return [{"rstd": lambda x, eps, e=e: op.rstd(x, e)} for e in (1e-6, 1e-8, 1e-12)]


def norm_subtracts_mean() -> Table:
    """LayerNorm for RMSNorm: the mean is subtracted.
    To do: divide by the root mean square; subtract nothing.
    """
    def centre(x: Array) -> Array:
        return x - x.mean(axis=-1, keepdims=True)

    return {"centre": centre, "rstd": lambda x, eps: op.rstd(centre(x), eps)}


def silu_for_relu2() -> Table:
    """The gated unit runs SiLU where the model has squared ReLU (hidden_act = "relu2": 2B4T).
    To do: max(gate, 0)^2 * up.
    """
    return {"relu2": swiglu}


def relu2_for_silu() -> Table:
    """The gated unit runs squared ReLU where the model has SiLU (hidden_act = "silu": LLaMA, 1bitLLM).
    To do: gate / (1 + exp(-gate)) * up.
    """
    return {"swiglu": relu2}


def relu_not_squared() -> Table:
    """The ReLU of the gated unit is not squared.
    To do: max(gate, 0)^2 * up.
    """
    return {"relu2": lambda gate, up: np.maximum(gate, 0) * up}


def gate_and_up_exchanged() -> Table:
    """The activation is applied to `up` instead of `gate`.
    To do: act(gate_proj(x)) * up_proj(x).
    """
    return {"gate_and_up": lambda gate, up: (up, gate)}


def gated_unit_float16() -> list[Table]:
    """The gated unit's result is computed or kept in float16: it overflows at 65,504.
    To do: keep it in float32 (or bfloat16).
    """
    half = np.float16

    def result(unit: Callable[..., Array]) -> Callable[..., Array]:
        return lambda gate, up: unit(gate, up).astype(half).astype(np.float64)

    def operands(unit: Callable[..., Array]) -> Callable[..., Array]:
        return lambda gate, up: unit(gate.astype(half), up.astype(half)).astype(np.float64)

    return [{"relu2": how(relu2), "swiglu": how(swiglu)} for how in (result, operands)]


def stream_float16() -> list[Table]:
    """The residual stream is kept in float16.
    To do: keep it in float32; in 2B4T it exceeds float16's range.
    """
    half = np.float16
    return [{"add": lambda x, y: (x + y).astype(half).astype(np.float64)},
            {"add": lambda x, y: (x.astype(half) + y.astype(half)).astype(np.float64)}]


def rope_interleaved() -> Table:
    """RoPE turns the pairs (2i, 2i + 1).
    To do: turn the pairs (i, i + head_dim/2): the halves of a head, as Hugging Face files expect.
    """
    def rotate(x: Array, cos: Array, sin: Array) -> Array:
        y, (a, b) = np.empty_like(x), (x[..., 0::2], x[..., 1::2])
        y[..., 0::2], y[..., 1::2] = a * cos - b * sin, b * cos + a * sin
        return y

    return {"rotate": rotate}


def rope_backwards() -> Table:
    """RoPE turns the wrong way: the sign of the sine.
    To do: (a cos - b sin, b cos + a sin).
    """
    return {"rotate": lambda x, cos, sin: _turn(x, cos, -sin)}


def rope_wrong_theta() -> list[Table]:
    """RoPE has another base than the config says.
    To do: read rope_theta; 2B4T has 500,000, LLaMA 2 and 1bitLLM 10,000.
    """
    return [{"theta": lambda theta, other=other: other} for other in (1e4, 5e5, 1e5, 1e6)]


def position_off_by_one() -> list[Table]:
    """Positions do not start at 0.
    To do: the first token has position 0.
    """
    return [{"positions": lambda T, first=first: np.arange(first, first + T)} for first in (1, -1)]


def key_rotated_per_query_head() -> Table:
    """RoPE is applied to a key once for every query head that reads it.
    To do: turn q and k once each, before keys are shared.
    """
    def turn(s: Any, k: Array, cos: Array, sin: Array, R: int) -> Array:
        for _ in range(R):
            k = s.rotate(k, cos, sin)
        return k

    return {"turn_key": turn}


def value_rotated() -> Table:
    """RoPE is applied to the values.
    To do: turn q and k only.
    """
    return {"turn_value": lambda s, v, cos, sin: s.rotate(v, cos, sin)}


def kv_heads_tiled() -> Table:
    """Key/value heads are tiled (0 1 0 1) instead of repeated (0 0 1 1).
    To do: query head h reads key/value head h // (H / KV).
    """
    return {"share_heads": lambda k, R: np.tile(k, (1, R, 1))}


def score_scale_missing() -> list[Table]:
    """Scores are not divided by sqrt(head_dim).
    To do: multiply q.k by 1 / sqrt(head_dim), before the softmax.
    """
    return [{"score_scale": lambda head_dim: 1.0}, {"score_scale": lambda head_dim: 1 / head_dim}]


def mask_off_by_one() -> list[Table]:
    """The causal mask is off by one: a token does not see itself, or sees the next one.
    To do: query t sees the keys 0 .. t.
    """
    def itself_hidden(T: int) -> Array:
        seen = np.tri(T, k=-1, dtype=bool)
        seen[0] = True                                     # nothing to see: equal scores, as from -1e9
        return seen

    return [{"visible": lambda T: np.tri(T, k=1, dtype=bool)},
            {"visible": lambda T: np.tri(T, k=-1, dtype=bool)},
            {"visible": itself_hidden}]


def mask_missing() -> Table:
    """Attention is not causal.
    To do: query t sees the keys 0 .. t.
    """
    return {"visible": lambda T: np.ones((T, T), bool)}


def tied_head_zero() -> Table:
    """The output projection is zeros: the file has no lm_head because it is tied to the embedding.
    To do: use the embedding matrix where tie_word_embeddings is true.
    """
    return {"head": lambda table, tied, got: np.zeros_like(table) if tied else table}


def embedding_truncated() -> list[Table]:
    """Rows of the embedding beyond some id are zeros: a file cut short, or a buffer too small.
    To do: check the file's size and checksum, and how many rows are read.
    """
    def cut(kept: int) -> Callable[..., Array]:
        def rows(ids: Array, table: Array) -> Array:
            last = np.sort(ids)[kept]         # all that these ids can tell about the place of the cut
            return np.where((ids >= last)[:, None], 0, table[ids])
        return rows

    def tied_head(table: Array, tied: bool, got: Array | None) -> Array:
        """The head is cut with it: where the port's logits are zeros throughout."""
        if got is None or not tied or got.shape[-1:] != table.shape[:1]:
            return table
        return np.where((got == 0).all(axis=0)[:, None], 0, table)

    return [{"embedding": cut(kept), **head} for kept in range(6, -1, -1)
            for head in ({}, {"head": tied_head})]


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
