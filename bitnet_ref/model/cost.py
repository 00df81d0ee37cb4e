"""What a model costs, from its config alone: parameters, bytes, cache, training memory, operations.

Nothing is allocated. Each figure is a formula with a tag, derived in docs/cost.md. Units: parameters are
counts, memory is bytes, work is floating-point or integer operations (a multiply-add is two).
Read after: model/transformer. Read next: model/scaling.
"""

import math
from typing import NamedTuple

from bitnet_ref.config import ModelConfig
from bitnet_ref.model.layout import FREE, layout, shapes
from bitnet_ref.pack import b3, i2

BITS_PER_TRIT = {"2 bits (i2)": i2.BITS_PER_TRIT, "1.6 bits (b3)": b3.BITS_PER_TRIT,
                 "log2(3) = 1.585 bits (the bound)": math.log2(3)}


class ParamCount(NamedTuple):
    """Parameters by kind. `projections` are the trit matrices when linear = ternary."""

    embedding: int
    projections: int
    head: int
    norms: int

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self)


def count_params(cfg: ModelConfig) -> ParamCount:
    """Parameters by kind; equal to the sum over model.params.param_specs.
    >>> from bitnet_ref.config import PRESETS
    >>> count_params(PRESETS["2b4t"].model), f"{count_params(PRESETS['2b4t'].model).total:,}"
    (ParamCount(embedding=328335360, projections=2084044800, head=0, norms=440320), '2,412,820,480')
    """
    V, D = cfg.vocab_size, cfg.d_model
    return ParamCount(
        embedding=V * D,                                                            # (MC.1)
        projections=cfg.n_layers * sum(n * k for n, k in shapes(cfg).values()),     # (MC.2)
        head=0 if cfg.tied_embeddings else V * D,                                   # (MC.3)
        norms=cfg.n_layers * _gains_per_block(cfg) + D)                             # (MC.4)


def _gains_per_block(cfg: ModelConfig) -> int:
    return sum(shapes(cfg)[e.weights[0]][1]
               for place in layout(cfg) for e in place if e.norm not in (None, FREE))


def ternary_params(cfg: ModelConfig) -> int:
    """How many parameters become trits when the model is stored for inference.
    >>> nano = ModelConfig()
    >>> round(ternary_params(nano) / count_params(nano).total, 2)        # the rest is nearly all embedding
    0.76
    """
    n = count_params(cfg)
    head = n.embedding if cfg.head == "ternary" else 0     # a ternary head is a matrix of trits, tied or not
    return (n.projections if cfg.linear == "ternary" else 0) + head


def inference_bytes(cfg: ModelConfig, bits: float, float_bytes: int = 2) -> float:
    """Bytes of the model's file at `bits` per trit and `float_bytes` per other parameter (2: bfloat16).
    >>> from bitnet_ref.config import PRESETS
    >>> [round(inference_bytes(PRESETS["2b4t"].model, bits) / 1e9, 2) for bits in (1.6, 2, 16)]     # GB
    [1.07, 1.18, 4.83]
    """
    n = count_params(cfg)
    floats = n.embedding + n.norms + (n.head if cfg.head == "full" else 0)
    floats += n.projections if cfg.linear == "full" else 0
    return ternary_params(cfg) * bits / 8 + floats * float_bytes                # (MC.5)


def kv_bytes_per_token(cfg: ModelConfig, float_bytes: int = 4) -> int:
    """Bytes that one token adds to the key/value cache of all layers.
    >>> [kv_bytes_per_token(ModelConfig(n_kv_heads=n)) for n in (8, 2)]      # 4 queries share a key
    [8192, 2048]
    """
    return 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * float_bytes       # (MC.6)


def state_bytes(cfg: ModelConfig) -> int:
    """Bytes of training state: float32 parameters, gradients and two Adam moments, and the int8 trits.
    >>> round(state_bytes(nano := ModelConfig()) / count_params(nano).total, 2)      # 16, and a byte a trit
    16.76
    """
    return 16 * count_params(cfg).total + ternary_params(cfg)                   # (MC.7)


def saved_bytes_per_token(cfg: ModelConfig) -> int:
    """Bytes that a token of a micro-batch holds between forward and backward (model/saved.py), and logits.
    >>> [saved_bytes_per_token(ModelConfig(linear=kind)) for kind in ("ternary", "full")]
    [86144, 104576]
    """
    D, F, KV = cfg.d_model, cfg.d_ff, cfg.n_kv_heads * cfg.head_dim
    floats = 4 * D + 2 * KV + 3 * F + cfg.n_heads          # x q o h · k v · gate up u · lse
    ternary = cfg.linear == "ternary"                      # int8 codes; twin: floats, new ones if normed
    operands = sum(shapes(cfg)[e.weights[0]][1] * (1 if ternary else 4)
                   for place in layout(cfg) for e in place if ternary or e.norm is not None)
    head = 4 * (D + cfg.vocab_size) + (D if cfg.head == "ternary" else 4 * D)
    return cfg.n_layers * (4 * floats + operands) + head                        # (MC.8)


def forward_ops_per_token(cfg: ModelConfig, length: int) -> int:
    """Operations of the forward pass per token, in a full window of `length` tokens.
    >>> n = count_params(nano := ModelConfig()).total
    >>> [round(forward_ops_per_token(nano, length) / n, 2) for length in (1, 256)]   # 2, and the attention
    [2.0, 2.12]
    """
    n = count_params(cfg)
    products = 2 * (n.projections + n.embedding)                # the head is as large as the embedding
    attention = 2 * cfg.n_layers * cfg.d_model * (length + 1)   # 2 products, (length + 1) / 2 keys on average
    return products + attention                                                 # (MC.9)


def train_ops_per_token(cfg: ModelConfig, length: int) -> int:
    """Operations of one training step per token: the forward, and a backward that is twice the forward.
    >>> train_ops_per_token(ModelConfig(), 256) / forward_ops_per_token(ModelConfig(), 256)
    3.0
    """
    return 3 * forward_ops_per_token(cfg, length)                               # (MC.10)
