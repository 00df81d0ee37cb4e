"""pack/rosetta against bytes that another program wrote, element by element (golden/models.py)."""

import numpy as np
import pytest

from bitnet_ref.bench.golden import error, read
from bitnet_ref.layers import absmax_int8, prepare, ternary_linear
from bitnet_ref.pack import rosetta

HELD = read("rosetta.safetensors")
SHAPES = sorted({n.split("/")[0] for n in HELD if n[0].isdigit()})


@pytest.mark.parametrize("shape", SHAPES)
def test_hf(shape):
    w_q, packed = HELD[f"{shape}/w_q"], HELD[f"{shape}/hf"]
    assert np.array_equal(rosetta.pack_hf(w_q), packed)
    assert np.array_equal(rosetta.unpack_hf(packed, len(w_q)), w_q)


@pytest.mark.parametrize("layout", rosetta.I2S)
@pytest.mark.parametrize("shape", [s for s in SHAPES if f"{s}/i2s_128" in HELD])
def test_i2s(shape, layout):
    w_q, scale, data = (HELD[f"{shape}/{n}"] for n in ("w_q", "w_scale", f"i2s_{layout}"))
    assert np.array_equal(rosetta.pack_i2s(w_q, scale, layout), data)
    unpacked, stored = rosetta.unpack_i2s(data, w_q.shape, layout)
    assert np.array_equal(unpacked, w_q)
    assert stored == scale


@pytest.mark.parametrize(("linear_class", "multiplier"), [
    ("autobitlinear", lambda scale: scale), ("bitlinear", lambda scale: 1 / scale)])
def test_the_product_of_unpacked_trits(linear_class, multiplier, tol):
    w_q = rosetta.unpack_hf(HELD["8x128/hf"], 8)
    w_scale = multiplier(HELD[f"products/weight_scale_{linear_class}"])
    y = ternary_linear(*absmax_int8(HELD["products/x"]), prepare(w_q, w_scale))
    assert error(y, HELD["products/y"]) <= tol["float32"]


def held(at, name):
    """(w_q, scale or 1, bytes) of golden/models.layouts."""
    return HELD[f"{at}/w_q"], HELD.get(f"{at}/{name}_scale", 1.0), HELD[f"{at}/{name}"]


OTHERS = [n.split("/") for n in HELD if n.split("/")[1] in rosetta.LAYOUTS and not n[0].isdigit()]


def test_every_layout_has_golden_bytes():
    named = {name for _, name in OTHERS} | {f"i2s_{layout}" for layout in rosetta.I2S}
    assert named == set(rosetta.LAYOUTS)


@pytest.mark.parametrize(("at", "name"), OTHERS)
def test_layouts(at, name):
    w_q, scale, data = held(at, name)
    assert np.array_equal(rosetta.pack(name, w_q, scale), data)
    found = rosetta.unpack(name, data, w_q.shape)
    assert np.array_equal(found.w_q, w_q)
    if rosetta.LAYOUTS[name].scales != "none":
        assert np.array_equal(found.scale, np.broadcast_to(np.float32(scale), found.scale.shape))
