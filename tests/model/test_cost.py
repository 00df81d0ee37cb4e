"""model/cost: every formula against an independent count, by tables of tensors and bytes of real arrays."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import NORMS, label, small_batch, small_config, small_params, variants

from bitnet_ref.config import PRESETS, ModelConfig
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer, cost
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.transformer import forward

OPS = load("numpy")
KINDS = list(variants(norm=NORMS, linear=("ternary", "full"), head=("full", "ternary"),
                      tied_embeddings=(True, False), glu=("swiglu", "relu2")))
each_kind = pytest.mark.parametrize("kind", KINDS, ids=label)
each_preset = pytest.mark.parametrize("preset", PRESETS)


def table(cfg):
    """{name: (elements, spec)} of the table of parameters."""
    return {s.name: (math.prod(s.shape), s) for s in param_specs(cfg)}


@st.composite
def configs(draw):
    heads, kv = draw(st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3), (8, 8)]))
    norm = draw(st.sampled_from(list(NORMS.values())))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 500)), n_heads=heads, n_kv_heads=kv, n_layers=draw(st.integers(1, 5)),
        d_model=2 * heads * draw(st.integers(1, 9)), d_ff=draw(st.integers(1, 99)), **norm,
        context=draw(st.integers(1, 99)), linear=draw(st.sampled_from(["ternary", "full"])),
        head=draw(st.sampled_from(["full", "ternary"])), tied_embeddings=draw(st.booleans()))


# --- parameters and bytes at rest --------------------------------------------------------------------------


@given(cfg=configs())
def test_parameters_by_kind_are_those_of_the_table(cfg):
    n, rows = cost.count_params(cfg), table(cfg)
    assert n.embedding == rows["embedding"][0]
    assert n.head == rows.get("head", (0, None))[0]
    assert n.projections == sum(c for name, (c, s) in rows.items() if s.decay and name.startswith("layers."))
    assert n.norms == sum(c for c, s in rows.values() if not s.decay)
    assert n.total == sum(c for c, _ in rows.values())


@each_preset
def test_parameters_of_a_preset_are_those_of_the_table(preset):
    cfg = PRESETS[preset].model
    assert cost.count_params(cfg).total == sum(c for c, _ in table(cfg).values())


def test_2b4t_has_the_published_number_of_parameters():
    n = cost.count_params(PRESETS["2b4t"].model)
    assert n == (328_335_360, 2_084_044_800, 0, 440_320)
    assert n.total == 2_412_820_480


@pytest.mark.parametrize(("preset", "name"), [("700m", 0.7), ("1.3b", 1.3), ("3b", 3.3)])
def test_the_papers_models_have_the_size_of_their_names(preset, name):
    assert cost.count_params(PRESETS[preset].model).total / 1e9 == pytest.approx(name, rel=0.08)


@each_kind
def test_trits_are_those_of_the_weights(kind):
    cfg = small_config(**kind)
    trits = Transformer(cfg, small_params(cfg), OPS).weights.trits()
    assert cost.ternary_params(cfg) == sum(t.w_q.size for t in trits.values())


@each_kind
def test_bytes_of_the_file_are_those_of_the_weights(kind):
    """Over the table of weights: a tied full head is stored once, a ternary one beside the embedding."""
    cfg = small_config(**kind)
    weights = Transformer(cfg, small_params(cfg), OPS).weights
    trits = sum(t.w_q.size for t in weights.trits().values())
    arrays = {id(t): t.size for name, t in weights.items() if name not in weights.trits()}
    for bits in cost.BITS_PER_TRIT.values():
        assert cost.inference_bytes(cfg, bits) == pytest.approx(trits * bits / 8 + 2 * sum(arrays.values()))
    assert cost.inference_bytes(cfg, 2.0, 4) - cost.inference_bytes(cfg, 2.0, 2) == 2 * sum(arrays.values())


def test_the_densities_are_those_of_the_packings():
    """Four trits a byte, five trits a byte, and what no code beats."""
    two, five, bound = cost.BITS_PER_TRIT.values()
    assert two == 8 / 4
    assert five == 8 / 5
    assert 3**5 <= 2**8 < 3**6
    assert bound == math.log2(3) < five


# --- bytes while generating and training -------------------------------------------------------------------


@each_kind
def test_the_cache_grows_by_the_keys_and_values_of_a_token(kind):
    """What a cached decoder would hold: k and v of each layer, one column longer per token."""
    cfg = small_config(**kind)
    model = Transformer(cfg, small_params(cfg, dtype=np.float32), OPS)
    held = []
    for T in (4, 5):
        _, saved = forward(model.plan, model.ready, np.zeros((1, T), np.int64))
        held.append(sum(s.k.nbytes + s.v.nbytes for s in saved.blocks))
    assert held[1] - held[0] == cost.kv_bytes_per_token(cfg, 4) == 2 * cost.kv_bytes_per_token(cfg, 2)


@each_kind
def test_training_state_is_what_a_run_allocates(kind):
    cfg = small_config(**kind)
    params = small_params(cfg, dtype=np.float32)
    model = Transformer(cfg, params, OPS)
    buffers = [params, *(params.zeros_like() for _ in range(3))]
    assert cost.state_bytes(cfg) == sum(b.flat.nbytes for b in buffers) + sum(
        t.w_q.nbytes for t in model.weights.trits().values())


def held_arrays(value):
    """Every array in a tree of tuples and lists."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from held_arrays(part)


def owner(array):
    """The array whose memory `array` views."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


@each_kind
@pytest.mark.parametrize("shape", [(1, 7), (3, 5)])
def test_activations_are_what_forward_saves(kind, shape):
    """Every buffer once, without the scale and the rstd of each row: they are said to be left out.

    A twin without sub-norms multiplies the attention's result as it is; as that result is laid out head by
    head, NumPy copies it to flatten it, and here both are alive. The formula has it once.
    """
    cfg = small_config(**kind)
    model = Transformer(cfg, small_params(cfg, dtype=np.float32), OPS)
    logits, saved = forward(model.plan, model.ready, small_batch(cfg, B=shape[0], T=shape[1])[0])
    arrays = {id(owner(a)): owner(a) for a in held_arrays((logits, saved))}
    small = [a for a in arrays.values() if a.shape[-1] == 1 and a.ndim == 3]
    held = sum(a.nbytes for a in arrays.values()) - sum(a.nbytes for a in small)
    copied = 4 * cfg.d_model * cfg.n_layers if (cfg.norm, cfg.linear) == ("pre", "full") else 0
    assert held == shape[0] * shape[1] * (cost.saved_bytes_per_token(cfg) + copied)


# --- operations --------------------------------------------------------------------------------------------


class Counter:
    """An ops namespace that counts multiply-adds; of attention, those of the pairs that are visible."""

    def __init__(self):
        self.ops = 0

    def __getattr__(self, name):
        real = getattr(OPS, name)
        if name not in ("linear", "ternary_linear", "linear_backward", "ternary_linear_backward", "attention",
                        "attention_backward"):
            return real

        def counted(*args, **kwargs):
            self.ops += self.count(name, args)
            return real(*args, **kwargs)
        return counted

    def count(self, name, args):
        if name.startswith("attention"):
            q = args[0] if name == "attention" else args[1]
            B, T, H, Dh = q.shape
            products = 2 if name == "attention" else 4      # recomputed scores are not counted
            return B * H * (T * (T + 1) // 2) * Dh * 2 * products
        w = next(a for a in args[1:] if hasattr(a, "w_q") or (isinstance(a, np.ndarray) and a.ndim == 2))
        N, K = getattr(w, "w_q", w).shape
        rows = math.prod(args[0].shape[:-1])
        return 2 * rows * N * K * (2 if name.endswith("backward") else 1)


@each_kind
def test_operations_are_those_that_a_step_makes(kind):
    """Counted at the ops, in a full window: a multiply-add is two, a masked pair is none."""
    cfg = dataclasses.replace(small_config(**kind), context=6)
    counter, params = Counter(), small_params(cfg, dtype=np.float32)
    model = Transformer(cfg, params, counter)
    ids, targets = small_batch(cfg, B=2, T=6)
    forward(model.plan, model.ready, ids)
    assert counter.ops == 12 * cost.forward_ops_per_token(cfg, 6)
    counter.ops = 0
    model.loss_and_grads([(ids, targets)], params.zeros_like())
    assert counter.ops == 12 * cost.train_ops_per_token(cfg, 6)


def test_six_operations_per_parameter_and_token():
    """The rule of thumb, for a wide model and a short window, the embedding's lookup apart."""
    cfg = ModelConfig(d_model=4096, d_ff=11008, n_layers=32, n_heads=32, n_kv_heads=32, vocab_size=32000)
    assert cost.train_ops_per_token(cfg, 1) == pytest.approx(6 * cost.count_params(cfg).total, rel=0.001)
