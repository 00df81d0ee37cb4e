"""chain/table: what is written is read, and nothing else is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import refusal

from bitnet_ref.chain.table import LARGEST, LONGEST, MOST, SHORTEST, Chain, Table, read_table, write_table
from bitnet_ref.data.tokenizer import train_bpe

VOCAB = 300
chains = st.lists(st.integers(0, VOCAB - 1), min_size=SHORTEST, max_size=LONGEST).flatmap(
    lambda ids: st.builds(Chain, st.just(tuple(ids)), st.integers(0, 1 << 40), st.integers(0, 1000),
                          st.tuples(*[st.floats(1e-4, 1).map(lambda p: round(p, 4))] * (len(ids) - 1))))
tables = st.lists(chains, max_size=20, unique_by=lambda c: c.ids).map(
    lambda found: Table("ab" * 32, VOCAB, "corpus", 1000, tuple(found)))


def small(*ids):
    return Table("ab" * 32, VOCAB, "corpus", 9, tuple(Chain(i, 3, 2, (0.5,) * (len(i) - 1)) for i in ids))


@given(table=tables)
def test_what_is_written_is_read(table, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "chains.json"
    write_table(path, table)
    assert read_table(path) == table


def test_a_full_table_of_the_longest_chains_fits(tmp_path):
    """Ids of six digits, eight to a chain, 256 chains."""
    rows = [Chain(tuple(range(999_000 - n, 999_008 - n)), 10**7, 10**6, (0.1234,) * 7) for n in range(MOST)]
    write_table(tmp_path / "t.json", Table("ab" * 32, 10**6, "c", 10**9, tuple(rows)))
    assert (tmp_path / "t.json").stat().st_size <= LARGEST
    assert len(read_table(tmp_path / "t.json").chains) == MOST


def test_a_table_of_another_tokenizer_is_refused(tmp_path):
    ours, others = train_bpe(["some words"], 257), train_bpe(["quite other words, words, words"], 259)
    write_table(tmp_path / "t.json", small((1, 2))._replace(vocabulary=ours.vocabulary, vocab_size=257))
    assert read_table(tmp_path / "t.json", ours).chains[0].ids == (1, 2)
    with refusal("must be of the model's vocabulary", others.vocabulary[:12], ours.vocabulary[:12]):
        read_table(tmp_path / "t.json", others)


def chain(**given):
    return {"ids": [1, 2], "times": 3, "covers": 2, "confidence": [0.5], **given}


@pytest.mark.parametrize(("given", "words"), [
    ({"format": "other"}, ["must hold a bitnet_ref.chains"]),
    ({"version": 2}, ["must be of version 1", "2"]),
    ({"vocab_size": "300"}, ["vocab_size", "int"]),
    ({"vocab_size": True}, ["vocab_size", "int"]),
    ({"vocab_size": 1 << 40}, ["must be possible"]),
    ({"tokens": -1}, ["must be possible"]),
    ({"chains": {}}, ["chains", "list"]),
    ({"chains": [chain()] * 257}, ["at most 256 chains", "257"]),
    ({"chains": [chain(), chain()]}, ["there once"]),
    ({"chains": [3]}, ["chain 0", "must have ids, times, covers, confidence"]),
    ({"chains": [{**chain(), "more": 1}]}, ["must have ids"]),
    ({"chains": [chain(), chain(ids=[1])]}, ["chain 1", "2 to 8 tokens"]),
    ({"chains": [chain(ids=list(range(9)))]}, ["2 to 8 tokens"]),
    ({"chains": [chain(ids=[1, 300])]}, ["must lie in 0..299", "300"]),
    ({"chains": [chain(ids=[1, -1])]}, ["must lie in 0..299"]),
    ({"chains": [chain(ids=[1, 2.0])]}, ["must lie in 0..299"]),
    ({"chains": [chain(confidence=[])]}, ["confidence in (0, 1]"]),
    ({"chains": [chain(confidence=[0])]}, ["confidence in (0, 1]"]),
    ({"chains": [chain(confidence=[1.5])]}, ["confidence in (0, 1]"]),
    ({"chains": [chain(confidence=[float("nan")])]}, ["confidence in (0, 1]"]),
    ({"chains": [chain(times=-1)]}, ["integers of 0 or more"]),
    ({"chains": [chain(covers=1 << 60)]}, ["integers of 0 or more"]),
    ({"chains": [chain(covers=10)]}, ["no more than there is"]),
])
def test_what_is_wrong_is_named(given, words, tmp_path):
    head = {"format": "bitnet_ref.chains", "version": 1, "vocabulary": "ab" * 32, "vocab_size": 300,
            "corpus": "c", "tokens": 9, "chains": [chain()]}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(head))
    assert read_table(path).chains[0].ids == (1, 2)
    path.write_text(json.dumps({**head, **given}))
    with refusal(*words, path):
        read_table(path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "t.json"
    write_table(path, small((1, 2), (3, 4, 5)))
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:cut])
        with refusal(path, "python -m bitnet_ref.chain mine"):
            read_table(path)
    for bad in (b"[" * 40_000, b"\xff" + whole, b"null", b"[]"):
        path.write_bytes(bad)
        with refusal(path):
            read_table(path)
    path.write_bytes(whole + b" " * LARGEST)
    with refusal("at most 50000 bytes", path):
        read_table(path)
    for lost in (tmp_path / "none.json", tmp_path):
        with refusal("readable file"):
            read_table(lost)
