"""Trouble on purpose (--inject spike@200,nan@350), so that the guard's worth is measured, not assumed.

What happens is a function of the run's cursor, the number of the batch, alone: a rollback leaves it behind
like any bad batch, and a resumed run meets it again where the first one did. Without --inject nothing here
changes a bit. What each kind stands for: docs/stability.md.
Read after: train/rollback. Read next: train/loop.
"""

import numpy as np

from bitnet_ref.config import injections
from bitnet_ref.train.checkpoint import Run

SPIKE_BATCHES = 20              # `spike`: so many batches of random tokens, as from a broken file
RATE, RATE_BATCHES = 30.0, 20   # `lr`: the rate times this, for so many batches
EXPONENT = np.uint32(1 << 30)   # `flip`: the highest bit of a float32's exponent; of |w| < 2 it is 0


def active(run: Run, kind: str, number: int, batches: int = 1) -> bool:
    """Whether batch `number` is one of the `batches` from where `kind` was asked for.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(inject="spike@2")
    >>> [active(run, "spike", number, batches=3) for number in range(7)]
    [False, False, True, True, True, False, False]
    """
    return any(k == kind and at <= number < at + batches for k, at in injections(run.cfg.inject))


def tokens(run: Run, index: int, batch: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Micro-batch `index`, or within `spike` one of random tokens.   int64 (B, T) twice, as `batch`
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(inject="spike@0"); real = np.zeros((2, 16), np.int64), np.zeros((2, 16), np.int64)
    >>> ids, targets = tokens(run, 0, real); ids.shape, bool(ids.any())
    ((2, 16), True)
    """
    if not active(run, "spike", run.cursor, SPIKE_BATCHES):
        return batch
    rng = np.random.default_rng([run.cfg.seed, index])
    B, T = batch[0].shape
    rows = rng.integers(0, run.model.cfg.vocab_size, (B, T + 1))
    return rows[:, :-1], rows[:, 1:]


def loss_(run: Run, loss: float) -> float:
    """The loss of the batch; at `nan` it is not a number, and neither is any gradient.
    >>> from bitnet_ref.train.small import small_run
    >>> loss_(small_run()[0], 5.6), loss_(small_run(inject="nan@0")[0], 5.6)
    (5.6, nan)
    """
    if not active(run, "nan", run.cursor):
        return loss
    run.grads.ops.store_(run.grads.flat, np.nan)
    return float("nan")


def rate(run: Run) -> float:
    """What multiplies the learning rate; the batch has been counted by then, as for `flip_`.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(inject="lr@0"); run.cursor = 1        # the batch has been counted
    >>> rate(run), rate(small_run()[0])
    (30.0, 1.0)
    """
    return RATE if active(run, "lr", run.cursor - 1, RATE_BATCHES) else 1.0


def flip_(run: Run) -> None:
    """At `flip`, the highest bit of the exponent of one weight turns over: 0.05 becomes 1.7e37.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(inject="flip@0"); run.cursor = 1
    >>> flip_(run); bool(np.abs(run.model.params.flat).max() > 1e30)
    True
    """
    params = run.model.params
    assert params is not None
    if active(run, "flip", run.cursor - 1):
        name = next(s.name for s in reversed(params.specs) if s.decay)
        weight = params.ops.fetch(params[name])
        weight.reshape(-1).view(np.uint32)[0] ^= EXPONENT
        params.ops.store_(params[name], weight)
