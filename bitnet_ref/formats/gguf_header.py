"""GGUF files of strangers: the settings and where each tensor lies, bounded and checked before all else.

A GGUF is 24 bytes, then settings (names with typed values), then one entry a tensor, then aligned data; all
counts and lengths are the writer's claims. The public reader maps what they say and does not know the types
of the microsoft/BitNet fork, so the header is read here. Nothing in it is larger than LARGEST_HEADER.
Read after: formats/gguf_names. Read next: formats/gguf_about.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.formats.gguf_names import TYPES

MAGIC, VERSIONS = b"GGUF", (2, 3)                          # 1 had other lengths, and is of 2023
ALIGNMENT = 32                                             # bytes, where general.alignment does not say
LARGEST_HEADER = 1 << 26             # bytes; those of the largest vocabularies have about 2^24
LARGEST_COUNT = 1 << 16              # settings, tensors
LARGEST_STRINGS = 1 << 20            # strings of one array; the largest published: 2^19 merges
LONGEST_NAME, MOST_AXES = 1 << 10, 4
STRING, ARRAY = 8, 9                                       # types of a value besides NUMBERS
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8",
           12: "<f8"}
AGAIN = "download the file again, or restore it from a copy"


class Stored(NamedTuple):
    """Where a tensor lies: bytes `begin` to `end` of `file`, of a name in TYPES, rows first (N, K)."""

    file: Path
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """`settings`: numbers, strings, arrays of numbers (NumPy) and lists of strings, by name."""

    file: Path
    settings: dict[str, Any]
    tensors: dict[str, Stored]


class _Cursor:
    """A place in the bytes of a header, which moves on as values are taken. Never past `end`."""

    def __init__(self, file: Path, data: Any) -> None:
        self.file, self.data, self.at, self.end = file, data, 0, min(len(data), LARGEST_HEADER)

    def skip(self, n_bytes: int, what: str) -> int:
        """The place before moving on by `n_bytes`."""
        if n_bytes > self.end - self.at:                   # asked half a million times: no message is made
            raise CheckError(f"the header of {self.file} must hold {what}; got {self.end - self.at} bytes "
                             f"instead of {n_bytes}; {AGAIN}")
        self.at += n_bytes
        return self.at - n_bytes

    def number(self, dtype: str, what: str) -> Any:
        """One number as a Python int, float or bool."""
        size = np.dtype(dtype).itemsize
        at = self.skip(size, what)
        return np.frombuffer(self.data[at:at + size], dtype)[0].item()

    def count(self, most: int, what: str) -> int:
        """A 64-bit count, bounded."""
        (n,) = struct.unpack_from("<Q", self.data, self.skip(8, what))
        check(n <= most, f"{what} in {self.file} must be at most {most}", n, AGAIN)
        return n

    def text(self, what: str, most: int = LARGEST_HEADER) -> str:
        """A length and so many bytes of UTF-8."""
        n = self.count(most, f"the length of {what}")
        at = self.skip(n, what)
        try:
            return str(self.data[at:at + n], "utf-8")
        except UnicodeDecodeError as e:
            raise CheckError(f"{what} in {self.file} must be UTF-8; got {e.reason} at byte {e.start}; "
                             f"{AGAIN}") from None

    def value(self, what: str) -> Any:
        """A type and a value of it."""
        kind = self.number("<u4", what)
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self.array(what)
        check(kind in NUMBERS, f"{what} in {self.file} must be of a known type of GGUF", kind, AGAIN)
        return self.number(NUMBERS[kind], what)

    def array(self, what: str) -> Any:
        """A type, a count and so many values. An array of arrays is refused: no setting of a model is one."""
        kind = self.number("<u4", what)
        if kind == STRING:
            return self.strings(what)
        check(kind in NUMBERS, f"{what} in {self.file} must be an array of numbers or strings", kind, AGAIN)
        dtype = np.dtype(NUMBERS[kind])
        n_bytes = dtype.itemsize * self.count(LARGEST_HEADER, f"the count of {what}")
        at = self.skip(n_bytes, what)
        return np.frombuffer(self.data[at:at + n_bytes], dtype)

    def strings(self, what: str) -> list[str]:
        """A count and so many strings."""
        made, length = [], struct.Struct("<Q").unpack_from
        try:
            for _ in range(self.count(LARGEST_STRINGS, f"the count of {what}")):
                (n,) = length(self.data, self.skip(8, what))
                at = self.skip(n, what)
                made.append(str(self.data[at:at + n], "utf-8"))
        except UnicodeDecodeError as e:
            raise CheckError(f"{what} in {self.file} must be UTF-8; got {e.reason} in item {len(made)}; "
                             f"{AGAIN}") from None
        return made


def is_gguf(path: str | Path) -> bool:
    """Whether `path` is a file that begins like one.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a").write_bytes(MAGIC)
    ...     is_gguf(f"{d}/a"), is_gguf(d)
    (True, False)
    """
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as f:
            return f.read(4) == MAGIC
    except OSError:
        return False


def read_header(file: str | Path) -> Header:
    """The header of a GGUF, and the certainty that each tensor has its bytes, aligned, one after another.

    Raises CheckError: unreadable, another format, version or byte order, truncated, a name twice, an unknown
    type, an absurd length, count or shape, tensors that overlap or leave the file.
    Source: ggml-org/ggml, its page on GGUF, and ggml/include/gguf.h.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:                         # no tensor, one setting: a = 7 as a uint32
    ...     n = Path(d, "a").write_bytes(struct.pack("<4sIQQQcII", MAGIC, 3, 0, 1, 1, b"a", 4, 7) + bytes(19))
    ...     read_header(f"{d}/a").settings
    {'a': 7}
    """
    file = Path(file)
    try:
        size = file.stat().st_size
        check(size >= 24, f"{file} must begin with the 24 bytes of a GGUF", f"{size} bytes", AGAIN)
        with open(file, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(file, data), size)
    except OSError as e:
        raise unreadable(file, e) from None


def _parse(c: _Cursor, size: int) -> Header:
    magic = bytes(c.data[c.skip(4, "its magic"):4])
    check(magic == MAGIC, f"{c.file} must begin with GGUF", repr(magic), "give a GGUF file")
    version = c.number("<u4", "its version")
    check(version in VERSIONS, f"{c.file} must be a little-endian GGUF of version 2 or 3", version,
          "convert it with a release of llama.cpp")
    n_tensors = c.count(LARGEST_COUNT, "the count of tensors")
    n_settings = c.count(LARGEST_COUNT, "the count of settings")
    settings: dict[str, Any] = {}
    for i in range(n_settings):
        name = c.text(f"name {i} of a setting", LONGEST_NAME)
        check(name not in settings, f"a setting of {c.file} must be there once", f"{name[:100]!r} twice",
              AGAIN)
        settings[name] = c.value(name[:100])
    align = settings.get("general.alignment", ALIGNMENT)
    check(type(align) is int and align in (1 << n for n in range(3, 17)),
          f"general.alignment of {c.file} must be a power of 2 from 8 to 65,536", repr(align)[:50], AGAIN)
    claimed: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for i in range(n_tensors):
        name = c.text(f"name {i} of a tensor", LONGEST_NAME)
        check(name not in claimed, f"a tensor of {c.file} must be there once", f"{name[:100]!r} twice", AGAIN)
        claimed[name] = _entry(c, name[:100])
    return Header(c.file, settings, _placed(c.file, claimed, _padded(c.at, align), align, size))


def _entry(c: _Cursor, name: str) -> tuple[str, tuple[int, ...], int, int]:
    """(kind, shape, offset, bytes) of one entry, checked by itself."""
    n_axes = c.number("<u4", name)
    check(1 <= n_axes <= MOST_AXES, f"{name} in {c.file} must have 1 to {MOST_AXES} axes", n_axes, AGAIN)
    shape = tuple(c.number("<u8", name) for _ in range(n_axes))[::-1]           # a GGUF has columns first
    check(min(shape) > 0 and math.prod(shape) < 1 << 62, f"{name} in {c.file} must have a sane shape", shape,
          AGAIN)
    number = c.number("<u4", name)
    kinds = {t.number: kind for kind, t in TYPES.items()}
    check(number in kinds, f"{name} in {c.file} must be of a type of {', '.join(TYPES)}", f"type {number}",
          "convert the model to one of these, best from its original")
    kind = kinds[number]
    t = TYPES[kind]
    check(shape[-1] % t.block == 0, f"{name} in {c.file}, {kind}, must have rows of a multiple of {t.block}",
          shape[-1], AGAIN)
    return kind, shape, c.number("<u8", name), math.prod(shape) // t.block * t.n_bytes + t.tail


def _placed(file: Path, claimed: dict[str, tuple[str, tuple[int, ...], int, int]], start: int, align: int,
            size: int) -> dict[str, Stored]:
    """The tensors in the order of the header; each must begin where the one before it ends, aligned."""
    due = 0
    for name, (_, _, offset, n_bytes) in sorted(claimed.items(), key=lambda item: item[1][2]):
        check(offset == due, f"the tensors of {file} must follow each other without overlap or hole",
              f"{name[:100]} at {offset}, not {due}", AGAIN)
        check(start + due + n_bytes <= size, f"{file} must hold {name[:100]}",
              f"{size:,} bytes instead of {start + due + n_bytes:,}", AGAIN)
        due = _padded(due + n_bytes, align)
    check(size <= start + due, f"{file} must end with its last tensor", f"{size - start - due:,} bytes more",
          AGAIN)
    return {name: Stored(file, kind, shape, start + offset, start + offset + n_bytes)
            for name, (kind, shape, offset, n_bytes) in claimed.items()}


def _padded(n: int, align: int) -> int:
    return -(-n // align) * align


def raw(t: Stored, begin: int = 0, end: int | None = None) -> np.ndarray:
    """Rows `begin` to `end` (all) as they are stored: uint8 (rows, bytes of a row).

    Read, not mapped: what a map has touched stays in memory beside the copy. A tensor of one axis is one row,
    and so is I2_S, whose layouts may cross rows. Raises CheckError if the file is too short by now.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a").write_bytes(np.float32([[1, 2], [3, 4]]).tobytes())
    ...     raw(Stored(Path(d, "a"), "F32", (2, 2), 0, 16), begin=1).view("<f4").tolist()
    [[3.0, 4.0]]
    """
    n_rows = 1 if t.kind == "I2_S" else math.prod(t.shape[:-1])
    n_bytes, end = (t.end - t.begin) // n_rows, n_rows if end is None else end
    wanted = (end - begin) * n_bytes
    try:
        held = np.fromfile(t.file, np.uint8, wanted, offset=t.begin + begin * n_bytes)
    except OSError as e:
        raise unreadable(t.file, e) from None
    check(len(held) == wanted, f"{t.file} must be as long as when it was opened",
          f"{len(held):,} bytes of {wanted:,}", AGAIN)
    return held.reshape(end - begin, n_bytes)
