"""A Hugging Face folder: config.json and model.safetensors, in one file or in shards.

Reads what public BitNets are published as: trits packed by rows (2B4T; the ternary LLaMAs and Falcons, whose
weight_scale is the reciprocal), float masters (2B4T bf16, 1bitLLM), and plain LLaMAs. Headers are read and
agreed with the config first; tensors then come one by one. docs/formats/hf.md is the specification.
Port note: one name, weight_scale, two meanings. quantization_config.linear_class decides, not the values.
Read after: formats/hf_about. Read next: formats/hf_write.
"""

import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import ModelConfig
from bitnet_ref.formats.hf_about import read_about, tokenizer_text
from bitnet_ref.formats.hf_config import STORAGES, HfConfig, read_config
from bitnet_ref.formats.safetensors_stream import (
    FLOATS,
    INDEX,
    SINGLE,
    Stored,
    array,
    blocks,
    read_header,
    rows,
    shards,
)
from bitnet_ref.formats.source import Source, weights
from bitnet_ref.model.params import Spec, param_specs
from bitnet_ref.model.weights import Trits, Weights
from bitnet_ref.pack.rosetta import unpack_hf
from bitnet_ref.quant import absmean_ternary

PACKED = ("multiply", "divide")
ALIASES = {"self_attn.attn_sub_norm": "self_attn.inner_attn_ln", "mlp.ffn_sub_norm": "mlp.ffn_layernorm"}
DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # tables that old files carry
SHARE = 1 << 20                      # entries looked at, or converted, at a time
SCALE = "_scale"                     # of q_proj.weight: q_proj.weight_scale


class Checkpoint(NamedTuple):
    """An opened folder: `stored` by our names; `scales` of the packed matrices among them."""

    config: HfConfig
    specs: dict[str, Spec]
    stored: dict[str, Stored]
    scales: dict[str, Stored]


class Disagreement(NamedTuple):
    """A tensor, by its name in the file, that is not as the config has it."""

    name: str
    rule: str
    got: str


def is_folder(path: str | Path) -> bool:
    """Whether `path` looks like one: it holds weights under a name that transformers gives them.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     is_folder(folder), is_folder(folder.parent)
    (True, False)
    """
    return (Path(path) / SINGLE).is_file() or (Path(path) / INDEX).is_file()


def open_folder(path: str | Path) -> Checkpoint:
    """Read config and headers, and agree them. Allocates nothing of a size that the files claim.

    Raises CheckError for a damaged, foreign or unsupported folder.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     open_folder(folder).stored["layers.0.attn.wq"][1:3]
    ('U8', (2, 8))
    """
    folder = Path(path)
    config, held = read_config(folder), _headers(folder)
    for d in disagreements(config, held):
        raise CheckError(f"{d.name} {d.rule}; got {d.got} in {folder}; "
                         "for all faults of the folder run python -m bitnet_ref.conform hf")
    specs = {s.name: s for s in param_specs(config.model)}
    names = {s.name: file_name(s, held) for s in specs.values()}
    scales = {n: held[names[n] + SCALE] for n, s in specs.items() if s.ternary and config.storage in PACKED}
    return Checkpoint(config, specs, {ours: held[name] for ours, name in names.items()}, scales)


def _headers(folder: Path) -> dict[str, Stored]:
    """Every tensor of every file by its name there. Raises CheckError as `read_header`; a name twice."""
    held: dict[str, Stored] = {}
    for file, promised in shards(folder).items():
        found = read_header(file)
        twice = sorted(set(held) & set(found))
        check(not twice, "a tensor must be in one shard", f"{twice[:3]} in two", "download the shards again")
        wrong = sorted(set(promised) ^ set(found)) if promised is not None else []
        check(not wrong, f"{file.name} must hold what the index says",
              f"a difference in {', '.join(wrong[:3])}"[:200], "download the shards and the index again")
        held.update(found)
    return held


def file_name(spec: Spec, held: dict[str, Stored]) -> str:
    """The name of a tensor in the file: Spec.hf_name, or 1bitLLM's for it.
    >>> file_name(param_specs(ModelConfig())[1], held={})
    'model.layers.0.self_attn.q_proj.weight'
    """
    for ours, theirs in ALIASES.items():
        if spec.hf_name not in held and ours in spec.hf_name:
            other = spec.hf_name.replace(ours, theirs)
            return other if other in held else spec.hf_name
    return spec.hf_name


def disagreements(config: HfConfig, held: dict[str, Stored]) -> Iterator[Disagreement]:
    """Every tensor that is missing, superfluous, or of another shape or dtype than the config demands.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     held = read_header(folder / SINGLE)
    ...     del held["model.norm.weight"]
    ...     next(disagreements(read_config(folder), held))
    Disagreement(name='model.norm.weight', rule='must be F64 or F32 or F16 or BF16 of shape (8,)', got='none')
    """
    cfg = config.model
    if cfg.n_layers > len(held):                           # before a list of that length is made
        yield Disagreement("the folder", f"must hold {cfg.n_layers} layers", f"{len(held)} tensors")
        return
    seen = {"lm_head.weight"} if cfg.tied_embeddings else set()     # superfluous then, but harmless
    for spec in param_specs(cfg):
        name = file_name(spec, held)
        seen |= {name, name + SCALE} if spec.ternary and config.storage in PACKED else {name}
        yield from _disagreement(name, spec, config.storage, held)
    for name in held:
        if name not in seen and not DERIVED.fullmatch(name):
            yield Disagreement(name[:100], "must not be there: the config has no such tensor",
                               f"{held[name].dtype} {held[name].shape}")


def _disagreement(name: str, spec: Spec, storage: str, held: dict[str, Stored]) -> Iterator[Disagreement]:
    shape, dtypes = spec.shape, list(FLOATS)
    if spec.ternary and storage in PACKED:
        if spec.shape[0] % 4:
            yield Disagreement(name, "must have a multiple of 4 rows to be packed", str(spec.shape[0]))
        shape, dtypes = (-(-spec.shape[0] // 4), spec.shape[1]), ["U8"]
        scale = held.get(name + SCALE)
        if scale is None or scale.dtype not in FLOATS or scale.shape not in ((), (1,)):
            yield Disagreement(name + SCALE, f"must be {' or '.join(FLOATS)} of shape (1,)", _kind(scale))
    t = held.get(name)
    if t is None or t.dtype not in dtypes or t.shape != shape:
        yield Disagreement(name, f"must be {' or '.join(dtypes)} of shape {shape}", _kind(t))


def _kind(t: Stored | None) -> str:
    return "none" if t is None else f"{t.dtype} {t.shape}"


def open_hf(path: str | Path) -> Source:
    """A Hugging Face folder as a Source. Floats come as they are stored, masters of trits from `master`.

    Raises CheckError as `open_folder`, and for small files that are damaged or absurd; what `read` and
    `master` return is checked when it is read: NaN, a code 3, no scale.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     open_hf(folder).read("layers.0.attn.wq").w_q.shape
    (8, 8)
    """
    folder = Path(path)
    opened = open_folder(folder)
    config = opened.config
    master = partial(floats, opened) if config.storage == "masters" else None
    return Source(folder, "hf", STORAGES[config.storage], config.model, read_about(folder, config),
                  tokenizer_text(folder), partial(tensor, opened), master)


def tensor(checkpoint: Checkpoint, name: str) -> np.ndarray | Trits:
    """One tensor by our name: Trits whose scale multiplies, or floats in their stored dtype.

    Raises CheckError: NaN, a code 3.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     tensor(open_folder(folder), "final_norm").dtype.name
    'bfloat16'
    """
    t, spec, storage = checkpoint.stored[name], checkpoint.specs[name], checkpoint.config.storage
    if spec.ternary and storage in PACKED:
        return Trits(_unpacked(name, t, spec.shape[0]), multiplier(name, checkpoint.scales[name], storage))
    w = floats(checkpoint, name)
    return Trits(*absmean_ternary(w.astype(np.float32, copy=False))) if spec.ternary else w


def floats(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """One tensor of floats in its stored dtype; of a ternary matrix, the masters. Raises CheckError: NaN.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     floats(open_folder(folder), "embedding").shape
    (12, 8)
    """
    t = checkpoint.stored[name]
    check(t.dtype in FLOATS, f"{name} must be stored as floats", t.dtype, "read it as trits")
    return _finite(name, t, array(t))


def _unpacked(name: str, t: Stored, n_rows: int) -> np.ndarray:
    try:
        return unpack_hf(array(t), n_rows)
    except CheckError as e:
        raise CheckError(f"{name} in {t.file.name}: {e}") from None


def multiplier(name: str, scale: Stored, storage: str) -> np.float32:
    """What a stored weight_scale means for trits: itself, or its reciprocal. Raises CheckError: no scale.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     scale = Stored(Path(d, "a"), "F32", (1,), 0, 4)
    ...     n = scale.file.write_bytes(np.float32(4).tobytes())
    ...     [multiplier("layers.0.attn.wq", scale, storage).item() for storage in ("multiply", "divide")]
    [4.0, 0.25]
    """
    value = np.float32(array(scale).reshape(-1)[0])
    with np.errstate(divide="ignore", over="ignore"):
        found = value if storage == "multiply" else 1 / value
    check(bool(0 < value < np.inf and 0 < found < np.inf),
          f"{name} in {scale.file.name}: its weight_scale must be positive and finite", value,
          "download the file again")
    return found


def _finite(name: str, t: Stored, x: np.ndarray) -> np.ndarray:
    """x of `t`, looked at a few rows at a time: nothing of its size is made."""
    step = max(1, SHARE // max(1, math.prod(x.shape[1:])))
    for begin in range(0, len(x), step):
        block = np.asarray(x[begin:begin + step], np.float64 if x.dtype == np.float64 else np.float32)
        ok = bool(np.isfinite(block.min()) and np.isfinite(block.max()))        # NaN passes through both
        check(ok, f"{name} in {t.file.name} must be finite", "NaN or infinity", "download the file again")
    return x


def embedding_rows(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    """ids int (T,)  ->  float32 (T, D).   Only these rows are read.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     embedding_rows(open_folder(folder), np.array([3, 1])).shape
    (2, 8)
    """
    t = checkpoint.stored["embedding"]
    return _finite("embedding", t, np.asarray(rows(t)[ids], np.float32))


def head_rows(checkpoint: Checkpoint) -> Iterator[np.ndarray]:
    """The output projection's rows in order, float32 (n, D) each, some MiB at a time.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     [block.shape for block in head_rows(open_folder(folder))]
    [(12, 8)]
    """
    head = "embedding" if checkpoint.config.model.tied_embeddings else "head"
    t = checkpoint.stored[head]
    for block in blocks(t, 1 << 26):
        yield _finite(head, t, np.asarray(block, np.float32))


def read(path: str | Path) -> tuple[ModelConfig, Weights]:
    """The model of a folder, ready for Transformer(cfg, weights, ops). Floats are float32 in memory.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     cfg, table = read(folder)
    >>> cfg.n_layers, table["embedding"].dtype.name
    (1, 'float32')
    """
    source = open_hf(path)
    return source.cfg, weights(source)
