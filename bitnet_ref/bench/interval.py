"""A difference and its uncertainty: 0 % is parity, positive is better, negative is worse.

A test set is one sample of the questions that could have been asked: drawing from it again says how far its
figure may be off (BCa bootstrap, in pairs where two models answered the same questions). A trained model is
one sample of its seeds: Student's interval says how far another seed may lie. Neither knows of the other.
Read after: bench/report. Read next: bench/contest.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench.cells import T95, spread
from bitnet_ref.checks import check

RESAMPLES = 2000
BLOCK = 1 << 22              # counts drawn at a time: 32 MiB
TAIL = 0.025                 # on each side: 95 % between
NORMAL = NormalDist()
Figure = Callable[[Any], Any]    # sums over items (..., k)  ->  (...)


class Interval(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether all three are numbers: a quotient of which a draw had nothing below has none."""
        return all(map(math.isfinite, self))

    @property
    def decided(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return self.low <= value <= self.high


def delta(ours: Any, theirs: Any, better: str) -> Any:
    """By how many percent ours is better. `better`: "higher" or "lower". Of numbers or arrays."""
    if better == "higher":
        return 100 * (ours - theirs) / theirs                                   # (EV.1)
    return 100 * (theirs - ours) / theirs                                       # (EV.2)


# ---- of a test set ----

def bootstrap(items: np.ndarray, figure: Figure, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The BCa interval of `figure` of the sums over items.   items (n, k)

    Skew and bias of the resampled figures move its ends (Efron 1987); where a draw has no figure, an end is
    not finite. Raises CheckError: fewer than 2 items.
    """
    items = np.asarray(items, float)
    value = float(figure(items.sum(axis=0)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _bca(items, figure, value, np.sort(figure(resampled(items, seed, resamples))))


def _bca(items: np.ndarray, figure: Figure, value: float, draws: np.ndarray) -> Interval:
    total, resamples = items.sum(axis=0), len(draws)
    if draws[0] == draws[-1] == value:                     # nothing varies: the figure of any sample
        return Interval(value, value, value)
    below = float(np.mean(draws < value) + np.mean(draws <= value)) / 2
    bias = NORMAL.inv_cdf(min(max(below, 1 / resamples), 1 - 1 / resamples))    # (EV.3)
    away = figure(total - items)                           # the jackknife: each item left out once
    away = away.mean() - away
    spreads = float(np.sum(away * away)) ** 1.5
    skew = float(np.sum(away ** 3)) / (6 * spreads) if spreads > 0 else 0.0     # (EV.4)
    low, high = (float(np.quantile(draws, _moved(tail, bias, skew))) for tail in (TAIL, 1 - TAIL))
    return Interval(value, min(low, value), max(high, value))


def _moved(tail: float, bias: float, skew: float) -> float:
    z = bias + NORMAL.inv_cdf(tail)
    return NORMAL.cdf(bias + z / (1 - skew * z))                                # (EV.5)


def resampled(items: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Sums over as many items drawn with replacement.   items (n, k)  ->  (resamples, k)"""
    n = len(items)
    check(n > 1, "an interval needs at least 2 items", n, "score more of the set")
    rng, even = np.random.default_rng(seed), np.full(n, 1 / n)
    block = max(1, BLOCK // n)
    return np.concatenate([rng.multinomial(n, even, min(block, resamples - i)) @ items
                           for i in range(0, resamples, block)])


def paired(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], figure: Figure, better: str,
           seed: int = 0) -> Interval:
    """The delta of models that answered the same items, the mean over seeds.   each (n, k)

    Both sides of a pair are drawn together, so what makes an item hard for all cancels.
    """
    assert len(ours) == len(theirs)
    middle = len(ours) * ours[0].shape[1]
    return bootstrap(np.hstack([*ours, *theirs]), lambda sums: _mean_delta(
        sums[..., :middle], sums[..., middle:], len(ours), figure, better), seed)


def apart(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], figure: Figure, better: str,
          seed: int = 0) -> Interval:
    """The same of two sets that do not pair, each drawn by itself: percentiles.   each (n, k), (m, k)"""
    assert len(ours) == len(theirs)
    mine, other = np.hstack(list(ours)), np.hstack(list(theirs))
    value = float(_mean_delta(mine.sum(axis=0), other.sum(axis=0), len(ours), figure, better))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        draws = _mean_delta(resampled(mine, seed), resampled(other, seed + 1), len(ours), figure, better)
        low, high = np.quantile(draws, (TAIL, 1 - TAIL))
    return Interval(value, min(float(low), value), max(float(high), value))


def _mean_delta(ours: Any, theirs: Any, pairs: int, figure: Figure, better: str) -> Any:
    """Sums (..., pairs * k) of both sides  ->  (...)"""
    each = [[figure(part) for part in np.split(sums, pairs, axis=-1)] for sums in (ours, theirs)]
    return sum(delta(o, t, better) for o, t in zip(*each)) / pairs


# ---- of seeds, of rounds ----

def over_seeds(ours: Sequence[float], theirs: Sequence[float], better: str) -> Interval:
    """The mean of the deltas of pairs (the same seed, the same round) and Student's interval of it.

    Raises CheckError unless there are 2 to 5 pairs.
    """
    check(len(ours) == len(theirs) and len(ours) in T95, f"pairs must be 2 to {max(T95)}",
          f"{len(ours)} and {len(theirs)}", "train or measure as often on both sides")
    return around([delta(o, t, better) for o, t in zip(ours, theirs)])


def over_rounds(ours: Sequence[float], theirs: Sequence[float], better: str) -> Interval:
    """The delta of times or rates of pairs (the same round) by the mean of the logarithms of their ratios,
    and Student's interval of that: with the sides exchanged it says the same, where a mean of ratios would
    favour whatever is larger.

    Raises CheckError unless there are 2 to 5 pairs. All must be greater than 0.
    """
    check(len(ours) == len(theirs) and len(ours) in T95, f"pairs must be 2 to {max(T95)}",
          f"{len(ours)} and {len(theirs)}", "measure as often on both sides")
    found = around([math.log(o / t) for o, t in zip(ours, theirs)])             # (EV.6)
    low, value, high = sorted(delta(math.exp(each), 1.0, better)                # (EV.7)
                              for each in (found.low, found.value, found.high))
    return Interval(value, low, high)


def around(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of 2 to 5 values."""
    found = spread(list(values))
    return Interval(found.mean, found.mean - found.half, found.mean + found.half)


def hull(a: Interval, b: Interval) -> Interval:
    """The value of `a` between the outer ends of both: what is claimed must survive both."""
    return Interval(a.value, min(a.low, b.low), max(a.high, b.high))


def difference(old: Interval, new: Interval, better: str) -> Interval:
    """The delta of `new` over `old` whose errors have nothing to do with each other: squares add."""
    value = float(delta(new.value, old.value, better))
    half = [max(i.high - i.value, i.value - i.low) for i in (old, new)]
    wide = 100 * math.hypot(*half) / abs(old.value)
    return Interval(value, value - wide, value + wide)
