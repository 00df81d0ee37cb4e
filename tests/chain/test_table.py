"""chain/table: what is written is read, and nothing else is."""

import json
import os
import time
import tracemalloc

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import refusal

from bitnet_ref.chain import draft
from bitnet_ref.chain.mine import CHOICE
from bitnet_ref.chain.table import (
    LARGEST,
    LONGEST,
    MOST,
    NAME,
    SHORTEST,
    Chain,
    Table,
    read_table,
    write_table,
)
from bitnet_ref.checks import CheckError
from bitnet_ref.data.tokenizer import from_json, train_bpe

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
    ({"version": True}, ["must be of version 1", "True"]),
    ({"version": [[]] * 9999}, ["must be of version 1"]),
    ({"vocabulary": "AB" * 32}, ["vocabulary", "sha256"]),
    ({"vocabulary": "ab" * 32 + "\n"}, ["vocabulary", "sha256"]),
    ({"corpus": "c" * 1001}, ["corpus", "at most 1000 printable"]),
    ({"corpus": "\x1b[2J"}, ["corpus", "printable", "\\x1b"]),
    ({"corpus": "\ud800"}, ["corpus", "printable", "\\ud800"]),
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


VALID = json.dumps({"format": "bitnet_ref.chains", "version": 1, "vocabulary": "ab" * 32, "vocab_size": 300,
                    "corpus": "c", "tokens": 9, "chains": [chain(), chain(ids=[1, 2, 3],
                                                                          confidence=[0.5, 1])]})
ODD = ["1e999", "-1e999", "NaN", "Infinity", "9" * 4000, "9" * 5000, "true", "false", "null", "-0.0", "1.0",
       "1e-400", '""', '"\\ud800"', '"\\u001b[2J"', '"\\u00e9"', "[]", "{}", "[[[]]]", "[" * 900 + "]" * 900,
       '{"a":' * 900 + "1" + "}" * 900, "[" * 20_000, '{"ids":1,"ids":[1,2]}']
FIELDS = ['"bitnet_ref.chains"', '"version": 1', "300", '"c"', ": 9", "[1, 2]", "[1, 2, 3]", "[0.5]", "0.5",
          '"times": 3', '"covers": 2', '"' + "ab" * 32 + '"', '"ids"', '"chains"', '"tokens"']


def table_or_refusal(path):
    """What is read, if it is a table that can be used, printed and written; else None."""
    try:
        table = read_table(path)
    except CheckError as e:
        said = str(e)
    else:
        return usable(table, path)
    tiny.assert_three_parts(said)
    assert len(said) < 1000
    return None


def usable(table, path):
    assert type(table.vocab_size) is type(table.tokens) is int
    assert f"{table.vocabulary}{table.corpus}".isprintable()
    assert len(table.chains) <= MOST
    for c in table.chains:
        assert SHORTEST <= len(c.ids) <= LONGEST
        assert all(type(i) is int and 0 <= i < table.vocab_size for i in c.ids)
        assert all(type(p) is float and 0 < p <= 1 for p in c.confidence)
        assert len(c.confidence) == len(c.ids) - 1
        assert type(c.times) is type(c.covers) is int
    draft.chains(table)([1, 2])
    write_table(path, table)
    assert read_table(path) == table
    return table


@settings(max_examples=150)
@given(raw=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["format", "chains", "ids"]),
                                                                inner, max_size=4),
    max_leaves=20).map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_a_table_or_refused(raw, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(raw)
    assert table_or_refusal(path) is None


@settings(max_examples=300)
@given(field=st.sampled_from(FIELDS), value=st.sampled_from([*ODD, *FIELDS]), once=st.booleans())
def test_a_field_of_any_value_is_refused_or_harmless(field, value, once, tmp_path_factory):
    """Numbers too large, too deep, not numbers; names twice; text that a terminal would obey."""
    path = tmp_path_factory.getbasetemp() / "odd.json"
    path.write_text(VALID.replace(field, value, 1 if once else -1))
    table_or_refusal(path)


@settings(max_examples=150)
@given(at=st.integers(0, len(VALID)), size=st.integers(0, 40), put=st.binary(max_size=12))
def test_a_table_with_other_bytes_is_refused_or_harmless(at, size, put, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(VALID.encode()[:at] + put + VALID.encode()[at + size:])
    table_or_refusal(path)


@pytest.mark.parametrize("field", FIELDS)
def test_each_odd_value_in_each_place_takes_no_time(field, tmp_path):
    path = tmp_path / "t.json"
    for value in ODD:
        path.write_text(VALID.replace(field, value, 1))
        began = time.process_time()
        table_or_refusal(path)
        assert time.process_time() - began < 20, value


def test_the_largest_file_takes_no_memory(tmp_path):
    """Fifty thousand bytes of the smallest values, and a file that claims more than it may have."""
    path = tmp_path / "t.json"
    for raw in (b"[" + b"0," * 24_990 + b"0]", VALID.replace("[1, 2]", "[" + "1," * 20_000 + "1]").encode(),
                VALID.replace('[{"ids"', "[" + "{}," * 15_000 + '{"ids"').encode()):
        path.write_bytes(raw)
        tracemalloc.start()
        table_or_refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with refusal("at most 50000 bytes"):
        read_table(path)


def test_the_largest_table_of_the_largest_vocabulary_can_be_read(tmp_path):
    ids = [tuple(range((1 << 20) - n - 8, (1 << 20) - n)) for n in range(MOST)]
    rows = tuple(Chain(i, 10**8, CHOICE - 1, (0.1234,) * 7) for i in ids)
    table = Table("ab" * 32, 1 << 20, "\\" * NAME, CHOICE, rows)
    write_table(tmp_path / "t.json", table)
    assert read_table(tmp_path / "t.json") == table


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in ("/dev/zero", "/dev/null", tmp_path / "pipe", tmp_path, tmp_path / "loop", "x" * 5000,
                 tmp_path / "none", "\0"):
        with refusal("must be a"):
            read_table(path)


def test_ids_beyond_the_models_are_refused(tmp_path):
    """Of a copy of the vocabulary with tokens added: an ordinary id has the same text, those have none."""
    record = json.loads(train_bpe(["some words"], 260).json)
    one = from_json(json.dumps(record))
    record["added_tokens"].append({**record["added_tokens"][0], "id": 260, "content": "<tool>"})
    more = from_json(json.dumps(record))
    write_table(tmp_path / "t.json", small((1, 2), (3, 260))._replace(vocabulary=one.vocabulary))
    assert len(read_table(tmp_path / "t.json", more).chains) == 2
    with refusal("must have ids below 260", "got 260"):
        read_table(tmp_path / "t.json", one)


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
