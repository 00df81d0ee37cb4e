"""The three norm layouts as data: which input is normalised by which gain, and which projections read it.

A block has four places where projections read an input: qkv (the stream), out (the attention's result),
gate_up (the stream), down (the gated unit's result). Public BitNets differ only in the norms at these places:
pre: LLaMA's block norms. sub: block norms and two sub-norms (1bitLLM, 2B4T). inner: an RMSNorm at the entry
of every BitLinear, without gain (FAQ) or with one per projection (BitNet embeddings). All have a final norm.
Read after: model. Read next: model/params.
"""

from typing import NamedTuple

from bitnet_ref.config import ModelConfig

FREE = "free"                # a norm without gain


class Entry(NamedTuple):
    """One input, normalised and quantised once, and the weights that read it.

    `norm`: the gain's name, FREE for a norm without gain, None for no norm (the input is quantised as it is).
    """

    norm: str | None
    weights: tuple[str, ...]


class Layout(NamedTuple):
    """The entries of a block, place by place, in dataflow order."""

    qkv: tuple[Entry, ...]
    out: tuple[Entry, ...]
    gate_up: tuple[Entry, ...]
    down: tuple[Entry, ...]


WEIGHTS: tuple[tuple[str, ...], ...] = (                   # place by place, as in Layout
    ("attn.wq", "attn.wk", "attn.wv"), ("attn.wo",), ("ffn.w_gate", "ffn.w_up"), ("ffn.w_down",))
NORMS: dict[str, tuple[str | None, ...]] = {
    "pre": ("attn_norm", None, "ffn_norm", None),
    "sub": ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm"),
    "inner": (FREE, FREE, FREE, FREE),
}


def layout(cfg: ModelConfig) -> Layout:
    """The entries of every block of `cfg`.
    >>> for place in layout(ModelConfig(norm="pre")): print(place)
    (Entry(norm='attn_norm', weights=('attn.wq', 'attn.wk', 'attn.wv')),)
    (Entry(norm=None, weights=('attn.wo',)),)
    (Entry(norm='ffn_norm', weights=('ffn.w_gate', 'ffn.w_up')),)
    (Entry(norm=None, weights=('ffn.w_down',)),)
    """
    if cfg.inner_gain:
        return Layout(*(tuple(Entry(f"{w}_norm", (w,)) for w in weights) for weights in WEIGHTS))
    return Layout(*((Entry(norm, weights),) for norm, weights in zip(NORMS[cfg.norm], WEIGHTS)))


def shapes(cfg: ModelConfig) -> dict[str, tuple[int, int]]:
    """(N, K) of every projection of a block.
    >>> shapes(ModelConfig())["ffn.w_down"]       # of nano: a gated unit of 768 back onto the stream of 256
    (256, 768)
    """
    D, F, KV = cfg.d_model, cfg.d_ff, cfg.n_kv_heads * cfg.head_dim
    return {"attn.wq": (D, D), "attn.wk": (KV, D), "attn.wv": (KV, D), "attn.wo": (D, D),
            "ffn.w_gate": (F, D), "ffn.w_up": (F, D), "ffn.w_down": (D, F)}
