"""pack/b3: golden bytes written by hand, round trips, and bytes that are refused."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from tiny import refusal

from bitnet_ref.pack import i2
from bitnet_ref.pack.b3 import BITS_PER_TRIT, pack_b3, unpack_b3

NUMBERS = np.arange(243)[:, None]


def trits(seed, *shape):
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)


def wide(w_q):
    """The definition, in integers that cannot overflow."""
    n, k = w_q.shape
    padded = np.zeros((n, -(-k // 5) * 5), np.int64)
    padded[:, :k] = w_q
    return (padded.reshape(n, -1, 5) + 1) @ 3 ** np.arange(5)


# --- golden bytes ------------------------------------------------------------------------------------------


def test_the_first_of_five_trits_is_the_least_digit():
    """The worked example of docs/formats/b3.md: a row of seven, whose last three trits are padding."""
    w_q = np.array([[-1, 0, 1, 1, 0, 1, -1]], np.int8)
    packed = np.array([[0 + 1 * 3 + 2 * 9 + 2 * 27 + 1 * 81, 2 + 0 * 3 + 1 * 9 + 1 * 27 + 1 * 81]], np.uint8)
    assert packed.tolist() == [[156, 119]]
    np.testing.assert_array_equal(pack_b3(w_q), packed)
    np.testing.assert_array_equal(unpack_b3(packed, 7), w_q)


@pytest.mark.parametrize(("row", "byte"), [
    ([0, 0, 0, 0, 0], 121), ([-1, -1, -1, -1, -1], 0), ([1, 1, 1, 1, 1], 242), ([1, 0, 0, 0, 0], 122),
    ([0, 0, 0, 0, 1], 202), ([1, 0, 0, 0, -1], 41), ([0], 121), ([1], 122), ([-1, 1], 123),
    ([-1, -1, -1, -1], 81)], ids=str)
def test_single_bytes(row, byte):
    w_q = np.array([row], np.int8)
    assert pack_b3(w_q).tolist() == [[byte]]
    np.testing.assert_array_equal(unpack_b3(np.array([[byte]], np.uint8), len(row)), w_q)


def test_rows_do_not_share_bytes():
    w_q = np.array([[1, 1, 1, 1, 1, 1], [-1, -1, -1, -1, -1, -1]], np.int8)
    assert pack_b3(w_q).tolist() == [[242, 122], [0, 120]]


# --- properties --------------------------------------------------------------------------------------------


@given(seed=seeds, n=st.integers(1, 9), k=st.integers(1, 20) | st.integers(1, 700))
def test_round_trip(seed, n, k):
    w_q = trits(seed, n, k)
    packed = pack_b3(w_q)
    assert (packed.dtype, packed.shape) == (np.uint8, (n, -(-k // 5)))
    np.testing.assert_array_equal(packed, wide(w_q))
    back = unpack_b3(packed, k)
    assert (back.dtype, back.flags.c_contiguous) == (np.int8, True)
    np.testing.assert_array_equal(back, w_q)


@pytest.mark.parametrize("k", range(1, 21))
def test_every_small_width(k):
    w_q = trits(k, 7, k)
    np.testing.assert_array_equal(unpack_b3(pack_b3(w_q), k), w_q)


def test_every_byte():
    """243 numbers give the digits that division gives, and are packed back; 13 are no five trits."""
    packed = NUMBERS.astype(np.uint8)
    w_q = unpack_b3(packed, 5)
    np.testing.assert_array_equal(w_q, NUMBERS // 3 ** np.arange(5) % 3 - 1)
    np.testing.assert_array_equal(pack_b3(w_q), packed)
    for byte in range(243, 256):
        with refusal("at most 242", f"{byte} at row 0, columns 0 to 4;"):
            unpack_b3(np.array([[byte]], np.uint8), 5)


def test_a_byte_of_fraction_has_the_digits_too():
    """What docs/formats/b3.md says of 8 bits: rounded up, byte * 256 / 243 keeps all five digits."""
    fraction = -(-NUMBERS * 256 // 243)
    assert fraction.max() == 255
    digits = (fraction * 3 ** np.arange(5) % 256 * 3) >> 8
    np.testing.assert_array_equal(digits[:, ::-1], NUMBERS // 3 ** np.arange(5) % 3)


@pytest.mark.parametrize("shape", [(1, 5), (3, 20), (64, 255)])
def test_the_size_is_the_density(shape):
    assert pack_b3(trits(0, *shape)).nbytes * 8 == pytest.approx(shape[0] * shape[1] * BITS_PER_TRIT)


def test_the_density_lies_between_the_bound_and_i2():
    assert math.log2(3) < BITS_PER_TRIT < i2.BITS_PER_TRIT
    assert pytest.approx(0.8 * i2.BITS_PER_TRIT) == BITS_PER_TRIT


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::2, ::3], lambda a: a[:, ::-1]])
def test_strided_and_read_only_arrays(view):
    """A file may be mapped, and a matrix may be a part of another."""
    w_q = view(trits(1, 12, 16))
    packed = pack_b3(w_q)
    np.testing.assert_array_equal(packed, wide(w_q))
    spread = np.repeat(packed, 2, axis=1)[:, ::2]
    spread.flags.writeable = False
    np.testing.assert_array_equal(unpack_b3(spread, w_q.shape[1]), w_q)


def test_arguments_are_left_alone():
    w_q = trits(2, 8, 32)
    before, packed = w_q.copy(), pack_b3(w_q)
    again = packed.copy()
    unpack_b3(packed, 32)
    np.testing.assert_array_equal(w_q, before)
    np.testing.assert_array_equal(packed, again)


@pytest.mark.parametrize("k", [1025, 1023])
def test_memory_is_a_small_multiple_of_the_trits(k):
    w_q = trits(3, 1024, k)
    packed = pack_b3(w_q)
    for work, times in ((lambda: pack_b3(w_q), 2), (lambda: unpack_b3(packed, k), 3)):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < times * w_q.size


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "byte", "columns"), [
    (0, 0, "0 to 4"), (1, 1, "5 to 9"), (2, 2, "10 to 14")])
@pytest.mark.parametrize("k", [11, 15])
def test_the_first_byte_above_242_is_named(row, byte, columns, k):
    packed = pack_b3(trits(4, 3, k))
    packed[row, byte] = 243
    packed[row, byte + 1:] = 255                           # later ones, in the same row and below
    packed[row + 1:] = 255
    with refusal("every byte must be at most 242", f"243 at row {row}, columns {columns};"):
        unpack_b3(packed, k)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("trit", [-1, 1])
def test_padding_must_be_zero_trits(k, trit):
    packed = pack_b3(trits(5, 4, 5 + k))
    packed[2, 1] = packed[2, 1] + 81 if trit > 0 else packed[2, 1] - 81     # the last trit, padding for all k
    with refusal(f"trits after column {5 + k - 1} must be 0", "last byte of row 2"):
        unpack_b3(packed, 5 + k)
    assert unpack_b3(packed, 10)[2, 9] == trit             # as a trit of the matrix it is welcome


@pytest.mark.parametrize("K", [0, -1, 10, 16, 5 * 10**18, 12.0, 12.5, "12", None, np.uint8(10)])
def test_K_must_fit(K):
    with refusal("K must be 11 to 15 for rows of 3 bytes"):
        unpack_b3(pack_b3(trits(6, 2, 12)), K)


@pytest.mark.parametrize("K", [12, np.int64(12), np.uint8(12)])
def test_K_may_be_any_integer(K):
    w_q = trits(6, 2, 12)
    np.testing.assert_array_equal(unpack_b3(pack_b3(w_q), K), w_q)


@pytest.mark.parametrize("packed", [np.zeros((2, 3), np.int8), np.zeros((2, 3)), np.zeros(6, np.uint8),
                                    np.zeros((1, 2, 3), np.uint8), np.zeros((2, 3), bool)],
                         ids=lambda a: f"{a.dtype} {a.shape}")
def test_only_matrices_of_bytes_are_unpacked(packed):
    with refusal("packed must be uint8 of 2 axes"):
        unpack_b3(packed, 15)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_nothing_is_not_unpacked(shape):
    with refusal("packed must not be empty"):
        unpack_b3(np.zeros(shape, np.uint8), 0)


@pytest.mark.parametrize("w_q", [
    np.array([[0, 2]], np.int8), np.array([[-2]], np.int8), np.array([[-128, 127]], np.int8), np.ones((1, 5)),
    np.ones((1, 5), np.int16), np.ones((1, 5), np.uint8), np.ones((0, 5), np.int8), np.ones((5, 0), np.int8),
    np.ones(5, np.int8), np.ones((1, 1, 5), np.int8)], ids=lambda a: f"{a.dtype} {a.shape}")
def test_only_trits_are_packed(w_q):
    with refusal("w_q must"):
        pack_b3(w_q)
