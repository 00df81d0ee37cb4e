"""Which n-grams of a token stream come often: counted block by block, in memory that does not grow with it.

An n-gram is known by a hash of 64 bits, from which that of the next longer one follows; each length has its
tally of keys, counts and a place in the stream where the tokens themselves can be read. A tally keeps the
most frequent; what a rare one loses when it is dropped and comes back, the second pass of chain/mine mends.
No n-gram lies across two documents.
Read after: chain/table. Read next: chain/mine.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref.chain.table import LONGEST
from bitnet_ref.data.batches import mix

BLOCK = 1 << 20                  # tokens counted at a time
KEPT = 1 << 19                   # n-grams of one length that a tally keeps from block to block
U = np.uint64


class Tally(NamedTuple):
    """n-grams of one length: uint64 keys (N,), ascending; int64 counts (N,); where one stands, int64 (N,)."""

    keys: np.ndarray
    counts: np.ndarray
    places: np.ndarray


def blocks(tokens: np.ndarray, eos: int, bar: tqdm) -> Iterator[tuple[int, np.ndarray]]:
    """(first place, ids int64 (n + LONGEST - 1,)): n starts, and what follows them; in the end EOS.
    >>> with tqdm(disable=True) as bar: at, ids = next(blocks(np.array([7, 8, 9]), 0, bar))
    >>> at, ids.tolist()                               # three starts; what follows the text is EOS
    (0, [7, 8, 9, 0, 0, 0, 0, 0, 0, 0])
    """
    for at in range(0, len(tokens), BLOCK):
        ids = np.asarray(tokens[at:at + BLOCK + LONGEST - 1], np.int64)
        starts = min(BLOCK, len(tokens) - at)
        yield at, np.concatenate([ids, np.full(starts + LONGEST - 1 - len(ids), eos)])
        bar.update(starts)


def keys_of(ids: np.ndarray, eos: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For n = 1..LONGEST: n, the keys uint64 (S,) of the n-grams from each start, and which hold no EOS.

    ids int (S + LONGEST - 1,), as `blocks` gives them.
    >>> ids = np.array([5, 6, 5, 6, 0, 0, 0, 0, 0, 0, 0])        # 4 starts, EOS is 0
    >>> found = {n: (key, whole) for n, key, whole in keys_of(ids, eos=0)}
    >>> key, whole = found[2]; bool(key[0] == key[2]), whole.tolist()
    (True, [True, True, True, False])
    """
    starts = len(ids) - LONGEST + 1
    key, whole = np.zeros(starts, U), np.ones(starts, bool)
    for n in range(1, LONGEST + 1):
        last = ids[n - 1:n - 1 + starts]
        key, whole = mix(key + last.astype(U)), whole & (last != eos)
        yield n, key, whole


def key_of(grams: np.ndarray) -> np.ndarray:
    """The keys uint64 (N,) of n-grams int (N, n), as `keys_of` finds them in a text.
    >>> keys = key_of(np.array([[5, 6], [6, 5], [5, 6]]))
    >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
    (True, False)
    """
    key = np.zeros(len(grams), U)
    for column in grams.T:
        key = mix(key + column.astype(U))
    return key


def tallies(tokens: np.ndarray, eos: int, bar: tqdm) -> dict[int, Tally]:
    """{n: the frequent n-grams} for n of 1..LONGEST of tokens (N,).

    Exact up to KEPT different ones of a length; beyond that the rarest are dropped after each block.
    >>> tokens = np.array([5, 6, 5, 6, 0, 5, 6])       # EOS is 0
    >>> with tqdm(disable=True) as bar: pairs = tallies(tokens, 0, bar)[2]
    >>> most = pairs.counts.argmax(); place = pairs.places[most]
    >>> int(pairs.counts[most]), tokens[place:place + 2].tolist()
    (3, [5, 6])
    """
    found: dict[int, Tally] = {}
    for at, ids in blocks(tokens, eos, bar):
        for n, key, whole in keys_of(ids, eos):
            places = np.flatnonzero(whole)
            new = Tally(key[places], np.ones(len(places), np.int64), places + at)
            found[n] = _most_frequent(_summed(found.get(n), new))
    return found


def _summed(*parts: Tally | None) -> Tally:
    """One entry for each key, with the sum of its counts and the first of its places."""
    keys, counts, places = (np.concatenate(column) for column in zip(*filter(None, parts)))
    if len(keys) == 0:
        return Tally(keys, counts, places)
    order = np.argsort(keys)                               # not stable, which would take three times as long
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return Tally(keys[first], np.add.reduceat(counts[order], first),
                 np.minimum.reduceat(places[order], first))


def _most_frequent(t: Tally) -> Tally:
    keep = largest(t.counts, KEPT)
    return Tally(*(column[keep] for column in t))


def largest(values: np.ndarray, most: int) -> np.ndarray:
    """Where the `most` largest of values (N,) are, ascending; of equals the first, on every machine.
    >>> largest(np.array([3, 9, 3, 7, 3]), most=3).tolist()      # of three equals the first
    [0, 1, 3]
    """
    if len(values) <= most:
        return np.arange(len(values))
    last = np.partition(values, -most)[-most]              # a value; which of its equals is not asked
    above, equal = np.flatnonzero(values > last), np.flatnonzero(values == last)
    return np.sort(np.concatenate([above, equal[:most - len(above)]]))
