"""From logits to a token: greedy, or a draw at a temperature among the top k.

Randomness is counter-based: the draw at position t depends on (seed, t) alone, so a seed gives the same text
whatever was generated before in the same process.
Read after: generate. Read next: generate/decode.
"""

import numpy as np


def sample(logits: np.ndarray, temperature: float, top_k: int | None, seed: int, position: int) -> int:
    """A token id from logits (V,). Temperature 0 is greedy (lowest id among equals); top_k None keeps all."""
    if temperature == 0:
        return int(np.argmax(logits))
    with np.errstate(over="ignore"):                       # tiny temperature: -inf, probability 0
        scaled = (logits - logits.max()).astype(np.float64) / temperature
    if top_k is not None and top_k < len(scaled):
        kept = np.argpartition(scaled, -top_k)[-top_k:]
        scaled = np.where(np.isin(np.arange(len(scaled)), kept), scaled, -np.inf)
    p = np.exp(scaled)
    draw = np.random.Generator(np.random.Philox(key=[seed, position])).random()
    edge = np.cumsum(p)
    return int(np.searchsorted(edge, draw * edge[-1], side="right"))
