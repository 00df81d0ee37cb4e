"""The ONNX graph of a model, as plain data: nodes in dataflow order, small constants, inputs and outputs.

It follows model/transformer line by line; each node carries the tag of the line it computes. Operators are of
opset 18 alone, so a runtime of 2023 has them. Nothing here imports onnx, and no tensor of the model is here:
nodes name them. docs/formats/onnx.md says what is exact.
Port note: MatMulInteger has no transpose, so trits are stored (K, N); Gemm has one, so floats stay (N, K).
Read after: formats/bitnet. Read next: formats/onnx.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.config import ModelConfig
from bitnet_ref.layers.rope import rope_table
from bitnet_ref.model.layout import FREE, Entry, layout, shapes
from bitnet_ref.quant import FLOOR

# Numbers of ONNX's element types (TensorProto.DataType).
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7, "float16": 10, "bfloat16": 16}
SCALE, PACKED = ".scale", ".packed"  # of layers.0.attn.wq: its scale; its trits as bytes


class Node(NamedTuple):
    """One operator. `tag`: of the equation that it computes, such as RN.1; empty for plumbing."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tag: str
    attributes: dict[str, Any]


class Port(NamedTuple):
    """An input or output of the graph; `dims` are numbers, or names of free sizes."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


class Graph(NamedTuple):
    """What `build` fills. `held`: the dtype of each initialiser that is a tensor of the model, by name."""

    cfg: ModelConfig
    held: dict[str, str]
    inputs: list[Port]
    outputs: list[Port]
    nodes: list[Node]
    constants: dict[str, np.ndarray]


def build(cfg: ModelConfig, held: dict[str, str], cache: bool) -> Graph:
    """ids int64 (B, T)  ->  logits float32 (B, T, V); with `cache` also keys and values, past and present.

    `held`: names and dtypes of the initialisers that formats/onnx has stored.
    >>> from bitnet_ref.formats.example import model
    >>> source = model(norm="pre")
    >>> build(source.cfg, dict.fromkeys(source.specs, "float32"), cache=False).outputs[0]
    Port(name='logits', dtype='float32', dims=('batch', 'tokens', 12))
    """
    g = Graph(cfg, held, [Port("ids", "int64", ("batch", "tokens"))],
              [Port("logits", "float32", ("batch", "tokens", cfg.vocab_size))], [], {})
    _positions(g, cache)
    rows = put(g, "Gather", ["embedding", "ids"], "rows", "TR.1", axis=0)
    x = _wide(g, rows, held["embedding"])
    for l in range(cfg.n_layers):
        x = _block(g, x, l, cache)
    (logits,) = _project(g, x, (Entry("final_norm", ("head",)),), "", cfg.head, cfg.d_model)
    put(g, "Identity", [logits], "logits", "TR.3")
    return g


def put(g: Graph, op: str, inputs: list[str], name: str, tag: str = "", **attributes: Any) -> str:
    """Append one node with one output, `name`, which is returned.
    >>> g = Graph(ModelConfig(), {}, [], [], [], {})
    >>> put(g, "Add", ["a", "b"], "c", "BK.5"), g.nodes[0].inputs
    ('c', ('a', 'b'))
    """
    g.nodes.append(Node(op, tuple(inputs), (name,), tag, attributes))
    return name


def constant(g: Graph, name: str, value: Any, dtype: str = "float32") -> str:
    """A small initialiser, made once; `name` is returned.
    >>> g = Graph(ModelConfig(), {}, [], [], [], {})
    >>> constant(g, "half", 0.5), g.constants["half"].dtype.name
    ('half', 'float32')
    """
    g.constants.setdefault(name, np.asarray(value, dtype))
    return name


def _ints(g: Graph, *values: int) -> str:
    return constant(g, "ints." + ".".join(map(str, values)), values, "int64")


def _positions(g: Graph, cache: bool) -> None:
    """The angles and the mask of all blocks: cos, sin (T, 1, Dh/2) and mask (T, S)."""
    cfg = g.cfg
    cos, sin = rope_table(np.arange(cfg.context), cfg.head_dim, cfg.rope_theta)
    zero, one = constant(g, "zero", 0, "int64"), constant(g, "one", 1, "int64")
    size = put(g, "Shape", ["ids"], "size")                                     # [B, T]
    first, last = zero, put(g, "Gather", [size, one], "new_tokens")
    if cache:
        past = put(g, "Shape", ["past_key.0"], "past_size")
        first = put(g, "Gather", [past, constant(g, "two", 2, "int64")], "past_tokens")
        last = put(g, "Add", [first, last], "all_tokens")
    queries = put(g, "Range", [first, last, one], "query_positions")
    keys = put(g, "Range", [zero, last, one], "key_positions")
    rows = put(g, "Unsqueeze", [queries, _ints(g, 1)], "query_rows")
    later = put(g, "Greater", [keys, rows], "is_later", "AT.2")
    infinity, nothing = constant(g, "minus_infinity", -np.inf), constant(g, "nothing", 0.0)
    put(g, "Where", [later, infinity, nothing], "mask", "AT.2")
    put(g, "Gather", [constant(g, "rope.cos", cos), queries], "cos", "RO.1", axis=0)
    put(g, "Gather", [constant(g, "rope.sin", sin), queries], "sin", "RO.1", axis=0)
    put(g, "Concat", [size, _ints(g, -1)], "size_and_rest", axis=0)             # [B, T, -1]


def _block(g: Graph, x: str, l: int, cache: bool) -> str:
    at, cfg, places = f"layers.{l}.", g.cfg, layout(g.cfg)
    D, F = cfg.d_model, cfg.d_ff
    q, k, v = _project(g, x, places.qkv, at, cfg.linear, D)
    q = _rope(g, _heads(g, q, cfg.n_heads), at + "q")
    k = _rope(g, _heads(g, k, cfg.n_kv_heads), at + "k")
    o = _attention(g, q, k, _heads(g, v, cfg.n_kv_heads), l, cache)
    (a,) = _project(g, o, places.out, at, cfg.linear, D)
    h = put(g, "Add", [x, a], at + "h", "BK.5")
    gate, up = _project(g, h, places.gate_up, at, cfg.linear, D)
    (f,) = _project(g, GLU[cfg.glu](g, gate, up, at), places.down, at, cfg.linear, F)
    return put(g, "Add", [h, f], at + "x", "BK.9")


def _project(g: Graph, x: str, entries: tuple[Entry, ...], at: str, kind: str, width: int) -> list[str]:
    """The outputs (B, T, N) of all projections that read x (B, T, width); as model/projection has it."""
    ys = []
    for entry in entries:
        to = f"{at}{entry.weights[0]}.in."
        n = x if entry.norm is None else _rmsnorm(g, x, "" if entry.norm == FREE else at + entry.norm, to)
        if kind == "full":
            flat = put(g, "Reshape", [n, _ints(g, -1, width)], to + "flat")
            ys += [_linear(g, flat, at + name) for name in entry.weights]
        else:
            codes, scale = _absmax_int8(g, n, to)
            ys += [_ternary_linear(g, codes, scale, at + name) for name in entry.weights]
    return ys


def _rmsnorm(g: Graph, x: str, gain: str, to: str) -> str:
    """`gain`: the initialiser's name, or nothing."""
    square = put(g, "Mul", [x, x], to + "square", "RN.1")
    mean = put(g, "ReduceMean", [square, _ints(g, -1)], to + "mean", "RN.1", keepdims=1)
    shifted = put(g, "Add", [mean, constant(g, "norm_eps", g.cfg.norm_eps)], to + "shifted", "RN.1")
    rstd = put(g, "Pow", [shifted, constant(g, "minus_half", -0.5)], to + "rstd", "RN.1")
    n = put(g, "Mul", [x, rstd], to + "n", "RN.2")
    return n if not gain else put(g, "Mul", [n, _wide(g, gain, g.held[gain])], to + "y", "RN.2")


def _absmax_int8(g: Graph, x: str, to: str) -> tuple[str, str]:
    """x (B, T, K)  ->  codes + 128, uint8 (B, T, K); scale (B, T).

    onnxruntime multiplies uint8 by int8 twenty times faster than int8 by int8, and to the same integers.
    """
    size = put(g, "Abs", [x], to + "abs", "QU.5")
    top = put(g, "ReduceMax", [size, _ints(g, -1)], to + "absmax", "QU.5", keepdims=0)
    floored = put(g, "Max", [top, constant(g, "floor", FLOOR)], to + "floored", "QU.5")
    n127 = constant(g, "127", 127.0)
    inv_scale = put(g, "Div", [n127, floored], to + "inv_scale", "QU.6")
    scaled = put(g, "Mul", [x, _column(g, inv_scale)], to + "scaled", "QU.7")
    rounded = put(g, "Round", [scaled], to + "rounded", "QU.7")                 # half to even
    clipped = put(g, "Clip", [rounded, constant(g, "-128", -128.0), n127], to + "clipped", "QU.7")
    shifted = put(g, "Add", [clipped, constant(g, "128", 128.0)], to + "shifted_codes")
    codes = put(g, "Cast", [shifted], to + "x_q", "QU.7", to=TYPES["uint8"])
    return codes, put(g, "Div", [floored, n127], to + "x_scale", "QU.7")


def _ternary_linear(g: Graph, codes: str, x_scale: str, w: str) -> str:
    """The integer sum in int32, exact; one product of scales, then one with the sum.

    The scales are (B, T) until they are used. Were they columns, onnxruntime would take a product next to a
    product for its operator MatMulIntegerToFloat, which has no kernel for these types and one scale for all.
    """
    trits, *zero_trit = _trits(g, w)
    zeros = [constant(g, "zero_code", 128, "uint8"), *zero_trit]
    acc = put(g, "MatMulInteger", [codes, trits, *zeros], w + ".acc", "BL.3")
    wide = put(g, "Cast", [acc], w + ".sum", "BL.3", to=TYPES["float32"])
    scale = put(g, "Mul", [x_scale, w + SCALE], w + ".y_scale", "BL.3")
    return put(g, "Mul", [wide, _column(g, scale)], w + ".y", "BL.3")


def _column(g: Graph, x: str) -> str:
    return put(g, "Unsqueeze", [x, _ints(g, -1)], x + ".column")


def _trits(g: Graph, w: str) -> list[str]:
    """Trits int8 (K, N); or bytes (K, 1, ceil(N/4)) unpacked to trits + 1, and their zero point.

    Nothing here depends on an input: onnxruntime computes it once, when it loads the file.
    """
    if w in g.held:
        return [w]
    n_rows = g.cfg.vocab_size if w == "head" else shapes(g.cfg)[w.split(".", 2)[2]][0]
    shifts = constant(g, "shifts", [[0], [2], [4], [6]], "uint8")
    shifted = put(g, "BitShift", [w + PACKED, shifts], w + ".shifted", direction="RIGHT")
    codes = put(g, "BitwiseAnd", [shifted, constant(g, "three", 3, "uint8")], w + ".fields")
    codes = put(g, "Reshape", [codes, _ints(g, 0, -1)], w + ".codes")           # (K, 4 ceil(N/4))
    if n_rows % 4:
        codes = put(g, "Slice", [codes, _ints(g, 0), _ints(g, n_rows), _ints(g, 1)], w + ".unpadded")
    signed = put(g, "Cast", [codes], w + ".trits_plus_1", to=TYPES["int8"])
    return [signed, constant(g, "zero_trit", 1, "int8")]


def _linear(g: Graph, x: str, w: str) -> str:
    """x (B T, K)  ->  (B, T, N).   A tied head is the embedding."""
    stored = "embedding" if w == "head" and g.cfg.tied_embeddings else w
    y = put(g, "Gemm", [x, _wide(g, stored, g.held[stored])], w + ".rows", "LI.1", transB=1)
    return put(g, "Reshape", [y, "size_and_rest"], w + ".y")


def _wide(g: Graph, name: str, dtype: str) -> str:
    """`name` in float32: itself, or a Cast of it."""
    return name if dtype == "float32" else put(g, "Cast", [name], name + ".float32", to=TYPES["float32"])


def _heads(g: Graph, y: str, n_heads: int) -> str:
    return put(g, "Reshape", [y, _ints(g, 0, 0, n_heads, g.cfg.head_dim)], y + ".heads")


def _rope(g: Graph, x: str, to: str) -> str:
    """x (B, T, H, Dh), half-split."""
    a, b = to + ".a", to + ".b"
    half = g.cfg.head_dim // 2
    g.nodes.append(Node("Split", (x, _ints(g, half, half)), (a, b), "RO.2", {"axis": -1}))
    left = [put(g, "Mul", [a, "cos"], a + "_cos", "RO.2"), put(g, "Mul", [b, "sin"], b + "_sin", "RO.2")]
    right = [put(g, "Mul", [b, "cos"], b + "_cos", "RO.3"), put(g, "Mul", [a, "sin"], a + "_sin", "RO.3")]
    turned = [put(g, "Sub", left, a + "_turned", "RO.2"), put(g, "Add", right, b + "_turned", "RO.3")]
    return put(g, "Concat", turned, to + ".turned", axis=-1)


def _attention(g: Graph, q: str, k: str, v: str, l: int, cache: bool) -> str:
    """q (B, T, H, Dh)  k, v (B, T, KV, Dh)  ->  o (B, T, D).   Groups as the reference: (B, KV, R, T, Dh)."""
    at, cfg = f"layers.{l}.attn.", g.cfg
    KV, R, Dh = cfg.n_kv_heads, cfg.n_heads // cfg.n_kv_heads, cfg.head_dim
    k, v = _kept(g, k, f"key.{l}", at, cache), _kept(g, v, f"value.{l}", at, cache)
    split = put(g, "Reshape", [q, _ints(g, 0, 0, KV, R, Dh)], at + "q_split")
    group = put(g, "Transpose", [split], at + "q_group", perm=[0, 2, 3, 1, 4])
    scaled = put(g, "Mul", [group, constant(g, "root", Dh ** -0.5)], at + "q_scaled", "AT.1")
    turned = put(g, "Transpose", [k], at + "k_turned", perm=[0, 1, 2, 4, 3])
    scores = put(g, "MatMul", [scaled, turned], at + "scores", "AT.1")
    masked = put(g, "Add", [scores, "mask"], at + "masked", "AT.2")
    p = put(g, "Softmax", [masked], at + "p", "AT.3", axis=-1)
    mixed = put(g, "MatMul", [p, v], at + "mixed", "AT.4")
    back = put(g, "Transpose", [mixed], at + "back", perm=[0, 3, 1, 2, 4])
    return put(g, "Reshape", [back, _ints(g, 0, 0, cfg.d_model)], at + "o")


def _kept(g: Graph, x: str, name: str, at: str, cache: bool) -> str:
    """Keys or values (B, T, KV, Dh) -> (B, KV, 1, S, Dh), behind those of the past where there is a cache."""
    new = put(g, "Transpose", [x], f"{at}{name}.new", perm=[0, 2, 1, 3])
    if cache:
        KV, Dh = g.cfg.n_kv_heads, g.cfg.head_dim
        g.inputs.append(Port("past_" + name, "float32", ("batch", KV, "past", Dh)))
        g.outputs.append(Port("present_" + name, "float32", ("batch", KV, "past_and_tokens", Dh)))
        new = put(g, "Concat", ["past_" + name, new], "present_" + name, axis=2)
    return put(g, "Unsqueeze", [new, _ints(g, 2)], f"{at}{name}.group")


def _swiglu(g: Graph, gate: str, up: str, at: str) -> str:
    to, one = at + "ffn.", constant(g, "1", 1.0)
    power = put(g, "Exp", [put(g, "Neg", [gate], to + "minus_gate", "GL.1")], to + "exp", "GL.1")
    below = put(g, "Add", [one, power], to + "one_plus", "GL.1")
    sigmoid = put(g, "Div", [one, below], to + "sigmoid", "GL.1")
    silu = put(g, "Mul", [gate, sigmoid], to + "silu", "GL.1")
    return put(g, "Mul", [silu, up], to + "u", "GL.1")


def _relu2(g: Graph, gate: str, up: str, at: str) -> str:
    to = at + "ffn."
    r = put(g, "Relu", [gate], to + "relu", "GL.3")
    return put(g, "Mul", [put(g, "Mul", [r, r], to + "square", "GL.3"), up], to + "u", "GL.3")


GLU = {"swiglu": _swiglu, "relu2": _relu2}
