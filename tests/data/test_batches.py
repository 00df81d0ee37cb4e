"""Every window once an epoch, every validation token once, and the same batches on every machine for ever.

Read after: bitnet_ref/data/batches. Read next: tests/data/test_dataset.
"""

import itertools
from collections import Counter
from math import factorial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.checks import CheckError
from bitnet_ref.data.batches import (
    batch,
    epoch_key,
    feistel,
    keyed_permutation,
    mix,
    sequential,
    tail,
    windows,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text(encoding="utf-8")
SIZES = {"n": st.integers(2, 400), "T": st.integers(1, 20), "B": st.integers(1, 9),
         "seed": st.integers(0, 2**64 - 1)}


# ---- golden ----

def test_splitmix_gives_the_published_numbers():
    """The first outputs of SplitMix64 from state 1234567, as published with the generator."""
    state = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423,
                                   4593380528125082431, 16408922859458223821]


def test_the_order_is_the_same_forever():
    order = keyed_permutation(np.arange(20), 20, epoch_key(1, np.zeros(20, np.int64)))
    assert order.tolist() == [13, 12, 18, 2, 5, 7, 11, 8, 17, 1, 10, 15, 0, 14, 9, 19, 6, 16, 3, 4]
    assert str(order.tolist()) in PAGE
    inputs, targets = batch(np.arange(1001, dtype=np.uint16), 3, 4, 10, seed=1)
    assert inputs[:, 0].tolist() == [0, 910, 90, 350]
    assert targets[:, 0].tolist() == [1, 911, 91, 351]


# ---- training ----

@given(**SIZES, epoch=st.integers(0, 5))
def test_every_window_once_an_epoch(n, T, B, seed, epoch):
    tokens = np.arange(n, dtype=np.uint32)
    if n <= T:
        with pytest.raises(CheckError, match=r"must have at least .* tokens for a context of"):
            batch(tokens, 0, B, T, seed)
        return
    w = windows(n, T)
    first, last = epoch * w // B, -(-(epoch + 1) * w // B)           # the batches that touch the epoch
    rows = np.concatenate([batch(tokens, i, B, T, seed)[0][:, 0] for i in range(first, last)])
    rows = rows[epoch * w - first * B:][:w]
    assert sorted(rows.tolist()) == [i * T for i in range(w)]
    assert w * T + tail(n, T) + 1 == n
    assert 0 <= tail(n, T) < T


@given(**SIZES, index=st.integers(0, 10**12))
def test_targets_are_one_ahead(n, T, B, seed, index):
    tokens = (np.arange(n + T) * 7 % 1000).astype(np.uint16)
    inputs, targets = batch(tokens, index, B, T, seed)
    assert inputs.shape == targets.shape == (B, T)
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert set(map(tuple, inputs)) <= {tuple(tokens[i:i + T]) for i in range(0, len(tokens), T)}


@given(st.integers(0, 50), st.integers(1, 6))
def test_the_size_of_a_batch_does_not_change_the_order(index, ranks):
    """One batch of `ranks` rows is `ranks` batches of one row: how N workers share a run."""
    tokens = np.arange(500, dtype=np.uint16)
    whole = batch(tokens, index, ranks, 7, seed=3)[0]
    parts = [batch(tokens, index * ranks + r, 1, 7, seed=3)[0] for r in range(ranks)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_epochs_and_seeds_have_orders_of_their_own():
    tokens = np.arange(1001, dtype=np.uint16)

    def order(epoch, seed):
        return tuple(batch(tokens, epoch, 100, 10, seed)[0][:, 0])

    orders = {order(epoch, seed) for epoch in range(10) for seed in range(10)}
    assert len(orders) == 100
    assert tuple(sorted(order(0, 0))) not in orders


def test_reads_memory_maps(tmp_path):
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.uint16, "r")
    assert np.array_equal(batch(mapped, 0, 2, 9, 0)[0], batch(np.arange(100, dtype=np.uint16), 0, 2, 9, 0)[0])
    assert type(batch(mapped, 0, 2, 9, 0)[0]) is np.ndarray


@pytest.mark.parametrize(("args", "message"), [
    ((-1, 2, 3, 0), "must have an index of 0 or more, and rows; got -1 and 2"),
    ((0, 0, 3, 0), "must have an index of 0 or more, and rows; got 0 and 0"),
    ((0, 2, 0, 0), "a window must have at least one token; got 0"),
    ((0, 2, 10, 0), "must have at least 11 tokens for a context of 10; got 10; give more text"),
    ((0, 2, 3, -1), r"seed must lie in \[0, 2\^64\); got -1"),
])
def test_impossible_batches(args, message):
    with pytest.raises(CheckError, match=message):
        batch(np.arange(10, dtype=np.uint16), *args)


# ---- the permutation ----

@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation(n, seed):
    key = epoch_key(seed, np.full(n, 2))
    assert sorted(keyed_permutation(np.arange(n), n, key).tolist()) == list(range(n))


@pytest.mark.parametrize("half", [1, 4, 5])
def test_the_network_is_a_bijection(half):
    x = np.arange(1 << 2 * half, dtype=np.uint64)
    assert sorted(feistel(x, half, epoch_key(9, np.zeros(len(x), np.int64))).tolist()) == x.tolist()


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_order_is_as_likely(n):
    """chi^2 of the n! orders over many keys stays within five standard deviations of its mean."""
    keys = epoch_key(0, np.arange(24_000))
    orders = np.stack([keyed_permutation(np.full(len(keys), i), n, keys) for i in range(n)], 1)
    counts = Counter(map(tuple, orders.tolist()))
    expected, free = len(keys) / factorial(n), factorial(n) - 1
    chi2 = sum((counts[p] - expected) ** 2 / expected for p in itertools.permutations(range(n)))
    assert abs(chi2 - free) < 5 * np.sqrt(2 * free)


def test_neighbours_are_scattered():
    n = 10_000
    order = keyed_permutation(np.arange(n), n, epoch_key(0, np.zeros(n, np.int64)))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.05


# ---- validation ----

@given(n=st.integers(2, 300), T=st.integers(1, 40), B=st.integers(1, 9))
def test_every_token_after_the_first_is_a_target_once(n, T, B):
    tokens = np.arange(n, dtype=np.uint16)
    inputs, targets = zip(*sequential(tokens, T, B))
    assert np.concatenate([t.ravel() for t in targets]).tolist() == list(range(1, n))
    assert np.concatenate([i.ravel() for i in inputs]).tolist() == list(range(n - 1))
    assert all(i.shape[0] <= B and i.shape[1] <= T and i.dtype == np.int64 for i in inputs)


@given(n=st.integers(30, 300), T=st.integers(1, 20), limit=st.integers(1, 50))
def test_a_limit_takes_windows_from_all_over(n, T, limit):
    tokens = np.arange(n, dtype=np.uint16)
    rows = [row for inputs, _ in sequential(tokens, T, 4, limit) for row in inputs]
    w = windows(n, T)
    if limit >= w:
        assert len(rows) == w + (tail(n, T) > 0)
    else:
        starts = [int(row[0]) for row in rows]
        assert len(set(starts)) == limit
        assert all(s % T == 0 for s in starts)
        assert max(np.diff([*starts, w * T])) <= T * -(-w // limit)


@pytest.mark.parametrize(("n", "T", "B", "limit"), [
    (1, 4, 2, None), (0, 4, 2, None), (9, 0, 2, None), (9, 4, 0, None), (9, 4, 2, 0)])
def test_impossible_validation(n, T, B, limit):
    with pytest.raises(CheckError, match=r"validation must have 2 tokens or more, and sizes above 0; got"):
        list(sequential(np.zeros(n, np.uint16), T, B, limit))
