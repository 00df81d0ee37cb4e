"""chain/compress: a dataset that is compressed is a dataset, kept in the cache whole or not at all."""

import json

import numpy as np
import pytest
import tiny
from tiny import own_cache, refusal  # noqa: F401

from bitnet_ref.chain import compress, count
from bitnet_ref.chain.compress import compressed, saved
from bitnet_ref.chain.merge import ids_of, merged
from bitnet_ref.chain.mine import mine_for
from bitnet_ref.chain.table import Chain, Table
from bitnet_ref.checks import CheckError
from bitnet_ref.config import cache_dir
from bitnet_ref.data import tokenizer
from bitnet_ref.data.feed import micro_batch, open_feed
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.shards import write_shard


@pytest.fixture
def data():
    return prepare(str(tiny.corpus()), None, 300, 0.1, progress=False)


@pytest.fixture
def table(data):
    return mine_for(data, size=20)


def folders():
    return sorted(p for p in (cache_dir() / "compressed").glob("*"))


def test_off_is_the_dataset_itself(data, table):
    assert compressed(data, table, "off") is data


def test_both_kinds_have_the_stream_of_the_whole_text(data, table):
    first, over = (compressed(data, table, kind) for kind in ("first", "super"))
    eos, ids = data.tokenizer.eos, ids_of(table)
    for side, supers in ((first, None), (over, 300)):
        assert side.train.tokens.tolist() == merged(data.train.tokens, ids, eos, supers).tolist()
        assert side.train.header.documents == data.train.header.documents
        about = side.report["compressed"]
        assert (about["chains"], about["plain tokens"]) == (20, len(data.train.tokens))
        assert saved(side) == 1 - len(side.train.tokens) / len(data.train.tokens) > 0.05
    assert (first.val, first.tokenizer) == (data.val, data.tokenizer)
    assert first.train.header.text_bytes < data.train.header.text_bytes == over.train.header.text_bytes
    assert over.tokenizer.vocab_size == over.train.header.vocab_size == over.val.header.vocab_size == 320
    assert over.tokenizer.expanded(over.val.tokens).tolist() == data.val.tokens.tolist()


def test_documents_may_lie_across_blocks(data, table, monkeypatch):
    whole = compressed(data, table, "super").train.header
    monkeypatch.setattr(count, "BLOCK", 100)
    monkeypatch.setattr(compress, "VERSION", "in blocks")
    assert compressed(data, table, "super").train.header == whole


def test_it_is_kept_and_what_is_damaged_is_made_again(data, table, monkeypatch):
    again = compressed(data, table, "super")
    folder = again.train.path.parent
    stamp = again.train.stamp
    assert compressed(data, table, "super").train.stamp == stamp

    def flipped(b):
        return b[:2000] + bytes([b[2000] ^ 1]) + b[2001:]

    for name, harm in (("train.bin", lambda b: b[:-2]), ("train.bin", flipped), ("val.bin", flipped),
                       ("train.bin", None), (compress.ABOUT, lambda b: b"[]"),
                       (compress.ABOUT, lambda b: b"{")):
        path, before = folder / name, (folder / name).read_bytes()
        path.unlink()
        if harm:
            path.write_bytes(harm(before))
        found = compressed(data, table, "super")
        assert path.read_bytes() == before
        assert found.train.header == again.train.header
    monkeypatch.setattr(compress, "VERSION", -1)
    assert compressed(data, table, "super").train.path != again.train.path


def test_other_chains_and_kinds_lie_elsewhere(data, table):
    other = table._replace(chains=table.chains[:-1])
    asked = [(table, "first"), (table, "super"), (other, "first"), (other, "super")]
    paths = [compressed(data, *how).train.path for how in asked]
    assert len(set(paths)) == 4
    again = table._replace(corpus="the same text by another name")
    assert compressed(data, again, "first").train.path == paths[0]


def test_a_refusing_disk_leaves_nothing(data, table, monkeypatch):
    before = folders()

    def full(*args):
        raise CheckError("the disk must have room; got none; free some")

    monkeypatch.setattr(compress, "write_shard", full)
    with refusal("must have room"):
        compressed(data, table._replace(chains=table.chains[:3]), "first")
    assert folders() == before


def test_another_process_may_be_first(data, table, monkeypatch):
    """Two runs begin at once: the folder appears while the second writes its own."""
    asked, made = (data, table._replace(chains=table.chains[:5]), "first"), compress.whole_folder

    def late(path):
        monkeypatch.setattr(compress, "whole_folder", made)
        compressed(*asked)
        return made(path)

    monkeypatch.setattr(compress, "whole_folder", late)
    assert saved(compressed(*asked)) > 0


def test_a_mixture_keeps_its_parts():
    data = prepare(f"{tiny.corpus(400)}=2,{tiny.corpus(600, 3)}=1", None, 300, 0.1, progress=False)
    short = compressed(data, mine_for(data, size=20), "super")
    feed = open_feed(short.train, short.report, 32, 0, "documents")
    plain = open_feed(data.train, data.report, 32, 0)
    assert [s.weight for s in feed.sources] == [2, 1]
    for a, b in zip(feed.sources, plain.sources, strict=True):
        assert short.tokenizer.expanded(a.tokens).tolist() == b.tokens.tolist()
    for kind in ("first", "super"):                        # as long as the sum of its parts, or it is refused
        found = compressed(data, mine_for(data, size=20), kind)
        assert micro_batch(open_feed(found.train, found.report, 32, 0), 0, 4)[0].shape == (4, 32)


def test_no_chain_at_all_saves_nothing(data):
    nothing = Table(data.tokenizer.checksum, 300, "", 0, ())
    for kind in ("first", "super"):
        short = compressed(data, nothing, kind)
        assert short.train.tokens.tolist() == data.train.tokens.tolist()
        assert short.tokenizer.vocab_size == 300


def test_chains_of_another_vocabulary_are_refused(data, table):
    with refusal("chains must have ids below 300"):
        compressed(data, table._replace(chains=(Chain((1, 300), 3, 2, (0.5,)),)), "first")


def test_ids_beyond_sixteen_bits_have_room(data, tmp_path):
    """65,500 entries and 40 chains: the plain shard is of 16 bits, the compressed one of 32."""
    record = json.loads(data.tokenizer.json)
    record["model"]["vocab"] |= {f"zz{i}": i for i in range(300, 65_500)}
    own = tokenizer.Tokenizer(tokenizer.canonical(record))
    ids = np.tile(np.arange(65_400, 65_500), 3)
    train = write_shard(tmp_path / "train.bin", [(ids, 9)], own.vocab_size, own.eos, own.checksum)
    chains = tuple(Chain((i, i + 1), 3, 2, (0.5,)) for i in range(65_400, 65_480, 2))
    wide = data._replace(train=train, val=train, tokenizer=own)
    short = compressed(wide, Table(own.checksum, 65_500, "", 0, chains), "super")
    assert (train.tokens.dtype, short.train.tokens.dtype) == (np.uint16, np.uint32)
    assert short.train.header.max_token == 65_539
    assert short.tokenizer.expanded(short.train.tokens).tolist() == train.tokens.tolist()
