"""data/tokenizer_files: published files of other kinds than tokenizer.json give the published ids."""

import base64
import json
import struct
from itertools import pairwise

import published
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.data import tokenizer_files
from bitnet_ref.data.tokenizer import byte_letters, train_bpe
from bitnet_ref.data.tokenizer_files import gpt2, llama3_specials, load, sentencepiece, tiktoken

SPECIALS = ["<|end_of_text|>", "<|eot_id|>"]
WORDS = [b"th", b"the", b" t", b" the", b"ab", b"abab", "é".encode()]


# --- golden: the published vectors -------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "llama-bpe"])
def test_the_published_vectors(name):
    """All 46, as llama.cpp has them."""
    tokenizer, vectors = published.tokenizer(name), published.vectors(name)
    assert len(vectors) == 46
    assert [text for text, ids in vectors if tokenizer.encode(text).tolist() != ids] == []
    assert [text for text, ids in vectors if b"".join(map(tokenizer.piece, ids)).decode().removeprefix(
        " " if name == "llama-spm" and text else "") != text] == []


@pytest.mark.data
def test_special_tokens_have_their_published_ids():
    llama3, llama2 = published.tokenizer("llama-bpe"), published.tokenizer("llama-spm")
    ids = llama3.specials
    assert len(ids) == 256
    assert (ids["<|begin_of_text|>"], ids["<|end_of_text|>"], ids["<|eot_id|>"]) == (128000, 128001, 128009)
    assert (ids["<|reserved_special_token_0|>"], ids["<|reserved_special_token_250|>"]) == (128002, 128255)
    assert llama3.vocab_size == 128256
    assert llama2.specials == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert published.tokenizer("gpt-2").eos == 50256


@pytest.mark.data
def test_two_files_of_one_vocabulary_are_one_tokenizer():
    """Llama 2's SentencePiece model, and TinyLlama's tokenizer.json, made of the same pieces by others."""
    ours, theirs = (json.loads(published.tokenizer(name).json)["model"]
                    for name in ("llama-spm", "tinyllama"))
    assert ours["vocab"] == theirs["vocab"]
    assert {tuple(m) for m in ours["merges"]} == {tuple(m.split(" ")) for m in theirs["merges"]}


# --- files made here ---------------------------------------------------------------------------------------


def ranks(words=WORDS):
    return [bytes([b]) for b in range(256)] + list(words)


def tiktoken_file(folder, tokens, name="t.model"):
    (folder / name).write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    return folder / name


def varint(n):
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def spm(pieces, kind=2, fallback=1, normalizer=None):
    """A SentencePiece model of [(text, score, kind)]."""
    body = b"".join(field(1, field(1, text.encode()) + field(2, float(score)) + field(3, k))
                    for text, score, k in pieces)
    spaces = field(3, 1) + field(4, 0) if normalizer is None else normalizer
    return body + field(2, field(3, kind) + field(35, fallback)) + field(3, spaces)


SPM = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), *((f"<0x{b:02X}>", 0, 6) for b in range(256)),
       ("\u2581a", -1, 1), ("ab", -2, 1), ("\u2581ab", -3, 1), ("\u2581", -4, 1), ("a", -5, 1), ("b", -6, 1)]


def by_rank(text, tokens):
    """tiktoken's rule written out, for one word: merge the pair of the lowest rank until there is none."""
    rank = {t: i for i, t in enumerate(tokens)}
    parts = [bytes([b]) for b in text]
    if text in rank:
        return [rank[text]]
    while True:
        found = [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in rank]
        if not found:
            return [rank[p] for p in parts]
        _, i = min(found)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


@given(text=st.text("abthe", min_size=1, max_size=12), data=st.data())
def test_ranks_merge_as_tiktoken_merges_them(text, data, tmp_path_factory):
    made = data.draw(st.lists(st.sampled_from([b"ab", b"abt", b"th", b"the", b"he", b"eb", b"abab", b"bab"]),
                              unique=True))
    tok = tiktoken(tiktoken_file(tmp_path_factory.mktemp("t"), ranks(made)), SPECIALS)
    assert tok.encode(text).tolist() == by_rank(text.encode(), ranks(made))


@given(text=st.text(max_size=20))
def test_any_text_comes_back(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    (folder / "s.model").write_bytes(spm(SPM))
    for tok in (tiktoken(tiktoken_file(folder, ranks()), SPECIALS), sentencepiece(folder / "s.model")):
        if "\u2581" not in text:
            assert tok.decode(tok.encode(text)) == text


def test_special_tokens_follow_the_ranks(tmp_path):
    tok = tiktoken(tiktoken_file(tmp_path, ranks()), SPECIALS)
    assert tok.specials == {name: 256 + len(WORDS) + i for i, name in enumerate(SPECIALS)}
    assert tok.ends == tuple(tok.specials.values())
    assert tok.encode("<|eot_id|>").tolist() != [tok.specials["<|eot_id|>"]]


def test_llama3_has_256_special_tokens():
    names = llama3_specials()
    assert len(set(names)) == 256
    assert (names[2], names[8], names[10], names[255]) == tuple(
        f"<|reserved_special_token_{i}|>" for i in (0, 4, 5, 250))


def test_scores_merge_as_sentencepiece_merges_them(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(spm(SPM))
    tok = load(tmp_path)
    id_of = {text: i for i, (text, *_) in enumerate(SPM)}
    assert tok.encode("ab").tolist() == [id_of["\u2581ab"]]
    assert tok.encode("aab").tolist() == [id_of["\u2581a"], id_of["ab"]]
    assert tok.encode("c").tolist() == [id_of["\u2581"], id_of["<0x63>"]]
    assert tok.encode("").tolist() == []


def gpt2_files(folder, vocab=None, merges="#version: 0.2\na b\n", names=("encoder.json", "vocab.bpe")):
    letters = [*byte_letters().values(), "ab", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(letters)} if vocab is None else vocab
    (folder / names[0]).write_text(vocab if isinstance(vocab, str) else json.dumps(vocab), encoding="utf-8")
    (folder / names[1]).write_text(merges, encoding="utf-8")
    return folder / names[0], folder / names[1]


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("x.vocab.json", "x.merges.txt")])
def test_gpt2s_files_are_found_by_either_name(names, tmp_path):
    for file in gpt2_files(tmp_path, names=names):
        assert load(file).encode("ab").tolist() == [256]
    assert load(tmp_path / names[0]).eos == 257


def test_a_folder_may_hold_any_of_them(tmp_path):
    gpt2_files(tmp_path)
    assert load(tmp_path).encode("ab").tolist() == [256]
    load(tmp_path).save(tmp_path / "tokenizer.json")
    assert load(tmp_path).encode("ab").tolist() == [256]


# --- hostile -----------------------------------------------------------------------------------------------


def test_json_is_known_by_its_first_letter(tmp_path):
    own = train_bpe(["some words"], 260)
    own.save(tmp_path / "mine")
    assert load(tmp_path / "mine") == own


@pytest.mark.parametrize(("text", "words"), [
    (b"", "all 256 bytes"), (b"!!!! 0\n", "line 1"), (b"YQ== 1\n", "line 1"), (b"YQ== 0\nYQ== 1\n", "line 2"),
    (b"YQ==\n", "line 1"), (b" 0\n", "line 1"), (b"YQ== 99999999999999999999\n", "line 1"),
    (b"YQ== 0\nYg== -1\n", "line 2"), (b"\x00" * 99, "line 1")])
def test_damaged_ranks_are_refused(text, words, tmp_path):
    (tmp_path / "t.model").write_bytes(text)
    with tiny.refusal(words, "t.model"):
        load(tmp_path / "t.model")


def test_ranks_of_an_unknown_model_are_refused(tmp_path):
    with tiny.refusal("Llama 3's 128000 ranks", "263"):
        load(tiktoken_file(tmp_path, ranks()))


def test_long_tokens_are_refused_before_they_cost_anything(tmp_path):
    with tiny.refusal("tokens of a sensible length"):
        tiktoken(tiktoken_file(tmp_path, ranks([b"a" * 20000])), SPECIALS)
    (tmp_path / "s.model").write_bytes(spm([*SPM, ("a" * 20000, -9, 1)]))
    with tiny.refusal("tokens of a sensible length"):
        sentencepiece(tmp_path / "s.model")


@pytest.mark.parametrize(("made", "words"), [
    (spm(SPM, kind=1), "BPE with byte fallback"), (spm(SPM, fallback=0), "byte fallback"),
    (spm(SPM, normalizer=b""), "change nothing"),
    (spm(SPM, normalizer=field(2, b"x") + field(4, 0)), "change nothing"),
    (spm([*SPM, SPM[-1]]), "each piece once"), (spm([("", 0, 1)]), "text and score"),
    (spm([("a", float("nan"), 1)]), "nan"), (spm(SPM)[:-3], "must"), (spm([]), "1 to 1048576 pieces"),
    (b"\n" + varint(1 << 60), "must lie in the file"), (b"\n" + b"\xff" * 20, "at most 10 bytes"),
    (b"\n\x03\x0a\x01\xff", "UTF-8"), (b"\n\x02\x08\x01", "UTF-8"), (b"\x0b", "wire type 3"),
    (b"\n", "must be whole"), (field(2, 7), "a number for a message"),
    (field(1, field(1, b"a") + field(2, 3)), "nan"),
    (spm(SPM).replace(b"</s>", b"</x>"), "a tokenizer must have one of")])
def test_damaged_pieces_are_refused(made, words, tmp_path):
    (tmp_path / "s.model").write_bytes(made)
    with tiny.refusal(words):
        sentencepiece(tmp_path / "s.model")


@given(at=st.integers(0, 3000), byte=st.integers(0, 255), cut=st.integers(0, 3000))
def test_a_damaged_model_is_a_tokenizer_or_an_error_in_three_parts(at, byte, cut, tmp_path_factory):
    file = tmp_path_factory.mktemp("t") / "s.model"
    made = bytearray(spm(SPM))
    made[at % len(made)] = byte
    file.write_bytes(bytes(made[:cut] if byte % 3 == 0 else made))
    try:
        sentencepiece(file)
    except tokenizer_files.CheckError as e:
        tiny.assert_three_parts(e)


@pytest.mark.parametrize(("vocab", "merges", "words"), [
    ("[1]", "", "must map tokens to ids"), ("{", "", "must be JSON and text"), ("{}", "", "must map tokens"),
    ({"a": "0"}, "", "ids of their own"), ({"a": 0, "b": 0}, "", "ids of their own"),
    ({"a": 0}, "", "256 bytes"), ({"a": 1 << 40}, "", "ids of their own"),
    (None, "a\n", "line 1"), (None, "a b\nb a\n", "line 2"), (None, "a b c\n", "line 1"),
    ("[" * 100000, "", "must be JSON")])
def test_damaged_files_of_gpt2_are_refused(vocab, merges, words, tmp_path):
    with tiny.refusal(words):
        gpt2(*gpt2_files(tmp_path, vocab, merges))


def test_what_is_missing_or_too_large_is_refused(tmp_path, monkeypatch):
    with tiny.refusal("nowhere.model", "must be a readable file"):
        load(tmp_path / "nowhere.model")
    file = tiktoken_file(tmp_path, ranks())
    monkeypatch.setattr(tokenizer_files, "LARGEST_FILE", 100)
    with tiny.refusal("at most 100 bytes"):
        load(file)


def test_pieces_are_counted_as_they_come(tmp_path, monkeypatch):
    """Of a file of nothing but pieces, what is beyond the bound is not even looked at."""
    monkeypatch.setattr(tokenizer_files, "LARGEST", len(SPM))
    (tmp_path / "s.model").write_bytes(spm(SPM))
    assert sentencepiece(tmp_path / "s.model").vocab_size == len(SPM)
    (tmp_path / "s.model").write_bytes(spm([*SPM, ("", 0, 1)]))
    with tiny.refusal(f"must have 1 to {len(SPM)} pieces"):
        sentencepiece(tmp_path / "s.model")
