"""ONNX export: a graph that onnxruntime and its kin run, with trits as int8 or as two bits each, not floats.

Tensors are read one by one. A small model is one file; a large one keeps its tensors in a second file beside
it, written as they come. Export only: a graph can be anything, so nothing is read back from one.
docs/formats/onnx.md is the specification.
Read after: formats/onnx_graph. Read next: formats/gguf_names.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.config import ModelConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.formats.onnx_graph import PACKED, SCALE, TYPES, Graph, Port, build
from bitnet_ref.formats.source import Source, Told, Written, tensors
from bitnet_ref.model.params import Spec, param_specs
from bitnet_ref.model.weights import Trits
from bitnet_ref.pack.rosetta import pack_hf
from bitnet_ref.quant import absmean_ternary

FORMAT = "bitnet_ref.onnx"
VERSION = 1
OPSET, IR = 18, 8                    # the first operators that do, and the file version that goes with them
WEIGHTS = {"int8": 8, "2bit": 2}     # bits of a trit
SINGLE = 1 << 27                     # bytes of tensors above which they go to a second file
LARGEST_ANGLES = 1 << 26             # bytes of cosines and sines: a context of 2^17 with heads of 128
LARGEST_TOKENIZER = 1 << 24          # bytes of a tokenizer.json that the file carries
PAGE = 4096                          # tensors begin at multiples of it in the second file: it can be mapped
FLOATS = ("float32", "float16", "bfloat16")


def write_onnx(path: str | Path, source: Source, weights: str = "int8", told: Told | None = None,
               cache: bool = False) -> Written:
    """Write `source` as an ONNX graph: ids int64 (B, T)  ->  logits float32 (B, T, V).

    `weights`: how trits are stored, int8 or 2bit. `cache`: past keys and values come in, present ones go out.
    Floats keep the dtype in which `source` has them, of 16 or 32 bits. Raises CheckError: no onnx, unknown
    `weights`, a scale or a float that is not finite, a disk that refuses; then no file is left.
    >>> from tempfile import TemporaryDirectory
    >>> from bitnet_ref.formats.example import model
    >>> with TemporaryDirectory() as d:                         # needs onnx
    ...     write_onnx(f"{d}/a.onnx", model(), "2bit").notes
    ('trits as 2bit',)
    """
    lookup(WEIGHTS, weights, "weights")
    library()
    _check_context(source.cfg)
    path = Path(path)
    beside = path.with_name(path.name + ".data")
    external = tensor_bytes(source.cfg, weights) > SINGLE
    if external:
        free = not beside.exists() or (beside.is_file() and beside.stat().st_size == 0)
        check(free or _is_ours(path, beside.name),
              "the file beside a large graph must be new, or that of the graph which is replaced", beside,
              "give another name, or move it away")
        _write_both(path, beside, source, weights, cache, told)
    else:
        with whole_file(path) as f:
            f.write(_serialised(source, weights, cache, told, None, ""))
    n_bytes = path.stat().st_size + (beside.stat().st_size if external else 0)
    return Written(path, n_bytes, len(source.specs), tuple(_notes(source, weights, cache, external)))


def _write_both(path: Path, beside: Path, source: Source, weights: str, cache: bool,
                told: Told | None) -> None:
    """The graph and its tensors, both or neither."""
    placed = False
    try:
        with whole_file(path) as f:
            with whole_file(beside) as data:
                f.write(_serialised(source, weights, cache, told, data, beside.name))
                f.flush()                                  # a full disk shows before anything is replaced
                path.unlink(missing_ok=True)               # an old graph must not meet the new tensors
            placed = True
    except BaseException:
        if placed:
            beside.unlink(missing_ok=True)
        raise


def _is_ours(path: Path, beside: str) -> bool:
    """Whether the tensors in the file called `beside` are those of a graph of ours in `path`."""
    try:
        made = library().load(str(path), load_external_data=False)
    except Exception:                                      # another file, or none: whatever the library says
        return False
    ours = any((p.key, p.value) == ("format", FORMAT) for p in made.metadata_props)
    return ours and any(e.value == beside for t in made.graph.initializer for e in t.external_data)


def check_file(path: str | Path) -> None:
    """Let the library look at a file that was written. Raises CheckError where it complains.
    >>> from tempfile import TemporaryDirectory
    >>> from bitnet_ref.formats.example import model
    >>> with TemporaryDirectory() as d:                         # needs onnx
    ...     check_file(write_onnx(f"{d}/a.onnx", model()).path)
    ...     _ = Path(d, "b.onnx").write_bytes(b"")
    ...     check_file(Path(d, "b.onnx"))                       # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: ...b.onnx must be valid ONNX; got ...; report this
    """
    library()
    from onnx.checker import ValidationError, check_model

    try:
        check_model(str(path))
    except ValidationError as e:
        raise CheckError(f"{path} must be valid ONNX; got {str(e)[:200]}; report this") from None


def _check_context(cfg: ModelConfig) -> None:
    """Raise CheckError where cosines and sines, (context, Dh/2) each, would be too large."""
    n_bytes = _angle_bytes(cfg)
    check(n_bytes <= LARGEST_ANGLES,
          f"context must be so that its angles have at most {LARGEST_ANGLES} bytes in an ONNX file",
          f"{n_bytes:,} for context {cfg.context:,}", "lower the model's context")


def _angle_bytes(cfg: ModelConfig) -> int:
    return cfg.context * cfg.head_dim * 4


def _serialised(source: Source, weights: str, cache: bool, told: Told | None, data: BinaryIO | None,
                beside: str) -> bytes:
    """The file; tensors in it, or in `data`, whose name is `beside`."""
    held = _held(source, weights, told, data, beside)
    made = proto(build(source.cfg, {name: _dtype(t) for name, t in held.items()}, cache), list(held.values()))
    for key, value in _metadata(source).items():
        made.metadata_props.add(key=key, value=value)
    return made.SerializeToString(deterministic=True)


def library() -> Any:
    """The package onnx. Raises CheckError where it is not installed.
    >>> library().__name__                                      # needs onnx
    'onnx'
    """
    try:
        import onnx
        import onnx.helper
    except ImportError as e:
        raise CheckError(f"ONNX files need the package onnx; got {e}; "
                         'in a clone, pip install ".[export]"') from None
    return onnx


def tensor_bytes(cfg: ModelConfig, weights: str) -> int:
    """Bytes of the model's tensors in a file, angles included: trits as `weights` says, all else as float32
    (the most).
    >>> round(tensor_bytes(ModelConfig(), "int8") / tensor_bytes(ModelConfig(), "2bit"), 1)
    1.5
    """
    total = _angle_bytes(cfg)
    for spec in param_specs(cfg):
        total += math.prod(spec.shape) * (WEIGHTS[weights] if spec.ternary else 32) // 8
    if cfg.tied_embeddings and cfg.head == "ternary":
        total += cfg.vocab_size * cfg.d_model * WEIGHTS[weights] // 8
    return total


def _held(source: Source, weights: str, told: Told | None, data: BinaryIO | None,
          beside: str) -> dict[str, Any]:
    """{name: TensorProto} of every tensor, in the order of the table; the bytes in them, or in `data`."""
    held: dict[str, Any] = {}

    def hold(name: str, a: np.ndarray) -> None:
        held[name] = _initialiser(name, a, data, beside)

    for spec, t in tensors(source):
        _check_kind(spec, t)
        if isinstance(t, Trits):
            _hold_trits(hold, spec.name, t, weights)
        else:
            hold(spec.name, _float(spec.name, t))
            if spec.name == "embedding" and source.cfg.tied_embeddings and source.cfg.head == "ternary":
                _hold_trits(hold, "head", Trits(*absmean_ternary(np.asarray(t, np.float32))), weights)
        if told:
            told(spec.name)
    return held


def _check_kind(spec: Spec, t: Any) -> None:
    """A source that keeps its contract never fails here; the graph would run on other numbers if it did."""
    kind, a = ("trits", t.w_q) if isinstance(t, Trits) else ("floats", t)
    want = "trits" if spec.ternary else "floats"
    check(kind == want and a.shape == spec.shape, f"{spec.name} must be {want} of shape {spec.shape}",
          f"{kind} {a.shape}", "correct the reader of this format")
    ok = kind == "floats" or (a.dtype == np.int8 and a.min() >= -1 and a.max() <= 1)
    check(ok, f"{spec.name} must hold -1, 0 and +1 in int8", f"other {a.dtype}",
          "correct the reader of this format")


def _hold_trits(hold: Any, name: str, t: Trits, weights: str) -> None:
    """Trits (N, K) as int8 (K, N), or in Hugging Face's bytes, (K, 1, ceil(N/4)); and their scale."""
    scale = np.float32(t.w_scale)
    check(bool(np.isfinite(scale) and scale > 0), f"the scale of {name} must be positive and finite", scale,
          "write the model anew from its source")
    if weights == "int8":
        hold(name, np.ascontiguousarray(t.w_q.T))
    else:
        hold(name + PACKED, np.ascontiguousarray(pack_hf(t.w_q).T[:, None]))
    hold(name + SCALE, np.array(scale))


def _float(name: str, w: np.ndarray) -> np.ndarray:
    w = np.asarray(w, w.dtype if str(w.dtype) in FLOATS else np.float32)
    ok = bool(np.isfinite(w.min()) and np.isfinite(w.max()))                    # NaN passes through both
    check(ok, f"{name} must be finite", "NaN or infinity", "write the model anew from its source")
    return np.ascontiguousarray(w)


def _initialiser(name: str, a: np.ndarray, data: BinaryIO | None, beside: str) -> Any:
    onnx = library()
    t = onnx.TensorProto(name=name, data_type=TYPES[str(a.dtype)], dims=a.shape)
    if data is None or a.nbytes < PAGE:
        t.raw_data = a.tobytes()                           # little endian, as ONNX demands
        return t
    data.write(bytes(-data.tell() % PAGE))
    t.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", beside), ("offset", data.tell()), ("length", a.nbytes)):
        t.external_data.add(key=key, value=str(value))
    data.write(a.reshape(-1).view(np.uint8).data)
    return t


def _dtype(t: Any) -> str:
    return next(name for name, code in TYPES.items() if code == t.data_type)


def proto(graph: Graph, held: list[Any]) -> Any:
    """The ModelProto of a graph and the initialisers `held`, TensorProtos, that it names.
    >>> from bitnet_ref.formats.onnx_graph import Node
    >>> graph = Graph(ModelConfig(), {}, [], [], [Node("Add", ("a", "b"), ("c",), "BK.5", {})], {})
    >>> [node.op_type for node in proto(graph, []).graph.node]  # needs onnx
    ['Add']
    """
    onnx = library()
    made = onnx.GraphProto(name="bitnet", initializer=held)
    for i, n in enumerate(graph.nodes):
        names = {"name": f"{i}.{n.op}", "doc_string": n.tag}
        made.node.append(onnx.helper.make_node(n.op, n.inputs, n.outputs, **names, **n.attributes))
    made.initializer.extend(_initialiser(name, a, None, "") for name, a in graph.constants.items())
    made.input.extend(_port(p) for p in graph.inputs)
    made.output.extend(_port(p) for p in graph.outputs)
    model = onnx.ModelProto(ir_version=IR, producer_name="bitnet_ref", graph=made)
    model.opset_import.add(domain="", version=OPSET)
    return model


def _port(p: Port) -> Any:
    return library().helper.make_tensor_value_info(p.name, TYPES[p.dtype], p.dims)


def _metadata(source: Source) -> dict[str, str]:
    """What a file says beside its graph, as text."""
    found = {"format": FORMAT, "version": str(VERSION),
             "config": json.dumps(asdict(source.cfg), sort_keys=True),
             "about": json.dumps(source.about._asdict(), sort_keys=True)}
    if source.tokenizer is not None and _fits(source.tokenizer):
        found["tokenizer"] = source.tokenizer
    return found


def _fits(tokenizer: str) -> bool:
    return len(tokenizer.encode("utf-8")) <= LARGEST_TOKENIZER


def _notes(source: Source, weights: str, cache: bool, external: bool) -> list[str]:
    notes = [f"trits as {weights}" if source.cfg.linear == "ternary" else "no trits: a full-precision model"]
    if cache:
        notes.append("keys and values come in as past_*, go out as present_*")
    if external:
        notes.append("the tensors are in the .data file beside it: keep the two together")
    if source.tokenizer is not None and not _fits(source.tokenizer):
        notes.append(f"tokenizer.json is above {LARGEST_TOKENIZER >> 20} MiB and not in the file: copy it")
    return notes
