"""The header of a .bitnet file: which tensors there are, in what order and size, and what is said of them.

A plan, made of the config alone, serves three times: it bounds the room that the writer leaves for a header
that it cannot know yet, the reader compares a stranger's header with it, and it is the formula of the size.
docs/formats/bitnet.md is the specification.
Read after: formats/hub. Read next: formats/bitnet.
"""

import json
import math
import re
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.config import ModelConfig, from_dict
from bitnet_ref.data.tokenizer import LARGEST_FILE
from bitnet_ref.formats.safetensors_stream import (
    DTYPES,
    LARGEST_HEADER,
    METADATA,
    Header,
    Stored,
    parse_json,
)
from bitnet_ref.formats.source import About, checked_about
from bitnet_ref.model.params import param_specs
from bitnet_ref.pack import b3, i2, rans

FORMAT, VERSION = "bitnet", "1"
PACKINGS = {"i2": i2.BITS_PER_TRIT, "b3": b3.BITS_PER_TRIT, "rans": math.log2(3)}    # bits, of rans at most
FLOATS = ("F32", "F16", "BF16")
SCALE, TRITS, TOKENIZER = ".scale", ".trits", "tokenizer"
JUSTIFIED = 256              # trits for a byte of the file, at most: rans holds a constant matrix in 40 bytes
AGAIN = "restore the file from a copy, or convert the model again"
FOREIGN = "write the file with bitnet_ref.formats.bitnet"

ZEROS = b"0" * 8             # in place of the header's checksum while it is computed
CLAIM = re.compile(rb'"header_crc32"\s*:\s*"([0-9a-f]{8})"')        # in a text the quotes would be escaped

Histograms = dict[str, tuple[int, int, int]]


class Part(NamedTuple):
    """A tensor of the file. `crc32`: of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    crc32: int = 0

    @property
    def n_bytes(self) -> int:
        """Its length."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


class Record(NamedTuple):
    """What the metadata say. `crc32` by tensor; `histograms`: how many trits are -1, 0, +1, by matrix."""

    packing: str
    cfg: ModelConfig
    about: About
    crc32: dict[str, str]
    histograms: Histograms


def _plan(cfg: ModelConfig, packing: str, bits: float, floats: str = "F32", tokenizer: int = 0) -> list[Part]:
    """Every tensor in the order of the file: scales, floats, trits, tokenizer; `bits` per trit for rans."""
    specs = param_specs(cfg)
    parts = [Part(s.name + SCALE, "F32", (1,)) for s in specs if s.ternary]
    parts += [Part(s.name, floats, s.shape) for s in specs if not s.ternary]
    parts += [Part(s.name + TRITS, "U8", _packed_shape(s.shape, packing, bits)) for s in specs if s.ternary]
    return parts + ([Part(TOKENIZER, "U8", (tokenizer,))] if tokenizer else [])


def _packed_shape(shape: tuple[int, ...], packing: str, bits: float) -> tuple[int, ...]:
    """Of the bytes of a matrix (N, K); for rans what `bits` per trit would need."""
    if packing == "rans":
        return (rans.OVERHEAD + 4 * math.ceil(math.prod(shape) * bits / 32),)
    return shape[0], -(-shape[1] // {"i2": 4, "b3": 5}[packing])


def room(cfg: ModelConfig, packing: str, about: About, tokenizer: int) -> int:
    """Bytes that no header of such a file exceeds, a multiple of 8. Raises CheckError: too many.
    >>> room(ModelConfig(), "rans", About(), tokenizer=0) % 8
    0
    """
    parts = _plan(cfg, packing, bits=2.0, tokenizer=tokenizer)       # the longest: no number has more digits
    wide = {s.name: (math.prod(s.shape),) * 3 for s in param_specs(cfg) if s.ternary}
    n_bytes = len(header(cfg, packing, about, parts, wide)) + len(parts)     # BF16 is a letter more than F32
    check(n_bytes <= LARGEST_HEADER, f"the header of a .bitnet must have at most {LARGEST_HEADER} bytes",
          n_bytes, "shorten the chat template or the settings")
    return n_bytes + -n_bytes % 8


def header(cfg: ModelConfig, packing: str, about: About, parts: list[Part], histograms: Histograms,
           n_bytes: int = 0) -> bytes:
    """The JSON of the header, filled up to `n_bytes` with spaces, with its own checksum in it.
    >>> header(ModelConfig(), "i2", About(), [Part("final_norm", "F32", (256,))], {})[-72:]
    b'27"},"final_norm":{"dtype":"F32","shape":[256],"data_offsets":[0,1024]}}'
    """
    metadata = {"format": FORMAT, "version": VERSION, "packing": packing, "config": _compact(asdict(cfg)),
                "about": _compact(about._asdict()),
                "crc32": _compact({p.name: f"{p.crc32:08x}" for p in parts}),
                "histograms": _compact(histograms), "header_crc32": ZEROS.decode()}
    table: dict[str, Any] = {METADATA: metadata}
    end = 0
    for p in parts:
        table[p.name] = {"dtype": p.dtype, "shape": p.shape, "data_offsets": [end, end + p.n_bytes]}
        end += p.n_bytes
    text = _compact(table).encode()
    text += b" " * (n_bytes - len(text))
    return CLAIM.sub(lambda m: m[0].replace(ZEROS, f"{zlib.crc32(text):08x}".encode()), text)


def _compact(record: Any) -> str:
    """JSON without white space, ASCII. Raises CheckError for what JSON has not, as NaN."""
    try:
        return json.dumps(record, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as e:
        check(False, "settings of a model must be what JSON can hold", str(e)[:100], "leave them out")
        raise


def file_bytes(cfg: ModelConfig, packing: str = "rans", bits: float | None = None, floats: str = "F32",
               about: About | None = None, tokenizer_bytes: int = 0) -> int:
    """The size of a .bitnet file: header, scales, floats, trits and tokenizer. Nothing is allocated.

    `bits` per trit, for rans: the entropy of the histogram; log2(3), the most, if not given.
    >>> file_bytes(ModelConfig(), "i2") - file_bytes(ModelConfig(), "b3")       # of the preset nano
    161792
    """
    bits = lookup(PACKINGS, packing, "packing") if bits is None else bits
    parts = _plan(cfg, packing, bits, lookup(dict(zip(FLOATS, FLOATS)), floats, "floats"), tokenizer_bytes)
    head = room(cfg, packing, about or About(), tokenizer_bytes)
    return 8 + head + sum(p.n_bytes for p in parts)


# ---- what a stranger's header says ----

def read_record(file: Path, head: Header) -> Record:
    """The metadata, each field checked, and agreed with the tensors. Raises CheckError.
    >>> from bitnet_ref.formats.example import written
    >>> from bitnet_ref.formats.safetensors_stream import read_whole_header
    >>> with written("bitnet") as path:
    ...     read_record(path, read_whole_header(path)).cfg.d_model
    8
    """
    m = head.metadata
    check(is_ours(m), f'{file} must say format = "{FORMAT}"', repr(m)[:100], FOREIGN)
    check(m.get("version") == VERSION, f"{file} must have version {VERSION}", repr(m.get("version"))[:50],
          "use the release of bitnet_ref that wrote it")
    for name in ("packing", "config", "about", "crc32", "histograms", "header_crc32"):
        check(isinstance(m.get(name), str), f"the metadata of {file} must have the text {name}",
              repr(m.get(name))[:50], AGAIN)
    _check_header_crc(file, head.text, m["header_crc32"])
    check(m["packing"] in PACKINGS, f"packing of {file} must be one of {', '.join(PACKINGS)}",
          repr(m["packing"])[:50], FOREIGN)
    fields = {n: parse_json(m[n].encode("utf-8", "replace"), f"{n} of {file}")
              for n in ("config", "about", "crc32", "histograms")}
    try:
        cfg = from_dict(ModelConfig, fields["config"], "config")
    except CheckError as e:
        raise CheckError(f"config of {file}: {e}") from None
    _agree(file, head.tensors, cfg, m["packing"])
    return Record(m["packing"], cfg, _about(file, fields["about"], cfg),
                  _crc32(file, fields["crc32"], head.tensors), _histograms(file, fields["histograms"], cfg))


def is_ours(metadata: Any) -> bool:
    """Whether a header's metadata name this format.
    >>> is_ours({"format": "bitnet"}), is_ours({"format": "pt"})
    (True, False)
    """
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT


def _check_header_crc(file: Path, text: bytes, digits: str) -> None:
    """The header's own checksum: of its bytes, the eight digits in them being zeros."""
    found = CLAIM.findall(text)
    check(found == [digits.encode()], f"{file} must have a header_crc32 of 8 hex digits, once",
          repr(digits)[:50], AGAIN)
    crc32 = f"{zlib.crc32(CLAIM.sub(lambda m: m[0][:-9] + ZEROS + m[0][-1:], text)):08x}"
    check(crc32 == digits, f"the header of {file} must have the header_crc32 that it states, {digits}", crc32,
          AGAIN)


def _agree(file: Path, held: dict[str, Stored], cfg: ModelConfig, packing: str) -> None:
    """The tensors are those of the config: names, shapes, dtypes; before anything is allocated for them."""
    check(cfg.n_layers <= len(held), f"{file} must hold every tensor of its config",
          f"{len(held)} tensors for n_layers = {cfg.n_layers}", AGAIN)
    wanted = {p.name: p for p in _plan(cfg, packing, bits=0.0)}
    for name, p in wanted.items():
        t = held.get(name)
        dtypes = (p.dtype,) if name.endswith((SCALE, TRITS)) else FLOATS
        free = packing == "rans" and name.endswith(TRITS)
        fits = t is not None and t.dtype in dtypes and (len(t.shape) == 1 if free else t.shape == p.shape)
        check(fits, f"{name} in {file} must be {' or '.join(dtypes)} of shape {'(n,)' if free else p.shape}",
              f"{t.dtype} {t.shape}" if t else "none", AGAIN)
    extra = sorted(set(held) - set(wanted) - {TOKENIZER})
    check(not extra, f"{file} must hold no tensor that its config has not", ", ".join(extra[:3])[:200], AGAIN)
    t = held.get(TOKENIZER)
    check(t is None or (t.dtype == "U8" and len(t.shape) == 1 and t.shape[0] <= LARGEST_FILE),
          f"{TOKENIZER} in {file} must be U8 of at most {LARGEST_FILE} bytes",
          f"{t.dtype} {t.shape}" if t else "none", AGAIN)
    check_justified(file, cfg, max((t.end for t in held.values()), default=0))


def check_justified(file: Path, cfg: ModelConfig, size: int) -> None:
    """Raise CheckError if a file of so many bytes would unpack to more trits than JUSTIFIED for each.
    >>> check_justified(Path("a.bitnet"), ModelConfig(), size=1 << 20)
    >>> check_justified(Path("a.bitnet"), ModelConfig(), size=10)
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: a.bitnet must hold at most 256 trits for a byte; got 3407872 in 10; pack a
    model that is nearly all zeros as b3
    """
    n = sum(math.prod(s.shape) for s in param_specs(cfg) if s.ternary)
    check(n <= JUSTIFIED * size, f"{file} must hold at most {JUSTIFIED} trits for a byte", f"{n} in {size}",
          "pack a model that is nearly all zeros as b3")


def _about(file: Path, a: Any, cfg: ModelConfig) -> About:
    where = f"about of {file}"
    check(isinstance(a, dict) and set(a) <= set(About._fields),
          f"{where} must be a table of {', '.join(About._fields)}", repr(a)[:100], AGAIN)
    eos = a.get("eos", [])                                 # a tuple in memory, a list in JSON
    return checked_about(About(**(a | {"eos": tuple(eos) if isinstance(eos, list) else eos})), cfg, where)


def _crc32(file: Path, table: Any, held: dict[str, Stored]) -> dict[str, str]:
    fits = isinstance(table, dict) and set(table) == set(held) and all(
        isinstance(v, str) and re.fullmatch("[0-9a-f]{8}", v) for v in table.values())
    check(fits, f"crc32 of {file} must have 8 hex digits for every tensor", repr(table)[:100], AGAIN)
    return table


def _histograms(file: Path, table: Any, cfg: ModelConfig) -> Histograms:
    sizes = {s.name: math.prod(s.shape) for s in param_specs(cfg) if s.ternary}
    fits = isinstance(table, dict) and set(table) == set(sizes) and all(
        isinstance(h, list) and len(h) == 3 and all(type(n) is int and n >= 0 for n in h)
        and sum(h) == sizes[name] for name, h in table.items())
    check(fits, f"histograms of {file} must have three counts for every matrix, its trits together",
          repr(table)[:100], AGAIN)
    return {name: (h[0], h[1], h[2]) for name, h in table.items()}
