"""Trits in tiles for tensor cores: what one lane of a warp loads, 16 bytes, is its part of several products.

A tile is 16 rows by 128 columns (i2) or 160 (b3): 512 bytes, 16 for each lane, of which g = lane / 4 and
t = lane % 4. The columns' order makes a lane's activations neighbours in memory; docs/formats/tiles.md has
the picture. Where a tile is larger than the matrix, codes are 0 (which is not trit 0): they add nothing.
Port note: a code is the trit + 1; a product with codes is too large by the sum of the activations.
Read after: pack/b3. Read next: pack/rans.
"""

import numpy as np

from bitnet_ref.checks import check, lookup
from bitnet_ref.pack.i2 import check_trits

ROWS, LANES = 16, 32
COLUMNS = {"i2": 128, "b3": 160}                           # of a tile
AT_ONCE = 64                                               # strips of 16 rows that are packed together
# How a tile's rows (8 r + g) and columns become axes, and their order in memory with the code's digits first.
AXES = {"i2": (2, 8, 2, 4, 2, 2, 4), "b3": (2, 8, 5, 4, 2, 4)}         # r g p t j h b; r g d t h b


def pack_tiles(w_q: np.ndarray, kind: str = "i2") -> np.ndarray:
    """w_q int8 (N, K)  ->  int32 (ceil(N/16), ceil(K/128) or ceil(K/160), 32, 4): strip, tile, lane, word.

    i2: byte b of word 2p + h of lane (g, t) has two bits for each of four trits; bits 2 (2j + r) are of row
    g + 8r, column 64p + 16t + 8j + 4h + b. b3: byte b of word 2h + r is ceil(256/243 sum_d code_d 3^(4-d)), d
    the column's 32d + 8t + 4h + b, of row g + 8r. Raises CheckError for other than trits, or another kind.

    >>> pack_tiles(np.zeros((20, 130), np.int8)).shape
    (2, 2, 32, 4)
    """
    columns = lookup(COLUMNS, kind, "kind")
    check_trits(w_q)
    N, K = w_q.shape
    strips, tiles = -(-N // ROWS), -(-K // columns)
    words = np.empty((strips, tiles, LANES, 4), np.int32)
    for first in range(0, strips, AT_ONCE):
        rows = w_q[first * ROWS:(first + AT_ONCE) * ROWS]
        into = words[first:first + AT_ONCE]
        codes = np.zeros((len(into) * ROWS, tiles * columns), np.uint8)
        codes[:len(rows), :K] = (rows + np.int8(1)).view(np.uint8)
        into[:] = _words(_axes(codes, tiles, kind), kind).reshape(into.shape)
    return words


def unpack_tiles(words: np.ndarray, N: int, K: int, kind: str = "i2") -> np.ndarray:
    """int32 (strips, tiles, 32, 4), N, K  ->  w_q int8 (N, K).   The inverse of `pack_tiles`.

    Raises CheckError for an array that `pack_tiles` does not make of N x K.

    >>> unpack_tiles(pack_tiles(np.eye(2, dtype=np.int8)), N=2, K=2).tolist()
    [[1, 0], [0, 1]]
    """
    columns = lookup(COLUMNS, kind, "kind")
    want = (-(-N // ROWS), -(-K // columns), LANES, 4)
    check(words.dtype == np.int32 and words.shape == want and words.size > 0,
          f"tiles of {N} x {K} trits must be int32 {want}", f"{words.dtype} {words.shape}",
          "give the matrix's own N, K and kind")
    packed = np.ascontiguousarray(words).view(np.uint8)
    codes = np.empty((want[0] * ROWS, want[1] * columns), np.uint8)
    into = _axes(codes, want[1], kind)
    for d, code in enumerate(_digits(packed, kind)):
        place = into[..., d // 2, d % 2] if kind == "i2" else into[..., d]
        place[:] = code.reshape(place.shape)
    return codes[:N, :K].view(np.int8) - np.int8(1)


def _axes(codes: np.ndarray, tiles: int, kind: str) -> np.ndarray:
    """A view of uint8 (rows, columns) in the order of the packed bytes, the digits of a byte last."""
    r, g, *rest = AXES[kind]
    view = codes.reshape(len(codes) // ROWS, r, g, tiles, *rest)
    if kind == "i2":                                       # s r g tile p t j h b -> s tile g t p h b j r
        return view.transpose(0, 3, 2, 5, 4, 7, 8, 6, 1)
    return view.transpose(0, 3, 2, 5, 6, 1, 7, 4)          # s r g tile d t h b -> s tile g t h r b d


def _words(codes: np.ndarray, kind: str) -> np.ndarray:
    """Codes with the digits of a byte last  ->  int32."""
    if kind == "i2":
        packed = (codes[..., 0, 0] | codes[..., 0, 1] << np.uint8(2) | codes[..., 1, 0] << np.uint8(4)
                  | codes[..., 1, 1] << np.uint8(6))
    else:
        number = np.zeros(codes.shape[:-1], np.uint16)
        for d in range(5):
            number = number * np.uint16(3) + codes[..., d]
        packed = ((number * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8)
    return np.ascontiguousarray(packed).view("<i4")


def _digits(packed: np.ndarray, kind: str) -> list[np.ndarray]:
    """The codes of packed bytes, one array for each digit."""
    if kind == "i2":
        return [packed >> np.uint8(2 * i) & np.uint8(3) for i in range(4)]
    found, fraction = [], packed.astype(np.uint16)
    for _ in range(5):
        fraction = fraction * np.uint16(3)                 # the next digit steps in front of the point
        found.append((fraction >> np.uint16(8)).astype(np.uint8))
        fraction &= np.uint16(255)
    return found
