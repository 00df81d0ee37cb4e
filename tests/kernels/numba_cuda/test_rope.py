"""RoPE on the device: queries turned, keys and values at their texts' next places, nothing else touched."""

import numpy as np
import pytest
from derivative import array_error

from bitnet_ref.layers.rope import rope, rope_table

pytest.importorskip("numba_cuda", reason="CUDA kernels need numba-cuda")
from bitnet_ref.kernels.numba_cuda.rope import ROPE, moved

H, KV, Dh, ROOM, B = 6, 3, 10, 12, 2
SLOT, POSITION = np.array([0, 0, 1], np.int32), np.array([4, 5, 11], np.int32)


def turned(device, qkv, kept):
    """(queries, keys, values) behind the launch, of stacked rows qkv (M, (H + 2 KV) Dh)."""
    M, there = len(qkv), device.upload(qkv)
    cos, sin = (device.upload(t[:, 0]) for t in rope_table(np.arange(ROOM), Dh, 1e4))
    dtype = np.uint16 if kept == "f16" else np.float32
    q, keys, values = device.empty((M, H, Dh), "f4"), *(device.zeros((B, KV, ROOM, Dh), dtype) for _ in "kv")
    parts = [there.part(at * Dh, (1,)) for at in (0, H, H + KV)]
    device.launch(ROPE[kept], (M,), *parts, *[qkv.shape[1]] * 3, device.upload(SLOT), device.upload(POSITION),
                  cos, sin, q, keys, values, H, KV, Dh, ROOM)
    read = [device.read(a) for a in (q, keys, values)]
    return read[0], *(a.view(np.float16) if kept == "f16" else a for a in read[1:])


@pytest.mark.parametrize("kept", ["f32", "f16"])
def test_queries_keys_and_values(device, rng, kept, tol):
    qkv = rng.normal(size=(3, (H + 2 * KV) * Dh)).astype(np.float32)
    q, keys, values = turned(device, qkv, kept)
    heads = qkv.reshape(3, 1, -1, Dh)
    cos, sin = rope_table(POSITION, Dh, 1e4)
    want = np.concatenate([rope(x[None], c[None], s[None]) for x, c, s in zip(heads, cos, sin)])[:, 0]
    assert array_error(q, want[:, :H]) <= tol["float32"]
    placed = [np.zeros((B, KV, ROOM, Dh), np.float32) for _ in "kv"]
    for m, (s, at) in enumerate(zip(SLOT, POSITION)):
        placed[0][s, :, at], placed[1][s, :, at] = want[m, H:H + KV], heads[m, 0, H + KV:]
    near = tol["float32"] if kept == "f32" else 2.0**-11
    assert array_error(keys.astype(np.float32), placed[0]) <= near
    np.testing.assert_array_equal(values, placed[1].astype(values.dtype))


def test_a_number_too_large_for_float16_becomes_the_largest_and_nan_stays(device):
    qkv = np.full((3, (H + 2 * KV) * Dh), 1e6, np.float32)
    qkv[1, -1], qkv[2] = np.nan, -1e6
    _, _, values = turned(device, qkv, "f16")
    assert values[0, 0, 4, 0] == 65504
    assert values[1, 0, 11, 0] == -65504
    assert np.isnan(values[0, -1, 5, -1])


def test_a_cache_moves_head_by_head(device, rng):
    before = rng.integers(0, 2**16, (6, 30)).astype(np.uint16)
    now = device.zeros((6, 44), np.uint16)
    device.launch(moved, (6,), device.upload(before), now, 30, 44)
    np.testing.assert_array_equal(device.read(now), np.pad(before, ((0, 0), (0, 14))))
