"""formats/gguf_tokenizer: a tokenizer.json comes back from a GGUF as it went in, or does not go in."""

import json
from functools import cache

import numpy as np
import published
import pytest
import tiny
from tiny import refusal

from bitnet_ref.data.tokenizer import canonical, from_json, train_bpe
from bitnet_ref.formats.gguf_tokenizer import LLAMA3_REGEX, SPACE, rebuild, settings
from bitnet_ref.formats.source import About

NOTHING = About()


@cache
def ours():
    return train_bpe([tiny.text(300)], 400)


def pieces():
    """A SentencePiece-like vocabulary of our own: characters, and merges in the order of their results."""
    base = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    letters = [SPACE, *"abcdefghijklmnopqrstuvwxyz"]
    results = ["th", f"{SPACE}t", "he", "the", f"{SPACE}th", f"{SPACE}the", "in", "ing", "er", "ther",
               "other"]
    vocab = {t: i for i, t in enumerate([*base, *results, *letters])}
    cuts = ([(r[:i], r[i:]) for i in range(1, len(r)) if r[:i] in vocab and r[i:] in vocab] for r in results)
    merges = [p for held in cuts for p in sorted(held, key=lambda p: (vocab[p[0]], vocab[p[1]]))]
    special = [{"id": i, "content": t, "special": True, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False} for i, t in enumerate(base[:3])]
    steps = [{"type": "Prepend", "prepend": SPACE},
             {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
            "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None,
            "post_processor": None, "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
                      "ignore_merges": False, "vocab": vocab, "merges": [list(p) for p in merges]}}


def through(text, size, about=NOTHING):
    """The settings, with arrays of numbers as a reader has them."""
    made = settings(text, size, about)
    return {k: np.array(v) if isinstance(v, list) and not isinstance(v[0], str) else v
            for k, v in made.items()}


def test_our_own_comes_back_to_the_byte():
    tok = ours()
    held = through(tok.json, 420)
    assert rebuild(held) == tok.json
    assert held["tokenizer.ggml.pre"] == "gpt-2"
    assert held["tokenizer.ggml.bos_token_id"] == held["tokenizer.ggml.eos_token_id"] == 0
    assert held["tokenizer.ggml.add_bos_token"] is True
    assert len(held["tokenizer.ggml.tokens"]) == 420
    n = tok.vocab_size
    assert held["tokenizer.ggml.tokens"][n:] == [f"[PAD{i}]" for i in range(n, 420)]
    assert held["tokenizer.ggml.token_type"].tolist() == [3] + [1] * (n - 1) + [5] * (420 - n)


def test_pieces_come_back():
    """The merges are rebuilt from scores, in the order in which Llama 2's are listed."""
    assert rebuild(through(canonical(pieces()), 300)) == canonical(pieces())


def test_the_settings_of_pieces():
    held = through(canonical(pieces()), 300)
    kinds, scores = held["tokenizer.ggml.token_type"], held["tokenizer.ggml.scores"]
    assert kinds[:4].tolist() == [2, 3, 3, 6]
    assert scores[259:270].tolist() == [-float(i) for i in range(11)]          # in the order of the merges
    assert (scores[270:] < -10).all()
    assert held["tokenizer.ggml.unknown_token_id"] == 0
    assert held["tokenizer.ggml.add_space_prefix"] is True


def test_what_the_model_says_goes_along():
    held = through(ours().json, 400, About("", 3, (5, 7), "{{ x }}"))
    ids = [held[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot")]
    assert ids == [3, 5, 7]
    assert held["tokenizer.chat_template"] == "{{ x }}"


def test_llama_3_and_added_tokens():
    """Its way of cutting, its ignore_merges; an added token that is not special is matched in the text."""
    record = json.loads(ours().json)
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_REGEX}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    record["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    record["model"]["ignore_merges"] = True
    n = len(record["model"]["vocab"])
    record["added_tokens"].append({"id": n, "content": "<tool>", "special": False, "single_word": False,
                                   "lstrip": False, "rstrip": False, "normalized": False})
    held = through(json.dumps(record), n + 1)
    assert held["tokenizer.ggml.pre"] == "llama-bpe"
    assert held["tokenizer.ggml.token_type"][n] == 4
    a, b = from_json(canonical(record)), from_json(rebuild(held))
    for text in ("12345 I'm\n\n  x <tool> é", "<|endoftext|>"):
        assert a.encode(text).tolist() == b.encode(text).tolist()
        assert a.decode(a.encode(text)) == b.decode(a.encode(text))


def edited(record, **parts):
    record = json.loads(canonical(record))
    for path, v in parts.items():
        at = record
        *folders, name = path.split("__")
        for folder in folders:
            at = at[int(folder) if folder.isdigit() else folder]
        at[int(name) if name.isdigit() else name] = v
    return canonical(record)


WHOLE = {"type": "Whitespace"}
META = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
LATE = [["t", "h"], [SPACE, "t"], ["h", "e"], ["t", "he"], [SPACE, "th"], ["th", "e"]]


@pytest.mark.parametrize(("record", "parts", "words"), [
    ("ours", {"pre_tokenizer": WHOLE}, ["cut text like GPT-2 or Llama 3", "Whitespace"]),
    ("ours", {"pre_tokenizer": None}, ["cut text"]),
    ("ours", {"pre_tokenizer__add_prefix_space": True}, ["cut text"]),
    ("ours", {"normalizer": {"type": "NFC"}}, ["not normalise", "NFC"]),
    ("ours", {"model__ignore_merges": True}, ["ignore_merges = False", "True"]),
    ("ours", {"model__end_of_word_suffix": "</w>"}, ["end_of_word_suffix"]),
    ("ours", {"added_tokens__0__special": False, "added_tokens__0__lstrip": True}, ["match as it is"]),
    ("pieces", {"normalizer": None}, ["only mark spaces"]),
    ("pieces", {"pre_tokenizer": WHOLE}, ["only mark spaces", "Whitespace"]),
    ("pieces", {"normalizer": None, "pre_tokenizer": {**META, "prepend_scheme": "first"}},
     ["before a text that begins with one", "first"]),
    ("pieces", {"model__merges": LATE}, ["stand together"]),
    ("pieces", {"model__merges": LATE[:4]}, ["must be a merge"])])
def test_what_has_no_equivalent(record, parts, words):
    held = json.loads(ours().json) if record == "ours" else pieces()
    with refusal(*words):
        settings(edited(held, **parts), 500, NOTHING)


def test_a_larger_vocabulary_than_the_models():
    with refusal("at most the model's 300"):
        settings(ours().json, 300, NOTHING)


@pytest.mark.parametrize("meta", [True, False])
def test_no_space_before_the_text(meta):
    """Of either form in which files say it."""
    record = pieces()
    spaces = {"normalizer": None, "pre_tokenizer": META} if meta else {
        "normalizer": record["normalizer"]["normalizers"][1]}
    record = json.loads(edited(record, decoder__decoders=record["decoder"]["decoders"][:3], **spaces))
    held = through(canonical(record), 300)
    assert held["tokenizer.ggml.add_space_prefix"] is False
    a, b = from_json(canonical(record)), from_json(rebuild(held))
    for text in ("the other thing", "  the  ", "é the"):
        assert a.encode(text).tolist() == b.encode(text).tolist()


@pytest.mark.parametrize(("change", "words"), [
    ({"tokens": None}, ["tokens"]), ({"tokens": []}, ["tokens"]), ({"token_type": "x"}, ["token_type"]),
    ({"token_type": np.array([1])}, ["token_type"]), ({"token_type": np.full(420, 9)}, ["token_type"]),
    ({"merges": None}, ["merges"]), ({"merges": ["a"]}, ["merges"]), ({"merges": np.zeros(3)}, ["merges"]),
    ({"pre": "qwen2"}, ["tokenizer.ggml.pre", "qwen2"]), ({"pre": None}, ["ggml.pre", "tell which"]),
    ({"tokens": ["a"] * 420}, ["there once"]), ({"model": "bert"}, ["gpt2 or llama"])])
def test_settings_of_strangers(change, words):
    held = through(ours().json, 420) | {f"tokenizer.ggml.{name}": v for name, v in change.items()}
    with refusal(*words):
        rebuild(held)


@pytest.mark.parametrize(("change", "words"), [
    ({"scores": None}, ["scores"]), ({"scores": np.zeros(4)}, ["scores"]),
    ({"scores": np.full(300, np.nan)}, ["scores"]),
    ({"tokens": ["a" * 999, *(f"b{i}" for i in range(299))]}, ["at most 256"])])
def test_pieces_of_strangers(change, words):
    held = through(canonical(pieces()), 300) | {f"tokenizer.ggml.{name}": v for name, v in change.items()}
    with refusal(*words):
        rebuild(held)


def test_a_file_that_does_not_say_how_to_cut():
    """Told, or Llama 3's vocabulary (2B4T's file); never guessed."""
    held = through(ours().json, 420)
    del held["tokenizer.ggml.pre"]
    assert rebuild(held, pre="gpt-2") == ours().json
    tokens = [f"t{i}" for i in range(128256)]
    tokens[128000] = "<|begin_of_text|>"
    found = json.loads(rebuild({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens,
                                "tokenizer.ggml.merges": ["a b"]}))
    assert found["model"]["ignore_merges"] is True
    assert found["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": LLAMA3_REGEX}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", published.AS_JSON)
def test_published_ones_come_back(name):
    """All of llama.cpp's vectors, before and after."""
    original = published.tokenizer(published.AS_JSON[name])
    back = from_json(rebuild(through(original.json, original.vocab_size)))
    cases = published.vectors(name)
    assert len(cases) == 46
    for text, ids in cases:
        assert original.encode(text).tolist() == ids
        assert back.encode(text).tolist() == ids
