"""What a part of the benchmark is told and what it tells: measures beside their limits, claims beside aims.

A measure has its share of what the machine can do at most, a claim compares two of them that took turns in
the same rounds. Since a shared machine is faster one second than the next, a ratio is taken in every round
and the middle one counts.
Read after: bench/onnx_peer. Read next: bench/limits.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.bench import timing
from bitnet_ref.bench.child import Child
from bitnet_ref.checks import CheckError

Times = Mapping[str, list[float]]


class Setup(NamedTuple):
    """What is asked of a part. `machine`: fields of roofline.Machine and more; `say(text)`: progress."""

    machine: dict[str, Any]
    threads: int
    rounds: int
    quick: bool
    pythons: dict[str, str]              # of the peers: "llama", "torch"
    shape: tuple[int | None, ...]                            # of kernels: M, N (outputs), K (inputs)
    say: Callable[[str], None]


class Measure(NamedTuple):
    """A figure. `share`: of the limit that `limit` names; None where there is none. `peer`: not of ours."""

    name: str
    value: float
    unit: str
    share: float | None = None
    limit: str = ""
    peer: bool = False


class Claim(NamedTuple):
    """What the figures must show. `value` None: not measured. `most`: floor and aim are upper bounds."""

    name: str
    value: float | None
    unit: str
    floor: float
    aim: float | None = None
    most: bool = False

    @property
    def verdict(self) -> str:
        """In two words."""
        if self.value is None:
            return "not measured"
        sign = -1 if self.most else 1
        if self.aim is not None and sign * self.value >= sign * self.aim:
            return "aim met"
        return "floor met" if sign * self.value >= sign * self.floor else "missed"


class Part(NamedTuple):
    """What a part found. `notes`: what was left out and why, one line each."""

    title: str
    measures: list[Measure]
    claims: list[Claim]
    notes: list[str]


def by_turns(setup: Setup, runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds per call of each run, round by round, on setup.threads; a REST after each turn."""
    with timing.threads(setup.threads):
        return timing.alternate(runs, setup.rounds, timing.REST)


def middle(times: Times, name: str) -> float:
    """The median of the seconds of `name`."""
    return statistics.median(times[name])


def ratio(times: Times, ours: str, theirs: str) -> float | None:
    """How many times as fast as `theirs` `ours` is: the median over rounds. None if either was not timed."""
    if ours not in times or theirs not in times:
        return None
    return statistics.median(b / a for a, b in zip(times[ours], times[theirs]))


def over(a: float | None, b: float | None) -> float | None:
    """a / b, where both were measured."""
    return None if a is None or b is None else a / b


def memory_left() -> float:
    """Bytes that can still be allocated without swapping; without end where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return float("inf")


@contextmanager
def children(wanted: Mapping[str, tuple[str, ...]], notes: list[str]) -> Iterator[dict[str, Child]]:
    """{name: Child} of what starts; `wanted` has (interpreter, module, arguments...). The rest: a note."""
    found: dict[str, Child] = {}
    try:
        for name, how in wanted.items():
            try:
                found[name] = Child(*how)
            except CheckError as e:
                notes.append(f"{name}: {e}")
        yield found
    finally:
        for child in found.values():
            child.close()
