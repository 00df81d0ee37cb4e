"""pack/rans: trits at their entropy, exactly; damage found; nothing but a refusal for strange bytes."""

import math
import re
import shutil
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from tiny import refusal

from bitnet_ref.checks import CheckError
from bitnet_ref.kernels.numba_cpu import rans as compiled
from bitnet_ref.pack import rans
from bitnet_ref.pack.rans import OVERHEAD, SCALE, entropy, frequencies, histogram

PAGE = Path(__file__).resolve().parents[2] / "docs/formats/rans.md"
BOTH = pytest.mark.parametrize("code", [rans, compiled], ids=["numpy", "numba"])
SHARES = [(1 / 3, 1 / 3, 1 / 3), (0.29, 0.42, 0.29), (0.2, 0.6, 0.2), (0.05, 0.9, 0.05), (0.5, 0.0, 0.5),
          (0.0, 0.5, 0.5), (0.7, 0.2, 0.1), (0.02, 0.96, 0.02)]
EXAMPLE = np.array([[-1, 0, 1, 1, 0, 0, 0, 1, -1, 0, 0, 0]], np.int8)
shares = (st.tuples(*[st.integers(0, 1000)] * 3).filter(any)
          | st.sampled_from([(1, 0, 0), (0, 1, 0), (0, 0, 1)]))


def trits(seed, shape, p=(1, 1, 1)):
    p = np.array(p) / np.sum(p)
    return np.random.default_rng(seed).choice(np.array([-1, 0, 1], np.int8), shape, p=p)


def sealed(packed):
    """With a true checksum, whatever else is wrong."""
    packed = np.array(packed, np.uint8)
    packed[:4] = np.frombuffer(zlib.crc32(packed[4:].tobytes()).to_bytes(4, "little"), np.uint8)
    return packed


# --- golden ------------------------------------------------------------------------------------------------


@BOTH
def test_the_example_of_the_page(code):
    """The bytes in docs/formats/rans.md, as they stand there."""
    block = re.search(r"<!-- example -->\n```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    packed = bytes.fromhex("".join(re.findall(r"^([0-9a-f ]+?)(?:  .*)?$", block, re.MULTILINE)))
    assert code.pack_rans(EXAMPLE).tobytes() == packed
    np.testing.assert_array_equal(code.unpack_rans(np.frombuffer(packed, np.uint8), EXAMPLE.shape), EXAMPLE)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_decoder_of_the_page_is_right(tmp_path):
    """The C on the page, compiled and run on bytes of ours, whole and damaged."""
    function = re.search(r"```c\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    source = "#include <stdint.h>\n#include <stddef.h>\n#include <stdio.h>\n" + function + """
int main(int argc, char **argv) {
    static uint8_t b[1 << 20]; static int8_t w[1 << 20];
    size_t n_trits, n_bytes = fread(b, 1, sizeof b, stdin);
    sscanf(argv[argc - 1], "%zu", &n_trits);
    if (unpack_rans(b, n_bytes, w, n_trits)) return 1;
    fwrite(w, 1, n_trits, stdout);
    return 0;
}"""
    (tmp_path / "a.c").write_text(source)
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", "a", "a.c"], cwd=tmp_path, check=True)
    for seed, p in enumerate([*SHARES, (0, 1, 0), (1, 0, 0), (0, 0, 1)]):
        w_q = trits(seed, (31, 77 + seed), p)
        packed = compiled.pack_rans(w_q)
        run = [tmp_path / "a", str(w_q.size)]
        done = subprocess.run(run, input=packed.tobytes(), capture_output=True, check=True)
        assert done.stdout == w_q.tobytes()
        if len(packed) > OVERHEAD:
            assert subprocess.run(run, input=packed[:-4].tobytes(), capture_output=True).returncode == 1


# --- properties --------------------------------------------------------------------------------------------


@BOTH
@given(seed=seeds, n=st.integers(1, 9), k=st.integers(1, 60), p=shares)
def test_round_trip(code, seed, n, k, p):
    w_q = trits(seed, (n, k), p)
    packed = code.pack_rans(w_q)
    assert (packed.dtype, packed.ndim, packed.size % 4) == (np.uint8, 1, 0)
    back = code.unpack_rans(packed, (n, k))
    assert (back.dtype, back.flags.c_contiguous) == (np.int8, True)
    np.testing.assert_array_equal(back, w_q)
    np.testing.assert_array_equal(code.pack_rans(w_q), packed)


@given(counts=st.tuples(*[st.integers(0, 1 << 40)] * 3).filter(any))
def test_frequencies_add_up_and_forget_no_trit(counts):
    f = frequencies(counts)
    assert sum(f) == SCALE
    assert [n > 0 for n in counts] == [k > 0 for k in f]
    assert max(abs(k / SCALE - n / sum(counts)) for k, n in zip(f, counts)) <= 2.5 / SCALE


@pytest.mark.parametrize("p", SHARES)
@pytest.mark.parametrize("shape", [(1000, 1000), (2560, 640)])
def test_a_tenth_of_a_percent_above_the_entropy(p, shape):
    """A million weights or more: the promise; and at most log2(3) bits, but for the same tenth."""
    w_q = trits(1, shape, p)
    bits = 8 * compiled.pack_rans(w_q).size / w_q.size
    least = entropy(histogram(w_q))
    assert least <= bits <= 1.001 * least
    assert bits <= 1.001 * math.log2(3)


@given(seed=seeds, n=st.integers(1, 40), k=st.integers(1, 40), p=shares)
def test_small_tensors_cost_their_entropy_and_the_states(seed, n, k, p):
    w_q = trits(seed, (n, k), p)
    packed = compiled.pack_rans(w_q)
    f, counts = frequencies(histogram(w_q)), histogram(w_q)
    coded = sum(c * math.log2(SCALE / g) for c, g in zip(counts, f) if c) / 8
    assert packed.size <= OVERHEAD + coded + 1
    assert packed.size >= coded


@pytest.mark.parametrize("trit", [-1, 0, 1])
def test_a_constant_tensor_needs_no_words(trit):
    w_q = np.full((1000, 1001), trit, np.int8)
    packed = compiled.pack_rans(w_q)
    assert packed.size == OVERHEAD
    np.testing.assert_array_equal(compiled.unpack_rans(packed, w_q.shape), w_q)


def test_the_largest_tensor_of_2b4t_is_within_the_promise():
    w_q = trits(3, (6912, 2560), (0.29, 0.42, 0.29))
    packed = compiled.pack_rans(w_q)
    assert 8 * packed.size / w_q.size <= 1.00002 * entropy(histogram(w_q))
    np.testing.assert_array_equal(compiled.unpack_rans(packed, w_q.shape), w_q)


@BOTH
def test_strided_and_read_only_arrays(code):
    for view in (lambda a: a.T, lambda a: a[::2, ::3], lambda a: a[:, ::-1]):
        w_q = view(trits(1, (12, 16)))
        packed = code.pack_rans(w_q)
        np.testing.assert_array_equal(packed, rans.pack_rans(np.ascontiguousarray(w_q)))
        odd = np.zeros(packed.size + 1, np.uint8)[1:]      # not aligned, as in a file
        odd[:] = packed
        odd.flags.writeable = False
        np.testing.assert_array_equal(code.unpack_rans(odd, w_q.shape), w_q)
        np.testing.assert_array_equal(code.unpack_rans(np.repeat(packed, 2)[::2], w_q.shape), w_q)


def test_memory_is_that_of_the_trits():
    w_q = trits(2, (1024, 1024))
    packed = compiled.pack_rans(w_q)
    for work in (lambda: compiled.pack_rans(w_q), lambda: compiled.unpack_rans(packed, w_q.shape)):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * w_q.size


# --- twin --------------------------------------------------------------------------------------------------


@given(seed=seeds, n=st.integers(1, 50), k=st.integers(1, 50), p=shares)
def test_the_compiled_code_writes_the_same_bytes(seed, n, k, p):
    w_q = trits(seed, (n, k), p)
    np.testing.assert_array_equal(compiled.pack_rans(w_q), rans.pack_rans(w_q))


@pytest.mark.parametrize("p", [(1, 8000, 1), (1, 1, 8000), (1, 0, 20000), (3, 2, 3)])
def test_twins_at_the_edges_of_a_state(p):
    """Rare trits have frequencies of some units, so a state is often just at the bound of 64 bits."""
    w_q = trits(9, (200, 500), p)
    packed = rans.pack_rans(w_q)
    np.testing.assert_array_equal(compiled.pack_rans(w_q), packed)
    np.testing.assert_array_equal(rans.unpack_rans(packed, w_q.shape), w_q)


@given(data=st.binary(max_size=200), n=st.integers(1, 9), k=st.integers(1, 90), f=shares)
def test_both_say_the_same_of_any_bytes(data, n, k, f):
    """Frequencies and states that pass the first checks, then words of chance: the same trits or refusal."""
    head = np.array(frequencies(f)[:2], "<u2").tobytes()
    data = bytes(4) + head + data[:len(data) // 4 * 4].ljust(32, b"\1")
    packed = sealed(np.frombuffer(data, np.uint8))
    said = []
    for code in (rans, compiled):
        try:
            said.append(code.unpack_rans(packed, (n, k)).tolist())
        except CheckError as e:
            said.append(str(e))
    assert said[0] == said[1]


# --- what is refused ---------------------------------------------------------------------------------------


@BOTH
def test_every_changed_bit_is_found(code):
    w_q = trits(4, (9, 23))
    packed = code.pack_rans(w_q)
    for i in range(8 * packed.size):
        damaged = packed.copy()
        damaged[i // 8] ^= 1 << i % 8
        with refusal("rans must have the CRC-32"):
            code.unpack_rans(damaged, w_q.shape)


@BOTH
def test_damage_is_found_without_the_checksum_too(code):
    """What a bad encoder writes has a true checksum: words and states must end with the trits."""
    w_q = trits(5, (40, 50))
    packed = code.pack_rans(w_q)
    wrong = 0
    for i in range(4, packed.size):
        damaged = packed.copy()
        damaged[i] ^= 0x10
        try:
            code.unpack_rans(sealed(damaged), w_q.shape)
        except CheckError:
            wrong += 1
    assert wrong == packed.size - 4


@BOTH
@pytest.mark.parametrize(("shape", "words"), [((20, 50), "words left over"), ((40, 51), "too few words"),
                                              ((2000, 2000), "too few words")])
def test_another_shape_is_found(code, shape, words):
    packed = code.pack_rans(trits(6, (40, 50)))
    with refusal("rans must decode to exactly the trits of shape", words):
        code.unpack_rans(packed, shape)


@BOTH
@pytest.mark.parametrize("cut", [1, 4, 40])
def test_truncated_and_longer_bytes_are_refused(code, cut):
    w_q = trits(7, (40, 50))
    packed = code.pack_rans(w_q)
    for wrong in (packed[:-cut], np.concatenate([packed, np.zeros(cut, np.uint8)])):
        with refusal("rans must"):
            code.unpack_rans(wrong, w_q.shape)
        if cut > 1:
            with refusal("rans must decode to exactly the trits"):
                code.unpack_rans(sealed(wrong), w_q.shape)


@BOTH
def test_frequencies_and_states_are_checked(code):
    packed = code.pack_rans(trits(8, (4, 5)))
    more = packed.copy()
    more[4:8] = np.array([SCALE, 1], "<u2").view(np.uint8)
    with refusal("the frequencies of rans must be at most 32768 together", "32768 and 1"):
        code.unpack_rans(sealed(more), (4, 5))
    low = packed.copy()
    low[12:16] = 0                                         # the high half of the first state
    with refusal("the states of rans must be at least 2^32"):
        code.unpack_rans(sealed(low), (4, 5))


@BOTH
@pytest.mark.parametrize("packed", [np.zeros(40, np.int8), np.zeros((2, 40), np.uint8), np.zeros(0, np.uint8),
                                    np.zeros(36, np.uint8), np.zeros(41, np.uint8)],
                         ids=lambda a: str(a.shape))
def test_only_bytes_of_a_fitting_length_are_unpacked(code, packed):
    with refusal("must"):
        code.unpack_rans(packed, (2, 2))


@BOTH
@pytest.mark.parametrize("shape", [(0, 3), (3,), (1, 2, 3), (-1, -1), (1 << 60, 1 << 60), (2.0, 3),
                                   (1 << 47, 1)])
def test_only_shapes_of_matrices_are_unpacked(code, shape):
    packed = code.pack_rans(np.zeros((2, 3), np.int8))
    with refusal("shape must be rows and columns"):
        code.unpack_rans(packed, shape)


@BOTH
@pytest.mark.parametrize("w_q", [np.array([[0, 2]], np.int8), np.array([[-2]], np.int8), np.ones((1, 5)),
                                 np.ones((0, 5), np.int8), np.ones(5, np.int8)],
                         ids=lambda a: f"{a.dtype} {a.shape}")
def test_only_trits_are_packed(code, w_q):
    with refusal("w_q must"):
        code.pack_rans(w_q)
