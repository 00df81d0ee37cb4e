"""A port of BitNet b1.58 to plain Python, written from docs/porting.md alone: no NumPy, none of our code.

    python mini_port.py FOLDER        reads the homework in FOLDER, writes FOLDER/dump

It stands for a stranger's port. `run(folder)` computes every tensor that homework.json asks for, in Python
floats (float64); `write` dumps them as raw bytes. Matrices are lists of rows; a head is a row of Dh numbers.

`run(folder, faults)` makes the mistakes named in `faults` as well, each where a port would make it, so that
the judge can be tried on a port that shares no code with it. Where a mistake may take several forms, a
comment beside it says which was chosen. Without faults none of these branches is taken.
"""

import json
import math
import struct
import sys
from operator import mul
from pathlib import Path
from typing import NamedTuple

EPS = 1e-5
NO_FAULTS: frozenset[str] = frozenset()
FAULT_NAMES = """
    code_map_zero_plus_minus code_map_twos_complement code_map_plus_two
    order_row_blocks order_consecutive order_four_rows order_blocks_of_128 order_blocks_of_64
    bit_fields_reversed transposed_weight weight_scale_inverted weight_scale_dropped
    round_half_away round_half_up divide_by_scale floor_missing floor_added
    activations_per_tensor activations_per_block activations_wrong_axis activations_not_quantised
    activation_scale_inverted weights_minus_mean weights_by_absmax accumulator_int16
    sub_norm_missing sub_norm_before_projections norm_gain_dropped norm_without_eps norm_eps_misplaced
    norm_other_eps norm_subtracts_mean
    silu_for_relu2 relu2_for_silu relu_not_squared gate_and_up_exchanged gated_unit_float16 stream_float16
    rope_interleaved rope_backwards rope_wrong_theta position_off_by_one key_rotated_per_query_head
    value_rotated kv_heads_tiled score_scale_missing mask_off_by_one mask_missing tied_head_zero
    embedding_truncated
    gradient_raw_activation gradient_through_scale gradient_clipped_ste
    decay_on_norms decay_in_gradient bias_correction_missing moments_exchanged clip_per_tensor
"""
FAULTS = frozenset(FAULT_NAMES.split())
RAW_FORMATS = {"float32": "f", "float64": "d", "int8": "b", "i2_s": "B"}
FORMATS = RAW_FORMATS | {"F32": "f", "I8": "b", "U8": "B", "BF16": "H"}  # and those of safetensors
SIZES = {"f": 4, "d": 8, "b": 1, "B": 1, "H": 2}
# Our name of a weight within a layer, and what Hugging Face calls it.
HF_LAYER = {
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
HF_OUTER = {"embedding": "model.embed_tokens", "final_norm.gain": "model.norm", "head": "lm_head"}


class Stored(NamedTuple):
    """An array as it lies in a file: dtype and shape as the file's index says, the numbers flat."""

    dtype: str
    shape: tuple
    flat: list


class Ternary(NamedTuple):
    """A ternary matrix, (out, in), and the number that multiplies its trits."""

    w_q: list
    scale: float


class Layout(NamedTuple):
    """How four trits share a byte: see `decode`. The run is a number of bytes, or what the shape makes it."""

    run: int | str
    low_first: bool | None


LAYOUTS = {
    "hf": Layout("all", True),
    "128": Layout(32, False),
    "64": Layout(16, False),
    "4row": Layout("row", False),
}
CODES = (-1, 0, 1, 2)  # what the codes 0 to 3 stand for; 3 does not occur
WRONG_CODES = {
    "code_map_zero_plus_minus": (0, 1, -1, 0),
    "code_map_twos_complement": (0, 1, -2, -1),
    "code_map_plus_two": (-2, -1, 0, 1),
}
# An order that is that of a named format brings its end of the byte along; the other two keep the file's.
WRONG_LAYOUTS = {
    "order_row_blocks": LAYOUTS["hf"],
    "order_consecutive": Layout(1, None),
    "order_four_rows": Layout("row", None),
    "order_blocks_of_128": LAYOUTS["128"],
    "order_blocks_of_64": LAYOUTS["64"],
}


class Quantised(NamedTuple):
    """int8 codes of some tokens, and one scale for each.

    The last field serves faults alone: what enters products, where codes and one scale a token do not tell.
    The scales are None where a fault has another number of them.
    """

    x_q: list
    scales: list | None
    floats: list | None = None


# ------------------------------------------------------------------------------------------------ files


def unpack(raw, dtype):
    """Little-endian bytes to a list of numbers; a bfloat16 is the upper half of a float32."""
    letter = FORMATS[dtype]
    count = len(raw) // SIZES[letter]
    numbers = struct.unpack(f"<{count}{letter}", raw)
    if dtype == "BF16":
        numbers = struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(half << 16 for half in numbers)))
    return list(numbers)


def read_safetensors(path):
    """Every tensor of one safetensors file, by name."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = unpack(raw[start + begin : start + end], entry["dtype"])
        tensors[name] = Stored(entry["dtype"], tuple(entry["shape"]), flat)
    return tensors


def read_raw(folder):
    """Every tensor of a folder of .bin files, by name, as its index.json lists them."""
    tensors = {}
    for name, entry in json.loads((folder / "index.json").read_text()).items():
        flat = unpack((folder / entry["file"]).read_bytes(), entry["dtype"])
        tensors[name] = Stored(entry["dtype"], tuple(entry["shape"]), flat)
    return tensors


def read_probes(folder, kind):
    """The inputs of the probes, each as nested lists of its own shape."""
    stored = read_safetensors(folder / "probes.safetensors") if kind == "hf" else read_raw(folder / "probes")
    return {name: nest(array.flat, array.shape) for name, array in stored.items()}


def nest(flat, shape):
    """A flat list, last axis fastest, as lists of lists; a scalar as a number."""
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return list(flat)
    step = len(flat) // shape[0]
    return [nest(flat[i : i + step], shape[1:]) for i in range(0, len(flat), step)]


def flatten(nested):
    """The inverse of `nest`: (shape, flat list)."""
    if not isinstance(nested, list):
        return (), [nested]
    parts = [flatten(part) for part in nested]
    return (len(nested), *parts[0][0]), [number for _, flat in parts for number in flat]


# ------------------------------------------------------------------------------------------------ weights


def pick(faults, right, wrong):
    """The right choice, or the wrong one that a fault stands for."""
    return next((choice for fault, choice in wrong.items() if fault in faults), right)


def decode(packed, shape, layout, faults):
    """The trits of packed bytes, (rows, columns).

    In every layout a run of bytes holds four runs of trits, one after the other: the first from one end of
    all its bytes, the last from the other. Layouts differ in the length of a run and in the end to begin at.
    """
    rows, columns = shape
    packed = packed[: rows * columns // 4]  # I2_S has its scale behind the codes
    chosen = pick(faults, layout, WRONG_LAYOUTS)
    run = {"all": len(packed), "row": columns}.get(chosen.run, chosen.run)
    low_first = layout.low_first if chosen.low_first is None else chosen.low_first
    if "bit_fields_reversed" in faults:
        low_first = not low_first
    shifts = (0, 2, 4, 6) if low_first else (6, 4, 2, 0)
    trits = pick(faults, CODES, WRONG_CODES)
    flat = []
    for start in range(0, len(packed), run):
        for shift in shifts:
            flat += [trits[byte >> shift & 3] for byte in packed[start : start + run]]
    return trit_rows(flat, shape, faults)


def trit_rows(flat, shape, faults):
    # Ternary matrices alone: nobody looks up a token in a column of the embedding.
    if "transposed_weight" in faults:
        return transpose(nest(flat, shape[::-1]))
    return nest(flat, shape)


def multiplier(stored, inverse, faults):
    """The number that multiplies trits."""
    if "weight_scale_inverted" in faults:  # at loading, of all matrices, whichever way is right for them
        inverse = not inverse
    return 1.0 / stored if inverse else stored


def load_model(folder, homework, layers, faults):
    """All weights of one model, under our names."""
    if homework["for"] == "hf":
        weights = load_hf(folder, layers, faults)
    else:
        weights = load_raw(folder, LAYOUTS.get(homework["layout"]), faults)
    if "embedding_truncated" in faults:  # the last quarter of the rows
        table = weights["embedding"]
        kept = len(table) * 3 // 4
        weights["embedding"] = table[:kept] + [[0.0] * len(row) for row in table[kept:]]
    return weights


def load_hf(folder, layers, faults):
    """A checkpoint for Hugging Face."""
    stored = read_safetensors(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    inverse = config["quantization_config"]["linear_class"] == "bitlinear"
    names = dict(HF_OUTER)
    for layer in range(layers):
        for ours, theirs in HF_LAYER.items():
            names[f"layers.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    weights = {}
    for ours, theirs in names.items():
        array = stored.get(f"{theirs}.weight")
        if array is None:  # a tied head, or the sub-norms where there are none
            continue
        if array.dtype == "U8":
            quarter, columns = array.shape
            w_q = decode(array.flat, (4 * quarter, columns), LAYOUTS["hf"], faults)
            scale = stored[f"{theirs}.weight_scale"].flat[0]
            weights[ours] = Ternary(w_q, multiplier(scale, inverse, faults))
        else:
            weights[ours] = nest(array.flat, array.shape)
    return weights


def load_raw(folder, layout, faults):
    """A folder of .bin files: trits of one byte each, or I2_S bytes."""
    stored = read_raw(folder)
    weights = {}
    for name, array in stored.items():
        scale = stored.get(f"{name}.scale")
        if scale is None:
            weights[name] = nest(array.flat, array.shape)
        elif array.dtype == "i2_s":
            w_q = decode(array.flat, array.shape, layout, faults)
            weights[name] = Ternary(w_q, multiplier(scale_behind(array.flat), False, faults))
        else:
            w_q = trit_rows(array.flat, array.shape, faults)
            weights[name] = Ternary(w_q, multiplier(scale.flat[0], False, faults))
    return weights


def scale_behind(packed):
    """The float32 at the head of the 32 bytes that follow an I2_S matrix."""
    return struct.unpack("<f", bytes(packed[-32:-28]))[0]


# ------------------------------------------------------------------------------------------------ arithmetic


def dot(a, b):
    return sum(map(mul, a, b))


def transpose(matrix):
    return [list(column) for column in zip(*matrix)]


def add(a, b, faults):
    """The residual stream's sum."""
    return stream([[p + q for p, q in zip(x, y)] for x, y in zip(a, b)], faults)


def stream(x, faults):
    return [list(map(to_half, row)) for row in x] if "stream_float16" in faults else x


def to_half(number):
    """The nearest float16; what is too large becomes an infinity, as in C."""
    try:
        return struct.unpack("<e", struct.pack("<e", number))[0]
    except OverflowError:
        return math.copysign(math.inf, number)


def divide(a, b):
    """a / b as in C: by zero, an infinity or NaN."""
    if b:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)


def half_away(number):
    return int(math.copysign(math.floor(abs(number) + 0.5), number))


def half_up(number):
    return math.floor(number + 0.5)


def to_codes(row, low, high, faults):
    """Clamped and rounded, in this order so that infinities pass. Python's round is half to even."""
    rounding = pick(faults, round, {"round_half_away": half_away, "round_half_up": half_up})
    # Only faults make NaN; it becomes 0 as with CUDA's __float2int_rn.
    return [0 if math.isnan(number) else rounding(max(low, min(high, number))) for number in row]


def floored(size, faults):
    """The absmax or absmean that is divided by, kept away from zero."""
    if "floor_missing" in faults:
        return size
    return size + EPS if "floor_added" in faults else max(size, EPS)


def quantise(x, faults):
    """int8 codes of each token, by its own largest value."""
    if "activations_wrong_axis" in faults:
        return quantise_features(x, faults)
    if "activations_per_block" in faults and len(x[0]) > 256:
        return quantise_blocks(x, faults)
    peaks = [max(map(abs, row)) for row in x]
    if "activations_per_tensor" in faults:  # the one scale is dumped once a token, to keep the shape
        peaks = [max(peaks)] * len(peaks)
    pairs = [quantise_row(row, peak, faults) for row, peak in zip(x, peaks)]
    return Quantised([codes for codes, _ in pairs], [scale for _, scale in pairs])


def quantise_row(row, peak, faults):
    """(codes, scale) of numbers that share a scale."""
    peak = floored(peak, faults)
    if "divide_by_scale" in faults:
        scaled = [divide(number, peak / 127) for number in row]
    else:
        factor = divide(127, peak)
        scaled = [number * factor for number in row]
    scale = divide(127, peak) if "activation_scale_inverted" in faults else peak / 127
    return to_codes(scaled, -128, 127, faults), scale


def quantise_features(x, faults):
    """A scale for each feature, which cannot leave the sum of a product: codes are dequantised before it."""
    pairs = [quantise_row(column, max(map(abs, column)), faults) for column in transpose(x)]
    floats = transpose([[code * scale for code in codes] for codes, scale in pairs])
    return Quantised(transpose([codes for codes, _ in pairs]), None, floats)


def quantise_blocks(x, faults):
    """A scale for every 256 features of a token: each block is quantised as if it were a token."""
    blocks = [row[start : start + 256] for row in x for start in range(0, len(row), 256)]
    pairs = [quantise_row(block, max(map(abs, block)), faults) for block in blocks]
    codes = [code for block, _ in pairs for code in block]
    floats = [code * scale for block, scale in pairs for code in block]
    shape = (len(x), len(x[0]))
    return Quantised(nest(codes, shape), None, nest(floats, shape))


def dequantised(codes):
    if codes.floats is not None:
        return codes.floats
    return [[code * scale for code in row] for row, scale in zip(codes.x_q, codes.scales)]


def ternarise(w, faults):
    """Trits of a latent matrix, by the mean size of all its weights."""
    flat = flatten(w)[1]
    size = floored(math.fsum(map(abs, flat)) / len(flat), faults)
    if "weights_by_absmax" in faults:
        size = floored(max(map(abs, flat)), faults)
    if "weights_minus_mean" in faults:  # b1: zero counts as negative, the scale is the mean size as before
        mean = math.fsum(flat) / len(flat)
        return Ternary([[1 if number > mean else -1 for number in row] for row in w], size)
    factor = divide(1, size)
    return Ternary([to_codes([number * factor for number in row], -1, 1, faults) for row in w], size)


def product(x, w, faults):
    """Quantised tokens times a ternary matrix: sums of integers, then both scales."""
    w_scale = 1.0 if "weight_scale_dropped" in faults else w.scale
    if x.floats is not None:
        return [[dot(row, trits) * w_scale for trits in w.w_q] for row in x.floats]
    total = dot16 if "accumulator_int16" in faults else dot
    y = []
    for codes, scale in zip(x.x_q, x.scales):
        y.append([total(codes, trits) * (scale * w_scale) for trits in w.w_q])
    return y


def dot16(a, b):
    """A dot product in 16 bits; to wrap once at the end is the same as to wrap at each step."""
    return (dot(a, b) + 32768) % 65536 - 32768


def rms_norm(x, gain, faults):
    eps = pick(faults, EPS, {"norm_without_eps": 0.0, "norm_other_eps": 1e-6})
    if "norm_gain_dropped" in faults:
        gain = [1.0] * len(gain)
    normed = []
    for row in x:
        if "norm_subtracts_mean" in faults:
            mean = sum(row) / len(row)
            row = [number - mean for number in row]
        square = dot(row, row) / len(row)
        root = math.sqrt(square) + eps if "norm_eps_misplaced" in faults else math.sqrt(square + eps)
        rstd = divide(1, root)
        normed.append([number * rstd * g for number, g in zip(row, gain)])
    return normed


def split_heads(x, width):
    """(T, heads * Dh) to (T, heads, Dh)."""
    return [[row[start : start + width] for start in range(0, len(row), width)] for row in x]


def merge_heads(x):
    return [[number for head in row for number in head] for row in x]


def rope(heads, theta, faults):
    """Turn each head of each token by its position."""
    if "rope_wrong_theta" in faults:  # the frequent default, which is right for the model `llama`
        theta = 10000.0
    first = 1 if "position_off_by_one" in faults else 0
    return [[rotate(head, place, theta, faults) for head in row] for place, row in enumerate(heads, first)]


def rotate(head, position, theta, faults):
    """One head, turned; the pairs are halves of the head."""
    half = len(head) // 2
    neighbours = "rope_interleaved" in faults
    left, right = (head[0::2], head[1::2]) if neighbours else (head[:half], head[half:])
    turn = -position if "rope_backwards" in faults else position
    angles = [turn * theta ** (-2 * i / len(head)) for i in range(half)]
    pairs = list(zip(left, right, map(math.cos, angles), map(math.sin, angles)))
    left, right = [a * c - b * s for a, b, c, s in pairs], [b * c + a * s for a, b, c, s in pairs]
    return [number for pair in zip(left, right) for number in pair] if neighbours else left + right


def softmax(scores):
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def kv_head(head, heads, kv_heads, faults):
    """The key/value head that a query head reads."""
    return head % kv_heads if "kv_heads_tiled" in faults else head // (heads // kv_heads)


def visible(position, tokens, faults):
    """How many keys a query sees."""
    if "mask_missing" in faults:
        return tokens
    # Off by one, a token sees the next one; the last has no next one.
    return min(position + (2 if "mask_off_by_one" in faults else 1), tokens)


def attention_probs(q, k, faults):
    """(H, T, T): what each query gives to each key up to its own."""
    tokens, heads, width = len(q), len(q[0]), len(q[0][0])
    scale = 1.0 if "score_scale_missing" in faults else 1 / math.sqrt(width)
    probs = []
    for head in range(heads):
        keys = [token[kv_head(head, heads, len(k[0]), faults)] for token in k]
        rows = []
        for position, token in enumerate(q):
            seen = visible(position, tokens, faults)
            scores = [dot(token[head], key) * scale for key in keys[:seen]]
            rows.append(softmax(scores) + [0.0] * (tokens - seen))
        probs.append(rows)
    return probs


def attention_mix(probs, v, faults):
    """(T, H, Dh): the values, weighted."""
    tokens, heads, kv_heads = len(v), len(probs), len(v[0])
    values = [transpose([token[head] for token in v]) for head in range(kv_heads)]
    read = [values[kv_head(head, heads, kv_heads, faults)] for head in range(heads)]
    return [[[dot(probs[h][t], channel) for channel in read[h]] for h in range(heads)] for t in range(tokens)]


def gated_unit(activation, gate, up, faults):
    """activation(gate) * up."""
    if "gate_and_up_exchanged" in faults:  # in the unit, as if the halves of a joint matrix were exchanged
        gate, up = up, gate
    act = [[activation(g) * u for g, u in zip(*rows)] for rows in zip(gate, up)]
    # In float16 the result alone is kept, not the square on the way to it.
    return [list(map(to_half, row)) for row in act] if "gated_unit_float16" in faults else act


def relu2(gate, up, faults):
    return gated_unit(relu if "relu_not_squared" in faults else squared_relu, gate, up, faults)


def swiglu(gate, up, faults):
    return gated_unit(silu, gate, up, faults)


def relu(x):
    return max(x, 0.0)


def squared_relu(x):
    return relu(x) * relu(x)


def silu(x):
    return x * sigmoid(x)


def sigmoid(x):
    """1 / (1 + exp(-x)), by the exponential that cannot overflow."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


# ------------------------------------------------------------------------------------------------ the models


class Model:
    """One of the two models; every tensor on the way is noted in `dump`, under its full name."""

    def __init__(self, name, config, weights, dump, faults):
        self.name, self.config, self.weights, self.dump, self.faults = name, config, weights, dump, faults

    def note(self, name, value):
        self.dump[f"{self.name}.{name}"] = value
        return value

    def quantised(self, name, x):
        """Quantise the tensor of this name."""
        codes = quantise(x, self.faults)
        note_codes(self.dump, f"{self.name}.{name}", codes)
        if "activations_not_quantised" in self.faults:  # codes are made and dumped, but the product takes x
            return codes._replace(floats=x)
        return codes

    def normed(self, name, x):
        return rms_norm(x, self.weights[f"{name}.gain"], self.faults)

    def norm(self, name, x):
        return self.note(name, self.normed(name, x))

    def project(self, name, x, weight):
        return self.note(name, product(x, self.weights[weight], self.faults))

    def note_weights(self):
        for name, weight in self.weights.items():
            if isinstance(weight, Ternary):
                self.note(f"{name}.w_q", weight.w_q)
                self.note(f"{name}.w_scale", weight.scale)

    def forward(self, ids):
        self.note_weights()
        rows = [self.weights["embedding"][token] for token in ids]
        x = self.note("embedding_out", stream(rows, self.faults))
        for layer in range(self.config["n_layers"]):
            h = self.attention(f"layers.{layer}", x)
            x = self.feed_forward(f"layers.{layer}", h)
        x = self.norm("final_norm", x)
        self.note("logits", [[dot(row, token) for token in self.head()] for row in x])

    def head(self):
        if not self.config["tied_embeddings"]:
            return self.weights["head"]
        embedding = self.weights["embedding"]
        return [[0.0] * len(row) for row in embedding] if "tied_head_zero" in self.faults else embedding

    def attention(self, at, x):
        """The first half of a layer: `h` from the stream x."""
        codes = self.quantised(f"{at}.attn_norm", self.first_norm(at, x))
        width = self.config["d_model"] // self.config["n_heads"]
        q, k, v = (split_heads(self.project(f"{at}.{c}", codes, f"{at}.attn.w{c}"), width) for c in "qkv")
        q, k, v = self.turned(q, k, v)
        self.note(f"{at}.q_rope", merge_heads(q))
        self.note(f"{at}.k_rope", merge_heads(k))
        probs = self.note(f"{at}.probs", attention_probs(q, k, self.faults))
        mixed = self.note(f"{at}.attn", merge_heads(attention_mix(probs, v, self.faults)))
        codes = self.sub_normed(at, "attn", "attn_sub_norm", mixed)
        o = self.project(f"{at}.o", codes, f"{at}.attn.wo")
        return self.note(f"{at}.h", add(x, o, self.faults))

    def turned(self, q, k, v):
        """RoPE on queries and keys."""
        theta, group = self.config["rope_theta"], len(q[0]) // len(k[0])
        q = rope(q, theta, self.faults)
        for _ in range(group if "key_rotated_per_query_head" in self.faults else 1):
            k = rope(k, theta, self.faults)
        # `v` itself was dumped before: only `attn` tells of it.
        return q, k, rope(v, theta, self.faults) if "value_rotated" in self.faults else v

    def feed_forward(self, at, h):
        """The second half: `out` from h."""
        codes = self.quantised(f"{at}.ffn_norm", self.norm(f"{at}.ffn_norm", h))
        gate = self.project(f"{at}.gate", codes, f"{at}.ffn.w_gate")
        up = self.project(f"{at}.up", codes, f"{at}.ffn.w_up")
        act = self.note(f"{at}.act", self.unit()(gate, up, self.faults))
        codes = self.sub_normed(at, "act", "ffn_sub_norm", act)
        down = self.project(f"{at}.down", codes, f"{at}.ffn.w_down")
        return self.note(f"{at}.out", add(h, down, self.faults))

    def unit(self):
        """The gated unit that the configuration names."""
        if self.config["glu"] == "relu2":
            return swiglu if "silu_for_relu2" in self.faults else relu2
        return relu2 if "relu2_for_silu" in self.faults else swiglu

    def first_norm(self, at, x):
        """What q, k and v are made from: where the sub-norm comes too early, it is behind both norms."""
        x = self.normed(f"{at}.attn_norm", x)
        if self.config["norm"] == "sub" and self.sub_norm_is_early():
            x = self.normed(f"{at}.attn_sub_norm", x)
        return self.note(f"{at}.attn_norm", x)

    def sub_norm_is_early(self):
        return "sub_norm_before_projections" in self.faults and "sub_norm_missing" not in self.faults

    def sub_normed(self, at, plain, sub_norm, x):
        """x quantised, behind a norm of its own where the model has one."""
        if self.config["norm"] != "sub":
            return self.quantised(f"{at}.{plain}", x)
        early = self.sub_norm_is_early() and sub_norm == "attn_sub_norm"
        missing = early or "sub_norm_missing" in self.faults
        # Without the norm, what is quantised is dumped under its name: x as it came.
        x = self.note(f"{at}.{sub_norm}", x) if missing else self.norm(f"{at}.{sub_norm}", x)
        return self.quantised(f"{at}.{sub_norm}", x)


def note_codes(dump, name, codes):
    dump[f"{name}.x_q"] = codes.x_q
    if codes.scales is not None:
        dump[f"{name}.x_scale"] = [[scale] for scale in codes.scales]


def note_trits(dump, name, trits):
    dump[f"{name}.w_q"] = trits.w_q
    dump[f"{name}.w_scale"] = trits.scale


# ------------------------------------------------------------------------------------------------ the probes


def run_probes(given, dump, faults):
    """Each op once, on the inputs that models rarely meet."""
    for name in ("ties", "small", "reciprocal", "wide"):
        note_codes(dump, f"quant.{name}.x", quantise(given[f"quant.{name}.x"], faults))
    for name in ("ties", "offset", "small"):
        note_trits(dump, f"ternary.{name}.w", ternarise(given[f"ternary.{name}.w"], faults))
    codes = Quantised(given["product.worst.x_q"], [scale for [scale] in given["product.worst.x_scale"]])
    # A scalar in one kind of file, an array of one number in another.
    trits = Ternary(given["product.worst.w_q"], flatten(given["product.worst.w_scale"])[1][0])
    dump["product.worst.y"] = product(codes, trits, faults)
    for name in ("rmsnorm.small", "rmsnorm.large"):
        dump[f"{name}.y"] = rms_norm(given[f"{name}.x"], given["rmsnorm.g"], faults)
    gate, up = given["glu.large.gate"], given["glu.large.up"]
    dump["glu.large.relu2"] = relu2(gate, up, faults)
    dump["glu.large.swiglu"] = swiglu(gate, up, faults)
    dump["residual.large.sum"] = add(given["residual.large.x"], given["residual.large.y"], faults)
    q, k, v = (given[f"attention.single.{c}"] for c in "qkv")
    dump["attention.single.o"] = merge_heads(attention_mix(attention_probs(q, k, faults), v, faults))


def run_backward(given, dump, faults):
    """The gradients of one quantised product, straight through both roundings."""
    x, w, dy = given["train.x"], given["train.w"], given["train.dy"]
    codes, trits = quantise(x, faults), ternarise(w, faults)
    note_codes(dump, "train.x", codes)
    note_trits(dump, "train.w", trits)
    columns = transpose(trits.w_q)
    dump["train.dx"] = [[dot(row, column) * trits.scale for column in columns] for row in dy]
    seen = x if "gradient_raw_activation" in faults else dequantised(codes)
    dw = [[dot(column, channel) for channel in transpose(seen)] for column in transpose(dy)]
    of_scale = scale_gradient(dw, w, trits) if "gradient_through_scale" in faults else None
    if "gradient_clipped_ste" in faults:  # beyond one scale, as if w / m were clamped before it is rounded
        dw = [[g if abs(a) <= trits.scale else 0.0 for g, a in zip(*rows)] for rows in zip(dw, w)]
    if of_scale:
        dw = [[a + b for a, b in zip(*rows)] for rows in zip(dw, of_scale)]
    dump["train.dw"] = dw


def scale_gradient(dw, w, trits):
    """What reaches w by its scale, mean |w|, in y = (x_q @ w_q.T) * x_scale * w_scale; trits are fixed."""
    share = sum(map(dot, dw, trits.w_q)) / (len(w) * len(w[0]))
    return [[share * ((a > 0) - (a < 0)) for a in row] for row in w]


def run_adamw(given, constants, dump, faults):
    """Two steps of AdamW on a matrix and a gain."""
    shapes = {name: flatten(given[f"train.p.{name}"])[0] for name in ("matrix", "gain")}
    state = {name: (flatten(given[f"train.p.{name}"])[1], None, None) for name in shapes}
    for step in (1, 2):
        at = f"train.step{step}"
        grads = {name: flatten(given[f"{at}.grad.{name}"])[1] for name in shapes}
        grads = clip(grads, constants["max_norm"], faults)
        for name, shape in shapes.items():
            decay = constants["decay"] if name == "matrix" or "decay_on_norms" in faults else 0.0
            state[name] = adamw_step(state[name], grads[name], step, decay, constants, faults)
            dump[f"{at}.clipped.{name}"] = nest(grads[name], shape)
            for letter, flat in zip("pmv", state[name]):
                dump[f"{at}.{letter}.{name}"] = nest(flat, shape)


def clip(grads, max_norm, faults):
    """All gradients times one factor, where their common norm is too large."""
    if "clip_per_tensor" in faults and len(grads) > 1:
        return {name: clip({name: grad}, max_norm, faults)[name] for name, grad in grads.items()}
    norm = math.sqrt(sum(dot(grad, grad) for grad in grads.values()))
    factor = max_norm / norm if norm > max_norm else 1.0
    return {name: [value * factor for value in grad] for name, grad in grads.items()}


def adamw_step(state, grad, step, decay, constants, faults):
    """(p, m, v) after one step; m and v are None before the first."""
    p, m, v = state
    m, v = m or [0.0] * len(p), v or [0.0] * len(p)
    lr, beta1, beta2 = constants["lr"], constants["beta1"], constants["beta2"]
    if "moments_exchanged" in faults:
        beta1, beta2 = beta2, beta1
    if "decay_in_gradient" in faults:  # after the clipping, as PyTorch's Adam has it
        grad, decay = [g + decay * a for g, a in zip(grad, p)], 0.0
    m = [beta1 * a + (1 - beta1) * g for a, g in zip(m, grad)]
    v = [beta2 * a + (1 - beta2) * g * g for a, g in zip(v, grad)]
    whole1, whole2 = 1 - beta1**step, 1 - beta2**step
    if "bias_correction_missing" in faults:
        whole1 = whole2 = 1.0
    root = [math.sqrt(a / whole2) + constants["eps"] for a in v]
    p = [a * (1 - lr * decay) - lr * (b / whole1) / r for a, b, r in zip(p, m, root)]
    return p, m, v


# ------------------------------------------------------------------------------------------------ all of it


def run(folder, faults=NO_FAULTS):
    """Every tensor that homework.json asks for: name -> (shape, flat list of numbers)."""
    if unknown := sorted(faults - FAULTS):
        raise ValueError(f"no such faults: {', '.join(unknown)}")
    homework = json.loads((folder / "homework.json").read_text())
    kind = homework["for"]
    if kind not in ("hf", "i2s", "raw"):
        raise ValueError(f"this port reads hf, i2s and raw, not {kind!r}")
    dump = {}
    given = read_probes(folder, kind)
    run_probes(given, dump, faults)
    for name, entry in homework["models"].items():
        config = entry["config"]
        weights = load_model(folder / entry["folder"], homework, config["n_layers"], faults)
        Model(name, config, weights, dump, faults).forward(entry["ids"])
    run_backward(given, dump, faults)
    run_adamw(given, homework["adamw"], dump, faults)
    # A fault may leave a tensor without the shape that it should have; it is not in `dump` then.
    names = [entry["name"] for entry in homework["dump"]]
    return {name: flatten(dump[name]) for name in names if name in dump}


def write(tensors, folder):
    """The tensors as raw bytes in folder/dump: whole numbers as int8, all others as float64."""
    place = folder / "dump"
    place.mkdir(exist_ok=True)
    index = {}
    for name, (shape, flat) in tensors.items():
        dtype = "int8" if all(isinstance(number, int) for number in flat) else "float64"
        (place / f"{name}.bin").write_bytes(struct.pack(f"<{len(flat)}{FORMATS[dtype]}", *flat))
        index[name] = {"file": f"{name}.bin", "dtype": dtype, "shape": list(shape)}
    (place / "index.json").write_text(json.dumps(index, indent=1))


def main():
    if len(sys.argv) != 2:
        raise SystemExit("usage: python mini_port.py FOLDER")
    folder = Path(sys.argv[1])
    write(run(folder), folder)


if __name__ == "__main__":
    main()
