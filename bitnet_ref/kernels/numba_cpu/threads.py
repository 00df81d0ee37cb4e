"""How many threads, and the memory that each has to itself.

Numba's pool runs every parallel loop. One loop at a time: the pool is not re-entrant, and the scratch is
shared, so what is compiled is called inside `with team() as t`. Results never depend on the count. A process
that was forked from one that ran the pool has none: OpenMP would end it, so it is told before.
Read after: kernels/numba_cpu/vectors. Read next: kernels/numba_cpu/quant.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numba
import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.kernels.numba_cpu.tiles import TIER

_lock = threading.RLock()
_scratch = [np.zeros((0, 0), np.uint8)]
_home: list[int] = []        # the process that has started the pool
_most: list[int] = []        # threads that use() allowed; Numba itself keeps a number for each Python thread


class Team(NamedTuple):
    """`threads`: how many; `scratch`: uint8 (threads, bytes), a row for each, its content arbitrary."""

    threads: int
    scratch: np.ndarray


def _after_fork() -> None:
    """In the child: whoever held the lock is not here."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def exclusive() -> threading.RLock:  # type: ignore[valid-type]
    """The lock of the pool and of all that is shared: one caller at a time, who may take it again."""
    return _lock


def pool_size() -> int:
    """Threads in use. Asking starts the pool, so from here on this is the process that may run it."""
    _home[:] = _home or [os.getpid()]
    return min([numba.get_num_threads(), *_most])


def use(threads: int) -> None:
    """Run with this many threads from now on. Raises CheckError unless the pool has that many."""
    most = numba.config.NUMBA_NUM_THREADS
    check(1 <= threads <= most, f"threads must lie in 1..{most} (the processors of this process)", threads,
          "choose fewer, or set NUMBA_NUM_THREADS before the start")
    pool_size()
    numba.set_num_threads(threads)
    _most[:] = [threads]


def about() -> dict[str, Any]:
    """The instructions that were chosen, and the threads in use."""
    return {"instructions": TIER.name, "threads": pool_size()}


@contextmanager
def team(scratch: int = 0, pool: bool = True) -> Iterator[Team]:
    """The pool, for this caller alone, with at least `scratch` bytes for each thread (64-byte aligned).

    `pool` False: only the caller's thread will run. Raises CheckError in a forked process.
    """
    with exclusive():
        threads = pool_size() if pool else 1
        if pool:
            check(_home[0] == os.getpid(), "threads must be used in the process that started them",
                  "a process forked from it", "start processes by spawn (multiprocessing.set_start_method)")
        rows, size = _scratch[0].shape
        if rows < threads or size < scratch:
            size = (max(size, scratch) + 63) // 64 * 64
            whole = np.empty(threads * size + 64, np.uint8)
            start = -whole.ctypes.data % 64
            _scratch[0] = whole[start:start + threads * size].reshape(threads, size)
        yield Team(threads, _scratch[0])
