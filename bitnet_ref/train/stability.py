"""The guard: looks at loss and gradient norm of each step, and says whether to apply it.

Read after: train/schedule. Read next: train/optim.
"""

from enum import Enum
from typing import Any

from bitnet_ref.checks import NonFiniteError


class Verdict(Enum):
    """What becomes of a step."""

    APPLY = "apply"
    SKIP = "skip"
    ROLLBACK = "rollback"


class Guard:
    """The watch over one run. `factor` multiplies the learning rate; `why` explains the last verdict."""

    def __init__(self) -> None:
        self.factor, self.why = 1.0, ""

    def judge(self, report: Any) -> Verdict:
        """The verdict on a step. Raises NonFiniteError when nothing helps."""
        if report.bad is not None:
            raise NonFiniteError(f"{report.bad}; start a new run with a lower --lr, "
                                 "or look at the data there")
        return Verdict.APPLY

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as JSON."""
        return {"factor": self.factor}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the guard that `state` was written of."""
        self.factor = state["factor"]
