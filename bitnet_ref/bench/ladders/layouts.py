"""How ternary weights lie in memory, for the rungs of bitlinear_cpu: what a layout decides, no loop can undo.

Made once, when weights are loaded; files have their own formats (docs/formats). Codes are u = w + 1.
LANES is this machine's register in int32, so the last layouts differ from machine to machine.
Read after: bench/ladders. Read next: bench/ladders/bitlinear_cpu.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bitnet_ref.bench.vectors import LANES

BLOCK = 256                  # weights of a block of `blocks`: 64 bytes, a cache line and the widest register
WIDE = 4                     # panels side by side under a register tile


class Layout(NamedTuple):
    """`pack`: trits int8 (N, K) -> the array that rungs read. N and K must be multiples of `n` and `k`."""

    pack: Callable[[np.ndarray], np.ndarray]
    n: int
    k: int


def _fields(codes: np.ndarray) -> np.ndarray:
    """Four codes 0..2 along the last axis -> a byte, the first in the low bits."""
    return np.bitwise_or.reduce(codes.astype(np.uint8) << np.array([0, 2, 4, 6], np.uint8), axis=-1)


def rows_of_bytes(w_q: np.ndarray) -> np.ndarray:
    """(N, K / 4): four neighbouring codes in a byte."""
    return _fields((w_q + 1).reshape(len(w_q), -1, 4))


def columns_of_bytes(w_q: np.ndarray) -> np.ndarray:
    """(K / 4, N): the same bytes, those of all outputs side by side."""
    return rows_of_bytes(w_q).T


def planes(w_q: np.ndarray) -> np.ndarray:
    """(N, 2, K / 64) words: a bit for every +1, a bit for every -1."""
    bits = np.stack([w_q == 1, w_q == -1], axis=1)
    return np.packbits(bits, axis=-1, bitorder="little").view(np.uint64)


def blocks(w_q: np.ndarray) -> np.ndarray:
    """(N, K / 256, 64): byte j holds codes j, 64 + j, 128 + j and 192 + j of its block."""
    return _fields((w_q + 1).reshape(len(w_q), -1, 4, BLOCK // 4).swapaxes(-1, -2))


def _lanes(w_q: np.ndarray, fours: int) -> np.ndarray:
    """Codes (N / LANES, K / (4 fours), LANES, 4, fours): a lane to an output, `fours` fours of k in it."""
    n, k = w_q.shape
    return (w_q + 1).reshape(n // LANES, LANES, k // (4 * fours), fours, 4).transpose(0, 2, 1, 4, 3)


def lanes_of_bytes(w_q: np.ndarray) -> np.ndarray:
    """(N / LANES, K / 16, LANES, 4): bits 2 j of byte i hold the code of k = 16 b + 4 j + i."""
    return _fields(_lanes(w_q, 4))


def lanes_of_fractions(w_q: np.ndarray) -> np.ndarray:
    """(N / LANES, K / 20, LANES, 4): five codes to a byte, the digits of a number to the base of three.

    The byte is that number as a fraction of 3^5, in 256ths, rounded down, and 1: its digits come out from the
    front, each by one multiplication by three, and the 1 makes that exact for all 243 numbers.
    """
    number = _lanes(w_q, 5) @ 3 ** np.arange(4, -1, -1)
    return (number * 256 // 243 + 1).astype(np.uint8)


def lanes_of_codes(w_q: np.ndarray) -> np.ndarray:
    """(N / (4 LANES), K / 4, 4 LANES, 4): a byte to a code, the panels of the register tile."""
    n, k = w_q.shape
    wide = WIDE * LANES
    return (w_q + 1).astype(np.uint8).reshape(n // wide, wide, k // 4, 4).swapaxes(1, 2)


ROWS, COLUMNS = Layout(rows_of_bytes, 1, 4), Layout(columns_of_bytes, 1, 4)
PLANES, BLOCKS = Layout(planes, 1, 64), Layout(blocks, 1, BLOCK)
PANELS, FRACTIONS = Layout(lanes_of_bytes, LANES, 16), Layout(lanes_of_fractions, LANES, 20)
CODES = Layout(lanes_of_codes, WIDE * LANES, 4)
WIDE_PANELS = Layout(lanes_of_bytes, WIDE * LANES, 16)
FLOATS = Layout(lambda w_q: w_q.astype(np.float32), 1, 1)


def packed(w_q: np.ndarray, layout: Layout) -> np.ndarray:
    """Trits (N, K) as `layout` holds them, with zeros added until it can."""
    n, k = w_q.shape
    return np.ascontiguousarray(layout.pack(np.pad(w_q, ((0, -n % layout.n), (0, -k % layout.k)))))
