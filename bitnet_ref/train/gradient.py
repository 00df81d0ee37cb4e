"""The gradient of one optimisation step: the mean over its micro-batches, clipped, and described.

It changes nothing but run.grads, so that a step can be thrown away after it has been looked at. Every rank of
a job ends up with the same gradient and the same description.
Read after: train/interrupt. Read next: train/rollback.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bitnet_ref.data.dataset import unchanged
from bitnet_ref.data.feed import micro_batch
from bitnet_ref.data.prepare import Dataset
from bitnet_ref.model import Params
from bitnet_ref.model.transformer import name_nonfinite
from bitnet_ref.train import inject
from bitnet_ref.train.checkpoint import Run
from bitnet_ref.train.optim import clip_
from bitnet_ref.train.parallel import tree_sum


class Report(NamedTuple):
    """One step's gradient, described."""

    loss: float                 # nats per token
    norm: float                 # of the gradient, before clipping
    tokens: int
    bad: str | None             # the first tensor that is not finite, if there is one


def gradient(run: Run, data: Dataset) -> Report:
    """Fill run.grads with the clipped gradient of step `run.cursor`; nothing else of the run changes.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run()
    >>> report = gradient(run, data)
    >>> report.bad, report.tokens, bool(run.grads.flat.any()), run.step
    (None, 32, True, 0)
    """
    cfg, feed = run.cfg, data.feed
    assert feed is not None
    first, losses = run.cursor * cfg.accumulate, np.zeros(cfg.accumulate)
    unchanged(data)

    def numbered(m: int) -> tuple[np.ndarray, np.ndarray]:
        return inject.tokens(run, first + m, micro_batch(feed, first + m, cfg.batch))

    def fill(m: int, i: int) -> None:
        losses[m] = run.model.loss_and_grads([numbered(m)], partial_sum(run, i), 1 / cfg.accumulate)

    with np.errstate(over="ignore", invalid="ignore"):                     # what comes of it is named
        tree_sum(cfg.accumulate, fill, lambda i: partial_sum(run, i).flat, run.world,
                 run.model.plan.ops)
        unchanged(data)                                    # nor while its batches were read
        losses = run.world.added(losses)
        loss = inject.loss_(run, float(np.cumsum(losses)[-1]))             # one after the other, in order
        norm = clip_(run.grads.flat, cfg.max_norm, run.model.plan.ops)
        bad = None if np.isfinite(loss) and np.isfinite(norm) else first_bad(run, losses, norm, numbered)
    return Report(loss, norm, cfg.accumulate * cfg.batch * run.model.cfg.context, bad)


def partial_sum(run: Run, i: int) -> Params:
    """Where the i-th sum in progress is kept, run.grads the first: what a step needed stays for the next.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run()
    >>> partial_sum(run, 0) is run.grads, partial_sum(run, 2) is run.sums[1]
    (True, True)
    """
    while len(run.sums) < i:
        run.sums.append(run.grads.zeros_like())
    return run.sums[i - 1] if i else run.grads


def first_bad(run: Run, losses: np.ndarray, norm: float,
              numbered: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> str:
    """What is not finite: of a loss, the first weight or activation behind it; else the first gradient.

    `numbered(m)`: micro-batch m of the step, inputs and targets.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); run.grads["final_norm"][0] = np.inf
    >>> first_bad(run, np.array([5.6]), np.inf, lambda m: None)
    'the gradient of step 0 must be finite; got inf, first in final_norm'
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size or not np.isfinite(losses.sum()):
        m = int(bad[0]) if bad.size else 0
        return f"the loss of step {run.step} must be finite; got {losses[m]}, first in " \
               f"{name_nonfinite(run.model, numbered(m)[0])}"
    name = next((n for n, g in run.grads.fetched().view.items() if not np.all(np.isfinite(g))),
                "their sum of squares")
    return f"the gradient of step {run.step} must be finite; got {norm}, first in {name}"
