"""A .bitnet file, written from docs/formats/bitnet.md and docs/formats/rans.md alone.

It shares no code with the library, which must read the file, and write the same tensors.
"""

import json
import zlib

import numpy as np


def rans(trits):
    """Trits of a matrix, int8 -> bytes. Python's integers, so nothing can overflow."""
    n = trits.size
    counts = [int((trits == t).sum()) for t in (-1, 0, 1)]
    freq = [max(1, (2 * c * 32768 + n) // (2 * n)) if c else 0 for c in counts]
    largest = max(range(3), key=lambda i: freq[i])
    freq[largest] = 32768 - sum(freq) + freq[largest]
    state, words = [1 << 32] * 4, b""
    for i, t in reversed(list(enumerate((trits.reshape(-1) + 1).tolist()))):
        x, f = state[i % 4], freq[t]
        if x >= f << 49:
            words = (x % (1 << 32)).to_bytes(4, "little") + words
            x >>= 32
        quotient, rest = divmod(x, f)
        state[i % 4] = (quotient << 15) + rest + sum(freq[:t])
    rest = np.array(freq[:2], "<u2").tobytes() + b"".join(x.to_bytes(8, "little") for x in state) + words
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def bitnet_file(config, name, floats, matrices):
    """The bytes of a file, packed as rans.

    `floats`: {name: (dtype as safetensors spells it, shape, bytes)}; `matrices`: {name: (trits, scale)}.
    """
    parts = {}
    for n, (_, scale) in matrices.items():
        parts[f"{n}.scale"] = ("F32", [1], np.array([scale], "<f4").tobytes())
    parts |= floats
    for n, (trits, _) in matrices.items():
        packed = rans(trits)
        parts[f"{n}.trits"] = ("U8", [len(packed)], packed)
    counts = {n: [int((t == v).sum()) for v in (-1, 0, 1)] for n, (t, _) in matrices.items()}
    about = {"name": name, "bos": None, "eos": [], "chat_template": None, "settings": {}}
    metadata = {
        "format": "bitnet",
        "version": "1",
        "packing": "rans",
        "config": json.dumps(config),
        "about": json.dumps(about),
        "crc32": json.dumps({n: f"{zlib.crc32(data):08x}" for n, (_, _, data) in parts.items()}),
        "histograms": json.dumps(counts),
        "header_crc32": "00000000",
    }
    header, end = {"__metadata__": metadata}, 0
    for n, (dtype, shape, data) in parts.items():
        header[n] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digits = f"{zlib.crc32(text):08x}"
    text = text.replace(b'"header_crc32": "00000000"', f'"header_crc32": "{digits}"'.encode())
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in parts.values())
