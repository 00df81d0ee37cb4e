"""From logits to a token: which tokens may be drawn, how likely each of them is, and the draw.

The order is fixed: repetition penalty, temperature, top-k, top-p, min-p (docs/generation.md says why).
Randomness is counter-based: the draw at position t depends on (seed, sequence, t) alone, so a seed gives the
same text whatever was generated before it or beside it.
Read after: generate. Read next: generate/window.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import numpy as np

from bitnet_ref.checks import check

BLOCK = 256                  # uniform numbers made at once: making a generator costs as much as a hundred
GROUPS, WORTH = 8, 64        # columns for each of the k largest; rows from which they save time
FINITE = sys.float_info.max


def _opt(default: Any, sym: str | None, help: str) -> Any:
    return field(default=default, metadata={"sym": sym, "help": help, "choices": ()})


@dataclass(frozen=True)
class Sampling:
    """How to draw a token. Raises CheckError for a value out of range, or of another type.

    Numbers of NumPy become those of Python.
    """

    temperature: float = _opt(0.8, "X", "logits are divided by it; 0 is greedy")
    top_k: int | None = _opt(40, "K", "draw among the k likeliest tokens; none keeps all")
    top_p: float = _opt(1.0, "P", "draw among the fewest tokens that together have probability p")
    min_p: float = _opt(0.0, "P", "draw among tokens at least p times as likely as the likeliest")
    repetition_penalty: float = _opt(1.0, "X", "above 1, tokens that stand in the text become less likely")
    seed: int = _opt(0, None, "same seed, same text")
    sequence: int = _opt(0, None, "number of the text: other texts for one prompt and seed")

    def __post_init__(self) -> None:
        for name in ("top_k", "seed", "sequence"):
            if name != "top_k" or self.top_k is not None:
                object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            check(isinstance(value, Real) and not isinstance(value, bool), f"{name} must be a number",
                  repr(value)[:50], "give a float")
            object.__setattr__(self, name, value if type(value) in (int, float) else float(value))
        self._check_ranges()

    def _check_ranges(self) -> None:
        check(self.temperature >= 0, "temperature must not be negative", self.temperature,
              "use 0 (greedy) or more")
        check(self.temperature <= FINITE, "temperature must be finite", self.temperature,
              "use 100 for hardly any preference")
        check(self.top_k is None or self.top_k > 0, "top_k must be greater than 0", self.top_k,
              "use 1 (greedy) or more")
        check(0 < self.top_p <= 1, "top_p must lie in (0, 1]", self.top_p, "use 1 to keep all tokens")
        check(0 <= self.min_p <= 1, "min_p must lie in [0, 1]", self.min_p, "use 0 to keep all tokens")
        check(0 < self.repetition_penalty <= FINITE, "repetition_penalty must be greater than 0 and finite",
              self.repetition_penalty, "use 1 for none")
        for name in ("seed", "sequence"):
            value = getattr(self, name)
            check(0 <= value < 1 << 64, f"{name} must lie in [0, 2^64)", value, "choose another")


def whole_number(name: str, value: Any) -> int:
    """`value` as an int of Python. Raises CheckError for what is no integer; True and 3.0 are none.

    >>> whole_number("seed", np.int64(7))
    7
    """
    check(isinstance(value, Integral) and not isinstance(value, bool), f"{name} must be an integer",
          repr(value)[:50], "give an int")
    return int(value)


GREEDY = Sampling(temperature=0.0)


def from_settings(settings: dict[str, Any]) -> Sampling:
    """The defaults with what a model's generation_config.json says in their place.

    do_sample false is greedy and top_k 0 keeps all, as transformers has it. Raises CheckError for a value of
    another type or out of range: the file is a stranger's.

    >>> from_settings({"do_sample": False, "top_k": 0})       # a generation_config.json, perhaps
    Sampling(temperature=0.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0, sequence=0)
    """
    given = {f.name: settings[f.name] for f in fields(Sampling)
             if f.name not in ("seed", "sequence") and settings.get(f.name) is not None}
    for name, value in given.items():
        number = type(value) is int or (type(value) is float and name != "top_k")
        check(number and abs(value) < 1 << 64, f"{name} in the model's settings must be a number",
              repr(value)[:50], "correct generation_config.json")
    if given.get("top_k") == 0:
        given["top_k"] = None
    if settings.get("do_sample") is False:
        given["temperature"] = 0.0
    return Sampling(**given)


def sample(logits: np.ndarray, how: Sampling, position: int, seen: Iterable[int] = ()) -> int:
    """The token at `position` of a text, from logits (V,). `seen`: the ids that a penalty is for.

    Temperature 0 is greedy: the lowest id among equals. Raises CheckError as `candidates`.

    >>> logits = np.array([1.0, 3.0, 2.0])
    >>> sample(logits, GREEDY, position=0)
    1
    >>> sample(logits, Sampling(seed=1), 5) == sample(logits, Sampling(seed=1), 5)    # the draw has a place
    True
    """
    if how.temperature == 0 and how.repetition_penalty == 1:
        return int(np.argmax(logits))
    ids, p = _quick(logits, how) or candidates(logits, how, seen)
    if len(ids) == 1:
        return int(ids[0])
    edge = np.cumsum(p)
    drawn = uniform(how.seed, how.sequence, position) * edge[-1]
    return int(ids[np.searchsorted(edge, drawn, side="right")])


def _quick(logits: np.ndarray, how: Sampling) -> tuple[np.ndarray, np.ndarray] | None:
    """As `candidates` where only temperature and top-k are asked for, but p up to a factor: a quarter of its
    time, which a small model would notice. None where it is not so simple."""
    if how.repetition_penalty != 1 or how.top_p < 1 or how.min_p > 0 or not 0 < how.temperature < math.inf:
        return None
    ids = _largest(logits, how.top_k or len(logits))
    scores = logits[ids].astype(np.float64)
    top = scores.max() if len(scores) else np.nan
    if not np.isfinite(top):
        return None
    scores -= top
    with np.errstate(over="ignore"):
        scores /= how.temperature
    return ids, np.exp(scores, out=scores)


def candidates(logits: np.ndarray, how: Sampling,
               seen: Iterable[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """logits (V,)  ->  ids int (N,) that may be drawn, ascending; their probabilities float64 (N,), sum 1.

    Among equals the lowest ids are kept. Raises CheckError if a logit is NaN, or all are -inf.

    >>> ids, p = candidates(np.log([0.5, 0.25, 0.15, 0.1]), Sampling(temperature=1.0, top_k=2))
    >>> ids.tolist(), p.round(3).tolist()
    ([0, 1], [0.667, 0.333])
    """
    top = float(np.max(logits)) if len(logits) else -math.inf
    check(top > -math.inf, "a logit must be a number, and one of them above -inf", top,
          "look at the model's weights")
    scores = _penalised(np.asarray(logits), seen, how.repetition_penalty)
    if how.temperature == 0:
        ids = np.array([np.argmax(scores)])
    else:
        ids = _largest(scores, how.top_k or len(scores))
    p = _softmax(scores[ids].astype(np.float64), how.temperature or 1.0)
    keep = p > 0
    if how.top_p < 1:
        within = np.zeros(len(p), bool)
        within[_nucleus(p, how.top_p)] = True
        keep &= within
    keep &= p >= how.min_p * p.max()
    ids, p = ids[keep], p[keep]
    return ids, p / p.sum()


def logprob(logits: np.ndarray, token: int) -> float:
    """ln of the probability that the model itself gives `token`: log-softmax of logits (V,), in float64.

    >>> round(logprob(np.array([0.0, 0.0]), 1), 4)             # of two alike: ln 1/2
    -0.6931
    """
    x = np.asarray(logits, np.float64)
    x = x - x.max()
    return float(x[token] - np.log(np.sum(np.exp(x))))


def uniform(seed: int, sequence: int, position: int) -> float:
    """Number `position` of the stream of Philox (4x64) with key (seed, sequence), uniform in [0, 1).

    >>> uniform(seed=0, sequence=0, position=1000) == uniform(0, 0, 1000) != uniform(0, 0, 1001)
    True
    """
    return float(_uniforms(seed, sequence, position // BLOCK)[position % BLOCK])


@lru_cache(maxsize=64)
def _uniforms(seed: int, sequence: int, block: int) -> np.ndarray:
    """A step of the counter makes four numbers."""
    key = np.array([seed, sequence], np.uint64)
    return np.random.Generator(np.random.Philox(counter=block * (BLOCK // 4), key=key)).random(BLOCK)


def _penalised(scores: np.ndarray, seen: Iterable[int], penalty: float) -> np.ndarray:
    """Once for a token, however often it was seen; a positive score is divided and a negative multiplied, so
    that both become smaller."""
    if penalty == 1:
        return scores
    scores, ids = scores.astype(np.float64), np.unique(np.fromiter(seen, np.int64))
    held = scores[ids]
    with np.errstate(over="ignore"):
        scores[ids] = np.where(held > 0, held / penalty, held * penalty)
    return scores


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest, ascending; of those that equal the smallest of them, the lowest ids."""
    if k >= len(scores):
        return np.arange(len(scores))
    columns = GROUPS * k
    rows = len(scores) // columns
    if rows < WORTH:
        return _largest_of(scores, k)
    # The k-th largest of the columns' best is no more than the k-th of all: few scores reach it.
    best = scores[:rows * columns].reshape(rows, columns).max(axis=0)
    found = np.flatnonzero(scores >= np.partition(best, -k)[-k])
    return found[_largest_of(scores[found], k)]


def _largest_of(scores: np.ndarray, k: int) -> np.ndarray:
    edge = np.partition(scores, -k)[-k]
    found = np.flatnonzero(scores >= edge)
    if len(found) > k:                                     # more equals than places
        found = np.delete(found, np.flatnonzero(scores[found] == edge)[k - len(found):])
    return found


def _softmax(scores: np.ndarray, temperature: float) -> np.ndarray:
    """A temperature at which the quotient overflows leaves the best alone; +inf shares all among its own."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = (scores - scores.max()) / temperature
    p = np.exp(np.where(scores == scores.max(), 0.0, np.where(scores == -np.inf, -np.inf, x)))
    return p / p.sum()


def _nucleus(p: np.ndarray, top_p: float) -> np.ndarray:
    """Places, ascending: in the order of falling p (lowest first), those with less than top_p before them."""
    before = np.cumsum(np.sort(p)[::-1])[:-1]
    return _largest(p, 1 + int(np.searchsorted(before, top_p, side="left")))
