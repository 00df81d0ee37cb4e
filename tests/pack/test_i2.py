"""pack/i2: golden bytes written by hand, round trips, and bytes that are refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from tiny import refusal

from bitnet_ref.pack.i2 import BITS_PER_TRIT, pack_i2, unpack_i2

ALL_BYTES = np.arange(256, dtype=np.uint8)[:, None]
HAS_A_3 = np.array([any(byte >> 2 * j & 3 == 3 for j in range(4)) for byte in range(256)])


def trits(seed, *shape):
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)


def wide(w_q):
    """The definition, in integers that cannot overflow."""
    n, k = w_q.shape
    padded = np.zeros((n, -(-k // 4) * 4), np.int64)
    padded[:, :k] = w_q
    return (padded.reshape(n, -1, 4) + 1) @ 4 ** np.arange(4)


# --- golden bytes ------------------------------------------------------------------------------------------


def test_the_first_of_four_trits_has_the_low_bits():
    """The worked example of docs/formats/i2.md: a row of six, whose last two trits are padding."""
    w_q = np.array([[-1, 0, 1, 1, 1, -1]], np.int8)
    packed = np.array([[0b10_10_01_00, 0b01_01_00_10]], np.uint8)
    assert packed.tolist() == [[0xA4, 0x52]]
    np.testing.assert_array_equal(pack_i2(w_q), packed)
    np.testing.assert_array_equal(unpack_i2(packed, 6), w_q)


@pytest.mark.parametrize(("row", "byte"), [
    ([0, 0, 0, 0], 0x55), ([-1, -1, -1, -1], 0x00), ([1, 1, 1, 1], 0xAA), ([1, 0, 0, 0], 0b01_01_01_10),
    ([0, 0, 0, 1], 0b10_01_01_01), ([0], 0b01_01_01_01), ([1], 0b01_01_01_10), ([-1, -1, 1], 0b01_10_00_00)],
    ids=str)
def test_single_bytes(row, byte):
    w_q = np.array([row], np.int8)
    assert pack_i2(w_q).tolist() == [[byte]]
    np.testing.assert_array_equal(unpack_i2(np.array([[byte]], np.uint8), len(row)), w_q)


def test_rows_do_not_share_bytes():
    w_q = np.array([[1, 1, 1, 1, 1], [-1, -1, -1, -1, -1]], np.int8)
    assert pack_i2(w_q).tolist() == [[0xAA, 0b01_01_01_10], [0x00, 0b01_01_01_00]]


# --- properties --------------------------------------------------------------------------------------------


@given(seed=seeds, n=st.integers(1, 9), k=st.integers(1, 20) | st.integers(1, 700))
def test_round_trip(seed, n, k):
    w_q = trits(seed, n, k)
    packed = pack_i2(w_q)
    assert (packed.dtype, packed.shape) == (np.uint8, (n, -(-k // 4)))
    np.testing.assert_array_equal(packed, wide(w_q))
    back = unpack_i2(packed, k)
    assert (back.dtype, back.flags.c_contiguous) == (np.int8, True)
    np.testing.assert_array_equal(back, w_q)


@pytest.mark.parametrize("k", range(1, 21))
def test_every_small_width(k):
    w_q = trits(k, 7, k)
    np.testing.assert_array_equal(unpack_i2(pack_i2(w_q), k), w_q)


def test_every_byte():
    """81 are four trits, and are packed back; 175 have a code 3."""
    good = ALL_BYTES[~HAS_A_3]
    assert len(good) == 3**4
    w_q = unpack_i2(good, 4)
    assert len({tuple(row) for row in w_q.tolist()}) == 3**4
    np.testing.assert_array_equal(pack_i2(w_q), good)
    for byte in ALL_BYTES[HAS_A_3]:
        with refusal("code must be 0, 1 or 2", "row 0"):
            unpack_i2(byte[None], 4)


@pytest.mark.parametrize("shape", [(1, 4), (3, 20), (64, 256)])
def test_the_size_is_the_density(shape):
    assert pack_i2(trits(0, *shape)).nbytes * 8 == shape[0] * shape[1] * BITS_PER_TRIT


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::2, ::3], lambda a: a[:, ::-1]])
def test_strided_and_read_only_arrays(view):
    """A file may be mapped, and a matrix may be a part of another."""
    w_q = view(trits(1, 12, 15))
    packed = pack_i2(w_q)
    np.testing.assert_array_equal(packed, wide(w_q))
    spread = np.repeat(packed, 2, axis=1)[:, ::2]
    spread.flags.writeable = False
    np.testing.assert_array_equal(unpack_i2(spread, w_q.shape[1]), w_q)


def test_arguments_are_left_alone():
    w_q = trits(2, 8, 30)
    before, packed = w_q.copy(), pack_i2(w_q)
    again = packed.copy()
    unpack_i2(packed, 30)
    np.testing.assert_array_equal(w_q, before)
    np.testing.assert_array_equal(packed, again)


@pytest.mark.parametrize("k", [1024, 1023])
def test_memory_is_a_small_multiple_of_the_trits(k):
    w_q = trits(3, 1024, k)
    packed = pack_i2(w_q)
    for work in (lambda: pack_i2(w_q), lambda: unpack_i2(packed, k)):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * w_q.size


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (1, 6), (2, 8), (2, 9)])
def test_the_first_code_3_is_named(row, column):
    packed = pack_i2(trits(4, 3, 10))
    packed[row, column // 4] |= 3 << 2 * (column % 4)
    packed[row:, column // 4 + 1:] = 0xFF                  # later ones, in the same row and below
    packed[row + 1:] = 0xFF
    with refusal("every 2-bit code must be 0, 1 or 2", f"a 3 at row {row}, column {column};"):
        unpack_i2(packed, 10)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("code", [0b00, 0b10])
def test_padding_must_be_zero_trits(k, code):
    packed = pack_i2(trits(5, 4, 4 + k))
    packed[2, 1] ^= (code ^ 0b01) << 6                     # the last trit of the byte is padding for all k
    with refusal(f"trits after column {4 + k - 1} must be 0", "last byte of row 2"):
        unpack_i2(packed, 4 + k)
    assert unpack_i2(packed, 8)[2, 7] == code - 1          # as a trit of the matrix it is welcome


@pytest.mark.parametrize("K", [0, -1, 8, 13, 4 * 10**18, 10.0, 10.5, "10", None, np.uint8(8)])
def test_K_must_fit(K):
    with refusal("K must be 9 to 12 for rows of 3 bytes"):
        unpack_i2(pack_i2(trits(6, 2, 10)), K)


@pytest.mark.parametrize("K", [10, np.int64(10), np.uint8(10)])
def test_K_may_be_any_integer(K):
    w_q = trits(6, 2, 10)
    np.testing.assert_array_equal(unpack_i2(pack_i2(w_q), K), w_q)


@pytest.mark.parametrize("packed", [np.zeros((2, 3), np.int8), np.zeros((2, 3)), np.zeros(6, np.uint8),
                                    np.zeros((1, 2, 3), np.uint8), np.zeros((2, 3), bool)],
                         ids=lambda a: f"{a.dtype} {a.shape}")
def test_only_matrices_of_bytes_are_unpacked(packed):
    with refusal("packed must be uint8 of 2 axes"):
        unpack_i2(packed, 12)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_nothing_is_not_unpacked(shape):
    with refusal("packed must not be empty"):
        unpack_i2(np.zeros(shape, np.uint8), 0)


@pytest.mark.parametrize("w_q", [
    np.array([[0, 2]], np.int8), np.array([[-2]], np.int8), np.array([[-128, 127]], np.int8), np.ones((1, 4)),
    np.ones((1, 4), np.int16), np.ones((1, 4), np.uint8), np.ones((0, 4), np.int8), np.ones((4, 0), np.int8),
    np.ones(4, np.int8), np.ones((1, 1, 4), np.int8)], ids=lambda a: f"{a.dtype} {a.shape}")
def test_only_trits_are_packed(w_q):
    with refusal("w_q must"):
        pack_i2(w_q)
