"""What the tests run on: hypothesis strategies, and small models of every variant.

Arrays whose values do not matter are drawn from a seed (quick); arrays whose values are the point, as for the
quantisers, are drawn element by element, so that hypothesis finds ties, zeros and extremes.
"""

import itertools

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bitnet_ref.config import ModelConfig
from bitnet_ref.model.params import init_params

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])

NORMS = {"pre": {"norm": "pre"}, "sub": {"norm": "sub"}, "inner": {"norm": "inner"},
         "inner_gain": {"norm": "inner", "inner_gain": True}}


def rows(dtype, limit=1e4):
    """(M, K) finite activations, from subnormals to outliers."""
    elements = st.floats(-limit, limit, width=32)
    return arrays(dtype, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=elements)


def dyadic(dtype):
    """(N, K) weights that are multiples of 1/64: sums are exact in every order, and ties are common."""
    shapes = array_shapes(min_dims=2, max_dims=2, max_side=8)
    return arrays(np.int64, shapes, elements=st.integers(-256, 256)).map(lambda a: (a / 64).astype(dtype))


def variants(**axes):
    """The product of the axes {name: values} as keyword dicts; `norm` takes the names of NORMS."""
    for values in itertools.product(*axes.values()):
        given = dict(zip(axes, values))
        yield {**given, **NORMS[given["norm"]]} if "norm" in given else given


def label(given):
    return "-".join(str(v) for v in given.values())


SMALL = {"vocab_size": 13, "d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 20,
         "context": 12, "init_std": 0.3}


def small_config(**given):
    """Two blocks of width 16: every variant in milliseconds. The weights are large, to be far from linear."""
    return ModelConfig(**{**SMALL, **given})


def small_params(cfg, seed=0, dtype=np.float64):
    """Initial parameters with gains away from one, so that a dropped gain shows."""
    params = init_params(cfg, seed, dtype)
    gains = params.flat[params.n_decayed:]
    gains += np.random.default_rng(seed).normal(0, 0.3, gains.shape).astype(dtype)
    return params


def small_batch(cfg, seed=0, B=2, T=5):
    """ids, targets int (B, T)."""
    return np.random.default_rng(seed).integers(0, cfg.vocab_size, (2, B, T))
