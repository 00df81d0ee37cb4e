"""Several corpora in one run, each with a weight: `--corpus "wikitext-2=0.7,tinystories=0.3"`.

Which corpus a row of a batch comes from, and which of that corpus's rows it is, are functions of the row's
number alone: integers, no chance, no state. Rows are dealt as evenly as they can be, so that any stretch of a
run has the weights, not only the whole of it.
Read after: data/packing. Read next: data/feed.
"""

import glob
import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.data.corpus import CORPORA

ENTRY = re.compile(r"([^=,]+)=(\d{1,9}(?:\.\d{1,9})?)(?:,|$)", re.DOTALL)
MOST = 1 << 30                  # of all weights together, as integers without a common divisor
FIX = 'write NAME=WEIGHT,NAME=WEIGHT with weights such as 0.7 or 3, as "wikitext-2=0.7,tinystories=0.3"'


class Part(NamedTuple):
    """A corpus of a mixture; `weight` as an integer: its share is weight / (the sum of all)."""

    corpus: str
    weight: int


def parts(corpus: str) -> list[Part]:
    """The corpora in `corpus` and their weights; alone, with weight 1, if it is one.

    What exists as a path, or matches as a glob, is one corpus, though it have a "="; a name in a mixture has
    neither "=" nor ",". Raises CheckError: not a mixture, weights that are not positive or have too many
    digits, a corpus named twice, also as two spellings of one path.
    >>> parts("wikitext-2=0.7,tinystories=0.3")
    [Part(corpus='wikitext-2', weight=7), Part(corpus='tinystories', weight=3)]
    """
    if "=" not in corpus or _exists(corpus):
        return [Part(corpus, 1)]
    found = list(ENTRY.finditer(corpus))
    whole = sum(len(m[0]) for m in found) == len(corpus) and not corpus.endswith(",")
    check(whole and len(found) > 1, "a corpus with a = in its name must exist, or be a mixture of names "
          "without = and ,", repr(corpus), FIX)
    exact = [Fraction(m[2]) for m in found]
    check(all(w > 0 for w in exact), "each weight of a mixture must be greater than 0", repr(corpus),
          "leave out what shall have none")
    names = [m[1] for m in found]
    check(len({*map(_place, names)}) == len(names), "a mixture must name each corpus once", repr(corpus),
          "add up its weights")
    scale = math.lcm(*(w.denominator for w in exact))
    weights = [int(w * scale) for w in exact]
    weights = [w // math.gcd(*weights) for w in weights]
    check(sum(weights) <= MOST, f"the weights of a mixture must be integers to one another, below {MOST}",
          repr(corpus), "give them fewer digits")
    return [Part(name, w) for name, w in zip(names, weights)]


def _place(name: str) -> str:
    """What a corpus is, however it is spelt: one of the named, or a path."""
    return name if name in CORPORA else os.path.realpath(name)


def _exists(corpus: str) -> bool:
    return os.path.exists(corpus) or any(glob.iglob(corpus, recursive=True))


def drawn(row: np.ndarray, weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The source of each row of a run, and its number among that source's rows.   int64 (B,)  ->  (B,), (B,)

    Of any first n rows, source k has n * weights[k] / sum(weights) to within len(weights), and its rows are
    numbered 0, 1, 2, ... without a gap. The first source takes row n wherever floor(n * share) grows; of the
    rows that are left, which are numbered again, the second does so with its share of the rest; and so on.
    >>> source, number = drawn(np.arange(5), [3, 2])
    >>> source.tolist(), number.tolist()
    ([1, 0, 1, 0, 0], [0, 0, 1, 1, 2])
    """
    source, number = np.full(row.shape, len(weights) - 1), row.astype(np.int64)
    left = np.ones(row.shape, bool)
    for k, weight in enumerate(weights[:-1]):
        before, after = (_share(n, weight, sum(weights[k:])) for n in (number, number + 1))
        taken = left & (after > before)
        source[taken] = k
        number = np.where(taken, before, np.where(left, number - before, number))
        left &= ~taken
    return source, number


def _share(n: np.ndarray, weight: int, whole: int) -> np.ndarray:
    """floor(n * weight / whole), where n * weight might not fit in 64 bits."""
    times, rest = np.divmod(n, whole)
    return times * weight + rest * weight // whole
