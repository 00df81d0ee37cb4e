"""Errors in three parts: what must hold · what we got · what to do.

Every rule that a user can break is raised in one shape, so that no bad input ends
in a traceback from deep inside. Internal invariants are plain asserts; these functions are for input.
Read after: bitnet_ref. Read next: config.
"""

from collections.abc import Iterable, Sequence
from typing import Any

LONGEST = 1000                       # characters of a part of a message: a stranger's file may hold anything


class CheckError(ValueError):
    """A rule that input must obey was broken. The message has three parts: rule, what came, what to do.

    What a terminal would act on, not show (escapes, line ends), is spelt out, and what is too long is cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shown(message, 4 * LONGEST))


def shown(text: object, longest: int = LONGEST) -> str:
    """`text` as it can be printed in one line: its begin and end, where it has more than `longest`.

    >>> shown("a long word", longest=8)
    'a long ... rd'
    """
    said = str(text)
    if len(said) > longest:
        said = f"{said[:longest * 3 // 4]} ... {said[len(said) - longest // 4:]}"
    return "".join([c if c.isprintable() else repr(c)[1:-1] for c in said])


class ShapeError(CheckError):
    """An array has the wrong shape."""


class NonFiniteError(CheckError):
    """A weight, activation, gradient or loss is NaN or infinite."""


class GaveUp(CheckError):
    """A training run went back again and again and did not get past its trouble."""


def check(holds: bool, rule: str, got: object, fix: str, error: type[CheckError] = CheckError) -> None:
    """Raise `error` with "rule; got ...; fix" unless `holds`.

    >>> check(False, "n must be even", 3, "choose an even n")
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: n must be even; got 3; choose an even n
    """
    if not holds:
        raise error(f"{shown(rule)}; got {shown(got)}; {shown(fix)}")


def lookup(table: Iterable[str], name: str, what: str) -> Any:
    """`table[name]` (or `name` itself for a plain collection); an unknown name lists the valid ones.

    >>> lookup({"pre": 1, "sub": 2}, "sub", "norm")
    2
    """
    check(name in table, f"{what} must be one of {', '.join(table)}", repr(name), "choose one of these")
    return table[name] if isinstance(table, dict) else name


def expect(name: str, a: Any, dims: str, **size: int) -> dict[str, int]:
    """Bind the letters of `dims` to `a.shape`; raise ShapeError if any letter would get two sizes.

    `bitnet_ref.DIMS` has the letters.

    >>> import numpy as np
    >>> expect("x", np.zeros((2, 3, 4)), "B T D", D=4)
    {'D': 4, 'B': 2, 'T': 3}
    """
    letters = dims.split()
    if a.ndim != len(letters) or any(size.setdefault(d, n) != n for d, n in zip(letters, a.shape)):
        want = ", ".join(f"{d}={size[d]}" if d in size else d for d in letters)
        raise ShapeError(f"{name} must have shape ({want}); got {a.shape}; pass an array of that shape")
    return size


def shorter(lengths: Any, now: Sequence[int]) -> tuple[int, ...]:
    """Lengths to go back to, an integer or one for each of `now`. Raises CheckError for others.

    >>> shorter(2, now=[5, 3])
    (2, 2)
    """
    asked = [lengths] * len(now) if isinstance(lengths, int) else lengths
    whole = hasattr(asked, "__len__") and len(asked) == len(now) and not isinstance(asked, str)
    values = [getattr(n, "item", lambda n=n: n)() for n in asked] if whole else []
    check(whole and all(type(n) is int and 0 < n <= most for n, most in zip(values, now)),
          "a state goes back to lengths from 1 to what they are", f"{lengths!r} of {list(now)}"[:200],
          "give an integer, or one for each text")
    return tuple(values)
