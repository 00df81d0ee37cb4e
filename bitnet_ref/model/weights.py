"""Inference weights: trits and scales instead of float matrices, in a table apart from the training Params.

Training makes one from its Params every step (ternarise once, not per micro-batch); a model file holds one.
`ready(ops)` turns it into what forward reads: the backend's prepared matrices beside plain arrays.
Read after: model/params. Read next: model/projection.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.config import ModelConfig
from bitnet_ref.model.params import Params


class Trits(NamedTuple):
    """A ternary matrix: w_q int8 (N, K) in {-1, 0, +1} and the scale that multiplies it."""

    w_q: np.ndarray
    w_scale: Any


class Ready(dict[str, Any]):
    """What forward reads, by name. `kept`: what a backend has made of it for its whole-model paths."""

    def __init__(self, table: dict[str, Any]) -> None:
        super().__init__(table)
        self.kept: dict[str, Any] = {}


class Weights(dict[str, "np.ndarray | Trits"]):
    """name -> array, or Trits for a ternary matrix. "head" is always there, also when it is the embedding."""

    def ready(self, ops: Any, int8_head: bool = False) -> Ready:
        """The working form of backend `ops`: what `ops.prepare` makes of Trits, arrays as they are.

        `int8_head`: a full head as int8 rows. The embedding stays as it is, also where the two are one.
        """
        made = Ready({name: ops.prepare(*t) if isinstance(t, Trits) else t for name, t in self.items()})
        head = self.get("head")
        if int8_head and isinstance(head, np.ndarray):
            wide = head.astype(np.promote_types(head.dtype, np.float32), copy=False)
            made["head"] = ops.prepare_rows(*ops.absmax_int8(wide))
        return made

    def trits(self) -> dict[str, Trits]:
        """The ternary matrices alone."""
        return {name: t for name, t in self.items() if isinstance(t, Trits)}


def ternarise(cfg: ModelConfig, params: Params, ops: Any) -> Weights:
    """The inference weights of training parameters. Arrays are shared with `params`, not copied."""
    weights = Weights({s.name: Trits(*ops.absmean_ternary(params[s.name])) if s.ternary else params[s.name]
                       for s in params.specs})
    if cfg.tied_embeddings:
        table = params["embedding"]
        weights["head"] = Trits(*ops.absmean_ternary(table)) if cfg.head == "ternary" else table
    return weights
