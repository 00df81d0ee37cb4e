"""bench/interval: intervals that hold the truth as often as they say, deltas whose sign means something."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.bench import interval
from bitnet_ref.bench.interval import Interval

BETTER = st.sampled_from(["higher", "lower"])
FIGURES = st.floats(0.1, 1e4)


def quotient(sums):
    return sums[..., 0] / sums[..., 1]


def skewed(rng, n):
    """Nats and bytes of windows: the truth of their quotient is 2."""
    size = rng.integers(50, 200, n)
    return np.stack([size * 2 * rng.gamma(2, 0.5, n), size], axis=1)


# ---- property ----

@given(FIGURES, BETTER)
def test_parity_is_zero(value, better):
    assert interval.delta(value, value, better) == 0


@given(FIGURES, FIGURES, st.floats(1.001, 3), BETTER)
def test_what_is_better_has_the_larger_delta(base, value, factor, better):
    low, high = (interval.delta(v, base, better) for v in (value, value * factor))
    assert (low < high) == (better == "higher")


@given(FIGURES, FIGURES, BETTER)
def test_the_sign_says_who_is_better(ours, theirs, better):
    wins = ours > theirs if better == "higher" else ours < theirs
    assert (interval.delta(ours, theirs, better) > 0) == wins


@given(FIGURES, st.floats(-0.01, 0.01), BETTER)
def test_small_deltas_change_their_sign_with_the_sides(base, share, better):
    """(1 + x) - 1 against 1 - 1 / (1 + x): they differ by x squared."""
    other = base * (1 + share)
    both = interval.delta(base, other, better) + interval.delta(other, base, better)
    assert abs(both) <= 100 * share ** 2 * 1.02 + 1e-9


@given(st.integers(0, 99), BETTER)
def test_the_same_answers_are_no_difference_at_all(seed, better):
    items = skewed(np.random.default_rng(seed), 20)
    assert interval.paired([items], [items], quotient, better) == (0, 0, 0)


@given(st.integers(0, 99), st.floats(0.5, 2))
def test_twice_the_figure_twice_the_ends(seed, factor):
    items = skewed(np.random.default_rng(seed), 25)
    plain = interval.bootstrap(items, quotient, resamples=200)
    more = interval.bootstrap(items * [factor, 1], quotient, resamples=200)
    assert more == pytest.approx([factor * end for end in plain])


@given(st.integers(0, 99))
def test_the_figure_lies_between_the_ends_and_a_seed_gives_them_again(seed):
    items = skewed(np.random.default_rng(seed), 25)
    found = interval.bootstrap(items, quotient, seed=seed, resamples=300)
    assert found.low <= found.value <= found.high
    assert found.low < found.high
    assert found == interval.bootstrap(items, quotient, seed=seed, resamples=300)
    assert found.value == quotient(items.sum(axis=0))


@pytest.mark.parametrize("n", [30, 80])
def test_nineteen_of_twenty_intervals_hold_the_truth(n):
    """Of skewed quotients; the standard error of the share is 1.5 points."""
    rng = np.random.default_rng(n)
    held = [interval.bootstrap(skewed(rng, n), quotient, trial, 400).holds(2) for trial in range(200)]
    assert 0.90 <= np.mean(held) <= 0.985


def test_accuracies_too():
    rng = np.random.default_rng(5)
    answers = (np.stack([rng.random(100) < 0.9, np.ones(100)], axis=1) for _ in range(200))
    held = [interval.bootstrap(a, quotient, trial, 400).holds(0.9) for trial, a in enumerate(answers)]
    assert 0.90 <= np.mean(held) <= 0.985


def test_pairs_see_what_two_samples_do_not():
    """Windows differ by far more than the models do, and in the same way for both."""
    rng = np.random.default_rng(7)
    theirs = skewed(rng, 100)
    ours = theirs * np.stack([rng.normal(0.98, 0.01, 100), np.ones(100)], axis=1)
    pairs = interval.paired([ours], [theirs], quotient, "lower")
    alone = interval.apart([ours], [theirs], quotient, "lower")
    assert pairs.value == pytest.approx(alone.value)
    assert pairs.decided
    assert not alone.decided


def test_more_items_say_more():
    rng = np.random.default_rng(3)
    few, many = (interval.bootstrap(skewed(rng, n), quotient) for n in (50, 1000))
    assert many.high - many.low < (few.high - few.low) / 3


def test_a_mean_over_seeds_of_pairs():
    rng = np.random.default_rng(11)
    theirs = [skewed(rng, 40) for _ in range(2)]
    ours = [items * [factor, 1] for items, factor in zip(theirs, (0.9, 0.8))]
    found = interval.paired(ours, theirs, quotient, "lower")
    assert found == pytest.approx((15, 15, 15))


def test_sets_that_do_not_pair_are_a_mean_over_seeds_too():
    rng = np.random.default_rng(12)
    theirs = [skewed(rng, 40) for _ in range(2)]
    ours = [items[:30] * [factor, 1] for items, factor in zip(theirs, (0.9, 0.4))]
    found = interval.apart(ours, theirs, quotient, "lower")
    each = [interval.delta(quotient(o.sum(axis=0)), quotient(t.sum(axis=0)), "lower")
            for o, t in zip(ours, theirs)]
    assert found.value == pytest.approx(sum(each) / 2)
    assert found.low < found.value < found.high


@pytest.mark.filterwarnings("error")
def test_a_quotient_of_nothing_is_not_known():
    """One right answer of 300: many a draw has none."""
    ours, theirs = (np.stack([np.arange(300) < n, np.ones(300)], axis=1) for n in (60, 1))
    for found in (interval.paired([ours], [theirs], quotient, "higher"),
                  interval.apart([ours], [theirs], quotient, "higher")):
        assert found.value == pytest.approx(5900)
        assert not found.known
    assert interval.paired([ours], [ours], quotient, "higher").known


# ---- by hand ----

def test_the_ends_are_efrons():
    """The same draws, each step spelt out: 30 exponential values, whose mean is skewed to the right."""
    values = np.random.default_rng(2).exponential(1, 30)
    items, normal = np.stack([values, np.ones(30)], axis=1), NormalDist()
    found = interval.bootstrap(items, quotient, seed=4)
    draws = sorted(float(s / n) for s, n in interval.resampled(items, 4))
    mean = sum(values) / 30
    z0 = normal.inv_cdf(sum(d < mean for d in draws) / len(draws))
    without = [(sum(values) - v) / 29 for v in values]
    away = [sum(without) / 30 - w for w in without]
    a = sum(d ** 3 for d in away) / (6 * sum(d ** 2 for d in away) ** 1.5)
    assert a > 0.02
    for end, alpha in ((found.low, 0.025), (found.high, 0.975)):
        z = z0 + normal.inv_cdf(alpha)
        assert end == pytest.approx(np.quantile(draws, normal.cdf(z0 + z / (1 - a * z))), rel=1e-9)
    assert (found.low, found.high) > tuple(np.quantile(draws, (0.025, 0.975)))



def test_seeds_by_students_table():
    found = interval.over_seeds([2.0, 2.2, 2.1], [2.0, 2.0, 2.0], "lower")
    half = 4.303 * 5 / 3 ** 0.5                            # deltas 0, -10, -5: deviation 5
    assert found == pytest.approx((-5, -5 - half, -5 + half))
    assert not found.decided


def test_rounds_by_students_table_of_logarithms():
    """Rates 2, 1/2 and 1 times theirs: parity, where a mean of ratios would say 17 % better."""
    half = math.exp(4.303 * math.log(2) / 3 ** 0.5)
    for better in ("higher", "lower"):
        found = interval.over_rounds([2.0, 0.5, 1.0], [1.0, 1.0, 1.0], better)
        ends = [100 * (half - 1), 100 * (1 / half - 1)]
        low, high = sorted(ends if better == "higher" else [-end for end in ends])
        assert found == pytest.approx((0, low, high), abs=1e-9)
    assert interval.over_rounds([1.0, 1.0], [2.0, 2.0], "lower") == pytest.approx((50, 50, 50))
    assert interval.over_rounds([2.0, 2.0], [1.0, 1.0], "higher") == pytest.approx((100, 100, 100))


def test_rounds_say_the_same_with_the_sides_exchanged():
    """Twins whose times are noise: neither side wins on average, and each pair is judged alike both ways."""
    rng = np.random.default_rng(3)
    times = rng.lognormal(0, 0.3, (2000, 2, 3))
    for better in ("higher", "lower"):
        logs, verdicts = [], []
        for ours, theirs in times.tolist():
            there, back = (interval.over_rounds(*sides, better) for sides in ((ours, theirs), (theirs, ours)))
            for a, b in ((there.value, back.value), (there.low, back.high), (there.high, back.low)):
                assert (1 + a / 100) * (1 + b / 100) == pytest.approx(1) or better == "lower"
                assert (1 - a / 100) * (1 - b / 100) == pytest.approx(1) or better == "higher"
            assert there.decided == back.decided
            logs.append(math.log(1 + there.value / 100) if better == "higher" else
                        -math.log(1 - there.value / 100))
            verdicts.append(there.decided)
        assert abs(np.mean(logs)) < 3 * np.std(logs) / len(logs) ** 0.5
        assert 0.035 < np.mean(verdicts) < 0.065           # the error that 95 % allows
    means = [np.mean([interval.delta(o, t, "higher") for o, t in zip(*sides)]) for sides in times.tolist()]
    assert np.mean(means) > 5                              # what a mean of ratios would say of twins


def test_the_outer_ends_of_both_and_errors_that_add_as_squares():
    assert interval.hull(Interval(1, 0.5, 2), Interval(1, 0.7, 3)) == (1, 0.5, 3)
    found = interval.difference(Interval(100, 97, 103), Interval(90, 86, 94), "higher")
    assert found == pytest.approx((-10, -15, -5))


@pytest.mark.parametrize(("ends", "decided"), [((1, 0.1, 2), True), ((-1, -2, -0.1), True),
                                               ((1, -0.1, 2), False), ((0, 0, 0), False)])
def test_decided(ends, decided):
    assert Interval(*ends).decided == decided


# ---- refused ----

def test_one_item_has_no_interval():
    with tiny.refusal("at least 2 items"):
        interval.bootstrap(np.ones((1, 2)), quotient)


@pytest.mark.parametrize("seeds", [([1.0], [1.0]), ([1.0] * 6, [1.0] * 6), ([1.0, 2.0], [1.0])])
def test_seeds_without_a_table_are_refused(seeds):
    for made in (interval.over_seeds, interval.over_rounds):
        with tiny.refusal("pairs must be 2 to 5"):
            made(*seeds, "higher")
