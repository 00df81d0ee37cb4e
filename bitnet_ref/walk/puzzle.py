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
NOTEBOOKS = {"01": "ternary", "02": "layers_by_hand", "03": "a_block", "04": "train_nano", "05": "packing",
             "06": "cpu_kernels", "07": "gpu_kernels", "08": "generate_and_chain", "09": "formats",
             "10": "evaluate"}
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
    >>> check("01.1", 2)
    01.1: wrong. It must be right to 0.005; got 2; n equally likely values hold log2(n) bits
    >>> check("01.1", ...).right is None               # no answer yet is not a wrong one
    True
    """
    question = lookup(questions(number.partition(".")[0]), number, "the question")
    fault = OPEN if answer is ... else question.judge(answer)
    if fault == OPEN:
        return Verdict(None, f"{number}: {OPEN}. {question.spec}")
    if fault:
        return Verdict(False, f"{number}: wrong. {fault}; {question.hint}")
    return Verdict(True, f"{number}: right.")


def questions(notebook: str) -> dict[str, Question]:
    """{number: Question} of a notebook, as "01". Raises CheckError for one that has none.
    >>> len(questions("09")), questions("09")["09.2"].solution
    (4, 0.4)
    """
    module = import_module(f"bitnet_ref.walk.{lookup(NOTEBOOKS, notebook, 'the notebook')}")
    return {f"{notebook}.{i}": q for i, q in enumerate(module.QUESTIONS, 1)}


# ---- judges ----


def number(value: float, within: float = 1e-6, rule: str = "") -> Judge:
    """The answer is a number no further than `within` from `value`. `rule`: what must hold, if more.
    >>> number(32, within=0)(32), number(32, within=0)(31)
    ('', 'It must be right to 0; got 31')
    """
    def judge(answer: Any) -> str:
        try:
            off = abs(float(answer) - value)
        except Exception:                # whatever float() makes of what the reader gave
            return f"The answer must be a number; got {_brief(answer)}"
        exact = rule or f"It must be right to {within:g}"
        return "" if off <= within else f"{exact}; got {_brief(answer)}"
    return judge


def choice(right: str, wrong: dict[str, str]) -> Judge:
    """The answer is the word `right`; `wrong`: {another word that is offered: what speaks against it}.
    >>> judge = choice("steps", {"sign": "A trit has a sign"})
    >>> judge("steps"), judge("sign")
    ('', "A trit has a sign; got 'sign'")
    """
    def judge(answer: Any) -> str:
        word = answer if isinstance(answer, str) else ""
        if word == right:
            return ""
        offered = ", ".join(sorted([right, *wrong]))
        return f"{wrong.get(word, f'The answer must be one of: {offered}')}; got {_brief(answer)}"
    return judge


def works_like(reference: Callable[..., Any], *cases: tuple[Any, ...], tolerance: float = 1e-9) -> Judge:
    """The answer is a function that gives what `reference` gives, for the arguments of each case.

    Whole numbers must be equal; others as near as `tolerance` of the largest. Arguments are copies.
    >>> judge = works_like(abs, (3.0,), (-3.0,))
    >>> judge(lambda x: (x * x) ** 0.5), judge(lambda x: x)
    ('', 'For -3 it must give 3; got -3')
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
            if fault := _difference(got, want, tolerance):
                return f"For {', '.join([_brief(a) for a in case])} {fault}"
        return ""
    return judge


def _copies(case: tuple[Any, ...]) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in case]


def _difference(got: Any, want: Any, tolerance: float) -> str:
    """"" if they agree, else what must hold and what came; of arrays that fit, how far they are apart."""
    if isinstance(want, tuple):
        several = isinstance(got, tuple | list) or (isinstance(got, np.ndarray) and got.ndim)
        parts = list(got) if several else []
        if len(parts) != len(want):
            return f"it must give {len(want)} values; got {_kind(got)}: {_brief(got)}"
        faults = [_difference(g, w, tolerance) for g, w in zip(parts, want)]
        return next((f"part {i}: {fault}" for i, fault in enumerate(faults, 1) if fault), "")
    a, b = _array(got), np.asarray(want)
    if a.dtype.kind not in "biuf":
        numbers = f"an array of shape {b.shape}" if b.ndim else _brief(want)
        return f"it must give {numbers}; got {_kind(got)}: {_brief(got)}"
    if a.shape != b.shape:
        return f"it must give an array of shape {b.shape}; got shape {a.shape}: {_brief(got)}"
    whole = b.dtype.kind in "biu"
    allowed = 0.0 if whole else float(tolerance * max(np.max(np.abs(b), initial=0), 1e-30))
    with np.errstate(all="ignore"):
        off = float(np.max(np.abs(a.astype(float) - b.astype(float)), initial=0))
    if np.array_equal(a, b) if whole else off <= allowed:             # NaN is not
        return ""
    if not b.ndim:
        return f"it must give {_brief(want)}; got {_brief(got)}"
    return f"no element may be off by more than {allowed:.2g}; got {off:.2g} at the worst"


def _array(value: Any) -> np.ndarray:
    """As an array; one of objects for what makes none, such as a ragged list."""
    try:
        return np.asarray(value)
    except Exception:
        return np.empty((), object)


def _kind(value: Any) -> str:
    """The name of its type, and of its elements."""
    name = type(value).__name__
    return f"{name} of {value.dtype}" if isinstance(value, np.ndarray) else name


def _brief(value: Any) -> str:
    """In one line: small arrays as lists of a few digits, others by their shape."""
    try:
        return shown(_written(value), 200)
    except Exception:                    # a whole number of thousands of digits; an object that refuses
        return "what cannot be printed"


def _written(value: Any) -> str:
    if isinstance(value, np.ndarray):
        with np.printoptions(precision=4):
            small = value.size <= 12
            return " ".join(str(value).split()) if small else f"an array of shape {value.shape}"
    if isinstance(value, tuple | list):
        return f"({', '.join([_brief(v) for v in value[:12]])})"
    if isinstance(value, BaseException):
        return str(value)
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
