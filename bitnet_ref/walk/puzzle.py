"""Questions to the reader: one line that says what is asked, and a check that says right or wrong.

An answer is a number, a word or a function of a few lines; `...` is no answer yet. A wrong one is told in
three parts: what must hold, what came, and a hint. What is right is computed by the library, not written
here: a question that the code no longer answers so would be a red test.
Read after: walk/show. Read next: walk/derivative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import lookup, shown

# -> the module of its questions
NOTEBOOKS = {"01": "ternary", "02": "layers_by_hand", "03": "a_block", "05": "packing",
             "09": "formats"}
OPEN = "no answer yet"
Judge = Callable[[Any], str]             # "" if the answer is right, else "what must hold; got what came"


class Question(NamedTuple):
    """`spec`: what is asked, in one line. `solution`: an answer that `judge` takes."""

    spec: str
    judge: Judge
    hint: str
    solution: Any


@dataclass(frozen=True, repr=False)
class Verdict:
    """What became of an answer. `right` is None where there is none yet. True in a condition if right."""

    right: bool | None
    said: str

    def __bool__(self) -> bool:
        return self.right is True

    def __repr__(self) -> str:
        return self.said


def check(number: str, answer: Any) -> Verdict:
    """Whether `answer` answers question `number`, such as "01.2". Raises CheckError for no such question.

    A wrong answer raises nothing, so that a notebook runs to its end.
    """
    question = lookup(questions(number.partition(".")[0]), number, "the question")
    fault = OPEN if answer is ... else question.judge(answer)
    if fault == OPEN:
        return Verdict(None, f"{number}: {OPEN}. {question.spec}")
    if fault:
        return Verdict(False, f"{number}: wrong. {fault}; {question.hint}")
    return Verdict(True, f"{number}: right.")


def questions(notebook: str) -> dict[str, Question]:
    """{number: Question} of a notebook, as "01". Raises CheckError for one that has none."""
    module = import_module(f"bitnet_ref.walk.{lookup(NOTEBOOKS, notebook, 'the notebook')}")
    return {f"{notebook}.{i}": q for i, q in enumerate(module.QUESTIONS, 1)}


# ---- judges ----


def number(value: float, within: float = 1e-6, rule: str = "") -> Judge:
    """The answer is a number no further than `within` from `value`. `rule`: what must hold, if more."""
    def judge(answer: Any) -> str:
        try:
            off = abs(float(answer) - value)
        except (TypeError, ValueError):
            return f"The answer must be a number; got {_brief(answer)}"
        exact = rule or f"It must be right to {within:g}"
        return "" if off <= within else f"{exact}; got {_brief(answer)}"
    return judge


def choice(right: str, wrong: dict[str, str]) -> Judge:
    """The answer is the word `right`; `wrong`: {another word that is offered: what speaks against it}."""
    def judge(answer: Any) -> str:
        if answer == right:
            return ""
        offered = ", ".join(sorted([right, *wrong]))
        return f"{wrong.get(str(answer), f'The answer must be one of: {offered}')}; got {_brief(answer)}"
    return judge


def works_like(reference: Callable[..., Any], *cases: tuple[Any, ...], tolerance: float = 1e-9) -> Judge:
    """The answer is a function that gives what `reference` gives, for the arguments of each case.

    Whole numbers must be equal; others as near as `tolerance` of the largest. Arguments are copies.
    """
    def judge(answer: Any) -> str:
        if not callable(answer):
            return f"The answer must be a function; got {_brief(answer)}"
        for case in cases:
            want = reference(*_copies(case))
            try:
                with np.errstate(all="ignore"):
                    got = answer(*_copies(case))
            except Exception as e:       # the reader's own code: whatever it raises is part of the verdict
                got = e
            if got is ...:
                return OPEN
            if not _same(got, want, tolerance):
                given = ", ".join([_brief(a) for a in case])
                return f"For {given} it must give {_brief(want)}; got {_brief(got)}"
        return ""
    return judge


def _copies(case: tuple[Any, ...]) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in case]


def _same(got: Any, want: Any, tolerance: float) -> bool:
    if isinstance(want, tuple):
        parts = isinstance(got, tuple | list) and len(got) == len(want)
        return parts and all(_same(g, w, tolerance) for g, w in zip(got, want))
    a, b = np.asarray(got), np.asarray(want)
    if a.shape != b.shape or a.dtype.kind not in "biuf":
        return False
    if b.dtype.kind in "biu":
        return bool(np.array_equal(a, b))
    largest = np.max(np.abs(b), initial=0)
    return bool(np.max(np.abs(a - b), initial=0) <= tolerance * max(largest, 1e-30))   # NaN is not below


def _brief(value: Any) -> str:
    """In one line, arrays as lists of a few digits."""
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {shown(value, 200)}"
    if isinstance(value, np.ndarray):
        with np.printoptions(precision=4, threshold=12, edgeitems=2):
            return " ".join(str(value).split())
    if isinstance(value, tuple | list):
        return f"({', '.join([_brief(v) for v in value])})"
    return shown(f"{value:.6g}" if isinstance(value, float) else repr(value), 200)
