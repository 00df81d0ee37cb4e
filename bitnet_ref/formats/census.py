"""What one pass over a stored tensor finds, block by block: shares, extremes, dead rows and columns.

A downloaded checkpoint is larger than memory should be asked for, so a few MiB are in it at a time. Packed
trits are counted as bytes: a histogram of 256 bins holds that of the four codes, and an OR over a row knows
whether any trit of it differs from zero.
Read after: formats/safetensors_stream. Read next: formats/hf_config.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bitnet_ref.formats.safetensors_stream import Stored, blocks

DEAD = 1e-20                         # below it a float is dead; the real ones in 2B4T are 1e-32 to 1e-37
ZEROS = 0b01010101                   # four trits 0, each stored as 1
SHIFTS = (0, 2, 4, 6)
CODES = np.array([[sum(b >> s & 3 == code for s in SHIFTS) for code in range(4)] for b in range(256)])

Tick = Callable[[int], None]         # told how many bytes were read


class Census(NamedTuple):
    """`bad`: NaN, infinities, codes 3. `shares`: of -1, 0, +1. `dead_*`: bool (N,), (K,); largest |w|."""

    bad: int
    size: int
    largest: float
    mean: float
    shares: tuple[float, float, float] | None
    dead_rows: np.ndarray
    dead_columns: np.ndarray


def of_packed(t: Stored, tick: Tick) -> Census:
    """Of trits packed by rows, uint8 (N/4, K). `mean` is the share of trits that are not zero.
    >>> from bitnet_ref.formats.example import written
    >>> from bitnet_ref.formats.hf import open_folder
    >>> with written("hf") as folder:
    ...     found = of_packed(open_folder(folder).stored["layers.0.attn.wq"], tick=lambda n_bytes: None)
    >>> found.size, found.bad, found.dead_rows.shape
    (64, 0, (8,))
    """
    histogram, in_rows = np.zeros(256, np.int64), []
    in_columns = np.zeros(t.shape[1], np.uint8)
    for block in blocks(t):
        histogram += np.bincount(block.reshape(-1), minlength=256)
        moved = np.bitwise_xor(block, ZEROS)
        in_rows.append(np.bitwise_or.reduce(moved, axis=1))
        in_columns |= np.bitwise_or.reduce(moved, axis=0)
        tick(block.nbytes)
    counts = histogram @ CODES
    rows = np.concatenate(in_rows)
    dead_rows = np.concatenate([rows & np.uint8(3 << shift) == 0 for shift in SHIFTS])
    minus, zero, plus = (counts[:3] / counts.sum()).tolist()
    return Census(int(counts[3]), int(counts.sum()), 1.0, minus + plus, (minus, zero, plus), dead_rows,
                  in_columns == 0)


def of_floats(t: Stored, tick: Tick) -> Census:
    """Of floats: a matrix (N, K), or a vector (N,) as N rows of one. `mean`: mean|w| of the finite ones.
    >>> from bitnet_ref.formats.example import written
    >>> from bitnet_ref.formats.hf import open_folder
    >>> with written("hf") as folder:
    ...     found = of_floats(open_folder(folder).stored["final_norm"], tick=lambda n_bytes: None)
    >>> found.size, found.largest, found.mean
    (8, 1.0, 1.0)
    """
    bad, total, row_top = 0, 0.0, []
    column_top = np.zeros(t.shape[1] if len(t.shape) > 1 else 1, np.float64)
    for block in blocks(t):
        x = np.abs(_as_float(block).reshape(len(block), -1))
        finite = np.isfinite(x)
        bad += x.size - int(np.count_nonzero(finite))
        x[~finite] = np.inf                                # NaN would hide in a maximum; neither is dead
        total += float(np.sum(x, dtype=np.float64, where=finite))
        row_top.append(x.max(axis=1))
        np.maximum(column_top, x.max(axis=0), out=column_top)
        tick(block.nbytes)
    top, size = np.concatenate(row_top), t.shape[0] * column_top.size
    mean = total / max(1, size - bad)
    return Census(bad, size, float(top.max()), mean, None, top < DEAD, column_top < DEAD)


def shares_of_masters(t: Stored, scale: float, tick: Tick) -> tuple[float, float, float]:
    """Shares of -1, 0, +1 that float masters have once they are ternarised with `scale`. A second pass.
    >>> from bitnet_ref.formats.example import written
    >>> from bitnet_ref.formats.hf import open_folder
    >>> with written("hf") as folder:                           # of gains, which are all 1
    ...     shares_of_masters(open_folder(folder).stored["final_norm"], 1.0, tick=lambda n_bytes: None)
    (0.0, 0.0, 1.0)
    """
    minus = plus = size = 0
    for block in blocks(t):
        x = _as_float(block)
        minus += int(np.count_nonzero(x < -scale / 2))
        plus += int(np.count_nonzero(x > scale / 2))
        size += x.size
        tick(block.nbytes)
    return minus / size, (size - minus - plus) / size, plus / size


def _as_float(block: np.ndarray) -> np.ndarray:
    return block.astype(np.float64 if block.dtype == np.float64 else np.float32)
