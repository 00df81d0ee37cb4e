"""Training parameters: one table says every tensor's name, shape and treatment; one flat buffer holds them.

Gradients and both Adam moments are the same type over buffers of their own, so clipping, AdamW, checkpoints
and all-reduce act on `.flat`, float32. Decayed matrices come first, so weight decay is a slice. Nothing else
lists tensor names. The buffer is the backend's: what is not NumPy's is read through `fetched()`.
Read after: model/layout. Read next: model/weights.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref import layers
from bitnet_ref.config import ModelConfig
from bitnet_ref.model.layout import FREE, layout, shapes


class Spec(NamedTuple):
    """A tensor. `init_std` 0: starts at one (a norm's gain). `decay`: AdamW shrinks it. `ternary`: trits."""

    name: str
    shape: tuple[int, ...]
    init_std: float
    decay: bool
    ternary: bool
    hf_name: str


HF = {"attn.wq": "self_attn.q_proj", "attn.wk": "self_attn.k_proj", "attn.wv": "self_attn.v_proj",
      "attn.wo": "self_attn.o_proj", "ffn.w_gate": "mlp.gate_proj", "ffn.w_up": "mlp.up_proj",
      "ffn.w_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
      "attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"}


def param_specs(cfg: ModelConfig) -> list[Spec]:
    """Every tensor of the model: matrices (decayed) in dataflow order, then the norms' gains.
    >>> first = param_specs(ModelConfig())[1]
    >>> first.name, first.shape, first.ternary, first.hf_name
    ('layers.0.attn.wq', (256, 256), True, 'model.layers.0.self_attn.q_proj.weight')
    """
    V, D, std, ternary = cfg.vocab_size, cfg.d_model, cfg.init_std, cfg.linear == "ternary"
    specs = [Spec("embedding", (V, D), std, True, False, "model.embed_tokens.weight")]
    for l in range(cfg.n_layers):
        specs += [Spec(f"layers.{l}.{name}", shape, std, True, ternary, f"model.layers.{l}.{HF[name]}.weight")
                  for name, shape in shapes(cfg).items()]
    if not cfg.tied_embeddings:
        specs.append(Spec("head", (V, D), std, True, cfg.head == "ternary", "lm_head.weight"))
    for l in range(cfg.n_layers):
        specs += [Spec(f"layers.{l}.{name}", (width,), 0.0, False, False,
                       f"model.layers.{l}.{_hf_norm(name)}.weight") for name, width in _gains(cfg)]
    return [*specs, Spec("final_norm", (D,), 0.0, False, False, "model.norm.weight")]


def _gains(cfg: ModelConfig) -> Iterator[tuple[str, int]]:
    for entries in layout(cfg):
        for entry in entries:
            if entry.norm is not None and entry.norm != FREE:
                yield entry.norm, shapes(cfg)[entry.weights[0]][1]


def _hf_norm(name: str) -> str:
    return HF[name] if name in HF else HF[name.removesuffix("_norm")] + ".norm"


class Params:
    """Named views into ONE flat array, in table order (so a layer's matrices are contiguous).

    `ops`: the backend in whose memory it lies. `flat`: that array, where there is one already.
    """

    def __init__(self, specs: list[Spec], dtype: type = np.float32, ops: Any = layers,
                 flat: Any = None) -> None:
        self.specs, self.ops = list(specs), ops
        ends = np.cumsum([0] + [math.prod(s.shape) for s in self.specs]).tolist()
        self.flat = ops.zeros(ends[-1], dtype) if flat is None else flat
        self.view = {s.name: ops.part(self.flat, a, s.shape) for s, a in zip(self.specs, ends)}
        self.n_decayed = sum(math.prod(s.shape) for s in self.specs if s.decay)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.view[name]

    def zeros_like(self) -> "Params":
        """Same table and dtype, all zero: gradients, moments."""
        return Params(self.specs, self.flat.dtype.type, self.ops)

    def fetched(self) -> "Params":
        """These where NumPy reads them: themselves, or a copy, of this moment."""
        flat = self.ops.fetch(self.flat)
        return self if flat is self.flat else Params(self.specs, flat=flat)

    def store(self, values: "Params") -> None:
        """Become `values`, which NumPy reads; nothing where they are these themselves."""
        if values.flat is not self.flat:
            self.ops.store_(self.flat, values.flat)


def init_params(cfg: ModelConfig, seed: int, dtype: type = np.float32, ops: Any = layers) -> Params:
    """Normal(0, init_std) matrices, gains of one.

    Each tensor has its own counter-based stream: its key is (seed, the tensor's index in the table).
    >>> params = init_params(ModelConfig(n_layers=1), seed=0)
    >>> params["final_norm"][:3].tolist(), round(float(params["layers.0.attn.wq"].std()), 3)
    ([1.0, 1.0, 1.0], 0.1)
    """
    params = Params(param_specs(cfg), dtype, ops)
    for i, spec in enumerate(params.specs):
        draw = np.random.Generator(np.random.Philox(key=[seed, i]))
        ops.store_(params[spec.name], draw.normal(0.0, spec.init_std, spec.shape) if spec.init_std else 1.0)
    return params
