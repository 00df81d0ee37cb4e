"""pack/rosetta's table: every layout there and back, by hand where it is small, and what each refuses."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from tiny import refusal

from bitnet_ref.checks import CheckError
from bitnet_ref.pack import rosetta
from bitnet_ref.pack.blocks import BLOCKS
from bitnet_ref.pack.rosetta import LAYOUTS, pack, possible, unpack

ANY = ("i2", "b3", "hf", "base3", "keras")               # take every shape
STEP = {**dict.fromkeys(ANY, (1, 1)), "i2s_128": (1, 128), "i2s_64": (4, 16), "i2s_4row": (4, 1),
        "gpu": (16, 32), "torchao": (1, 4), **{name: (1, b.size) for name, b in BLOCKS.items()}}
TWO_BITS = [name for name, layout in LAYOUTS.items() if layout.bits >= 2]
each = pytest.mark.parametrize("name", LAYOUTS)


def trits(seed, *shape):
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)


def allowed(name, a=1, b=1):
    rows, columns = STEP[name]
    return a * rows, b * columns


def test_every_layout_is_tested():
    assert set(STEP) == set(LAYOUTS)


# --- golden bytes ------------------------------------------------------------------------------------------


def test_torchao_is_two_s_complement_from_the_high_bits():
    """11 is -1: torchao reads a field by shifting it to the top of an int8 and back with its sign."""
    w_q = np.array([[-1, 0, 1, 0], [1, 1, -1, -1]], np.int8)
    assert pack("torchao", w_q).tolist() == [0b11_00_01_00, 0b01_01_11_11]


def test_gpu_puts_16_columns_into_four_bytes_and_eight_rows_after_each_other():
    w_q = np.zeros((16, 32), np.int8)
    w_q[0, [0, 4, 8, 12]] = [1, 0, -1, 1]                  # byte 0, from the low bits; zero is 10
    w_q[0, 17] = 1                                         # the second half: after eight rows, byte 1
    w_q[1, 15] = -1                                        # the next row: four bytes on, byte 3, high bits
    w_q[8, 0] = -1                                         # the lower half: after both halves of the upper
    data = pack("gpu", w_q)
    assert (data[0], data[7]) == (0b11_01_10_11, 0b01_10_10_10)
    assert (data[32 + 1], data[64]) == (0b10_10_10_11, 0b10_10_10_01)
    assert np.count_nonzero(data != 0b10101010) == 4


def test_gpu_tiles_follow_each_other_along_the_rows():
    w_q = np.zeros((32, 64), np.int8)
    w_q[0, 32] = w_q[16, 0] = 1
    assert np.flatnonzero(pack("gpu", w_q) != 0b10101010).tolist() == [128, 256]


def test_tq2_0_takes_trits_32_apart_in_halves_of_a_block():
    w_q = np.zeros((1, 256), np.int8)
    w_q[0, [0, 32, 64, 96]] = [1, 0, -1, 1]
    w_q[0, 129] = 1
    data = pack("tq2_0", w_q, 0.5)
    assert (data[0], data[1], data[33]) == (0b10_00_01_10, 0b01_01_01_01, 0b01_01_01_10)
    assert data[64:].tolist() == [0x00, 0x38]              # 0.5 in float16


@pytest.mark.parametrize(("name", "size"), [("q2_0", 64), ("pq2_0", 128)])
def test_q2_0_is_neighbours_behind_a_scale(name, size):
    w_q = np.zeros((1, size), np.int8)
    w_q[0, :4] = [1, 0, -1, 1]
    data = pack(name, w_q)
    assert data[:4].tolist() == [0x00, 0x3C, 0b10_00_01_10, 0b01_01_01_01]
    assert len(data) == 2 + size // 4


def test_tq1_0_is_a_fraction_with_the_first_trit_leading():
    w_q = np.zeros((1, 256), np.int8)
    w_q[0, [0, 32, 64, 96, 128]] = [1, -1, 0, 1, 1]        # byte 0
    w_q[0, [160, 176]] = [-1, 1]                           # byte 32
    w_q[0, [240, 244, 248, 252]] = [1, 1, -1, 0]           # byte 48: four digits and a zero
    data = pack("tq1_0", w_q)
    numbers = 2 * 81 + 0 * 27 + 9 + 2 * 3 + 2, 0 * 81 + 2 * 27 + 9 + 3 + 1, 2 * 81 + 2 * 27 + 0 * 9 + 3
    assert [data[0], data[32], data[48]] == [math.ceil(n * 256 / 243) for n in numbers]


def test_ptq1_0_is_the_same_in_smaller_stages():
    w_q = np.zeros((1, 128), np.int8)
    w_q[0, [16, 80, 120]] = 1                              # second digit; second stage; the two bytes of four
    zeros, data = pack("ptq1_0", w_q * 0), pack("ptq1_0", w_q)
    assert np.flatnonzero(zeros != data).tolist() == [0, 16, 24]
    assert data[0] == math.ceil((121 + 27) * 256 / 243)
    assert data[16] == data[24] + 1 == math.ceil((121 + 81) * 256 / 243)


def test_base_3_is_b3_in_one_row_and_keras_is_b3_transposed():
    w_q = trits(0, 3, 7)
    b3 = pack("b3", w_q)
    np.testing.assert_array_equal(pack("keras", w_q).reshape(2, 3), b3.reshape(3, 2).T)
    assert len(pack("base3", w_q)) == 5 < len(b3)          # rows share bytes
    for name in ("base3", "keras"):                        # one row is the same in all three
        np.testing.assert_array_equal(pack(name, w_q[:1]), pack("b3", w_q[:1]))


# --- properties --------------------------------------------------------------------------------------------


@each
@given(seed=seeds, a=st.integers(1, 9), b=st.integers(1, 9))
def test_round_trip(name, seed, a, b):
    w_q = trits(seed, *allowed(name, a, b))
    data = pack(name, w_q)
    assert (data.dtype, data.shape) == (np.uint8, (LAYOUTS[name].n_bytes(w_q.shape),))
    found = unpack(name, data, w_q.shape)
    assert (found.w_q.dtype, found.w_q.flags.c_contiguous) == (np.int8, True)
    np.testing.assert_array_equal(found.w_q, w_q)
    assert found.scale is None or np.all(found.scale == 1)
    assert (found.scale is None) == (LAYOUTS[name].scales == "none")


@pytest.mark.parametrize("name", BLOCKS)
@given(seed=seeds, a=st.integers(1, 4), b=st.integers(1, 4))
def test_scales_of_blocks_round_trip(name, seed, a, b):
    w_q = trits(seed, *allowed(name, a, b))
    every_finite = 0x7C00
    scale = np.random.default_rng(seed).integers(0, every_finite, (a, b), np.uint16).view(np.float16)
    found = unpack(name, pack(name, w_q, scale), w_q.shape)
    np.testing.assert_array_equal(found.w_q, w_q)
    np.testing.assert_array_equal(found.scale, scale.astype(np.float32))


@each
def test_bits_per_weight_is_what_the_bytes_say(name):
    shape = math.lcm(STEP[name][0], 20), math.lcm(STEP[name][1], 20)
    tail = rosetta.TAIL if name.startswith("i2s") else 0
    n_bits = 8 * (pack(name, trits(1, *shape)).size - tail)
    assert n_bits == pytest.approx(LAYOUTS[name].bits * math.prod(shape))


def test_no_two_layouts_agree():
    """So that a test with one of them cannot pass with another."""
    w_q = trits(2, 32, 1280)
    stored = {name: pack(name, w_q).tobytes() for name in LAYOUTS}
    assert len(set(stored.values())) == len(LAYOUTS) - 1   # rows of whole bytes: base3 is b3
    assert stored["base3"] == stored["b3"]


def test_plain_layouts_of_two_bits_are_permutations_of_each_other():
    """So that a histogram of the unpacked trits says nothing about which it was."""
    w_q = trits(3, 16, 256)
    for name in TWO_BITS:
        if LAYOUTS[name].codes == "0 1 2" and name not in BLOCKS:
            data = pack(name, w_q)[:w_q.size // 4]
            codes = data[:, None] >> np.uint8([0, 2, 4, 6]) & 3
            np.testing.assert_array_equal(np.bincount(codes.ravel()), np.bincount(w_q.ravel() + 1))


def moved(true, wrong, w_q):
    """The matrix that a reader of the wrong layout sees; tails of I2_S are cut or added."""
    data = pack(true, w_q)[:w_q.size // 4]
    return unpack(wrong, np.concatenate([data, pack(wrong, w_q)[w_q.size // 4:]]), w_q.shape).w_q


@pytest.mark.parametrize(("true", "wrong"), [("i2s_128", "i2s_64"), ("i2", "i2s_128"), ("i2s_64", "i2")])
def test_layouts_along_rows_read_as_each_other_permute_columns(true, wrong):
    """The same columns in every row: no statistic of the matrix alone can tell (docs/formats/rosetta.md)."""
    numbers = np.arange(256)
    order = np.zeros(256, int)
    for worth in 3 ** np.arange(6):                        # a row for each digit of the column's number
        w_q = np.stack([(numbers // worth % 3 - 1).astype(np.int8)] * 2)
        order += worth * (moved(true, wrong, w_q)[0] + 1)
    assert sorted(order) == numbers.tolist() != order.tolist()
    w_q = trits(10, 8, 256)
    np.testing.assert_array_equal(moved(true, wrong, w_q), w_q[:, order])


@pytest.mark.parametrize(("true", "wrong"), [("hf", "i2s_4row"), ("i2s_4row", "hf")])
def test_layouts_along_columns_read_as_each_other_permute_rows(true, wrong):
    w_q = trits(11, 16, 64)
    seen = moved(true, wrong, w_q)
    assert sorted(map(bytes, seen)) == sorted(map(bytes, w_q))
    assert not np.array_equal(seen, w_q)


def test_rows_are_mixed_where_the_two_families_meet():
    w_q = trits(12, 16, 128)
    seen = moved("hf", "i2s_128", w_q)
    assert not set(map(bytes, seen)) & set(map(bytes, w_q))
    assert not set(map(bytes, seen.T)) & set(map(bytes, w_q.T))


def test_what_bytes_could_be():
    w_q = trits(13, 16, 1280)                              # rows of whole blocks, and of whole fives
    plain, fives = {"i2", "hf"}, {"b3", "base3", "keras"}
    for name in LAYOUTS:
        found = set(possible(pack(name, w_q), w_q.shape))
        assert name in found
        if name.startswith("i2s"):
            assert found == {"i2s_128", "i2s_64", "i2s_4row"}
        elif name in plain | {"gpu", "torchao"}:
            assert found == (plain if name in plain else {name})
        elif name in BLOCKS:
            assert found == {name}                         # each has a length of its own
        else:
            assert found == fives
    assert possible(np.zeros(5, np.uint8), (4, 4)) == ()
    with refusal("shape (N, K)"):
        possible(np.zeros(4, np.uint8), (4,))


@each
def test_any_axes_and_strides_are_read(name):
    """A GGUF gives rows of bytes, a mapped file may be read-only, and a matrix may be a part of another."""
    w_q = trits(4, *allowed(name, 4, 4))
    data = pack(name, np.asfortranarray(w_q))
    np.testing.assert_array_equal(data, pack(name, w_q))
    spread = np.repeat(data, 2)[::2].reshape(2, -1) if data.size % 2 == 0 else np.repeat(data, 2)[::2]
    spread.flags.writeable = False
    np.testing.assert_array_equal(unpack(name, spread, w_q.shape).w_q, w_q)


@each
def test_memory_and_time_of_a_large_matrix(name):
    w_q = np.tile(trits(5, 256, 256), (10, 10))
    data = pack(name, w_q)
    began = time.perf_counter()
    np.testing.assert_array_equal(unpack(name, data, w_q.shape).w_q, w_q)
    assert time.perf_counter() - began < 1
    for work in (lambda: unpack(name, data, w_q.shape), lambda: pack(name, w_q)):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * w_q.size


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape", "word"), [
    ("i2s_128", (1, 64), "trits of I2_S in layout 128 must be a multiple of 128"),
    ("i2s_64", (3, 16), "multiple of 64"), ("i2s_4row", (6, 8), "rows of I2_S in layout 4row"),
    ("gpu", (8, 32), "rows of gpu must be a multiple of 16"),
    ("gpu", (16, 48), "columns of gpu must be a multiple of 32"), ("torchao", (4, 6), "columns of torchao"),
    *((name, (2, b.size + b.size // 2), f"columns of {name} must be a multiple of {b.size}")
      for name, b in BLOCKS.items())])
def test_sizes_that_a_layout_does_not_take(name, shape, word):
    with refusal(word):
        pack(name, trits(0, *shape))
    with refusal(word):
        unpack(name, np.zeros(math.prod(shape), np.uint8), shape)


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (4, 5), (5, 4)])
def test_odd_sizes_that_are_padded(name, shape):
    w_q = trits(6, *shape)
    np.testing.assert_array_equal(unpack(name, pack(name, w_q), shape).w_q, w_q)


@each
@pytest.mark.parametrize("more", [-1, 1, 4096])
def test_another_number_of_bytes(name, more):
    shape = allowed(name, 2, 2)
    n = LAYOUTS[name].n_bytes(shape)
    with refusal(f"must be {n} bytes", n + more):
        unpack(name, np.zeros(n + more, np.uint8), shape)


@each
@pytest.mark.parametrize("shape", [(2**60, 2**60), (2**39, 2**39), (-16, -256), (0, 256), (256,),
                                   (1, 16, 256), (16.0, 256), ("16", 256), (),
                                   (np.int64(2**40), np.int64(2**40))], ids=str)
def test_absurd_shapes(name, shape):
    """Nothing is allocated for them, and no product wraps."""
    with refusal("must"):
        unpack(name, np.zeros(1024, np.uint8), shape)


@pytest.mark.parametrize(("name", "bad", "place"), [
    ("i2s_128", 3, "the first in byte 5, at row 0, column 69"), ("hf", 3, "in byte 5, at row 8, column 5"),
    ("gpu", 0, "in byte 5, at row 1, column 9"), ("torchao", 2, "in byte 5, at row 0, column 22"),
    ("q2_0", 3, "in byte 3, at row 0, column 14"), ("tq2_0", 3, "in byte 5, at row 0, column 69")])
def test_a_code_that_is_no_trit_is_named(name, bad, place):
    """The third field of byte 5, or of what is byte 5 with the scale before it, and one later."""
    w_q = trits(7, 16, 256)
    data = pack(name, w_q)
    shift = 2 if LAYOUTS[name].source.startswith("microsoft/BitNet:") or name == "torchao" else 4
    for byte in (5, 9):
        data[byte] = data[byte] & ~np.uint8(3 << shift) | np.uint8(bad << shift)
    with refusal("every 2-bit code must be", f"a {bad} in 2 of", place):
        unpack(name, data, w_q.shape)


@pytest.mark.parametrize(("name", "at", "place"), [
    ("tq1_0", (1, 1, 40), "byte 40 of block 1 of row 1"),
    ("tq1_0", (0, 0, 50), "byte 50 of block 0 of row 0"),
    ("ptq1_0", (1, 2, 25), "byte 25 of block 2 of row 1")])
def test_a_fraction_that_is_not_written_is_named(name, at, place):
    w_q = trits(8, 2, 512)
    rows = pack(name, w_q).reshape(2, 512 // BLOCKS[name].size, -1)
    rows[at] = 1                                           # 1/256 is less than 1/243
    with refusal(f"every byte of {name} must be", f"1 in {place}"):
        unpack(name, rows, w_q.shape)


def test_the_bytes_of_base_3_that_are_read_are_those_that_are_written():
    """All 256 in place of a byte of five digits, and of one of four: 243 and 81 are read, and packed back."""
    data = pack("tq1_0", np.zeros((1, 256), np.int8))
    for place, count in ((0, 243), (51, 81)):
        read = 0
        for byte in range(256):
            given = data.copy()
            given[place] = byte
            try:
                w_q = unpack("tq1_0", given, (1, 256)).w_q
            except CheckError:
                continue
            np.testing.assert_array_equal(pack("tq1_0", w_q), given)
            read += 1
        assert read == count


@each
@given(seed=seeds)
def test_random_bytes_are_refused_or_packed_back(name, seed):
    """No bytes are read that `pack` does not write (hf's missing rows and I2_S's tail apart)."""
    shape = allowed(name, 4, 4)
    data = np.random.default_rng(seed).integers(0, 256, LAYOUTS[name].n_bytes(shape), np.uint8)
    data[np.random.default_rng(seed).random(len(data)) < 0.9] = 0x55
    try:
        found = unpack(name, data, shape)
    except CheckError:
        return
    scale = 1.0 if found.scale is None else found.scale
    again = pack(name, found.w_q, scale)
    if name.startswith("i2s"):
        data, again = data[:-28], again[:-28]
    np.testing.assert_array_equal(again, data)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 0.1, 1e6, 2.0**-30])
def test_scales_that_a_float16_does_not_hold(name, scale):
    with refusal("must be a float16, finite and not negative"):
        pack(name, trits(0, 1, 256), scale)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_scales_in_a_file_that_are_no_scales(name, scale):
    n = 512 // BLOCKS[name].size
    rows = pack(name, trits(0, 3, 512)).reshape(3, n, -1)
    at = 0 if name in ("q2_0", "pq2_0") else BLOCKS[name].n_bytes
    rows[2, 1, at:at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    with refusal(f"every scale of {name} must be finite", "in block 1 of row 2"):
        unpack(name, rows, (3, 512))


@pytest.mark.parametrize("name", [n for n, layout in LAYOUTS.items() if layout.scales == "none"])
@pytest.mark.parametrize("scale", [0.5, np.ones(2), np.nan])
def test_layouts_without_a_scale_take_none(name, scale):
    with refusal("stores no scale"):
        pack(name, trits(0, *allowed(name)), scale)


def test_scales_of_another_shape():
    with refusal("one scale, or one for each block", "(2, 1)"):
        pack("q2_0", trits(0, 2, 128), np.ones((2, 1)))


def test_unknown_layout():
    with refusal("layout must be one of i2, b3, hf", "'tq3'"):
        pack("tq3", trits(0, 8, 64))
    with refusal("layout must be one of"):
        unpack("128", np.zeros(4, np.uint8), (4, 4))


@each
def test_only_trits_are_packed_and_only_bytes_unpacked(name):
    shape = allowed(name, 4, 4)
    for w_q in (np.full(shape, 2, np.int8), np.ones(shape), np.ones(shape[1], np.int8)):
        with refusal("w_q must"):
            pack(name, w_q)
    with refusal("must be"):
        unpack(name, pack(name, trits(0, *shape)).view(np.int8), shape)
