"""Trits in tiles: what is packed comes back, at any size; words as a kernel reads them, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref.checks import CheckError
from bitnet_ref.pack.tiles import AT_ONCE, COLUMNS, pack_tiles, unpack_tiles

KINDS = pytest.mark.parametrize("kind", COLUMNS)


def trits(rng, N, K):
    return rng.integers(-1, 2, (N, K)).astype(np.int8)


@KINDS
@given(seed=seeds, N=st.integers(1, 50), K=st.integers(1, 400))
def test_what_is_packed_comes_back(kind, seed, N, K):
    w_q = trits(np.random.default_rng(seed), N, K)
    words = pack_tiles(w_q, kind)
    assert words.shape == (-(-N // 16), -(-K // COLUMNS[kind]), 32, 4)
    np.testing.assert_array_equal(unpack_tiles(words, N, K, kind), w_q)


@KINDS
def test_matrices_of_more_strips_than_are_packed_at_once(kind, rng):
    w_q = trits(rng, 16 * AT_ONCE + 5, 3)
    np.testing.assert_array_equal(unpack_tiles(pack_tiles(w_q, kind), *w_q.shape, kind), w_q)


@KINDS
@given(seed=seeds, N=st.integers(1, 20), K=st.integers(1, 200))
def test_what_a_tile_has_beyond_the_matrix_is_code_0(kind, seed, N, K):
    words = pack_tiles(trits(np.random.default_rng(seed), N, K), kind)
    all_rows, all_columns = 16 * words.shape[0], COLUMNS[kind] * words.shape[1]
    codes = unpack_tiles(words, all_rows, all_columns, kind)
    assert (codes[N:] == -1).all()
    assert (codes[:, K:] == -1).all()


def test_i2_by_hand(rng):
    w_q = trits(rng, 16, 128)
    words = pack_tiles(w_q, "i2").view(np.uint32)
    for lane, word, j, b, r in rng.integers(0, (32, 4, 2, 4, 2), (200, 5)):
        (g, t), (p, h) = divmod(lane, 4), divmod(word, 2)
        code = words[0, 0, lane, word] >> np.uint32(8 * b + 2 * (2 * j + r)) & np.uint32(3)
        assert code == w_q[g + 8 * r, 64 * p + 16 * t + 8 * j + 4 * h + b] + 1


def test_b3_by_hand(rng):
    w_q = trits(rng, 16, 160)
    words = pack_tiles(w_q, "b3").view(np.uint32)
    for lane, word, b in rng.integers(0, (32, 4, 4), (100, 3)):
        (g, t), (h, r) = divmod(lane, 4), divmod(word, 2)
        fraction = int(words[0, 0, lane, word]) >> 8 * b & 255
        for d in range(5):
            code, fraction = divmod(3 * fraction, 256)
            assert code == w_q[g + 8 * r, 32 * d + 8 * t + 4 * h + b] + 1


def test_sizes():
    assert pack_tiles(np.zeros((16, 128), np.int8), "i2").nbytes * 8 == 2 * 16 * 128
    assert pack_tiles(np.zeros((16, 160), np.int8), "b3").nbytes * 8 == 16 * 160 * 8 // 5


@pytest.mark.parametrize(("w_q", "kind", "message"), [
    (np.zeros((2, 3), np.int16), "i2", "must be int8"),
    (np.full((2, 3), 2, np.int8), "i2", "-1, 0 and [+]1 only"),
    (np.zeros((2, 3), np.int8), "i3", "one of i2, b3"),
])
def test_what_cannot_be_packed_is_refused(w_q, kind, message):
    with pytest.raises(CheckError, match=message):
        pack_tiles(w_q, kind)


@KINDS
def test_words_of_another_shape_are_refused(kind):
    words = pack_tiles(np.zeros((16, 300), np.int8), kind)
    unsigned, none = words.view(np.uint32), words[:0]
    for wrong, N, K in ((words, 17, 300), (words, 16, 100), (unsigned, 16, 300), (none, 0, 300)):
        with pytest.raises(CheckError, match="must be int32"):
            unpack_tiles(wrong, N, K, kind)
