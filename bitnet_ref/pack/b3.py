"""b3: trits at 1.6 bits each, five neighbours of a row to a byte, as the digits of a number in base 3.

3^5 = 243 of the 256 values of a byte are used; log2(3) = 1.585 bits is the least that equally likely trits
need. docs/formats/b3.md has the picture, and says why digits are read off a fraction.
Port note: the first trit is the least significant digit. llama.cpp's TQ1_0 has it the other way round, and
stores the fraction instead of the number.
Read after: pack/i2. Read next: pack/tiles.
"""

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.pack.i2 import check_packed, check_padding, first, pack_digits

BITS_PER_TRIT = 1.6
LARGEST = 3**5 - 1                                         # a byte of five times +1
STEP = 270                                                 # 2^16 / 243, rounded up


def pack_b3(w_q: np.ndarray) -> np.ndarray:
    """w_q int8 (N, K)  ->  uint8 (N, ceil(K/5)).   byte i = sum_j (w_q[5i+j] + 1) 3^j  <= 242

    What K lacks to a multiple of 5 is filled up with zero trits. Raises CheckError for other than trits.
    Source: docs/formats/b3.md.

    >>> pack_b3(np.array([[-1, 0, 1, 0, 1]], np.int8)).tolist()         # 0 + 1*3 + 2*9 + 1*27 + 2*81
    [[210]]
    """
    return pack_digits(w_q, base=3, per_byte=5)


def unpack_b3(packed: np.ndarray, K: int) -> np.ndarray:
    """uint8 (N, ceil(K/5)), K  ->  w_q int8 (N, K).   The inverse of `pack_b3`, of what it writes alone.

    Raises CheckError for another dtype or shape, a K that does not fit, a byte above 242, padding that is
    not zero.

    >>> unpack_b3(np.array([[210]], np.uint8), K=5).tolist()
    [[-1, 0, 1, 0, 1]]
    """
    check_packed(packed, K, per_byte=5)
    row, i = first(packed > LARGEST)
    check(packed[row, i] <= LARGEST, f"every byte must be at most {LARGEST} (3^5 - 1)",
          f"{packed[row, i]} at row {row}, columns {5 * i} to {5 * i + 4}",
          "check that the bytes are b3, and this tensor's")
    check_padding(packed, K, base=3, per_byte=5)
    w_q = np.empty((len(packed), K), np.int8)
    fraction = packed * np.uint32(STEP)                    # byte / 243 in units of 2^-16: 0.t4 t3 t2 t1 t0
    for j in (4, 3, 2, 1, 0):
        fraction *= np.uint32(3)                           # the next digit steps in front of the point
        trits = w_q[:, j::5]
        trits[:] = fraction[:, :trits.shape[1]] >> np.uint32(16)
        trits -= 1
        fraction &= np.uint32(0xFFFF)
    return w_q
