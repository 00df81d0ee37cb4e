"""Documents from a name or a path, as a stream: no file is ever held whole.

`documents` is the only way by which text enters. A document is the unit of the train/validation split and is
followed by an EOS token. A .txt file is cut at `<|endoftext|>` lines if it has them, else at WikiText titles,
else into groups of paragraphs; the documents joined are the file again, marker lines apart (docs/data.md).
Read after: data/python_docs. Read next: data/split.
"""

import codecs
import glob
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NoReturn

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.data.download import NAMED, named_files
from bitnet_ref.data.python_docs import python_docs

CHUNK = 1 << 20                 # bytes per read
LONGEST = 1 << 18               # characters: a longer document goes on as several, so that memory stays flat
GROUP = 4096                    # characters from which on a blank line ends a document of plain paragraphs
LONGEST_LINE = 1 << 24          # bytes of one line of .jsonl
MARKER = "<|endoftext|>"
TITLE = re.compile(r" = (?!=).* = \s*")
CORPORA = ("python-docs", *NAMED)


def documents(corpus: str) -> Iterator[str]:
    """The documents of a named corpus, or of a file, folder or glob of .txt and .jsonl, in a stable order.

    Of a corpus with official parts: the training part. Names win over paths: a folder wikitext-2 is
    ./wikitext-2. Documents of nothing but white space are left out. Raises CheckError, at once: unknown name,
    no such file; while reading: bytes that are not UTF-8 text, a bad line of .jsonl, no text at all.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.jsonl").write_text('{"text": "one"}')
    ...     list(documents(d))
    ['one']
    """
    if corpus == "python-docs":
        return iter(python_docs())
    return _with_text(corpus, corpus_files(corpus))


def validation_documents(corpus: str) -> Iterator[str] | None:
    """The official validation documents of a named corpus, or None if it has no such part.
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from bitnet_ref.data.download import File
    >>> part = {"valid": File("a.txt", 9, None)}
    >>> with TemporaryDirectory() as d, patch.dict("os.environ", BITNET_REF_DATA=d):
    ...     Path(d, "x").mkdir()
    ...     n = Path(d, "x", "a.txt").write_text("Once.")
    ...     with patch.dict(NAMED, x=part):
    ...         list(validation_documents("x")), validation_documents("python-docs")
    (['Once.'], None)
    """
    return part_documents(corpus, "valid") if "valid" in NAMED.get(corpus, ()) else None


def part_documents(corpus: str, part: str) -> Iterator[str]:
    """The documents of one official part (train, valid, test) of a named corpus. Raises CheckError.
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> with TemporaryDirectory() as d, patch.dict("os.environ", BITNET_REF_DATA=d):
    ...     Path(d, "tinystories").mkdir()
    ...     n = Path(d, "tinystories", "a.txt").write_text("Once.")
    ...     list(part_documents("tinystories", "train"))
    ['Once.']
    """
    return _with_text(corpus, named_files(corpus, part))


def corpus_files(corpus: str) -> list[Path]:
    """The files behind `corpus`, sorted; those of a name are downloaded if need be. Raises CheckError.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     for name in ("b.txt", "a.jsonl", "c.py"):
    ...         Path(d, name).touch()
    ...     [path.name for path in corpus_files(d)]
    ['a.jsonl', 'b.txt']
    """
    if corpus in NAMED:
        return named_files(corpus)
    check(corpus != "", "a corpus must have a name", "none", 'give "." for the folder you are in')
    path = Path(corpus)
    try:
        if path.is_dir():
            files = _files_below(path)
            check(bool(files), "a corpus folder must hold .txt or .jsonl files", corpus, "put text there")
            return files
        files = [path] if path.is_file() else [Path(p) for p in glob.glob(corpus, recursive=True)]
        files = sorted(p for p in files if p.is_file())
    except OSError as e:
        raise unreadable(corpus, e) from None
    check(bool(files), f"a corpus must be one of {', '.join(CORPORA)}, or a file, folder or glob that exists",
          repr(corpus), "correct the name or the path")
    return files


def _files_below(folder: Path) -> list[Path]:
    """The .txt and .jsonl files below a folder, sorted. What cannot be listed is refused, never skipped."""
    def refuse(e: OSError) -> NoReturn:
        raise CheckError(f"every folder of a corpus must be readable; got {e.strerror or e} for "
                         f"{e.filename}; correct its rights or move it away") from None

    found = (Path(where, name) for where, _, names in os.walk(folder, onerror=refuse) for name in names)
    return sorted(p for p in found if p.suffix in (".txt", ".jsonl") and stat.S_ISREG(p.stat().st_mode))


def _with_text(corpus: str, files: list[Path]) -> Iterator[str]:
    """The documents that are more than white space; after the last, CheckError if there was none."""
    any_text = False
    for path in files:
        for text in (jsonl_documents if path.suffix == ".jsonl" else text_documents)(path):
            if text.strip():
                any_text = True
                yield text
    check(any_text, "a corpus must hold text", f"none in {corpus}", "give files with text in them")


# ---- plain text ----

def text_documents(path: Path) -> Iterator[str]:
    r"""The documents of a UTF-8 text file, none longer than LONGEST characters. Raises as `text_chunks`.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("one\n<|endoftext|>\ntwo\n")
    ...     list(text_documents(Path(d, "a.txt")))
    ['one\n', 'two\n']
    """
    chunks = text_chunks(path)
    head = next(chunks, "")
    document: list[str] = []
    kind, before, size = _cut_by(head), "", 0
    for line, after in pairwise(chain(_lines(chain([head], chunks)), [""])):
        starts = _starts_document(kind, before, line, after, size)
        if size and (starts or size + len(line) > LONGEST):
            yield "".join(document)
            document, size = [], 0
        if not (starts and kind == "marker"):
            document.append(line)
            size += len(line)
        before = line
    if size:
        yield "".join(document)


def _cut_by(head: str) -> str:
    """How a file is cut, judged by its first CHUNK: "marker", "title" or "paragraph"."""
    if any(line.strip() == MARKER for line in head.split("\n")):
        return "marker"
    first = next((line for line in head.split("\n") if line.strip()), "")
    return "title" if TITLE.fullmatch(first) else "paragraph"


def _starts_document(kind: str, before: str, line: str, after: str, size: int) -> bool:
    """Whether a document starts at `line`, between `before` and `after`, `size` characters into the last."""
    if kind == "marker":
        return line.strip() == MARKER
    if kind == "title":         # tables in WikiText have lines like a title too, but not between blank lines
        return bool(TITLE.fullmatch(line)) and not before.strip() and not after.strip()
    return size >= GROUP and not before.strip() and bool(line.strip())


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """The text cut after each newline, and after each LONGEST characters of a line that is longer."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        for line in whole:
            yield from _pieces(line + "\n")
        while len(rest) > LONGEST:
            yield rest[:LONGEST]
            rest = rest[LONGEST:]
    if rest:
        yield rest


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most LONGEST characters."""
    return (text[i:i + LONGEST] for i in range(0, len(text), LONGEST))


def text_chunks(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file in pieces of about CHUNK bytes, without the byte order mark of some editors.

    Raises CheckError with the byte offset of the first NUL or invalid byte, or if the file cannot be read.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("é", encoding="utf-8-sig")
    ...     list(text_chunks(Path(d, "a.txt")))
    ['é', '']
    """
    rest, offset, chunk = b"", 0, b"?"          # bytes not yet decoded, and where they stand in the file
    try:
        with open(path, "rb") as file:
            while chunk:
                chunk = file.read(CHUNK)
                if offset == 0:
                    _check_utf8(chunk, path)
                nul = chunk.find(0)
                check(nul < 0, "a corpus must be text, without NUL bytes",
                      f"one at byte {offset + len(rest) + nul} of {path}", "leave that file out")
                text, used = codecs.utf_8_decode(rest + chunk, "strict", not chunk)
                yield text[1:] if offset == 0 and text.startswith("\ufeff") else text
                rest, offset = (rest + chunk)[used:], offset + used
    except UnicodeDecodeError as e:
        raise CheckError(f"a corpus must be UTF-8 text; got {e.object[e.start]:#04x} at byte "
                         f"{offset + e.start} of {path}; convert the file to UTF-8 or leave it out") from None
    except OSError as e:
        raise unreadable(path, e) from None


def _check_utf8(start: bytes, path: Path) -> None:
    """Raise CheckError for the byte order mark of UTF-16, which some editors write."""
    check(not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)), "a corpus must be UTF-8 text",
          f"UTF-16 in {path}", "convert it to UTF-8")


# ---- jsonl ----

def jsonl_documents(path: Path) -> Iterator[str]:
    """The `text` of each line of a .jsonl file, long ones in pieces. Raises CheckError naming the line.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.jsonl").write_text('{"text": "one", "source": "here"}')
    ...     list(jsonl_documents(Path(d, "a.jsonl")))
    ['one']
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
                if number == 1:
                    _check_utf8(line, path)
                if line.strip():
                    yield from _pieces(_text_field(line, f"line {number} of {path}"))
    except OSError as e:
        raise unreadable(path, e) from None


def _text_field(line: bytes, where: str) -> str:
    """The string under "text" in a line of JSON; `where` names the line in errors."""
    fix = "correct or remove the line"
    check(len(line) <= LONGEST_LINE, f"a line of .jsonl must have at most {LONGEST_LINE} bytes",
          f"more in {where}", "split the document")
    try:
        record = json.loads(line.decode("utf-8-sig"))
        text: Any = record.get("text") if isinstance(record, dict) else None
        if isinstance(text, str):
            text.encode("utf-8")                # JSON can spell lone surrogates, UTF-8 cannot
    except (ValueError, RecursionError) as e:
        raise CheckError(f"a line of .jsonl must be valid JSON in UTF-8; got {e} in {where}; {fix}") from None
    check(isinstance(text, str), "a line of .jsonl must be an object with a string under \"text\"",
          f"another in {where}", fix)
    check("\0" not in text, "a line of .jsonl must hold text, without NUL characters", f"one in {where}", fix)
    return text
