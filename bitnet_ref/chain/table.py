"""A table of chains: 2 to 8 tokens each, at most 256 of them, so that one byte names one.

A file of strangers: its size is checked before it is read, each number before it is used. It names the
vocabulary whose ids it holds, and a table of another is refused: its ids would be other words. As a chain
only ever makes a guess, no table can change a text (docs/speculative.md).
Read after: chain. Read next: chain/count.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable, whole_file
from bitnet_ref.data.tokenizer import Tokenizer

FORMAT, VERSION = "bitnet_ref.chains", 1
CHAINS = "chains.json"           # of a run, beside its tokenizer.json
SHORTEST, LONGEST = 2, 8         # tokens of a chain
MOST = 256                       # chains of a table
LARGEST = 50_000                 # bytes of its file
NAME = 1000                      # characters that name its corpus
FIX = "make it with python -m bitnet_ref.chain mine"


class Chain(NamedTuple):
    """Tokens in a row. `confidence`, one fewer: how likely each is after those before it in the chain.

    `times`: how often it stands in the corpus; `covers`: tokens of the corpus that it would have drafted and
    that no earlier chain of the table would have.
    """

    ids: tuple[int, ...]
    times: int
    covers: int
    confidence: tuple[float, ...]


class Table(NamedTuple):
    """Chains in the order in which they were chosen, and where they come from.

    `vocabulary`: the checksum Tokenizer.vocabulary, the same for all files of one vocabulary.
    """

    vocabulary: str
    vocab_size: int              # ids lie below it
    corpus: str
    tokens: int                  # of the part of the corpus in which `covers` is counted
    chains: tuple[Chain, ...]


def write_table(path: str | Path, table: Table) -> None:
    """Write JSON, a line for each chain; whole or not at all. Raises CheckError where the disk refuses.
    >>> import tempfile; folder = tempfile.TemporaryDirectory(); file = Path(folder.name) / CHAINS
    >>> table = Table("0" * 64, 99, "a corpus", 50, (Chain((4, 5), 10, 10, (0.5,)),))
    >>> write_table(file, table); read_table(file) == table
    True
    """
    head = {"format": FORMAT, "version": VERSION, **table._asdict()}
    del head["chains"]
    rows = ",\n".join("  " + json.dumps(c._asdict(), separators=(",", ":")) for c in table.chains)
    text = json.dumps(head, indent=1)[:-2] + f',\n "chains": [\n{rows}\n ]\n}}\n'
    check(len(text) <= LARGEST, f"a table of chains must have at most {LARGEST} bytes", len(text),
          "mine one of fewer chains, with --size")
    with whole_file(path) as file:
        file.write(text.encode("ascii"))


def read_table(path: str | Path, tokenizer: Tokenizer | None = None) -> Table:
    """The table in a file; of `tokenizer`, where one is given.

    Raises CheckError: no file, too large, not JSON, not of this version, a value out of range, ids of another
    vocabulary.
    >>> table = read_table(Path(__file__).with_name("tables") / "gpt2.json")
    >>> table.vocab_size, len(table.chains)
    (49963, 256)
    """
    try:
        table = _table(json.loads(_text(path)), str(path))
    except OSError as e:
        raise unreadable(path, e, FIX) from None
    except (ValueError, RecursionError) as e:
        if isinstance(e, CheckError):
            raise
        raise CheckError(f"{path} must be a table of chains as JSON; got {str(e)[:100]}; {FIX}") from None
    if tokenizer is not None:
        check(table.vocabulary == tokenizer.vocabulary, f"the chains in {path} must be of the model's "
              f"vocabulary, {tokenizer.vocabulary[:12]}", table.vocabulary[:12], FIX)
        largest = max((i for c in table.chains for i in c.ids), default=0)
        check(largest < tokenizer.vocab_size, f"the chains in {path} must have ids below "
              f"{tokenizer.vocab_size}", largest, FIX)
    return table


def _text(path: str | Path) -> str:
    """What is in the file: one that does not end, as a pipe or a device, is not opened."""
    check(stat.S_ISREG(os.stat(path).st_mode), f"{path} must be a readable file", "a folder, pipe or device",
          FIX)
    with open(path, "rb") as file:
        held = file.read(LARGEST + 1)
    check(len(held) <= LARGEST, f"a table of chains must have at most {LARGEST} bytes", f"more in {path}",
          FIX)
    return held.decode("ascii")


def _table(record: Any, where: str) -> Table:
    check(isinstance(record, dict) and record.get("format") == FORMAT, f"{where} must hold a {FORMAT}",
          "something else", FIX)
    version = record.get("version")
    check(type(version) is int and version == VERSION, f"{where} must be of version {VERSION}",
          repr(version)[:50], "update bitnet_ref, or mine the table again")
    for name, kind in (("vocabulary", str), ("vocab_size", int), ("corpus", str), ("tokens", int),
                       ("chains", list)):
        check(type(record.get(name)) is kind, f"{name} of {where} must be of type {kind.__name__}",
              repr(record.get(name))[:50], FIX)
    check(re.fullmatch("[0-9a-f]{64}", record["vocabulary"]) is not None,
          f"the vocabulary of {where} must be a sha256", repr(record["vocabulary"])[:80], FIX)
    check(len(record["corpus"]) <= NAME and record["corpus"].isascii() and record["corpus"].isprintable(),
          f"the corpus of {where} must be at most {NAME} printable ASCII characters",
          ascii(record["corpus"])[:80], FIX)
    vocab, tokens, rows = record["vocab_size"], record["tokens"], record["chains"]
    check(0 < vocab <= 1 << 32 and 0 <= tokens < 1 << 48,
          f"the vocab_size and tokens of {where} must be possible",
          f"{vocab} and {tokens}"[:80], FIX)
    check(len(rows) <= MOST, f"a table must have at most {MOST} chains", f"{len(rows)} in {where}", FIX)
    chains = tuple(_chain(row, vocab, tokens, f"chain {n} of {where}") for n, row in enumerate(rows))
    check(len({c.ids for c in chains}) == len(chains), f"each chain of {where} must be there once",
          "one that is there twice", FIX)
    return Table(record["vocabulary"], vocab, record["corpus"], tokens, chains)


def _chain(row: Any, vocab: int, tokens: int, where: str) -> Chain:
    fields = set(Chain._fields)
    check(isinstance(row, dict) and set(row) == fields, f"{where} must have {', '.join(Chain._fields)}",
          repr(row)[:80], FIX)
    ids, confidence = row["ids"], row["confidence"]
    check(isinstance(ids, list) and SHORTEST <= len(ids) <= LONGEST,
          f"{where} must have {SHORTEST} to {LONGEST} tokens", repr(ids)[:80], FIX)
    check(all(type(i) is int and 0 <= i < vocab for i in ids), f"ids of {where} must lie in 0..{vocab - 1}",
          repr(ids)[:80], FIX)
    check(isinstance(confidence, list) and len(confidence) == len(ids) - 1
          and all(type(p) in (int, float) and 0 < p <= 1 for p in confidence),
          f"{where} must have a confidence in (0, 1] for each token but the first", repr(confidence)[:80],
          FIX)
    check(all(type(row[name]) is int and 0 <= row[name] < 1 << 48 for name in ("times", "covers")),
          f"times and covers of {where} must be integers of 0 or more", repr(row)[:80], FIX)
    check(row["covers"] <= tokens, f"{where} must cover no more than there is", row["covers"], FIX)
    return Chain(tuple(ids), row["times"], row["covers"], tuple(map(float, confidence)))
