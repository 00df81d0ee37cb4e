"""The guard: looks at loss and gradient norm of each step, and says whether to apply it.

A z-score is one number: how far a value lies above those before it. What follows from it is policy, and all
of it is here: an isolated bad batch is skipped, a damaged model goes back to a checkpoint at half the rate.
Everything is a function of the reports seen, so a resumed run comes to the same verdicts.
Read after: train/schedule. Read next: train/optim.
"""

import math
import sys
from enum import Enum
from typing import Any

import numpy as np

from bitnet_ref.checks import GaveUp, NonFiniteError, check

WINDOW = 64              # applied steps that a new value is compared with
LEAST = 32               # of them, before there is a z-score: the first steps fall too fast to mean anything
LOSS_SPREAD = 0.02       # nats: least spread of the loss, so that large, quiet batches raise no alarm
NORM_SPREAD = 0.1        # least spread of the logarithm of the norm: a tenth of the norm
SKIP_LOSS = 6.0          # z above which a batch is bad; undisturbed runs reached 3.9 (docs/stability.md)
SKIP_NORM = 30.0         # the same of the norm, whose tail is heavy: undisturbed runs reached 8.3, and
                         # clipping makes such batches harmless
RAISED = 2.0             # z of a loss that is no reason to skip, but no accident when it stays
RAISED_STEPS = 8         # so many applied in a row: the model is damaged
BAD_STEPS = 32           # so many skipped in a row: it is not the batches, it is the model
STUCK_STEPS = 128        # the same right after a rollback: that model was good, so now it is the data
BACKOFF = 0.5            # what a rollback multiplies the rate with
RECOVERY = 50            # updates in which the rate doubles again; so many past the trouble count as success
ROLLBACKS = 5            # without success, before the guard gives up
GUIDE = "look at the data there, or start a new run with a lower --lr"


class Verdict(Enum):
    """What becomes of a step."""

    APPLY = "apply"
    SKIP = "skip"
    ROLLBACK = "rollback"


class ZScore:
    """The last WINDOW values of a series, and how far a new one lies above them.

    The spread is that of the differences between neighbours: a falling loss does not widen it, and neither
    does a jump. It is computed from the values each time, in float64, so that they are all the state.
    """

    def __init__(self, least: float) -> None:
        self.least, self.values = least, list[float]()                          # least spread

    def of(self, value: float) -> float | None:
        """z of `value`, which does not enter; None before LEAST values have."""
        if len(self.values) < LEAST:
            return None
        spread = math.sqrt(np.mean(np.square(np.diff(self.values))) / 2)        # (ST.1)
        return (value - float(np.mean(self.values))) / max(spread, self.least)  # (ST.2)

    def enter(self, value: float) -> None:
        """Take `value` into the window; the oldest leaves a full one."""
        self.values = [*self.values, value][-WINDOW:]


class Guard:
    """The watch over one run. `factor` multiplies the learning rate; `why` explains the last verdict, and
    `z` holds its scores."""

    def __init__(self, on: bool = True) -> None:
        self.on, self.why = on, ""
        self.z: dict[str, float | None] = {"loss_z": None, "norm_z": None}
        self.loss, self.norm = ZScore(LOSS_SPREAD), ZScore(NORM_SPREAD)
        self.factor = 1.0
        self.raised = self.bad = 0           # steps in a row, until now: applied; skipped
        self.since = 0                       # step at which they began
        self.tries, self.furthest = 0, 0     # rollbacks without success; the furthest step that had trouble
        self.moved = True                    # whether an update was applied since the last rollback

    def judge(self, report: Any, step: int) -> Verdict:
        """The verdict on the batch of `report`, seen by the parameters after `step` updates.

        Raises NonFiniteError or GaveUp, naming what is wrong, when nothing helps; when off, for every
        loss or gradient that is not finite.
        """
        bad = self._fault(report)
        raised = not bad and (self.z["loss_z"] or 0.0) > RAISED
        if not self.on:
            self._refuse(report.bad)
            return Verdict.APPLY
        if self.calm():
            self.since = step if self.moved else step + 1      # right after a rollback the model is good
        self.bad = self.bad + 1 if bad else 0
        self.raised = self.raised + raised if bad or raised else 0
        self.why = bad or ""
        if self.bad >= (BAD_STEPS if self.moved else STUCK_STEPS):              # (ST.4)
            return self._back_off(f"{self.bad} bad steps in a row, the last: {bad}", report.bad)
        if self.raised >= RAISED_STEPS:                                         # (ST.5)
            return self._back_off(f"the loss stayed more than {RAISED:g} spreads above its window for "
                                  f"{self.raised} steps", None)
        if bad:
            return Verdict.SKIP
        self.loss.enter(report.loss)
        self.norm.enter(_log(report.norm))
        return Verdict.APPLY

    def settle(self, bad: str | None, step: int) -> Verdict:
        """The verdict on the parameters after update number `step`: `bad` says what of them is not finite.

        Raises as `judge` does.
        """
        if bad is not None:
            self._refuse(None if self.on else bad)
            self.since, self.why = step, bad
            return self._back_off(bad, bad)
        self.factor = min(1.0, self.factor * BACKOFF ** (-1 / RECOVERY))        # (ST.7)
        self.tries = 0 if step >= self.furthest + RECOVERY else self.tries
        self.moved = True
        return Verdict.APPLY

    def calm(self) -> bool:
        """Whether the last loss lay where it should: else a checkpoint might be of a damaged model."""
        return not (self.raised or self.bad)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as JSON."""
        return {"loss": self.loss.values, "norm": self.norm.values, "factor": self.factor,
                "raised": self.raised, "bad": self.bad, "since": self.since, "tries": self.tries,
                "furthest": self.furthest, "moved": self.moved}

    def restore(self, state: Any) -> None:
        """Become the guard that `state` was written of; of a run older than its windows, a new one.

        Raises CheckError for anything else.
        """
        check(isinstance(state, dict), "a checkpoint must hold the state of the guard", repr(state), _FIX)
        if state.keys() == {"factor"}:
            return
        self.rewind(state)
        for name in ("raised", "bad", "since", "tries", "furthest"):
            value = state.get(name)
            check(type(value) is int and 0 <= value < 1 << 53, f"the guard's {name} must be an integer of 0 "
                  "or more", repr(value), _FIX)
            setattr(self, name, value)
        factor, moved = state.get("factor"), state.get("moved")
        check(type(factor) in (int, float) and 0 < factor <= 1, "the guard's factor must lie in (0, 1]",
              repr(factor), _FIX)
        check(type(moved) is bool, "the guard's moved must be true or false", repr(moved), _FIX)
        self.factor, self.moved = float(factor), moved

    def rewind(self, state: dict[str, Any]) -> None:
        """Take the windows alone from `state`: after a rollback, losses are those of an earlier model again.

        Raises CheckError unless they are at most WINDOW finite numbers each.
        """
        for name, score in (("loss", self.loss), ("norm", self.norm)):
            values: Any = state.get(name, [])
            check(isinstance(values, list) and len(values) <= WINDOW
                  and all(type(v) is float and abs(v) <= sys.float_info.max for v in values),
                  f"the guard's window of the {name} must be at most {WINDOW} finite numbers",
                  repr(values)[:60], _FIX)
            score.values = list(values)

    # ---- what the verdicts rest on ----

    def _fault(self, report: Any) -> str | None:
        """Why the batch of `report` must not move the model, or None. Fills `z`."""
        self.z = {"loss_z": None, "norm_z": None}
        if report.bad is not None:
            return str(report.bad)
        loss_z, norm_z = self.loss.of(report.loss), self.norm.of(_log(report.norm))
        self.z = {"loss_z": loss_z, "norm_z": norm_z}
        if loss_z is not None and loss_z > SKIP_LOSS:                           # (ST.3)
            return f"the loss {report.loss:.4g} lies {loss_z:.1f} spreads above its window"
        if norm_z is not None and norm_z > SKIP_NORM:
            return f"the gradient norm {report.norm:.4g} lies {norm_z:.1f} spreads above its window"
        return None

    def _back_off(self, why: str, bad: str | None) -> Verdict:
        """Half the rate and ROLLBACK, unless that has been tried too often."""
        self.why, self.tries = why, self.tries + 1
        self.furthest = max(self.furthest, self.since)
        if self.tries > ROLLBACKS:
            error = NonFiniteError if bad else GaveUp
            raise error(f"{bad or f'a run must get past step {self.since}; got {why}'}, after {ROLLBACKS} "
                        f"rollbacks that did not help; {GUIDE}")
        self.factor *= BACKOFF                                                  # (ST.6)
        self.raised = self.bad = 0
        self.moved = False
        return Verdict.ROLLBACK

    def _refuse(self, bad: str | None) -> None:
        if bad is not None:
            raise NonFiniteError(f"{bad}; {GUIDE}")


_FIX = "resume from a checkpoint that bitnet_ref.train wrote"


def _log(norm: float) -> float:
    """The logarithm of a norm, which multiplies where a loss adds; of none, that of the smallest."""
    return math.log(max(norm, sys.float_info.min))
