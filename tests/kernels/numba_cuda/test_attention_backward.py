"""kernels/numba_cuda/attention_backward: gradients of causal attention, against layers; and turning."""

from importlib import import_module

import numpy as np
import pytest
from derivative import array_error

from bitnet_ref.checks import CheckError
from bitnet_ref.layers import attention, attention_backward, rope
from bitnet_ref.layers import rope_backward as turned_back
from bitnet_ref.layers.rope import rope_table

pytest.importorskip("numba_cuda")
# not the ops of these names
forward = import_module("bitnet_ref.kernels.numba_cuda.attention")
ours = import_module("bitnet_ref.kernels.numba_cuda.attention_backward")
rope_backward = import_module("bitnet_ref.kernels.numba_cuda.rope_backward")

# B, T, H, KV, Dh: one token; more tokens than a tile; heads that share keys; columns beyond a warp's
SHAPES = [(1, 1, 1, 1, 2), (2, 37, 4, 2, 6), (1, 9, 3, 1, 70)]


def heads(x):
    """(B, T, KV, Dh) as a cache has them, or back."""
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3))


WIDE = pytest.param((1, 66, 20, 5, 128), marks=pytest.mark.slow)


@pytest.mark.parametrize("shape", [*SHAPES, WIDE], ids=str)
def test_against_layers(device, shape, tol, rng):
    B, T, H, KV, Dh = shape
    q, do = (rng.standard_normal((B, T, H, Dh)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((B, T, KV, Dh)).astype(np.float32) for _ in range(2))
    want_o, want_lse = attention(q, k, v)
    there = [device.upload(x) for x in (q, heads(k), heads(v))]
    o, lse = device.empty(q.shape, np.float32), device.empty((B, T, H), np.float32)
    slot, position = np.divmod(np.arange(B * T, dtype=np.int32), np.int32(T))
    queries = forward.Queries(B * T, *map(device.upload, (slot, position, forward.tiled([T] * B))))
    forward.attention(device, there[0].reshape(B * T, H, Dh), *there[1:], queries, o, lse, None)
    assert array_error(device.read(o), want_o) <= tol["float32"]
    lse_wanted = want_lse[..., 0].transpose(0, 3, 1, 2).reshape(B, T, H)       # (B, KV, R, T, 1)
    assert array_error(device.read(lse), lse_wanted) <= tol["float32"]
    made = [device.empty(s, np.float32) for s in ((B, T, H), q.shape, (B, KV, T, Dh), (B, KV, T, Dh))]
    ours.attention_backward(device, device.upload(do), *there, o, lse, *made)
    for got, want in zip(made[1:], attention_backward(do, q, k, v, want_o, want_lse)):
        got = device.read(got)
        got = got if got.shape == q.shape else heads(got)
        # a single token's scores have no gradient: what there is of it is rounding
        assert np.abs(got - want).max() <= tol["float32"] * max(np.abs(want).max(), 1)


def test_heads_that_are_too_wide_are_refused():
    with pytest.raises(CheckError, match="at most 128 columns"):
        ours._of(130)


def test_rows_to_heads_and_back(device, rng):
    """Queries stand beside keys in one row, values in rows of their own; exact but for fused products."""
    B, T, H, KV, Dh = 2, 5, 3, 2, 6
    D, narrow, half = H * Dh, KV * Dh, Dh // 2
    both, alone = (rng.standard_normal((B * T, n)).astype(np.float32) for n in (D + narrow, narrow))
    q_in, k_in = (part.reshape(B, T, -1, Dh) for part in (both[:, :D], both[:, D:]))
    cos, sin = rope_table(np.arange(T), Dh, 1e4)
    n = B * T * (H + 2 * KV) * half

    def launched(kernel, rows, values, q, k, v):
        device.launch(kernel, rope_backward.blocks(n), rows.part(0, (1,)), D + narrow, rows.part(D, (1,)),
                      D + narrow, values, narrow, device.upload(cos), device.upload(sin), q, k, v, T, H, KV,
                      half, n)

    q, k, v = (device.empty(s, np.float32) for s in ((B, T, H, Dh), (B, KV, T, Dh), (B, KV, T, Dh)))
    launched(rope_backward.rope_split, device.upload(both), device.upload(alone), q, k, v)
    np.testing.assert_allclose(device.read(q), rope(q_in, cos, sin), atol=1e-6)
    np.testing.assert_allclose(heads(device.read(k)), rope(k_in, cos, sin), atol=1e-6)
    np.testing.assert_array_equal(heads(device.read(v)), alone.reshape(B, T, KV, Dh))
    rows, values = device.zeros(both.shape, np.float32), device.zeros(alone.shape, np.float32)
    dq, dk, dv = (rng.standard_normal(x.shape).astype(np.float32) for x in (q, k, v))
    launched(rope_backward.rope_join, rows, values, *(device.upload(x) for x in (dq, dk, dv)))
    got = device.read(rows)
    np.testing.assert_allclose(got[:, :D].reshape(dq.shape), turned_back(dq, cos, sin), atol=1e-6)
    np.testing.assert_allclose(got[:, D:].reshape(B, T, KV, Dh), turned_back(heads(dk), cos, sin), atol=1e-6)
    np.testing.assert_array_equal(device.read(values).reshape(B, T, KV, Dh), heads(dv))

