"""The machine's limits as runs that take turns with what they limit: a share is of the same second.

`roofline` says what a machine can do at its best; what it can do while others use it changes from round
to round. So each round also reads memory, or turns the tiles of dot products and float32: shares are of the
same round.
Read after: bench/part. Read next: bench/kernels.
"""

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench import timing
from bitnet_ref.bench.part import Setup, Times

READ, INT8, FLOAT32 = "read bandwidth", "int8 peak", "float32 peak"
LONG = 20                    # times as long as roofline's turns: the waking of threads must not count
FIELDS = {READ: "bandwidth", INT8: "int8", FLOAT32: "float32"}           # of roofline.Machine
QUIET = 1.5                  # by how much a limit may fall without a word
SHORT = 1 << 16              # bytes to read, where only the form of the answer is looked at


class Limit(NamedTuple):
    """A run that does nothing but reach it, and what it does in a call: bytes or operations."""

    run: Callable[[], object]
    amount: float


def set_up(threads: int | None, rounds: int, quick: bool, shape: tuple[int | None, ...],
           pythons: dict[str, str]) -> Setup:
    """The machine at its best, measured now, and what else a part must know. Raises as timing.threads."""
    from bitnet_ref.bench import roofline
    from bitnet_ref.kernels.numba_cpu import isa
    threads = timing.available() if threads is None else threads
    machine = {**roofline.measure(threads)._asdict(), "tier": isa.choose().name}
    return Setup(machine, threads, rounds, quick, pythons, shape, lambda said: print(said, file=sys.stderr))


def limits(threads: int, quick: bool, *wanted: str) -> dict[str, Limit]:
    """Those of READ, INT8, FLOAT32 that are wanted and that this machine has."""
    from bitnet_ref.bench import roofline
    from bitnet_ref.bench.vectors import DOT, LANES
    found, turns = {}, 10 if quick else LONG * roofline.TURNS
    if READ in wanted:
        words = np.ones((SHORT if quick else timing.OUT_OF_CACHE) // 4, np.int32)
        found[READ] = Limit(partial(roofline.read_all, words, threads), words.nbytes)
    wide = roofline.WIDE * LANES
    ops = 2 * roofline.ROWS * wide * roofline.DEPTH * turns * threads
    for name, tiles, a, b, kind in ((FLOAT32, roofline.float_tiles, np.float32, np.float32, np.float32),
                                    (INT8, roofline.dot_tiles, np.int8, np.uint8, np.int32)):
        if name in wanted and (name != INT8 or DOT is not None):
            args = (np.ones(roofline.ROWS * roofline.DEPTH, a), np.ones(roofline.DEPTH * wide, b),
                    np.zeros((threads, roofline.ROWS * wide), kind), threads, turns)
            found[name] = Limit(partial(tiles, *args), ops)
    return found


def runs(found: Mapping[str, Limit]) -> dict[str, Callable[[], object]]:
    """For timing.alternate."""
    return {name: limit.run for name, limit in found.items()}


def rates(times: Times, found: Mapping[str, Limit]) -> dict[str, float]:
    """Bytes or operations per second of each limit: the median over rounds."""
    return {name: limit.amount / statistics.median(times[name]) for name, limit in found.items()}


def share(times: Times, name: str, work: Mapping[str, float], found: Mapping[str, Limit]) -> float | None:
    """The least time for `work` ({limit: bytes or operations}) over that of a call of `name`.

    Kinds of work follow each other, their times add up. The median over rounds. None for an unknown limit.
    """
    if not set(work) <= set(found) or name not in times:
        return None
    least = [sum(amount * t / found[l].amount for (l, amount), t in zip(work.items(), row))
             for row in zip(*(times[l] for l in work))]
    return statistics.median(a / b for a, b in zip(least, times[name]))


def worst(notes: Iterable[str]) -> list[str]:
    """Notes without repetitions; of those of unrest() the lowest of each limit."""
    kept: dict[str, str] = {}
    for note in notes:
        about = note.partition(" fell to ")[0]
        kept[about] = min(kept.get(about, note), note, key=lambda n: (len(n), n))
    return list(kept.values())


def unrest(times: Times, found: Mapping[str, Limit], machine: dict[str, Any]) -> list[str]:
    """A line for each limit that others' work took a good part of, in some round.

    `machine`, which holds the limits at their best, learns of better ones.
    """
    said = []
    for name, limit in found.items():
        field = FIELDS[name]
        machine[field] = max(machine[field], limit.amount / min(times[name]))
        least = limit.amount / max(times[name]) / machine[field]
        if least < 1 / QUIET:
            said.append(f"the machine was not quiet: its {name} fell to {100 * least:.0f} % of the best")
    return said
