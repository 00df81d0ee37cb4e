"""Token shards: a header of 1,024 bytes that describes itself, then the tokens, ready to be memory-mapped.

A stranger reads one with json and numpy.memmap; docs/data.md has the specification. Opening maps the file
without reading it, after the header has been checked against itself and against the size of the file. The
tokens are EOS doc EOS doc ... EOS: the stream starts with EOS so that every byte of text is predicted.
Read after: data/tokenizer_files. Read next: data/batches.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref.checks import check
from bitnet_ref.data.atomic import unreadable, whole_file

HEADER = 1024                   # bytes, so that the tokens start aligned
FORMAT, VERSION = "bitnet_ref.tokens", 1
NARROW = 1 << 16                # entries that uint16 can number
BLOCK = 1 << 20                 # tokens per write, and per read of a verification
LONG = 1 << 28                  # bytes from which on a verification shows a bar
FIX = "make it with python -m bitnet_ref.data"


class Header(NamedTuple):
    """The header's fields, in the order of its JSON."""

    format: str
    version: int
    dtype: str                  # "<u2" if vocab_size <= 65,536, else "<u4": little endian, unsigned
    tokens: int                 # of the payload, EOS included
    documents: int
    text_bytes: int             # of UTF-8, of the text that the tokens spell (EOS has none)
    vocab_size: int
    eos: int
    max_token: int              # largest id of the payload
    tokenizer_sha256: str
    payload_sha256: str


class Shard(NamedTuple):
    """An open shard. `tokens` is a read-only memory map, (header.tokens,) of uint16 or uint32.

    `stamp` is what `_stamp_of` said of the file when it was opened.
    """

    path: Path
    header: Header
    tokens: np.ndarray
    stamp: tuple[int, ...]


def write_shard(path: str | Path, documents: Iterable[tuple[np.ndarray, int]], vocab_size: int, eos: int,
                tokenizer_sha256: str) -> Shard:
    """Stream (ids, bytes of text) of each document to `path`, EOS before, between and after; then open it.

    The file appears whole or not at all. Raises CheckError: an id outside the vocabulary, a refusing disk.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     write_shard(f"{d}/a.bin", [(np.array([3, 1]), 2)], 4, 0, "0" * 64).tokens.tolist()
    [0, 3, 1, 0]
    """
    end, digest = np.array([eos]), hashlib.sha256()
    waiting, size = [end], 1
    counts = {"tokens": 0, "documents": 0, "text_bytes": 0, "max_token": eos}
    dtype = "<u2" if vocab_size <= NARROW else "<u4"
    with whole_file(path) as file:
        file.write(b" " * HEADER)
        for ids, text_bytes in documents:
            waiting, size = [*waiting, ids, end], size + len(ids) + 1
            counts["documents"] += 1
            counts["text_bytes"] += text_bytes
            if size >= BLOCK:
                _append(file, np.concatenate(waiting), dtype, vocab_size, counts, digest)
                waiting, size = [end[:0]], 0
        _append(file, np.concatenate(waiting), dtype, vocab_size, counts, digest)
        header = Header(FORMAT, VERSION, dtype, vocab_size=vocab_size, eos=eos, **counts,
                        tokenizer_sha256=tokenizer_sha256, payload_sha256=digest.hexdigest())
        file.seek(0)
        file.write((json.dumps(header._asdict()).ljust(HEADER - 1) + "\n").encode("ascii"))
    return open_shard(path)


def _append(file: BinaryIO, ids: np.ndarray, dtype: str, vocab_size: int, counts: dict[str, int],
            digest: Any) -> None:
    """Write `ids`; brings counts["tokens"], counts["max_token"] and `digest` up to date."""
    low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    check(low >= 0 and high < vocab_size, f"tokens must lie in [0, {vocab_size})", f"{low} to {high}",
          "encode with the tokenizer that vocab_size belongs to")
    data = ids.astype(dtype).tobytes()
    digest.update(data)
    file.write(data)
    counts["tokens"] += len(ids)
    counts["max_token"] = max(counts["max_token"], high)


def open_shard(path: str | Path, verify: bool = False, progress: bool = False) -> Shard:
    """Map the shard at `path`; `verify` also reads it all and compares checksum and largest token.

    Neither takes memory by the size of the file. `progress`: a bar on stderr where verifying takes long.
    Raises CheckError: not a shard, another version, a header that contradicts itself or the file, damage.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     path = write_shard(f"{d}/a.bin", [(np.array([3, 1]), 2)], 4, 0, "0" * 64).path
    ...     open_shard(path, verify=True).header.tokens
    4
    """
    path = Path(path)
    try:
        with open(path, "rb") as f:
            raw = f.read(HEADER)
            stamp = _stamp_of(os.fstat(f.fileno()))
            header = _read_header(raw, str(path))
            stated = HEADER + header.tokens * np.dtype(header.dtype).itemsize
            check(stamp[0] == stated, f"{path} must have the {stated} bytes that its header states", stamp[0],
                  "the file was cut or extended; write it again")
            shard = Shard(path, header, np.memmap(f, header.dtype, "r", HEADER, (header.tokens,)), stamp)
    except OSError as e:
        raise unreadable(path, e) from None
    first, last = int(shard.tokens[0]), int(shard.tokens[-1])
    check(first == last == header.eos, f"{path} must start and end with EOS, {header.eos}",
          f"{first} and {last}", FIX)
    if verify:
        _verify(shard, progress)
    return shard


def _stamp_of(stat: os.stat_result) -> tuple[int, ...]:
    """What changes with a file: bytes; time of its content and of its entry, of which no program can put
    back the second; device and inode."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino


def unchanged(shard: Shard) -> None:
    """Raise CheckError unless the file of an open shard is still what it was when it was opened.

    It asks the system about the file and reads nothing: some microseconds, so a run may ask at every step. A
    file that was cut short must be found before it is read, which would end the process (SIGBUS).
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     shard = write_shard(f"{d}/a.bin", [(np.array([3, 1]), 2)], 4, 0, "0" * 64)
    ...     unchanged(shard)
    ...     shard.path.unlink()
    ...     unchanged(shard)                                    # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: ...a.bin must stay as it is while a run reads it; got No such file ...
    """
    try:
        now = _stamp_of(os.stat(shard.path))
    except OSError as e:
        now, what = (), e.strerror or str(e)
    if now:
        what = ("" if now == shard.stamp else "another file in its place" if now[3:] != shard.stamp[3:]
                else f"{now[0]:,} bytes, changed since it was opened with {shard.stamp[0]:,}")
    check(not what, f"{shard.path} must stay as it is while a run reads it", what,
          "put the file back as it was, then go on from the last checkpoint with --resume")


def _read_header(raw: bytes, where: str) -> Header:
    """The fields in the first HEADER bytes of a file, each of its type and in agreement with the others.

    `where` names the file in errors. Raises CheckError for whatever is wrong with them.
    """
    check(len(raw) == HEADER, f"a shard must begin with a header of {HEADER} bytes", f"{len(raw)} in {where}",
          FIX)
    try:
        record = json.loads(raw.decode("ascii"))
    except (ValueError, RecursionError):
        record = None
    check(isinstance(record, dict) and record.get("format") == FORMAT,
          f"a shard must begin with the JSON header of {FORMAT}", f"{raw[:24]!r} in {where}", FIX)
    check(record.get("version") == VERSION, f"a shard must be of version {VERSION}",
          f"{record.get('version')!r} in {where}", "update bitnet_ref, or make the shard again")
    for name, kind in Header.__annotations__.items():
        check(type(record.get(name)) is kind, f"{name} in a shard's header must be of type {kind.__name__}",
              f"{record.get(name)!r} in {where}", FIX)
    header = Header(**{name: record[name] for name in Header._fields})
    for rule, holds in _rules(header).items():
        check(holds, f"a shard's header must have {rule}", f"another in {where}", FIX)
    return header


def _rules(h: Header) -> dict[str, bool]:
    """What the fields of a header owe each other: {rule: whether it holds}."""
    sums = (h.tokenizer_sha256, h.payload_sha256)
    dtype = "<u2" if h.vocab_size <= NARROW else "<u4"
    return {
        "1 <= vocab_size <= 2^32": 1 <= h.vocab_size <= 1 << 32,
        f"dtype <u2 up to {NARROW} entries, else <u4": h.dtype == dtype,
        "1 <= tokens < 2^48": 1 <= h.tokens < 1 << 48,
        "0 <= documents < tokens": 0 <= h.documents < h.tokens,
        "0 <= text_bytes < 2^56": 0 <= h.text_bytes < 1 << 56,
        "0 <= eos <= max_token < vocab_size": 0 <= h.eos <= h.max_token < h.vocab_size,
        "checksums of 64 hex digits": all(len(s) == 64 and set(s) <= set("0123456789abcdef") for s in sums),
    }


def _verify(shard: Shard, progress: bool) -> None:
    """Reads the file, not the map, whose pages would count as memory of the process."""
    digest, largest, width = hashlib.sha256(), 0, np.dtype(shard.header.dtype).itemsize
    bytes_ = len(shard.tokens) * width
    with (open(shard.path, "rb") as file,
          tqdm(desc=f"verifying {shard.path.name}", total=bytes_, unit="B", unit_scale=True, leave=False,
               disable=not progress or bytes_ < LONG) as bar):
        file.seek(HEADER)
        while data := file.read(BLOCK * width):
            digest.update(data)
            largest = max(largest, int(np.frombuffer(data, shard.header.dtype).max()))
            bar.update(len(data))
    found, stated = digest.hexdigest(), shard.header.payload_sha256
    fix = "the file is damaged: write it again"
    check(found == stated, f"the tokens of {shard.path} must have sha256 {stated}", found, fix)
    most = shard.header.max_token
    check(largest == most, f"the largest token of {shard.path} must be {most}", largest, fix)
