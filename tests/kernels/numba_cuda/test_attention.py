"""Attention on the device: both kernels against the reference, and against each other bit for bit."""

import numpy as np
import pytest
from derivative import array_error

from bitnet_ref.layers.attention import attention as reference

pytest.importorskip("numba_cuda", reason="CUDA kernels need numba-cuda")
from bitnet_ref.kernels.numba_cuda.attention import CHUNK, ROWS, Queries, attention, parts

B = 2
SHAPES = [(4, 2, 8), (6, 1, 10), (10, 2, 36)]               # H, KV, Dh: 2, 6 and 5 heads to a key


def caches(rng, KV, Dh, room, half=False):
    made = [rng.normal(size=(B, KV, room, Dh)).astype(np.float16 if half else np.float32) for _ in "kv"]
    return [m.view(np.uint16) for m in made] if half else made


def attended(device, q, keys, values, slot, position, tiles=None):
    """o (M, H, Dh), lse (M, H), by the kernel for tiles or by that for few rows."""
    (M, H, Dh), room = q.shape, keys.shape[2]
    o, lse = device.empty((M, H * Dh), "f4"), device.empty((M, H), "f4")
    rows = Queries(M, device.upload(slot), device.upload(position),
                   None if tiles is None else device.upload(tiles))
    attention(device, device.upload(q), device.upload(keys), device.upload(values), rows, o, lse,
              parts(device, M, room, H, Dh) if tiles is None else None)
    return device.read(o).reshape(M, H, Dh), device.read(lse)


def want_of(q, keys, values, slot, position):
    """The same of the reference, a row at a time."""
    o, lse = np.empty_like(q), np.empty(q.shape[:2], np.float32)
    for m, (s, at) in enumerate(zip(slot, position)):
        k, v = (np.ascontiguousarray(c[s, :, :at + 1].swapaxes(0, 1))[None] for c in (keys, values))
        found, total = reference(q[m][None, None], k, v)
        o[m], lse[m] = found[0, 0], total.reshape(-1)
    return o, lse


@pytest.mark.parametrize(("H", "KV", "Dh"), SHAPES)
def test_few_rows(device, rng, H, KV, Dh, tol):
    """Texts of different lengths: a first token, the end of a chunk, behind it, several chunks."""
    room, position = 3 * CHUNK + 5, np.array([0, CHUNK - 1, CHUNK, 3 * CHUNK + 1], np.int32)
    slot = np.array([0, 1, 1, 0], np.int32)
    keys, values = caches(rng, KV, Dh, room)
    q = rng.normal(size=(4, H, Dh)).astype(np.float32)
    for got, want in zip(attended(device, q, keys, values, slot, position),
                         want_of(q, keys, values, slot, position)):
        assert array_error(got, want) <= tol["float32"]


@pytest.mark.parametrize(("H", "KV", "Dh", "half"), [(4, 2, 8, False), (3, 1, 36, True)])
def test_a_tile_of_rows_is_each_row_alone_bit_for_bit(device, rng, H, KV, Dh, half, tol):
    """A tile across the border of two chunks, one of a single row, one of another text.

    Then a key is so large that who sees it sees nothing else: the rows before it stay as they are.
    """
    tiles = np.array([[0, ROWS], [ROWS, 1], [ROWS + 1, 3]], np.int32)
    slot = np.array([0] * (ROWS + 1) + [1] * 3, np.int32)
    position = np.array([*range(CHUNK - 20, CHUNK - 20 + ROWS + 1), 0, 1, 2], np.int32)
    keys, values = caches(rng, KV, Dh, CHUNK + 40, half)
    q = rng.normal(size=(len(slot), H, Dh)).astype(np.float32)
    tiled = attended(device, q, keys, values, slot, position, tiles)
    some = [0, 19, 20, ROWS - 1, ROWS, ROWS + 3]
    for a, b in zip(tiled, attended(device, q[some], keys, values, slot[some], position[some])):
        np.testing.assert_array_equal(a[some], b)
    wide = [c.view(np.float16).astype(np.float32) if half else c for c in (keys, values)]
    for got, want in zip(tiled, want_of(q, *wide, slot, position)):
        assert array_error(got, want) <= tol["float32"]
    (keys.view(np.float16) if half else keys)[0, :, CHUNK - 10] *= 100
    for a, b in zip(tiled, attended(device, q, keys, values, slot, position, tiles)):
        np.testing.assert_array_equal(a[:10], b[:10])
        assert not np.array_equal(a[10], b[10])


def test_what_stands_behind_a_text_is_not_read(device, rng):
    keys, values = caches(rng, 2, 8, CHUNK)
    q = rng.normal(size=(1, 4, 8)).astype(np.float32)
    slot, position = np.zeros(1, np.int32), np.full(1, 9, np.int32)
    want = attended(device, q, keys, values, slot, position)[0]
    keys[:, :, 10:] = values[:, :, 10:] = np.nan
    for tiles in (None, np.array([[0, 1]], np.int32)):
        np.testing.assert_array_equal(attended(device, q, keys, values, slot, position, tiles)[0], want)


def test_scores_far_apart(device, rng, tol):
    """The largest score lies in the last chunk, hundreds above the others."""
    keys, values = caches(rng, 1, 8, 2 * CHUNK)
    keys[0, 0, -1] = 400
    q, slot = np.ones((1, 1, 8), np.float32), np.zeros(1, np.int32)
    position = np.full(1, 2 * CHUNK - 1, np.int32)
    o, lse = attended(device, q, keys, values, slot, position)
    assert array_error(o[0, 0], values[0, 0, -1]) <= tol["float32"]
    assert array_error(lse, want_of(q, keys, values, slot, position)[1]) <= tol["float32"]
