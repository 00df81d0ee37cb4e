"""Measures of ternary training: what each matrix and its gradient do while it learns, and how fast it goes.

All but the speed are functions of the state alone: a resumed run logs the same numbers as one that was never
stopped. They are exact, over every weight, in blocks that stay in the processor's cache.
Read after: train/optim. Read next: train/log.
"""

import math
import statistics
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.config import ModelConfig
from bitnet_ref.layers.adamw import BLOCK
from bitnet_ref.model import Params, Weights
from bitnet_ref.model.cost import train_ops_per_token
from bitnet_ref.quant import ternary_stats

NEAR = 0.05                  # of the scale: what counts as near to a threshold


class ToThreshold(NamedTuple):
    """How far latent weights are from where their trit changes, in units of the scale."""

    distance: float          # the mean
    near: float              # the share within NEAR


def layer_measures(params: Params, weights: Weights, before: dict[str, np.ndarray], grads: Params,
                   ops: Any) -> dict[str, dict[str, float]]:
    """Per trit matrix: fractions of -1, 0, +1, scale, entropy, share of flipped trits, distance to the
    thresholds; per tensor: the gradient's norm, and what that is of the weights' norm (0 for no weights).

    `before`: name -> w_q int8 of the last call, since when trits have flipped. A full-precision twin has the
    measures of gradients only. `ops`: the backend's, for its square_sum.
    >>> from bitnet_ref.train.small import small_run; from bitnet_ref import layers
    >>> run, _ = small_run()
    >>> now = layer_measures(run.model.params, run.model.weights, {}, run.grads, layers)["layers.0.attn.wq"]
    >>> sorted(now)
    ['distance', 'entropy', 'flipped', 'grad_norm', 'grad_to_weight', 'minus', 'near', 'plus', 'scale',
     'zero']
    """
    measures: dict[str, dict[str, float]] = {}
    for name, (w_q, w_scale) in weights.trits().items():
        flipped = np.count_nonzero(w_q != before[name]) / w_q.size if name in before else 0.0       # (TM.1)
        latent = params[name if name in params.view else "embedding"]          # a tied head's is the table
        measures[name] = {**ternary_stats(w_q, w_scale)._asdict(), "flipped": flipped,
                          **to_threshold(latent, w_scale)._asdict()}
    for name, g in grads.view.items():
        norm, weight = (math.sqrt(ops.square_sum(a.reshape(-1))) for a in (g, params[name]))
        ratio = norm / weight if weight else 0.0                                # (TM.4)
        measures.setdefault(name, {}).update(grad_norm=norm, grad_to_weight=ratio)
    return measures


def to_threshold(w: np.ndarray, w_scale: Any) -> ToThreshold:
    """Distances of latent weights w (N, K) to the nearer of the thresholds -1/2 and 1/2 of the scale.
    >>> to_threshold(np.array([0.0, 0.5, -0.5, 2.0]), w_scale=1.0)           # two lie where a trit changes
    ToThreshold(distance=0.5, near=0.5)
    """
    flat, inv_scale, total, near = w.reshape(-1), 1 / w_scale, 0.0, 0
    for a in range(0, flat.size, BLOCK):
        d = np.abs(flat[a:a + BLOCK])
        d *= inv_scale
        d -= 0.5
        np.abs(d, out=d)
        total += float(np.sum(d, dtype=np.float64))                             # (TM.2)
        near += int(np.count_nonzero(d <= NEAR))                                # (TM.3)
    return ToThreshold(total / flat.size, near / flat.size)


def drift(lines: list[dict[str, Any]], name: str) -> list[float]:
    """How much the scale of matrix `name` has grown since the first of the log's "layers" lines, by line.

    Since the first, not the line before: it needs no memory in a checkpoint, and what adds up slowly is seen.
    >>> lines = [{"layers": {"wq": {"scale": scale}}} for scale in (0.5, 0.75, 1.0)]
    >>> drift(lines, "wq")
    [0.0, 0.5, 1.0]
    """
    scales = [line["layers"].get(name, {}).get("scale", math.nan) for line in lines]
    return [scale / scales[0] - 1 if scales[0] else math.nan for scale in scales]       # (TM.5)


def tokens_per_second(lines: list[dict[str, Any]]) -> float | None:
    """The median over the log's "step" lines: no validation or checkpoint; None without lines.
    >>> tokens_per_second([{"tokens": 100, "seconds": s} for s in (2.0, 0.5, 1.0)])
    100.0
    """
    speeds = [line["tokens"] / line["seconds"] for line in lines
              if line.get("seconds", 0) > 0 and "tokens" in line]
    return statistics.median(speeds) if speeds else None


class Speed(NamedTuple):
    """How fast a run was. `utilisation`: of the peak; None if no peak was measured."""

    tokens_per_second: float
    operations_per_second: float
    peak: float | None           # float32 operations per second of this machine, on the run's threads
    utilisation: float | None


def speed(lines: list[dict[str, Any]], cfg: ModelConfig, peak: float | None) -> Speed | None:
    """The speed of a run from its "step" lines, and what it is of the machine's float32 `peak`, if known.

    Operations are the model's (docs/cost.md), whatever arithmetic did them: a product of int8 codes counts
    like one of floats.
    >>> line = {"tokens": 2048, "seconds": 1.0}
    >>> fast = speed([line], ModelConfig(), peak=1e11)
    >>> fast.tokens_per_second, f"{fast.utilisation:.0%}"                    # nano, 2,048 tokens a second
    (2048.0, '58%')
    """
    tokens = tokens_per_second(lines)
    if tokens is None:
        return None
    operations = tokens * train_ops_per_token(cfg, cfg.context)
    return Speed(tokens, operations, peak, operations / peak if peak else None)         # (TM.6)
