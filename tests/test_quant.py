"""quant: the official rule to the last code, against plain Python numbers; ties, zeros, extremes and poison.

The scalar twin below is written from the papers' formulas, not from the code: one number at a time, Python's
own round() (half to even), and float32 emulated by rounding after every operation.
"""

import math
import struct
import warnings

import numpy as np
import pytest
from against_golden import golden_test
from hypothesis import given
from hypothesis import strategies as st
from strategies import dtypes, dyadic, rows, seeds

from bitnet_ref.checks import CheckError
from bitnet_ref.quant import FLOOR, absmax_int8, absmean_ternary, dequantise, ternary_stats

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def rounding_to(dtype):
    """Python float -> the nearest number of dtype."""
    return float if dtype is np.float64 else lambda v: struct.unpack("f", struct.pack("f", v))[0]


def scalar_absmean_ternary(w, dtype, rule):
    """Rows of trits, and the scale."""
    near, flat = rounding_to(dtype), [float(v) for v in w.reshape(-1)]
    mean = near(math.fsum(abs(v) for v in flat) / len(flat))
    if rule == "official":
        scale = max(mean, near(1e-5))
        inverse = near(1 / scale)
        scaled = [near(v * inverse) for v in flat]
    else:
        scale = near(mean + near(1e-5))
        scaled = [near(v / scale) for v in flat]
    return np.array([max(-1, min(1, round(v))) for v in scaled]).reshape(w.shape), scale


def scalar_absmax_int8(row, dtype):
    """Codes and scale of one row."""
    near, row = rounding_to(dtype), [float(v) for v in row]
    absmax = max(max(abs(v) for v in row), near(1e-5))
    s = near(127 / absmax)
    return [max(-128, min(127, round(near(v * s)))) for v in row], near(absmax / 127)


# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("quant")


# --- against the scalar twin --------------------------------------------------------------------------------


@given(data=st.data(), dtype=dtypes, rule=st.sampled_from(["official", "paper"]))
def test_trits_equal_the_scalar_twin(data, dtype, rule):
    w = data.draw(dyadic(dtype))
    w_q, w_scale = absmean_ternary(w, rule)
    want_q, want_scale = scalar_absmean_ternary(w, dtype, rule)
    assert w_q.dtype == np.int8
    assert w_scale.dtype == dtype
    np.testing.assert_array_equal(w_q, want_q)
    assert w_scale == want_scale


@given(data=st.data(), dtype=dtypes)
def test_codes_equal_the_scalar_twin(data, dtype):
    x = data.draw(rows(dtype))
    x_q, x_scale = absmax_int8(x)
    assert (x_q.dtype, x_scale.dtype, x_scale.shape) == (np.int8, dtype, (len(x), 1))
    for got_q, got_scale, row in zip(x_q, x_scale, x):
        want_q, want_scale = scalar_absmax_int8(row, dtype)
        assert got_q.tolist() == want_q
        assert got_scale == want_scale


@BOTH
def test_a_million_random_codes_equal_the_scalar_twin(dtype, rng):
    """Multiplying by 127/absmax is not dividing by absmax/127: a few codes in a million differ."""
    x = rng.normal(size=(40, 2500)).astype(dtype)
    x_q, _ = absmax_int8(x)
    assert x_q.tolist() == [scalar_absmax_int8(row, dtype)[0] for row in x]


@BOTH
def test_weights_are_multiplied_by_the_reciprocal(dtype):
    """mean|w| = 31: the number after 15.5 is above half the scale, but times 1/31 it is rounded to a tie."""
    w = np.array([[np.nextafter(dtype(15.5), dtype(16)), 46.5]], dtype)
    w_q, w_scale = absmean_ternary(w)
    assert w_scale == 31
    assert w[0, 0] / w_scale > 0.5
    assert w_q.tolist() == [[0, 1]]


# --- ties ---------------------------------------------------------------------------------------------------


@BOTH
def test_a_weight_at_half_the_scale_is_zero(dtype):
    """mean|w| = 1 exactly, so 0.5 is a tie and goes to the even 0; the next number above goes to 1."""
    above = np.nextafter(dtype(0.5), dtype(1))
    w = np.array([[0.5, -0.5, above, -above, 1.5, -1.5, 2.0, -2.0]], dtype)
    w[0, 7] += np.abs(w).sum() - 8                      # keep the mean at 1 in spite of `above`
    w_q, w_scale = absmean_ternary(w)
    assert w_scale == 1
    assert w_q.tolist() == [[0, 0, 1, -1, 1, -1, 1, -1]]


@BOTH
def test_an_activation_at_half_a_code_goes_to_the_even_code(dtype):
    """The largest is 127, so 127/absmax = 1 and the values are the scaled ones."""
    x = np.array([[127, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -126.5, 125.5, 126.5]], dtype)
    x_q, x_scale = absmax_int8(x)
    assert x_scale == 1
    assert x_q.tolist() == [[127, 0, 2, 2, 4, 0, -2, -2, -126, 126, 126]]


def test_the_two_rules_differ_near_ties_only(rng):
    """mean + 1e-5 against mean: a weight flips only if |w|/mean lies between 1/2 and 1/2 (1 + 1e-5/mean)."""
    w = rng.normal(0, 1e-3, (200, 500))
    (official, scale), (paper, paper_scale) = absmean_ternary(w), absmean_ternary(w, "paper")
    differ = official != paper
    assert paper_scale == np.mean(np.abs(w)) + 1e-5
    assert scale == np.mean(np.abs(w))
    assert 0 < np.count_nonzero(differ) < 0.01 * w.size
    assert np.all(np.abs(np.abs(w[differ]) / scale - 0.5) <= 0.5 * 1e-5 / scale)


def test_an_unknown_rule_is_refused():
    with pytest.raises(CheckError, match="rule must be one of official, paper; got 'papper'"):
        absmean_ternary(np.ones((2, 2)), "papper")


# --- zeros, tiny rows, outliers -----------------------------------------------------------------------------


@BOTH
def test_a_row_of_zeros_has_codes_zero(dtype):
    x_q, x_scale = absmax_int8(np.zeros((2, 3), dtype))
    assert not x_q.any()
    assert np.all(x_scale == dtype(FLOOR) / 127)


@BOTH
@pytest.mark.parametrize("rule", ["official", "paper"])
def test_a_tensor_of_zeros_has_trits_zero(dtype, rule):
    w_q, w_scale = absmean_ternary(np.zeros((2, 3), dtype), rule)
    assert not w_q.any()
    assert w_scale == dtype(FLOOR)


@BOTH
@pytest.mark.parametrize("tiny", [1e-35, 1e-42])
def test_rows_far_below_the_floor_vanish(dtype, tiny):
    """Dead neurons of the real checkpoint lie at 1e-35; below the floor a scale stops shrinking."""
    x = np.array([[tiny, -tiny], [1.0, -0.5]], dtype)
    x_q, x_scale = absmax_int8(x)
    assert x_q.tolist() == [[0, 0], [127, -64]]
    assert x_scale[0] == dtype(FLOOR) / 127
    w_q, w_scale = absmean_ternary(x[:1])
    assert (w_q.any(), w_scale) == (False, dtype(FLOOR))


def test_the_floor_is_on_the_absmax_and_on_the_absmean():
    x_q, _ = absmax_int8(np.array([[0.4e-5, -0.25e-5]]))
    assert x_q.tolist() == [[51, -32]]                  # 50.8 and 31.75: the largest is not 127
    w_q, w_scale = absmean_ternary(np.array([[0.6e-5, -0.4e-5]]))
    assert w_q.tolist() == [[1, 0]]
    assert w_scale == FLOOR


@BOTH
def test_an_outlier_takes_the_whole_range_of_its_row_only(dtype):
    x = np.array([[1e4, 39.0, -40.0, 0.1], [1.0, 0.5, -0.25, 0.1]], dtype)
    x_q, _ = absmax_int8(x)
    assert x_q.tolist() == [[127, 0, -1, 0], [127, 64, -32, 13]]
    w = np.full((100, 100), 0.01, dtype)
    w[0, 0] = 1e4
    w_q, w_scale = absmean_ternary(w)
    assert w_scale == pytest.approx(1.01, rel=1e-4)
    assert np.count_nonzero(w_q) == w_q[0, 0] == 1      # everything else is below half of the inflated mean


# --- poison -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_row_is_marked_and_leaves_the_others_unharmed(dtype, bad, rng):
    x = rng.normal(size=(3, 8)).astype(dtype)
    clean_q, clean_scale = absmax_int8(x)
    x[1, 4] = bad
    before = x.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x_q, x_scale = absmax_int8(x)
    assert np.isnan(x_scale[1, 0])
    assert not x_q[1].any()
    assert (x_q.dtype, x_scale.dtype) == (np.int8, dtype)
    np.testing.assert_array_equal(x_q[[0, 2]], clean_q[[0, 2]])
    np.testing.assert_array_equal(x_scale[[0, 2]], clean_scale[[0, 2]])
    np.testing.assert_array_equal(x, before)
    assert np.isnan(dequantise(x_q, x_scale)[1]).all()


@BOTH
@pytest.mark.parametrize("rule", ["official", "paper"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_tensor_poisons_all_of_itself(dtype, rule, bad, rng):
    w = rng.normal(size=(4, 8)).astype(dtype)
    w[2, 3] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w_q, w_scale = absmean_ternary(w, rule)
    assert np.isnan(w_scale)
    assert (w_q.dtype, w_scale.dtype, w_q.any()) == (np.int8, dtype, False)
    assert np.isnan(dequantise(w_q, w_scale)).all()


@given(data=st.data(), dtype=dtypes)
def test_no_finite_input_warns_or_changes(data, dtype):
    x = data.draw(rows(dtype, limit=2.0**100))
    before = x.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x_q, x_scale = absmax_int8(x)
        w_q, w_scale = absmean_ternary(x)
    np.testing.assert_array_equal(x, before)
    assert np.abs(x_q.astype(int)).max() <= 127
    assert np.abs(w_q).max() <= 1
    assert np.isfinite(x_scale).all()
    assert np.isfinite(w_scale)


# --- properties ---------------------------------------------------------------------------------------------


@given(data=st.data(), dtype=dtypes)
def test_quantising_twice_is_quantising_once(data, dtype):
    x = data.draw(rows(dtype))
    x_q, x_scale = absmax_int8(x)
    np.testing.assert_array_equal(absmax_int8(dequantise(x_q, x_scale))[0], x_q)
    w_q, w_scale = absmean_ternary(x)
    np.testing.assert_array_equal(absmean_ternary(dequantise(w_q, w_scale))[0], w_q)


@given(seed=seeds, power=st.integers(-8, 20), dtype=dtypes)
def test_a_power_of_two_moves_the_scale_and_no_code(seed, power, dtype):
    x = np.random.default_rng(seed).normal(size=(5, 9)).astype(dtype)
    times = dtype(2.0**power)
    for quantise in (absmax_int8, absmean_ternary):
        (q, scale), (q2, scale2) = quantise(x), quantise(x * times)
        np.testing.assert_array_equal(q, q2)
        np.testing.assert_array_equal(scale * times, scale2)


@given(seed=seeds, times=st.floats(0.01, 1e6))
def test_any_factor_moves_no_code_that_is_away_from_a_tie(seed, times):
    x = np.random.default_rng(seed).normal(size=(5, 9))
    for quantise, inverse in ((absmax_int8, 127 / np.abs(x).max(axis=1, keepdims=True)),
                              (absmean_ternary, 1 / np.abs(x).mean())):
        scaled = x * inverse
        clear = np.abs(scaled - np.floor(scaled) - 0.5) > 1e-9
        np.testing.assert_array_equal(quantise(x)[0][clear], quantise(x * times)[0][clear])


@given(data=st.data(), dtype=dtypes)
def test_the_sign_of_the_input_is_the_sign_of_the_code(data, dtype):
    """Rounding half to even and both clamps are symmetric."""
    x = data.draw(rows(dtype))
    np.testing.assert_array_equal(absmax_int8(-x)[0], -absmax_int8(x)[0])
    np.testing.assert_array_equal(absmean_ternary(-x)[0], -absmean_ternary(x)[0])


@given(seed=seeds)
def test_what_comes_back_is_within_half_a_step(seed):
    x = np.random.default_rng(seed).normal(size=(4, 33))
    x_q, x_scale = absmax_int8(x)
    assert np.all(np.abs(dequantise(x_q, x_scale) - x) <= x_scale * 0.5 * (1 + 1e-12))
    assert np.all(np.abs(x_q.astype(int)).max(axis=1) == 127)


@given(seed=seeds)
def test_rows_are_quantised_on_their_own(seed):
    x = np.random.default_rng(seed).normal(size=(2, 3, 7))
    x_q, x_scale = absmax_int8(x)
    for at in np.ndindex(2, 3):
        q, scale = absmax_int8(x[at])
        np.testing.assert_array_equal(x_q[at], q)
        np.testing.assert_array_equal(x_scale[at], scale)


@BOTH
def test_dequantise_keeps_the_scales_dtype(dtype):
    q = np.array([[-1, 0, 127]], np.int8)
    assert dequantise(q, dtype(0.5)).dtype == dtype
    assert dequantise(q, np.full((1, 1), 0.5, dtype)).tolist() == [[-0.5, 0.0, 63.5]]


# --- what a ternary matrix is made of -----------------------------------------------------------------------


def test_stats_of_known_matrices():
    even = ternary_stats(np.array([[-1, 0, 1]], np.int8), np.float32(0.5))
    assert even[:4] == (1 / 3, 1 / 3, 1 / 3, 0.5)
    assert even.entropy == pytest.approx(math.log2(3), rel=1e-15)
    assert ternary_stats(np.array([[-1, -1, 1, 0]], np.int8), 1.0) == (0.5, 0.25, 0.25, 1.0, 1.5)
    zero = ternary_stats(np.zeros((2, 2), np.int8), 1e-5)
    assert zero == (0.0, 1.0, 0.0, 1e-5, 0.0)
    assert not math.copysign(1, zero.entropy) < 0       # 0, not -0: it is printed
    assert ternary_stats(np.array([[1, -1]], np.int8), 1.0).entropy == 1.0
    assert all(type(v) is float for v in zero)


@given(seed=seeds, p=st.floats(0, 1))
def test_fractions_sum_to_one_and_entropy_is_at_most_log2_of_3(seed, p):
    w_q = np.random.default_rng(seed).choice([-1, 0, 1], size=(7, 11), p=[p / 2, 1 - p, p / 2])
    stats = ternary_stats(w_q, 1.0)
    assert stats.minus + stats.zero + stats.plus == pytest.approx(1, rel=1e-15)
    assert 0 <= stats.entropy <= math.log2(3) * (1 + 1e-15)
