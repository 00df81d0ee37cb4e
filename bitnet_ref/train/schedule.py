"""Learning rate and weight decay as pure functions of the step, so a resumed run needs no state of theirs.

"two-stage" is the recipe of the BitNet FAQ (Fig. 1c, 1d): two straight lines that both end at lr_end one
step after the last. The first would start at lr, the second at lr * lr_stage2; at half way the rate JUMPS
from the first onto the second, and the weight decay drops to 0. The two peaks are therefore not rates before
and after the switch: a common misreading. "linear" is the first of the two lines alone: single-stage.
Read after: train. Read next: train/stability.
"""

import math

from bitnet_ref.config import TrainConfig


def lr_at(step: int, cfg: TrainConfig) -> float:
    """Learning rate of update number `step` (0 .. steps - 1).
    >>> cfg = TrainConfig(steps=100, warmup=10, lr=1.0, lr_stage2=0.5, lr_end=0.0)
    >>> [round(lr_at(step, cfg), 2) for step in (0, 9, 10, 49, 50, 99)]      # up, down, a jump, down again
    [0.1, 1.0, 1.0, 0.57, 0.28, 0.01]
    """
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup                                 # (SC.1)
    progress = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    end = cfg.lr * cfg.lr_end
    if cfg.schedule == "constant":
        return cfg.lr
    if cfg.schedule == "cosine":
        return end + (cfg.lr - end) * (1 + math.cos(math.pi * progress)) / 2    # (SC.2)
    second = cfg.schedule == "two-stage" and not in_first_half(step, cfg)
    peak = cfg.lr * (cfg.lr_stage2 if second else 1.0)
    return peak + (end - peak) * progress                                       # (SC.3)


def wd_at(step: int, cfg: TrainConfig) -> float:
    """Weight decay of update number `step`: without decay_until, two-stage drops it to 0 at half way.
    >>> [wd_at(step, TrainConfig(steps=100, weight_decay=0.1)) for step in (0, 49, 50)]
    [0.1, 0.1, 0.0]
    """
    until = cfg.decay_until
    if until is None:
        until = 0.5 if cfg.schedule == "two-stage" else 1.0
    return cfg.weight_decay if step < until * cfg.steps else 0.0                # (SC.4)


def in_first_half(step: int, cfg: TrainConfig) -> bool:
    """Whether update `step` lies before the switch of the two-stage recipe.
    >>> [in_first_half(step, TrainConfig(steps=5)) for step in range(5)]
    [True, True, True, False, False]
    """
    return 2 * step < cfg.steps
