"""Packing: the documents of a stream in an order that cuts fewer of them, as an index file (`--packing`).

A window cuts the document that lies across its end. So documents are put in an order in which their ends meet
the ends of windows: what fits the room that is left in a window goes there, the longest first; where nothing
fits, the longest of all is cut, which is too long for one window anyway if any is. Windows, epochs and the
tail stay what batches.py says, of the stream in the new order: no padding, no mask, every token a target.
Read after: data/batches. Read next: data/mixture.
"""

import hashlib
import json
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.config import cache_dir
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.shards import BLOCK, HEADER

FORMAT, VERSION = "bitnet_ref.packing", 1
POOL = 1 << 16                  # documents to choose from at a time: some 10 MB of memory


class Packing(NamedTuple):
    """Piece i of the stream, in the new order, begins at `at[i]` there and at `start[i]` in the tokens."""

    at: np.ndarray              # (n,) int64, ascending from 0; memory-mapped
    start: np.ndarray           # (n,) int64
    checksum: str               # sha256 of both: the order, by a name


def packed(tokens: np.ndarray, eos: int, T: int, of: str) -> Packing:
    """The packing of `tokens` (n,), EOS doc EOS ... EOS, into windows of T + 1: from the cache, or made.

    `of` names the tokens: it has their checksum. A file in the cache that is damaged, or of another version,
    is made again. The order is a function of the lengths of the documents and of T. Raises CheckError where
    the cache refuses to be written.
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> with TemporaryDirectory() as d, patch.dict("os.environ", BITNET_REF_CACHE=d):
    ...     packed(np.array([0, 5, 0, 6, 7, 0]), eos=0, T=3, of="checksum").start.tolist()
    [0, 3, 1]
    """
    path = cache_dir() / "packings" / f"{of}-{T}.bin"
    about = {"format": FORMAT, "version": VERSION, "of": of, "tokens": len(tokens), "context": T,
             "pool": POOL}
    return _opened(path, about) or _written(path, about, tokens, eos, T)


def read(tokens: np.ndarray, packing: Packing | None, at: np.ndarray) -> np.ndarray:
    """The tokens at places `at` of the stream, in its new order if it has one.   int64 (...)  ->  int64 (...)
    >>> packing = Packing(at=np.array([0, 3]), start=np.array([2, 0]), checksum="")
    >>> read(np.arange(5), packing, np.arange(5)).tolist()
    [2, 3, 4, 0, 1]
    """
    if packing is not None:
        piece = np.searchsorted(packing.at, at, side="right") - 1
        at = packing.start[piece] + at - packing.at[piece]
    return np.asarray(tokens[at], np.int64)


def documents(tokens: np.ndarray, eos: int) -> Iterator[tuple[int, int]]:
    """(start, length) of each document, in order, its EOS counted. Reads `tokens` in blocks.
    >>> list(documents(np.array([0, 5, 0, 6, 7, 0]), eos=0))
    [(1, 2), (3, 3)]
    """
    before = 0
    for i in range(1, len(tokens), BLOCK):
        for end in (np.flatnonzero(tokens[i:i + BLOCK] == eos) + i).tolist():
            yield before + 1, end - before
            before = end


def reordered(docs: Iterable[tuple[int, int]], T: int, pool: int = POOL) -> Iterator[tuple[int, int]]:
    """The documents, each once, best fit first into windows of T targets; `pool` are chosen from at a time.
    >>> list(reordered([(1, 2), (3, 3), (6, 2)], T=4))          # the two of 2 tokens share a window
    [(3, 3), (6, 2), (1, 2)]
    """
    docs, room = iter(docs), T
    waiting: dict[int, list[int]] = {}                     # length -> where documents of it start
    lengths: list[int] = []                                # those that have any, ascending
    free = pool
    while True:
        for start, length in islice(docs, free):
            if length not in waiting:
                waiting[length] = []
                insort(lengths, length)
            waiting[length].append(start)
            free -= 1
        if not lengths:
            return
        i = bisect_right(lengths, room) - 1                # -1, the longest of all, where nothing fits
        length = lengths[i]
        yield waiting[length].pop(), length
        free += 1
        if not waiting[length]:
            del waiting[length], lengths[i]
        room = (room - length) % T or T


# ---- the file: a header as the shards', all of `at`, all of `start` ----

def _written(path: Path, about: dict[str, Any], tokens: np.ndarray, eos: int, T: int) -> Packing:
    n = 1 + sum(int(np.count_nonzero(tokens[i:i + BLOCK] == eos)) for i in range(1, len(tokens), BLOCK))
    order, at = reordered(documents(tokens, eos), T), 1
    with whole_file(path) as file:
        done = 0
        block = [(0, 0)]                                   # the EOS that the stream begins with
        while block:
            for column, first in enumerate((HEADER, HEADER + 8 * n)):
                file.seek(first + 8 * done)
                file.write(np.array([pair[column] for pair in block], "<i8").tobytes())
            done += len(block)
            block = []
            for start, length in islice(order, POOL):
                block.append((at, start))
                at += length
        file.seek(HEADER)
        about = {**about, "pieces": n, "payload_sha256": _sum(file)}
        file.seek(0)
        file.write((json.dumps(about).ljust(HEADER - 1) + "\n").encode("ascii"))
    opened = _opened(path, about)
    assert opened is not None
    return opened


def _opened(path: Path, about: dict[str, Any]) -> Packing | None:
    """The packing at `path`, or None unless it is whole and its header says all that is in `about`."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(HEADER).decode("ascii"))
            n, checksum = header["pieces"], header["payload_sha256"]
            fits = {**header, **about} == header and path.stat().st_size == HEADER + 16 * n
            if not fits or _sum(file) != checksum:
                return None
        both = np.memmap(path, "<i8", "r", HEADER, (2, n))
        return Packing(both[0], both[1], checksum)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _sum(file: Any) -> str:
    """sha256 of the rest of an open file, read in blocks."""
    digest = hashlib.sha256()
    while block := file.read(8 * BLOCK):
        digest.update(block)
    return digest.hexdigest()
