"""Any text comes back as it was, no text spells EOS, and training depends on the text alone.

Read after: bitnet_ref/data/tokenizer. Read next: tests/data/test_shards.
"""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import published
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitnet_ref.checks import CheckError
from bitnet_ref.data import tokenizer as module
from bitnet_ref.data.tokenizer import EOS, encode_documents, from_json, load, train_bpe

from .conftest import error_of, files_below, story

DOCS = [story(i) for i in range(40)] + ["Il était une fois \U0001f600, in_code(x) == 3.14\n\n\tso 'tis\r\n"]
BPE = train_bpe(DOCS, 600)


@given(st.text())
@example(EOS)
@example(f"  {EOS}{EOS}  \n")
@example(" leading, trailing ")
@example("a\r\n\tb\x00c\u0301\ufeff\U0001f468\u200d\U0001f469")
def test_text_comes_back(text):
    ids = BPE.encode(text)
    assert ids.dtype == np.int32
    assert BPE.decode(ids) == text
    assert BPE.eos not in ids
    assert len(ids) == 0 or 0 <= ids.min() <= ids.max() < BPE.vocab_size
    assert BPE.token_bytes[ids].sum() == len(text.encode())


def test_no_text_spells_eos():
    assert (BPE.eos, BPE.decode([0])) == (0, EOS)
    learned = train_bpe([f"{EOS} {EOS} " * 500], 400)       # even if the corpus is full of its name
    ids = learned.encode(f"a{EOS}b")
    assert 0 not in ids
    assert learned.decode(ids) == f"a{EOS}b"
    assert learned.token_bytes[0] == 0


def test_a_batch_is_each_alone():
    for ids, text in zip(BPE.encode_batch(DOCS), DOCS):
        assert np.array_equal(ids, BPE.encode(text))
    assert BPE.encode_batch([]) == []


def test_documents_in_order_with_their_bytes(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1000)
    docs = [*DOCS, "é", ""]
    pairs = list(encode_documents(iter(docs), BPE))
    assert [BPE.decode(ids) for ids, _ in pairs] == docs
    assert [n for _, n in pairs] == [len(t.encode()) for t in docs]
    assert list(encode_documents([], BPE)) == []


def test_training_depends_on_the_text_alone():
    shuffled = DOCS[:]
    random.Random(0).shuffle(shuffled)
    assert train_bpe(shuffled, 600) == BPE
    assert train_bpe([*DOCS, "zzzz " * 100], 600).checksum != BPE.checksum
    assert 257 < BPE.vocab_size <= 600
    assert train_bpe(["x"], 5000).vocab_size == 257          # nothing to merge


@pytest.mark.parametrize("size", [0, 256, (1 << 20) + 1])
def test_impossible_sizes(size):
    with pytest.raises(CheckError, match=r"vocab_size must lie in \[257, 1048576\]; got \d+; 256 bytes"):
        train_bpe(DOCS, size)


def test_lone_surrogates_and_other_types():
    for bad in ("\ud800", 3, None):
        with pytest.raises(CheckError, match=r"a text must be Unicode that .* can encode; got .*; remove"):
            BPE.encode(bad)


@pytest.mark.parametrize("ids", [[-1], [600, 3], [2**40]])
def test_unknown_ids(ids):
    with pytest.raises(CheckError, match=r"ids must lie in \[0, \d+\); got .*; use the tokenizer"):
        BPE.decode(ids)


def test_an_interrupt_is_no_bad_file(monkeypatch):
    def interrupt(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.json, "loads", interrupt)
    with pytest.raises(KeyboardInterrupt):
        from_json(BPE.json)


def test_half_a_character():
    first, *_ = BPE.encode("\U0001f680")
    assert BPE.decode([first]) == "\ufffd"
    assert BPE.decode([]) == BPE.decode(np.zeros(0, np.uint16)) == ""


# ---- files ----

def test_saving_keeps_everything(tmp_path):
    BPE.save(tmp_path / "run/tokenizer.json")
    for path in (tmp_path / "run", tmp_path / "run/tokenizer.json"):
        again = load(path)
        assert again == BPE
        assert again.checksum == BPE.checksum
    assert files_below(tmp_path) == ["run/tokenizer.json"]
    assert from_json(BPE.json) == BPE
    indented = json.dumps(dict(reversed(json.loads(BPE.json).items())), indent=2)
    assert from_json(indented) == BPE                        # white space and order are not identity


def test_settings_that_would_lose_text_are_undone():
    record = json.loads(BPE.json)
    record["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    record["padding"] = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
                         "pad_id": 0, "pad_type_id": 0, "pad_token": EOS}
    assert np.array_equal(from_json(json.dumps(record)).encode(DOCS[0]), BPE.encode(DOCS[0]))


def changed(**model):
    record = json.loads(BPE.json)
    record["model"].update(model)
    return json.dumps(record)


def panicking():
    """A setting on which the library does not raise but panic."""
    record = json.loads(BPE.json)
    record["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    return json.dumps(record)


def without_eos():
    record = json.loads(BPE.json)
    record["added_tokens"] = []
    del record["model"]["vocab"][EOS]
    return json.dumps(record)


def with_id(i):
    record = json.loads(BPE.json)
    record["model"]["vocab"]["never"] = i
    return json.dumps(record)


@pytest.mark.parametrize(("text", "message"), [
    ("", "the text given must be a tokenizer.json; got .*; give the tokenizer.json of the library"),
    ("{", "must be a tokenizer.json"),
    ("[]", "must be a tokenizer.json"),
    ("{}", "must be a tokenizer.json"),
    ("[" * 100_000, "must be a tokenizer.json"),
    ('{"model": NaN}', "must be a tokenizer.json"),
    (changed(merges=[["zq", "qz"]]), "must be a tokenizer.json"),
    (changed(vocab={}), "must be a tokenizer.json"),
    (panicking(), "must be a tokenizer.json"),
    (changed(dropout=0.5), "must encode the same text the same way; got dropout 0.5"),
    (without_eos(), "must have one of .*; got none in the text given"),
    (with_id(1 << 20), "must have ids below 1048576; got 1048576 in the text given"),
    (with_id(1 << 40), "must be a tokenizer.json"),
])
def test_what_is_no_tokenizer(text, message):
    with pytest.raises(CheckError, match=message):
        from_json(text)


def test_files_that_are_no_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "binary").write_bytes(b"{\xff")
    (tmp_path / "large").write_bytes(b" " * 2000)
    monkeypatch.setattr(module, "LARGEST_FILE", 1000)
    for name, message in {"missing": "must be a readable file; got No such file",
                          "binary": "no UTF-8 at byte 1", ".": "must be a readable file",
                          "large": "must have at most 1000 bytes; got 2000"}.items():
        with pytest.raises(CheckError, match=message):
            load(tmp_path / name)


@given(st.integers(0, len(BPE.json) - 1), st.sampled_from(list('{}[]",:0x\u20ac')))
def test_damage_is_refused_or_harmless(at, character):
    """One changed character: refused in three parts, or still a tokenizer."""
    message = error_of(lambda: from_json(BPE.json[:at] + character + BPE.json[at + 1:]))
    assert message is None or message.count(";") >= 2


@pytest.mark.data
def test_a_published_tokenizer(real_data):
    path, = Path(real_data, "tokenizers").glob("*tinyllama.tokenizer.json")
    llama = load(path)
    assert (llama.vocab_size, llama.eos) == (32000, 2)
    text = "Hello world </s> \U0001f600 x\n\n  y"
    ids = llama.encode(text)
    assert 2 not in ids
    assert llama.decode(ids) == text
    assert llama.token_bytes[ids].sum() == len(text.encode()) + 1    # Llama's tokenizer puts a space in front


def test_the_json_is_parsed_once(monkeypatch):
    """That of Llama 3 takes a tenth of a second each time."""
    made, calls = train_bpe(["aab é"] * 9, 270), []
    monkeypatch.setattr(module.json, "loads", lambda text, real=json.loads: calls.append(1) or real(text))
    assert (made.specials, made.ends, made.piece(0)) == ({"<|endoftext|>": 0}, (0,), b"<|endoftext|>")
    assert made.token_bytes[0] == 0
    assert b"".join(map(made.piece, made.encode("aé"))) == "aé".encode()
    assert len(calls) == 1


# --- the vocabulary -----------------------------------------------------------------------------------------


def described(**parts):
    """A small byte-level tokenizer's record, with other parts."""
    record = json.loads(train_bpe(["the cat and the cap"] * 9, 270).json)
    return json.loads(json.dumps({**record, **parts}))


def vocabulary(record):
    return from_json(json.dumps(record)).vocabulary


def added(record, i, content, special=True):
    entry = {**record["added_tokens"][0], "id": i, "content": content, "special": special}
    return {**record, "added_tokens": [*record["added_tokens"], entry]}


def test_what_a_vocabulary_is_written_out():
    """sha256 over (id, length, piece) of all that is not added, by id."""
    made = from_json(json.dumps(described()))
    pieces = [(i, made.piece(i)) for i in range(made.vocab_size) if i != made.eos]
    text = b"".join(i.to_bytes(4, "little") + len(p).to_bytes(4, "little") + p for i, p in pieces)
    assert made.vocabulary == hashlib.sha256(text).hexdigest()
    assert b"cat" in b"".join(p for _, p in pieces[256:])


def test_a_vocabulary_is_the_same_with_other_names_and_settings():
    record = described()
    same = [added(record, 270, "<|im_start|>"), added(record, 300, "<tool>", special=False),
            {**record, "padding": None, "truncation": None}, described(post_processor=None)]
    chat = added(described(), 270, "<|im_start|>")
    chat["model"]["vocab"]["<|im_start|>"] = 270           # as a GGUF has it
    assert {vocabulary(r) for r in (*same, chat, record)} == {vocabulary(described())}
    assert len({from_json(json.dumps(r)).checksum for r in same}) > 1


def test_a_vocabulary_is_another_where_an_id_is():
    record, found = described(), []
    names = list(record["model"]["vocab"])
    for a, b in ((names[-1], names[-2]), (names[5], names[9])):
        other = described()
        vocab = other["model"]["vocab"]
        vocab[a], vocab[b] = vocab[b], vocab[a]
        found.append(vocabulary(other))
    smaller = json.loads(train_bpe(["the cat and the cap"] * 9, 260).json)
    found += [vocabulary(smaller), vocabulary(record)]
    assert len(set(found)) == 4


@pytest.mark.data
def test_published_files_of_one_vocabulary():
    """Llama 2's as a SentencePiece model and as tokenizer.json."""
    found = {name: published.tokenizer(name) for name in published.FILES}
    assert found["llama-spm"].checksum != found["tinyllama"].checksum
    assert found["llama-spm"].vocabulary == found["tinyllama"].vocabulary
    assert len({t.vocabulary for t in found.values()}) == 3
