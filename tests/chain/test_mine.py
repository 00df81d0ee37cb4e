"""chain/count and chain/mine: counts are those of a dictionary, and the choice is by what each chain adds."""

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny import own_cache, refusal  # noqa: F401
from tqdm import tqdm

from bitnet_ref.chain import count, mine
from bitnet_ref.chain.count import tallies
from bitnet_ref.chain.mine import LEAST, TRIGGER, mine_for
from bitnet_ref.chain.show import coverage
from bitnet_ref.chain.table import CHAINS, LONGEST, Chain, Table, read_table, write_table
from bitnet_ref.data.prepare import prepare

EOS = 0
texts = st.lists(st.integers(0, 3), min_size=1, max_size=120).map(
    lambda t: np.array([EOS, *t, EOS], np.uint16))


def by_hand(tokens, n):
    """Every n-gram without EOS, counted."""
    grams = (tuple(tokens[i:i + n].tolist()) for i in range(len(tokens) - n + 1))
    return Counter(g for g in grams if EOS not in g)


def quiet():
    return tqdm(disable=True)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(count, "BLOCK", 7)


@given(tokens=texts, block=st.sampled_from([3, 50, 1000]))
def test_counts_are_exact_whatever_the_blocks(tokens, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(count, "BLOCK", block)
        found = tallies(tokens, EOS, quiet())
    for n in range(1, LONGEST + 1):
        got = {tuple(tokens[p:p + n].tolist()): c for p, c in zip(found[n].places, found[n].counts)}
        assert got == by_hand(tokens, n)
        listed = [tuple(tokens[p:p + n].tolist()) for p in range(len(tokens))]
        assert all(p == listed.index(listed[p]) for p in found[n].places)      # the first of its places
        assert np.all(np.diff(found[n].keys.astype(object)) > 0)


def test_a_tally_keeps_the_most_frequent(monkeypatch, small_blocks):
    monkeypatch.setattr(count, "KEPT", 3)
    tokens = np.array([EOS, *[1, 2] * 30, 3, 4, 5, 6, 7, EOS])
    found = tallies(tokens, EOS, quiet())
    assert all(len(t.keys) <= 3 for t in found.values())
    best = found[2].places[np.argmax(found[2].counts)]
    assert sorted(tokens[best:best + 2]) == [1, 2]


def test_what_was_dropped_is_counted_exactly_in_the_end(monkeypatch, small_blocks):
    """The first pass forgets; confidences are of the second."""
    rng = np.random.default_rng(0)
    tokens = np.concatenate([[EOS], rng.integers(1, 9, 400), np.tile([1, 2, 3, 4], 50), [EOS]])
    monkeypatch.setattr(count, "KEPT", 9)
    for chain in mine.mine(tokens, EOS):
        n = len(chain.ids)
        assert chain.times == by_hand(tokens, n)[chain.ids]
        for m in range(1, n):
            want = by_hand(tokens, m + 1)[chain.ids[:m + 1]] / by_hand(tokens, m)[chain.ids[:m]]
            assert chain.confidence[m - 1] == max(1e-4, round(want, 4))


@given(tokens=texts)
def test_any_text_has_a_table(tokens):
    chains = mine.mine(tokens, EOS)
    assert len({c.ids for c in chains}) == len(chains) <= 256
    for c in chains:
        assert EOS not in c.ids
        assert c.times >= LEAST
        assert c.covers > 0
        assert all(0 < p <= 1 for p in c.confidence)
    assert sum(c.covers for c in chains) <= len(tokens)


def drafted(tokens, ids, trigger):
    """The places that a chain drafts."""
    n = len(ids)
    return {p + j for p in range(len(tokens) - n + 1) if tuple(tokens[p:p + n]) == ids
            for j in range(trigger, n)}


@given(tokens=texts, size=st.integers(1, 6))
def test_the_choice_is_the_greedy_one(tokens, size):
    """Written out: of all n-grams, again and again the one whose chance times new places is largest."""
    grams = {g: c for n in range(2, LONGEST + 1) for g, c in by_hand(tokens, n).items() if c >= LEAST}
    begins = {g: c for n in range(1, LONGEST + 1) for g, c in by_hand(tokens, n).items()}
    listed = tokens.tolist()
    trigger = {g: max(range(1, min(TRIGGER, len(g) - 1) + 1),
                      key=lambda m: ((len(g) - m) / begins[g[:m]], -m)) for g in grams}
    covered, gains = set(), []
    for _ in range(size):
        worth = {g: c / begins[g[:trigger[g]]] * len(drafted(listed, g, trigger[g]) - covered)
                 for g, c in grams.items()}
        best = max(worth, key=worth.get, default=None)
        if best is None or worth[best] <= 0:
            break
        gains.append(worth[best])
        chain = mine.mine(tokens, EOS, len(gains))[-1]     # of equals it may be another
        assert worth[chain.ids] == pytest.approx(worth[best], rel=1e-9)
        new = drafted(listed, chain.ids, trigger[chain.ids]) - covered
        assert chain.covers == len(new)
        covered |= new
    assert len(mine.mine(tokens, EOS, size)) == len(gains)


@given(tokens=texts)
def test_what_a_table_covers_is_measured_of_any_text(tokens):
    """Of the text that was mined: what the table says. Confidences are rounded, so a trigger may be another
    of equal worth; 1 and 2 tokens of such short texts differ in no rounding."""
    chains = mine.mine(tokens, EOS)
    table = Table("", 4, "", len(tokens), chains)
    shares = mine.covered(table, tokens, EOS)
    assert len(shares) == 1 + len(chains)
    assert shares == sorted(shares)
    seen = set()
    for chain, share in zip(chains, shares[1:]):
        worth = [math.prod(chain.confidence[m - 1:]) * (len(chain.ids) - m)
                 for m in range(1, min(TRIGGER, len(chain.ids) - 1) + 1)]
        seen |= drafted(tokens.tolist(), chain.ids, 1 + worth.index(max(worth)))
        assert share == len(seen) / len(tokens)


def test_what_a_table_covers_of_its_own_text_is_what_it_says():
    tokens = np.array([1, 2, 3, EOS] * 9 + [2, 1, EOS] * 5)
    table = Table("", 4, "", len(tokens), mine.mine(tokens, EOS))
    assert len(table.chains) > 1
    assert mine.covered(table, tokens, EOS) == pytest.approx(coverage(table))


def test_coverage_of_a_text_that_has_no_chains():
    table = Table("", 9, "", 9, (Chain((1, 2), 3, 2, (0.5,)),))
    assert mine.covered(table, np.array([EOS, 5, 6, EOS]), EOS) == [0, 0]
    assert mine.covered(table, np.array([EOS, 1, 2, 7, EOS]), EOS) == [0, 0.2]
    assert mine.covered(table, np.zeros(0, np.int32), EOS) == [0, 0]
    late = table._replace(chains=(Chain((1, 2, 3), 3, 2, (0.1, 1.0)),))     # worth most once 1 and 2 are seen
    assert mine.covered(late, np.array([EOS, 1, 2, 3, EOS]), EOS) == [0, 0.2]
    assert mine.covered(table._replace(chains=()), np.array([EOS, 1]), EOS) == [0]


def test_a_trigger_has_three_tokens_at_most():
    places = np.zeros(0, np.int64)
    assert mine.weighed((1, 2, 3, 4, 5, 6), [0.1, 0.1, 0.1, 0.1, 1.0], places)[1:3] == (1, 0.1)
    assert mine.weighed((1, 2, 3, 4, 5, 6), [0.1, 0.1, 0.3, 0.1, 1.0], places)[1:3] == (3, 0.3)


@given(values=st.lists(st.integers(0, 3), max_size=60), most=st.integers(1, 40))
def test_of_equals_the_first_are_kept(values, most):
    """np.argpartition's choice among equals differs between processors; a table is to be the same on all."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert count.largest(np.array(values, np.int64), most).tolist() == sorted(order[:most])


def test_a_run_of_one_token_covers_each_place_once():
    tokens = np.array([EOS, *[5] * 40, EOS])
    assert sum(c.covers for c in mine.mine(tokens, EOS)) <= 39


def test_sizes_are_checked():
    for size in (0, 257):
        with refusal("1 to 256 chains", size):
            mine.mine(np.array([EOS, 1, EOS]), EOS, size)


def test_a_dataset_has_its_table(tmp_path):
    data = prepare(str(tiny.corpus()), vocab_size=300, progress=False)
    table = mine_for(data, 20)
    write_table(tmp_path / CHAINS, table)
    assert read_table(tmp_path / CHAINS, data.tokenizer) == table
    assert len(table.chains) == 20
    assert table.corpus == str(tiny.corpus())
    assert table.tokens == len(data.train.tokens)
    stream = data.train.tokens
    for chain in table.chains[:5]:
        assert chain.times == by_hand(np.asarray(stream, np.int64), len(chain.ids))[chain.ids]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus():
    """Twice as long a stream costs no more at its peak, beyond the places that are looked at."""
    import tracemalloc

    rng, peaks = np.random.default_rng(0), []
    for length in (5 << 20, 10 << 20):
        tokens = rng.zipf(1.3, length).clip(0, 4095).astype(np.uint16)
        tracemalloc.start()
        mine.mine(tokens, EOS)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.15 * peaks[0]
    assert peaks[1] < 1 << 30


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for a process's peak")
def test_memory_is_flat_for_a_stream_of_any_length(tmp_path):
    """30 Mi tokens in a file: the process grows as for 5 Mi, beyond pages of the file, which cost nothing."""
    path, peaks = tmp_path / "tokens.bin", []
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for _ in range(30):
            rng.zipf(1.3, 1 << 20).clip(0, 4095).astype(np.uint16).tofile(file)
    for length in (5 << 20, 30 << 20):
        code = ("import numpy as np; from bitnet_ref.chain import mine; "
                f"tokens = np.memmap({str(path)!r}, np.uint16)[:{length}]; mine.mine(tokens, {EOS}); "
                "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])")     # its own alone
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    pages = (30 << 20) * 2 // 1024                         # KiB of the file, which may be in memory
    assert peaks[1] < peaks[0] + pages + 100_000
    assert peaks[1] < 1 << 20
