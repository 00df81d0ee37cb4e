"""The homework: two small models and probes of single ops, drawn from a seed, the same on every machine.

"bitnet" has the shape of BitNet b1.58 2B4T (ReLU^2, sub-norms, grouped queries, tied head, a file whose
scales multiply); "llama" that of the ternary LLaMAs on Hugging Face (SwiGLU, block norms only, a head of its
own, a file that stores 1/scale). Values of files are exact in bfloat16, of probes in float32.
Read after: conform/probes. Read next: conform/slots.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bitnet_ref.config import ModelConfig
from bitnet_ref.conform.probes import draw, probes
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits, Weights

MODELS = {
    "bitnet": ModelConfig(vocab_size=160, d_model=128, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=256,
                          context=64, norm="sub", glu="relu2", rope_theta=500000.0),
    "llama": ModelConfig(vocab_size=96, d_model=128, n_layers=1, n_heads=4, n_kv_heads=2, d_ff=256,
                         context=64, norm="pre", glu="swiglu", tied_embeddings=False),
}
INVERSE = {"bitnet": False, "llama": True}   # whether the file's weight_scale is 1/multiplier
TOKENS = 7                                   # odd, and more than a port's loop gets right by luck


class Homework(NamedTuple):
    """`ids` (T,) and `weights` of each model; `probes`: name -> array, float32 or int8."""

    seed: int
    ids: dict[str, np.ndarray]
    weights: dict[str, Weights]
    probes: dict[str, np.ndarray]


def homework(seed: int = 0) -> Homework:
    """All of it. Counter-based draws: seed and place alone decide every number."""
    ids = {name: draw(seed, name, "ids").permutation(cfg.vocab_size)[:TOKENS]
           for name, cfg in MODELS.items()}
    return Homework(seed, ids, {name: _weights(seed, name) for name in MODELS}, probes(seed))


def bfloat16(x: Any) -> np.ndarray:
    """float32, rounded to what bfloat16 holds."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def _weights(seed: int, model: str) -> Weights:
    """Trits in the proportions of trained models, scales that keep activations near one, gains around one."""
    cfg, table = MODELS[model], Weights()
    for spec in param_specs(cfg):
        rng = draw(seed, model, spec.name)
        if spec.ternary:
            w_q = rng.choice(np.array([-1, 0, 1], np.int8), spec.shape, p=[0.32, 0.4, 0.28])
            scale = bfloat16(rng.uniform(0.9, 1.4) / np.sqrt(0.6 * spec.shape[1]))
            # A file of the inverse family stores a bfloat16 reciprocal: the multiplier is its reciprocal.
            scale = np.float32(1) / bfloat16(1 / scale) if INVERSE[model] else scale
            table[spec.name] = Trits(w_q, np.float32(scale))
        elif spec.init_std:
            table[spec.name] = bfloat16(rng.normal(0, 1, spec.shape))
        else:
            table[spec.name] = bfloat16(np.exp(rng.normal(0, 0.4, spec.shape)))
    if cfg.tied_embeddings:
        table["head"] = table["embedding"]
    return table
