"""model/block: every variant of a block differentiated, and what it keeps for backward."""

import numpy as np
import pytest
from derivative import gradient_errors
from strategies import NORMS, label, small_config, small_params, variants

from bitnet_ref.kernels import load
from bitnet_ref.layers import relu2, relu2_backward, swiglu, swiglu_backward
from bitnet_ref.layers.rope import rope_table
from bitnet_ref.model.block import block, block_backward, build
from bitnet_ref.model.weights import ternarise

OPS = load("numpy")
AT = "layers.0."


def example(cfg, rng):
    """x (B, T, D) and the weights of block 0."""
    params = small_params(cfg)
    return {"x": rng.normal(size=(2, 5, cfg.d_model)),
            **{s.name: params[s.name] for s in params.specs if s.name.startswith(AT)}}


def table(cfg):
    return rope_table(np.arange(5), cfg.head_dim, cfg.rope_theta, np.float64)


# --- derivative --------------------------------------------------------------------------------------------


EVERY = list(variants(norm=NORMS, glu=("swiglu", "relu2"), n_kv_heads=(4, 1)))


@pytest.mark.parametrize("given", EVERY, ids=label)
def test_backward_is_the_derivative(given, tol, rng):
    """Of the stream and of every weight and gain, a block being a dozen ops."""
    cfg = small_config(linear="full", **given)
    plan = build(cfg, OPS)

    def forward(x, **w):
        return block(x, w, AT, table(cfg), plan)[0]

    def backward(dy, x, **w):
        grads = {name: np.zeros_like(t) for name, t in w.items()}
        dx = block_backward(dy, block(x, w, AT, table(cfg), plan)[1], w, AT, table(cfg), plan, grads)
        return {"x": dx, **grads}

    errors = gradient_errors(forward, backward, example(cfg, rng), rng)
    assert max(errors.values()) <= tol["model_derivative"], errors


# --- property ----------------------------------------------------------------------------------------------


def test_a_config_is_resolved_into_functions():
    plan = build(small_config(glu="relu2", linear="full", head="ternary"), OPS)
    assert (plan.glu, plan.glu_backward) == (relu2, relu2_backward)
    assert (plan.linear.multiply, plan.head.multiply) == (OPS.linear, OPS.ternary_linear)
    plan = build(small_config(glu="swiglu", linear="ternary", head="full"), OPS)
    assert (plan.glu, plan.glu_backward) == (swiglu, swiglu_backward)
    assert (plan.linear.multiply, plan.head.multiply) == (OPS.ternary_linear, OPS.linear)


@pytest.mark.parametrize("norm", NORMS)
def test_a_block_of_zeros_passes_the_stream(norm, rng):
    cfg = small_config(linear="full", **NORMS[norm])
    given = {name: t if name == "x" else np.zeros_like(t) for name, t in example(cfg, rng).items()}
    x = given.pop("x")
    y, _ = block(x, given, AT, table(cfg), build(cfg, OPS))
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("norm", NORMS)
def test_the_inputs_of_products_are_kept_as_int8(norm, rng):
    cfg = small_config(**NORMS[norm])
    weights = ternarise(cfg, small_params(cfg, dtype=np.float32), OPS).ready(OPS)
    x = rng.normal(size=(2, 5, 16)).astype(np.float32)
    angles = rope_table(np.arange(5), cfg.head_dim, cfg.rope_theta)
    y, s = block(x, weights, AT, angles, build(cfg, OPS))
    entered = [e for place in (s.in_qkv, s.in_out, s.in_gate_up, s.in_down) for e in place]
    assert {e.operand[0].dtype for e in entered} == {np.dtype(np.int8)}
    floats = [y, *(getattr(s, name) for name in ("x", "q", "k", "v", "o", "lse", "h", "gate", "up", "u"))]
    assert {a.dtype for a in floats} == {np.dtype(np.float32)}
    assert s.x is x


def test_what_backward_is_given_is_left_alone(rng):
    cfg = small_config(linear="full")
    plan, w = build(cfg, OPS), example(cfg, rng)
    x = w.pop("x")
    _, saved = block(x, w, AT, table(cfg), plan)
    dy, grads = rng.normal(size=x.shape), {name: np.zeros_like(t) for name, t in w.items()}
    first = block_backward(dy, saved, w, AT, table(cfg), plan, grads)
    np.testing.assert_array_equal(block_backward(dy, saved, w, AT, table(cfg), plan, grads), first)
