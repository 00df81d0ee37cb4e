"""Packed ternary products: equal to the integer product to the last digit, on every tier that runs here."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.checks import CheckError
from bitnet_ref.kernels.numba_cpu import cache, isa
from bitnet_ref.kernels.numba_cpu.bitlinear import (
    FEW,
    MOST_K,
    NOT_PACKED,
    pack_panels,
    prepare,
    ternary_linear,
    ternary_product,
)
from bitnet_ref.kernels.numba_cpu.linear import product, product_dw, product_dx

BITS = pytest.mark.parametrize("bits", ["i2", "b3"])


def operands(rng, M, N, K):
    return (rng.integers(-127, 128, (M, K)).astype(np.int8), rng.random((M, 1), np.float32),
            rng.integers(-1, 2, (N, K)).astype(np.int8))


W_SCALE = np.float32(0.37)


def products(x_q, x_scale, w_q):
    """The reference's product, and ours: from trits, and packed either way."""
    scales = x_scale.reshape(-1)
    ours = [ternary_product(x_q, scales, w_q, W_SCALE, np.empty((len(x_q), len(w_q)), np.float32), *packed)
            for packed in ((NOT_PACKED,), (pack_panels(w_q, "i2"), "i2"), (pack_panels(w_q, "b3"), "b3"))]
    return layers.ternary_linear(x_q, x_scale, layers.prepare(w_q, W_SCALE)), ours


@given(seed=seeds, M=st.integers(1, 2 * FEW), N=st.integers(1, 150), K=st.integers(1, 130))
def test_the_product_is_the_references_bit_for_bit(seed, M, N, K):
    want, ours = products(*operands(np.random.default_rng(seed), M, N, K))
    for y in ours:
        np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("M", [*range(1, FEW + 2), 100])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_worst_case_is_exact_at_the_largest_width(M, sign):
    """All 127 against all 1 or -1; one code less, so that the sum is odd and needs every bit.

    Of codes that are raised and sums that are divided at the end, too: no sum may leave its 32 bits.
    """
    for bits, K in MOST_K.items():
        x_q, w_q = np.full((M, K), 127, np.int8), np.full((17, K), sign, np.int8)
        x_q[:, 0], x_q[M // 2] = 126, -127
        y = ternary_product(x_q, np.ones(M, np.float32), w_q, 1, np.empty((M, 17), np.float32),
                            pack_panels(w_q, bits), bits)
        np.testing.assert_array_equal(y, x_q.astype(np.int64) @ w_q.T.astype(np.int64))


@BITS
@pytest.mark.parametrize(("N", "K"), [(70, 90), (16, 4), (33, 1100), (48, 2500)])
def test_a_row_has_the_same_product_in_any_batch(bits, N, K, rng):
    """Few rows walk pairs of panels (and one that is left), asked for beyond the end of a panel."""
    x_q, x_scale, w_q = operands(rng, 33, N, K)
    w = prepare(w_q, np.float32(0.5), bits)
    whole = ternary_linear(x_q, x_scale, w)
    np.testing.assert_array_equal(whole, layers.ternary_linear(x_q, x_scale, layers.prepare(w_q, w.w_scale)))
    for n in (*range(1, FEW + 2), 33):
        np.testing.assert_array_equal(ternary_linear(x_q[:n], x_scale[:n], w), whole[:n])


@pytest.mark.parametrize("M", range(1, FEW + 1))
def test_every_byte_of_five_trits_is_decoded(M, rng):
    """All 243, a matrix row each; inputs that are zero but for one of the five places show its trit."""
    trits = np.array(list(itertools.product((-1, 0, 1), repeat=5)), np.int8)           # (243, 5)
    packed = pack_panels(np.repeat(trits, 4, axis=1), "b3")
    assert sorted({*packed.ravel().tolist()}) == [n * 256 // 243 + 1 for n in range(243)]
    for j in range(5):
        x_q = np.zeros((M, 20), np.int8)
        x_q[:, 4 * j:4 * j + 4] = rng.integers(-127, 128, (M, 4))
        y = ternary_product(x_q, np.ones(M, np.float32), np.repeat(trits, 4, axis=1), 1,
                            np.empty((M, 243), np.float32), packed, "b3")
        np.testing.assert_array_equal(y, x_q.astype(int).sum(1)[:, None] * trits[:, j])


@given(seed=seeds, M=st.integers(1, 30), N=st.integers(1, 140), K=st.integers(1, 70))
def test_float_products(seed, M, N, K):
    """Forward, and both backward products, at sizes that fit no tile; the sum in the order of k."""
    rng = np.random.default_rng(seed)
    x, w, dy = (rng.normal(size=s).astype(np.float32) for s in ((M, K), (N, K), (M, N)))
    dx, dw = np.ones((M, K), np.float32), np.ones((N, K), np.float32)
    y = product(x, w, np.empty((M, N), np.float32))
    assert np.abs(y - x @ w.T).max() <= 1e-5 * np.abs(y).max()
    product_dx(dy, w, dx, onto=True)
    assert np.abs(dx - 1 - dy @ w).max() <= 1e-5 * np.abs(dx).max()
    product_dw(dy, x, dw)
    assert np.abs(dw - 1 - dy.T @ x).max() <= 1e-5 * np.abs(dw).max()
    np.testing.assert_array_equal(product(x[:1], w, np.empty((1, N), np.float32)), y[:1])


def test_a_float_product_is_longer_than_what_is_packed_at_a_time(rng):
    """And then too a chain in the order of k."""
    x, w = rng.normal(size=(7, 1500)).astype(np.float32), rng.normal(size=(70, 1500)).astype(np.float32)
    y = product(x, w, np.empty((7, 70), np.float32))
    assert np.abs(y - x @ w.T).max() <= 1e-5 * np.abs(y).max()


@BITS
@pytest.mark.parametrize("value", [2, -2, 3, 127])
def test_other_than_trits_are_refused(bits, value):
    w_q = np.zeros((5, 7), np.int8)
    w_q[3, 4] = value
    with pytest.raises(CheckError, match=r"must hold -1, 0 and \+1 only; got 1 other values; ternarise it"):
        pack_panels(w_q, bits)


@pytest.mark.parametrize("rows", [1, 8, 9, 50])
@pytest.mark.parametrize("value", [2, -2, -128, 127])
def test_other_than_trits_are_refused_for_any_number_of_rows(rows, value, rng):
    w_q = rng.integers(-1, 2, (70, 40)).astype(np.int8)
    w_q[69, 39] = value
    x_q, x_scale = layers.absmax_int8(rng.normal(size=(rows, 40)).astype(np.float32))
    with pytest.raises(CheckError, match=r"must hold -1, 0 and \+1 only; got .* other values; ternarise it"):
        ternary_linear(x_q, x_scale, prepare(w_q, np.float32(1)))


def test_too_wide_a_row_is_refused():
    with pytest.raises(CheckError, match="as b3 must have at most 32760 inputs; got 32761; use packing i2"):
        pack_panels(np.zeros((1, MOST_K["b3"] + 1), np.int8), "b3")
    assert prepare(np.zeros((1, MOST_K["b3"] + 1), np.int8), 1.0).bits == "i2"


def test_an_unknown_packing_is_refused():
    with pytest.raises(CheckError, match="packing must be one of i2, b3; got 'q4'"):
        prepare(np.zeros((1, 1), np.int8), 1.0, "q4")


@pytest.mark.slow                            # the tier that runs everywhere; the others by night
@pytest.mark.parametrize("tier", [pytest.param(t.name, marks=[pytest.mark.nightly] * (t.name != "portable"))
                                  for t in isa.TIERS.values() if isa.runs(t)])
def test_every_tier_that_runs_here(tier):
    """This file, decoding, and the golden and twin tests of the products, with the tier forced."""
    if tier == isa.choose().name:
        pytest.skip("the tier of the suite itself")
    here = os.path.dirname(__file__)
    files = [__file__, os.path.join(here, "test_whole.py"), os.path.join(here, "../layers/test_bitlinear.py"),
             os.path.join(here, "../layers/test_attention.py")]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "not slow", *files],
                          env={**os.environ, isa.ENV: tier}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:]


# --- where compiled code is kept --------------------------------------------------------------------------


def run(code, **env):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True,
                          text=True)


NORM = """
import numba
import numpy as np
from bitnet_ref.kernels import load
print(load("numba").relu2(np.ones(3, np.float32), np.ones(3, np.float32)))
print(numba.config.CACHE_DIR)
"""


def test_a_folder_that_cannot_be_written_works_and_says_what_it_costs(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run(NORM, BITNET_REF_CACHE=str(tmp_path / "file"), NUMBA_CACHE_DIR="", TMPDIR=str(tmp_path))
    assert done.stdout.startswith("[1. 1. 1.]\n")
    assert "note: compiled code must be kept in a folder that can be written" in done.stderr
    assert "is compiled in each process; set BITNET_REF_CACHE" in done.stderr
    assert "once for this machine" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]                # the one in its stead is gone


def test_what_is_in_a_folder_that_cannot_be_written_is_used(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "index").write_text("compiled")
    copy = cache._copy(tmp_path / "kept")
    assert (copy / "index").read_text() == "compiled"
    shutil.rmtree(copy)


def test_folders_of_other_sources_go_after_a_month(tmp_path):
    for name, age in (("avx2-1-aa", 2.0), ("avx2-1-bb", 0.5), ("other", 2.0)):
        (tmp_path / name).mkdir()
        then = time.time() - age * cache.MONTH
        os.utime(tmp_path / name, (then, then))
    cache._prune(tmp_path / "avx2-1-cc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["avx2-1-bb", "other"]


def test_other_sources_are_compiled_anew(monkeypatch, tmp_path):
    """Numba looks at the file of a function, not at those that it was inlined from."""
    before = cache.folder()
    copy = shutil.copytree(Path(cache.__file__).parent, tmp_path / "numba_cpu")
    (copy / "vectors.py").write_text("changed")
    monkeypatch.setattr(cache, "__file__", str(copy / "cache.py"))
    assert cache.folder().name.rpartition("-")[0] == before.name.rpartition("-")[0]
    assert cache.folder() != before


def test_a_portable_tier_that_nobody_asked_for_says_so(tmp_path):
    told = {"NUMBA_CPU_NAME": "generic", isa.ENV: "", "BITNET_REF_CACHE": str(tmp_path),
            "NUMBA_CACHE_DIR": ""}
    done = run(NORM, **told)
    assert done.stdout.startswith("[1. 1. 1.]\n"), done.stderr
    assert "note: this processor has no vector instructions that we know; the portable tier" in done.stderr
    assert "note: this" not in run(NORM, **told | {isa.ENV: "portable"}).stderr


def test_each_tier_has_a_folder_of_its_own(tmp_path):
    """Numba's key does not know which instructions were asked for."""
    for tier in ("portable", isa.choose().name):
        code = ("from bitnet_ref.kernels import load; import numba; load('numba'); "
                "print(numba.config.CACHE_DIR)")
        done = run(code, BITNET_REF_CACHE=str(tmp_path), NUMBA_CACHE_DIR="", BITNET_REF_ISA=tier)
        folder = str(tmp_path / "numba" / f"{tier}-{numba.__version__}-")
        assert done.stdout.strip()[:-8] == folder
