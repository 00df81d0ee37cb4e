"""Trits in GGUF's blocks: TQ1_0, TQ2_0, Q2_0, and the two of PrismML with 128 to a block.

A block is a run of a row with a scale of its own, a float16 called d. Trits need none, so d is 1 here and the
scale of the matrix is kept beside; blocks written by others have any d, which is returned.
Port note: d stands behind the trits in TQ1_0 and TQ2_0, before them in Q2_0.
Read after: pack/fields. Read next: pack/rosetta.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.pack.fields import LOW_FIRST, Order, check_multiple, check_shape, pack_fields, unpack_fields
from bitnet_ref.pack.i2 import check_trits

D = 2                                                      # bytes of the scale


class Block(NamedTuple):
    """A kind of block: its trits, their bytes, and where the scale is.

    run: of 2-bit kinds, how far apart the four trits of a byte are. stages: of base 3, the bytes of each.
    """

    name: str
    size: int                            # trits
    n_bytes: int                         # without the scale
    run: int = 0
    stages: tuple[int, ...] = ()
    scale_first: bool = False


BLOCKS = {b.name: b for b in (
    Block("tq1_0", 256, 52, stages=(32, 16, 4)), Block("tq2_0", 256, 64, run=32),
    Block("q2_0", 64, 16, run=1, scale_first=True), Block("pq2_0", 128, 32, run=1, scale_first=True),
    Block("ptq1_0", 128, 26, stages=(16, 8, 2)))}


def block_bytes(shape: tuple[int, int], block: Block) -> int:
    """Bytes of a matrix (N, K), scales among them. Raises CheckError unless rows are whole blocks.

    >>> block_bytes((2, 256), BLOCKS["tq2_0"])
    132
    """
    n_rows, n_columns = check_shape(shape)
    check_multiple(n_columns, block.size, "columns", block.name)
    return n_rows * (n_columns // block.size) * (block.n_bytes + D)


def pack_blocks(w_q: np.ndarray, scale: Any, block: Block) -> np.ndarray:
    """w_q int8 (N, K), scale () or (N, K / size)  ->  uint8 (bytes,).

    Raises CheckError for other than trits, a K that is no multiple, a scale that is no float16 exactly.
    Source: llama.cpp, ggml/src/ggml-common.h and ggml-quants.c; PrismML's fork of them.

    >>> pack_blocks(np.zeros((1, 256), np.int8), 0.5, BLOCKS["tq2_0"])[-2:].tolist()      # 0.5 as float16
    [0, 56]
    """
    check_trits(w_q)
    n = block_bytes(w_q.shape, block) // (block.n_bytes + D)
    given = np.asarray(scale, np.float32)
    each = (len(w_q), w_q.shape[1] // block.size)
    check(given.shape in ((), each), "there must be one scale, or one for each block", given.shape,
          f"give () or {each}")
    with np.errstate(over="ignore"):
        d = np.broadcast_to(given.reshape(-1), n).astype("<f2")
    exact = np.isfinite(d) & (d >= 0) & (d == given.reshape(-1))
    check(bool(exact.all()), f"a scale of {block.name} must be a float16, finite and not negative",
          given.reshape(-1)[exact.argmin() % given.size],
          "keep scale 1 here, and the true one beside the bytes")
    trits = _pack_digits(w_q, block) if block.stages else pack_fields(w_q, _order(w_q.shape, block))
    parts = [trits.reshape(n, block.n_bytes), d.view(np.uint8).reshape(n, D)]
    return np.concatenate(parts[::-1] if block.scale_first else parts, axis=1).reshape(-1)


def unpack_blocks(data: np.ndarray, shape: tuple[int, int], block: Block) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (bytes,), (N, K)  ->  w_q int8 (N, K), scale float32 (N, K / size).

    Raises CheckError for another length, a code or number that is no trits, a scale that is negative or not
    finite; a code 3, which Q2_0 reads as +2, is one that is no trit.

    >>> data = pack_blocks(np.ones((1, 256), np.int8), 0.5, BLOCKS["tq2_0"])
    >>> w_q, scale = unpack_blocks(data, (1, 256), BLOCKS["tq2_0"])
    >>> int(w_q.min()), scale.tolist()
    (1, [[0.5]])
    """
    n_bytes = block_bytes(shape, block)
    check(data.dtype == np.uint8 and data.shape == (n_bytes,),
          f"{block.name} of shape {tuple(shape)} must be {n_bytes} bytes", f"{data.dtype} {data.shape}",
          "give the tensor's bytes and its true shape")
    rows = data.reshape(-1, block.n_bytes + D)
    at = 0 if block.scale_first else block.n_bytes
    scale = np.ascontiguousarray(rows[:, at:at + D]).view("<f2").astype(np.float32).reshape(shape[0], -1)
    bad = ~(np.isfinite(scale) & (scale >= 0))
    row, i = divmod(int(bad.argmax()), scale.shape[1])
    check(not bad.any(), f"every scale of {block.name} must be finite and not negative",
          f"{scale[row, i]} in block {i} of row {row}",
          "check the layout and the shape: d stands first in some layouts, last in others")
    begin = D if block.scale_first else 0
    packed = rows[:, begin:begin + block.n_bytes]
    if block.stages:
        return _unpack_digits(packed, shape, block), scale
    return unpack_fields(packed.reshape(-1), shape, _order(shape, block)), scale


def _order(shape: tuple[int, ...], block: Block) -> Order:
    """Four trits `run` apart, in runs of 4 * run."""
    return Order((shape[0] * shape[1] // (4 * block.run), 4, block.run), (1, 0, 2), LOW_FIRST)


# ---- base 3 as a fraction ----

def _fraction(number: np.ndarray) -> np.ndarray:
    """number / 243 in units of 1/256, rounded up: a byte that begins with the base-3 digits of number."""
    return ((number.astype(np.uint16) * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8)


def _written(step: int) -> np.ndarray:
    """bool (256,): the bytes that occur, of five digits (step 1) or of four and a zero (step 3)."""
    occurs = np.zeros(256, bool)
    occurs[_fraction(np.arange(0, 243, step))] = True
    return occurs


def _stages(block: Block) -> Iterator[tuple[int, int, int, int]]:
    """(first byte, bytes, first trit, trits of a byte) of each stage; in the last a byte has four."""
    byte, trit = 0, 0
    for i, n in enumerate(block.stages):
        digits = 4 if i == len(block.stages) - 1 else 5
        yield byte, n, trit, digits
        byte, trit = byte + n, trit + n * digits


def _pack_digits(w_q: np.ndarray, block: Block) -> np.ndarray:
    """The first trit of a byte is its leading digit; they are as far apart as the stage has bytes."""
    runs = w_q.reshape(-1, block.size)
    packed = np.empty((len(runs), block.n_bytes), np.uint8)
    for byte, n, trit, digits in _stages(block):
        number = np.zeros((len(runs), n), np.uint8)
        for i in range(5):
            number *= np.uint8(3)
            if i < digits:
                number += (runs[:, trit + i * n:trit + (i + 1) * n] + np.int8(1)).view(np.uint8)
        packed[:, byte:byte + n] = _fraction(number)
    return packed


def _unpack_digits(packed: np.ndarray, shape: tuple[int, int], block: Block) -> np.ndarray:
    w_q = np.empty(shape, np.int8)
    runs = w_q.reshape(-1, block.size)
    for byte, n, trit, digits in _stages(block):
        fraction = packed[:, byte:byte + n].copy()
        _check_written(fraction, byte, shape, block, digits)
        for i in range(digits):                            # three times the fraction: the digit, and the rest
            trits = runs[:, trit + i * n:trit + (i + 1) * n]
            trits[:] = fraction >= 86
            trits += fraction >= 171
            trits -= 1
            fraction *= np.uint8(3)
    return w_q


def _check_written(fraction: np.ndarray, byte: int, shape: tuple[int, int], block: Block,
                   digits: int) -> None:
    """Raise CheckError for a byte that no trits give: other digits would follow those that are read."""
    bad = ~_written(3 if digits == 4 else 1)[fraction]
    at, i = divmod(int(bad.argmax()), bad.shape[1])
    row, number = divmod(at, shape[1] // block.size)
    check(not bad.any(), f"every byte of {block.name} must be {digits} base-3 digits as a fraction",
          f"{fraction[at, i]} in byte {byte + i} of block {number} of row {row}",
          "check that the bytes are this tensor's, and its layout")
