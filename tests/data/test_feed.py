"""What a run sees: the batches of always by default; each window of each source once an epoch; any ranks.

Read after: bitnet_ref/data/feed. Read next: tests/data/test_dataset.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_ref.checks import CheckError
from bitnet_ref.data.batches import batch, tail, windows
from bitnet_ref.data.feed import account, checksums, micro_batch, open_feed, seed_of
from bitnet_ref.data.mixture import drawn
from bitnet_ref.data.shards import Header, Shard

SUM = "ab" * 32
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = st.integers(0, 2**64 - 1)
DOCS = st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=20), min_size=1, max_size=3)


def shard_of(sources):
    """(a shard of sources given as lengths of documents, its report); each token its own number, EOS 0."""
    parts, n, entries = [[0]], 1, []
    for k, lengths in enumerate(sources):
        before = sum(map(len, parts))
        for length in lengths:
            parts += [range(n, n + length), [0]]
            n += length
        entries.append({"corpus": f"c{k}", "weight": k + 1, "train_tokens": sum(map(len, parts)) - before})
    tokens = np.array([t for part in parts for t in part], np.uint32)
    header = Header("bitnet_ref.tokens", 1, "<u4", len(tokens), sum(map(len, sources)), n, 1 << 20, 0, n, SUM,
                    f"{abs(hash(tokens.tobytes())):064x}"[-64:])
    report = {"corpus": "c0", **({"mixture": entries} if len(entries) > 1 else {})}
    return Shard(Path("train.bin"), header, tokens, ()), report


@given(DOCS, st.integers(1, 12), st.integers(0, 10**9), st.integers(1, 9), SEEDS)
def test_one_stream_is_batch_to_the_bit(docs, T, index, B, seed):
    shard, report = shard_of(docs[:1])
    if len(shard.tokens) <= T:
        with pytest.raises(CheckError, match=r"a training text must have at least"):
            open_feed(shard, report, T, seed)
        return
    ours = micro_batch(open_feed(shard, report, T, seed), index, B)
    for a, b in zip(ours, batch(shard.tokens, index, B, T, seed)):
        assert a.dtype == b.dtype == np.int64
        assert np.array_equal(a, b)


@same_folder
@given(DOCS, st.integers(1, 12), SEEDS, st.sampled_from(["stream", "documents"]), st.integers(0, 2))
def test_every_token_of_every_source_once_an_epoch_of_it(cache, docs, T, seed, packing, epoch):
    shard, report = shard_of(docs)
    if any(sum(lengths) + len(lengths) < T for lengths in docs):
        with pytest.raises(CheckError, match=r"must have at least \d+ tokens for a context of"):
            open_feed(shard, report, T, seed, packing)
        return
    feed = open_feed(shard, report, T, seed, packing)
    weights = [s.weight for s in feed.sources]
    for k, s in enumerate(feed.sources):
        n = windows(len(s.tokens), T)
        most = (epoch + 1) * n * sum(weights) // s.weight + 2 * sum(weights) * len(weights)
        source, number = drawn(np.arange(most), weights)
        rows = np.flatnonzero(source == k)[epoch * n:(epoch + 1) * n]
        assert number[rows].tolist() == list(range(epoch * n, (epoch + 1) * n))
        targets = micro_batch(feed, 0, most)[1][rows].ravel()
        seen, every = (np.bincount(t, minlength=len(shard.tokens)) for t in (targets, s.tokens[1:]))
        assert np.all(seen <= every)
        assert every.sum() - seen.sum() == tail(len(s.tokens), T) < T
    assert feed.windows == sum(windows(len(s.tokens), T) for s in feed.sources)


@same_folder
@given(DOCS, SEEDS, st.sampled_from(["stream", "documents"]), st.integers(1, 5), st.integers(1, 3),
       st.integers(0, 40))
def test_any_number_of_ranks_sees_the_same(cache, docs, seed, packing, ranks, B, step):
    """Micro-batch m goes to rank m % ranks: together they see what one would; and no row has state."""
    shard, report = shard_of(docs)
    T = min(8, *(sum(lengths) + len(lengths) for lengths in docs))
    feed = open_feed(shard, report, T, seed, packing)
    accumulate = 3
    one = [micro_batch(feed, step * accumulate + m, B) for m in range(accumulate)]
    seen = {m: micro_batch(feed, step * accumulate + m, B) for rank in range(ranks)
            for m in range(rank, accumulate, ranks)}
    assert all(np.array_equal(a, b) for m in range(accumulate) for a, b in zip(one[m], seen[m]))
    rows = [micro_batch(feed, step * accumulate * B + r, 1)[0][0] for r in range(accumulate * B)]
    assert np.array_equal(np.concatenate([ids for ids, _ in one]), np.stack(rows))


@same_folder
@given(DOCS, SEEDS, st.sampled_from(["stream", "documents"]))
def test_targets_are_one_ahead(cache, docs, seed, packing):
    shard, report = shard_of(docs)
    T = min(8, *(sum(lengths) + len(lengths) for lengths in docs))
    inputs, targets = micro_batch(open_feed(shard, report, T, seed, packing), 3, 5)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    pairs = {*zip(shard.tokens[:-1].tolist(), shard.tokens[1:].tolist())}
    assert {*zip(inputs.ravel().tolist(), targets.ravel().tolist())} <= pairs


def test_sources_have_orders_of_their_own(cache):
    shard, report = shard_of([[50] * 20, [50] * 20])
    feed = open_feed(shard, report, 10, 7)
    weights = [s.weight for s in feed.sources]
    source, _ = drawn(np.arange(300), weights)
    places = [[int(micro_batch(feed, int(r), 1)[0][0, 3]) % 1000 for r in np.flatnonzero(source == k)[:50]]
              for k in (0, 1)]
    assert places[0] != places[1]
    assert seed_of(7, 0) == 7
    assert len({seed_of(7, k) for k in range(100)} | {seed_of(8, k) for k in range(100)}) == 200


def test_a_text_shorter_than_a_batch_gives_rows_of_several_epochs():
    shard, report = shard_of([[10, 9, 9]])
    feed = open_feed(shard, report, 10, 0)
    assert feed.windows == 3
    firsts = micro_batch(feed, 0, 7)[0][:, 5].tolist()
    assert len(set(firsts[:3])) == len(set(firsts[3:6])) == 3
    assert account(feed, 70, 7) == ("3 windows of 10 tokens, fewer than the rows of a step, which sees some "
                                    "twice, the last 1 tokens in none; 23.33 epochs")


def test_the_account(cache):
    shard, report = shard_of([[30] * 10, [20] * 10])
    assert account(open_feed(shard, report, 32, 0), 300, 3) == (
        "c0, 33.3% of the rows: 9 windows of 32 tokens, the last 22 tokens in none; 11.11 epochs\n"
        "c1, 66.7% of the rows: 6 windows of 32 tokens, the last 18 tokens in none; 33.33 epochs")
    one, report = shard_of([[30] * 10])
    assert account(open_feed(one, report, 32, 0), 90, 3) == ("9 windows of 32 tokens, the last 22 tokens in "
                                                             "none; 10.00 epochs")


def test_what_must_be_the_same_when_a_run_goes_on(cache):
    shard, report = shard_of([[30] * 10])
    assert checksums(open_feed(shard, report, 8, 0)) == {}
    shard, report = shard_of([[30] * 10, [20, 7] * 10])
    mixed = open_feed(shard, report, 8, 0, "documents")
    assert checksums(mixed) == {
        "weights": "1 of 311 2 of 291",
        "order of the documents": " ".join(s.packing.checksum for s in mixed.sources)}


@pytest.mark.parametrize(("index", "B"), [(-1, 1), (0, 0)])
def test_impossible_batches(index, B):
    shard, report = shard_of([[30] * 10])
    with pytest.raises(CheckError, match=rf"must have an index of 0 or more, and rows; got {index} and {B}"):
        micro_batch(open_feed(shard, report, 8, 0), index, B)


def test_parts_that_do_not_make_up_the_whole(cache):
    shard, report = shard_of([[30] * 10, [20] * 10])
    report["mixture"].pop()
    with pytest.raises(CheckError, match=r"must make up the training tokens; got 311 of 521; make the"):
        open_feed(shard, report, 8, 0)
