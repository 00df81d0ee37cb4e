"""Clipping and the two groups of AdamW, on flat arrays: matrices decay, norms' gains do not.

The table of parameters puts decayed tensors first, so a group is a slice.
Read after: train/stability. Read next: train/measures.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref import layers
from bitnet_ref.config import TrainConfig
from bitnet_ref.model.params import Params


class Adam(NamedTuple):
    """The two moments of AdamW, shaped like the parameters."""

    first: Params
    second: Params


def clip_(flat: np.ndarray, max_norm: float, ops: Any = layers) -> float:
    """Scale the gradient `flat` (n,) down to norm `max_norm` if it is longer. Returns the norm before.

    One norm over all tensors, summed in float64: no overflow below 1e150.
    >>> g = np.array([3.0, 4.0])
    >>> clip_(g, max_norm=1.0), g.round(6).tolist()
    (5.0, [0.6, 0.8])
    """
    norm = math.sqrt(ops.square_sum(flat))                                      # (OP.1)
    if norm > max_norm:
        ops.scale_(flat, max_norm / norm)                                       # (OP.2)
    return norm


def update_(params: Params, grads: Params, adam: Adam, step: int, lr: float, decay: float, cfg: TrainConfig,
            ops: Any) -> None:
    """One AdamW update in place; `step` counts from 1. Weight decay acts on the matrices only.
    >>> from bitnet_ref.model.params import Spec
    >>> table = [Spec("matrix", (1,), 1.0, True, False, ""), Spec("gain", (1,), 0.0, False, False, "")]
    >>> params = Params(table, np.float64); params.flat[:] = 1.0; zeros = params.zeros_like
    >>> update_(params, zeros(), Adam(zeros(), zeros()), 1, lr=0.1, decay=0.5, cfg=TrainConfig(), ops=layers)
    >>> params.flat.round(3).tolist()          # without a gradient the matrix shrinks, the gain stays
    [0.95, 1.0]
    """
    n = params.n_decayed
    for start, size, wd in ((0, n, decay), (n, params.flat.size - n, 0.0)):     # (OP.3)
        ops.adamw_(*(ops.part(each.flat, start, (size,)) for each in (params, grads, *adam)),
                   step, lr, wd, cfg.beta1, cfg.beta2, cfg.adam_eps)
