"""From a corpus to its table of chains: two passes over the tokens, then a choice by what each chain adds.

The first pass finds n-grams that are frequent. A candidate's worth is how many tokens it would have drafted,
times how likely it is to be right: count * (tokens after the trigger) * P(they follow the trigger), where the
trigger is the first 1 to 3 tokens, whichever is worth most. The second pass counts the best candidates and
their beginnings exactly and finds where they stand. Then the chain that adds most to what is covered so far
is taken, again and again: a chain within another, or beside it, adds little.
Read after: chain/count. Read next: chain/show.
"""

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref.chain.count import BLOCK, Tally, blocks, key_of, keys_of, largest, tallies
from bitnet_ref.chain.table import LONGEST, MOST, NAME, SHORTEST, Chain, Table
from bitnet_ref.checks import check
from bitnet_ref.data.dataset import Dataset

CANDIDATES = 4096                # n-grams among which the table is chosen
MEASURED = 8 * CANDIDATES        # of one length, whose worth is looked at
LEAST = 3                        # times that a chain must stand in the corpus
TRIGGER = 3                      # tokens at most that are seen before a chain is drafted
CHOICE = 4 * BLOCK               # tokens, from the first on, in which coverage is counted
FIRST_16 = np.uint64(48)         # a shift that leaves the first 16 bits of a key
Gram = tuple[int, ...]


class Candidate(NamedTuple):
    """An n-gram with what its choice needs: `trigger` tokens are seen, the rest is drafted, right in `chance`
    of all cases. `places` int64 (N,): where it stands in the first CHOICE tokens."""

    ids: Gram
    trigger: int
    chance: float
    places: np.ndarray


def mine_for(data: Dataset, size: int = MOST, progress: bool = False) -> Table:
    """The table of a dataset's training side. Raises CheckError for a size outside 1..256.
    >>> from bitnet_ref.train.small import small_run
    >>> _, data = small_run()                          # sums, as "2 plus 3 is 5."
    >>> any("plus" in data.tokenizer.decode(chain.ids) for chain in mine_for(data).chains)
    True
    """
    header = data.train.header
    chains = mine(data.train.tokens, header.eos, size, progress)
    return Table(data.tokenizer.vocabulary, header.vocab_size, ascii(data.report["corpus"])[1:-1][:NAME],
                 min(len(data.train.tokens), CHOICE), chains)


def check_size(size: int) -> None:
    """Raise CheckError unless a table may have so many chains.
    >>> check_size(257)
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: a table must have 1 to 256 chains; got 257; choose such a size
    """
    check(1 <= size <= MOST, f"a table must have 1 to {MOST} chains", size, "choose such a size")


def mine(tokens: np.ndarray, eos: int, size: int = MOST, progress: bool = False) -> tuple[Chain, ...]:
    """At most `size` chains of tokens (N,), best first. Memory does not grow with N.

    Raises CheckError for a size outside 1..256.
    >>> tokens = np.array([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3, 7, 0])       # EOS is 0
    >>> mine(tokens, eos=0)
    (Chain(ids=(1, 2, 3), times=3, covers=6, confidence=(1.0, 1.0)),)
    """
    check_size(size)
    with tqdm(total=2 * len(tokens), desc="mining", unit="token", unit_scale=True,
              disable=not progress) as bar:
        likely = candidates(tokens, tallies(tokens, eos, bar))
        counts, places = recount(tokens, eos, likely, bar)
    each = [_weighed(ids, counts, places[ids]) for ids in likely]
    return choose(each, counts, size, min(len(tokens), CHOICE))


def candidates(tokens: np.ndarray, found: dict[int, Tally]) -> list[Gram]:
    """The CANDIDATES n-grams of greatest worth by the counts of the first pass.
    >>> tokens = np.array([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3, 7, 0])       # EOS is 0
    >>> with tqdm(disable=True) as bar: found = tallies(tokens, 0, bar)
    >>> candidates(tokens, found)                      # what stands there three times, by worth
    [(1, 2, 3), (2, 3), (1, 2)]
    """
    worth, grams = [np.zeros(0)], list[Gram]()
    for n in range(SHORTEST, LONGEST + 1):
        t = found[n]
        best = np.flatnonzero(t.counts >= LEAST)
        best = best[largest(t.counts[best], MEASURED)]
        ids = np.asarray(tokens[t.places[best][:, None] + np.arange(n)], np.int64)
        chance = np.stack([t.counts[best] / _counts(found[m], key_of(ids[:, :m]), t.counts[best])
                           for m in range(1, min(TRIGGER, n - 1) + 1)])
        worth.append(t.counts[best] * (chance * (n - np.arange(1, len(chance) + 1))[:, None]).max(axis=0))
        grams += map(tuple, ids.tolist())
    order = np.argsort(-np.concatenate(worth), kind="stable")
    return [grams[i] for i in order[:CANDIDATES]]


def _counts(t: Tally, keys: np.ndarray, least: np.ndarray) -> np.ndarray:
    """How often the n-grams `keys` stand in the text: `least`, that of a longer one, if they were dropped."""
    at = np.minimum(np.searchsorted(t.keys, keys), len(t.keys) - 1)
    return np.maximum(least, np.where(t.keys[at] == keys, t.counts[at], 0))


def recount(tokens: np.ndarray, eos: int, likely: list[Gram],
            bar: tqdm) -> tuple[dict[Gram, int], dict[Gram, np.ndarray]]:
    """{n-gram: count} of `likely` and all their beginnings; {n-gram of `likely`: its places below CHOICE}.
    >>> tokens = np.array([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 0])
    >>> with tqdm(disable=True) as bar: counts, places = recount(tokens, 0, [(1, 2, 3)], bar)
    >>> counts, places[1, 2, 3].tolist()
    ({(1,): 3, (1, 2): 3, (1, 2, 3): 2}, [0, 4])
    """
    wanted = {n: sorted({ids[:n] for ids in likely if len(ids) >= n}) for n in range(1, LONGEST + 1)}
    keys = {n: key_of(np.array(grams, np.int64).reshape(-1, n)) for n, grams in wanted.items()}
    order = {n: np.argsort(k, kind="stable") for n, k in keys.items()}
    total = {n: np.zeros(len(k), np.int64) for n, k in keys.items()}
    begins = {n: np.bincount((k >> FIRST_16).astype(np.int64), minlength=1 << 16) > 0
              for n, k in keys.items()}                    # one look-up leaves few to be looked for
    places: dict[Gram, list[np.ndarray]] = {ids: [] for ids in likely}
    for at, ids in blocks(tokens, eos, bar):
        for n, key, whole in keys_of(ids, eos):
            if len(wanted[n]) == 0:
                continue
            sorted_keys = keys[n][order[n]]
            likely_here = np.flatnonzero(whole & begins[n][key >> FIRST_16])
            found = key[likely_here]
            near = np.minimum(np.searchsorted(sorted_keys, found), len(sorted_keys) - 1)
            same = sorted_keys[near] == found
            stands, which = likely_here[same], order[n][near[same]]
            total[n] += np.bincount(which, minlength=len(keys[n]))
            if at < CHOICE:
                _keep(places, wanted[n], which, stands + at)
    counts = {gram: int(c) for n, grams in wanted.items() for gram, c in zip(grams, total[n])}
    empty = np.zeros(0, np.int64)
    return counts, {ids: np.concatenate([empty, *parts]) for ids, parts in places.items()}


def _keep(places: dict[Gram, list[np.ndarray]], grams: list[Gram], which: np.ndarray,
          stands: np.ndarray) -> None:
    """Add the places of those `grams` that are candidates; which (N,) says whose place each of stands is."""
    by = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which, minlength=len(grams)))
    for gram, begin, end in zip(grams, [0, *ends], ends):
        if gram in places and end > begin:
            places[gram].append(stands[by[begin:end]])


def _weighed(ids: Gram, counts: dict[Gram, int], places: np.ndarray) -> Candidate:
    """With the trigger that makes it worth most."""
    return weighed(ids, [counts[ids] / counts[ids[:m]] for m in range(1, len(ids))], places)


def weighed(ids: Gram, chances: Sequence[float], places: np.ndarray) -> Candidate:
    """With the trigger that makes it worth most; chances[m - 1]: of the rest, once m tokens are seen.
    >>> weighed((5, 6, 7, 8), [0.2, 0.9, 1.0], np.array([4])).trigger    # 5 alone is too unsure, 7 too late
    2
    """
    worth = [p * (len(ids) - m) for m, p in enumerate(chances[:TRIGGER], 1)]
    trigger = 1 + int(np.argmax(worth))
    return Candidate(ids, trigger, chances[trigger - 1], places)


def covered(table: Table, tokens: np.ndarray, eos: int) -> list[float]:
    """The share of tokens (N,) that the first n chains draft where they stand, n = 0, 1, ...: of any text.

    Of the text that the table is mined from it is what the table itself says. Of a longer one the first
    CHOICE tokens count.
    >>> tokens = np.array([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3, 7, 0])       # EOS is 0
    >>> covered(Table("", 10, "", 13, mine(tokens, 0)), tokens, 0) == [0, 6 / 13]    # 2 3, three times
    True
    """
    size, shares = min(len(tokens), CHOICE), [0.0]
    _, places = recount(tokens, eos, [c.ids for c in table.chains], tqdm(disable=True))
    seen = np.zeros(size, bool)
    for ids, _, _, sure in table.chains:
        rest = [math.prod(sure[m:]) for m in range(len(sure))]
        seen[tail(weighed(ids, rest, places[ids]), size)] = True
        shares.append(int(seen.sum()) / max(1, size))
    return shares


def choose(likely: list[Candidate], counts: dict[Gram, int], size: int, tokens: int) -> tuple[Chain, ...]:
    """At most `size` chains, each the one that adds most worth to those before it.

    What a chain adds can only fall as others are taken, so one whose worth was just found to be above what
    the next ever had is the best, and the rest need not be looked at.
    >>> likely = [Candidate((1, 2, 3), 1, 1.0, np.array([0, 4])), Candidate((2, 3), 1, 1.0, np.array([1, 5]))]
    >>> counts = {(1,): 2, (2,): 2, (1, 2): 2, (2, 3): 2, (1, 2, 3): 2}
    >>> [chain.ids for chain in choose(likely, counts, size=2, tokens=8)]    # 2 3 adds nothing to 1 2 3
    [(1, 2, 3)]
    """
    drafted = np.zeros(tokens, bool)                       # by the chains taken so far
    tails = [tail(c, tokens) for c in likely]
    heap = [(-c.chance * len(places), n) for n, (c, places) in enumerate(zip(likely, tails))]
    heapq.heapify(heap)
    chains: list[Chain] = []
    while heap and len(chains) < size:
        _, n = heapq.heappop(heap)
        tails[n] = tails[n][~drafted[tails[n]]]
        worth = likely[n].chance * len(tails[n])
        if worth <= 0:
            continue
        if heap and worth < -heap[0][0]:
            heapq.heappush(heap, (-worth, n))
            continue
        drafted[tails[n]] = True
        ids = likely[n].ids
        sure = tuple(max(1e-4, round(counts[ids[:m + 1]] / counts[ids[:m]], 4)) for m in range(1, len(ids)))
        chains.append(Chain(ids, counts[ids], len(tails[n]), sure))
    return tuple(chains)


def tail(c: Candidate, tokens: int) -> np.ndarray:
    """The places below `tokens` that `c` drafts where it stands, each once: it may overlap itself.
    >>> tail(Candidate((5, 6, 7), 1, 1.0, places=np.array([0, 4])), tokens=6).tolist()
    [1, 2, 5]
    """
    places = np.unique(c.places[:, None] + np.arange(c.trigger, len(c.ids)))
    return places[places < tokens]
