"""What reader and writer of GGUF files agree on: types, architectures, names, and the order of rows.

A name of an architecture fixes the graph that llama.cpp runs: where norms sit and which gate there is. The
file cannot choose them. docs/formats/gguf.md is the specification.
Port note: arch llama turns pairs (2i, 2i + 1) in RoPE, so rows of q and k are stored in another order; the
bitnet archs turn (i, i + Dh/2), as here.
Read after: formats/onnx. Read next: formats/gguf_header.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import CheckError
from bitnet_ref.config import ModelConfig


class Type(NamedTuple):
    """How ggml stores numbers: `n_bytes` for each `block` of a row, and a `tail` behind the whole tensor."""

    number: int
    block: int
    n_bytes: int
    tail: int = 0


TYPES = {
    "F32": Type(0, 1, 4), "F16": Type(1, 1, 2), "BF16": Type(30, 1, 2),
    "TQ1_0": Type(34, 256, 54), "TQ2_0": Type(35, 256, 66), "I2_S": Type(36, 4, 1, 32),
    "Q8_0": Type(8, 32, 34), "Q4_K": Type(12, 256, 144), "Q6_K": Type(14, 256, 210)}
FLOATS = ("F32", "F16", "BF16")
TERNARY = ("TQ1_0", "TQ2_0", "I2_S")
COARSE = ("Q8_0", "Q4_K", "Q6_K")                          # of embeddings; llama-quantize makes them


class Arch(NamedTuple):
    """What general.architecture implies. `interleaved`: RoPE pairs (2i, 2i + 1), q and k in that order."""

    norm: str
    glu: str
    interleaved: bool


ARCHS = {
    "bitnet": Arch("sub", "swiglu", False),                # mainline, and the fork for SiLU
    "bitnet-25": Arch("sub", "relu2", False),              # the fork: 2B4T's first upload
    "bitnet-b1.58": Arch("sub", "relu2", False),           # the fork
    "llama": Arch("pre", "swiglu", True)}
ACTIVATION = "hidden_activation"     # of an arch: relu2 where the model is not what mainline runs
ACTIVATIONS = {"silu": "swiglu", "relu2": "relu2"}
LAYOUT = "i2_s.layout"     # a setting of ours: which of the three I2_S a file has
NAMES = {"embedding": "token_embd", "final_norm": "output_norm", "head": "output", "attn.wq": "attn_q",
         "attn.wk": "attn_k", "attn.wv": "attn_v", "attn.wo": "attn_output", "ffn.w_gate": "ffn_gate",
         "ffn.w_up": "ffn_up", "ffn.w_down": "ffn_down"}   # other norms have their name here


def gguf_name(name: str, suffix: str = "weight") -> str:
    """`layers.3.attn.wq` -> `blk.3.attn_q.weight`: the name in a GGUF of a tensor of ours.
    >>> gguf_name("layers.3.attn.wq"), gguf_name("embedding")
    ('blk.3.attn_q.weight', 'token_embd.weight')
    """
    layer, stem = name.split(".", 2)[1:] if name.startswith("layers.") else ("", name)
    return f"{f'blk.{layer}.' if layer else ''}{NAMES.get(stem, stem)}.{suffix}"


def stored_rows(name: str, cfg: ModelConfig, arch: Arch) -> np.ndarray | None:
    """int (N,): which row of ours is row n of the file's; None where the order is the same.
    >>> cfg = ModelConfig(d_model=12, n_heads=2, n_kv_heads=1)
    >>> stored_rows("layers.0.attn.wk", cfg, ARCHS["llama"]).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    heads = {"wq": cfg.n_heads, "wk": cfg.n_kv_heads}.get(name.rpartition(".")[2])
    if heads is None or not arch.interleaved:
        return None
    return np.arange(heads * cfg.head_dim).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def library() -> Any:
    """The module `gguf`. Raises CheckError that says how to install it.
    >>> library().__name__                                      # needs gguf
    'gguf'
    """
    try:
        import gguf
    except ImportError as e:
        raise CheckError(f"GGUF files of this kind need the package gguf; got {e}; "
                         'in a clone, pip install ".[export]"') from None
    return gguf
