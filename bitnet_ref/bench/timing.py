"""How times are taken: by turns, out of cache, medians.

A shared machine is faster one second than the next, so what is compared runs in turns within the same round,
and each round begins with another. Calls too short for the clock are repeated. A weight that was just read
lies in the cache, and in a model it never does: so a timed product takes its weights from a ring of copies.
Read after: bench/full_size. Read next: bench/vectors.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from threadpoolctl import threadpool_limits

from bitnet_ref.checks import check

ROUND_SECONDS = 1e-3         # a run's turn lasts at least this long: 10,000 ticks of the clock
REST = 0.05                  # seconds after a turn: BLAS's idle threads keep a core busy for some 30 ms
OUT_OF_CACHE = 256 << 20     # bytes of copies: several times the largest cache of a desktop processor


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int = 7,
              rest: float = 0.0) -> dict[str, list[float]]:
    """{name: seconds per call, one figure for each round} of functions that take turns.

    Each is called once to warm up and then often enough in a turn for ROUND_SECONDS. Round i begins with the
    i-th function; after each turn come `rest` seconds. Raises CheckError for no functions or no rounds.
    """
    check(len(runs) > 0, "there must be something to time", "nothing", "pass at least one function")
    check(rounds > 0, "rounds must be positive", rounds, "pass at least 1")
    repeats = {}
    for name, run in runs.items():
        run()
        repeats[name] = _repeats(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(_seconds(runs[name], repeats[name]) / repeats[name])
            time.sleep(rest)
    return times


def median(times: Mapping[str, list[float]]) -> dict[str, float]:
    """{name: the middle of its times}: what a neighbour's burst of work does not move."""
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def best(run: Callable[[], object], rounds: int = 15) -> float:
    """The least seconds per call: for a limit of the machine, which nothing but a disturbance can miss.

    It rests first: all rounds fit into the time in which BLAS's threads, idle after what came before, still
    keep a core.
    """
    time.sleep(REST)
    return min(alternate({"": run}, rounds)[""])


def copies(array: np.ndarray, at_least: int = OUT_OF_CACHE) -> list[np.ndarray]:
    """Copies of `array`, together no fewer than `at_least` bytes. Raises CheckError for an empty array."""
    check(array.nbytes > 0, "an array to copy must have content", array.shape, "pass a larger one")
    return [array.copy() for _ in range(-(-at_least // array.nbytes))]


def rotate(array: np.ndarray, at_least: int = OUT_OF_CACHE) -> Iterator[np.ndarray]:
    """Endlessly the next of the copies of `array`: when one comes again, caches have long forgotten it."""
    yield from itertools.cycle(copies(array, at_least))    # made when the first is asked for


def available() -> int:
    """The threads that Numba may use: the processors of this process, or NUMBA_NUM_THREADS."""
    import numba
    return numba.config.NUMBA_NUM_THREADS    # type: ignore[attr-defined]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Numba's loops and BLAS on `count` threads inside. Raises CheckError if there are not so many."""
    import numba
    check(1 <= count <= available(), f"threads must lie in 1..{available()}", count, "choose another number")
    before = numba.get_num_threads()
    numba.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        numba.set_num_threads(before)


def _repeats(run: Callable[[], object]) -> int:
    """How many calls fill ROUND_SECONDS. Twice measured: one disturbance must not make a turn too short."""
    n = 1
    while min(_seconds(run, n), _seconds(run, n)) < ROUND_SECONDS:
        n *= 2
    return n


def _seconds(run: Callable[[], object], n: int) -> float:
    began = time.perf_counter()
    for _ in range(n):
        run()
    return time.perf_counter() - began
