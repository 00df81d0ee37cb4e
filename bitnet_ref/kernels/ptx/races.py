"""Races: the same bytes, one of two who use them writes, and nothing says who comes first.

In shared memory they are two warps without a barrier between: every granule (the narrowest access that the
kernel makes) remembers who last wrote and who last read it, and after how many barriers of the block. In
global memory they are two blocks of a launch, which nothing orders. Lanes of a warp are not told apart.
Read after: kernels/ptx/memory. Read next: kernels/ptx/scalar.
"""

from typing import Any

import numpy as np

from bitnet_ref.kernels.ptx.faults import Fault, demand

WARPS = 64                       # values of a stamp for one interval: warps 1..32, and
SEVERAL = 63                     # several warps (of readers)


class Races:
    """Stamps (interval * WARPS + warp + 1) of the last writer and reader of every granule."""

    def __init__(self, size: int, granule: int) -> None:
        self.granule = granule
        self.writer = np.full(size // granule, -1, np.int32)
        self.reader = np.full(size // granule, -1, np.int32)

    def read(self, at: np.ndarray, n: int, interval: np.ndarray, warp: np.ndarray) -> None:
        """Threads read n bytes at offsets `at`. Raises Fault where another warp wrote in this interval."""
        place, mine = self._stamps(at, n, interval, warp)
        self._unshared(self.writer[place], mine, "read what another warp writes")
        before = self.reader[place]
        shared = (before // WARPS == mine // WARPS) & (before != mine)
        self.reader[place] = np.where(shared, mine // WARPS * WARPS + SEVERAL, mine)
        again = self.reader[place] != mine                 # by several warps in this very step
        if again.any():
            self.reader[place[again]] = mine[again] // WARPS * WARPS + SEVERAL

    def write(self, at: np.ndarray, n: int, interval: np.ndarray, warp: np.ndarray,
              atomic: bool = False) -> None:
        """Threads write n bytes at offsets `at`. Raises Fault where another warp did anything there.

        Atomic operations do not race with one another, but with plain reads that follow.
        """
        place, mine = self._stamps(at, n, interval, warp)
        if not atomic:
            self._unshared(self.writer[place], mine, "write what another warp writes")
            self._unshared(self.reader[place], mine, "write what another warp reads")
        self.writer[place] = mine
        if not atomic:
            self._unshared(self.writer[place], mine, "write what another warp writes")

    def _stamps(self, at: np.ndarray, n: int, interval: np.ndarray, warp: np.ndarray) -> tuple[Any, Any]:
        """Granules (all of them, in one row) and the stamp of each."""
        each = max(n // self.granule, 1)
        place = at.astype(np.int64) // self.granule
        mine = (interval * WARPS + warp + 1).astype(np.int32)
        if each > 1:
            place = (place[:, None] + np.arange(each)).ravel()
            mine = np.repeat(mine, each)
        return place, mine

    def _unshared(self, found: np.ndarray, mine: np.ndarray, what: str) -> None:
        bad = (found // WARPS == mine // WARPS) & (found != mine)
        if bad.any():
            i = int(np.argmax(bad))
            other = int(found[i]) % WARPS
            name = "several warps" if other == SEVERAL else f"warp {other - 1}"
            demand(bad[i:i + 1], f"between two barriers no warp may {what} in shared memory",
                   f"warp {int(mine[i]) % WARPS - 1} and {name}", "put a barrier (syncthreads) between them")


LARGEST = 32 << 20               # bytes of global memory in use, above which blocks are not told apart


class BlockRaces:
    """Stamps (of the launch, and the block in it) of the last writer and reader of every granule.

    Launches count their blocks on, so that a stamp of an earlier launch is smaller than any of this one.
    """

    def __init__(self) -> None:
        self.first, self.next, self.granule = 0, 1, 0      # stamps of this launch and of the next one
        self.writer = self.reader = np.zeros(0, np.int64)

    def begin(self, size: int, granule: int, blocks: int) -> bool:
        """A launch on `size` bytes. False where they are too many to look at."""
        if size > LARGEST or not granule or blocks < 2:
            return False
        if granule != self.granule or len(self.writer) < size // granule + 1:
            self.granule = granule
            self.writer, self.reader = np.zeros((2, size // granule + 1), np.int64)
        self.first, self.next = self.next, self.next + blocks + 1        # the last one: several blocks
        return True

    def read(self, at: np.ndarray, n: int, block: np.ndarray) -> None:
        """Threads of blocks read n bytes at offsets `at`. Raises Fault where another block wrote."""
        place, mine = self._stamps(at, n, block)
        self._unshared(self.writer[place], mine, "read what another block writes")
        self._add(self.reader, place, mine)

    def write(self, at: np.ndarray, n: int, block: np.ndarray, atomic: bool = False) -> None:
        """Threads of blocks write n bytes at offsets `at`. Raises Fault where another did anything there."""
        place, mine = self._stamps(at, n, block)
        if atomic:
            return self._add(self.writer, place, mine)
        self._unshared(self.writer[place], mine, "write what another block writes")
        self._unshared(self.reader[place], mine, "write what another block reads")
        self.writer[place] = mine
        self._unshared(self.writer[place], mine, "write what another block writes")
        return None

    def _add(self, stamps: np.ndarray, place: np.ndarray, mine: np.ndarray) -> None:
        """Blocks join those that use granules."""
        before = stamps[place]
        stamps[place] = np.where((before >= self.first) & (before != mine), self.next - 1, mine)
        again = stamps[place] != mine                      # by several blocks in this very step
        stamps[place[again]] = self.next - 1

    def _stamps(self, at: np.ndarray, n: int, block: np.ndarray) -> tuple[Any, Any]:
        each = max(n // self.granule, 1)
        place, mine = at.astype(np.int64) // self.granule, block + self.first
        if each > 1:
            place = (place[:, None] + np.arange(each)).ravel()
            mine = np.repeat(mine, each)
        return place, mine

    def _unshared(self, found: np.ndarray, mine: np.ndarray, what: str) -> None:
        bad = (found >= self.first) & (found != mine)
        if bad.any():
            i = int(np.argmax(bad))
            other = "several blocks" if found[i] == self.next - 1 else f"block {int(found[i]) - self.first}"
            raise Fault(f"no block may {what} in global memory in the same launch",
                        f"block {int(mine[i]) - self.first} and {other}",
                        "give each block bytes of its own, or make it two launches", None)
