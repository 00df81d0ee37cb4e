"""A tokenizer.json as the settings of a GGUF, and back.

llama.cpp has its own tokenizers: a file names one and gives it the vocabulary and merges (byte-level BPE) or
scores (SentencePiece). What it would split in another way is refused: text that degrades silently is worse.
Port note: SentencePiece has no list of merges. It merges the pair whose *result* has the best score, so a
list has an equivalent if the merges with one result stand together, and is rebuilt from the scores.
Read after: formats/gguf_about. Read next: formats/gguf_read.
"""

import itertools
import json
import math
from typing import Any

import numpy as np

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.data.tokenizer import canonical, from_json
from bitnet_ref.formats.gguf_about import added_ids, flag_of, own_post, template, text_of
from bitnet_ref.formats.source import About

GPT2, LLAMA3 = "gpt-2", "llama-bpe"  # names that llama.cpp gives to ways of cutting text before merging
LLAMA3_REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
PRE = {GPT2: GPT2, "gpt2": GPT2, LLAMA3: LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3}      # and its aliases
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"
MARK = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
LONGEST_PIECE = 256                  # characters of a SentencePiece token; of its splits there are as many
MERGES = 8                           # of a token on average, at most; Llama 2's have 2
WHY = "llama.cpp would split text in another way; export with another tokenizer, or without one"
AGAIN = "download the file again"


def settings(text: str, vocab_size: int, about: About) -> dict[str, Any]:
    """The tokenizer.ggml settings for a model of `vocab_size` entries. Names that it lacks are filled up.

    Raises CheckError for no tokenizer.json, one with more entries than the model, one that llama.cpp has no
    equivalent for.
    >>> from bitnet_ref.data.tokenizer import train_bpe
    >>> settings(train_bpe(["abab"], 258).json, 258, About())["tokenizer.ggml.merges"]
    ['a b']
    """
    tokenizer = from_json(text)
    record = json.loads(text)
    model = record["model"]
    kind = model.get("type")
    check(kind == "BPE", "a tokenizer to export must be a BPE", repr(kind)[:50], WHY)
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        check(not model.get(name), f"{name} of a tokenizer must be null", repr(model.get(name))[:50], WHY)
    check(tokenizer.vocab_size <= vocab_size,
          f"the tokenizer must have at most the model's {vocab_size} entries", tokenizer.vocab_size,
          "give the tokenizer that the model was trained with")
    tokens, kinds = _entries(record, vocab_size)
    post = record.get("post_processor")
    made = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds,
            **added_ids(post, about, tokenizer.eos)}
    made |= own_post(made, tokens, post)
    return made | (_pieces(record, tokens, kinds) if model.get("byte_fallback") else _byte_level(record))


def _entries(record: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """The token and the kind of every id."""
    tokens: list[str | None] = [None] * vocab_size
    kinds = [UNUSED] * vocab_size
    model = record["model"]
    byte_names = {f"<0x{b:02X}>" for b in range(256)} if model.get("byte_fallback") else set()
    for token, i in model["vocab"].items():
        check(tokens[i] is None, f"id {i} must have one token", f"{tokens[i]!r} and {token!r}"[:100], WHY)
        tokens[i] = token
        kinds[i] = BYTE if token in byte_names else UNKNOWN if token == model.get("unk_token") else NORMAL
    for added in record.get("added_tokens") or ():
        i, token = added["id"], added["content"]
        check(tokens[i] in (None, token), f"id {i} must have one token", f"{tokens[i]!r} and {token!r}"[:100],
              WHY)
        plain = not (added["lstrip"] or added["rstrip"] or added["single_word"])
        check(added["special"] or plain, "an added token must match as it is",
              f"lstrip, rstrip or single_word of {token!r}"[:100], WHY)
        tokens[i] = token
        if kinds[i] != UNKNOWN:
            kinds[i] = CONTROL if added["special"] else USER
    return [f"[PAD{i}]" if t is None else t for i, t in enumerate(tokens)], kinds


def _byte_level(record: dict[str, Any]) -> dict[str, Any]:
    """Of GPT-2's family: how text is cut, and the merges."""
    pre = _cut(record)
    merges = _merges(record)
    check(len(merges) > 0, "a byte-level BPE to export must have merges", "none", "train a larger vocabulary")
    check(bool(record["model"].get("ignore_merges")) == (pre == LLAMA3),
          f"a tokenizer that cuts text like {pre} must have ignore_merges = {pre == LLAMA3}",
          record["model"].get("ignore_merges"), WHY)
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.merges": [" ".join(pair) for pair in merges]}


def _cut(record: dict[str, Any]) -> str:
    """GPT2 or LLAMA3: which of them the tokenizer's pre-tokenizer is."""
    pre = record.get("pre_tokenizer") or {}
    check(record.get("normalizer") is None, "a byte-level tokenizer to export must not normalise",
          json.dumps(record.get("normalizer"))[:100], WHY)
    if pre.get("type") == "ByteLevel" and pre.get("use_regex", True) and not pre["add_prefix_space"]:
        return GPT2
    parts = pre.get("pretokenizers", [])
    if len(parts) == 2:
        split, level = parts
        same = (split.get("type") == "Split" and split["pattern"] == {"Regex": LLAMA3_REGEX}
                and split["behavior"] == "Isolated" and not split["invert"])
        level = {name: level.get(name) for name in ("type", "use_regex", "add_prefix_space")}
        if same and level == {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}:
            return LLAMA3
    raise CheckError(f"a byte-level tokenizer to export must cut text like GPT-2 or Llama 3; got "
                     f"{json.dumps(pre)[:150]}; {WHY}")


def _merges(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs, best first; old files have them as one string with a space."""
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in record["model"]["merges"]]
    check(all(len(p) == 2 for p in pairs), "every merge must be of two tokens", "another", WHY)
    return pairs                                           # type: ignore[return-value]


def _pieces(record: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Of Llama 2's family: scores that merge as the list of merges does; whether a space is put before."""
    known = _merges(record)
    check(len(known) <= MERGES * len(tokens), f"a tokenizer of {len(tokens)} entries must have at most "
          f"{MERGES} merges for each", len(known), WHY)
    runs = [result for result, _ in itertools.groupby(a + b for a, b in known)]
    place = {result: i for i, result in enumerate(runs)}
    check(len(place) == len(runs), "the merges with one result must stand together",
          f"a result in {len(runs) - len(place)} more places", WHY)
    vocab = record["model"]["vocab"]
    listed = set(known)
    for token, kind in zip(tokens, kinds):
        lost = kind == NORMAL and [s for s in _splits(token, vocab) if s not in listed]
        check(not lost, "every pair of tokens that makes a token must be a merge", f"no {lost}"[:100], WHY)
    others = itertools.count(len(runs))                    # never merged, so any score will do: a lower one
    special = (UNKNOWN, CONTROL, BYTE)
    scores = [0.0 if k in special else -float(place[t] if t in place else next(others))
              for t, k in zip(tokens, kinds)]
    unknown = [i for i, k in enumerate(kinds) if k == UNKNOWN]
    check(len(unknown) == 1 and BYTE in kinds, "a SentencePiece vocabulary must have <unk> and single bytes",
          f"{len(unknown)} unknown", WHY)
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.unknown_token_id": unknown[0],
            "tokenizer.ggml.add_space_prefix": _prefixed(record)}


def _prefixed(record: dict[str, Any]) -> bool:
    """Whether a space is put before the text; spaces must become U+2581, and nothing else may change."""
    normalizer, pre = record.get("normalizer"), record.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    prefixed = steps[:1] == [{"type": "Prepend", "prepend": SPACE}]
    if pre is None and steps[prefixed:] == [MARK]:
        return prefixed
    meta = {"type": "Metaspace", "replacement": SPACE, "split": False}
    if not steps and pre is not None and {k: v for k, v in pre.items() if k != "prepend_scheme"} == meta:
        scheme = pre.get("prepend_scheme", "always")       # the library's
        check(scheme == "never", "a space must be put before every text or none, also before a text that "
              "begins with one", f"prepend_scheme {scheme!r}"[:50], WHY)
        return False
    raise CheckError("a SentencePiece tokenizer to export must only mark spaces; got "
                     f"{json.dumps([pre, normalizer])[:150]}; {WHY}")


def _splits(token: str, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The ways to cut a token into two tokens."""
    cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
    return [(a, b) for a, b in cuts if a in vocab and b in vocab]


def rebuild(held: dict[str, Any], pre: str | None = None) -> str | None:
    """The text of the tokenizer.json that the settings of a GGUF describe; None for a file without one.

    `pre`: what to take for an absent tokenizer.ggml.pre. Raises CheckError: damaged, of another kind, or an
    absent pre that the vocabulary does not betray.
    >>> from bitnet_ref.data.tokenizer import train_bpe
    >>> made = settings(train_bpe(["abab"], 258).json, 258, About())
    >>> made["tokenizer.ggml.token_type"] = np.array(made["tokenizer.ggml.token_type"])    # as a file has it
    >>> from_json(rebuild(made)).encode("aba").tolist()
    [257, 65]
    """
    model = text_of(held, "tokenizer.ggml.model", "no_vocab")
    if model == "no_vocab":
        return None
    check(model in ("gpt2", "llama"), "tokenizer.ggml.model must be gpt2 or llama", repr(model)[:50],
          "use a checkpoint with one of these")
    tokens, kinds = _checked(held)
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind != UNUSED}
    check(len(vocab) == len(kinds) - kinds.count(UNUSED), "every token must be there once", "one twice",
          AGAIN)
    unknown = next((t for t, kind in zip(tokens, kinds) if kind == UNKNOWN), None)
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": kind != USER}
             for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind in (UNKNOWN, CONTROL, USER)]
    record = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    bpe = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
           "vocab": vocab}
    parts, rest = (_of_byte_level(held, tokens, pre) if model == "gpt2"
                   else _of_pieces(held, tokens, kinds, unknown))
    begins = model == "llama" or rest["ignore_merges"]     # llama.cpp, src/llama-vocab.cpp
    post = template(held, tokens, begins)
    return canonical({**record, **parts, "post_processor": post, "model": {**bpe, **rest}})


def _checked(held: dict[str, Any]) -> tuple[list[str], list[int]]:
    tokens, kinds = held.get("tokenizer.ggml.tokens"), held.get("tokenizer.ggml.token_type")
    check(isinstance(tokens, list) and len(tokens) > 0, "tokenizer.ggml.tokens must be strings",
          type(tokens).__name__, AGAIN)
    assert isinstance(tokens, list)
    kinds = [NORMAL] * len(tokens) if kinds is None else _numbers(kinds)
    check(len(kinds) == len(tokens) and all(k in range(1, 7) for k in kinds),
          f"tokenizer.ggml.token_type must be {len(tokens)} numbers from 1 to 6", f"{len(kinds)}, or others",
          AGAIN)
    return tokens, [int(k) for k in kinds]


def _numbers(value: Any) -> list[Any]:
    """An array of numbers as Python's; nothing for anything else."""
    return value.tolist() if isinstance(value, np.ndarray) else []


def _of_byte_level(held: dict[str, Any], tokens: list[str],
                   pre: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    said = text_of(held, "tokenizer.ggml.pre") or pre or _betrayed(tokens)
    pre = lookup(PRE, said[:50], "tokenizer.ggml.pre")
    merges = held.get("tokenizer.ggml.merges")
    check(isinstance(merges, list) and all(isinstance(m, str) and m.count(" ") == 1 for m in merges),
          "tokenizer.ggml.merges must be pairs of tokens", type(merges).__name__, AGAIN)
    assert isinstance(merges, list)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pre == GPT2}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_REGEX}, "behavior": "Isolated", "invert": False}
    cut = level if pre == GPT2 else {"type": "Sequence", "pretokenizers": [split, level]}
    return ({"normalizer": None, "pre_tokenizer": cut, "decoder": {**level, "add_prefix_space": True,
                                                                   "use_regex": True}},
            {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre == LLAMA3,
             "merges": [m.split(" ") for m in merges]})


def _betrayed(tokens: list[str]) -> str:
    """The pre-tokenizer of a file that does not say: Llama 3's where the vocabulary is; else refused."""
    check(len(tokens) == 128256 and tokens[128000] == "<|begin_of_text|>",
          "a byte-level tokenizer in a GGUF must have tokenizer.ggml.pre", "none",
          f"tell which it is: pre = {GPT2} or {LLAMA3}")
    return LLAMA3


def _of_pieces(held: dict[str, Any], tokens: list[str], kinds: list[int],
               unknown: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    scores = _numbers(held.get("tokenizer.ggml.scores"))
    check(len(scores) == len(tokens) and all(map(math.isfinite, scores)),
          f"tokenizer.ggml.scores must be {len(tokens)} finite numbers", "others", AGAIN)
    longest = max(map(len, tokens))
    check(longest <= LONGEST_PIECE, f"a token must have at most {LONGEST_PIECE} characters", longest, AGAIN)
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind == NORMAL}
    best = sorted(vocab, key=lambda t: (-scores[vocab[t]], vocab[t]))
    merges: list[list[str]] = []
    for token in best:                                     # of a text and all of its parts: cubically many
        pairs = sorted([vocab[a], vocab[b]] for a, b in _splits(token, vocab))
        merges += [[tokens[i] for i in pair] for pair in pairs]
        check(len(merges) <= MERGES * len(tokens), f"a vocabulary of {len(tokens)} tokens must have at most "
              f"{MERGES} merges for each", "more", AGAIN)
    prefix = flag_of(held, "tokenizer.ggml.add_space_prefix", True)
    steps = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, *strip]
    return ({"normalizer": {"type": "Sequence", "normalizers": [*steps, MARK]}, "pre_tokenizer": None,
             "decoder": {"type": "Sequence", "decoders": decoders}},
            {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
             "merges": merges})
