"""pack/blocks beside the programs that define the blocks: the gguf package, and llama.cpp's own library."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from bitnet_ref.pack.rosetta import pack, unpack

SHAPES = [(1, 256), (5, 768), (64, 512)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def trits(shape):
    w_q = np.random.default_rng(sum(shape)).integers(-1, 2, shape).astype(np.int8)
    w_q[:, ::64] = 1                                       # no block of zeros: its scale would be 0
    return w_q


@each_shape
@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
def test_gguf_writes_and_reads_the_same(name, shape):
    gguf = pytest.importorskip("gguf")
    kind, w_q = gguf.GGMLQuantizationType[name.upper()], trits(shape)
    theirs = gguf.quantize(w_q.astype(np.float32), kind)
    np.testing.assert_array_equal(pack(name, w_q), theirs.reshape(-1))
    np.testing.assert_array_equal(unpack(name, theirs, shape).w_q, w_q)


@each_shape
@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
def test_scales_that_gguf_chooses_are_read(name, shape):
    """From matrices of -s, 0, +s, with a row of zeros: d = 0 there, and the trits are zeros."""
    gguf = pytest.importorskip("gguf")
    kind, w_q = gguf.GGMLQuantizationType[name.upper()], trits(shape)
    s = np.linspace(0.01, 2, len(w_q), dtype=np.float32)[:, None]
    s[0] = 0
    found = unpack(name, gguf.quantize(w_q * s, kind), shape)
    np.testing.assert_array_equal(found.w_q, np.where(s > 0, w_q, 0))
    np.testing.assert_array_equal(found.scale, np.broadcast_to(s.astype(np.float16), found.scale.shape))


@pytest.fixture(scope="module")
def ggml():
    """libggml-base of the installed llama-cpp-python."""
    import importlib.util
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        pytest.skip("llama-cpp-python is not installed")
    libraries = sorted(Path(spec.origin).parent.glob("lib/libggml-base.*"))
    if not libraries:
        pytest.skip("llama-cpp-python has no libggml-base")
    return ctypes.CDLL(str(libraries[0]))


def function(ggml, name):
    if not hasattr(ggml, name):
        pytest.skip(f"this llama.cpp has no {name}")
    return getattr(ggml, name)


@each_shape
@pytest.mark.parametrize("name", ["tq1_0", "tq2_0", "q2_0"])
def test_llama_cpp_writes_and_reads_the_same(ggml, name, shape):
    w_q = trits(shape)
    ours, x = pack(name, w_q), w_q.astype(np.float32)
    theirs, y = np.zeros_like(ours), np.zeros_like(x)
    n = ctypes.c_int64(w_q.size)
    function(ggml, f"quantize_row_{name}_ref")(x.ctypes, theirs.ctypes, n)
    function(ggml, f"dequantize_row_{name}")(ours.ctypes, y.ctypes, n)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(y, x)
