"""A GGUF opened: TQ1_0, TQ2_0, I2_S and floats, of the bitnet archs and of llama, as a Source.

Settings are read into a ModelConfig and agreed with every tensor before one of them is read. What would run
and be wrong is refused by name: scaled RoPE, experts, parts of a split file, blocks of different scales.
Port note: I2_S has three layouts and no file says which (ours do); a wrong one decodes into valid trits.
Read after: formats/gguf_tokenizer. Read next: formats/gguf_write.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.config import ModelConfig, from_dict
from bitnet_ref.formats.gguf_about import read_about
from bitnet_ref.formats.gguf_header import Header, Stored, raw, read_header
from bitnet_ref.formats.gguf_names import (
    ACTIVATION,
    ACTIVATIONS,
    ARCHS,
    COARSE,
    FLOATS,
    LAYOUT,
    TERNARY,
    TYPES,
    Arch,
    gguf_name,
    library,
    stored_rows,
)
from bitnet_ref.formats.gguf_tokenizer import rebuild
from bitnet_ref.formats.source import Source
from bitnet_ref.model.params import Spec, param_specs
from bitnet_ref.model.weights import Trits
from bitnet_ref.pack.rosetta import I2S, unpack_i2s
from bitnet_ref.quant import absmean_ternary

DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
                          "BF16": np.dtype(ml_dtypes.bfloat16)}
BLOCK = 1 << 22                      # stored bytes decoded at a time
AGAIN = "download the file again, or restore it from a copy"
REFUSED = "use a model of the LLaMA / BitNet family without it"


def open_gguf(path: str | Path, i2s: str | None = None, pre: str | None = None) -> Source:
    """A GGUF as a Source, its header agreed. Allocates nothing of a size that the file claims.

    i2s: which I2_S it has, "128", "64" or "4row"; needed to read its matrices unless the file or the shapes
    say. pre: "gpt-2" or "llama-bpe", what to take for an absent tokenizer.ggml.pre. Raises CheckError for a
    damaged, foreign or unsupported file; `read` of the result for an I2_S of a layout that nobody has told.
    >>> from tempfile import TemporaryDirectory
    >>> from bitnet_ref.formats.example import model
    >>> from bitnet_ref.formats.gguf_write import write_gguf
    >>> with TemporaryDirectory() as d:                         # needs gguf
    ...     open_gguf(write_gguf(f"{d}/a.gguf", model(), "f16").path).read("layers.0.attn.wq").w_q.shape
    (8, 8)
    """
    header = read_header(path)
    name = header.settings.get("general.architecture")
    check(isinstance(name, str), f"{header.file} must say general.architecture", repr(name)[:50], AGAIN)
    arch = lookup(ARCHS, str(name), "general.architecture")
    cfg = _config(header, str(name), arch)
    specs = {s.name: s for s in param_specs(cfg)}
    _agree(header, specs)
    stored = {n: header.tensors[gguf_name(n)] for n in specs}
    scales = {n: header.tensors[gguf_name(n, "scale")] for n, s in specs.items()
              if s.ternary and gguf_name(n, "scale") in header.tensors}
    layout = _layout(header, i2s)

    def read(wanted: str) -> Any:
        order = stored_rows(wanted, cfg, arch)
        if not specs[wanted].ternary:
            return _unordered(_floats(wanted, stored[wanted]), order)
        if layout is None and stored[wanted].kind == "I2_S":
            raise _untold(header)
        w_q, w_scale = _trits(wanted, stored[wanted], layout or "128")
        return Trits(_unordered(w_q, order), _product(wanted, w_scale, scales.get(wanted)))

    return Source(header.file, "gguf", _storage(specs, stored, layout), cfg,
                  read_about(header.settings, cfg.vocab_size, header.file),
                  rebuild(header.settings, pre), read)


def _config(header: Header, name: str, arch: Arch) -> ModelConfig:
    """The ModelConfig that settings and names of tensors describe."""
    s, where = _Settings(header, name), f"the settings of {header.file.name}"
    s.refuse_unknown_parts()
    table = header.tensors.get("token_embd.weight")
    check(table is not None, f"{header.file} must hold token_embd.weight", "none", AGAIN)
    assert table is not None
    ternary = arch.norm == "sub" or any(t.kind in TERNARY for t in header.tensors.values())
    heads = s.get("attention.head_count")
    values = {
        "vocab_size": table.shape[0], "d_model": s.get("embedding_length"), "n_layers": s.get("block_count"),
        "n_heads": heads, "n_kv_heads": s.get("attention.head_count_kv", heads),
        "d_ff": s.get("feed_forward_length"), "context": s.get("context_length"), "norm": arch.norm,
        "glu": lookup(ACTIVATIONS, s.get(ACTIVATION, _act(arch)), f"{name}.{ACTIVATION}"),
        "linear": "ternary" if ternary else "full", "tied_embeddings": "output.weight" not in header.tensors,
        "rope_theta": _shortest(s.get("rope.freq_base", 10000.0)), "init_std": 0.02,
        "norm_eps": _shortest(s.get("attention.layer_norm_rms_epsilon")),
    }
    cfg = from_dict(ModelConfig, values, where)
    check(cfg.n_layers <= len(header.tensors), f"{header.file} must hold {cfg.n_layers} layers",
          f"{len(header.tensors)} tensors", AGAIN)        # before a list of that length is made
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        check(s.get(key, cfg.head_dim) == cfg.head_dim, f"{name}.{key} must be embedding_length / head_count",
              f"{s.get(key, None)!r}, not {cfg.head_dim}", REFUSED)
    check(s.get("vocab_size", cfg.vocab_size) == cfg.vocab_size, f"{name}.vocab_size must be the embedding's",
          f"{s.get('vocab_size', None)!r}, not {cfg.vocab_size}", AGAIN)
    return cfg


def _act(arch: Arch) -> str:
    return next(act for act, glu in ACTIVATIONS.items() if glu == arch.glu)


def _shortest(value: Any) -> Any:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if type(value) is float else value


class _Settings:
    """The settings of one architecture, by the names that follow its own."""

    def __init__(self, header: Header, arch: str) -> None:
        self.held, self.arch, self.file = header.settings, arch, header.file

    def get(self, key: str, *default: Any) -> Any:
        """The value, or the default. Raises CheckError where neither is there."""
        full = f"{self.arch}.{key}"
        check(full in self.held or len(default) > 0, f"{self.file} must have {full}", "none", AGAIN)
        value = self.held.get(full, *default)
        check(not isinstance(value, np.ndarray | list), f"{full} must be one value", type(value).__name__,
              "models whose layers differ are not supported")
        return value

    def refuse_unknown_parts(self) -> None:
        """What would change the numbers and has no equivalent here."""
        parts = str(self.held.get("split.count", 0))[:50]
        check(parts in ("0", "1"), f"{self.file} must be whole", f"a part of {parts}",
              "join the parts with llama-gguf-split --merge")
        for key in ("expert_count", "attention.sliding_window"):
            check(self.get(key, 0) == 0, f"{self.arch}.{key} must be off", str(self.get(key, 0))[:50],
                  REFUSED)
        kind, factor = self.get("rope.scaling.type", "none"), self.get("rope.scaling.factor", 1.0)
        check(kind == "none" or (kind == "linear" and factor in (0, 1)),
              f"{self.arch}.rope.scaling must not scale the positions", f"{kind!r} {factor!r}"[:50], REFUSED)


def _agree(header: Header, specs: dict[str, Spec]) -> None:
    """Every tensor is there in its shape and a type of its place, no other is; a token has its row."""
    names, where = set(), header.file.name
    tokens, rows = header.settings.get("tokenizer.ggml.tokens", ()), specs["embedding"].shape[0]
    check(not isinstance(tokens, list) or len(tokens) <= rows,
          f"tokenizer.ggml.tokens in {where} must be at most the embedding's {rows}", len(tokens), AGAIN)
    for spec in specs.values():
        name, scale = gguf_name(spec.name), gguf_name(spec.name, "scale")
        kinds = FLOATS + (TERNARY if spec.ternary else COARSE if spec.name in ("embedding", "head") else ())
        t = header.tensors.get(name)
        check(t is not None and t.shape == spec.shape and t.kind in kinds,
              f"{name} in {where} must be {', '.join(kinds)} of shape {spec.shape}",
              "none" if t is None else f"{t.kind} {t.shape}", AGAIN)
        held = header.tensors.get(scale) if spec.ternary else None
        check(held is None or (held.kind, held.shape) == ("F32", (1,)), f"{scale} must be F32 of shape (1,)",
              held and f"{held.kind} {held.shape}", AGAIN)
        names |= {name, scale} if held else {name}
    extra = sorted(set(header.tensors) - names)
    check(not extra, f"{where} must hold no tensor besides its architecture's",
          f"{', '.join(extra[:3])}"[:200], REFUSED)


def _layout(header: Header, told: str | None) -> str | None:
    """Which I2_S the file has: as told, as it says itself, or the only one that its shapes allow. Or None."""
    if told is not None:
        lookup(I2S, told, "i2s")
    if LAYOUT in header.settings:
        says = lookup(I2S, str(header.settings[LAYOUT])[:50], LAYOUT)
        check(told in (None, says), f"i2s must be what {header.file.name} says of itself, {says}", told,
              "leave i2s out")
        return says
    possible = _possible(header)
    return told or (possible[0] if len(possible) == 1 else None)


def _possible(header: Header) -> list[str]:
    """The layouts that the shapes allow."""
    shapes = [t.shape for t in header.tensors.values() if t.kind == "I2_S" and len(t.shape) == 2]
    return [layout for layout in I2S if all(_fits(layout, *shape) for shape in shapes)]


def _untold(header: Header) -> CheckError:
    return CheckError(
        f"the layout of I2_S must be told, for no file says it and a wrong one gives valid trits; got "
        f"{header.file.name}, whose shapes allow {', '.join(_possible(header)) or 'none'}; i2s = 128 if "
        "microsoft/BitNet's converter wrote it or llama-quantize on x86, 64 on ARM since November 2025, "
        "4row on x86 without ACT_PARALLEL")


def _fits(layout: str, n: int, k: int) -> bool:
    return n % 4 == 0 if layout == "4row" else n * k % int(layout) == 0


def _storage(specs: dict[str, Spec], stored: dict[str, Stored], layout: str | None) -> str:
    """How the matrices are stored, in words."""
    kinds = sorted({t.kind for name, t in stored.items() if len(specs[name].shape) == 2
                    and name not in ("embedding", "head")})
    i2s = f"I2_S {layout}" if layout else "I2_S, layout not said"
    return ", ".join(i2s if kind == "I2_S" else kind for kind in kinds)


def _unordered(t: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    return t if order is None else t[np.argsort(order)]


def _trits(name: str, t: Stored, layout: str) -> tuple[np.ndarray, np.float32]:
    """w_q int8 (N, K) and the scale in the tensor itself."""
    if t.kind == "I2_S":
        try:
            return unpack_i2s(raw(t)[0], t.shape, layout)                       # type: ignore[arg-type]
        except CheckError as e:
            raise CheckError(f"{gguf_name(name)}: {e}") from None
    return _from_floats(name, t) if t.kind in FLOATS else _from_blocks(name, t)


def _from_floats(name: str, t: Stored) -> tuple[np.ndarray, np.float32]:
    """Floats of -s, 0 and +s alone are trits already: absmean would shrink s. Others are masters."""
    w = np.asarray(_floats(name, t), np.float32)
    s = max(float(w.max()), -float(w.min()))
    w_q = (w > 0).astype(np.int8) - (w < 0)
    if s > 0 and np.array_equal(np.abs(w), np.abs(w_q) * np.float32(s)):
        return w_q, np.float32(s)
    w_q, w_scale = absmean_ternary(w)
    return w_q, np.float32(w_scale)


def _from_blocks(name: str, t: Stored) -> tuple[np.ndarray, np.float32]:
    """TQ1_0 and TQ2_0. The scales d of all blocks that are not zero must be one."""
    w_q, found = np.empty(t.shape, np.int8), set()
    for begin, blocks in _blocks(t):
        d = np.ascontiguousarray(blocks[:, -2:]).view("<f2")[:, 0]
        check(bool(np.all(np.isfinite(d) & (d >= 0))), f"the scales of {gguf_name(name)} must be positive",
              f"{d[~(np.isfinite(d) & (d >= 0))][:3]}", AGAIN)
        q = _decoded(blocks, t.kind)
        check(q.max() <= 1, f"every code of {gguf_name(name)} must be 0, 1 or 2", "3", AGAIN)
        q[d == 0] = 0
        found |= set(np.unique(d[(d > 0) & q.any(axis=1)]).tolist())
        check(len(found) <= 1, f"{gguf_name(name)} must have one scale, as a tensor of BitNet b1.58",
              f"blocks of {', '.join(f'{x:.6g}' for x in sorted(found)[:3])}",
              "convert the model from its trits: these blocks were quantised from other floats")
        rows = q.reshape(-1, t.shape[1])
        w_q[begin:begin + len(rows)] = rows
    return w_q, np.float32(found.pop() if found else 1)


def _decoded(blocks: np.ndarray, kind: str) -> np.ndarray:
    """Blocks of TQ, uint8 (n, bytes)  ->  their trits int8 (n, 256), whatever their scales."""
    gguf = library()
    ones = blocks.copy()
    ones[:, -2:] = np.array([1], "<f2").view(np.uint8)
    return gguf.quants.dequantize(ones, gguf.GGMLQuantizationType[kind]).astype(np.int8)


def _blocks(t: Stored) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, uint8 (blocks, bytes of a block)), some MiB at a time."""
    per_row = t.shape[-1] // TYPES[t.kind].block * TYPES[t.kind].n_bytes
    n_rows, step = math.prod(t.shape[:-1]), max(1, BLOCK // per_row)
    for begin in range(0, n_rows, step):
        yield begin, raw(t, begin, min(begin + step, n_rows)).reshape(-1, TYPES[t.kind].n_bytes)


def _product(name: str, w_scale: np.float32, scale: Stored | None) -> np.float32:
    """The scale in a tensor times the one in its .scale, if there is one."""
    value = np.float32(1) if scale is None else raw(scale).view("<f4")[0, 0]
    check(bool(np.isfinite(value) and value > 0), f"{gguf_name(name, 'scale')} must be positive and finite",
          value, AGAIN)
    with np.errstate(over="ignore"):
        w_scale = w_scale * value
    check(bool(np.isfinite(w_scale)), f"the scale of {gguf_name(name)} must be finite", w_scale, AGAIN)
    return w_scale


def _floats(name: str, t: Stored) -> np.ndarray:
    """A tensor of floats in its stored dtype; a coarse type becomes float32."""
    if t.kind in COARSE:
        gguf = library()
        w = np.empty(t.shape, np.float32)
        for begin, blocks in _blocks(t):
            rows = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[t.kind]).reshape(-1, t.shape[1])
            w[begin:begin + len(rows)] = rows
    else:
        w = raw(t).view(DTYPES[t.kind]).reshape(t.shape)
    ok = bool(np.isfinite(w.min()) and np.isfinite(w.max()))                    # NaN passes through both
    check(ok, f"{gguf_name(name)} in {t.file.name} must be finite", "NaN or infinity", AGAIN)
    return w
