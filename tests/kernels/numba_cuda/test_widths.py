"""Every kernel of a block at the widths of 2B4T, for one text and for many."""

import numpy as np
import pytest
from derivative import array_error
from on_device import launched, nothing

from bitnet_ref import layers
from bitnet_ref.layers.bitlinear import rmsnorm_int8 as reference_int8
from bitnet_ref.layers.rmsnorm import rmsnorm as reference_norm

pytest.importorskip("numba_cuda", reason="CUDA kernels need numba-cuda")
from bitnet_ref.kernels.numba_cuda.attention import CHUNK, ROWS, Queries, attention, parts
from bitnet_ref.kernels.numba_cuda.embedding import EMBEDDING
from bitnet_ref.kernels.numba_cuda.glu import GLU, GLU_INT8
from bitnet_ref.kernels.numba_cuda.linear import linear
from bitnet_ref.kernels.numba_cuda.rmsnorm import GAINED, rmsnorm, rmsnorm_int8
from bitnet_ref.kernels.numba_cuda.rope import ROPE
from bitnet_ref.layers.attention import attention as reference_attention
from bitnet_ref.layers.rope import rope, rope_table

D, F, H, KV, Dh = 2560, 6912, 20, 5, 128
pytestmark = pytest.mark.slow
batches = pytest.mark.parametrize("M", [1, 3, 8, 64])


def codes_agree(got, want, tol):
    """(x_q, x_scale): a scale's last bit may move a code that lies at a tie."""
    np.testing.assert_allclose(got[1], want[1].reshape(-1), rtol=tol["float32"])
    assert np.abs(got[0].astype(int) - want[0]).max() <= 1
    assert (got[0] != want[0]).mean() <= 1e-4


@batches
def test_norms(device, rng, M, tol):
    x, g = rng.normal(size=(M, D)).astype(np.float32), rng.uniform(0.5, 1.5, D).astype(np.float32)
    made = launched(device, rmsnorm_int8, (M,), x, x, D, g, GAINED, 1e-5, nothing(M, D, dtype=np.int8),
                    nothing(M), nothing(M, dtype=np.int32), nothing(M), D, D)
    codes_agree(made[3:5], reference_int8(x, g), tol)
    np.testing.assert_array_equal(made[5], made[3].sum(axis=1, dtype=np.int32))
    y = launched(device, rmsnorm, (M,), x, g, GAINED, 1e-5, nothing(M, D), nothing(M), D, D)[2]
    assert array_error(y, reference_norm(x, g)[0]) <= tol["float32"]


@batches
@pytest.mark.parametrize("unit", ["swiglu", "relu2"])
def test_gated_units(device, rng, M, unit, tol):
    gate, up = rng.normal(size=(2, M, F)).astype(np.float32)
    g, u = rng.uniform(0.5, 1.5, F).astype(np.float32), getattr(layers, unit)(gate, up)
    made = launched(device, GLU_INT8[unit], (M,), gate, up, F, g, GAINED, 1e-5, nothing(M, F, dtype=np.int8),
                    nothing(M), nothing(M, dtype=np.int32), nothing(M), F, F)
    codes_agree(made[3:5], reference_int8(u, g), tol)
    alone = launched(device, GLU[unit], (M,), gate, up, F, nothing(M, F), F)[2]
    assert array_error(alone, u) <= tol["float32"]


@batches
def test_rope_and_the_cache(device, rng, M, tol):
    """M texts, each at another position."""
    room, width = 70, (H + 2 * KV) * Dh
    qkv, position = rng.normal(size=(M, width)).astype(np.float32), rng.integers(0, room, M).astype(np.int32)
    there, tables = device.upload(qkv), rope_table(np.arange(room), Dh, 5e5)
    q, keys, values = device.empty((M, H, Dh), "f4"), *(device.zeros((M, KV, room, Dh), "f4") for _ in "kv")
    parts_of = [there.part(at * Dh, (1,)) for at in (0, H, H + KV)]
    device.launch(ROPE["f32"], (M,), *parts_of, width, width, width,
                  device.upload(np.arange(M, dtype=np.int32)), device.upload(position),
                  *(device.upload(t[:, 0]) for t in tables), q, keys, values, H, KV, Dh, room)
    heads = qkv.reshape(M, 1, -1, Dh)
    want = rope(heads, *(t[position][:, None] for t in tables))[:, 0]
    texts = np.arange(M)
    assert array_error(device.read(q), want[:, :H]) <= tol["float32"]
    assert array_error(device.read(keys)[texts, :, position], want[:, H:H + KV]) <= tol["float32"]
    np.testing.assert_array_equal(device.read(values)[texts, :, position], heads[:, 0, H + KV:])


@batches
@pytest.mark.parametrize("tiled", [False, True])
def test_attention(device, rng, M, tiled, tol):
    """Few rows: M texts of different lengths. A tile: the last M tokens of one text."""
    room = CHUNK + 16
    position = (np.arange(room - M, room) if tiled else rng.integers(0, room, M)).astype(np.int32)
    slot = np.zeros(M, np.int32) if tiled else np.arange(M, dtype=np.int32)
    keys, values = rng.normal(size=(2, slot.max() + 1, KV, room, Dh)).astype(np.float32)
    q = rng.normal(size=(M, H, Dh)).astype(np.float32)
    tiles = np.array([(m, min(ROWS, M - m)) for m in range(0, M, ROWS)], np.int32)
    o, lse = device.empty((M, H * Dh), "f4"), device.empty((M, H), "f4")
    rows = Queries(M, device.upload(slot), device.upload(position), device.upload(tiles) if tiled else None)
    attention(device, device.upload(q), device.upload(keys), device.upload(values), rows, o, lse,
              None if tiled else parts(device, M, room, H, Dh))
    for m in range(M):
        k, v = (c[slot[m], :, :position[m] + 1].swapaxes(0, 1)[None] for c in (keys, values))
        want, total = reference_attention(q[m][None, None], k, v)
        assert array_error(device.read(o)[m].reshape(H, Dh), want[0, 0]) <= tol["float32"]
        assert array_error(device.read(lse)[m], total.reshape(-1)) <= tol["float32"]


@batches
def test_the_head_and_the_embedding(device, rng, M, tol):
    """A thousand of the 128256 rows, in bfloat16."""
    w = (rng.normal(size=(1000, D)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    wide, ids = (w.astype(np.uint32) << 16).view(np.float32), rng.integers(0, 1000, M).astype(np.int32)
    x = launched(device, EMBEDDING["bf16"], (M,), ids, w, nothing(M, D), D, D)[2]
    np.testing.assert_array_equal(x, wide[ids])
    y = device.empty((M, 1000), "f4")
    linear(device, device.upload(x), device.upload(w), "bf16", None, y, M)
    assert array_error(device.read(y), x.astype(float) @ wide.T) <= tol["float32"]
