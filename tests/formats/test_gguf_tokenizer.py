"""formats/gguf_tokenizer: a tokenizer.json comes back from a GGUF as it went in, or does not go in."""

import json
import tracemalloc
from functools import cache

import numpy as np
import published
import pytest
import tiny
from tiny import assert_three_parts, refusal

from bitnet_ref.checks import CheckError
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


def test_a_vocabulary_is_the_same_in_a_gguf():
    """Also where the model has more entries, which the file fills up with names."""
    llama = json.loads(canonical(pieces()))
    for text in (ours().json, canonical(pieces()), canonical(edited_names(llama))):
        size = from_json(text).vocab_size
        back = from_json(rebuild(through(text, size + 9)))
        assert back.vocabulary == from_json(text).vocabulary


def edited_names(record):
    """With tokens added as published models have them."""
    size = len(record["model"]["vocab"])
    names = [("<|im_start|>", True), ("<tool>", False)]
    record["added_tokens"] += [{**record["added_tokens"][0], "id": size + n, "content": name, "special": kind}
                               for n, (name, kind) in enumerate(names)]
    return record


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


# --- what is put before and after a text, and what else a tokenizer.json may have ---------------------------


def templated(*names, record=None):
    """Ours or another, with a TemplateProcessing as the library writes one; None stands for the text."""
    record = json.loads(ours().json) if record is None else record
    ids = {a["content"]: a["id"] for a in record["added_tokens"]}

    def one(text, kind):
        return [{"Sequence": {"id": text, "type_id": kind}} if n is None
                else {"SpecialToken": {"id": n, "type_id": kind}} for n in names]

    special = {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in names if n}
    return {**record, "post_processor": {"type": "TemplateProcessing", "single": one("A", 0),
                                         "pair": one("A", 0) + one("B", 1), "special_tokens": special}}


@pytest.mark.parametrize(("names", "about", "adds"), [
    (("<s>", None), About("", 1, (2,)), (True, False)), (("<s>", None), NOTHING, (True, False)),
    (("<s>", None, "</s>"), About("", 1, (2,)), (True, True)),
    ((None, "</s>"), About("", 1, (2, 0)), (False, True)), ((None,), About("", 1, (2,)), (False, False)),
    (("<s>", None), About("", 2, (2,)), (False, False)),
    (("<s>", "<s>", None), About("", 1, (2,)), (False, False))])
def test_what_is_added_to_a_text_comes_back(names, about, adds):
    """To llama.cpp by its two settings; what these do not say, by one of ours."""
    text = canonical(templated(*names, record=pieces()))
    held = through(text, 300, about)
    assert tuple(held[f"tokenizer.ggml.add_{key}_token"] for key in ("bos", "eos")) == adds
    assert held["tokenizer.ggml.bos_token_id"] == (1 if about.bos is None else about.bos)
    usual = names in (("<s>", None), ("<s>", None, "</s>"), (None, "</s>")) and about.bos != 2
    assert ("b158.post_processor" in held) == (not usual)
    assert rebuild(held) == text


def test_llama_3s_way_of_adding():
    """Its template stands in a list, after a step that only moves offsets."""
    record = templated("<|endoftext|>", None)
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    record["post_processor"] = {"type": "Sequence", "processors": [level, record["post_processor"]]}
    held = through(canonical(record), 420)
    assert held["tokenizer.ggml.add_bos_token"] is True
    assert rebuild(held) == canonical(record)


@pytest.mark.parametrize(("change", "adds"), [
    ({}, True), ({"add_bos_token": True}, True), ({"add_bos_token": False}, False),
    ({"bos_token_id": None}, False)])
def test_a_llama_of_others_begins_with_its_first_id(change, adds):
    """Also where the file does not say so; llama.cpp takes that from the family."""
    held = through(canonical(templated("<s>", None, record=pieces())), 300, About("", 1, (2,)))
    del held["tokenizer.ggml.add_bos_token"], held["tokenizer.ggml.add_eos_token"]
    held |= {f"tokenizer.ggml.{name}": v for name, v in change.items()}
    found = json.loads(rebuild(held))["post_processor"]
    assert found == (templated("<s>", None, record=pieces())["post_processor"] if adds else None)


def test_gpt_2_of_others_adds_nothing():
    held = through(ours().json, 420)
    for name in ("b158.post_processor", "tokenizer.ggml.add_bos_token"):
        del held[name]
    assert json.loads(rebuild(held))["post_processor"] is None


def fields(record, path=()):
    """The path of every field, but those of the vocabulary."""
    if isinstance(record, list):
        record = dict(enumerate(record[:3]))
    for name, v in record.items() if isinstance(record, dict) else ():
        if path[-1:] not in (("vocab",), ("merges",)):
            if isinstance(name, str):
                yield (*path, name)
            yield from fields(v, (*path, name))


@pytest.mark.parametrize("which", ["ours", "pieces", "meta", "llama 3"])
def test_any_field_may_be_left_out(which):
    """Whatever the library reads is exported or refused: a default is the library's."""
    cut = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3_REGEX}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
    three = {**json.loads(ours().json), "pre_tokenizer": cut}
    three["model"]["ignore_merges"] = True
    record = {"ours": templated("<|endoftext|>", None), "pieces": templated("<s>", None, record=pieces()),
              "meta": {**pieces(), "normalizer": None, "pre_tokenizer": META},
              "llama 3": three}[which]
    exported = 0
    for path in list(fields(record)):
        less = json.loads(json.dumps(record))
        at = less
        for name in path[:-1]:
            at = at[name]
        del at[path[-1]]
        try:
            text = from_json(json.dumps(less)).json
            settings(text, 500, NOTHING)
            exported += 1
        except CheckError as e:
            assert_three_parts(e)
    assert exported > 5


# --- any type for any setting ------------------------------------------------------------------------------


TYPED = [None, True, 0, 3, -1, 1 << 63, 1.5, float("nan"), "", "x", "[]", "null", "{", "{}", [], ["x"],
         ["a b", "a b"], np.zeros(0), np.arange(3), np.arange(420), np.full(420, np.nan), np.zeros(300) > 1]
NAMES = ["model", "pre", "tokens", "token_type", "merges", "scores", "add_space_prefix", "add_bos_token",
         "add_eos_token", "bos_token_id", "eos_token_id", "unknown_token_id"]


@pytest.mark.parametrize("name", [*(f"tokenizer.ggml.{n}" for n in NAMES), "b158.post_processor"])
@pytest.mark.parametrize("which", ["ours", "pieces"])
def test_any_type_of_a_setting(which, name):
    """Three parts, or the text of a tokenizer.json."""
    held = through(ours().json, 420) if which == "ours" else through(canonical(pieces()), 300)
    for v in TYPED:
        for more in ({}, {"b158.post_processor": None}):
            try:
                assert isinstance(rebuild({**held, **more, name: v}), str | None)
            except CheckError as e:
                assert_three_parts(e)


@pytest.mark.parametrize(("change", "words"), [
    ({"pre": np.arange(3)}, ["tokenizer.ggml.pre", "text", "ndarray"]),
    ({"model": ["gpt2"]}, ["tokenizer.ggml.model", "text", "list"]),
    ({"add_bos_token": 1}, ["add_bos_token", "true or false", "1"]),
    ({"bos_token_id": 420}, ["bos_token_id", "below 420"])])
def test_types_of_strangers(change, words):
    held = through(ours().json, 420) | {f"tokenizer.ggml.{name}": v for name, v in change.items()}
    with refusal(*words):
        rebuild({**held, "b158.post_processor": None})


def test_a_prefix_of_another_type():
    held = through(canonical(pieces()), 300) | {"tokenizer.ggml.add_space_prefix": np.arange(3)}
    with refusal("add_space_prefix", "true or false"):
        rebuild(held)


def test_parts_of_one_text_do_not_make_cubically_many_merges():
    """Of 200 characters there are 20,100 parts, and 1.3 million ways to cut one into two."""
    text = "".join(chr(0x4E00 + i) for i in range(200))
    tokens = ["<unk>", *(text[i:j] for i in range(200) for j in range(i + 1, 201))]
    held = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": np.zeros(len(tokens)),
            "tokenizer.ggml.token_type": np.r_[2, np.ones(len(tokens) - 1, int)]}
    tracemalloc.start()
    with refusal("20101 tokens", "at most 8 merges for each", "more"):
        rebuild(held)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20, f"{peak >> 20} MiB"


def test_more_merges_than_are_read_are_not_written():
    letters = "".join(chr(0x4E00 + i) for i in range(60))
    results = [letters[i:j] for n in range(2, 61) for i in range(61 - n) for j in [i + n]]
    record = pieces()
    vocab = {t: i for i, t in enumerate([*list(record["model"]["vocab"])[:259], *letters, *results])}
    merges = [[r[:i], r[i:]] for r in results for i in range(1, len(r))]
    record["model"] |= {"vocab": vocab, "merges": merges}
    with refusal("at most 8 merges for each", f"{len(merges)}"):
        settings(canonical(record), len(vocab), NOTHING)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", published.AS_JSON)
def test_published_ones_come_back(name):
    """All of llama.cpp's vectors, before and after."""
    original = published.tokenizer(published.AS_JSON[name])
    back = from_json(rebuild(through(original.json, original.vocab_size)))
    cases = published.vectors(name)
    assert len(cases) == 46
    assert back.vocabulary == original.vocabulary          # so that a table of chains serves both
    for text, ids in cases:
        assert original.encode(text).tolist() == ids
        assert back.encode(text).tolist() == ids
