"""The files that published tokenizers come in beside tokenizer.json, made into one.

GPT-2's encoder.json with vocab.bpe; a tiktoken .model (Llama 3), which has ranks and no merges; a .model of
SentencePiece (Llama 2), which has scores. Each becomes the text of a tokenizer.json, the same for each file.
Strangers' files: sizes are bounded, and what does not agree with itself is refused.
Read after: data/tokenizer. Read next: data/shards.
"""

import base64
import itertools
import json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.data.tokenizer import (
    BYTE_OF,
    EOS,
    LARGEST,
    LARGEST_FILE,
    Tokenizer,
    byte_letters,
    canonical,
    from_json,
)
from bitnet_ref.data.tokenizer import load as load_json

WORK = 1 << 27               # sum of squared lengths of all tokens: what finding merges costs; published 2^23
FIX = "download the file again"
PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))    # GPT-2's by either of two names
IN_A_FOLDER = ("tokenizer.json", "tokenizer.model", "encoder.json", "vocab.json")

# How Llama 3 cuts a text before pairs are merged: digits come in threes.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_RANKS = 128000
LLAMA3_NAMED = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>",
                7: "<|end_header_id|>", 9: "<|eot_id|>"}       # by place after the ranks; others are reserved


class Piece(NamedTuple):
    """An entry of a SentencePiece model; `kind` as its format numbers them."""

    text: str
    score: float
    kind: int


NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
BPE = 2                      # kind of model


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a file of any of these kinds, or in a folder that holds one.

    Raises CheckError for what is damaged, too large, or of no known kind.
    >>> from tempfile import TemporaryDirectory
    >>> from bitnet_ref.data.tokenizer import train_bpe
    >>> with TemporaryDirectory() as d:
    ...     train_bpe(["abab"], 258).save(f"{d}/tokenizer.json")
    ...     load(d).encode("ab").tolist()
    [257]
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in IN_A_FOLDER if (path / name).is_file()), path / IN_A_FOLDER[0])
    for pair in PAIRS:
        for name in pair:
            if path.name.endswith(name):
                prefix = path.name.removesuffix(name)
                return gpt2(*(path.with_name(prefix + other) for other in pair))
    if path.suffix == ".json" or (first := _read(path)[:1]) == b"{":
        return load_json(path)
    return sentencepiece(path) if first == b"\n" else tiktoken(path)


def gpt2(encoder: str | Path, merges: str | Path) -> Tokenizer:
    """From {token: id} as JSON, and merges as lines. Raises CheckError for what is damaged.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "vocab.json").write_text(json.dumps(BYTE_OF | {"ab": 256, EOS: 257}))
    ...     n = Path(d, "merges.txt").write_text("a b")
    ...     gpt2(f"{d}/vocab.json", f"{d}/merges.txt").encode("aba").tolist()
    [256, 97]
    """
    try:
        vocab = json.loads(_read(encoder).decode("utf-8"))
        lines = _read(merges).decode("utf-8").split("\n")
    except (ValueError, RecursionError) as e:
        raise CheckError(f"{encoder} and {merges} must be JSON and text; got {str(e)[:100]}; {FIX}") from None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    check(bool(ids) and all(type(i) is int and 0 <= i < LARGEST for i in ids) and len(set(ids)) == len(ids),
          f"{encoder} must map tokens to ids of their own below {LARGEST}", repr(vocab)[:60], FIX)
    check(vocab.keys() >= BYTE_OF.keys(), f"{encoder} must have a letter for each of the 256 bytes",
          f"{len(vocab)} tokens", FIX)
    pairs = []
    for n, line in enumerate(lines, 1):
        if line and not line.startswith("#version"):
            a, _, b = line.rstrip("\r").partition(" ")
            check({a, b, a + b} <= vocab.keys(), f"line {n} of {merges} must be two tokens that make a third",
                  repr(line)[:60], FIX)
            pairs.append((a, b))
    names = {EOS: vocab[EOS]} if EOS in vocab else {}
    return _byte_level(vocab, pairs, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                                      "use_regex": True}, names, False, str(encoder))


def tiktoken(path: str | Path, specials: Sequence[str] | None = None) -> Tokenizer:
    r"""From lines of base64(bytes) and rank: ranks become merges, special tokens follow them.

    `specials` None: Llama 3's, of which the file must have the size. Raises CheckError for what is damaged.
    >>> from tempfile import TemporaryDirectory
    >>> tokens = [*(bytes([b]) for b in range(256)), b"ab"]
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.model").write_bytes(
    ...         b"".join(base64.b64encode(token) + f" {i}\n".encode() for i, token in enumerate(tokens)))
    ...     tiktoken(f"{d}/a.model", [EOS]).encode("aba").tolist()
    [256, 97]
    """
    ranks = _ranks(path)
    check(specials is not None or len(ranks) == LLAMA3_RANKS,
          f"{path} must have Llama 3's {LLAMA3_RANKS} ranks: of others the special tokens are not known",
          len(ranks), "give the tokenizer.json of the model")
    names = llama3_specials() if specials is None else specials
    letters = byte_letters()
    spelt = {token: "".join([letters[b] for b in token]) for token in ranks}
    pairs = [(spelt[a], spelt[b]) for a, b in (_halves(token, ranks) for token in ranks) if a]
    split = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
    return _byte_level({spelt[token]: i for token, i in ranks.items()}, pairs, split,
                       {name: len(ranks) + i for i, name in enumerate(names)}, True, str(path))


def llama3_specials() -> list[str]:
    """The 256 names in order: a few that mean something, the others reserved and numbered.
    >>> llama3_specials()[:3]
    ['<|begin_of_text|>', '<|end_of_text|>', '<|reserved_special_token_0|>']
    """
    number = itertools.count()
    return [LLAMA3_NAMED.get(i) or f"<|reserved_special_token_{next(number)}|>" for i in range(256)]


def sentencepiece(path: str | Path) -> Tokenizer:
    r"""From a SentencePiece model of kind BPE, as Llama 2's. Raises CheckError for others, and for damage.

    Merges are all the ways to make a piece of two others, best score first.
    >>> from tempfile import TemporaryDirectory
    >>> pieces = b"".join(bytes([10, len(t) + 2, 10, len(t)]) + t for t in (b"</s>", b"a", b"b", b"ab"))
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.model").write_bytes(pieces + b"\x12\x05\x18\x02\x98\x02\x01\x1a\x02\x20\x00")
    ...     sentencepiece(f"{d}/a.model").encode("aba").tolist()
    [3, 1]
    """
    pieces = _pieces(path)
    vocab, score = {p.text: i for i, p in enumerate(pieces)}, {p.text: p.score for p in pieces}
    check(len(vocab) == len(pieces), f"{path} must have each piece once", f"{len(pieces)} pieces", FIX)
    _check_work((p.text for p in pieces), path)
    ways = [(-p.score, vocab[a], vocab[b], a, b) for p in pieces if p.kind == NORMAL
            for i in range(1, len(p.text)) if (a := p.text[:i]) in score and (b := p.text[i:]) in score]
    unknown = next((p.text for p in pieces if p.kind == UNKNOWN), None)
    space = {"String": " "}, {"String": "\u2581"}
    return _built(
        {i: (p.text, p.kind != USER_DEFINED) for i, p in enumerate(pieces)
         if p.kind in (UNKNOWN, CONTROL, USER_DEFINED)},
        {"type": "BPE", "vocab": vocab, "merges": [way[3:] for way in sorted(ways)], "unk_token": unknown,
         "fuse_unk": True, "byte_fallback": True, "ignore_merges": False},
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                             {"type": "Replace", "pattern": space[0], "content": "\u2581"}]},
        None,
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": space[1], "content": " "},
                                          {"type": "ByteFallback"}, {"type": "Fuse"},
                                          {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        str(path))


def _byte_level(vocab: dict[str, int], merges: list[tuple[str, str]], split: dict[str, Any],
                names: dict[str, int], whole_words: bool, where: str) -> Tokenizer:
    """`whole_words`: a word that is a token needs no merges."""
    return _built({i: (name, True) for name, i in names.items()},
                  {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": None, "fuse_unk": False,
                   "byte_fallback": False, "ignore_merges": whole_words},
                  None, split, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                "use_regex": True}, where)


def _built(added: dict[int, tuple[str, bool]], model: dict[str, Any], normalizer: Any, split: Any,
           decoder: Any, where: str) -> Tokenizer:
    plain = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return from_json(canonical({
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": name, "special": special} | flags
                         for i, (name, special) in sorted(added.items())],
        "normalizer": normalizer, "pre_tokenizer": split, "decoder": decoder, "model": plain | model}), where)


# --- tiktoken ----------------------------------------------------------------------------------------------


def _ranks(path: str | Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for n, line in enumerate(_read(path).splitlines(), 1):
        word, _, rank = line.partition(b" ")
        try:
            token, number = base64.b64decode(word, validate=True), int(rank) if len(rank) < 10 else -1
        except ValueError:
            token, number = b"", -1
        check(bool(token) and token not in ranks and number == len(ranks) < LARGEST,
              f"line {n} of {path} must be a new token in base64 and its rank, {n - 1}", repr(line)[:60], FIX)
        ranks[token] = number
    check(all(bytes([b]) in ranks for b in range(256)), f"{path} must have all 256 bytes as tokens",
          f"{len(ranks)} tokens", FIX)
    _check_work(ranks, path)
    return ranks


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that are merged into `token`: what merging its bytes by rank comes to before that.

    A token that cannot be reached so is found as a whole word only: nothing twice.
    """
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, LARGEST) for a, b in itertools.pairwise(parts)]
        best = min(pairs)
        if best >= ranks[token]:
            return b"", b""
        i = pairs.index(best)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else (b"", b"")


# --- SentencePiece: a protobuf, of which four messages matter ----------------------------------------------


def _pieces(path: str | Path) -> list[Piece]:
    """The pieces of a model of the one kind that is known here."""
    where = str(path)
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(_read(path), where):
        if number == 1:
            check(len(pieces) < LARGEST, f"{where} must have 1 to {LARGEST} pieces", "more", FIX)
            f = dict(_fields(value, where))
            text, raw = _text(f.get(1, b""), where), f.get(2, bytes(4))
            score = struct.unpack("<f", raw)[0] if isinstance(raw, bytes) and len(raw) == 4 else math.nan
            check(bool(text) and math.isfinite(score),
                  f"piece {len(pieces)} of {where} must have text and score", f"{text[:40]!r} and {score}",
                  FIX)
            pieces.append(Piece(text, score, _number(f.get(3, NORMAL))))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(_fields(value, where))
    kind, spaces = _number(trainer.get(3, 1)), tuple(normalizer.get(field, 1) for field in (3, 4, 5))
    check(kind == BPE and trainer.get(35) == 1, f"{where} must be a BPE with byte fallback",
          f"kind {kind}, byte fallback {trainer.get(35, 0)!r}"[:60], "give the tokenizer.json of the model")
    check(spaces == (1, 0, 1) and not normalizer.get(2), f"{where} must change nothing in a text but spaces, "
          "and put one before it", "another normalizer", "give the tokenizer.json of the model")
    check(bool(pieces), f"{where} must have 1 to {LARGEST} pieces", "none", FIX)
    return pieces


def _fields(data: Any, where: str) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: an int for a varint, else bytes."""
    check(isinstance(data, bytes), f"{where} must be a SentencePiece model", "a number for a message", FIX)
    at = 0
    while at < len(data):
        key, at = _varint(data, at, where)
        wire = key & 7
        check(wire in (0, 1, 2, 5), f"{where} must be a SentencePiece model", f"wire type {wire} at {at}",
              FIX)
        if wire == 0:
            value, at = _varint(data, at, where)
            yield key >> 3, value
            continue
        size, at = _varint(data, at, where) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        check(size <= len(data) - at, f"a field of {where} must lie in the file", f"{size} bytes at {at}",
              FIX)
        yield key >> 3, data[at:at + size]
        at += size


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for n in range(10):
        check(at + n < len(data), f"{where} must be whole", f"its end at byte {at + n}", FIX)
        value |= (data[at + n] & 127) << 7 * n
        if data[at + n] < 128:
            return value, at + n + 1
    raise CheckError(f"a number in {where} must have at most 10 bytes; got more at {at}; {FIX}")


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1


def _text(value: Any, where: str) -> str:
    try:
        return value.decode("utf-8")
    except (UnicodeDecodeError, AttributeError):
        raise CheckError(f"a piece of {where} must be UTF-8; got {value!r:.60}; {FIX}") from None


# --- both --------------------------------------------------------------------------------------------------


def _check_work(tokens: Iterable[Any], path: str | Path) -> None:
    work = sum(len(t) ** 2 for t in tokens)
    check(work <= WORK, f"{path} must have tokens of a sensible length",
          f"{work} for the sum of their squares", FIX)


def _read(path: str | Path) -> bytes:
    try:
        size = Path(path).stat().st_size
        check(size <= LARGEST_FILE, f"a tokenizer's file must have at most {LARGEST_FILE} bytes",
              f"{size} in {path}", FIX)
        return Path(path).read_bytes()
    except OSError as e:
        raise unreadable(path, e, "give a tokenizer's file") from None
