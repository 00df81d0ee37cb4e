"""rans, compiled: trits at their entropy, several hundred million a second on one thread.

Which of three trits a slot belongs to would be a branch that no processor can guess: that costs three
quarters of the speed. So it is two comparisons, whose results select the frequency by masks. The branch for
a new word stays: it is taken once in twenty trits. Four states are four chains that do not wait for another.
Read after: kernels/numba_cpu/quant. Read next: kernels/numba_cpu/linear.
"""

from typing import Any

import numpy as np

from bitnet_ref.kernels.numba_cpu.cache import compiled, inlined
from bitnet_ref.pack.i2 import check_trits
from bitnet_ref.pack.rans import (
    LOW,
    SCALE,
    SCALE_BITS,
    STATES,
    Stream,
    check_end,
    checked_size,
    frequencies,
    histogram,
    joined,
    parted,
)

ZERO, BITS, SLOTS = np.uint64(0), np.uint64(SCALE_BITS), np.uint64(SCALE - 1)
LEAST, HALF, GROWN = np.uint64(LOW), np.uint64(32), np.uint64(64 - SCALE_BITS)
MARGIN = 4                           # words that a turn of four states takes at most


@inlined
def _next(x: Any, f: Any) -> Any:
    """(trit + 1, the state after it, which may want a word); `f`: the three frequencies, of uint64."""
    slot = x & SLOTS
    above, plus = np.uint64(slot >= f[0]), np.uint64(slot >= f[0] + f[1])
    not_minus, is_plus = ZERO - above, ZERO - plus         # all bits set, or none
    frequency = f[0] + (f[1] - f[0] & not_minus) + (f[2] - f[1] & is_plus)
    below = (f[0] & not_minus) + (f[1] & is_plus)
    return above + plus, frequency * (x >> BITS) + slot - below


@compiled
def _decode(words: Any, states: Any, f: Any, w: Any) -> Any:
    """Fill `w`; `states` become the last. Returns the words used, or one more than there are if too few."""
    a, b, c, d = states
    at, i = 0, 0
    while i + STATES <= len(w) and at + MARGIN <= len(words):
        t, a = _next(a, f)
        w[i] = np.int8(t) - 1
        if a < LEAST:
            a = a << HALF | np.uint64(words[at])
            at += 1
        t, b = _next(b, f)
        w[i + 1] = np.int8(t) - 1
        if b < LEAST:
            b = b << HALF | np.uint64(words[at])
            at += 1
        t, c = _next(c, f)
        w[i + 2] = np.int8(t) - 1
        if c < LEAST:
            c = c << HALF | np.uint64(words[at])
            at += 1
        t, d = _next(d, f)
        w[i + 3] = np.int8(t) - 1
        if d < LEAST:
            d = d << HALF | np.uint64(words[at])
            at += 1
        i += STATES
    states[0], states[1], states[2], states[3] = a, b, c, d
    for j in range(i, len(w)):                             # the last words: each asked for
        t, x = _next(states[j % STATES], f)
        w[j] = np.int8(t) - 1
        if x < LEAST:
            if at == len(words):
                return at + 1
            x = x << HALF | np.uint64(words[at])
            at += 1
        states[j % STATES] = x
    return at


@compiled
def _encode(w: Any, f: Any, states: Any, words: Any) -> Any:
    """Fill `words` from its end; returns the first that is used."""
    below = np.zeros(3, np.uint64)
    below[1], below[2] = f[0], f[0] + f[1]
    at = len(words)
    for i in range(len(w) - 1, -1, -1):
        t, x = w[i] + 1, states[i % STATES]
        if x >> GROWN >= f[t]:
            at -= 1
            words[at] = np.uint32(x & np.uint64(0xFFFFFFFF))
            x >>= HALF
        q = x // f[t]
        states[i % STATES] = (q << BITS) + (x - q * f[t]) + below[t]
    return at


def pack_rans(w_q: np.ndarray) -> np.ndarray:
    """w_q int8 (N, K)  ->  uint8, the bytes of pack.rans.pack_rans."""
    check_trits(w_q)
    counts = histogram(w_q)
    f = frequencies(counts)
    bits = sum(n * (SCALE_BITS + 1 - k.bit_length()) for n, k in zip(counts, f))       # an upper bound
    states, words = np.full(STATES, LOW, np.uint64), np.empty(bits // 32 + 2 * STATES, np.uint32)
    first = _encode(np.ascontiguousarray(w_q).reshape(-1), np.array(f, np.uint64), states, words)
    return joined(Stream(f, states, words[first:]))


def unpack_rans(packed: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 (n,), (N, K)  ->  w_q int8 (N, K), as pack.rans.unpack_rans, with the same refusals."""
    size = checked_size(shape)
    stream = parted(packed)
    w_q = np.empty(size, np.int8)
    used = _decode(stream.words, stream.states, np.array(stream.frequencies, np.uint64), w_q)
    check_end(used <= len(stream.words), shape, "too few words")
    check_end(used == len(stream.words), shape, "words left over")
    check_end(bool((stream.states == LOW).all()), shape, "other states at the end")
    return w_q.reshape(shape)
