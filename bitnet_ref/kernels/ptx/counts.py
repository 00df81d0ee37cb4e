"""What a kernel does, counted: instructions by kind, sectors of global memory, wavefronts of shared memory.

A global request of a warp touches sectors of 32 bytes: the fewer, the better its lanes lie together. A shared
request takes as many wavefronts as its busiest of 32 banks of 4 bytes has different words; the ideal is what
its bytes need. Lanes that read one word share it.
Read after: kernels/ptx/asynchronous. Read next: kernels/ptx/machine.
"""

from collections import Counter

import numpy as np

SECTOR, BANKS, WORD = 32, 32, 4


class Counts:
    """Sums over launches. `instructions`: of threads, by kind; `traffic`: requests, sectors, bytes."""

    def __init__(self) -> None:
        self.instructions: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Instructions, by threads."""
        return sum(self.instructions.values())

    def global_(self, at: np.ndarray, n: int, ids: np.ndarray, what: str) -> None:
        """A request of every warp among `ids`: n bytes for each lane at offsets `at`."""
        warp = ids // 32
        key = (warp.astype(np.int64) << 40) | (at.astype(np.int64) // SECTOR)
        self.traffic[f"global {what} requests"] += len(np.unique(warp))
        self.traffic[f"global {what} sectors"] += len(np.unique(key))
        self.traffic[f"global {what} bytes"] += n * len(ids)

    def shared(self, at: np.ndarray, n: int, ids: np.ndarray, what: str) -> None:
        """As global_, for shared memory. 8 bytes a lane take two requests, of half a warp, 16 take four."""
        self.traffic[f"shared {what} bytes"] += n * len(ids)
        if what in ("deliver", "matrix"):                  # by the hardware, 128 bytes side by side at a time
            return
        words = max(n // WORD, 1)
        part = ids // 32 * 4 + ids % 32 * words // 32
        word = (at.astype(np.int64) // WORD)[:, None] + np.arange(words)
        row = np.repeat(part, words)
        touched = np.unique(np.stack([row, word.ravel()], 1), axis=0)
        bank = touched[:, 0] * BANKS + touched[:, 1] % BANKS
        each, times = np.unique(bank, return_counts=True)
        first = np.unique(each // BANKS, return_index=True)[1]
        self.traffic[f"shared {what} wavefronts"] += int(np.maximum.reduceat(times, first).sum())
        self.traffic[f"shared {what} ideal"] += len(first)
