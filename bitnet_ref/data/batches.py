"""Batch number `index` of a token stream, as a pure function: no loader, no state, nothing to save or resume.

The stream is cut into windows of T + 1 tokens with stride T (the last token of one is the first of the next),
so each token but the first is a target once an epoch. The order of an epoch is a permutation computed, not
stored: a Feistel network over the next power of 4, walked until it lands below n. It takes integers only, so
it is the same on every machine, for ever.
Read after: data/shards. Read next: data/packing.
"""

from collections.abc import Iterator

import numpy as np

from bitnet_ref.checks import check

ROUNDS = 8                      # of the Feistel network
HALF = 4                        # least bits of one half: narrower networks reach some orders more often
U = np.uint64


def windows(n_tokens: int, T: int) -> int:
    """How many training windows `n_tokens` tokens hold. Raises CheckError if there is not one.
    >>> windows(9, T=4), windows(8, T=4)
    (2, 1)
    """
    check(T > 0, "a window must have at least one token", T, "choose a longer context")
    check(n_tokens > T, f"a training text must have at least {T + 1} tokens for a context of {T}", n_tokens,
          "give more text or choose a shorter context")
    return (n_tokens - 1) // T


def tail(n_tokens: int, T: int) -> int:
    """How many tokens at the end are targets of no training window (fewer than T).
    >>> tail(9, T=4), tail(8, T=4)
    (0, 3)
    """
    return n_tokens - 1 - windows(n_tokens, T) * T


def batch(tokens: np.ndarray, index: int, B: int, T: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Micro-batch number `index`.   tokens unsigned (n,)  ->  inputs, targets int64 (B, T).

    The definition, for one stream; a run calls `data.feed.micro_batch`, which must equal it to the bit.
    targets[:, t] is the token after inputs[:, t]. Row r of batch i is window number i * B + r of an endless
    run of epochs; in each, every window comes exactly once; a batch may lie across two. Raises CheckError:
    fewer than T + 1 tokens, index or seed negative.
    >>> inputs, targets = batch(np.arange(9), 0, B=2, T=4, seed=0)
    >>> inputs.tolist(), targets.tolist()
    ([[4, 5, 6, 7], [0, 1, 2, 3]], [[5, 6, 7, 8], [1, 2, 3, 4]])
    """
    check(index >= 0 and B > 0, "a batch must have an index of 0 or more, and rows", f"{index} and {B}",
          "correct them")
    starts = window_of(index * B + np.arange(B, dtype=np.int64), windows(len(tokens), T), seed) * T
    rows = np.asarray(tokens[starts[:, None] + np.arange(T + 1)], np.int64)
    return rows[:, :-1], rows[:, 1:]


def sequential(tokens: np.ndarray, T: int, B: int = 8, limit: int | None = None
               ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Validation batches in order: every token but the first is a target exactly once.

    Yields inputs, targets int64 (b, T) with b <= B, and last (1, t) with t < T if there is a tail. With
    `limit`, at most that many windows, evenly spaced over the text; the tail only if no window is left out.
    Raises CheckError: fewer than 2 tokens, or a size that is not positive.
    >>> [inputs.tolist() for inputs, _ in sequential(np.arange(7), T=4)]
    [[[0, 1, 2, 3]], [[4, 5]]]
    """
    sizes_hold = min(T, B, 1 if limit is None else limit) > 0
    check(len(tokens) > 1 and sizes_hold, "validation must have 2 tokens or more, and sizes above 0",
          f"{len(tokens)} tokens, T = {T}, B = {B}, limit = {limit}", "give more text or correct the sizes")
    n = (len(tokens) - 1) // T
    used = n if limit is None else min(n, limit)
    starts = np.arange(used) * n // max(used, 1) * T
    for i in range(0, used, B):
        rows = np.asarray(tokens[starts[i:i + B, None] + np.arange(T + 1)], np.int64)
        yield rows[:, :-1], rows[:, 1:]
    if used == n and n * T + 1 < len(tokens):
        rest = np.asarray(tokens[None, n * T:], np.int64)
        yield rest[:, :-1], rest[:, 1:]


# ---- the order ----

def window_of(row: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Which of `n` windows stands in each row of the endless run of epochs.   int64 (B,)  ->  int64 (B,)
    >>> window_of(np.arange(6), 3, seed=0).tolist()             # two epochs of three windows
    [2, 0, 1, 0, 2, 1]
    """
    epoch, row = np.divmod(row, n)
    return keyed_permutation(row, n, epoch_key(seed, epoch))


def epoch_key(seed: int, epoch: np.ndarray) -> np.ndarray:
    """One 64-bit key per epoch number.   int64 (B,)  ->  uint64 (B,)
    >>> len(set(epoch_key(0, np.arange(9)).tolist()))
    9
    """
    check(0 <= seed < 1 << 64, "seed must lie in [0, 2^64)", seed, "choose another")
    return mix(mix(np.full(epoch.shape, seed, U)) + epoch.astype(U))


def keyed_permutation(i: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """A bijection of [0, n) for each key, applied to `i`.   int64 (B,), uint64 (B,)  ->  int64 (B,)

    Memory does not depend on n. The network permutes [0, 4^k), the least such range, from 256, that holds n;
    a value at or above n is permuted again until it falls below: it must, as the cycle it is on began below
    n.
    >>> keyed_permutation(np.arange(5), 5, epoch_key(0, np.zeros(5, np.int64))).tolist()
    [2, 3, 1, 0, 4]
    """
    half = max(HALF, ((n - 1).bit_length() + 1) // 2)
    x = feistel(i.astype(U), half, key)
    while (outside := x >= U(n)).any():
        x[outside] = feistel(x[outside], half, key[outside])
    return x.astype(np.int64)


def feistel(x: np.ndarray, half: int, key: np.ndarray) -> np.ndarray:
    """A keyed bijection of the integers of 2 * half bits: each round can be undone, whatever `mix` gives.
    >>> x = np.arange(1 << 8, dtype=U)
    >>> set(feistel(x, 4, key=np.full(1 << 8, 7, U)).tolist()) == set(x.tolist())
    True
    """
    mask = U((1 << half) - 1)
    left, right = x >> U(half), x & mask
    for r in range(ROUNDS):
        left, right = right, left ^ (mix(mix(key + U(r)) + right) & mask)
    return left << U(half) | right


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014): every bit of the result depends on every bit of x.
    >>> hex(mix(np.zeros(1, U))[0])
    '0xe220a8397b1dcdaf'
    """
    x = x + U(0x9E3779B97F4A7C15)
    x = (x ^ x >> U(30)) * U(0xBF58476D1CE4E5B9)
    x = (x ^ x >> U(27)) * U(0x94D049BB133111EB)
    return x ^ x >> U(31)
