"""Training and validation side of a corpus, with nothing in common.

A document goes to a side by a keyed hash of its text: not by its position, so adding or reordering files
moves no other document, and equal documents stay together. Text that stands on both sides all the same
(licences, quotations) is then cut out of the TRAINING side, so that validation stays whole and a low loss
there is not memory. The memory needed is that of the validation side, whatever the size of the corpus.
Read after: data/corpus. Read next: data/tokenizer.
"""

import heapq
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from bitnet_ref.checks import check

SPAN = 60                       # characters, white space normalised: what counts as a repeat
MOST_BYTES = 1 << 21            # of UTF-8, most that is held out: about half a million tokens
WHITE_SPACE = np.array([c for c in range(0x3001) if chr(c).isspace()], np.uint32)
UNIT = re.compile(r"[^\n]{1,4096}\n?|\n")       # what is cut out: a line, or a piece of a very long one
_BASE = 0x9E3779B97F4A7C15      # of the span hashes; odd, so that multiplying by it loses nothing mod 2^64


# ---- which side ----

class Choice(NamedTuple):
    """What one pass over the documents decides: a document is held out iff its hash is below `cut`."""

    cut: int                    # in [0, 2^64]
    held_out: list[str]         # in the order of the corpus
    documents: int              # of both sides
    text_bytes: int             # UTF-8, of both sides


def document_hash(text: str, seed: int) -> int:
    """64 bits of the text, keyed by `seed`: uniform, the same on every machine. Raises CheckError.
    >>> document_hash("text", seed=0), document_hash("text", seed=1)
    (7149664607750961692, 5795145719362181170)
    """
    check(0 <= seed < 1 << 64, "seed must lie in [0, 2^64)", seed, "choose another")
    key = seed.to_bytes(8, "little")
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8, key=key).digest(), "little")


def choose(docs: Iterable[str], val_fraction: float, seed: int, most: int = MOST_BYTES) -> Choice:
    """One pass: hold out the documents of least hash, up to `val_fraction` of them and `most` bytes of text.

    With val_fraction > 0 each side gets at least one document. Raises CheckError: val_fraction not in [0, 1),
    or fewer than two different documents to divide.
    >>> choose(["one", "two", "three", "four"], 0.25, seed=0).held_out
    ['three']
    """
    check(0 <= val_fraction < 1, "val_fraction must lie in [0, 1)", val_fraction, "0.05 is usual")
    cut, held = int(val_fraction * 2**64), 0
    kept: list[tuple[int, int, int, str]] = []              # a heap of (-hash, -position, bytes, text)
    least, greatest, count, total = (1 << 64, ""), -1, 0, 0
    for text in docs:
        h, size = document_hash(text, seed), len(text.encode("utf-8"))
        least, greatest, count, total = min(least, (h, text)), max(greatest, h), count + 1, total + size
        if h < cut:
            heapq.heappush(kept, (-h, -count, size, text))
            held += size
        while held > most:                                  # the cut falls until what is below it fits
            h, _, size, _ = heapq.heappop(kept)
            cut, held = -h, held - size
    if val_fraction == 0:
        return Choice(0, [], count, total)
    check(least[0] < greatest, "a split needs at least two different documents", min(count, 1),
          "give more text, separate documents by blank lines, or set val_fraction to 0")
    cut = min(max(cut, least[0] + 1), greatest)             # at least one below the cut, at least one not
    held_out = [text for h, _, _, text in sorted(kept, key=lambda entry: -entry[1]) if -h < cut]
    return Choice(cut, held_out or [least[1]], count, total)


def training_side(docs: Iterable[str], choice: Choice, seed: int) -> Iterator[str]:
    """The documents that `choice` leaves to training.
    >>> docs = ["one", "two", "three", "four"]
    >>> list(training_side(docs, choose(docs, 0.25, seed=0), seed=0))
    ['one', 'two', 'four']
    """
    return (text for text in docs if document_hash(text, seed) >= choice.cut)


def split(docs: Iterable[str], val_fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """(train, validation) of documents that fit in memory; as `choose`.
    >>> split(["one", "two", "three", "four"], 0.25, seed=0)
    (['one', 'two', 'four'], ['three'])
    """
    docs = list(docs)
    choice = choose(docs, val_fraction, seed)
    return list(training_side(docs, choice, seed)), choice.held_out


# ---- what repeats ----

class Spans(NamedTuple):
    """The spans of some texts, as a set that answers quickly."""

    hashes: np.ndarray          # (n,) uint64, sorted, each as often as it occurs
    table: np.ndarray           # (2^k,) bool by the top k bits of a hash: False means not in the set
    span: int


def spans(texts: Iterable[str], span: int = SPAN) -> Spans:
    """All spans of `span` characters of each text; 12 to 24 bytes of memory for each. Raises CheckError.
    >>> len(spans(["four", "to"], span=3).hashes)               # fou, our
    2
    """
    check(span > 0, "span must be greater than 0", span, f"{SPAN} is usual")
    parts = [span_hashes(normalised(text)[0], span) for text in texts]
    hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
    hashes.sort()
    bits = max(8, (4 * len(hashes)).bit_length())           # at most one entry of 4 to 8 is True
    table = np.zeros(1 << bits, bool)
    table[hashes >> np.uint64(64 - bits)] = True
    return Spans(hashes, table, span)


def repeated_share(train_docs: Iterable[str], val_docs: Iterable[str], span: int = SPAN) -> float:
    """Share, in [0, 1], of the spans of the validation text that also stand in the training text.
    >>> round(repeated_share(["one two three"], ["one two four"], span=7), 2)
    0.33
    """
    known = spans(val_docs, span)
    seen = np.zeros(len(known.hashes), bool)
    for text in train_docs:
        hashes = span_hashes(normalised(text)[0], span)
        seen[np.searchsorted(known.hashes, hashes[_among(hashes, known)])] = True
    return float(seen[np.searchsorted(known.hashes, known.hashes)].mean()) if len(seen) else 0.0


def remove_repeats(train_docs: Iterable[str], val_docs: Iterable[str], span: int = SPAN
                   ) -> tuple[list[str], int]:
    r"""(the training documents without what repeats the validation documents, bytes of UTF-8 removed).
    >>> remove_repeats(["mine\nthe licence\n"], ["yours\nthe licence\n"], span=10)
    (['mine\n'], 12)
    """
    known, before, kept = spans(val_docs, span), 0, []
    for text in train_docs:
        before += len(text.encode("utf-8"))
        if rest := without_repeats(text, known):
            kept.append(rest)
    return kept, before - sum(len(text.encode("utf-8")) for text in kept)


def without_repeats(text: str, known: Spans) -> str:
    r"""`text` without its lines that share a span with `known`, and then none is shared; "" if nothing stays.

    First go the lines that hold a whole shared span, so that a repeated line does not take its neighbours
    along for a full stop; then all lines that a shared span crosses. Closing a gap may join what was apart,
    hence the loop.
    >>> without_repeats("mine\nthe licence\n", spans(["the licence"], span=10))
    'mine\n'
    """
    while True:
        chars, where = normalised(text)
        starts = np.flatnonzero(_among(span_hashes(chars, known.span), known))
        if not len(starts):
            return text if len(chars) else ""
        units = UNIT.findall(text)
        ends = np.cumsum([len(unit) for unit in units])
        first = np.searchsorted(ends, where[starts], side="right")      # the unit where each span begins
        last = np.searchsorted(ends, where[starts + known.span - 1], side="right")      # and where it ends
        if (within := first == last).any():
            first, last = first[within], last[within]
        n = len(units) + 1
        depth = np.cumsum(np.bincount(first, minlength=n) - np.bincount(last + 1, minlength=n))
        text = "".join(unit for unit, over in zip(units, depth) if not over)


def span_hashes(chars: np.ndarray, span: int) -> np.ndarray:
    """Polynomial hash mod 2^64 of each window.   chars uint32 (n,)  ->  uint64 (max(0, n - span + 1),)

    h_i = sum_j (chars[i+j] + 1) * BASE^(span-1-j), built by doubling along the binary digits of `span`:
    the hash of a window of a + b characters is h_a(i) * BASE^b + h_b(i + a).
    >>> a, b, c = span_hashes(np.array([7, 8, 7, 8], np.uint32), span=2).tolist()
    >>> a == c, a == b
    (True, False)
    """
    n = max(0, len(chars) - span + 1)
    power, width = chars.astype(np.uint64) + np.uint64(1), 1            # hashes of all windows of `width`
    whole, done = np.zeros(len(chars) + 1, np.uint64), 0                # hashes of all windows of `done`
    while n and done < span:
        if span & width:
            tails = power[done:]
            whole = whole[:len(tails)] * _base_to(width) + tails
            done += width
        power = power[:-width] * _base_to(width) + power[width:]
        width *= 2
    return whole[:n]


def _base_to(n: int) -> np.uint64:
    return np.uint64(pow(_BASE, n, 1 << 64))


def normalised(text: str) -> tuple[np.ndarray, np.ndarray]:
    """" ".join(text.split()) as code points; where each stands in `text`.   ->  uint32 (n,), int64 (n,)
    >>> chars, where = normalised("  a   b ")
    >>> "".join(map(chr, chars)), where.tolist()
    ('a b', [2, 3, 6])
    """
    chars = np.frombuffer(text.encode("utf-32-le"), "<u4")
    white = np.isin(chars, WHITE_SPACE)
    after_white = np.concatenate([[True], white[:-1]])                  # leading white space goes too
    where = np.flatnonzero(~(white & after_white))
    if len(where) and white[where[-1]]:
        where = where[:-1]
    return np.where(white, np.uint32(32), chars)[where], where


def _among(hashes: np.ndarray, known: Spans) -> np.ndarray:
    """Which of `hashes` are in the set.   (n,)  ->  bool (n,)"""
    bits = len(known.table).bit_length() - 1
    among = known.table[hashes >> np.uint64(64 - bits)]
    maybe = np.flatnonzero(among)                           # empty if the set is
    at = np.searchsorted(known.hashes, hashes[maybe])       # may be n, past the last
    among[maybe] = np.take(known.hashes, at, mode="clip") == hashes[maybe]
    return among
