"""Packing loses nothing, repeats nothing and cuts less; the index is whole, or made again.

Read after: bitnet_ref/data/packing. Read next: tests/data/test_mixture.
"""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_ref.checks import CheckError
from bitnet_ref.data import packing as module
from bitnet_ref.data.atomic import unwritable
from bitnet_ref.data.packing import documents, packed, read, reordered
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.shards import HEADER

from .conftest import files_below

EOS = 0
DECISION = (Path(__file__).resolve().parents[2] / "docs/decisions/023-packing-is-an-order.md").read_text(
    encoding="utf-8")
LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def stream(lengths):
    """EOS doc EOS ... EOS, every token of a document its own number."""
    parts, n = [[EOS]], 1
    for length in lengths:
        parts += [range(n, n + length), [EOS]]
        n += length
    return np.array([t for part in parts for t in part], np.uint32)


def whole(tokens, packing):
    """The stream in its new order."""
    return read(tokens, packing, np.arange(len(tokens)))


def cut_share(docs, T):
    """Share, in [0, 1], of the documents of at most T tokens that lie across the end of a window."""
    lengths = np.array([length for _, length in docs], np.int64)
    ends = np.cumsum(lengths)
    cut = (ends - lengths) // T != (ends - 1) // T
    return float(cut[lengths <= T].mean()) if np.any(lengths <= T) else 0.0


# ---- golden ----

def test_the_order_is_the_same_forever():
    docs = [(0, 5), (10, 3), (20, 9), (30, 2), (40, 8), (50, 3), (60, 20)]
    assert [length for _, length in reordered(docs, 8)] == [8, 5, 3, 3, 2, 20, 9]
    assert [start for start, _ in reordered(docs, 8, pool=2)] == [0, 10, 30, 20, 50, 60, 40]


# ---- property ----

@same_folder
@given(LENGTHS, st.integers(1, 50), st.integers(1, 9))
def test_every_token_once_and_after_its_own_predecessor(cache, lengths, T, pool):
    """The new stream has the old one's documents, whole: each pair of input and target is one of the old."""
    tokens = stream(lengths)
    found = list(documents(tokens, EOS))
    assert [length for _, length in found] == [n + 1 for n in lengths]
    order = list(reordered(found, T, pool))
    assert sorted(order) == sorted(found)
    new = np.concatenate([tokens[:1], *(tokens[start:start + length] for start, length in order)])
    pairs = [sorted(zip(s[:-1].tolist(), s[1:].tolist())) for s in (tokens, new)]
    assert pairs[0] == pairs[1]


@same_folder
@given(LENGTHS, st.integers(1, 50))
def test_the_index_says_the_order(cache, lengths, T):
    tokens = stream(lengths)
    packing = packed(tokens, EOS, T, f"{len(tokens)}-{hash(tuple(lengths))}")
    order = list(reordered(documents(tokens, EOS), T))
    expected = np.concatenate([tokens[:1], *(tokens[s:s + n] for s, n in order)])
    assert whole(tokens, packing).tolist() == expected.tolist()
    assert read(tokens, None, np.arange(len(tokens))).tolist() == tokens.tolist()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200), st.integers(1, 40))
def test_what_fits_a_window_of_its_own_is_cut_less(lengths, T):
    """Never a whole window of room for a document that is cut: a cut begins where nothing fits the room."""
    docs = [(i * 100, n) for i, n in enumerate(lengths)]
    room, left = T, sorted(lengths)
    for _, n in reordered(docs, T):
        if n > room:
            assert left[0] > room
            assert n == left[-1]
        left.remove(n)
        room = (room - n) % T or T


def test_documents_that_fill_windows_are_never_cut():
    lengths = np.random.default_rng(0).permutation([3, 5, 8, 1, 7, 4, 4, 2, 6] * 50)
    docs = [(i * 100, int(n)) for i, n in enumerate(lengths)]
    assert cut_share(docs, 8) > 0.4
    assert cut_share(reordered(docs, 8), 8) == 0
    assert cut_share([(0, 9)], 8) == 0                      # none that fits


# ---- the file ----

def test_made_once_and_of_bounded_memory(cache, monkeypatch):
    monkeypatch.setattr(module, "POOL", 100)
    monkeypatch.setattr(module, "BLOCK", 1000)
    monkeypatch.setattr(module.reordered, "__defaults__", (100,))
    tokens = stream(np.random.default_rng(0).integers(1, 50, 4000).tolist())
    tracemalloc.start()
    first = packed(tokens, EOS, 64, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(first.at) == 4001
    assert peak < 16 * 4001                                 # less than the index, of which it holds a part
    assert sorted(whole(tokens, first).tolist()) == sorted(tokens.tolist())
    assert files_below(cache) == ["packings/a-64.bin"]
    stamp = (cache / "packings/a-64.bin").stat().st_mtime_ns
    again = packed(tokens, EOS, 64, "a")
    assert (cache / "packings/a-64.bin").stat().st_mtime_ns == stamp
    assert again.checksum == first.checksum
    assert packed(tokens, EOS, 32, "a").checksum != first.checksum


@pytest.mark.parametrize("how", [
    lambda d: b"", lambda d: d[:100], lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"[" * len(d),
    lambda d: d[:-8] + bytes([d[-8] ^ 1]) + d[-7:], lambda d: b"{}".ljust(HEADER) + d[HEADER:],
    lambda d: b"7" + d[1:],
    lambda d: json.dumps({**json.loads(d[:HEADER]), "pieces": -1}).ljust(HEADER).encode() + d[HEADER:],
    lambda d: json.dumps({**json.loads(d[:HEADER]), "pieces": "x"}).ljust(HEADER).encode() + d[HEADER:],
    lambda d: json.dumps({**json.loads(d[:HEADER]), "version": 0}).ljust(HEADER).encode() + d[HEADER:],
    lambda d: json.dumps({**json.loads(d[:HEADER]), "of": "b"}).ljust(HEADER).encode() + d[HEADER:],
], ids=range(12))
def test_a_file_that_is_not_what_it_should_be_is_made_again(cache, how):
    tokens = stream([5, 3, 9, 2])
    first = packed(tokens, EOS, 4, "a")
    path = cache / "packings/a-4.bin"
    good = path.read_bytes()
    path.unlink()                                           # the map of `first` keeps the old file
    path.write_bytes(how(good))
    assert packed(tokens, EOS, 4, "a").checksum == first.checksum
    assert path.read_bytes() == good


def test_a_refusing_disk(cache):
    cache.mkdir()
    (cache / "packings").write_text("in the way")
    with pytest.raises(CheckError, match=r"must be writable; got .*; free space or choose") as error:
        packed(stream([5]), EOS, 4, "a")
    assert str(error.value) == str(unwritable(cache / "packings/a-4.bin", error.value.__cause__))
    assert files_below(cache) == ["packings"]


# ---- real text ----

@pytest.mark.data
@pytest.mark.parametrize("corpus", ["tinystories", pytest.param("wikitext-2", marks=pytest.mark.slow)])
def test_the_figures_of_the_decision(real_data, corpus):
    """docs/decisions/023: documents that fit a window, and are cut all the same."""
    data = prepare(corpus, progress=False)
    docs = list(documents(data.train.tokens, data.tokenizer.eos))
    for T in (256, 512, 1024, 2048):
        fits = sum(n <= T for _, n in docs) / len(docs)
        cells = f"{fits:.1%}", f"{cut_share(docs, T):.1%}", f"{cut_share(reordered(docs, T), T):.1%}"
        assert f"| {corpus} | {T} | {' | '.join(cells)} |" in DECISION
