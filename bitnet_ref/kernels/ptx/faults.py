"""What a program may not do, as errors in three parts: the rule, what was done and where, what to look at.

An instruction raises Fault, which knows the rule and the lane; the machine adds the kernel, the line of the
PTX, the block and the thread, and raises PtxError.
Read after: kernels/ptx. Read next: kernels/ptx/module.
"""

from typing import Any

import numpy as np

from bitnet_ref.checks import CheckError, shown


class PtxError(CheckError):
    """A program broke a rule of PTX, of the memory it was given or of the interpreter."""


class Fault(Exception):
    """`rule` was broken: `got`, by the thread number `lane` of those that execute (None: by all); `fix`."""

    def __init__(self, rule: str, got: str, fix: str, lane: int | None = None) -> None:
        super().__init__(rule)
        self.rule, self.got, self.fix, self.lane = rule, got, fix, lane


def demand(bad: np.ndarray, rule: str, got: Any, fix: str) -> None:
    """Raise Fault for the first lane where `bad` (n,) holds. `got`: a text, or a function of the lane."""
    if bad.any():
        lane = int(np.argmax(bad))
        raise Fault(rule, got(lane) if callable(got) else got, fix, lane)


def located(fault: Fault, where: str) -> PtxError:
    """The error of `fault`, which happened at `where` (kernel, line, instruction, thread)."""
    return PtxError(f"{shown(fault.rule)}; got {shown(fault.got)}, in {shown(where)}; {shown(fault.fix)}")
