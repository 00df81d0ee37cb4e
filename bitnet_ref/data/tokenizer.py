"""Byte-level BPE: text <-> token ids, by the library `tokenizers`.

Every string has ids and comes back as it was: bytes are the alphabet, nothing is normalised, no space is
added. Id 0 is `<|endoftext|>` (EOS) and no text can spell it: on encoding it is letters like any others. The
JSON text is the identity: it is what is saved, and what the checksum in shards and checkpoints is taken of.
Read after: data/split. Read next: data/tokenizer_files.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable, whole_file

EOS = "<|endoftext|>"
EOS_NAMES = (EOS, "<|end_of_text|>", "</s>")    # ours and GPT-2's, Llama 3's, Llama 2's
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")       # of chat models
SMALLEST = 257                                  # entries: 256 bytes and EOS
LARGEST = 1 << 20                               # entries; the largest published vocabularies have 2^18
LARGEST_FILE = 1 << 26                          # bytes of a tokenizer.json; the largest published: 2^25
BATCH = 1 << 18                                 # characters encoded at once: enough for all cores
FIX = "give the tokenizer.json of the library `tokenizers`"


def byte_letters() -> dict[int, str]:
    """{byte: the character that stands for it in a byte-level vocabulary}, as GPT-2 chose them.

    Bytes that Latin-1 prints are themselves; the others, in order, are the characters from U+0100 on.
    >>> byte_letters()[ord("a")], byte_letters()[ord(" ")]
    ('a', 'Ġ')
    """
    printed = {b for b in range(256) if 0x21 <= b <= 0x7E or (0xA1 <= b <= 0xFF and b != 0xAD)}
    others = iter(range(0x100, 0x200))
    return {b: chr(b if b in printed else next(others)) for b in range(256)}


BYTE_OF = {letter: b for b, letter in byte_letters().items()}
LETTERS = {ord(letter): b for letter, b in BYTE_OF.items()}             # for str.translate


class Facts(NamedTuple):
    """What is asked of a tokenizer.json beside what the library knows: parsed once, since it costs."""

    added: list[dict[str, Any]]
    byte_level: bool


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer. `json` is the canonical text of its tokenizer.json; everything else follows from it."""

    json: str

    @cached_property
    def _bpe(self) -> tokenizers.Tokenizer:
        bpe = tokenizers.Tokenizer.from_str(self.json)
        bpe.encode_special_tokens = True        # "<|endoftext|>" in a text is text
        bpe.no_truncation()                     # settings in some published files: they would lose text
        bpe.no_padding()
        return bpe

    @cached_property
    def vocab_size(self) -> int:
        """The largest id + 1."""
        return max(self._bpe.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def eos(self) -> int:
        """The id that ends a document; 0 for our own."""
        return next(i for name in EOS_NAMES if (i := self._bpe.token_to_id(name)) is not None)

    @cached_property
    def checksum(self) -> str:
        """Hex sha256 of the canonical JSON."""
        return hashlib.sha256(self.json.encode("utf-8")).hexdigest()

    @cached_property
    def specials(self) -> dict[str, int]:
        """{name: id} of the special tokens: those that no text spells."""
        return {a["content"]: a["id"] for a in self._facts.added if a["special"]}

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text or a turn of a chat, by the names that published vocabularies give them."""
        ids = self.specials
        return (self.eos, *(ids[name] for name in (*EOS_NAMES, *END_OF_TURN)
                            if name in ids and ids[name] != self.eos))

    def piece(self, i: int) -> bytes:
        """The bytes of UTF-8 that id `i` adds to a text, half a character perhaps; a special token's name.

        A first word keeps the space that SentencePiece puts before it; an id without a token adds nothing.
        Raises CheckError: an unknown id.
        """
        check(0 <= i < self.vocab_size, f"ids must lie in [0, {self.vocab_size})", i,
              "use the tokenizer that the ids were made with")
        token = self._bpe.id_to_token(i) or ""
        return token.encode("utf-8") if i in self._added else self._text_of(token)

    def _text_of(self, token: str) -> bytes:
        """What an entry that is not added stands for."""
        if self._facts.byte_level:
            return token.translate(LETTERS).encode("latin-1", "replace")
        if _is_lone_byte(token):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode("utf-8")

    @cached_property
    def vocabulary(self) -> str:
        """Hex sha256 of what each id stands for: the same for any file of a vocabulary, whatever its kind.

        Taken of (id, length of its piece, piece), little-endian uint32 both, in the order of ids. Added
        tokens, special or not, are left out: models and files of one vocabulary differ in them.
        """
        names = self._bpe.get_vocab(with_added_tokens=False)
        pieces = [(i, self._text_of(token)) for token, i in names.items() if i not in self._added]
        pieces.sort()
        head = struct.Struct("<II").pack
        return hashlib.sha256(b"".join([head(i, len(p)) + p for i, p in pieces])).hexdigest()

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(a["id"] for a in self._facts.added)

    @cached_property
    def _facts(self) -> Facts:
        record = json.loads(self.json)
        cut = json.dumps([record.get("pre_tokenizer"), record.get("decoder")])
        return Facts(record.get("added_tokens") or [], "ByteLevel" in cut)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 (V,): bytes of UTF-8 text that each id stands for; 0 for EOS and other names no text spells.

        Byte-level vocabularies write one character per byte. SentencePiece's (Llama 2) write text, a space as
        U+2581 and a lone byte as <0xHH>.
        """
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, i in self._bpe.get_vocab(with_added_tokens=True).items():
            text = 1 if _is_lone_byte(token) else len(token.replace("\u2581", " ").encode("utf-8"))
            sizes[i] = len(token) if self._facts.byte_level else text
        for added in self._facts.added:         # matched as they are, unless special
            sizes[added["id"]] = 0 if added["special"] else len(added["content"].encode("utf-8"))
        return sizes

    def encode(self, text: str) -> np.ndarray:
        """text -> int32 (T,), without EOS. Raises CheckError for a lone surrogate: UTF-8 cannot carry it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Each text -> int32 (T,); encoded in parallel. Raises as `encode`."""
        try:
            encodings = self._bpe.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as e:                  # of the library: TypeError for the text, or plain
            raise CheckError(f"a text must be Unicode that the tokenizer can encode; got {str(e)[:200]}; "
                             "remove lone surrogates, or use another tokenizer") from None
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Any) -> str:
        """ids (T,) -> text; EOS by its name, half a character as U+FFFD. Raises CheckError: an unknown id."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
        check(low >= 0 and high < self.vocab_size, f"ids must lie in [0, {self.vocab_size})",
              f"{low} to {high}", "use the tokenizer that the ids were made with")
        return self._bpe.decode(ids.tolist(), skip_special_tokens=False)

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all; the library, Hugging Face and `load` read it."""
        with whole_file(path) as f:
            f.write(self.json.encode("utf-8"))


def from_json(text: str, where: str = "the text given") -> Tokenizer:
    """The tokenizer that a tokenizer.json describes, ours or a published one; `where` names it in errors.

    Raises CheckError: not JSON, not a tokenizer, no EOS token, absurd ids, encoding by chance (dropout).
    >>> from_json(train_bpe(["abab"], 258).json).eos
    0
    """
    try:
        record = json.loads(text)
        tokenizer = Tokenizer(canonical(record))
        names = tokenizer._bpe.get_vocab(with_added_tokens=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:                  # the library raises plain Exception, and panics outside of it
        raise CheckError(f"{where} must be a tokenizer.json; got {str(e)[:200]}; {FIX}") from None
    check(any(name in names for name in EOS_NAMES), f"a tokenizer must have one of {', '.join(EOS_NAMES)}",
          f"none in {where}", FIX)
    check(tokenizer.vocab_size <= LARGEST, f"a tokenizer must have ids below {LARGEST}",
          f"{tokenizer.vocab_size - 1} in {where}", FIX)
    check(not record["model"].get("dropout"), "a tokenizer must encode the same text the same way",
          f"dropout {record['model'].get('dropout')} in {where}", "set its dropout to null")
    return tokenizer


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, or in a folder that holds one. Raises CheckError as `from_json`.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     train_bpe(["abab"], 258).save(f"{d}/tokenizer.json")
    ...     load(d).vocab_size
    258
    """
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        size = path.stat().st_size
        check(size <= LARGEST_FILE, f"a tokenizer.json must have at most {LARGEST_FILE} bytes",
              f"{size} in {path}", FIX)
        return from_json(path.read_bytes().decode("utf-8"), str(path))
    except OSError as e:
        raise unreadable(path, e, FIX) from None
    except UnicodeDecodeError as e:
        raise CheckError(f"{path} must be a tokenizer.json; got no UTF-8 at byte {e.start}; {FIX}") from None


def _is_lone_byte(token: str) -> bool:
    """<0xHH>: how SentencePiece writes a byte that is no whole character."""
    return len(token) == 6 and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token) is not None


def train_bpe(docs: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries: EOS, 256 bytes, then the most frequent pairs, merged.

    Deterministic: equal texts, in any order, give equal JSON. A small text may yield fewer than asked.
    Raises CheckError if vocab_size is not in [257, 2^20].
    >>> own = train_bpe(["abab"], vocab_size=258)               # one pair is merged: ab
    >>> own.encode("abc").tolist(), own.decode([257, 257])
    ([257, 67], 'abab')
    """
    check(SMALLEST <= vocab_size <= LARGEST, f"vocab_size must lie in [{SMALLEST}, {LARGEST}]", vocab_size,
          "256 bytes and EOS come first; 4096 suits a small corpus")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.encode_special_tokens = True
    bpe.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return Tokenizer(canonical(json.loads(bpe.to_str())))


def canonical(record: Any) -> str:
    """JSON with sorted keys and no spare white space: equal content, equal bytes.
    >>> canonical({"b": [1, 2], "a": None})
    '{"a":null,"b":[1,2]}'
    """
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def encode_documents(docs: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """For each document, in order: (ids int32 (T,), its bytes of UTF-8). Holds about BATCH characters.
    >>> [(ids.tolist(), n_bytes) for ids, n_bytes in encode_documents(["ab", "é"], train_bpe(["abab"], 258))]
    [([257], 2), ([128, 103], 2)]
    """
    batch: list[str] = []
    size = 0
    for text in docs:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield from _encoded(batch, tokenizer)
            batch, size = [], 0
    yield from _encoded(batch, tokenizer)


def _encoded(batch: list[str], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    for text, ids in zip(batch, tokenizer.encode_batch(batch)):
        yield ids, len(text.encode("utf-8"))
