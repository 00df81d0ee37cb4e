"""A port's dump: named tensors in whatever of four formats its language writes easily.

`.safetensors` (any number of files), `.npy` (the file's name is the tensor's), `.npz`, and raw little-endian
`.bin` files with an index.json. What cannot be used (a strange name, shape or dtype, a file cut short) gets a
message and the rest is read. The wanted shapes are known, so nothing larger is ever allocated.
Read after: conform/blame. Read next: conform/report.
"""

import difflib
import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.formats.safetensors_stream import DTYPES as SAFETENSORS
from bitnet_ref.formats.safetensors_stream import read_header, rows

INDEX = "index.json"
LARGEST_INDEX = 1 << 24                                    # bytes
RAW = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "int8": "i1", "int16": "<i2", "int32": "<i4",
       "int64": "<i8", "uint8": "u1"}
# What NumPy and zipfile raise of files that are not what they seem.
DAMAGED = (CheckError, OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, RecursionError,
           zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


class Found(NamedTuple):
    """A tensor that a file claims to hold. `load()` reads it, in the shape that the header gives."""

    name: str
    where: str
    shape: tuple[int, ...] | None            # None: what describes it is not usable
    load: Callable[[], np.ndarray]


class Dump(NamedTuple):
    """`tensors`: usable ones by name. `problems`: (name or file, message). `files`: how many were read."""

    tensors: dict[str, np.ndarray]
    problems: list[tuple[str, str]]
    files: int


def read_dump(folder: Path, wanted: dict[str, tuple[int, ...]]) -> Dump:
    """All in `folder` that is wanted. Raises CheckError if there is no such folder, or nothing in it."""
    check(folder.is_dir(), "the port's tensors must lie in a folder", folder,
          "write them to the folder `dump` of the homework, or name another by --dump")
    try:
        files = sorted(p for p in folder.iterdir() if p.name == INDEX or p.suffix in READERS)
    except OSError as e:
        raise unreadable(folder, e) from None
    check(bool(files), f"{folder} must hold .safetensors, .npy, .npz or .bin files with {INDEX}", "none",
          "write the port's tensors there; docs/porting.md has the formats")
    dump = Dump({}, [], len(files))
    for file in files:
        try:
            for found in (_raw if file.name == INDEX else READERS[file.suffix])(file):
                _take(dump, found, wanted)
        except DAMAGED as e:
            dump.problems.append((file.name, _three_parts(file.name, e)))
    return dump


def _three_parts(name: str, e: Exception) -> str:
    if isinstance(e, CheckError):
        return str(e)
    return f"{name} must be readable; got {str(e)[:200] or type(e).__name__}; write it again"


def _take(dump: Dump, found: Found, wanted: dict[str, tuple[int, ...]]) -> None:
    """Put one tensor into the dump, or a message about it."""
    name = found.name
    try:
        if name not in wanted:
            near = difflib.get_close_matches(name, wanted, n=1)
            hint = f"is {near[0]} meant?" if near else "homework.json lists the names"
            raise CheckError(f"a tensor must be one of the homework's; got {name!r} in {found.where}; {hint}")
        check(name not in dump.tensors, f"{name} must be dumped once", f"another in {found.where}",
              "remove one")
        shape = found.shape if found.shape is not None else found.load().shape  # without one, load() says why
        check(fits(shape, wanted[name]), f"{name} must have the shape {wanted[name]}", shape,
              _about_shape(name, shape, wanted[name]))
        array = found.load()
        check(array.dtype.kind in "fiu" or array.dtype.name == "bfloat16", f"{name} must hold numbers",
              str(array.dtype), "write floats or integers")
        dump.tensors[name] = np.array(array).reshape(wanted[name])
    except DAMAGED as e:
        dump.problems.append((name, _three_parts(name, e)))


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Equal, save for axes of one and for heads that are kept apart from their width."""
    got, want = ([n for n in s if n != 1] for s in (shape, wanted))
    return math.prod(got) == math.prod(want) and (got[:1] == want[:1] or shape[:1] == wanted[:1])


def _about_shape(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What a wrong shape may mean."""
    if name.endswith(".x_scale") and math.prod(shape) == 1:
        return "one scale for the whole tensor is a fault (docs/faults.md#activations_per_tensor)"
    if name.endswith(".x_scale"):
        return "one scale per token, taken along the features (docs/faults.md#activations_wrong_axis)"
    if shape == wanted[::-1]:
        return "write it transposed: rows are tokens, or outputs of a weight"
    return "homework.json lists the shapes"


def _safetensors(file: Path) -> Iterator[Found]:
    for name, t in read_header(file, whole=False).items():
        def load(t: Any = t, name: str = name) -> np.ndarray:
            check(t.here, f"{file.name} must hold all of {name}", "a file cut short", "write it again")
            return rows(t)

        assert t.dtype in SAFETENSORS
        yield Found(name, file.name, t.shape, load)


def _npy(file: Path) -> Iterator[Found]:
    array = np.load(file, mmap_mode="r", allow_pickle=False)                    # a map: nothing is read yet
    check(isinstance(array, np.ndarray), f"{file.name} must hold one array", "an archive", "name it .npz")
    yield Found(file.stem, file.name, array.shape, lambda: array)


def _npz(file: Path) -> Iterator[Found]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                yield Found(member.filename[:80], file.name, (), lambda: np.zeros(0))   # no tensor of ours
                continue
            with archive.open(member) as f:
                version = np.lib.format.read_magic(f)
                header = np.lib.format.read_array_header_1_0 if version == (1, 0) else \
                    np.lib.format.read_array_header_2_0
                shape, _, dtype = header(f)

            def load(member: zipfile.ZipInfo = member, dtype: np.dtype = dtype) -> np.ndarray:
                check(not dtype.hasobject, f"{member.filename} must hold numbers", "objects", "write floats")
                with archive.open(member) as f:
                    return np.lib.format.read_array(f, allow_pickle=False)

            yield Found(member.filename.removesuffix(".npy"), file.name, shape, load)


def _raw(file: Path) -> Iterator[Found]:
    """index.json: {"name": {"file": "x.bin", "dtype": "float32", "shape": [2, 3], "offset": 0}, ...}"""
    check(file.stat().st_size <= LARGEST_INDEX, f"{INDEX} must have at most {LARGEST_INDEX} bytes",
          file.stat().st_size, "write it again")
    table = json.loads(file.read_text(encoding="utf-8"))
    check(isinstance(table, dict), f"{INDEX} must be a table of names", type(table).__name__,
          "see docs/porting.md")
    for name, entry in table.items():
        ok = (isinstance(entry, dict) and isinstance(entry.get("file"), str) and entry.get("dtype") in RAW
              and isinstance(entry.get("shape"), list) and all(type(n) is int and 0 <= n < 1 << 40
                                                               for n in entry["shape"])
              and type(entry.get("offset", 0)) is int and entry.get("offset", 0) >= 0)

        def load(entry: Any = entry, ok: bool = ok, name: str = name) -> np.ndarray:
            check(ok, f"{name} in {INDEX} must have file, dtype, shape and perhaps offset", repr(entry)[:100],
                  f"dtypes: {', '.join(RAW)}")
            return _raw_tensor(file.parent, name, entry)

        yield Found(name, INDEX, tuple(entry["shape"]) if ok else None, load)


def _raw_tensor(folder: Path, name: str, entry: dict[str, Any]) -> np.ndarray:
    path = folder / entry["file"]
    check(path.resolve().parent == folder.resolve() and path.is_file(),
          f"the file of {name} must lie beside {INDEX}", entry["file"], "give a plain file name")
    dtype, begin = np.dtype(RAW[entry["dtype"]]), entry.get("offset", 0)
    n_bytes = math.prod(entry["shape"]) * dtype.itemsize
    size = path.stat().st_size
    check(begin + n_bytes <= size, f"{entry['file']} must hold {n_bytes} bytes of {name} from {begin}",
          f"{size} bytes in all", "write it again, or correct dtype, shape and offset")
    with open(path, "rb") as f:
        f.seek(begin)
        return np.frombuffer(f.read(n_bytes), dtype).reshape(entry["shape"])


READERS: dict[str, Callable[[Path], Iterator[Found]]] = {
    ".safetensors": _safetensors, ".npy": _npy, ".npz": _npz}
