"""From wrong tensors to causes: the reference is run again with each known fault, on the port's own inputs,
and the fault that comes nearest to what the port got is named.

A fault explains 1 - |port - fault|^2 / |port - right|^2 of a tensor. Causes are chosen greedily: the fault
that explains most of what is still unexplained, then the next; where no single one explains a tensor to
within the tolerance, pairs that act on it. Between equals, the one wins that spares what is right.
Read after: conform/judge. Read next: conform/read.
"""

from collections.abc import Callable
from itertools import combinations
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.conform.faults import Fault, catalogue
from bitnet_ref.conform.graph import REFERENCE
from bitnet_ref.conform.judge import BAD, OK, Judge, Verdict, alike, compare, rows_largest

Table = dict[str, Callable[..., Any]]
ENOUGH = 0.9                  # of the squared difference: below it a fault is not named as the cause
MUCH_BETTER = 100             # a pair that is not exact must leave so many times less than the best single
EQUAL = 1e-6                  # two suspects whose shares are nearer than this cannot be told apart
CLEARLY = 3.0                 # tolerances: that a fault would change less than this is no evidence against it
TINY = float(np.finfo(np.float64).tiny)
AT_ONCE = 40                  # wrong tensors looked at for the next cause
TRIES = 3                     # of them, for which all pairs are tried: the search takes a second or more each


class Suspect(NamedTuple):
    """One form of a fault, or of two faults at once."""

    faults: tuple[Fault, ...]
    table: Table

    @property
    def name(self) -> str:
        """As the report names it."""
        return " + ".join(f.name for f in self.faults)


class Cause(NamedTuple):
    """`explains`: wrong tensor -> share. `like`: faults that these tensors cannot tell from it. `next`: the
    best of the others and their shares. `spared`: right tensors that the fault would have spoilt.
    """

    suspect: Suspect
    explains: dict[str, float]
    like: tuple[str, ...]
    next: tuple[tuple[str, float], ...]
    spared: tuple[str, ...]

    @property
    def share(self) -> float:
        """The least over the tensors that it explains."""
        return min(self.explains.values())


def causes(judge: Judge, verdicts: list[Verdict]) -> tuple[list[Cause], list[str]]:
    """The causes, in the order of their first tensors, and the wrong tensors that no known fault explains."""
    left = [v.name for v in verdicts if v.status == BAD]
    right = [v.name for v in verdicts if v.status == OK]
    court, found = _Court(judge, right), []
    order = {name: i for i, name in enumerate(judge.nodes)}
    while left:
        cause = court.best(left[:AT_ONCE])
        if cause is None:
            break
        also = {n: share for n in left[AT_ONCE:] if (share := court.explained(cause.suspect, n)) >= ENOUGH}
        cause = cause._replace(explains=cause.explains | also)
        found.append(cause)
        left = [n for n in left if n not in cause.explains]
    return sorted(found, key=lambda c: min(order[n] for n in c.explains)), left


class _Court:
    """Remembers what each suspect explains of each tensor."""

    def __init__(self, judge: Judge, right: list[str]) -> None:
        self.judge, self.right = judge, right
        self.singles = [Suspect((f,), table) for f in catalogue() for table in f.variants]
        self.used: dict[str, set[str]] = {}
        self.known: dict[tuple[int, str], float] = {}
        self.within: dict[tuple[int, str], bool] = {}
        self.exactly: dict[str, bool] = {}
        self.pairs: dict[str, list[Suspect]] = {}

    def best(self, left: list[str]) -> Cause | None:
        """The suspect that explains most of `left`, alone; a pair where one alone leaves something over."""
        single = self._first(self.singles, left)
        rest = [n for n in (single.explains if single else left)
                if not (single and self.exact(single.suspect, n))]
        for name in rest[:TRIES]:
            left_over = 1 - (single.explains[name] if single else 0)
            pairs = [p for p in self._pairs(name) if self.exact(p, name)
                     or 1 - self.explained(p, name) < left_over / MUCH_BETTER]
            if found := self._first(pairs, left):
                return found
        return single

    def _first(self, suspects: list[Suspect], left: list[str]) -> Cause | None:
        """Near is not enough where some single fault is exact."""
        ranked = []
        for suspect in suspects:
            shares = {n: e for n in left if (e := self.explained(suspect, n)) >= ENOUGH
                      and (self.exact(suspect, n) or not self._has_exact(n))}
            if shares:
                ranked.append((sum(shares.values()), suspect, shares))
        if not ranked:
            return None
        most = max(total for total, _, _ in ranked)
        near = [(self._spared(s), total, s, shares) for total, s, shares in ranked
                if total >= most - EQUAL * len(left)]
        spared, _, suspect, shares = min(near, key=lambda entry: (len(entry[0]), -entry[1]))
        like = {s.name for other, _, s, e in near
                if len(other) == len(spared) and e.keys() == shares.keys()} - {suspect.name}
        others = self._others(suspects, shares, {suspect.name, *like})
        return Cause(suspect, shares, tuple(sorted(like)), others, tuple(spared))

    def _others(self, suspects: list[Suspect], shares: dict[str, float],
                named: set[str]) -> tuple[tuple[str, float], ...]:
        """The two next best explanations of the same tensors."""
        best: dict[str, float] = {}
        for s in suspects:
            least = min(self.explained(s, n) for n in shares)
            if s.name not in named and least > best.get(s.name, 0.0):
                best[s.name] = least
        return tuple(sorted(best.items(), key=lambda item: -item[1])[:2])

    def _pairs(self, name: str) -> list[Suspect]:
        """Two faults of different slots that both have a say in tensor `name`."""
        if name not in self.pairs:
            able = [s for s in self.singles if self._matters(s, name)]
            self.pairs[name] = [Suspect(a.faults + b.faults, {**a.table, **b.table})
                                for a, b in combinations(able, 2)
                                if not a.table.keys() & b.table.keys() and a.faults != b.faults]
        return self.pairs[name]

    def _matters(self, suspect: Suspect, name: str) -> bool:
        return bool(self._slots(name) & suspect.table.keys())

    def explained(self, suspect: Suspect, name: str) -> float:
        """Share of the squared difference; of the wrong entries, where some are not finite."""
        key = (id(suspect), name)
        if key not in self.known:
            right, got = self.judge.make(name), self.judge.seen[name]
            self.known[key] = (explained(right, got, self._with(suspect, name))
                               if self._matters(suspect, name) else 0.0)
        return self.known[key]

    def exact(self, suspect: Suspect, name: str) -> bool:
        """Whether the port's tensor is within the tolerance of what the fault makes of its inputs."""
        if self.explained(suspect, name) < ENOUGH:
            return False
        key = (id(suspect), name)
        if key not in self.within:
            made, got = self._with(suspect, name), self.judge.seen[name]
            self.within[key] = not compare(name, made, got, self.judge.tolerance(name)).wrong
        return self.within[key]

    def _has_exact(self, name: str) -> bool:
        if name not in self.exactly:
            self.exactly[name] = any(self.exact(s, name) for s in self.singles)
        return self.exactly[name]

    def _with(self, suspect: Suspect, name: str) -> np.ndarray:
        """What the reference with the fault makes of it; NaN where the fault cannot even run.

        Of wrong codes, whose precision is not known, what is nearer: rounded from float32 or from float64.
        """
        got = self.judge.seen[name]
        slots = SimpleNamespace(**{**vars(REFERENCE), **suspect.table, "got": got})
        wrong_codes = self.judge.nodes[name].codes and name in self.judge.wrong
        try:
            made = [np.asarray(self.judge.make(name, slots, {}, wide), np.float64)
                    for wide in ((False, True) if wrong_codes else (name in self.judge.wide,))]
        except (ValueError, IndexError):
            return np.full(got.shape, np.nan)
        return max(made, key=lambda m: explained(self.judge.make(name), got, m)) if wrong_codes else made[0]

    def _spared(self, suspect: Suspect) -> list[str]:
        """Right tensors that this fault would have spoilt."""
        able = [n for n in self.right if self._matters(suspect, n)]
        return [n for n in able if _spoils(self.judge, n, self._with(suspect, n))]

    def _slots(self, name: str) -> set[str]:
        """The slots that have a say in a tensor, found by watching which are taken."""
        if name not in self.used:
            watch = _Watch()
            self.judge.make(name, watch, {})                                    # type: ignore[arg-type]
            self.used[name] = watch.taken
        return self.used[name]


class _Watch:
    """The reference's slots, noting which are taken."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def __getattr__(self, slot: str) -> Any:
        self.taken.add(slot)
        return getattr(REFERENCE, slot)


def explained(right: Any, got: np.ndarray, faulty: np.ndarray) -> float:
    """1 - |got - faulty|^2 / |got - right|^2; by count of wrong entries where not all are finite.

    Not more than |got|^2 is divided by: a tensor far too small is not explained by a fault that makes zeros.
    """
    right, got = np.asarray(right, np.float64), np.asarray(got, np.float64)
    if faulty.shape != got.shape:
        return 0.0
    if np.isfinite(got).all() and np.isfinite(faulty).all():
        rows = rows_largest(right)                         # small rows count as much as large ones
        most = min(_energy((got - right) / rows), _energy(got / rows)) if got.any() else _energy(right / rows)
        return 1 - _energy((got - faulty) / rows) / max(most, TINY)
    was, left = (int(np.count_nonzero(~_close(x, got))) for x in (right, faulty))
    return 1 - left / max(was, 1)


def _energy(x: np.ndarray) -> float:
    return float(np.sum(np.square(np.minimum(np.abs(x), 1e100))))


def _close(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return alike(a, b) | (np.isfinite(b) & (np.abs(a - b) <= 1e-3 * np.abs(b)))


def _spoils(judge: Judge, name: str, faulty: np.ndarray) -> bool:
    right = judge.make(name)
    return (faulty.shape != np.shape(right)
            or compare(name, right, faulty, judge.tolerance(name)).share > CLEARLY)
