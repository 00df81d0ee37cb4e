"""kernels/numba_cpu/bf16: rounding as bfloat16 is defined, sums in float32, a step that only rounds more."""

import ml_dtypes
import numpy as np
import pytest
from derivative import array_error
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds, small_batch, small_config, small_params

from bitnet_ref import kernels
from bitnet_ref.checks import CheckError
from bitnet_ref.kernels.numba_cpu import bf16
from bitnet_ref.kernels.numba_cpu import threads as pool
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import Params, param_specs

needs_it = pytest.mark.skipif(not bf16.available(), reason=f"this processor has no {bf16.FEATURE}")
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 140), st.integers(1, 140))


def as_bf16(x):
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


@given(st.lists(st.floats(width=32), min_size=1))
def test_rounding_is_that_of_bfloat16(values):
    x = np.array(values, np.float32)
    got = np.array([bf16.rounded(v) for v in x], np.uint16).view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.astype(np.float32), x.astype(ml_dtypes.bfloat16).astype(np.float32))


def buffer(M, N):
    """Full of NaN: what was not written must not be read."""
    return np.full(bf16.buffer_size(M, N), 0xFFFF, np.uint16)


@needs_it
@given(seeds, SHAPES, st.booleans())
def test_products_are_those_of_the_rounded_operands(seed, shape, codes):
    rng, (M, N, K) = np.random.default_rng(seed), shape
    dy, start = rng.normal(size=(M, N)).astype(np.float32), rng.normal(size=(M, K)).astype(np.float32)
    scale, w_scale = rng.random(M).astype(np.float32), np.float32(0.37)
    if codes:
        w, x = rng.integers(-1, 2, (N, K)).astype(np.int8), rng.integers(-127, 128, (M, K)).astype(np.int8)
        w_exact, x_exact = w.astype(float), x.astype(float)
    else:
        w, x = rng.normal(size=(N, K)).astype(np.float32), rng.normal(size=(M, K)).astype(np.float32)
        w_exact, x_exact = as_bf16(w), as_bf16(x)
    dx, dw = start.copy(), np.zeros((N, K), np.float32)
    bf16.product_dx(dy, w, w_scale, dx, True, buffer(M, N))
    bf16.product_dw(dy, x, scale, dw, buffer(M, N))
    assert array_error(dx, start + as_bf16(dy * w_scale) @ w_exact) <= 4e-6
    assert array_error(dw, as_bf16(dy * scale[:, None]).T @ x_exact) <= 4e-6
    bf16.product_dx(dy, w, w_scale, dx, False, buffer(M, N))
    assert array_error(dx, as_bf16(dy * w_scale) @ w_exact) <= 4e-6


def step(ops, seed=0, B=3, T=50, **given):
    cfg = small_config(context=64, **given)
    model = Transformer(cfg, small_params(cfg, seed, np.float32), ops)
    grads = Params(param_specs(cfg), np.float32)
    loss = model.loss_and_grads([tuple(small_batch(cfg, 1, B, T))], grads)
    return loss, grads


@needs_it
@pytest.mark.parametrize("given", [{}, {"linear": "full"}, {"norm": "pre", "glu": "relu2", "n_kv_heads": 1},
                                   {"head": "ternary", "tied_embeddings": False}], ids=str)
def test_a_step_has_the_same_loss_and_nearly_the_same_gradient(given):
    found = [step(kernels.load("numba", None, how), **given) for how in ("bf16", "float32")]
    (loss, grads), (want, exact) = found
    assert loss == want
    for name in exact.view:
        apart = np.linalg.norm(grads[name] - exact[name]) / np.linalg.norm(exact[name])
        assert 0 < apart < 2e-2, name


@needs_it
def test_the_same_bits_on_any_number_of_threads():
    ops, before, results = kernels.load("numba", None, "bf16"), pool.pool_size(), []
    try:
        for threads in (before, 1):
            pool.use(threads)
            results.append(step(ops)[1].flat.copy())
    finally:
        pool.use(before)
    np.testing.assert_array_equal(*results)


@needs_it
def test_a_nan_shows(rng):
    dy, w = np.ones((3, 4), np.float32), np.ones((4, 5), np.int8)
    dy[1, 2] = np.nan
    dx = np.zeros((3, 5), np.float32)
    bf16.product_dx(dy, w, 1, dx, False, buffer(3, 4))
    assert np.isnan(dx[1]).all()
    assert np.isfinite(dx[[0, 2]]).all()


def test_without_the_instruction_it_is_refused(monkeypatch):
    monkeypatch.setattr(bf16, "available", lambda: False)
    with pytest.raises(CheckError, match=r"bf16 needs a processor with avx512bf16; got .*; leave it out"):
        kernels.load("numba", None, "bf16")


def test_the_reference_has_no_such_arithmetic():
    with pytest.raises(CheckError, match="bf16 needs a backend that has it; got numpy; use --backend"):
        kernels.load("numpy", None, "bf16")
    with pytest.raises(CheckError, match="backward must be one of float32, bf16; got 'fp8'"):
        kernels.load("numba", None, "fp8")
