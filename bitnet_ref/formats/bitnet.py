"""A .bitnet file: a model for inference in one safetensors file, its trits packed as i2, b3 or rans.

Written tensor by tensor: room is left for the header, which has lengths and checksums that are known at the
end. Read by tensor too, after the header has been agreed with the config; each tensor is verified when it is
read. No masters: a file to run, not to train on. docs/formats/bitnet.md is the specification.
Read after: formats/bitnet_header. Read next: formats/onnx_graph.
"""

import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.data.atomic import unreadable, whole_file
from bitnet_ref.data.tokenizer import LARGEST_FILE
from bitnet_ref.formats.bitnet_header import (
    AGAIN,
    FLOATS,
    PACKINGS,
    SCALE,
    TOKENIZER,
    TRITS,
    Histograms,
    Part,
    Record,
    check_justified,
    header,
    is_ours,
    read_record,
    room,
)
from bitnet_ref.formats.safetensors_stream import BLOCK, DTYPES, Stored, read_whole_header
from bitnet_ref.formats.source import Source, Told, Written, checked_about
from bitnet_ref.model.params import Spec
from bitnet_ref.model.weights import Trits
from bitnet_ref.pack import rans
from bitnet_ref.pack.b3 import pack_b3, unpack_b3
from bitnet_ref.pack.i2 import pack_i2, unpack_i2

SUFFIX = ".bitnet"
ORIGIN = "check where the model comes from"
NAMES = {np.dtype(DTYPES[name]): name for name in FLOATS}


class _Opened(NamedTuple):
    file: Path
    held: dict[str, Stored]
    record: Record


def is_bitnet(path: str | Path) -> bool:
    """Whether `path` is such a file, by its name or by what its header says.
    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet") as path:
    ...     is_bitnet(path), is_bitnet(path.parent)
    (True, False)
    """
    file = Path(path)
    try:
        return file.is_file() and (file.suffix == SUFFIX or is_ours(read_whole_header(file).metadata))
    except CheckError:
        return False


def open_bitnet(path: str | Path) -> Source:
    """The model of a file. Its header is read, checked and agreed; of the tensors only the tokenizer.

    Raises CheckError for a damaged, foreign or hostile file, naming file, tensor and field; `read` of the
    result for a tensor that is not what its checksum, packing or histogram says, or not finite.
    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet") as path:
    ...     source = open_bitnet(path)
    ...     source.storage, source.read("layers.0.attn.wq").w_q.shape
    ('trits as i2', (8, 8))
    """
    opened = read_opened(Path(path))
    text = None
    if TOKENIZER in opened.held:
        try:
            text = _verified(opened, TOKENIZER).tobytes().decode("utf-8")
        except UnicodeDecodeError as e:
            raise CheckError(f"{TOKENIZER} in {path} must be UTF-8; got none at byte {e.start}; {AGAIN}") \
                from None
    r = opened.record
    specs: dict[str, Spec] = {}
    source = Source(opened.file, "bitnet", f"trits as {r.packing}", r.cfg, r.about, text,
                    lambda name: _tensor(opened, specs[name]))
    specs = source.specs
    return source


def read_opened(file: Path) -> _Opened:
    """Header and record. Raises CheckError.
    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet") as path:
    ...     sum(read_opened(path).record.histograms["layers.0.attn.wk"])
    32
    """
    head = read_whole_header(file)
    return _Opened(file, head.tensors, read_record(file, head))


def _tensor(opened: _Opened, spec: Spec) -> Any:
    """Trits, or floats as they are stored."""
    where = f"{spec.name} in {opened.file}"
    if not spec.ternary:
        x = _verified(opened, spec.name).view(DTYPES[opened.held[spec.name].dtype]).reshape(spec.shape)
        _check_finite(x, where)
        return x
    scale = _verified(opened, spec.name + SCALE).view("<f4")[0]
    check(bool(np.isfinite(scale) and scale >= 0), f"the scale of {where} must be finite and not negative",
          scale, AGAIN)
    packing = opened.record.packing
    packed = _verified(opened, spec.name + TRITS).reshape(opened.held[spec.name + TRITS].shape)
    try:
        w_q = _unpacker(packing)(packed, spec.shape if packing == "rans" else spec.shape[1])
    except CheckError as e:
        raise CheckError(f"{spec.name + TRITS} in {opened.file}: {e}") from None
    stated, found = opened.record.histograms[spec.name], rans.histogram(w_q)
    check(found == stated, f"{where} must have the histogram {stated} that the header states", found, AGAIN)
    return Trits(w_q, np.float32(scale))


def _unpacker(packing: str) -> Any:
    """The function that unpacks: for rans the compiled one, where Numba is there."""
    return _rans().unpack_rans if packing == "rans" else {"i2": unpack_i2, "b3": unpack_b3}[packing]


def _packer(packing: str) -> Any:
    """The function that packs."""
    return _rans().pack_rans if packing == "rans" else {"i2": pack_i2, "b3": pack_b3}[packing]


def _rans() -> Any:
    try:
        from bitnet_ref.kernels.numba_cpu import rans as compiled
    except ImportError:                                    # a platform that has no Numba: slow, and the same
        return rans
    return compiled


def _verified(opened: _Opened, name: str) -> np.ndarray:
    """The bytes of a tensor, uint8 (n,), in memory of their own. Raises CheckError: another checksum."""
    t = opened.held[name]
    data = np.empty(t.end - t.begin, np.uint8)
    try:
        with open(opened.file, "rb") as f:
            f.seek(t.begin)
            n = f.readinto(data.data)
    except OSError as e:
        raise unreadable(opened.file, e) from None
    check(n == len(data), f"{opened.file} must hold the {len(data)} bytes of {name}", n, AGAIN)
    stated, found = opened.record.crc32[name], f"{zlib.crc32(data.data):08x}"
    check(found == stated, f"{name} in {opened.file} must have the CRC-32 {stated} of the header", found,
          AGAIN)
    return data


def _check_finite(x: np.ndarray, where: str) -> None:
    flat = x.reshape(-1)
    for begin in range(0, flat.size, BLOCK):
        ok = np.isfinite(flat[begin:begin + BLOCK].astype(np.float32)).all()
        check(bool(ok), f"{where} must be finite", "NaN or infinity", AGAIN)


# ---- writing ----

class _Body:
    """The tensors of a file as they are written, from its start on. `parts`: what the header will say."""

    def __init__(self, f: BinaryIO, start: int, n_scales: int) -> None:
        self.f, self.start, self.parts = f, start, list[Part]()
        self.scales: list[tuple[str, np.float32]] = []
        f.write(bytes(start + 4 * n_scales))

    def put(self, name: str, x: np.ndarray, dtype: str) -> None:
        """Append a tensor."""
        data = np.ascontiguousarray(x).reshape(-1).view(np.uint8).data
        self.f.write(data)
        self.parts.append(Part(name, dtype, x.shape, zlib.crc32(data)))

    def finish(self) -> list[Part]:
        """Put the scales into their place, in front of all; returns every part in order."""
        rest, self.parts = self.parts, []
        self.f.seek(self.start)
        for name, scale in self.scales:
            self.put(name, np.array([scale], "<f4"), "F32")
        return self.parts + rest


def write_bitnet(path: str | Path, source: Source, bits: str = "rans", told: Told | None = None) -> Written:
    """Write `source` with trits packed as `bits`: i2, b3 or rans. Equal models give equal bytes.

    Floats keep their dtype (F64 becomes F32). Holds one tensor at a time. Raises CheckError for NaN, other
    than trits, an unknown packing, a disk that refuses; then no file is left.
    >>> from tempfile import TemporaryDirectory
    >>> from bitnet_ref.formats.example import model
    >>> with TemporaryDirectory() as d:
    ...     write_bitnet(f"{d}/a.bitnet", model(), "i2").n_tensors
    20
    """
    lookup(PACKINGS, bits, "packing")
    path, text = Path(path), _tokenizer_bytes(source)
    checked_about(source.about, source.cfg, str(source.path))
    start = room(source.cfg, bits, source.about, len(text))
    found: Histograms = {}
    n_packed = 0
    with whole_file(path) as f:
        body = _Body(f, 8 + start, sum(s.ternary for s in source.specs.values()))
        for spec, t in _floats_first(source):
            if isinstance(t, Trits):
                n_packed += _put_trits(body, spec, t, bits, found)
            else:
                _put_floats(body, spec, t)
            if told is not None:
                told(spec.name)
        if len(text):
            body.put(TOKENIZER, text, "U8")
        n_bytes = f.tell()
        check_justified(path, source.cfg, n_bytes)
        parts = body.finish()
        f.seek(0)
        f.write(start.to_bytes(8, "little") + header(source.cfg, bits, source.about, parts, found, start))
    return Written(path, n_bytes, len(parts), _notes(bits, n_packed, found))


def _floats_first(source: Source) -> Any:
    """(spec, tensor) in the order of the file. What has been read is let go before the next."""
    for ternary in (False, True):
        for spec in source.specs.values():
            if spec.ternary == ternary:
                yield spec, source.read(spec.name)


def _put_trits(body: _Body, spec: Spec, t: Trits, bits: str, found: Histograms) -> int:
    """Pack a matrix; returns the bytes. Its scale waits."""
    check(t.w_q.shape == spec.shape, f"{spec.name} must have shape {spec.shape}", t.w_q.shape, ORIGIN)
    scale = np.float32(t.w_scale)
    check(bool(np.isfinite(scale) and scale >= 0),
          f"the scale of {spec.name} must be finite and not negative", scale, ORIGIN)
    packed = _packer(bits)(t.w_q)
    body.put(spec.name + TRITS, packed, "U8")
    body.scales.append((spec.name + SCALE, scale))
    found[spec.name] = rans.histogram(t.w_q)
    return packed.nbytes


def _put_floats(body: _Body, spec: Spec, x: Any) -> None:
    check(not spec.ternary and x.shape == spec.shape, f"{spec.name} must have shape {spec.shape}", x.shape,
          ORIGIN)
    x = x if x.dtype in NAMES else x.astype(np.float32)
    _check_finite(x, spec.name)
    body.put(spec.name, x, NAMES[x.dtype])


def _tokenizer_bytes(source: Source) -> np.ndarray:
    """uint8 (n,), of none if there is no tokenizer."""
    try:
        text = (source.tokenizer or "").encode("utf-8")
    except UnicodeEncodeError as e:
        raise CheckError(f"a tokenizer must be Unicode; got {e.reason} at {e.start}; use another") from None
    check(len(text) <= LARGEST_FILE, f"a tokenizer must have at most {LARGEST_FILE} bytes", len(text),
          "use another")
    return np.frombuffer(text, np.uint8)


def _notes(bits: str, n_bytes: int, found: Histograms) -> tuple[str, ...]:
    """What the packing made of the trits."""
    n = sum(sum(h) for h in found.values())
    if n == 0:
        return ()
    least = sum(rans.entropy(h) * sum(h) for h in found.values()) / n
    zeros = sum(h[1] for h in found.values()) / n
    return (f"{n:,} trits as {bits}: {8 * n_bytes / n:.4f} bits each, entropy {least:.4f}; "
            f"{zeros:.1%} are zeros",)
