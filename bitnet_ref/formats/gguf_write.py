"""A model as a GGUF: for llama.cpp (F32, F16, TQ1_0, TQ2_0) and for microsoft/BitNet (I2_S).

The graph is fixed by the architecture's name, so a model must fit one: what none of them runs, or would run
wrong, is refused with the reason. The package gguf writes the header; tensors follow one by one.
Port note: in TQ the trits are stored as they are, block scale 1, and the scale of the tensor is a tensor of
its own, `.scale`; as a block scale it would be rounded to float16.
Read after: formats/gguf_read. Read next: formats/opened.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.config import ModelConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.formats.gguf_about import notes
from bitnet_ref.formats.gguf_about import settings as about_settings
from bitnet_ref.formats.gguf_header import ALIGNMENT
from bitnet_ref.formats.gguf_names import (
    ACTIVATION,
    ACTIVATIONS,
    ARCHS,
    LAYOUT,
    TYPES,
    gguf_name,
    library,
    stored_rows,
)
from bitnet_ref.formats.gguf_tokenizer import settings as tokenizer_settings
from bitnet_ref.formats.source import Source, Told, Written
from bitnet_ref.model.params import Spec
from bitnet_ref.model.weights import Trits
from bitnet_ref.pack.rosetta import pack_i2s

BLOCK = 1 << 22                      # values converted at a time


class Kind(NamedTuple):
    """What a file is called by: types of matrices and embedding, the number of general.file_type."""

    matrices: str
    embedding: str
    file_type: int


KINDS = {"f32": Kind("F32", "F32", 0), "f16": Kind("F16", "F16", 1), "tq1_0": Kind("TQ1_0", "F16", 36),
         "tq2_0": Kind("TQ2_0", "F16", 37), "i2_s": Kind("I2_S", "F16", 40)}


class Entry(NamedTuple):
    """A tensor of the file. `scale`: it is the scale of the one before it, and holds one number."""

    spec: Spec
    name: str
    type: str
    scale: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return (1,) if self.scale else self.spec.shape

    @property
    def n_bytes(self) -> int:
        """Without what aligns the next one."""
        t = TYPES[self.type]
        return int(np.prod(self.shape, dtype=np.int64)) // t.block * t.n_bytes + t.tail


def write_gguf(path: str | Path, source: Source, kind: str, relu2: bool = False,
               told: Told | None = None) -> Written:
    """Write `source` as one GGUF, whole or not at all. kind: f32, f16, tq1_0, tq2_0 or i2_s.

    `relu2`: write a ReLU2 model for mainline too, which will run it with SiLU. Raises CheckError for a model
    that the architecture does not run, a width that the type cannot store, a tokenizer that llama.cpp has no
    equivalent for, values out of range, a disk that refuses, or where gguf is not installed.
    Source: llama.cpp, src/models/bitnet.cpp; microsoft/BitNet, utils/convert-hf-to-gguf-bitnet.py.
    >>> from tempfile import TemporaryDirectory
    >>> from bitnet_ref.formats.example import model
    >>> with TemporaryDirectory() as d:                         # needs gguf
    ...     write_gguf(f"{d}/a.gguf", model(), "f16").notes[0]
    'architecture bitnet'
    """
    gguf, cfg = library(), source.cfg
    arch = architecture(cfg, kind, relu2)
    entries = list(_entries(source, KINDS[kind]))
    with whole_file(path) as f:
        _write_header(gguf, f, arch, _settings(source, arch, kind), entries)
        scale = np.float32(1)
        for e in entries:
            if e.scale:
                f.write(np.array([scale], "<f4").tobytes())
            else:
                t = source.read(e.spec.name)
                scale = _checked_scale(e, t)
                _write_tensor(f, e, t, stored_rows(e.spec.name, cfg, ARCHS[arch]), gguf)
                if told:
                    told(e.spec.name)
            f.write(bytes(-e.n_bytes % ALIGNMENT))
        n_bytes = f.tell()
    return Written(Path(path), n_bytes, len(entries), tuple(_notes(source, arch, kind)))


def architecture(cfg: ModelConfig, kind: str, relu2: bool = False) -> str:
    """The general.architecture that runs `cfg`. Raises CheckError with the reason where there is none.
    >>> architecture(ModelConfig(), "tq2_0"), architecture(ModelConfig(norm="pre", linear="full"), "f16")
    ('bitnet', 'llama')
    """
    lookup(KINDS, kind, "kind")
    if cfg.linear == "full":
        check(kind in ("f32", "f16"), "a full-precision model must be exported as f32 or f16", kind,
              "its weights are no trits")
        check(cfg.norm == "pre", "a full-precision model must have norm = pre: llama.cpp's arch llama has no "
              "other norms", cfg.norm, "export another model")
        arch = "llama"
    else:
        check(cfg.norm == "sub", "a ternary model must have norm = sub: the bitnet graphs of llama.cpp have "
              "just these norms", cfg.norm, "write a .bitnet file or a Hugging Face folder instead")
        check(cfg.tied_embeddings, "a ternary model must have tied embeddings: the bitnet graphs of "
              "llama.cpp multiply by token_embd and refuse an output.weight", "a head of its own",
              "write a .bitnet file or a Hugging Face folder instead")
        arch = "bitnet-b1.58" if kind == "i2_s" and cfg.glu == "relu2" else "bitnet"
    check(cfg.head == "full", "the head must be full: no graph of llama.cpp quantises its input", cfg.head,
          "write a .bitnet file instead")
    check(cfg.glu == ARCHS[arch].glu or relu2, f"the gated unit must be SwiGLU: llama.cpp's arch {arch} runs "
          "SiLU whatever the file says, and a ReLU2 model would answer nonsense", cfg.glu,
          "export i2_s for microsoft/BitNet, or give --relu2 if your runtime reads "
          f"{arch}.{ACTIVATION}")
    return arch


def _entries(source: Source, kind: Kind) -> Iterator[Entry]:
    """Every tensor of the file in order. Raises CheckError for a width that its type cannot store."""
    for spec in source.specs.values():
        matrix = len(spec.shape) == 2
        chosen = kind.embedding if spec.name in ("embedding", "head") else kind.matrices if matrix else "F32"
        block = 128 if chosen == "I2_S" else TYPES[chosen].block                # its kernels go by rows
        check(spec.shape[-1] % block == 0,
              f"the width of {spec.name} must be a multiple of {block} for {chosen}", spec.shape[-1],
              "export f16 or f32, or train a model of such widths")
        yield Entry(spec, gguf_name(spec.name), chosen)
        if chosen in ("TQ1_0", "TQ2_0"):
            yield Entry(spec, gguf_name(spec.name, "scale"), "F32", scale=True)


def _settings(source: Source, arch: str, kind: str) -> dict[str, Any]:
    """All settings but general.architecture, which the library adds."""
    cfg, about = source.cfg, source.about
    act = next(a for a, glu in ACTIVATIONS.items() if glu == cfg.glu)
    held: dict[str, Any] = {
        "general.type": "model",
        "general.file_type": KINDS[kind].file_type, "general.quantization_version": 2,
        f"{arch}.vocab_size": cfg.vocab_size, f"{arch}.context_length": cfg.context,
        f"{arch}.embedding_length": cfg.d_model, f"{arch}.block_count": cfg.n_layers,
        f"{arch}.feed_forward_length": cfg.d_ff, f"{arch}.attention.head_count": cfg.n_heads,
        f"{arch}.attention.head_count_kv": cfg.n_kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": float(cfg.norm_eps),
        f"{arch}.rope.dimension_count": cfg.head_dim, f"{arch}.rope.freq_base": float(cfg.rope_theta)}
    if cfg.glu != ARCHS[arch].glu:
        held[f"{arch}.{ACTIVATION}"] = act
    if kind == "i2_s":
        held[LAYOUT] = "128"
    held |= {"tokenizer.ggml.model": "no_vocab"} if source.tokenizer is None else tokenizer_settings(
        source.tokenizer, cfg.vocab_size, about)
    return held | about_settings(about, held, cfg.vocab_size)


def _write_header(gguf: Any, f: BinaryIO, arch: str, held: dict[str, Any], entries: list[Entry]) -> None:
    """Everything before the data, by the library, and its padding. Leaves `f` at the data's begin."""
    writer = gguf.GGUFWriter(f.name, arch)
    try:
        for name, value in held.items():
            _add(writer, name, value)
        for e in entries:
            writer.add_tensor_info(e.name, e.shape, np.dtype(np.float32), e.n_bytes, TYPES[e.type].number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    except (ValueError, UnicodeEncodeError) as e:
        raise CheckError(f"the settings must be what a GGUF can hold; got {str(e)[:200]}; correct the name, "
                         "the chat template or the tokenizer") from None
    finally:
        writer.close()
    f.seek(0, os.SEEK_END)
    f.write(bytes(-f.tell() % ALIGNMENT))


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_uint32(name, value)


def _checked_scale(e: Entry, t: Any) -> np.float32:
    scale = np.float32(t.w_scale if isinstance(t, Trits) else 1)
    check(bool(np.isfinite(scale) and scale > 0), f"the scale of {e.spec.name} must be positive and finite",
          scale, "look at the model: it may have diverged in training")
    return scale


def _write_tensor(f: BinaryIO, e: Entry, t: Any, order: np.ndarray | None, gguf: Any) -> None:
    """The bytes of one tensor, some rows at a time; `order`: which row comes when."""
    if e.type == "I2_S":
        f.write(pack_i2s(t.w_q, t.w_scale, "128").data)
        return
    table = np.atleast_2d(t.w_q if isinstance(t, Trits) else t)
    step = max(1, BLOCK // table.shape[1])
    for begin in range(0, len(table), step):
        rows = table[begin:begin + step] if order is None else table[order[begin:begin + step]]
        rows = rows.astype(np.float32)
        if e.type in ("TQ1_0", "TQ2_0"):
            f.write(gguf.quants.quantize(rows, gguf.GGMLQuantizationType[e.type]).data)
            continue
        if isinstance(t, Trits):
            rows *= np.float32(t.w_scale)
        f.write(_floats(e, rows).data)


def _floats(e: Entry, rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(rows, "<f2" if e.type == "F16" else "<f4")
    check(bool(np.isfinite(made).all()), f"{e.spec.name} must be finite in {e.type}", "infinity or NaN",
          "export f32, or look at the model")
    return made


def _notes(source: Source, arch: str, kind: str) -> Iterator[str]:
    """What the reader of a summary should know of this file."""
    yield f"architecture {arch}"
    if source.cfg.glu != ARCHS[arch].glu:
        yield "mainline llama.cpp runs SiLU on this ReLU2 model: wrong"
    if kind in ("tq1_0", "tq2_0"):
        yield "llama.cpp quantises activations by blocks of 256, not by token: logits are close, not equal"
    if kind in ("f32", "f16") and source.cfg.linear == "ternary":
        yield "llama.cpp does not quantise the activations of this file"
    if kind == "f16" and source.cfg.linear == "ternary":
        yield "scales of trits are rounded to float16"
    if kind == "i2_s":
        yield "layout 128, for microsoft/BitNet on x86; mainline llama.cpp has no I2_S"
    if source.tokenizer is None:
        yield "no tokenizer: the file runs on token ids alone"
    yield from notes(source.about, source.tokenizer is not None)
