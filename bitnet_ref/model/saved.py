"""What forward keeps for backward, by name. Everything else is recomputed.

Read after: model/projection. Read next: model/block.
"""

from typing import NamedTuple

import numpy as np

from bitnet_ref.model.projection import Entered


class SavedBlock(NamedTuple):
    """Of one block: inputs of the norms in float, of the products as int8 (`Entered`), attention's stat."""

    x: np.ndarray                # (B, T, D) the stream at entry
    in_qkv: list[Entered]
    q: np.ndarray                # (B, T, H, Dh) after RoPE
    k: np.ndarray                # (B, T, KV, Dh) after RoPE
    v: np.ndarray                # (B, T, KV, Dh)
    o: np.ndarray                # (B, T, H, Dh)
    lse: np.ndarray              # (B, KV, R, T, 1)
    in_out: list[Entered]
    h: np.ndarray                # (B, T, D) the stream after attention
    in_gate_up: list[Entered]
    gate: np.ndarray             # (B, T, F)
    up: np.ndarray               # (B, T, F)
    u: np.ndarray                # (B, T, F) the gated unit's result
    in_down: list[Entered]


class Saved(NamedTuple):
    """Of the whole model."""

    blocks: list[SavedBlock]
    x: np.ndarray                # (B, T, D) the stream after the last block
    in_head: list[Entered]
