"""chain/merge: the stream is that of a walk from the left, super-tokens say all of it back."""

from contextlib import contextmanager

import numpy as np
import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import refusal
from tqdm import tqdm

from bitnet_ref.chain import count, merge
from bitnet_ref.chain.merge import ChainTokenizer, expanded, ids_of, merged, stream, with_chains
from bitnet_ref.chain.table import LONGEST, Chain, Table
from bitnet_ref.data.tokenizer import train_bpe

EOS, V = 0, 4
texts = st.lists(st.integers(0, V - 1), max_size=60).map(lambda t: np.array([EOS, *t, EOS], np.uint16))
chains = st.lists(st.lists(st.integers(0, V - 1), min_size=2, max_size=LONGEST).map(tuple), max_size=9,
                  unique=True).map(tuple)
supers = st.sampled_from([None, V])
sizes = st.sampled_from([1, 2, 7, 64])


def table_of(*ids):
    return Table("ab" * 32, V, "corpus", 9, tuple(Chain(i, 3, 2, (0.5,) * (len(i) - 1)) for i in ids))


@contextmanager
def block_of(size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(count, "BLOCK", size)
        yield


def by_hand(tokens, found, supers):
    """At each place the longest chain that stands there without EOS, or the token."""
    out, at, tokens = [], 0, tokens.tolist()
    while at < len(tokens):
        here = [c for c in found if EOS not in c and tuple(tokens[at:at + len(c)]) == c]
        best = max(here, key=len, default=None)
        out.append(tokens[at] if best is None or supers is None else supers + found.index(best))
        at += 1 if best is None else len(best)
    return out


@given(tokens=texts, found=chains, supers=supers, size=sizes)
@example(tokens=np.array([0, 1, 1, 1, 1, 1, 0]), found=((1, 1), (1, 1, 1)), supers=V, size=2)
def test_the_stream_is_a_walk_from_the_left_whatever_the_blocks(tokens, found, supers, size):
    with block_of(size):
        assert merged(tokens, found, EOS, supers).tolist() == by_hand(tokens, found, supers)


@given(tokens=texts, found=chains, size=sizes)
def test_super_tokens_say_all_of_it_back(tokens, found, size):
    with block_of(size):
        ids = merged(tokens, found, EOS, V)
    assert expanded(ids, found, V).tolist() == tokens.tolist()
    assert all(0 <= i < V + len(found) for i in ids)


@given(tokens=texts, found=chains, supers=supers)
def test_documents_stay_apart_and_nothing_grows(tokens, found, supers):
    ids = merged(tokens, found, EOS, supers)
    assert len(ids) <= len(tokens)
    assert np.count_nonzero(ids == EOS) == np.count_nonzero(tokens == EOS)
    plain = [len(doc) for doc in np.split(tokens, np.flatnonzero(tokens == EOS))]
    short = [len(doc) for doc in np.split(ids, np.flatnonzero(ids == EOS))]
    assert all(a <= b for a, b in zip(short, plain, strict=True))


def test_the_target_of_a_first_token_is_what_follows_the_chain():
    """The tokens inside it are neither inputs nor targets: no loss is theirs."""
    ids = merged(np.array([EOS, 1, 2, 3, 2, EOS]), ((1, 2, 3),), EOS, None)
    pairs = list(zip(ids[:-1].tolist(), ids[1:].tolist()))
    assert pairs == [(EOS, 1), (1, 2), (2, EOS)]


def test_equal_hashes_merge_nothing_that_is_no_chain(monkeypatch):
    """Were all hashes the same, what is found would still be compared token by token."""
    monkeypatch.setattr(count, "mix", np.zeros_like)
    tokens, found = np.array([EOS, 1, 2, 3, 1, 3, 2, 1, EOS]), ((1, 2), (2, 2), (3, 3, 3))
    merge.patterns.cache_clear()
    ids = merged(tokens, found, EOS, V)
    merge.patterns.cache_clear()
    assert expanded(ids, found, V).tolist() == tokens.tolist()


def test_a_stream_comes_in_blocks():
    """Memory is that of a block: none is as long as the text."""
    with block_of(10), tqdm(disable=True) as bar:
        parts = [len(part) for part in stream(np.ones(95, np.uint16), ((1, 1, 1),), EOS, None, bar)]
    assert len(parts) == 10
    assert max(parts) <= 10
    assert sum(parts) == 33                                # 31 chains, and two left


# --- the tokenizer -----------------------------------------------------------------------------------------

PLAIN = train_bpe([tiny.text(400)], 300)


def a_tokenizer():
    words = [PLAIN.encode(text).tolist() for text in ("ba ce", " di", "\n\n", "é日")]
    return ChainTokenizer(PLAIN.json, tuple(tuple(ids) for ids in words if len(ids) > 1))


OWN = a_tokenizer()


@given(st.one_of(st.text(), st.lists(st.sampled_from(["ba ce", " di", "\n\n", "é日", "x"])).map("".join)))
def test_any_text_comes_back(text):
    ids = OWN.encode(text)
    assert ids.dtype == np.int32
    assert OWN.decode(ids) == text
    assert b"".join(map(OWN.piece, ids.tolist())) == text.encode() == PLAIN.decode(OWN.expanded(ids)).encode()
    assert OWN.token_bytes[ids].sum() == len(text.encode())


def test_it_is_the_plain_one_and_more(tmp_path):
    n = len(OWN.chains)
    assert n >= 2
    assert OWN.vocab_size == len(OWN.token_bytes) == PLAIN.vocab_size + n
    assert len(OWN.encode("ba ce")) == 1 < len(PLAIN.encode("ba ce"))
    assert (OWN.eos, OWN.specials, OWN.ends) == (PLAIN.eos, PLAIN.specials, PLAIN.ends)
    assert len({OWN.checksum, PLAIN.checksum, ChainTokenizer(PLAIN.json, OWN.chains[1:]).checksum}) == 3
    OWN.save(tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text(encoding="utf-8") == PLAIN.json
    assert merge.plain_of(OWN).checksum == merge.plain_of(PLAIN).checksum == PLAIN.checksum


def test_tokens_of_the_plain_one_are_cut_anew():
    ids = PLAIN.encode("ba ce di ba ce")
    assert merge.segmented(ids, OWN).tolist() == OWN.encode("ba ce di ba ce").tolist()
    assert merge.segmented(ids, PLAIN) is ids


@pytest.mark.parametrize("i", [-1, OWN.vocab_size])
def test_ids_that_it_has_not_are_refused(i):
    with refusal("ids must lie in", str(OWN.vocab_size)):
        OWN.decode([1, i])
    with refusal("ids must lie in", str(OWN.vocab_size)):
        OWN.piece(i)


def test_chains_of_another_vocabulary_are_refused():
    with refusal("ids below 300"):
        with_chains(PLAIN, table_of((1, 300)))


def test_the_checksum_is_of_the_chains_in_their_order():
    a, b = table_of((1, 2), (2, 3)), table_of((2, 3), (1, 2))
    assert ids_of(a) == ((1, 2), (2, 3))
    assert len({merge.checksum(t) for t in (a, b, table_of((1, 2)), table_of())}) == 4
    assert merge.checksum(a) == merge.checksum(a._replace(corpus="other", tokens=1))
