"""pack/rosetta: golden bytes written by hand, round trips, and bytes that are refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from tiny import refusal

from bitnet_ref.pack.rosetta import I2S, pack_hf, pack_i2s, unpack_hf, unpack_i2s

SIDES = st.integers(1, 9)


def trits(seed, *shape):
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)


def allowed(layout, a, b):
    """A shape that the layout allows, from two small numbers."""
    return {"128": (a, 128 * b), "64": (4 * a, 16 * b), "4row": (4 * a, b)}[layout]


# --- golden bytes ------------------------------------------------------------------------------------------


def test_the_bytes_of_the_example_in_transformers():
    """The docstring of `unpack_weights` in transformers 5.23, integrations/bitnet.py."""
    packed = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)
    w_q = np.array([[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]], np.int8)
    np.testing.assert_array_equal(unpack_hf(packed, 8), w_q)
    np.testing.assert_array_equal(pack_hf(w_q), packed)


def test_hf_rows_that_are_missing_are_zero_bits():
    """Six rows in blocks of two: the fourth block does not exist. Five rows: nor does row 5."""
    w_q = np.array([[1], [0], [0], [-1], [1], [1]], np.int8)
    np.testing.assert_array_equal(pack_hf(w_q), [[0b00_10_01_10], [0b00_10_00_01]])
    np.testing.assert_array_equal(pack_hf(w_q[:5]), [[0b00_10_01_10], [0b00_00_00_01]])
    np.testing.assert_array_equal(unpack_hf(pack_hf(w_q), 6), w_q)


def test_i2s_128_takes_trits_32_apart_the_first_in_the_high_bits():
    w_q = np.zeros((1, 128), np.int8)
    w_q[0, [0, 33, 66, 99]] = 1                            # each in another byte, at another place
    w_q[0, [32, 64, 96]] = -1                              # share byte 0
    data = pack_i2s(w_q, 0.5, "128")
    assert data[:5].tolist() == [0b10_00_00_00, 0b01_10_01_01, 0b01_01_10_01, 0b01_01_01_10, 0b01_01_01_01]
    assert data[32:].tolist() == [0, 0, 0, 0x3F] + [0] * 28                     # 0.5 in float32, then zeros


def test_i2s_64_takes_trits_16_apart():
    w_q = np.zeros((4, 16), np.int8)
    w_q[:, 0] = [1, 0, -1, 1]
    w_q[2, 15] = 1
    data = pack_i2s(w_q, 1.0, "64")
    assert (data[0], data[1], data[15]) == (0b10_01_00_10, 0b01_01_01_01, 0b01_01_10_01)
    assert len(data) == 16 + 32


def test_i2s_4row_takes_a_column_of_four_rows():
    w_q = np.array([[1, 0], [0, -1], [-1, 0], [1, 1], [0, 1], [0, 0], [0, 0], [0, -1]], np.int8)
    data = pack_i2s(w_q, 2.0, "4row")
    assert data[:4].tolist() == [0b10_01_00_10, 0b01_00_01_10, 0b01_01_01_01, 0b10_01_01_00]


# --- properties --------------------------------------------------------------------------------------------


@given(seed=seeds, n=st.integers(1, 21), k=SIDES)
def test_hf_round_trip(seed, n, k):
    w_q = trits(seed, n, k)
    packed = pack_hf(w_q)
    assert packed.shape == (-(-n // 4), k)
    back = unpack_hf(packed, n)
    assert (back.dtype, back.flags.c_contiguous) == (np.int8, True)
    np.testing.assert_array_equal(back, w_q)


@given(seed=seeds, layout=st.sampled_from(I2S), a=SIDES, b=SIDES, scale=st.floats(0, 2.0**100, width=32))
def test_i2s_round_trip(seed, layout, a, b, scale):
    w_q = trits(seed, *allowed(layout, a, b))
    data = pack_i2s(w_q, scale, layout)
    assert data.shape == (w_q.size // 4 + 32,)
    back, w_scale = unpack_i2s(data, w_q.shape, layout)
    assert (back.dtype, w_scale.dtype, w_scale) == (np.int8, np.float32, np.float32(scale))
    np.testing.assert_array_equal(back, w_q)


def test_packing_leaves_its_argument_alone():
    w_q = trits(0, 8, 64)
    before = w_q.copy()
    pack_hf(w_q), pack_i2s(w_q, 1.0, "128")
    np.testing.assert_array_equal(w_q, before)


def test_the_layouts_differ():
    """So that a test with one of them cannot pass with another."""
    w_q = trits(1, 8, 64)
    data = [pack_hf(w_q).tobytes(), *(pack_i2s(w_q, 1.0, layout)[:-32].tobytes() for layout in I2S)]
    assert len(set(data)) == 4


@pytest.mark.parametrize("layout", I2S)
def test_the_scale_is_found_whatever_the_alignment(layout):
    w_q = trits(2, *allowed(layout, 1, 1))
    data = pack_i2s(w_q, 3.5, layout)
    shifted = np.frombuffer(b"x" + data.tobytes(), np.uint8)[1:]
    np.testing.assert_array_equal(unpack_i2s(shifted, w_q.shape, layout)[0], w_q)


def test_memory_is_a_small_multiple_of_the_result():
    w_q = trits(3, 1024, 1024)
    packed, data = pack_hf(w_q), pack_i2s(w_q, 1.0, "128")
    for work in (lambda: unpack_hf(packed, 1024), lambda: unpack_i2s(data, (1024, 1024), "128"),
                 lambda: pack_hf(w_q), lambda: pack_i2s(w_q, 1.0, "4row")):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * w_q.size, work


# --- what is refused ---------------------------------------------------------------------------------------


def test_a_code_3_is_refused():
    packed = pack_hf(trits(0, 8, 5))
    packed[1, 3] |= 0b00_11_00_00
    with refusal("code must be 0, 1 or 2", "1 of 10 bytes"):
        unpack_hf(packed, 8)
    for layout in I2S:
        data = pack_i2s(trits(0, 8, 64), 1.0, layout)
        data[7] = 0xFF
        with refusal("code must be 0, 1 or 2"):
            unpack_i2s(data, (8, 64), layout)


@pytest.mark.parametrize("n_rows", [4, 9, 0, -3])
def test_hf_rows_must_fit(n_rows):
    with refusal("rows must fill"):
        unpack_hf(np.zeros((2, 3), np.uint8), n_rows)


@pytest.mark.parametrize("length", [0, 31, 32, 159, 161])
def test_i2s_length_must_fit(length):
    with refusal("must have 160 bytes", length):
        unpack_i2s(np.full(length, 0x55, np.uint8), (8, 64), "128")


@pytest.mark.parametrize(("shape", "layout", "word"), [
    ((3, 64), "128", "multiple of 128"), ((3, 16), "64", "multiple of 64"),
    ((6, 64), "4row", "multiple of 4")])
def test_shapes_that_a_layout_does_not_allow(shape, layout, word):
    with refusal(word):
        pack_i2s(trits(0, *shape), 1.0, layout)
    with refusal(word):
        unpack_i2s(np.zeros(shape[0] * shape[1] // 4 + 32, np.uint8), shape, layout)


@pytest.mark.parametrize("shape", [(128,), (1, 2, 64), (0, 128), (-1, -128)])
def test_only_matrices(shape):
    with refusal("shape (N, K)"):
        unpack_i2s(np.zeros(64, np.uint8), shape, "128")


def test_a_shape_whose_product_wraps():
    """2^64 trits in 64 bits are none, and the tail alone would fit."""
    with refusal("must have 4611686018427387936 bytes", 32):
        unpack_i2s(np.zeros(32, np.uint8), (np.int64(2**32), np.int64(2**32)), "128")


def test_unknown_layout():
    with refusal("layout must be one of 128, 64, 4row", "'256'"):
        pack_i2s(trits(0, 8, 64), 1.0, "256")


@pytest.mark.parametrize("w_q", [np.array([[2]], np.int8), np.array([[-128]], np.int8), np.ones((1, 4)),
                                 np.ones((1, 4), np.int16), np.ones((0, 4), np.int8)], ids=str)
def test_only_trits_are_packed(w_q):
    with refusal("w_q must"):
        pack_hf(w_q)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_bad_scales(scale):
    with refusal("w_scale must be finite"):
        pack_i2s(trits(0, 4, 32), scale, "128")
    data = pack_i2s(trits(0, 4, 32), 1.0, "128")
    data[32:36] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    with refusal("w_scale must be finite"):
        unpack_i2s(data, (4, 32), "128")


def test_only_bytes_are_unpacked():
    with refusal("packed must be uint8"):
        unpack_hf(np.zeros((2, 3), np.int8), 8)
    with refusal("data must be uint8"):
        unpack_i2s(np.zeros((2, 80), np.uint8), (8, 64), "128")
