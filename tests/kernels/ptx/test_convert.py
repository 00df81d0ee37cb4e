"""cvt against Python's integers and NumPy's floats."""

import ml_dtypes
import numpy as np
import pytest
from small_ptx import apply

VALUES = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49, -3.7, 1e10, -1e10, 3e38, -3e38, np.nan, np.inf, -np.inf,
          255.5]
ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@pytest.mark.parametrize("mode", ROUND)
@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16"])
def test_floats_become_integers_within_the_type(mode, kind):
    bits = int(kind[1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    x = np.array(VALUES, np.float32)

    def one(v):
        if np.isnan(v):
            return 0
        return low if v == -np.inf else high if v == np.inf else min(max(int(ROUND[mode](np.float64(v))),
                                                                         low), high)
    assert apply(f"cvt.{mode}.{kind}.f32", kind, ("f32", x)).tolist() == [one(v) for v in x]


def test_integers_are_cut_extended_and_clamped():
    x = [0, 1, -1, 127, 128, -129, 65535, 2 ** 31 - 1, -2 ** 31]
    assert apply("cvt.s64.s32", "s64", ("s32", x)).tolist() == x
    assert apply("cvt.u64.u32", "u64", ("s32", x)).tolist() == [v % 2 ** 32 for v in x]
    assert apply("cvt.u32.u64", "u32", ("s64", x)).tolist() == [v % 2 ** 32 for v in x]
    assert apply("cvt.s32.s8", "s32", ("s32", x)).tolist() == [(v + 128) % 256 - 128 for v in x]
    assert apply("cvt.u16.u32", "u16", ("s32", x)).tolist() == [v % 65536 for v in x]
    assert apply("cvt.sat.s8.s32", "s32", ("s32", x)).tolist() == [min(max(v, -128), 127) for v in x]
    assert apply("cvt.sat.u8.s32", "u32", ("s32", x)).tolist() == [min(max(v, 0), 255) for v in x]


def test_integers_become_floats():
    x = [0, 1, -1, 2 ** 24 + 1, 2 ** 31 - 1, -2 ** 31]
    np.testing.assert_array_equal(apply("cvt.rn.f32.s32", "f32", ("s32", x)), np.array(x).astype(np.float32))
    long = [2 ** 53 + 1, -2 ** 63, 2 ** 62 + 2 ** 38 + 1]
    np.testing.assert_array_equal(apply("cvt.rn.f32.s64", "f32", ("s64", long)),
                                  np.array(long).astype(np.float32))


def test_narrower_floats(rng):
    x = np.concatenate([rng.standard_normal(60).astype(np.float32),
                        np.array([1e6, -0.0, np.nan, 6e-8], np.float32)])
    with np.errstate(over="ignore"):
        half, brain = x.astype(np.float16), x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(apply("cvt.rn.f16.f32", "f16", ("f32", x)), half)
    np.testing.assert_array_equal(apply("cvt.f32.f16", "f32", ("f16", half)), half.astype(np.float32))
    got = apply("cvt.rn.bf16.f32", "bf16", ("f32", x))
    np.testing.assert_array_equal(got.view(ml_dtypes.bfloat16).astype(np.float32), brain.astype(np.float32))
    pair = apply("cvt.rn.bf16x2.f32", "b32", ("f32", x), ("f32", x[::-1].copy()))
    np.testing.assert_array_equal(pair >> 16, got)         # the first operand above
    np.testing.assert_array_equal(pair & 0xFFFF, got[::-1])
    wide = rng.standard_normal(32)
    toward = apply("cvt.rz.f32.f64", "f32", ("f64", wide)).astype(np.float64)
    assert (np.abs(toward) <= np.abs(wide)).all()
    assert np.allclose(toward, wide, rtol=2e-7)
    assert apply("cvt.sat.f32.f32", "f32", ("f32", [2, -1, 0.5, np.nan])).tolist() == [1, 0, 0.5, 0]
    assert apply("cvt.rni.f32.f32", "f32", ("f32", [2.5, -1.5, 0.4])).tolist() == [2, -2, 0]
