"""Four trits to a byte, two bits each: what all layouts share that differ only in which four they are.

Such a layout is a cutting of the matrix into boxes and an order of their axes, so it is data (an `Order`):
the same few lines pack and unpack all of them, and no index is computed.
Port note: what shares a byte is the first axis of `Order.of`; bytes follow each other as the rest do.
Read after: pack/rans. Read next: pack/blocks.
"""

import math
from typing import NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.pack.i2 import check_trits

LOW_FIRST, HIGH_FIRST = (0, 2, 4, 6), (6, 4, 2, 0)       # the bit of the first, second, ... trit of a byte
LOW_BITS = np.uint8(0b01010101)                          # the lower bit of each of the four fields


class Order(NamedTuple):
    """Which four trits share a byte, and how. `zero`: the code of the trit 0; t has t + zero modulo 4."""

    sides: tuple[int, ...]               # (N, K), row after row, cut into a box of these sides
    axes: tuple[int, ...]                # its axes: that of the four first, then those of the bytes
    shifts: tuple[int, ...]
    zero: int = 1

    def of(self, w_q: np.ndarray) -> np.ndarray:
        """w_q (N, K)  ->  a view (4, ...): the four of a byte, then all bytes in their order."""
        return w_q.reshape(self.sides).transpose(self.axes)

    def place(self, byte: int, field: int) -> int:
        """The trit in field `field` of byte number `byte`, counted along the rows."""
        sides = [self.sides[a] for a in self.axes]
        index = np.unravel_index(field * (math.prod(sides) // 4) + byte, sides)
        at = [int(index[self.axes.index(a)]) for a in range(len(self.sides))]
        return int(np.ravel_multi_index(at, self.sides))


def pack_fields(w_q: np.ndarray, order: Order) -> np.ndarray:
    """w_q int8 (N, K)  ->  uint8 (N K / 4,).   Raises CheckError for other than trits.

    >>> order = Order(sides=(1, 4), axes=(1, 0), shifts=LOW_FIRST)
    >>> pack_fields(np.array([[-1, 0, 1, 0]], np.int8), order).tolist()
    [100]
    """
    check_trits(w_q)
    fields = order.of(w_q)
    packed = np.zeros(fields.shape[1:], np.uint8)
    for trits, shift in zip(fields, order.shifts):
        packed |= (trits + np.int8(1)).view(np.uint8) << np.uint8(shift)
    return _shifted(packed.reshape(-1), order.zero - 1)


def unpack_fields(packed: np.ndarray, shape: tuple[int, int], order: Order) -> np.ndarray:
    """uint8 (N K / 4,), (N, K)  ->  w_q int8 (N, K). No wider type on the way.

    Raises CheckError for the code that is no trit, with the byte and the place of the first.

    >>> order = Order(sides=(1, 4), axes=(1, 0), shifts=LOW_FIRST)
    >>> unpack_fields(np.array([100], np.uint8), (1, 4), order).tolist()
    [[-1, 0, 1, 0]]
    """
    packed = _shifted(packed, 1 - order.zero)
    bad = packed & packed >> np.uint8(1) & LOW_BITS                # both bits of a field set
    if bad.any():
        _refuse(bad, shape, order)
    w_q = np.empty(shape, np.int8)
    for trits, shift in zip(order.of(w_q), order.shifts):
        codes = trits.view(np.uint8)
        np.right_shift(packed.reshape(codes.shape), np.uint8(shift), out=codes)
        np.bitwise_and(codes, np.uint8(3), out=codes)
        np.subtract(trits, np.int8(1), out=trits)
    return w_q


def check_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(N, K) as Python's integers, whose product cannot wrap. Raises CheckError for what is no shape.

    >>> check_shape((np.int64(2), 3))
    (2, 3)
    """
    whole = len(shape) == 2 and all(isinstance(n, int | np.integer) and n > 0 for n in shape)
    check(whole, "a ternary matrix must have a shape (N, K)", tuple(shape), "give rows and columns")
    return int(shape[0]), int(shape[1])


def check_multiple(n: int, of: int, what: str, layout: str) -> None:
    """Raise CheckError unless the layout can hold that many.

    >>> check_multiple(256, of=128, what="columns", layout="i2s")
    >>> check_multiple(200, of=128, what="columns", layout="i2s")
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: the columns of i2s must be a multiple of 128; got 200; use another layout,
    or pad the matrix with zeros and keep its true shape beside
    """
    check(n % of == 0, f"the {what} of {layout} must be a multiple of {of}", n,
          "use another layout, or pad the matrix with zeros and keep its true shape beside")


def _shifted(packed: np.ndarray, by: int) -> np.ndarray:
    """Every 2-bit field plus `by` (-1, 0 or 1) modulo 4, without a carry into the next."""
    if by == 0:
        return packed
    carries = packed if by > 0 else ~packed
    return packed ^ LOW_BITS ^ (carries & LOW_BITS) << np.uint8(1)


def _refuse(bad: np.ndarray, shape: tuple[int, int], order: Order) -> None:
    """Name the first byte that has the fourth code, in the codes of this layout."""
    byte = int((bad > 0).argmax())
    field = next(i for i, shift in enumerate(order.shifts) if bad[byte] >> shift & 1)
    row, column = divmod(order.place(byte, field), shape[1])
    codes = sorted((trit + order.zero) % 4 for trit in (-1, 0, 1))
    check(False, f"every 2-bit code must be {codes[0]}, {codes[1]} or {codes[2]}",
          f"a {(2 + order.zero) % 4} in {np.count_nonzero(bad):,} of {bad.size:,} bytes, the first in byte "
          f"{byte:,}, at row {row}, column {column}",
          f"check that the bytes are this tensor's, and that the code of the trit 0 is {order.zero}")
