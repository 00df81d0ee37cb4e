"""Models with random weights, to be timed: how fast a product is depends on its shape, not on its values.

One block's matrices are drawn and serve every block; each engine copies them into memory of its own, block
after block, so that what is read from memory is as much as with weights of their own. The ternary model and
its full-precision twin have the same weights.
Read after: bench/ladders/bitlinear_cuda. Read next: bench/llama_peer.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitnet_ref.config import PRESETS, ModelConfig
from bitnet_ref.data.feed import Feed, Source
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits, Weights

SCALE = 2.0 ** -5            # of every ternary matrix: exact in all formats
# The blocks of 2B4T, 8 of the 30, under a head that a small machine's memory holds beside its twins.
BLOCKS = replace(PRESETS["2b4t"].model, n_layers=8, vocab_size=32000)
NANO = PRESETS["nano"].model
SIX = replace(NANO, d_model=768, n_layers=6, n_heads=12, n_kv_heads=12, d_ff=2048)     # ten times its size
QUICK = ModelConfig(vocab_size=512, d_model=256, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=512, context=128)


def random_weights(cfg: ModelConfig, kind: Any = np.float16, seed: int = 0) -> Weights:
    """Weights of `cfg`: uniform trits, gains of one, normal embedding (and head) in `kind`.

    With linear = full the matrices are the same trits times their scale, in `kind`.
    """
    rng, first = np.random.default_rng(seed), {}
    table = Weights()
    for spec in param_specs(cfg):
        name = spec.name.split(".", 2)[-1]                 # without the number of the layer
        if name not in first:
            first[name] = _draw(rng, spec.shape, name, cfg.linear, kind)
        table[spec.name] = first[name]
    table.setdefault("head", table["embedding"])
    return table


def random_data(cfg: ModelConfig, windows: int) -> Any:
    """What a run on uniformly random tokens, enough for that many windows, needs of a dataset."""
    n = windows * cfg.context + 1
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, n, np.uint16)
    feed = Feed((Source("random", tokens, 1, None),), cfg.context, 0)
    return SimpleNamespace(train=None, val=None, feed=feed)


def _draw(rng: np.random.Generator, shape: tuple[int, ...], name: str, linear: str, kind: Any) -> Any:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    if name in ("embedding", "head"):
        return rng.standard_normal(shape, np.float32).astype(kind)
    trits = rng.integers(-1, 2, shape, np.int8)
    scale = np.float32(SCALE)
    return Trits(trits, scale) if linear == "ternary" else (trits * scale).astype(kind)
