"""bench/roofline: what is measured was done, and is said."""

import json

import numpy as np
import pytest

from bitnet_ref.bench import roofline
from bitnet_ref.bench.vectors import DOT, LANES
from bitnet_ref.cli import run_command

SIZE = roofline.ROWS * roofline.WIDE * LANES


@pytest.mark.parametrize("parts", [1, 3])
def test_every_word_is_read(parts, rng):
    words = rng.integers(-2**31, 2**31, parts * 20 * 4 * LANES, np.int64).astype(np.int32)
    assert (roofline.read_all(words, parts) - int(words.sum(dtype=np.int64))) % 2**32 == 0


def test_the_float_tile_is_a_product(rng):
    a = rng.standard_normal((roofline.ROWS, roofline.DEPTH), np.float32)
    b = rng.standard_normal((roofline.DEPTH, roofline.WIDE * LANES), np.float32)
    out = np.zeros((2, SIZE), np.float32)
    roofline.float_tiles(a.ravel(), b.ravel(), out, 2, 3)
    np.testing.assert_allclose(out, np.tile(3 * (a @ b).ravel(), (2, 1)), atol=1e-3)


@pytest.mark.skipif(DOT is None, reason="no instruction for dot products here")
def test_the_dot_tile_is_a_product(rng):
    a = rng.integers(-128, 128, (roofline.ROWS, roofline.DEPTH), np.int8)
    b = rng.integers(0, 3, (roofline.DEPTH // 4, roofline.WIDE * LANES, 4), np.uint8)
    out = np.zeros((2, SIZE), np.int32)
    roofline.dot_tiles(a.ravel(), b.ravel(), out, 2, 3)
    flat = b.transpose(0, 2, 1).reshape(roofline.DEPTH, -1).astype(np.int64)
    assert np.array_equal(out, np.tile(3 * (a.astype(np.int64) @ flat).ravel(), (2, 1)))


def test_the_command(capsys):
    assert run_command(roofline.main, ["--threads", "1", "--json"]) == 0
    m = roofline.Machine(**json.loads(capsys.readouterr().out))
    assert m.threads == 1
    assert m.numpy == np.__version__
    assert min(m.bandwidth, m.float32, m.blas) > 1e8
    assert (m.int8 > 1e8) == (DOT is not None)
    assert "1 thread: reads" in roofline.line(m)


def test_too_many_threads(capsys):
    assert run_command(roofline.main, ["--threads", "100000"]) == 2
    assert "threads must lie in" in capsys.readouterr().err
