"""BitNet b1.58 in plain Python: a port written from docs/porting.md alone, to try that page and its checker.

    python second_port.py FOLDER        # reads the homework in FOLDER, writes FOLDER/dump

Standard library only. Numbers are Python's floats (float64) and ints; a matrix is a list of rows.
`run` returns every tensor that homework.json asks for; `write` puts them into FOLDER/dump as raw files.

`run(folder, faults)` makes the mistakes that are named in `faults`, for tests of the checker: each is written
here as it would look in a port, and knows nothing of how bitnet_ref injects its own. Where NaN and infinities
arise they behave as in C, not as Python's exceptions. Comments that begin with "Form:" say what was chosen
where the name of a fault leaves it open.
"""

import json
import math
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import mul
from pathlib import Path

Row = list[float]
Rows = list[Row]
Tensors = dict[str, tuple[tuple[int, ...], list[float]]]
Faults = frozenset[str]

FAULTS = frozenset(
    """
    code_map_zero_plus_minus code_map_twos_complement code_map_plus_two order_row_blocks
    order_consecutive order_four_rows order_blocks_of_128 order_blocks_of_64 bit_fields_reversed
    transposed_weight weight_scale_inverted weight_scale_dropped round_half_away round_half_up
    divide_by_scale floor_missing floor_added activations_per_tensor activations_per_block
    activations_wrong_axis activations_not_quantised activation_scale_inverted weights_minus_mean
    weights_by_absmax accumulator_int16 sub_norm_missing sub_norm_before_projections norm_gain_dropped
    norm_without_eps norm_eps_misplaced norm_other_eps norm_subtracts_mean silu_for_relu2 relu2_for_silu
    relu_not_squared gate_and_up_exchanged gated_unit_float16 stream_float16 rope_interleaved
    rope_backwards rope_wrong_theta position_off_by_one key_rotated_per_query_head value_rotated
    kv_heads_tiled score_scale_missing mask_off_by_one mask_missing tied_head_zero embedding_truncated
    gradient_raw_activation gradient_through_scale gradient_clipped_ste decay_on_norms decay_in_gradient
    bias_correction_missing moments_exchanged clip_per_tensor
    """.split()  # noqa: SIM905
)

FLOOR = 1e-5  # of an absmax and of an absmean
NORM_EPS = 1e-5
LOW_FIRST, HIGH_FIRST = (0, 2, 4, 6), (6, 4, 2, 0)  # shifts of a byte's four fields, in order of elements

# ------------------------------------------------------------------------------------------------ files


@dataclass
class Stored:
    """A tensor of a file: its numbers, flat, or its bytes where trits are packed in them."""

    shape: tuple[int, ...]
    values: Row | bytes

    def rows(self) -> Rows:
        return rows_of(self.values, self.shape[-1])


STRUCT_CODES = {"F32": "f", "float32": "f", "I8": "b", "int8": "b"}


def numbers(data: bytes, dtype: str) -> Row:
    """The numbers in little-endian bytes."""
    if dtype == "BF16":  # the upper half of a float32
        halves = struct.unpack(f"<{len(data) // 2}H", data)
        whole = struct.pack(f"<{len(halves)}I", *(half << 16 for half in halves))
        return list(struct.unpack(f"<{len(halves)}f", whole))
    code = STRUCT_CODES[dtype]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data))


def read_safetensors(path: Path) -> dict[str, Stored]:
    data = path.read_bytes()
    begin = 8 + struct.unpack_from("<Q", data)[0]  # a length, so much JSON, then the tensors' bytes
    tensors = {}
    for name, entry in json.loads(data[8:begin]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            piece = data[begin + first : begin + last]
            values = piece if entry["dtype"] == "U8" else numbers(piece, entry["dtype"])
            tensors[name] = Stored(tuple(entry["shape"]), values)
    return tensors


def read_raw(folder: Path) -> dict[str, Stored]:
    tensors = {}
    for name, entry in json.loads((folder / "index.json").read_text()).items():
        data = (folder / entry["file"]).read_bytes()
        values = data if entry["dtype"] == "i2_s" else numbers(data, entry["dtype"])
        tensors[name] = Stored(tuple(entry["shape"]), values)
    return tensors


def rows_of(flat: Row, width: int) -> Rows:
    return [flat[i : i + width] for i in range(0, len(flat), width)]


# ------------------------------------------------------------------------------------------ packed trits


# A fault in the order of codes: the layout that the bytes are taken for, and the shifts that go with it.
# Form: four neighbours and four rows belong to no one, so there the fields keep the order of the files.
ORDER_FAULTS = {
    "order_row_blocks": ("hf", LOW_FIRST),
    "order_consecutive": ("neighbours", None),
    "order_four_rows": ("4row", None),
    "order_blocks_of_128": ("128", HIGH_FIRST),
    "order_blocks_of_64": ("64", HIGH_FIRST),
}
CODE_MAPS = {  # the trits of codes 0, 1, 2, 3
    "code_map_zero_plus_minus": (0, 1, -1, 0),
    "code_map_twos_complement": (0, 1, -2, -1),
    "code_map_plus_two": (-2, -1, 0, 1),
}


def choice(table: dict, faults: Faults, otherwise: object) -> object:
    """What the table has for the first of its names that is among the faults."""
    return next((entry for name, entry in table.items() if name in faults), otherwise)


def unpack_codes(data: bytes, n: int, k: int, order: str, shifts: tuple[int, ...]) -> list[int]:
    """The 2-bit codes of an (N, K) matrix, row after row."""
    # One idea serves every order: the bytes come in chunks, and a chunk holds the first quarter of its
    # elements in its first fields, the second quarter in the next ones. Only the chunk's length differs.
    chunk = {"hf": n * k // 4, "4row": k, "128": 32, "64": 16, "neighbours": 1}[order]
    pieces = (data[i : i + chunk] for i in range(0, n * k // 4, chunk))
    return [byte >> shift & 3 for piece in pieces for shift in shifts for byte in piece]


def unpack_trits(data: bytes, n: int, k: int, order: str, faults: Faults) -> Row:
    own_shifts = LOW_FIRST if order == "hf" else HIGH_FIRST
    order, shifts = choice(ORDER_FAULTS, faults, (order, own_shifts))
    shifts = shifts or own_shifts
    if "bit_fields_reversed" in faults:
        shifts = shifts[::-1]
    trit_of = choice(CODE_MAPS, faults, (-1, 0, 1, 2))
    return [trit_of[code] for code in unpack_codes(data, n, k, order, shifts)]


def ternary_rows(flat: Row, n: int, k: int, faults: Faults) -> Rows:
    """(out, in), from trits that lie row after row."""
    if "transposed_weight" in faults:
        # Form: the trits are read as (in, out) and turned, so the dump shows what the product multiplies.
        return transpose(rows_of(flat, n))
    return rows_of(flat, k)


# ----------------------------------------------------------------------------------------------- models


@dataclass
class Ternary:
    """A ternary matrix (out, in) and what multiplies its trits."""

    trits: Rows
    scale: float


@dataclass
class Model:
    name: str
    config: dict
    ids: list[int]
    dense: dict[str, Row]  # embedding, gains, head; flat
    ternary: dict[str, Ternary]  # "layers.0.attn.wq", ...

    def matrix(self, name: str) -> Rows:
        return rows_of(self.dense[name], self.config["d_model"])


HF_PARTS = {
    "attn.wq": "self_attn.q_proj",
    "attn.wk": "self_attn.k_proj",
    "attn.wv": "self_attn.v_proj",
    "attn.wo": "self_attn.o_proj",
    "ffn.w_gate": "mlp.gate_proj",
    "ffn.w_up": "mlp.up_proj",
    "ffn.w_down": "mlp.down_proj",
    "attn_norm.gain": "input_layernorm",
    "ffn_norm.gain": "post_attention_layernorm",
    "attn_sub_norm.gain": "self_attn.attn_sub_norm",
    "ffn_sub_norm.gain": "mlp.ffn_sub_norm",
}
HF_WHOLE = {"embedding": "model.embed_tokens", "final_norm.gain": "model.norm", "head": "lm_head"}


def hf_name(name: str) -> str:
    """What Hugging Face calls a tensor of ours."""
    if name in HF_WHOLE:
        return HF_WHOLE[name] + ".weight"
    _, layer, part = name.split(".", 2)
    return f"model.layers.{layer}.{HF_PARTS[part]}.weight"


def matrix_shapes(config: dict) -> dict[str, tuple[int, int]]:
    """(out, in) of every ternary matrix."""
    d, f = config["d_model"], config["d_ff"]
    kv = d // config["n_heads"] * config["n_kv_heads"]
    shapes = {"attn.wq": (d, d), "attn.wk": (kv, d), "attn.wv": (kv, d), "attn.wo": (d, d)}
    shapes |= {"ffn.w_gate": (f, d), "ffn.w_up": (f, d), "ffn.w_down": (d, f)}
    layers = range(config["n_layers"])
    return {f"layers.{layer}.{part}": shape for layer in layers for part, shape in shapes.items()}


def dense_names(config: dict) -> list[str]:
    """The names of what is not ternary."""
    norms = ["attn_norm", "ffn_norm"]
    if config["norm"] == "sub":
        norms += ["attn_sub_norm", "ffn_sub_norm"]
    names = [f"layers.{layer}.{norm}.gain" for layer in range(config["n_layers"]) for norm in norms]
    head = [] if config["tied_embeddings"] else ["head"]
    return ["embedding", *names, "final_norm.gain", *head]


def read_hf_model(folder: Path, name: str, entry: dict, faults: Faults) -> Model:
    config = entry["config"]
    stored = read_safetensors(folder / "model.safetensors")
    linear_class = json.loads((folder / "config.json").read_text())["quantization_config"]["linear_class"]
    reciprocal = (linear_class == "bitlinear") != ("weight_scale_inverted" in faults)
    dense = {each: stored[hf_name(each)].values for each in dense_names(config)}
    ternary = {}
    for each, (n, k) in matrix_shapes(config).items():
        scale = stored[hf_name(each) + "_scale"].values[0]
        flat = unpack_trits(stored[hf_name(each)].values, n, k, "hf", faults)
        ternary[each] = Ternary(ternary_rows(flat, n, k, faults), 1 / scale if reciprocal else scale)
    return Model(name, config, entry["ids"], dense, ternary)


def read_raw_model(folder: Path, name: str, entry: dict, layout: str, faults: Faults) -> Model:
    config = entry["config"]
    stored = read_raw(folder)
    dense = {each: stored[each].values for each in dense_names(config)}
    ternary = {}
    for each, (n, k) in matrix_shapes(config).items():
        flat = stored[each].values
        if isinstance(flat, bytes):  # I2_S: the scale follows the trits
            scale = struct.unpack_from("<f", flat, n * k // 4)[0]
            flat = unpack_trits(flat, n, k, layout, faults)
        else:
            scale = stored[each + ".scale"].values[0]
        if "weight_scale_inverted" in faults:
            scale = 1 / scale
        ternary[each] = Ternary(ternary_rows(flat, n, k, faults), scale)
    return Model(name, config, entry["ids"], dense, ternary)


def read_homework(folder: Path, faults: Faults) -> tuple[dict, list[Model], dict[str, Stored]]:
    """homework.json, the models, the inputs of the probes."""
    homework = json.loads((folder / "homework.json").read_text())
    entries = homework["models"].items()
    if homework["for"] == "hf":
        models = [read_hf_model(folder / entry["folder"], name, entry, faults) for name, entry in entries]
        return homework, models, read_safetensors(folder / "probes.safetensors")
    layout = str(homework["layout"])
    models = [
        read_raw_model(folder / entry["folder"], name, entry, layout, faults) for name, entry in entries
    ]
    return homework, models, read_raw(folder / "probes")


# ------------------------------------------------------------------------------------------- arithmetic


def dot(a: Row, b: Row) -> float:
    return sum(map(mul, a, b))


def transpose(rows: Rows) -> Rows:
    return [list(column) for column in zip(*rows)]


def divide(a: float, b: float) -> float:
    """a / b as C has it."""
    if b != 0:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)


def exponential(x: float) -> float:
    """exp as C has it: infinite where Python raises."""
    return math.exp(x) if x < 709 or math.isnan(x) else math.inf


def half(x: float) -> float:
    """x as a float16."""
    try:
        return struct.unpack("<e", struct.pack("<e", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def half_rows(x: Rows) -> Rows:
    return [list(map(half, row)) for row in x]


ROUNDINGS = {
    "round_half_away": lambda x: math.trunc(x + math.copysign(0.5, x)),
    "round_half_up": lambda x: math.floor(x + 0.5),
}


def to_codes(row: Row, low: int, high: int, faults: Faults) -> Row:
    """Rounded and clamped."""
    rounding = choice(ROUNDINGS, faults, round)  # Python's rounds half to even
    # Clamping first comes to the same, as the bounds are whole, and spares rounding an infinity.
    # Form: NaN, which int8 does not have, becomes 0, as most conversions in C make it.
    return [0 if math.isnan(value) else rounding(max(low, min(high, value))) for value in row]


def floored(magnitude: float, faults: Faults) -> float:
    """An absmax or an absmean, kept away from zero."""
    if "floor_added" in faults:
        return magnitude + FLOOR
    return magnitude if "floor_missing" in faults else max(magnitude, FLOOR)


@dataclass
class Quantised:
    """int8 codes, and for each token a scale: only faults have several, one for each `width` features."""

    codes: Rows
    scales: Rows
    width: int

    def values(self) -> Rows:
        """What the codes stand for."""
        pairs = zip(self.codes, self.scales)
        return [[code * scales[i // self.width] for i, code in enumerate(row)] for row, scales in pairs]


def absmax(row: Row) -> float:
    return max([0.0, *map(abs, row)])  # the 0 in front, as max would keep a leading NaN


def magnitudes(x: Rows, faults: Faults) -> tuple[Rows, int]:
    """Each token's absmax, and over how many features it goes."""
    features = len(x[0])
    if "activations_wrong_axis" in faults:
        return [[absmax(column) for column in zip(*x)]] * len(x), 1
    if "activations_per_tensor" in faults:
        return [[max(map(absmax, x))]] * len(x), features
    if "activations_per_block" in faults:
        return [[absmax(block) for block in rows_of(row, 256)] for row in x], 256
    return [[absmax(row)] for row in x], features


def quantise(x: Rows, faults: Faults) -> Quantised:
    largest, width = magnitudes(x, faults)
    codes, scales = [], []
    for row, row_largest in zip(x, largest):
        tops = [floored(top, faults) for top in row_largest]
        if "divide_by_scale" in faults:
            scaled = [divide(value, tops[i // width] / 127) for i, value in enumerate(row)]
        else:
            factors = [divide(127, top) for top in tops]
            scaled = [value * factors[i // width] for i, value in enumerate(row)]
        codes.append(to_codes(scaled, -128, 127, faults))
        inverted = "activation_scale_inverted" in faults
        scales.append([divide(127, top) if inverted else top / 127 for top in tops])
    return Quantised(codes, scales, width)


def ternarise(w: Rows, faults: Faults) -> Ternary:
    flat = flatten(w)
    absmean = math.fsum(map(abs, flat)) / len(flat)
    scale = floored(absmax(flat) if "weights_by_absmax" in faults else absmean, faults)
    if "weights_minus_mean" in faults:
        # Form: as in the BitNet paper, sign(0) is -1 and the scale stays the mean magnitude of w itself.
        mean = math.fsum(flat) / len(flat)
        return Ternary([[1 if value > mean else -1 for value in row] for row in w], scale)
    factor = divide(1, scale)
    return Ternary([to_codes([value * factor for value in row], -1, 1, faults) for row in w], scale)


def accumulate(codes: Row, trits: Row, faults: Faults) -> float:
    total = dot(codes, trits)
    if "accumulator_int16" in faults and isinstance(total, int):
        return (total + 32768) % 65536 - 32768
    return total


def product(x: Quantised, w: Ternary, faults: Faults) -> Rows:
    # Form: the scale of the weights is read, and dumped, but the product forgets it.
    w_scale = 1.0 if "weight_scale_dropped" in faults else w.scale
    if len(x.scales[0]) > 1:  # a fault: no scale is left that could be taken out of the sum
        return [[dot(row, trits) * w_scale for trits in w.trits] for row in x.values()]
    return [
        [accumulate(codes, trits, faults) * (scales[0] * w_scale) for trits in w.trits]
        for codes, scales in zip(x.codes, x.scales)
    ]


def dense_product(x: Rows, w: Rows) -> Rows:
    return [[dot(row, other) for other in w] for row in x]


def rms_norm(x: Rows, gain: Row, eps: float, faults: Faults) -> Rows:
    eps = choice({"norm_without_eps": 0.0, "norm_other_eps": 1e-6}, faults, eps)
    if "norm_gain_dropped" in faults:  # Form: of every norm
        gain = [1.0] * len(gain)
    out = []
    for row in x:
        if "norm_subtracts_mean" in faults:
            mean = sum(row) / len(row)
            row = [value - mean for value in row]
        square = dot(row, row) / len(row)
        root = math.sqrt(square) + eps if "norm_eps_misplaced" in faults else math.sqrt(square + eps)
        rstd = divide(1, root)
        out.append([value * rstd * g for value, g in zip(row, gain)])
    return out


def add(x: Rows, y: Rows, faults: Faults) -> Rows:
    """The residual stream's sum."""
    total = [[a + b for a, b in zip(*rows)] for rows in zip(x, y)]
    return half_rows(total) if "stream_float16" in faults else total


def relu(gate: float) -> float:
    return max(gate, 0.0)


def relu2(gate: float) -> float:
    return relu(gate) * relu(gate)


def silu(gate: float) -> float:
    return divide(gate, 1 + exponential(-gate))


def gated_unit(kind: str, gate: Rows, up: Rows, faults: Faults) -> Rows:
    activate = {"relu2": relu if "relu_not_squared" in faults else relu2, "swiglu": silu}[kind]
    if "gate_and_up_exchanged" in faults:
        gate, up = up, gate
    act = [[activate(g) * u for g, u in zip(*rows)] for rows in zip(gate, up)]
    return half_rows(act) if "gated_unit_float16" in faults else act  # Form: kept so, computed in full


def unit_of(config: dict, faults: Faults) -> str:
    """Form: the model's activation is misread; the units themselves, which the probes call, are right."""
    mistaken = {"relu2": "silu_for_relu2", "swiglu": "relu2_for_silu"}[config["glu"]]
    other = {"relu2": "swiglu", "swiglu": "relu2"}[config["glu"]]
    return other if mistaken in faults else config["glu"]


# -------------------------------------------------------------------------------------------- attention


def rotate_head(head: Row, position: int, theta: float, faults: Faults) -> Row:
    half_width, out = len(head) // 2, list(head)
    for i in range(half_width):
        angle = position * theta ** (-2 * i / len(head))
        cos, sin = math.cos(angle), math.sin(angle)
        if "rope_backwards" in faults:
            sin = -sin
        a, b = (2 * i, 2 * i + 1) if "rope_interleaved" in faults else (i, i + half_width)
        out[a] = head[a] * cos - head[b] * sin
        out[b] = head[b] * cos + head[a] * sin
    return out


def rope(x: Rows, width: int, theta: float, faults: Faults) -> Rows:
    """RoPE on every head of every row; a row's number is its position."""
    if "rope_wrong_theta" in faults:
        theta = 10000.0  # Form: LLaMA's, written into the code; so the model `llama` is spared
    first = 1 if "position_off_by_one" in faults else 0
    out = []
    for position, row in enumerate(x, first):
        heads = (rotate_head(head, position, theta, faults) for head in rows_of(row, width))
        out.append([value for head in heads for value in head])
    return out


def rope_keys(k: Rows, repeats: int, width: int, theta: float, faults: Faults) -> Rows:
    """RoPE on keys, each of which `repeats` query heads read."""
    for _ in range(repeats if "key_rotated_per_query_head" in faults else 1):
        k = rope(k, width, theta, faults)
    return k


def softmax(scores: Row) -> Row:
    largest = max(scores)
    powers = [exponential(score - largest) for score in scores]
    total = sum(powers)
    return [divide(power, total) for power in powers]


def heads_of(x: Rows, width: int) -> list[Rows]:
    """(T, heads Dh) to (heads, T, Dh)."""
    return [[row[i : i + width] for row in x] for i in range(0, len(x[0]), width)]


def shared_head(h: int, queries: int, keys: int, faults: Faults) -> int:
    """The key/value head that query head h reads."""
    return h % keys if "kv_heads_tiled" in faults else h // (queries // keys)


def keys_seen(t: int, count: int, faults: Faults) -> int:
    """How many of the `count` keys query t sees."""
    if "mask_missing" in faults:
        return count
    # Form: one too many, as with j <= t + 1; the other way round, token 0 would see nothing.
    return min(t + (2 if "mask_off_by_one" in faults else 1), count)


def attention_probs(q: Rows, k: Rows, width: int, faults: Faults) -> list[Rows]:
    """(H, T, T); zeros where a key comes after the query."""
    queries, keys = heads_of(q, width), heads_of(k, width)
    divisor = 1.0 if "score_scale_missing" in faults else math.sqrt(width)
    probs = []
    for h, head in enumerate(queries):
        own_keys, table = keys[shared_head(h, len(queries), len(keys), faults)], []
        for t, query in enumerate(head):
            seen = own_keys[: keys_seen(t, len(k), faults)]
            row = softmax([dot(query, key) / divisor for key in seen])
            table.append(row + [0.0] * (len(k) - len(row)))
        probs.append(table)
    return probs


def attention_mix(probs: list[Rows], v: Rows, width: int, faults: Faults) -> Rows:
    """The weighted sums of v, (T, H Dh)."""
    values = [transpose(head) for head in heads_of(v, width)]
    tokens: Rows = [[] for _ in v]
    for h, table in enumerate(probs):
        columns = values[shared_head(h, len(probs), len(values), faults)]
        for token, row in zip(tokens, table):
            token += [dot(row, column) for column in columns]
    return tokens


# -------------------------------------------------------------------------------------- what we compute

Put = Callable[[str, object], None]


def flatten(value: object) -> Row:
    if isinstance(value, list):
        return [number for part in value for number in flatten(part)]
    return [value]


def put_quantised(put: Put, name: str, x: Quantised) -> None:
    put(name + ".x_q", x.codes)
    if len(x.scales[0]) == 1:  # with several scales a token, there is none to dump
        put(name + ".x_scale", x.scales)


def put_ternary(put: Put, name: str, w: Ternary) -> None:
    put(name + ".w_q", w.trits)
    put(name + ".w_scale", w.scale)


def enter_product(put: Put, name: str, x: Rows, faults: Faults) -> Quantised:
    """The activation as a product of a model takes it."""
    if "activations_not_quantised" in faults:
        # Form: the models' products take floats, and have no codes to dump; the probes stay right.
        return Quantised(x, [[1.0]] * len(x), len(x[0]))
    quantised = quantise(x, faults)
    put_quantised(put, name, quantised)
    return quantised


def norm_at_entry(model: Model, layer: str, x: Rows, faults: Faults) -> Rows:
    """attn_norm, what q, k and v are made of."""
    eps = model.config["norm_eps"]
    normed = rms_norm(x, model.dense[layer + "attn_norm.gain"], eps, faults)
    if "sub_norm_before_projections" in faults and model.config["norm"] == "sub":
        return rms_norm(normed, model.dense[layer + "attn_sub_norm.gain"], eps, faults)
    return normed


def run_attention(model: Model, layer: str, x: Rows, put: Put, faults: Faults) -> Rows:
    heads, kv_heads = model.config["n_heads"], model.config["n_kv_heads"]
    width, theta = model.config["d_model"] // heads, model.config["rope_theta"]
    normed = norm_at_entry(model, layer, x, faults)
    put(layer + "attn_norm", normed)
    inputs = enter_product(put, layer + "attn_norm", normed, faults)
    q, k, v = (product(inputs, model.ternary[layer + "attn.w" + letter], faults) for letter in "qkv")
    q_rope = rope(q, width, theta, faults)
    k_rope = rope_keys(k, heads // kv_heads, width, theta, faults)
    # Form: the tensor `v` is dumped as the product made it, as q and k are.
    values = rope(v, width, theta, faults) if "value_rotated" in faults else v
    probs = attention_probs(q_rope, k_rope, width, faults)
    attn = attention_mix(probs, values, width, faults)
    named = {"q": q, "k": k, "v": v, "q_rope": q_rope, "k_rope": k_rope, "probs": probs, "attn": attn}
    for name, value in named.items():
        put(layer + name, value)
    return project_back(model, layer, ("attn", "attn_sub_norm", "attn.wo"), attn, put, faults)


def sub_norm(model: Model, layer: str, norm: str, x: Rows, faults: Faults) -> Rows:
    moved = norm == "attn_sub_norm" and "sub_norm_before_projections" in faults
    if moved or "sub_norm_missing" in faults:
        return x  # Form: both sub-norms; what is dumped in their place is what the quantiser reads
    return rms_norm(x, model.dense[layer + norm + ".gain"], model.config["norm_eps"], faults)


def project_back(
    model: Model, layer: str, names: tuple[str, str, str], x: Rows, put: Put, faults: Faults
) -> Rows:
    """The way back to the stream: the sub-norm where the model has one, then wo or w_down."""
    name, norm, weight = names
    if model.config["norm"] == "sub":
        name, x = norm, sub_norm(model, layer, norm, x, faults)
        put(layer + name, x)
    return product(enter_product(put, layer + name, x, faults), model.ternary[layer + weight], faults)


def run_ffn(model: Model, layer: str, x: Rows, put: Put, faults: Faults) -> Rows:
    normed = rms_norm(x, model.dense[layer + "ffn_norm.gain"], model.config["norm_eps"], faults)
    put(layer + "ffn_norm", normed)
    inputs = enter_product(put, layer + "ffn_norm", normed, faults)
    gate, up = (product(inputs, model.ternary[layer + "ffn.w_" + name], faults) for name in ("gate", "up"))
    act = gated_unit(unit_of(model.config, faults), gate, up, faults)
    for name, value in {"gate": gate, "up": up, "act": act}.items():
        put(layer + name, value)
    return project_back(model, layer, ("act", "ffn_sub_norm", "ffn.w_down"), act, put, faults)


def embedding_of(model: Model, faults: Faults) -> Rows:
    rows = model.matrix("embedding")
    if "embedding_truncated" in faults:
        # Form: the last quarter is gone, for a tied head too, which is the same buffer.
        kept = 3 * len(rows) // 4
        return rows[:kept] + [[0.0] * len(row) for row in rows[kept:]]
    return rows


def head_of(model: Model, embedding: Rows, faults: Faults) -> Rows:
    if not model.config["tied_embeddings"]:
        return model.matrix("head")
    if "tied_head_zero" in faults:
        return [[0.0] * len(row) for row in embedding]
    return embedding


def run_model(model: Model, put_any: Put, faults: Faults) -> None:
    def put(name: str, value: object) -> None:
        put_any(f"{model.name}.{name}", value)

    for name, weight in model.ternary.items():
        put_ternary(put, name, weight)
    embedding = embedding_of(model, faults)
    x = [embedding[token] for token in model.ids]
    if "stream_float16" in faults:
        x = half_rows(x)
    put("embedding_out", x)
    for number in range(model.config["n_layers"]):
        layer = f"layers.{number}."
        o = run_attention(model, layer, x, put, faults)
        h = add(x, o, faults)
        down = run_ffn(model, layer, h, put, faults)
        x = add(h, down, faults)
        for name, value in {"o": o, "h": h, "down": down, "out": x}.items():
            put(layer + name, value)
    final = rms_norm(x, model.dense["final_norm.gain"], model.config["norm_eps"], faults)
    put("final_norm", final)
    put("logits", dense_product(final, head_of(model, embedding, faults)))


# ----------------------------------------------------------------------------------------------- probes


def run_probes(probes: dict[str, Stored], put: Put, faults: Faults) -> None:
    for which in ("ties", "small", "reciprocal", "wide"):
        put_quantised(put, f"quant.{which}.x", quantise(probes[f"quant.{which}.x"].rows(), faults))
    for which in ("ties", "offset", "small"):
        put_ternary(put, f"ternary.{which}.w", ternarise(probes[f"ternary.{which}.w"].rows(), faults))
    codes = probes["product.worst.x_q"].rows()
    x = Quantised(codes, probes["product.worst.x_scale"].rows(), len(codes[0]))
    w = Ternary(probes["product.worst.w_q"].rows(), probes["product.worst.w_scale"].values[0])
    put("product.worst.y", product(x, w, faults))
    for which in ("small", "large"):
        x = probes[f"rmsnorm.{which}.x"].rows()
        put(f"rmsnorm.{which}.y", rms_norm(x, probes["rmsnorm.g"].values, NORM_EPS, faults))
    for kind in ("relu2", "swiglu"):
        gate, up = probes["glu.large.gate"].rows(), probes["glu.large.up"].rows()
        put(f"glu.large.{kind}", gated_unit(kind, gate, up, faults))
    x, y = probes["residual.large.x"].rows(), probes["residual.large.y"].rows()
    put("residual.large.sum", add(x, y, faults))
    run_single_attention(probes, put, faults)


def run_single_attention(probes: dict[str, Stored], put: Put, faults: Faults) -> None:
    # One token: a row of its own, whose heads stand side by side already.
    q, k, v = ([probes["attention.single." + letter].values] for letter in "qkv")
    width = probes["attention.single.q"].shape[-1]
    probs = attention_probs(q, k, width, faults)
    put("attention.single.o", attention_mix(probs, v, width, faults))


# --------------------------------------------------------------------------------------------- training


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def weight_gradient(dy: Rows, x: Rows, x_hat: Quantised, w: Rows, w_hat: Ternary, faults: Faults) -> Rows:
    seen = x if "gradient_raw_activation" in faults else x_hat.values()
    full = dense_product(transpose(dy), transpose(seen))
    dw = full
    if "gradient_clipped_ste" in faults:
        # Form: the clamp of w / scale is at 1, before rounding.
        pairs = [zip(*rows) for rows in zip(full, w)]
        dw = [[0.0 if abs(value) > w_hat.scale else g for g, value in pair] for pair in pairs]
    if "gradient_through_scale" in faults:
        # Form: the product rule on trits * mean|w|, the trits held constant in the second term.
        shift = sum(map(dot, full, w_hat.trits)) / len(flatten(w))
        dw = [[g + shift * sign(value) for g, value in zip(*rows)] for rows in zip(dw, w)]
    return dw


def run_backward(probes: dict[str, Stored], put: Put, faults: Faults) -> None:
    """The backward of y = product(x, w), the straight-through estimator."""
    x, w, dy = (probes[f"train.{name}"].rows() for name in ("x", "w", "dy"))
    x_hat, w_hat = quantise(x, faults), ternarise(w, faults)
    put_quantised(put, "train.x", x_hat)
    put_ternary(put, "train.w", w_hat)
    scaled = [[value * w_hat.scale for value in row] for row in dy]
    put("train.dx", dense_product(scaled, transpose(w_hat.trits)))
    put("train.dw", weight_gradient(dy, x, x_hat, w, w_hat, faults))


def clip_gradients(gradients: dict[str, Row], max_norm: float, faults: Faults) -> dict[str, Row]:
    squares = {name: dot(g, g) for name, g in gradients.items()}
    clipped = {}
    for name, g in gradients.items():
        norm = math.sqrt(squares[name] if "clip_per_tensor" in faults else sum(squares.values()))
        factor = max_norm / norm if norm > max_norm else 1.0
        clipped[name] = [value * factor for value in g]
    return clipped


@dataclass
class Moments:
    """A parameter and Adam's two averages of its gradient."""

    p: Row
    m: Row
    v: Row


def adamw_step(state: Moments, g: Row, step: int, decay: float, constants: dict, faults: Faults) -> Moments:
    lr, b1, b2 = (constants[name] for name in ("lr", "beta1", "beta2"))
    if "moments_exchanged" in faults:
        b1, b2 = b2, b1  # Form: everywhere, the corrections of the bias included
    if "decay_in_gradient" in faults:
        # Form: after clipping, and only where there is a decay.
        g, decay = [value + decay * p for value, p in zip(g, state.p)], 0.0
    m = [b1 * old + (1 - b1) * new for old, new in zip(state.m, g)]
    v = [b2 * old + (1 - b2) * new * new for old, new in zip(state.v, g)]
    m_part, v_part = 1 - b1**step, 1 - b2**step
    if "bias_correction_missing" in faults:
        m_part = v_part = 1.0
    p = []
    for value, first, second in zip(state.p, m, v):
        change = first / m_part / (math.sqrt(second / v_part) + constants["eps"])
        p.append(value * (1 - lr * decay) - lr * change)
    return Moments(p, m, v)


def run_optimiser(probes: dict[str, Stored], constants: dict, put: Put, faults: Faults) -> None:
    decays = {"matrix": constants["decay"], "gain": 0.0}
    if "decay_on_norms" in faults:
        decays["gain"] = constants["decay"]
    states = {}
    for name in decays:
        p = probes[f"train.p.{name}"].values
        states[name] = Moments(p, [0.0] * len(p), [0.0] * len(p))
    for step in (1, 2):
        raw = {name: probes[f"train.step{step}.grad.{name}"].values for name in decays}
        clipped = clip_gradients(raw, constants["max_norm"], faults)
        for name, decay in decays.items():
            states[name] = adamw_step(states[name], clipped[name], step, decay, constants, faults)
            put(f"train.step{step}.clipped.{name}", clipped[name])
            for part in ("m", "v", "p"):
                put(f"train.step{step}.{part}.{name}", getattr(states[name], part))


# ------------------------------------------------------------------------------------------- the program


def run(folder: Path, faults: Faults = frozenset()) -> Tensors:
    """Every tensor of homework.json's `dump`: its shape and its numbers, flat."""
    if faults - FAULTS:
        raise ValueError(f"no such faults: {sorted(faults - FAULTS)}")
    homework, models, probes = read_homework(folder, faults)
    found: dict[str, Row] = {}

    def put(name: str, value: object) -> None:
        found[name] = flatten(value)

    run_probes(probes, put, faults)
    for model in models:
        run_model(model, put, faults)
    run_backward(probes, put, faults)
    run_optimiser(probes, homework["adamw"], put, faults)
    tensors = {}
    for entry in homework["dump"]:
        name, shape = entry["name"], tuple(entry["shape"])
        if name not in found and faults:
            continue  # a faulty port may not have what is asked for
        if len(found[name]) != math.prod(shape):
            raise ValueError(f"{name}: {len(found[name])} numbers for the shape {shape}")
        tensors[name] = (shape, found[name])
    return tensors


def write(tensors: Tensors, folder: Path) -> None:
    """folder/dump: one file a tensor, and index.json."""
    target = folder / "dump"
    target.mkdir(exist_ok=True)
    index = {}
    for name, (shape, flat) in tensors.items():
        whole = name.endswith((".x_q", ".w_q"))
        (target / f"{name}.bin").write_bytes(struct.pack(f"<{len(flat)}{'b' if whole else 'd'}", *flat))
        index[name] = {"file": f"{name}.bin", "dtype": "int8" if whole else "float64", "shape": shape}
    (target / "index.json").write_text(json.dumps(index, indent=1))


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    folder = Path(arguments[0])
    write(run(folder), folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
