"""safetensors files of strangers: the header first, checked before anything is allocated, then blocks.

The library refuses a damaged file as a whole, without the name of what is wrong, and NumPy knows bfloat16
only by way of ml_dtypes. A check of a 5 GB download needs rows by memory map, and to look into half a file,
so the 8 bytes and the JSON of the header are read here. A map lasts as long as its array: copy what you keep.
Read after: formats/source. Read next: formats/census.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable

DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
FLOATS = ("F64", "F32", "F16", "BF16")
LARGEST_HEADER = 1 << 24             # bytes; the largest published ones have about 2^17
LARGEST_JSON = 1 << 26               # bytes of an index of shards
BLOCK = 1 << 22                      # bytes read at a time
METADATA = "__metadata__"            # the one name in a header that is no tensor's
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "download the file again, or restore it from a copy"


class Stored(NamedTuple):
    """Where a tensor lies: bytes `begin` to `end` of `file`. Little-endian, rows first."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def here(self) -> bool:
        """Whether the file is long enough to hold it."""
        return self.end <= self.file.stat().st_size


class Header(NamedTuple):
    """What a file says of itself. `metadata`: what stands there, unchecked; `text`: the bytes of it all."""

    tensors: dict[str, Stored]
    metadata: Any
    text: bytes


def shards(folder: Path) -> dict[Path, list[str] | None]:
    """The weight files of a folder, each with the names that the index promises in it (None: no index).

    Raises CheckError: no weights, a damaged index, a shard that is missing or lies outside the folder.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     [(file.name, names) for file, names in shards(folder).items()]
    [('model.safetensors', None)]
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return {_inside(folder, SINGLE): None}
    found = index.is_symlink() or index.is_file()
    check(found, f"{folder} must hold {SINGLE} or {INDEX}", "neither", "give a Hugging Face folder")
    record = read_json(_inside(folder, INDEX))
    names: Any = record.get("weight_map") if isinstance(record, dict) else None
    check(isinstance(names, dict) and len(names) > 0 and all(isinstance(v, str) for v in names.values()),
          f"{index} must have a weight_map of tensor names to files", type(names).__name__, AGAIN)
    files: dict[Path, list[str] | None] = {}
    for name, shard in names.items():
        files.setdefault(_inside(folder, shard), []).append(name)           # type: ignore[union-attr]
    return files


def _inside(folder: Path, name: str) -> Path:
    """The file `name` directly in `folder`. Neither a path nor a link may lead out of it, save to a blob.

    The hub's cache keeps files as links from snapshots/<commit>/ to its own blobs/, two folders up.
    """
    check(Path(name).name == name and name not in ("", "..") and not set(name) & set("\\:\0"),
          "a shard must be a plain file name in its folder", repr(name[:100]), "do not use this checkpoint")
    file = folder / name
    try:
        real, home = file.resolve(strict=True), folder.resolve()
    except (OSError, RuntimeError):
        raise CheckError(f"every shard must be there; got no {name} in {folder}; download it again") from None
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    check(real.parent in (home, blobs), "a file of a checkpoint must lie in its folder",
          f"{name}, which leads to {real}", "copy the file into the folder if you trust it")
    check(real.is_file(), "a file of a checkpoint must be a file", name, AGAIN)
    return file


def there(folder: Path, name: str) -> Path | None:
    """The file, if it is there. Raises CheckError for a link that leads out of the folder.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     there(folder, SINGLE).name, there(folder, INDEX)
    ('model.safetensors', None)
    """
    return _inside(folder, name) if (folder / name).is_symlink() or (folder / name).exists() else None


def read_json(file: Path, largest: int | None = None) -> Any:
    """The JSON in `file`. Raises CheckError: unreadable, more than `largest` bytes (64 MiB), damaged, a name
    twice.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     read_json(folder / "config.json")["model_type"]
    'bitnet'
    """
    return parse_json(read_bytes(file, LARGEST_JSON if largest is None else largest), str(file))


def read_bytes(file: Path, largest: int) -> bytes:
    """A small file of a stranger. Raises CheckError: unreadable, more than `largest` bytes, not a file.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     read_bytes(folder / "config.json", largest=1 << 20)[:1]
    b'{'
    """
    try:
        check(file.is_file(), f"{file} must be a readable file", "none", "give a Hugging Face folder")
        size = file.stat().st_size
        check(size <= largest, f"{file} must have at most {largest} bytes", f"{size:,}", AGAIN)
        with open(file, "rb") as f:
            return f.read(size)
    except OSError as e:
        raise unreadable(file, e) from None


def parse_json(data: bytes, where: str) -> Any:
    """JSON from a stranger: UTF-8, no name twice in one object. Raises CheckError.
    >>> parse_json(b'{"a": 1}', where="a note")
    {'a': 1}
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as e:
        raise CheckError(f"{where} must be valid JSON; got {str(e)[:200]}; {AGAIN}") from None


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) != len(pairs):
        raise ValueError("a name twice in one object")
    return held


def read_header(file: Path, whole: bool = True) -> dict[str, Stored]:
    """name -> Stored, from the header alone, as `read_whole_header` has it.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     read_header(folder / SINGLE)["model.embed_tokens.weight"][1:3]
    ('BF16', (12, 8))
    """
    return read_whole_header(file, whole).tensors


def read_whole_header(file: Path, whole: bool = True) -> Header:
    """The header; `whole`: the file must have exactly the bytes that it declares.

    Raises CheckError: unreadable, truncated, a header too long, not JSON, an unknown dtype, an absurd shape,
    offsets that overlap, leave holes or disagree with the shape.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     read_whole_header(folder / SINGLE).metadata
    {'format': 'pt'}
    """
    text, size = _header_text(file)
    table = parse_json(text, f"the header of {file}")
    check(isinstance(table, dict), f"the header of {file} must be a table", type(table).__name__, AGAIN)
    start = 8 + len(text)
    held = {name: _entry(file, name, entry, start) for name, entry in table.items() if name != METADATA}
    end = _check_dense(file, held, start)
    check(not whole or size == end, f"{file} must have the {end:,} bytes that its header declares",
          f"{size:,}", AGAIN)
    return Header(held, table.get(METADATA), text)


def _header_text(file: Path) -> tuple[bytes, int]:
    """The bytes of the header, at most LARGEST_HEADER, and the size of the file."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as f:
            head = f.read(8)
            check(len(head) == 8, f"{file} must begin with 8 bytes of header length", f"{size} bytes", AGAIN)
            length = int.from_bytes(head, "little")
            check(length <= LARGEST_HEADER, f"the header of {file} must have at most {LARGEST_HEADER} bytes",
                  length, "check that it is a safetensors file")
            text = f.read(length)
            check(len(text) == length, f"{file} must hold its header of {length} bytes", f"{size} bytes",
                  AGAIN)
            return text, size
    except OSError as e:
        raise unreadable(file, e) from None


def _entry(file: Path, name: str, entry: Any, start: int) -> Stored:
    """One entry of a header, checked by itself."""
    where = f"{name[:100]} in {file.name}"
    check(isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} <= set(entry),
          f"{where} must have dtype, shape and data_offsets", repr(entry)[:100], AGAIN)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    check(isinstance(dtype, str) and dtype in DTYPES, f"{where} must be of a dtype of {', '.join(DTYPES)}",
          repr(dtype)[:50], "convert the checkpoint")
    check(_naturals(shape) and len(shape) <= 8, f"{where} must have a shape of at most 8 sizes",
          repr(shape)[:100], AGAIN)
    check(_naturals(offsets) and len(offsets) == 2, f"{where} must have data_offsets [begin, end]",
          repr(offsets)[:100], AGAIN)
    n_bytes = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    check(offsets[1] - offsets[0] == n_bytes, f"{where}, {dtype} {shape}, must have {n_bytes} bytes",
          f"offsets {offsets}", AGAIN)
    return Stored(file, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _check_dense(file: Path, held: dict[str, Stored], start: int) -> int:
    """The end of the last tensor; each must begin where the one before it ends."""
    for name, t in sorted(held.items(), key=lambda item: item[1][3:]):
        check(t.begin == start, f"the tensors of {file.name} must follow each other without overlap or hole",
              f"{name[:100]} at byte {t.begin}, not {start}", AGAIN)
        start = t.end
    return start


def rows(t: Stored, begin: int = 0, end: int | None = None) -> np.ndarray:
    """Rows `begin` to `end` of a tensor (all), a read-only memory map in its stored dtype.

    Raises CheckError if the file is too short by now, or unreadable.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     rows(read_header(folder / SINGLE)["model.embed_tokens.weight"], 3, 5).shape
    (2, 8)
    """
    dtype = np.dtype(DTYPES[t.dtype])
    end = t.shape[0] if end is None and t.shape else end
    shape = (end - begin, *t.shape[1:]) if end is not None else ()
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    at = t.begin + begin * math.prod(t.shape[1:]) * dtype.itemsize
    try:
        return np.memmap(t.file, dtype, "r", at, shape)
    except (OSError, ValueError) as e:                     # ValueError: the file has become shorter
        raise CheckError(f"{t.file} must be a readable file; got {e}; {AGAIN}") from None


def array(t: Stored) -> np.ndarray:
    """All of a tensor in memory of its own, in its stored dtype: a map's pages would count too.

    Raises CheckError as `rows`.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     array(read_header(folder / SINGLE)["model.norm.weight"]).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    try:
        check(t.here, f"{t.file} must have the bytes that its header declares", "fewer by now", AGAIN)
        held = np.empty(t.shape, DTYPES[t.dtype])
        with open(t.file, "rb") as f:
            f.seek(t.begin)
            n_bytes = f.readinto(held.reshape(-1).view(np.uint8).data)
    except OSError as e:
        raise unreadable(t.file, e) from None
    check(n_bytes == held.nbytes, f"{t.file} must have the bytes that its header declares", "fewer by now",
          AGAIN)
    return held


def blocks(t: Stored, n_bytes: int = BLOCK) -> Iterator[np.ndarray]:
    """All rows of a tensor, as many at a time as fit into `n_bytes` (at least one); a scalar is one block.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     table = read_header(folder / SINGLE)["model.embed_tokens.weight"]
    ...     [block.shape for block in blocks(table, n_bytes=80)]
    [(5, 8), (5, 8), (2, 8)]
    """
    per_row = max(1, (t.end - t.begin) // max(1, t.shape[0])) if t.shape else 1
    step = max(1, n_bytes // per_row)
    for begin in range(0, t.shape[0] if t.shape else 1, step):
        yield rows(t, begin, min(begin + step, t.shape[0])) if t.shape else rows(t)
