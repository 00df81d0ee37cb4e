"""safetensors files as large as real checkpoints that take no room on the disk: a true header, then holes."""

import json

import ml_dtypes
import numpy as np

from bitnet_ref.model.params import param_specs


def hollow(file, cfg, packed):
    """The packed trits (or the bf16 masters) of `cfg` under their names. The first KiB has values."""
    header, end = {}, 0
    for s in param_specs(cfg):
        trits = s.ternary and packed
        shape = [s.shape[0] // 4, s.shape[1]] if trits else list(s.shape)
        parts = [(s.hf_name, "U8" if trits else "BF16", shape)]
        for name, kind, shape in parts + ([(s.hf_name + "_scale", "BF16", [1])] if trits else []):
            size = int(np.prod(shape)) * (1 if kind == "U8" else 2)
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    with open(file, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + end)
        f.seek(8 + len(text))
        f.write(np.linspace(-1, 1, 512).astype(ml_dtypes.bfloat16).tobytes())
