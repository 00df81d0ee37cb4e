"""rans: trits at their entropy, for rest only. An arithmetic code whose state is an integer (rANS).

Where the histogram is flat a trit takes log2(3) = 1.585 bits, elsewhere less; b3 takes 1.6 always. Trits are
coded one by one, so that three frequencies are the whole model, by four states in turns, so that a processor
has four independent chains. docs/formats/rans.md derives it; kernels/numba_cpu/rans is the same, compiled.
Port note: the encoder goes through the trits from the last to the first, so that the decoder need not.
Read after: pack/tiles. Read next: pack/fields.
"""

import math
import zlib
from typing import NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.pack.i2 import check_bytes, check_trits

STATES = 4                           # trit i belongs to state i mod 4
SCALE_BITS = 15
SCALE = 1 << SCALE_BITS              # the three frequencies add up to it
LOW = 1 << 32                        # a state lies in [2^32, 2^64), and begins (the decoder: ends) with 2^32
HEAD = 8                             # bytes: CRC-32, then the frequencies of -1 and of 0
OVERHEAD = HEAD + 8 * STATES         # bytes of a stream without words
AGAIN = "restore the bytes from a copy"


class Stream(NamedTuple):
    """The parts of packed bytes: frequencies of -1, 0, +1; states uint64 (4,); words uint32 (n,)."""

    frequencies: tuple[int, int, int]
    states: np.ndarray
    words: np.ndarray


def histogram(w_q: np.ndarray) -> tuple[int, int, int]:
    """w_q int8 (N, K)  ->  how many are -1, 0, +1.

    >>> histogram(np.array([[-1, 0, 0, 1]], np.int8))
    (1, 2, 1)
    """
    minus, plus = int(np.count_nonzero(w_q < 0)), int(np.count_nonzero(w_q > 0))
    return minus, w_q.size - minus - plus, plus


def entropy(counts: tuple[int, int, int]) -> float:
    """Bits per trit that no code for single trits can undercut: sum p log2(1/p), of a histogram.

    >>> entropy((1, 2, 1))
    1.5
    """
    total = sum(counts)
    return sum(n * math.log2(total / n) for n in counts if n) / total


def frequencies(counts: tuple[int, int, int]) -> tuple[int, int, int]:
    """The histogram in units of 2^-15, rounded; what occurs has at least 1, the largest takes the rest.

    >>> frequencies((1, 2, 1))
    (8192, 16384, 8192)
    """
    total = sum(counts)
    f = [max((n * SCALE + total // 2) // total, 1) if n else 0 for n in counts]
    f[f.index(max(f))] += SCALE - sum(f)
    return f[0], f[1], f[2]


def pack_rans(w_q: np.ndarray) -> np.ndarray:
    """w_q int8 (N, K)  ->  uint8 (40 + 4 n,): CRC-32, two frequencies, four states, n words.

    n is what the trits need: about their entropy. Raises CheckError for other than trits.
    Source: docs/formats/rans.md; J. Duda, arXiv 1311.2540, is the idea.

    >>> pack_rans(np.zeros((64, 64), np.int8)).size          # of one kind of trit: the frame alone
    40
    """
    check_trits(w_q)
    f = frequencies(histogram(w_q))
    below = 0, f[0], f[0] + f[1]                            # slots before those of a trit
    states, words = [LOW] * STATES, []
    trits = w_q.reshape(-1).tolist()
    for i in range(len(trits) - 1, -1, -1):
        t, x = trits[i] + 1, states[i % STATES]
        if x >> 64 - SCALE_BITS >= f[t]:                   # it would outgrow 64 bits
            words.append(x & 0xFFFFFFFF)
            x >>= 32
        states[i % STATES] = (x // f[t] << SCALE_BITS) + x % f[t] + below[t]
    return joined(Stream(f, np.array(states, np.uint64), np.array(words[::-1], np.uint32)))


def unpack_rans(packed: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 (n,), (N, K)  ->  w_q int8 (N, K).   The inverse of `pack_rans`. Allocates what `shape` asks for.

    Raises CheckError for another dtype or length, a false checksum, and for bytes that decode to more or
    fewer trits than N K.

    >>> w_q = np.eye(3, dtype=np.int8)
    >>> bool((unpack_rans(pack_rans(w_q), (3, 3)) == w_q).all())
    True
    """
    size = checked_size(shape)
    f, first, given = parted(packed)
    below = 0, f[0], f[0] + f[1]
    states, words = first.tolist(), iter(given.tolist())
    w_q = np.empty(size, np.int8)
    for i in range(size):
        x = states[i % STATES]
        slot = x & SCALE - 1
        t = (slot >= below[1]) + (slot >= below[2])
        x = f[t] * (x >> SCALE_BITS) + slot - below[t]
        if x < LOW:
            word = next(words, None)
            check_end(word is not None, shape, "too few words")
            x = x << 32 | word                             # type: ignore[operator]
        states[i % STATES] = x
        w_q[i] = t - 1
    check_end(next(words, None) is None, shape, "words left over")
    check_end(states == [LOW] * STATES, shape, "other states at the end")
    return w_q.reshape(shape)


def joined(stream: Stream) -> np.ndarray:
    """The bytes of a stream, uint8, little-endian, led by the CRC-32 of what follows it.

    >>> packed = pack_rans(np.eye(3, dtype=np.int8))
    >>> bool((joined(parted(packed)) == packed).all())
    True
    """
    body = b"".join([np.array(stream.frequencies[:2], "<u2").tobytes(),
                     stream.states.astype("<u8").tobytes(), stream.words.astype("<u4").tobytes()])
    return np.frombuffer(zlib.crc32(body).to_bytes(4, "little") + body, np.uint8).copy()


def parted(packed: np.ndarray) -> Stream:
    """The parts of a stream. Raises CheckError: not one, or damaged.

    >>> parted(pack_rans(np.zeros((2, 2), np.int8))).frequencies
    (0, 32768, 0)
    """
    check_bytes("packed", packed, 1)
    check(packed.size >= OVERHEAD and packed.size % 4 == 0,
          f"rans must have {OVERHEAD} bytes and 4 for each word", packed.size,
          "pass the bytes as the file has them")
    packed = np.ascontiguousarray(packed)
    stored, found = int(packed[:4].view("<u4")[0]), zlib.crc32(packed[4:].data)
    check(stored == found, "rans must have the CRC-32 that it begins with",
          f"{found:08x}, not {stored:08x}", AGAIN)
    minus, zero = packed[4:HEAD].view("<u2").tolist()
    check(minus + zero <= SCALE, f"the frequencies of rans must be at most {SCALE} together",
          f"{minus} and {zero}", AGAIN)
    states = packed[HEAD:OVERHEAD].view("<u8").astype(np.uint64)
    check(bool((states >= LOW).all()), "the states of rans must be at least 2^32", states.tolist(), AGAIN)
    words = packed[OVERHEAD:].view("<u4").astype(np.uint32)         # a copy: aligned
    return Stream((minus, zero, SCALE - minus - zero), states, words)


def checked_size(shape: tuple[int, int]) -> int:
    """N K. Raises CheckError unless `shape` is two sizes whose product an array can have.

    >>> checked_size((3, 5))
    15
    """
    whole = len(shape) == 2 and all(isinstance(n, int | np.integer) and n > 0 for n in shape)
    check(whole and math.prod(map(int, shape)) < 1 << 47, "shape must be rows and columns, below 2^47 trits",
          repr(shape)[:100], "give that of the matrix that was packed; the bytes alone do not tell it")
    return math.prod(map(int, shape))


def check_end(holds: bool, shape: tuple[int, int], got: str) -> None:
    """Raise CheckError unless the stream and the matrix end together.

    >>> check_end(True, (3, 5), "words left over")
    >>> check_end(False, (3, 5), "words left over")
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: rans must decode to exactly the trits of shape (3, 5); got words left
    over; check the shape: the bytes are whole
    """
    check(holds, f"rans must decode to exactly the trits of shape {tuple(map(int, shape))}", got,
          "check the shape: the bytes are whole")
