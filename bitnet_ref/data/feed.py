"""What a run trains on: micro-batch number i of one corpus or of a mixture, as a stream or packed.

All that batches.py promises of one stream holds of each source: each of its windows once in each epoch of its
own, in an order of the seed, and nothing to save. One source as a stream is `data.batches.batch`, to the bit.
Read after: data/mixture. Read next: data/dataset.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.data.batches import mix, tail, window_of, windows
from bitnet_ref.data.mixture import drawn
from bitnet_ref.data.packing import Packing, packed, read
from bitnet_ref.data.shards import Shard


class Source(NamedTuple):
    """One corpus of a run."""

    corpus: str
    tokens: np.ndarray          # (n,) unsigned: EOS doc EOS ... EOS, part of the training shard
    weight: int
    packing: Packing | None     # None: a stream, in the order of the corpus


class Feed(NamedTuple):
    """What `micro_batch` needs besides a number."""

    sources: tuple[Source, ...]
    T: int
    seed: int

    @property
    def windows(self) -> int:
        """Of all sources: the rows of one epoch."""
        return sum(windows(len(s.tokens), self.T) for s in self.sources)


def open_feed(train: Shard, report: dict[str, Any], T: int, seed: int, packing: str = "stream") -> Feed:
    """The feed of a dataset's training shard and its report. packing: "stream", or "documents".

    Raises CheckError for a source shorter than one window, a report that contradicts the shard, and, where an
    index is written, a disk that refuses.
    >>> from tempfile import TemporaryDirectory
    >>> from bitnet_ref.data.shards import open_shard, write_shard
    >>> with TemporaryDirectory() as d:
    ...     path = write_shard(f"{d}/a.bin", [(np.arange(1, 8), 9)], 8, 0, "0" * 64).path
    ...     open_feed(open_shard(path), {}, T=4, seed=0).windows
    2
    """
    whole = [{"corpus": report.get("corpus"), "weight": 1, "train_tokens": len(train.tokens) - 1}]
    entries, sources, first = report.get("mixture", whole), [], 0
    for entry in entries:
        name, n = entry["corpus"], entry["train_tokens"]
        if len(entries) > 1:
            check(n >= T, f"each corpus of a mixture must have at least {T + 1} tokens for a context of {T}",
                  f"{n + 1} in {name}", "give more text or choose a shorter context")
        tokens = train.tokens[first:first + n + 1]
        windows(len(tokens), T)                            # at least one
        order = packed(tokens, train.header.eos, T, f"{train.header.payload_sha256}-{first}"
                       ) if packing == "documents" else None
        sources.append(Source(name, tokens, entry["weight"], order))
        first += n
    check(first == len(train.tokens) - 1, "the parts of a mixture must make up the training tokens",
          f"{first + 1} of {len(train.tokens)}", "make the dataset again")
    return Feed(tuple(sources), T, seed)


def micro_batch(feed: Feed, index: int, B: int) -> tuple[np.ndarray, np.ndarray]:
    """Micro-batch number `index`   ->  inputs, targets int64 (B, T).

    targets[:, t] is the token after inputs[:, t]. Row r of batch i is row i * B + r of the run, whatever the
    number of ranks. Raises CheckError: index or seed negative.
    >>> feed = Feed((Source("a", np.arange(9), 1, None),), T=4, seed=0)
    >>> inputs, targets = micro_batch(feed, 0, B=2)
    >>> inputs.tolist(), targets[:, -1].tolist()
    ([[4, 5, 6, 7], [0, 1, 2, 3]], [8, 4])
    """
    check(index >= 0 and B > 0, "a batch must have an index of 0 or more, and rows", f"{index} and {B}",
          "correct them")
    source, number = drawn(index * B + np.arange(B, dtype=np.int64), [s.weight for s in feed.sources])
    rows = np.empty((B, feed.T + 1), np.int64)
    for k, s in enumerate(feed.sources):
        here = source == k
        window = window_of(number[here], windows(len(s.tokens), feed.T), seed_of(feed.seed, k))
        rows[here] = read(s.tokens, s.packing, window[:, None] * feed.T + np.arange(feed.T + 1))
    return rows[:, :-1], rows[:, 1:]


def seed_of(seed: int, k: int) -> int:
    """The seed of source k: the run's for the first, others for the others, so that orders differ.
    >>> seed_of(7, 0), seed_of(7, 1)
    (7, 2875738036014693257)
    """
    return seed if k == 0 else int(mix(mix(np.array([seed], np.uint64)) + np.uint64(k))[0])


def checksums(feed: Feed) -> dict[str, str]:
    """What must be the same when a run goes on, besides the shards: weights of a mixture, orders if packed.
    >>> checksums(Feed((Source("a", np.arange(9), 3, None), Source("b", np.arange(5), 1, None)), T=4, seed=0))
    {'weights': '3 of 9 1 of 5'}
    """
    sums = {}
    if len(feed.sources) > 1:
        sums["weights"] = " ".join(f"{s.weight} of {len(s.tokens)}" for s in feed.sources)
    orders = [s.packing.checksum for s in feed.sources if s.packing is not None]
    return {**sums, "order of the documents": " ".join(orders)} if orders else sums


def account(feed: Feed, rows: int, per_step: int) -> str:
    """Windows, dropped tails and epochs of each source in a run of `rows` rows, a line for each.
    >>> print(account(Feed((Source("a", np.arange(8), 1, None),), T=4, seed=0), rows=10, per_step=1))
    1 windows of 4 tokens, the last 3 tokens in none; 10.00 epochs
    """
    said, whole = [], sum(s.weight for s in feed.sources)
    for s in feed.sources:
        n, dropped = windows(len(s.tokens), feed.T), tail(len(s.tokens), feed.T)
        share = s.weight / whole
        name = "" if len(feed.sources) == 1 else f"{s.corpus}, {share:.1%} of the rows: "
        twice = ", fewer than the rows of a step, which sees some twice" if n < per_step * share else ""
        said.append(f"{name}{n:,} windows of {feed.T} tokens{twice}, the last {dropped} tokens in none; "
                    f"{rows * share / n:,.2f} epochs")
    return "\n".join(said)
