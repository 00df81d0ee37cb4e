"""The gradient of one optimisation step: the mean over its micro-batches, clipped, and described.

It changes nothing but run.grads, so that a step can be thrown away after it has been looked at.

Read after: train/interrupt. Read next: train/rollback.
"""

from typing import NamedTuple

import numpy as np

from bitnet_ref.data.batches import batch
from bitnet_ref.data.prepare import Dataset
from bitnet_ref.model.transformer import name_nonfinite
from bitnet_ref.train import inject
from bitnet_ref.train.checkpoint import Run
from bitnet_ref.train.optim import clip_


class Report(NamedTuple):
    """One step's gradient, described."""

    loss: float                 # nats per token
    norm: float                 # of the gradient, before clipping
    tokens: int
    bad: str | None             # the first tensor that is not finite, if there is one


def gradient(run: Run, data: Dataset) -> Report:
    """Fill run.grads with the clipped gradient of step `run.cursor`; nothing else of the run changes."""
    cfg = run.cfg
    first, length = run.cursor * cfg.accumulate, run.model.cfg.context
    batches = [inject.tokens(run, first + m, batch(data.train.tokens, first + m, cfg.batch, length, cfg.seed))
               for m in range(cfg.accumulate)]
    ids = np.concatenate([ids for ids, _ in batches])
    with np.errstate(over="ignore", invalid="ignore"):                     # what comes of it is named
        loss = inject.loss_(run, run.model.loss_and_grads(batches, run.grads))
        norm = clip_(run.grads.flat, cfg.max_norm, run.model.plan.ops)
        bad = None if np.isfinite(loss) and np.isfinite(norm) else first_bad(run, loss, ids)
    return Report(loss, norm, ids.size, bad)


def first_bad(run: Run, loss: float, ids: np.ndarray) -> str:
    """What is not finite: of the loss, the first weight or activation behind it; else the first gradient."""
    if not np.isfinite(loss):
        return f"the loss of step {run.step} must be finite; got {loss}, first in " \
               f"{name_nonfinite(run.model, ids)}"
    name = next((n for n, g in run.grads.view.items() if not np.all(np.isfinite(g))),
                "their sum of squares")
    return f"the gradient of step {run.step} must be finite; got {name} that is not"
