"""GGUF files byte by byte, with struct alone: what the format allows, and what it does not."""

import struct

import numpy as np

from bitnet_ref.formats.source import About, Source
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits

FORMS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
KINDS = {bool: 7, int: 4, float: 6, str: 8, list: 9}
NUMBER = {"F32": 0, "F16": 1, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "I2_S": 36, "Q8_0": 8}


def text(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s


def value(v):
    """A type and a value: bool, int, float and str, a list of them; (type, value) for another type."""
    kind, v = v if isinstance(v, tuple) else (KINDS[type(v)], v)
    if kind == 8:
        return struct.pack("<I", 8) + text(v)
    if kind == 9:
        return struct.pack("<I", 9) + value(v[0])[:4] + struct.pack("<Q", len(v)) + b"".join(
            value(item)[4:] for item in v)
    return struct.pack("<I", kind) + (struct.pack(FORMS[kind], v) if kind in FORMS else v)


def entry(name, shape, number, offset):
    """The entry of a tensor; `shape` rows first."""
    dims = b"".join(struct.pack("<Q", n) for n in reversed(shape))
    return text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", number, offset)


def head(n_tensors, n_settings, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, n_tensors, n_settings)


def make(file, settings, tensors, align=32):
    """A GGUF of {name: value} and {name: (type, shape, bytes)}."""
    at, entries, data = 0, b"", b""
    for name, (kind, shape, held) in tensors.items():
        entries += entry(name, shape, NUMBER[kind], at)
        held = bytes(held)
        data += held + bytes(-len(held) % align)
        at = len(data)
    table = b"".join(text(name) + value(v) for name, v in settings.items())
    front = head(len(tensors), len(settings)) + table + entries
    file.write_bytes(front + bytes(-len(front) % align) + data)
    return file


def floats(array, dtype=np.float32):
    """(type, shape, bytes) of an array of floats."""
    kind = {np.float32: "F32", np.float16: "F16"}.get(dtype, "BF16")
    return kind, array.shape, array.astype(dtype).tobytes()


def held(cfg, seed=0, zeros=0.4):
    """{name: floats or Trits} of a model with random trits, random scales, gains away from one."""
    rng = np.random.default_rng(seed)
    table = {}
    for s in param_specs(cfg):
        if s.ternary:
            w_q = rng.choice(np.int8([-1, 0, 1]), s.shape, p=[(1 - zeros) / 2, zeros, (1 - zeros) / 2])
            table[s.name] = Trits(w_q, np.float32(rng.uniform(0.01, 3)))
        else:
            table[s.name] = (s.init_std == 0) + rng.normal(0, 0.1, s.shape).astype(np.float32)
    return table


def source(cfg, table=None, about=None, tokenizer=None):
    """The model in memory, as if it had been read."""
    table = held(cfg) if table is None else table
    return Source("memory", "run", "float32", cfg, about or About("a model", 0, (0,)), tokenizer,
                  table.__getitem__)
