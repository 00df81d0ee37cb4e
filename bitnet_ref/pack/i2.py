"""i2: trits at two bits each, four neighbours of a row to a byte. Bits at rest: no kernel dictates the order.

A trit is stored as its value + 1, the first of the four in the low bits; docs/formats/i2.md has the picture.
A byte is a number whose digits are trits, in base 4 here and in base 3 in b3: what packs digits and what
checks bytes is here for both.
Port note: 01 is zero. A byte of four zeros is 0x55, and a byte of 0 is four times -1.
Read after: pack. Read next: pack/b3.
"""

import numpy as np

from bitnet_ref.checks import check, expect

BITS_PER_TRIT = 2.0


def pack_i2(w_q: np.ndarray) -> np.ndarray:
    """w_q int8 (N, K)  ->  uint8 (N, ceil(K/4)).   byte i = sum_j (w_q[4i+j] + 1) << 2j

    What K lacks to a multiple of 4 is filled up with zero trits. Raises CheckError for other than trits.
    Source: docs/formats/i2.md.

    >>> pack_i2(np.array([[-1, 0, 1, 0, 1]], np.int8)).tolist()
    [[100, 86]]
    """
    return pack_digits(w_q, base=4, per_byte=4)


def unpack_i2(packed: np.ndarray, K: int) -> np.ndarray:
    """uint8 (N, ceil(K/4)), K  ->  w_q int8 (N, K).   The inverse of `pack_i2`, of what it writes alone.

    Raises CheckError for another dtype or shape, a K that does not fit, a code 3, padding that is not zero.

    >>> unpack_i2(np.array([[100, 86]], np.uint8), K=5).tolist()
    [[-1, 0, 1, 0, 1]]
    """
    check_packed(packed, K, per_byte=4)
    _check_codes(packed)
    check_padding(packed, K, base=4, per_byte=4)
    w_q = np.empty((len(packed), K), np.int8)
    for j in range(4):
        trits = w_q[:, j::4]
        trits[:] = packed[:, :trits.shape[1]] >> np.uint8(2 * j) & np.uint8(3)
        trits -= 1
    return w_q


def pack_digits(w_q: np.ndarray, base: int, per_byte: int) -> np.ndarray:
    """w_q int8 (N, K)  ->  uint8 (N, ceil(K / per_byte)).   byte i = sum_j (w_q[per_byte i + j] + 1) base^j

    Raises CheckError for other than trits.

    >>> pack_digits(np.array([[1, -1]], np.int8), base=3, per_byte=2).tolist()
    [[2]]
    """
    check_trits(w_q)
    all_zero = sum(base**j for j in range(per_byte))       # the ones of the sum, padding's among them
    packed = np.full((len(w_q), -(-w_q.shape[1] // per_byte)), all_zero, np.uint8)
    for j in range(per_byte):
        trits = w_q[:, j::per_byte]
        packed[:, :trits.shape[1]] += (trits * np.int8(base**j)).view(np.uint8)     # modulo 256: -1 is 255
    return packed


def check_trits(w_q: np.ndarray) -> None:
    """Raise CheckError unless `w_q` is int8 (N, K), not empty, of -1, 0 and +1 only.

    >>> check_trits(np.array([[1, 0, -1]], np.int8))
    >>> check_trits(np.array([[1, 0, 2]], np.int8))
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: w_q must hold -1, 0 and +1 only; got 0 to 2; ternarise first
    (bitnet_ref.quant.absmean_ternary)
    """
    expect("w_q", w_q, "N K")
    check(w_q.dtype == np.int8 and w_q.size > 0, "w_q must be int8 and not empty", f"{w_q.dtype} {w_q.shape}",
          "ternarise first (bitnet_ref.quant.absmean_ternary)")
    low, high = int(w_q.min()), int(w_q.max())
    check(low >= -1 and high <= 1, "w_q must hold -1, 0 and +1 only", f"{low} to {high}",
          "ternarise first (bitnet_ref.quant.absmean_ternary)")


def check_bytes(name: str, packed: np.ndarray, ndim: int) -> None:
    """Raise CheckError unless `packed` is uint8 of `ndim` axes.

    >>> check_bytes("packed", np.zeros((2, 3), np.uint8), ndim=2)
    >>> check_bytes("packed", np.zeros(6, np.uint8), ndim=2)
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: packed must be uint8 of 2 axes; got uint8 (6,); pass the bytes as the file
    has them
    """
    check(packed.dtype == np.uint8 and packed.ndim == ndim, f"{name} must be uint8 of {ndim} axes",
          f"{packed.dtype} {packed.shape}", "pass the bytes as the file has them")


def check_packed(packed: np.ndarray, K: int, per_byte: int) -> None:
    """Raise CheckError unless `packed` is uint8 (N, ceil(K / per_byte)) and not empty.

    >>> check_packed(np.zeros((1, 2), np.uint8), K=5, per_byte=4)
    >>> check_packed(np.zeros((1, 2), np.uint8), K=9, per_byte=4)
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: K must be 5 to 8 for rows of 2 bytes; got 9; give the columns of the
    matrix that was packed; the bytes alone do not tell them
    """
    check_bytes("packed", packed, 2)
    check(packed.size > 0, "packed must not be empty", packed.shape, "pass the bytes as the file has them")
    most = packed.shape[1] * per_byte
    fits = isinstance(K, int | np.integer) and most - per_byte < K <= most
    check(fits, f"K must be {most - per_byte + 1} to {most} for rows of {packed.shape[1]} bytes", repr(K),
          "give the columns of the matrix that was packed; the bytes alone do not tell them")


def check_padding(packed: np.ndarray, K: int, base: int, per_byte: int) -> None:
    """Raise CheckError unless the trits after column K - 1 are zeros: a matrix has one form, not several.

    >>> check_padding(np.array([[100, 86]], np.uint8), K=5, base=4, per_byte=4)
    >>> check_padding(np.array([[100, 2]], np.uint8), K=5, base=4, per_byte=4)
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: trits after column 4 must be 0 (padding); got others in the last byte of
    row 0; check that K is the true one, or pack again
    """
    used = K - per_byte * (packed.shape[1] - 1)
    if used < per_byte:
        zeros = sum(base**j for j in range(per_byte - used))
        row = int((packed[:, -1] // np.uint8(base**used) != zeros).argmax())
        check(packed[row, -1] // base**used == zeros, f"trits after column {K - 1} must be 0 (padding)",
              f"others in the last byte of row {row}", "check that K is the true one, or pack again")


def first(bad: np.ndarray) -> tuple[int, int]:
    """Row and column of the first True of bool (N, K); of the very first element if there is none.

    >>> first(np.array([[False, False], [False, True]]))
    (1, 1)
    """
    row, column = divmod(int(bad.argmax()), bad.shape[1])
    return row, column


def _check_codes(packed: np.ndarray) -> None:
    threes = packed & packed >> np.uint8(1) & np.uint8(0b01010101)     # bit 2j: both bits of field j are set
    row, i = first(threes > 0)
    lowest = int(threes[row, i]) & -int(threes[row, i])                # 4^j of its first field, or 0
    column = 4 * i + lowest.bit_length() // 2
    check(lowest == 0, "every 2-bit code must be 0, 1 or 2", f"a 3 at row {row}, column {column}",
          "check that the bytes are i2, and this tensor's")
