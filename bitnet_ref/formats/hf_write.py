"""Writes a Hugging Face folder that transformers loads: config, weights in one file or in shards, tokenizer.

Shapes and dtypes follow from the config, so every header is written first and each tensor then goes behind
the last as it is read: the largest one is in memory, not the model. Storages are those of hf_config.STORAGES.
The folder appears whole or not at all. docs/formats/hf.md says what each storage costs.
Port note: AutoBitLinear multiplies by weight_scale, BitLinear divides by it: both are written.
Read after: formats/hf. Read next: formats/hub.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from bitnet_ref.checks import check, lookup
from bitnet_ref.data.atomic import whole_file, whole_folder
from bitnet_ref.formats.hf import PACKED, SCALE, SHARE
from bitnet_ref.formats.hf_about import records
from bitnet_ref.formats.hf_config import config_record
from bitnet_ref.formats.safetensors_stream import INDEX, SINGLE
from bitnet_ref.formats.source import Source, Told, Written
from bitnet_ref.model.params import Spec
from bitnet_ref.model.weights import Trits
from bitnet_ref.pack.rosetta import pack_hf
from bitnet_ref.quant import absmean_ternary

FLOAT_TYPES: dict[str, tuple[str, Any]] = {                # transformers' word: the file's word, NumPy's type
    "bfloat16": ("BF16", ml_dtypes.bfloat16), "float32": ("F32", np.float32), "float16": ("F16", np.float16)}
SHARD = 5_000_000_000                # bytes of tensors in a file


class Piece(NamedTuple):
    """A tensor of the file: its name there, dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * {"U8": 1, "F32": 4}.get(self.dtype, 2)


def write_hf(folder: str | Path, source: Source, storage: str | None = None, shard_bytes: int = SHARD,
             told: Told | None = None, dtype: str = "bfloat16") -> Written:
    """Write `source` as a new folder.   storage None: multiply for trits, full for a model without.

    `dtype`: of all floats, scales too. A file has at most `shard_bytes` of tensors, or one tensor.
    Raises CheckError: a layout without a class there, a storage that the source has not, rows that are no
    multiple of 4, floats that `dtype` cannot hold, a folder that is not empty, a disk that refuses.
    >>> from tempfile import TemporaryDirectory
    >>> from bitnet_ref.formats.example import model
    >>> with TemporaryDirectory() as d:
    ...     made = write_hf(f"{d}/model", model())
    ...     made.n_tensors, sorted(file.name for file in made.path.iterdir())
    (20, ['config.json', 'generation_config.json', 'model.safetensors'])
    """
    storage = storage or ("multiply" if source.cfg.linear == "ternary" else "full")
    config = config_record(source.cfg, storage, dtype) | {
        "bos_token_id": source.about.bos, "eos_token_id": _one_or_all(source.about.eos)}
    small = {"config.json": json.dumps(config, indent=1).encode(),
             **records(source.about, source.tokenizer, source.cfg.context)}
    files = _files([(spec, _pieces(spec, storage, dtype)) for spec in source.specs.values()], shard_bytes)
    work = _Work(source, storage, *FLOAT_TYPES[dtype], [])
    with whole_folder(folder) as part:
        for name, specs in files.items():
            with whole_file(part / name) as f:
                _write_file(f, specs, work, told)
        if list(files) != [SINGLE]:
            small[INDEX] = _index(files)
        for name, data in small.items():
            with whole_file(part / name) as f:
                f.write(data)
        n_bytes = sum(file.stat().st_size for file in part.iterdir())
    n_tensors = sum(len(pieces) for specs in files.values() for _, pieces in specs)
    return Written(Path(folder), n_bytes, n_tensors, tuple(_moved(work)), sum(n for n, _ in work.moved))


def _one_or_all(eos: tuple[int, ...]) -> int | list[int] | None:
    return eos[0] if len(eos) == 1 else list(eos) or None


class _Work(NamedTuple):
    """What every tensor needs; `moved` collects (trits that rounding moved, of how many)."""

    source: Source
    storage: str
    word: str
    type: Any
    moved: list[tuple[int, int]]


Shard = list[tuple[Spec, list[Piece]]]


def _pieces(spec: Spec, storage: str, dtype: str) -> list[Piece]:
    """What a tensor of ours is in the file: itself, or packed trits and their scale."""
    word, _ = lookup(FLOAT_TYPES, dtype, "dtype")
    if not (spec.ternary and storage in PACKED):
        return [Piece(spec.hf_name, word, spec.shape)]
    n, k = spec.shape
    check(n % 4 == 0, f"{spec.name} must have a multiple of 4 rows to be packed", n,
          "choose such widths, or storage masters")
    return [Piece(spec.hf_name, "U8", (n // 4, k)), Piece(spec.hf_name + SCALE, word, (1,))]


def _files(table: Shard, shard_bytes: int) -> dict[str, Shard]:
    """The tensors of each file, in the order of the table; more than one file only above `shard_bytes`."""
    check(shard_bytes > 0, "shard_bytes must be positive", shard_bytes, "give some GB")
    shards, size = [Shard()], 0
    for entry in table:
        n_bytes = sum(piece.n_bytes for piece in entry[1])
        if shards[-1] and size + n_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += n_bytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _index(files: dict[str, Shard]) -> bytes:
    where = {piece.name: name for name, shard in files.items() for _, pieces in shard for piece in pieces}
    total = sum(piece.n_bytes for shard in files.values() for _, pieces in shard for piece in pieces)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1).encode()


def _write_file(f: BinaryIO, shard: Shard, work: _Work, told: Told | None) -> None:
    """One safetensors file: the header, then the tensors in its order.

    Floats lie at multiples of their size, for packed widths are multiples of 4 and so are the bytes of trits.
    """
    pieces = [piece for _, pieces in shard for piece in pieces]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}    # transformers asks for this note
    end = 0
    for piece in pieces:
        header[piece.name] = {"dtype": piece.dtype, "shape": piece.shape,
                              "data_offsets": [end, end + piece.n_bytes]}
        end += piece.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    f.write(len(text).to_bytes(8, "little") + text)
    for spec, _ in shard:
        for block in _contents(spec, work):
            f.write(block.reshape(-1).view(np.uint8).data)
        if told:
            told(spec.name)


def _contents(spec: Spec, work: _Work) -> Iterator[np.ndarray]:
    """The pieces of a tensor in the file's dtypes, contiguous, in parts."""
    if spec.ternary and work.storage == "masters":
        yield from _masters(spec, work)
        return
    held = work.source.read(spec.name)
    if isinstance(held, Trits):
        yield pack_hf(held.w_q)
        yield _scale(spec.name, np.float32(held.w_scale), work)
    else:
        yield from _rounded(spec.name, held, work)


def _scale(name: str, w_scale: np.float32, work: _Work) -> np.ndarray:
    """(1,) the multiplier, or for BitLinear its reciprocal, in the dtype of the file."""
    with np.errstate(over="ignore", divide="ignore"):
        scale = np.array([1 / w_scale if work.storage == "divide" else w_scale]).astype(work.type)
    check(bool(0 < w_scale < np.inf and 0 < np.float32(scale[0]) < np.inf),
          f"the scale of {name} must be positive and finite in {work.word}", w_scale,
          "write another dtype, or repair the source")
    return scale


def _rounded(name: str, x: np.ndarray, work: _Work) -> Iterator[np.ndarray]:
    """x by blocks of rows in the dtype of the file. Raises CheckError: infinity, NaN."""
    step = max(1, SHARE // max(1, math.prod(x.shape[1:])))
    for begin in range(0, len(x), step):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(x[begin:begin + step].astype(work.type))
        wide = block.astype(np.float32)
        ok = bool(np.isfinite(wide.min()) and np.isfinite(wide.max()))
        check(ok, f"{name} must be finite in {work.word}", "NaN or infinity",
              "write another dtype, or repair the source")
        yield block


def _masters(spec: Spec, work: _Work) -> Iterator[np.ndarray]:
    """Floats from which absmean makes the trits: the source's own masters, or `from_trits`."""
    master, held = work.source.master, work.source.read(spec.name)
    w = from_trits(held) if master is None else master(spec.name)
    w = np.concatenate(list(_rounded(spec.name, w, work)))
    w_q, w_scale = absmean_ternary(w.astype(np.float32))
    n = int(np.count_nonzero(w_q != held.w_q))
    if master is None and held.w_q.any():
        check(n == 0 and bool(abs(w_scale - held.w_scale) <= held.w_scale / 128),
              f"{spec.name} must come back from floats in {work.word}",
              f"{n} other trits, scale {w_scale:g} for {held.w_scale:g}", "use storage multiply")
    work.moved.append((n, w_q.size))
    yield w


def from_trits(t: Trits) -> np.ndarray:
    """float32 (N, K) whose absmean quantisation is `t`: w_q * w_scale / p, p the share of trits other than 0.

    Their mean magnitude is w_scale, so the scale returns to rounding; and as p <= 1 every nonzero entry is at
    least the scale, so the trits return exactly. A matrix of zeros stays one (its scale becomes the floor).
    >>> w_q, w_scale = absmean_ternary(from_trits(Trits(np.int8([[1, 0, -1, 0]]), np.float32(0.5))))
    >>> w_q.tolist(), w_scale.item()
    ([[1, 0, -1, 0]], 0.5)
    """
    n = np.count_nonzero(t.w_q)
    return t.w_q * np.float32(float(t.w_scale) * t.w_q.size / n) if n else t.w_q.astype(np.float32)


def _moved(work: _Work) -> list[str]:
    """For the summary: what rounding the masters to the dtype of the file did to the trits."""
    n, of = sum(n for n, _ in work.moved), sum(of for _, of in work.moved)
    return [f"masters in {work.word}: {n:,} of {of:,} trits differ from the source's"] if work.moved else []
