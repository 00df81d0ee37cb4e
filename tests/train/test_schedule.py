"""train/schedule: the numbers of the BitNet FAQ, the ends of every curve, a jump only where it is meant."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.config import TrainConfig
from bitnet_ref.train.schedule import in_first_half, lr_at, wd_at

FAQ = TrainConfig(lr=1.5e-3, lr_stage2=2 / 3, lr_end=1 / 50, warmup=375, steps=100_000, weight_decay=0.1)
NAMES = ("two-stage", "linear", "cosine", "constant")


@st.composite
def schedules(draw, names=NAMES):
    steps = draw(st.integers(2, 3000))
    return TrainConfig(steps=steps, warmup=draw(st.integers(0, steps // 2)), lr=draw(st.floats(1e-6, 1)),
                       lr_stage2=draw(st.floats(0.1, 1)), lr_end=draw(st.floats(0, 0.1)),
                       schedule=draw(st.sampled_from(names)))


# --- the published numbers ---------------------------------------------------------------------------------


def test_the_rate_jumps_at_half_way_as_in_the_figure_of_the_faq():
    assert f"{lr_at(49_999, FAQ):.2e}" == "7.68e-04"
    assert f"{lr_at(50_000, FAQ):.2e}" == "5.17e-04"


def test_the_two_peaks_of_the_faq_are_where_the_lines_would_start():
    """1.5e-3 and 1e-3 are reached only when both lines are drawn back to the end of the warm-up."""
    for a, b, peak in ((375, 40_000, 1.5e-3), (50_000, 90_000, 1e-3)):
        slope = (lr_at(b, FAQ) - lr_at(a, FAQ)) / (b - a)
        assert lr_at(a, FAQ) + slope * (375 - a) == pytest.approx(peak, rel=1e-9)
        assert lr_at(a, FAQ) + slope * (100_000 - a) == pytest.approx(3e-5, rel=1e-9)


def test_the_decay_of_the_faq_is_dropped_at_half_way():
    assert [wd_at(s, FAQ) for s in (0, 374, 49_999)] == [0.1] * 3
    assert [wd_at(s, FAQ) for s in (50_000, 99_999)] == [0.0] * 2


def test_the_rate_ends_at_the_published_one():
    assert lr_at(99_999, FAQ) == pytest.approx(3e-5, rel=1e-3)


# --- property ----------------------------------------------------------------------------------------------


@given(cfg=schedules())
def test_warm_up_is_a_line_from_above_zero_to_the_peak(cfg):
    for step in range(cfg.warmup):
        assert lr_at(step, cfg) == pytest.approx(cfg.lr * (step + 1) / cfg.warmup)
    if cfg.warmup:
        assert lr_at(cfg.warmup - 1, cfg) == pytest.approx(cfg.lr)
    if in_first_half(cfg.warmup, cfg) or cfg.schedule != "two-stage":
        assert lr_at(cfg.warmup, cfg) == pytest.approx(cfg.lr)


@given(cfg=schedules())
def test_no_step_has_a_rate_outside_zero_and_the_peak(cfg):
    rates = [lr_at(step, cfg) for step in range(cfg.steps)]
    assert min(rates) > 0
    assert max(rates) <= cfg.lr * (1 + 1e-12)


@given(cfg=schedules())
def test_the_rate_is_continuous_but_for_the_switch(cfg):
    """Between two steps it moves by no more than the steepest line; in two-stage, one step is let off."""
    steepest = cfg.lr * (math.pi / 2) / max(1, cfg.steps - cfg.warmup) * (1 + 1e-9)
    for step in range(max(1, cfg.warmup), cfg.steps):
        if cfg.schedule == "two-stage" and in_first_half(step - 1, cfg) != in_first_half(step, cfg):
            assert lr_at(step, cfg) <= lr_at(step - 1, cfg)
        else:
            assert abs(lr_at(step, cfg) - lr_at(step - 1, cfg)) <= steepest


@given(cfg=schedules(("two-stage", "linear", "cosine")))
def test_one_step_after_the_last_the_rate_would_be_the_end(cfg):
    assert lr_at(cfg.steps, cfg) == pytest.approx(cfg.lr * cfg.lr_end, abs=cfg.lr * 1e-12)
    assert lr_at(cfg.steps - 1, cfg) >= cfg.lr * cfg.lr_end * (1 - 1e-9)


@given(cfg=schedules(("two-stage", "linear", "cosine")))
def test_after_the_warm_up_the_rate_only_falls(cfg):
    rates = [lr_at(step, cfg) for step in range(cfg.warmup, cfg.steps)]
    assert rates == sorted(rates, reverse=True)


@given(cfg=schedules(("constant",)))
def test_constant_keeps_rate_and_decay(cfg):
    assert {lr_at(step, cfg) for step in range(cfg.warmup, cfg.steps)} == {cfg.lr}
    assert {wd_at(step, cfg) for step in range(cfg.steps)} == {cfg.weight_decay}


@given(cfg=schedules(("cosine",)))
def test_cosine_is_half_way_down_in_the_middle_and_keeps_the_decay(cfg):
    middle = (cfg.warmup + cfg.steps) / 2
    assert lr_at(middle, cfg) == pytest.approx(cfg.lr * (1 + cfg.lr_end) / 2)
    assert {wd_at(step, cfg) for step in range(cfg.steps)} == {cfg.weight_decay}


@given(cfg=schedules(("linear",)))
def test_linear_is_the_first_line_of_two_stage_to_the_end_and_keeps_the_decay(cfg):
    two = replace(cfg, schedule="two-stage")
    for step in range(cfg.steps):
        if in_first_half(step, cfg):
            assert lr_at(step, cfg) == lr_at(step, two)
        assert wd_at(step, cfg) == cfg.weight_decay
        assert lr_at(step, cfg) == lr_at(step, replace(two, lr_stage2=1.0))


@given(cfg=schedules(), until=st.floats(0, 1))
def test_the_decay_may_stop_elsewhere(cfg, until):
    on = [wd_at(step, replace(cfg, decay_until=until)) > 0 for step in range(cfg.steps)]
    assert on == sorted(on, reverse=True)
    assert sum(on) == math.ceil(until * cfg.steps)


@given(cfg=schedules(("two-stage",)))
def test_rate_and_decay_switch_at_the_same_step(cfg):
    off = [step for step in range(cfg.steps) if wd_at(step, cfg) == 0]
    assert off == list(range((cfg.steps + 1) // 2, cfg.steps))


@pytest.mark.parametrize("schedule", NAMES)
def test_without_warm_up_the_first_step_has_the_peak_rate(schedule):
    assert lr_at(0, TrainConfig(schedule=schedule, warmup=0, lr=0.25)) == 0.25


@pytest.mark.parametrize("schedule", NAMES)
def test_a_warm_up_longer_than_the_run_only_warms_up(schedule):
    cfg = TrainConfig(schedule=schedule, warmup=100, steps=10, lr=1.0)
    assert [lr_at(step, cfg) for step in range(10)] == pytest.approx([(step + 1) / 100 for step in range(10)])
