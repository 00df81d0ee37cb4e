"""A stand-in for the public port of BitNet b1.58 2B4T that exploded: its depth, its layout, its decode.

The port read 2-bit codes as 00 = 0, 01 = +1, 10 = -1, four neighbours to a byte; the file has value + 1, in
four blocks of rows. Scales and gains here are of the sizes that public scans of that checkpoint report, in a
narrow model of random trits: what can be seen is how norms grow, and that they say nothing of the decode.
Read after: walk/generate_and_chain. Read next: walk/formats.
"""

import numpy as np

from bitnet_ref.config import PRESETS, ModelConfig
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.transformer import forward
from bitnet_ref.model.weights import Trits, Weights
from bitnet_ref.pack.rosetta import pack_hf, unpack_hf

BIG = PRESETS["2b4t"].model
CFG = ModelConfig(vocab_size=512, d_model=128, d_ff=384, n_heads=4, n_kv_heads=2, n_layers=BIG.n_layers,
                  context=64, norm="sub", glu="relu2", rope_theta=BIG.rope_theta)
SCALE, SHARES = 2.2, (0.3, 0.4, 0.3)                       # of -1, 0, +1
# From the first layer to the last.
GAINS = {"attn_norm": (0.01, 0.03), "attn_sub_norm": (0.013, 2.6), "ffn_norm": (1.2, 1.4),
         "ffn_sub_norm": (1.0, 3.0), "final_norm": (1.0, 1.0)}


def weights(seed: int = 0) -> Weights:
    """What the file holds.
    >>> matrix = weights()["layers.29.ffn.w_up"]
    >>> matrix.w_q.shape, round(float(matrix.w_scale), 1)
    ((384, 128), 2.2)
    """
    rng, table = np.random.default_rng(seed), Weights()
    for spec in param_specs(CFG):
        if spec.ternary:
            w_q = rng.choice(np.array([-1, 0, 1], np.int8), spec.shape, p=SHARES)
            table[spec.name] = Trits(w_q, np.float32(SCALE))
        elif spec.init_std:
            table[spec.name] = rng.normal(size=spec.shape).astype(np.float32)
        else:
            first, last = GAINS[spec.name.rpartition(".")[2]]
            layer = int(spec.name.split(".")[1]) if "." in spec.name else 0
            gain = first * (last / first) ** (layer / (CFG.n_layers - 1))
            table[spec.name] = np.full(spec.shape, gain, np.float32)
    table["head"] = table["embedding"]
    return table


def misread(packed: np.ndarray) -> np.ndarray:
    """uint8 (ceil(N/4), K), as Hugging Face packs  ->  the trits int8 (N, K) that the port saw.   N = 4 n
    >>> trits = np.array([[1, -1, 0, 1]] * 4, np.int8)
    >>> misread(pack_hf(trits)).tolist()
    [[-1, -1, -1, -1], [0, 0, 0, 0], [1, 1, 1, 1], [-1, -1, -1, -1]]
    """
    codes = packed.reshape(-1, 1) >> np.array([0, 2, 4, 6], np.uint8) & 3          # four neighbours
    return np.array([0, 1, -1, 0], np.int8)[codes].reshape(4 * len(packed), -1)    # 00 = 0, 01 = +1, 10 = -1


def loaded(file: Weights, wrong: bool) -> Transformer:
    """The model as a right reader, or the port, has it from the packed bytes of every matrix.
    >>> file, name = weights(), "layers.0.ffn.w_up"
    >>> read = [loaded(file, wrong).weights[name].w_q for wrong in (False, True)]
    >>> [round(float(np.mean(w_q == file[name].w_q)), 1) for w_q in read]        # the port: by chance
    [1.0, 0.3]
    """
    table = Weights(file)
    for name, t in file.trits().items():
        packed = pack_hf(t.w_q)
        w_q = misread(packed) if wrong else unpack_hf(packed, len(t.w_q))
        table[name] = Trits(w_q, t.w_scale)
    table["head"] = table["embedding"]
    return Transformer(CFG, table, load("numpy"))


def norms(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """Norm of the stream behind the embedding and behind each layer, mean over tokens.   ids int (B, T)
    >>> grown = norms(loaded(weights(), wrong=False), np.array([[1, 2, 3]]))
    >>> grown.shape, bool(grown[-1] > 100 * grown[0])  # of a right decode too
    ((31,), True)
    """
    _, saved = forward(model.plan, model.ready, ids)
    assert saved is not None
    stream = [*(s.x for s in saved.blocks), saved.x]
    return np.array([np.mean(np.linalg.norm(x, axis=-1)) for x in stream])
