"""model/params: one table for every tensor, one flat buffer, initial values that depend on the seed alone."""

import math

import numpy as np
import pytest
from strategies import NORMS, label, small_config, variants

from bitnet_ref.config import PRESETS
from bitnet_ref.model.params import Params, init_params, param_specs

EVERY = [small_config(**given) for given in variants(
    norm=NORMS, tied_embeddings=(True, False), linear=("ternary", "full"), head=("full", "ternary"))]
EACH = pytest.mark.parametrize("cfg", EVERY, ids=lambda cfg: label({
    n: getattr(cfg, n) for n in ("norm", "inner_gain", "tied_embeddings", "linear", "head")}))


# --- the table ---------------------------------------------------------------------------------------------


def test_the_table_of_2b4t_has_the_checkpoints_names_and_shapes():
    specs = param_specs(PRESETS["2b4t"].model)
    assert len(specs) == 332                            # tensors of the bf16 repository
    table = {s.hf_name: s.shape for s in specs}
    at = "model.layers.29."
    assert {name.removeprefix(at): shape for name, shape in table.items() if name.startswith(at)} == {
        "self_attn.q_proj.weight": (2560, 2560), "self_attn.k_proj.weight": (640, 2560),
        "self_attn.v_proj.weight": (640, 2560), "self_attn.o_proj.weight": (2560, 2560),
        "mlp.gate_proj.weight": (6912, 2560), "mlp.up_proj.weight": (6912, 2560),
        "mlp.down_proj.weight": (2560, 6912), "input_layernorm.weight": (2560,),
        "post_attention_layernorm.weight": (2560,), "self_attn.attn_sub_norm.weight": (2560,),
        "mlp.ffn_sub_norm.weight": (6912,)}
    assert table["model.embed_tokens.weight"] == (128256, 2560)
    assert table["model.norm.weight"] == (2560,)
    assert "lm_head.weight" not in table


def test_gains_per_projection_have_the_width_of_its_input():
    specs = {s.name: s for s in param_specs(small_config(norm="inner", inner_gain=True))}
    gains = {name: s.shape for name, s in specs.items() if name.startswith("layers.1.") and not s.decay}
    assert gains == {**{f"layers.1.{w}_norm": (16,) for w in ("attn.wq", "attn.wk", "attn.wv", "attn.wo",
                                                              "ffn.w_gate", "ffn.w_up")},
                     "layers.1.ffn.w_down_norm": (20,)}
    assert specs["layers.1.attn.wq_norm"].hf_name == "model.layers.1.self_attn.q_proj.norm.weight"


@pytest.mark.parametrize(("norm", "gains"), [("pre", 2), ("sub", 4), ("inner", 0), ("inner_gain", 7)])
def test_gains_of_every_layout(norm, gains):
    specs = param_specs(small_config(**NORMS[norm]))
    assert sum(not s.decay for s in specs) == 2 * gains + 1         # two layers, and the final norm in all


@EACH
def test_decayed_matrices_come_first_and_names_are_unique(cfg):
    specs = param_specs(cfg)
    decays = [s.decay for s in specs]
    assert decays == sorted(decays, reverse=True)
    assert all(s.decay == (len(s.shape) == 2) == (s.init_std == 0.3) for s in specs)
    for field in ("name", "hf_name"):
        assert len({getattr(s, field) for s in specs}) == len(specs)


@EACH
def test_what_is_ternary(cfg):
    specs = {s.name: s for s in param_specs(cfg)}
    assert ("head" in specs) == (not cfg.tied_embeddings)
    for name, s in specs.items():
        projection = name.startswith("layers.") and s.decay
        head = name == "head" and cfg.head == "ternary"
        assert s.ternary == ((projection and cfg.linear == "ternary") or head)
    assert not specs["embedding"].ternary


def test_the_twin_has_the_same_table():
    """Ternary and full differ in `linear` only: same names, shapes, order, decay; same initial values."""
    ternary, full = small_config(linear="ternary"), small_config(linear="full")
    assert [s._replace(ternary=False) for s in param_specs(ternary)] == param_specs(full)
    np.testing.assert_array_equal(init_params(ternary, 5).flat, init_params(full, 5).flat)


# --- the buffer --------------------------------------------------------------------------------------------


@EACH
def test_every_tensor_is_a_view_into_one_buffer_in_table_order(cfg):
    params = Params(param_specs(cfg))
    assert params.flat.dtype == np.float32
    params.flat[:] = np.arange(params.flat.size)
    at = 0
    for s in params.specs:
        size = math.prod(s.shape)
        np.testing.assert_array_equal(params[s.name].reshape(-1), np.arange(at, at + size))
        assert params[s.name].base is params.flat
        at += size
    assert at == params.flat.size


@EACH
def test_the_decayed_matrices_are_a_slice(cfg):
    params = Params(param_specs(cfg))
    params.flat[:params.n_decayed] = 1
    assert all(np.all(params[s.name] == s.decay) for s in params.specs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_like_has_the_same_table_and_dtype_and_its_own_memory(dtype):
    params = init_params(small_config(), 0, dtype)
    zeros = params.zeros_like()
    assert (zeros.specs, zeros.n_decayed, zeros.flat.dtype) == (params.specs, params.n_decayed, dtype)
    assert not zeros.flat.any()
    assert not np.shares_memory(zeros.flat, params.flat)


# --- initial values ----------------------------------------------------------------------------------------


def test_matrices_are_normal_and_gains_one():
    params = init_params(small_config(vocab_size=500, d_model=64, d_ff=300, init_std=0.05), 3)
    assert params.flat.dtype == np.float32
    for s in params.specs:
        t = params[s.name]
        if s.decay:
            assert np.std(t) == pytest.approx(0.05, rel=5 / math.sqrt(2 * t.size))
            assert abs(np.mean(t)) < 5 * 0.05 / math.sqrt(t.size)
        else:
            assert np.all(t == 1)


def test_every_tensor_has_its_own_stream_of_the_seed():
    cfg = small_config()
    once, again, other = init_params(cfg, 7), init_params(cfg, 7), init_params(cfg, 8)
    np.testing.assert_array_equal(once.flat, again.flat)
    draws = [p[s.name].reshape(-1)[:64].tobytes() for p in (once, other) for s in p.specs if s.decay]
    assert len(set(draws)) == len(draws)                # no two tensors, and no two seeds, begin alike
