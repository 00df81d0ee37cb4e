"""Arithmetic of one thread against Python's exact integers and fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_ptx import apply
from strategies import seeds

WIDTHS = pytest.mark.parametrize("width", [32, 64])
N = 64


def integers(rng, width, signed):
    """Numbers of all sizes, and the ends of the range."""
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
    bits = rng.integers(1, width + 1, N)
    found = [int(rng.integers(0, 1 << 62)) % (1 << int(b)) - (1 << int(b) - 1 if signed else 0) for b in bits]
    found[:4] = low, high, 0, 1
    return [min(max(x, low), high) for x in found]


def wrapped(x, width, signed):
    x &= (1 << width) - 1
    return x - (1 << width) if signed and x >> width - 1 else x


def floats(rng):
    """Of all exponents, subnormal ones, zeros, infinities and NaN."""
    x = rng.integers(0, 1 << 32, N, np.uint32).view(np.float32)
    x[:8] = 0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 1e-45, -1.5
    return x


def nearest(x, mode="rn"):
    """A fraction as float32, rounded once: half to even, or down (rm), up (rp), toward zero (rz)."""
    near = np.float32(float(x))
    around = [near, *(np.nextafter(near, np.float32(end)) for end in (np.inf, -np.inf))]
    around = [c for c in around if np.isfinite(c)]
    away = {float(c): Fraction(float(c)) - x for c in around}
    if mode == "rn":
        return min(around, key=lambda c: (abs(away[float(c)]), c.view(np.uint32) & 1))
    down = mode == "rm" or (mode == "rz" and x > 0)
    return max(c for c in around if away[float(c)] <= 0) if down else \
        min(c for c in around if away[float(c)] >= 0)


EXACT = {"add": lambda x, y: x + y, "sub": lambda x, y: x - y, "min": min, "max": max,
         "and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y,
         "mul.lo": lambda x, y: x * y,
         "div": lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1),
         "rem": lambda x, y: abs(x) % abs(y) * (1 if x >= 0 else -1)}


@WIDTHS
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_integers(rng, name, width, signed):
    x, y = integers(rng, width, signed), integers(rng, width, signed)[::-1]
    if name in ("div", "rem"):
        y = [v or 3 for v in y]
    kind = f"{'s' if signed else 'u'}{width}"
    code = f"{name}.b{width}" if name in ("and", "or", "xor") else f"{name}.{kind}"
    got = apply(code, kind, (kind, x), (kind, y))
    assert got.tolist() == [wrapped(EXACT[name](a, b), width, signed) for a, b in zip(x, y)]


@WIDTHS
@pytest.mark.parametrize("signed", [False, True])
def test_the_upper_half_of_a_product(rng, width, signed):
    kind = f"{'s' if signed else 'u'}{width}"
    x, y = integers(rng, width, signed), integers(rng, width, signed)[::-1]
    got = apply(f"mul.hi.{kind}", kind, (kind, x), (kind, y))
    assert got.tolist() == [a * b >> width for a, b in zip(x, y)]


@pytest.mark.parametrize("signed", [False, True])
def test_wide_products_and_sums_with_them(rng, signed):
    s = "s" if signed else "u"
    x, y, z = integers(rng, 32, signed), integers(rng, 32, signed)[::-1], integers(rng, 64, signed)
    assert apply(f"mul.wide.{s}32", f"{s}64", (f"{s}32", x), (f"{s}32", y)).tolist() == \
        [a * b for a, b in zip(x, y)]
    assert apply(f"mad.wide.{s}32", f"{s}64", (f"{s}32", x), (f"{s}32", y), (f"{s}64", z)).tolist() == \
        [wrapped(a * b + c, 64, signed) for a, b, c in zip(x, y, z)]
    assert apply(f"mad.lo.{s}32", f"{s}32", (f"{s}32", x), (f"{s}32", y), (f"{s}32", x)).tolist() == \
        [wrapped(a * b + a, 32, signed) for a, b in zip(x, y)]


@WIDTHS
@pytest.mark.parametrize("name", ["shl.b", "shr.u", "shr.s"])
def test_shifts_beyond_the_width_leave_nothing_but_the_sign(rng, name, width):
    signed = name[-1] == "s"
    x, n = integers(rng, width, signed), [0, 1, width - 1, width, width + 1, 2 ** 32 - 1] + [5] * (N - 6)
    kind = f"{'s' if signed else 'u'}{width}"
    want = [(a << min(b, width)) if name == "shl.b" else a >> min(b, width) for a, b in zip(x, n)]
    assert apply(name + str(width), kind, (kind, x), ("u32", n)).tolist() == \
        [wrapped(a, width, signed) for a in want]
    assert apply(name + str(width), kind, (kind, x), constants=(7,)).tolist() == \
        [wrapped(a << 7 if name == "shl.b" else a >> 7, width, signed) for a in x]


@given(seeds, st.integers(0, 70), st.integers(0, 70))
def test_fields_of_bits(seed, at, length):
    rng = np.random.default_rng(seed)
    for width in (32, 64):
        x, y = integers(rng, width, False), integers(rng, width, False)[::-1]
        mask = (1 << length) - 1
        kind = f"u{width}"
        assert apply(f"bfe.{kind}", kind, (kind, x), constants=(at, length)).tolist() == \
            [a >> at & mask for a in x]
        put = [(b & ~(mask << at) | (a & mask) << at) & (1 << width) - 1 for a, b in zip(x, y)]
        assert apply(f"bfi.b{width}", kind, (kind, x), (kind, y), constants=(at, length)).tolist() == put
        signs = [wrapped(a, width, True) for a in x]
        want = [a >> at for a in signs] if length else [0] * N
        if 0 < length <= width - at:
            want = [wrapped(a & mask, length, True) for a in want]
        assert apply(f"bfe.s{width}", f"s{width}", (f"s{width}", signs),
                     constants=(at, length)).tolist() == want


def test_bits_one_by_one(rng):
    x, y, z = (integers(rng, 32, False) for _ in range(3))
    u32 = [("u32", v) for v in (x, y, z)]
    assert apply("popc.b32", "u32", u32[0]).tolist() == [a.bit_count() for a in x]
    assert apply("clz.b32", "u32", u32[0]).tolist() == [32 - a.bit_length() for a in x]
    assert apply("brev.b32", "u32", u32[0]).tolist() == [int(f"{a:032b}"[::-1], 2) for a in x]
    assert apply("bfind.u32", "u32", u32[0]).tolist() == [(a.bit_length() - 1) % 2 ** 32 for a in x]
    assert apply("not.b32", "u32", u32[0]).tolist() == [a ^ 0xFFFFFFFF for a in x]
    for table in (0xEA, 0x96, 0xCA, 0x1):
        want = [sum((table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i
                    for i in range(32))
                for a, b, c in zip(x, y, z)]
        assert apply("lop3.b32", "u32", *u32, constants=(table,)).tolist() == want
    for name, f in (("l.wrap", lambda a, b, n: (a | b << 32) << n % 32 >> 32), ("r.clamp",
                    lambda a, b, n: (a | b << 32) >> min(n, 32))):
        assert apply(f"shf.{name}.b32", "u32", *u32).tolist() == \
            [f(a, b, n) & 0xFFFFFFFF for a, b, n in zip(x, y, z)]


def test_bytes(rng):
    x, y, z = (integers(rng, 32, False) for _ in range(3))
    both = [list(a.to_bytes(4, "little") + b.to_bytes(4, "little")) for a, b in zip(x, y)]
    want = []
    for eight, pick in zip(both, z):
        chosen = [(pick >> 4 * i & 15) for i in range(4)]
        want.append(sum((255 * (eight[n & 7] >> 7) if n & 8 else eight[n & 7]) << 8 * i
                        for i, n in enumerate(chosen)))
    assert apply("prmt.b32", "u32", ("u32", x), ("u32", y), ("u32", z)).tolist() == want
    for a_kind in "us":
        signs = [[wrapped(v, 8, True) for v in row] if a_kind == "s" else row for row in both]
        right = [[wrapped(v, 8, True) for v in row[4:]] for row in both]
        want = [wrapped(sum(p * q for p, q in zip(a[:4], b)) + c, 32, True)
                for a, b, c in zip(signs, right, z)]
        assert apply(f"dp4a.{a_kind}32.s32", "s32", ("u32", x), ("u32", y), ("u32", z)).tolist() == want


@given(seeds)
def test_fma_is_rounded_once(seed):
    rng = np.random.default_rng(seed)
    x, y = (np.where(np.isfinite(v), v, 1).astype(np.float32) for v in (floats(rng), floats(rng)[::-1]))
    with np.errstate(all="ignore"):                        # many sums that nearly vanish, or meet half-way
        z = np.where(rng.random(N) < 0.5, -x * y, floats(rng)).astype(np.float32)
        half = np.float32(2.0 ** -24)
    x[-2:], y[-2:], z[-2:] = 1 + half * 2, half * (1 + half * 2), 1
    z = np.where(np.isfinite(z), z, np.float32(1))
    exact = [Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)) for a, b, c in zip(x, y, z)]
    small = [i for i, e in enumerate(exact) if e and abs(e) < Fraction(float(np.finfo(np.float32).max)) / 2]
    for mode in ("rn", "rm", "rp", "rz"):
        got = apply(f"fma.{mode}.f32", "f32", ("f32", x), ("f32", y), ("f32", z))
        want = np.array([nearest(exact[i], mode) for i in small])
        np.testing.assert_array_equal(got[small], want, mode)


def test_a_sum_that_two_roundings_get_wrong():
    """x y = 2^-24 - 2^-70, a little less than half of the last place: float64 loses the little."""
    x, y, z = (np.float32(v) for v in (1 - 2.0 ** -23, 2.0 ** -24 * (1 + 2.0 ** -23), 1 + 2.0 ** -23))
    twice = np.float32(np.float64(x) * y + z)
    got = apply("fma.rn.f32", "f32", ("f32", [x]), ("f32", [y]), ("f32", [z]))[0]
    assert got == nearest(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))) != twice


def test_min_and_max_know_nan_and_the_sign_of_zero():
    nan = np.nan
    x, y = np.array([0.0, -0.0, nan, 1, nan], np.float32), np.array([-0.0, 0.0, 2, nan, nan], np.float32)
    low = apply("min.f32", "f32", ("f32", x), ("f32", y))
    high = apply("max.f32", "f32", ("f32", x), ("f32", y))
    np.testing.assert_array_equal(low, np.array([-0.0, -0.0, 2, 1, nan], np.float32))
    assert np.signbit(low[:2]).all()
    assert not np.signbit(high[:2]).any()
    assert np.isnan(apply("max.NaN.f32", "f32", ("f32", x), ("f32", y))[2:]).all()


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu",
                                  "geu"])
def test_comparisons_with_nan(rng, name):
    """The u ones hold where a number is missing, the others do not."""
    x, y = floats(rng), floats(rng)[::-1].copy()
    y[5] = x[5] = 2
    ordered = {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[name[:2]]
    nan = np.isnan(x) | np.isnan(y)
    want = ordered | nan if name.endswith("u") else ordered & ~nan
    np.testing.assert_array_equal(apply(f"setp.{name}.f32", "pred", ("f32", x), ("f32", y)), want)


def test_floats(rng):
    x, y = floats(rng), floats(rng)[::-1].copy()
    with np.errstate(all="ignore"):
        for name, want in (("add", x + y), ("sub", x - y), ("mul", x * y), ("div.rn", x / y), ("neg", -x),
                           ("sqrt.rn", np.sqrt(x)), ("rcp.rn", 1 / x), ("abs", np.abs(x)),
                           ("copysign", np.copysign(y, x))):
            pair = [("f32", x), ("f32", y)][:1 if name[:3] in ("neg", "sqr", "rcp", "abs") else 2]
            np.testing.assert_array_equal(apply(f"{name}.f32", "f32", *pair), want, name)
    small = np.array([1e-39, -1e-39, 1.0], np.float32)
    got = apply("add.ftz.f32", "f32", ("f32", small), ("f32", np.zeros(3)))
    assert got.tolist() == [0, 0, 1]
    assert np.signbit(apply("mul.ftz.f32", "f32", ("f32", small), ("f32", np.ones(3))))[1]
    assert apply("add.sat.f32", "f32", ("f32", [2, -1, 0.25]), ("f32", [0, 0, 0])).tolist() == [1, 0, 0.25]


@pytest.mark.parametrize("name", ["ex2", "lg2", "sin", "cos", "tanh", "rsqrt"])
def test_functions(rng, name):
    x = np.abs(rng.standard_normal(N)).astype(np.float32) + np.float32(0.1)
    f = {"ex2": lambda v: 2 ** v, "lg2": math.log2, "rsqrt": lambda v: v ** -0.5}.get(name) or getattr(math,
                                                                                                       name)
    got = apply(f"{name}.approx.f32", "f32", ("f32", x))
    np.testing.assert_allclose(got, [f(float(v)) for v in x], rtol=1e-7)


def test_bf16_and_halves(rng):
    import ml_dtypes
    x, y = rng.standard_normal((2, N)).astype(ml_dtypes.bfloat16)
    got = apply("add.bf16", "bf16", ("bf16", x.view(np.uint16)), ("bf16", y.view(np.uint16)))
    np.testing.assert_array_equal(got.view(ml_dtypes.bfloat16), x + y)
    a, b = rng.standard_normal((2, 2 * N)).astype(np.float16)
    got = apply("mul.f16x2", "b32", ("b32", a.view(np.uint32)), ("b32", b.view(np.uint32)))
    np.testing.assert_array_equal(got.view(np.float16), a * b)


def test_bf16_is_compared_as_numbers():
    """As bits, -1 would be more than 1, and NaN a number."""
    x = np.array([-1, 1, 0, np.nan], np.float32).view(np.uint32) >> 16
    y = np.array([1, -1, -0.0, 1], np.float32).view(np.uint32) >> 16
    pair = ("bf16", x.astype(np.uint16)), ("bf16", y.astype(np.uint16))
    for name, want in (("lt", [1, 0, 0, 0]), ("eq", [0, 0, 1, 0]), ("ne", [1, 1, 0, 0]),
                       ("neu", [1, 1, 0, 1])):
        assert apply(f"setp.{name}.bf16", "pred", *pair).tolist() == [bool(w) for w in want], name


def test_subnormal_numbers_are_compared_as_zero_with_ftz():
    x, y = np.full(2, 1e-40, np.float32), np.array([0, 1], np.float32)
    assert apply("setp.gt.f32", "pred", ("f32", x), ("f32", y)).tolist() == [True, False]
    assert apply("setp.gt.ftz.f32", "pred", ("f32", x), ("f32", y)).tolist() == [False, False]
