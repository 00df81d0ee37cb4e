"""The straight-through estimator, for the whole ternary model and without trusting a line of its backward.

`walk.frozen` says how: the rounding residuals are frozen, the complex step differentiates what remains.
"""

import numpy as np
import pytest
from derivative import model_loss
from strategies import NORMS, label, small_batch, small_config, small_params, variants

from bitnet_ref.kernels import load
from bitnet_ref.walk.frozen import frozen, overlay, ste_errors

OPS = load("numpy")


def errors_of(cfg, ops, rng, seed=0):
    """{name: relative error} of the gradients of backend `ops`."""
    params, batch, tape = small_params(cfg, seed), small_batch(cfg, seed), []
    here = model_loss(cfg, frozen(tape), params, *batch)
    assert here == pytest.approx(model_loss(cfg, OPS, params, *batch), rel=1e-12)     # the same model, here
    return ste_errors(cfg, ops, params, *batch, rng)


EVERY = list(variants(norm=NORMS, glu=("swiglu", "relu2"), n_kv_heads=(4, 2, 1), head=("full", "ternary"),
                      tied_embeddings=(True, False)))


@pytest.mark.parametrize("given", EVERY, ids=label)
def test_backward_is_the_derivative_with_frozen_residuals(given, tol, rng):
    errors = errors_of(small_config(**given), OPS, rng)
    assert max(errors.values()) <= tol["ste"], errors


def test_residuals_are_not_small():
    """Else the check would say nothing: the quantised model is far from the one that is not."""
    cfg, tape = small_config(), []
    params, batch = small_params(cfg), small_batch(cfg)
    model_loss(cfg, frozen(tape), params, *batch)
    assert len(tape) == 2 * 7 + 2 * 4                   # seven matrices and four inputs in each of two blocks
    assert all(np.max(np.abs(r)) > 1e-3 for r in tape)
    twin = small_config(linear="full")
    full = model_loss(twin, OPS, small_params(twin), *batch)
    assert abs(model_loss(cfg, OPS, params, *batch) - full) > 0.01


# --- faults that the check must catch ----------------------------------------------------------------------


def dw_from_the_unquantised_activation():
    """The commonest mistake: keep the float input of the quantiser, and use it for dw."""
    inputs = []

    def rmsnorm_int8(x, g, eps):
        x_q, x_scale, rstd = OPS.rmsnorm_int8(x, g, eps)
        inputs.append((x_q, OPS.rmsnorm(x, g, eps)[0]))
        return x_q, x_scale, rstd

    def ternary_linear_backward(dy, x_q, x_scale, w, dw):
        n = next(n for q, n in inputs if q is x_q)
        dw += dy.reshape(-1, dy.shape[-1]).T @ n.reshape(-1, n.shape[-1])
        return OPS.ternary_linear_backward(dy, x_q, x_scale, w, np.zeros_like(dw))

    return overlay(rmsnorm_int8=rmsnorm_int8, ternary_linear_backward=ternary_linear_backward)


def dx_without_the_scale_of_the_weights():
    def ternary_linear_backward(dy, x_q, x_scale, w, dw):
        return OPS.ternary_linear_backward(dy, x_q, x_scale, w, dw) / w.w_scale

    return overlay(ternary_linear_backward=ternary_linear_backward)


def a_mask_where_codes_are_clipped():
    """BitNet's estimator has none: a clipped value keeps its gradient."""
    def ternary_linear_backward(dy, x_q, x_scale, w, dw):
        return OPS.ternary_linear_backward(dy, x_q, x_scale, w, dw) * (np.abs(x_q) < 127)

    return overlay(ternary_linear_backward=ternary_linear_backward)


@pytest.mark.parametrize("fault", [dw_from_the_unquantised_activation, dx_without_the_scale_of_the_weights,
                                   a_mask_where_codes_are_clipped])
def test_the_check_catches(fault, rng):
    errors = errors_of(small_config(), fault(), rng)
    assert max(errors.values()) > 1e-3
    assert sum(error > 1e-6 for error in errors.values()) >= 10         # it shows in most tensors, not in one
