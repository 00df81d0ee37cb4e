"""train/stability: the score is its formula, the verdicts are the policy, and a resumed guard is the same."""

import json
import math
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.checks import CheckError, GaveUp, NonFiniteError
from bitnet_ref.train.stability import (
    BACKOFF,
    BAD_STEPS,
    LEAST,
    LOSS_SPREAD,
    NORM_SPREAD,
    RAISED_STEPS,
    RECOVERY,
    ROLLBACKS,
    STUCK_STEPS,
    WINDOW,
    Guard,
    Verdict,
    ZScore,
)

APPLY, SKIP, ROLLBACK = Verdict


def report(loss=4.0, norm=0.5, bad=None):
    return SimpleNamespace(loss=loss, norm=norm, bad=bad)


class Driver:
    """A run in which only the guard is real: losses come in, verdicts go out, steps are counted."""

    def __init__(self, guard=None, step=0):
        self.guard, self.step, self.rng = guard or Guard(), step, np.random.default_rng(0)

    def see(self, loss=None, norm=None, bad=None, broken=None):
        loss = 4.0 + self.rng.normal() * 0.1 if loss is None else loss
        norm = 0.5 * math.exp(self.rng.normal() * 0.1) if norm is None else norm
        verdict = self.guard.judge(report(loss, norm, bad), self.step)
        if verdict is APPLY:
            self.step += 1
            verdict = self.guard.settle(broken, self.step)
        if verdict is ROLLBACK:
            self.step = max(0, self.guard.since - 1)
        return verdict

    def quiet(self, n=WINDOW):
        assert [self.see() for _ in range(n)] == [APPLY] * n
        return self


# --- the score ---------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=LEAST, max_size=2 * WINDOW), st.floats(-1e3, 1e3))
def test_a_score_is_its_formula_over_the_last_values(values, x):
    score = ZScore(0.1)
    for v in values:
        score.enter(v)
    last = np.array(values[-WINDOW:])
    spread = max(math.sqrt(sum((b - a) ** 2 for a, b in pairwise(last)) / (len(last) - 1) / 2), 0.1)
    assert score.of(x) == pytest.approx((x - last.mean()) / spread, rel=1e-9, abs=1e-9)
    assert score.values == values[-WINDOW:]                # asking changed nothing


def test_there_is_no_score_before_there_is_a_window():
    score = ZScore(0.1)
    for n in range(LEAST):
        assert score.of(1e9) is None, n
        score.enter(1.0)
    assert score.of(2.0) == pytest.approx(10)


# --- the verdicts ------------------------------------------------------------------------------------------


def test_noise_of_three_deviations_and_a_falling_loss_are_left_alone():
    driver = Driver()
    for n in range(600):
        z = driver.rng.standard_normal()
        loss = 4 + 4 * math.exp(-n / 80) - 0.5 * (n > 300) + 0.1 * float(np.clip(z, -3, 3))
        assert driver.see(loss) is APPLY, n
    assert driver.guard.factor == 1.0


@pytest.mark.parametrize("bad", [{"loss": 6.0}, {"norm": 500.0}, {"bad": "the loss; got nan"}], ids=str)
def test_an_isolated_bad_batch_is_skipped_and_leaves_no_trace(bad):
    driver, other = Driver().quiet(), Driver().quiet()
    before = driver.guard.state()
    assert driver.see(**{"loss": 4.0, "norm": 0.5, **bad}) is SKIP
    assert driver.guard.why
    assert driver.see(4.0, 0.5) is other.see(4.0, 0.5) is APPLY
    assert driver.guard.state() == {**other.guard.state(), "since": driver.step - 1}
    assert driver.guard.state()["loss"][:-1] == before["loss"][1:]


def test_what_is_not_finite_is_skipped_from_the_first_step_on():
    driver = Driver()
    assert driver.see(1e9, 1e9) is APPLY                   # no window yet
    assert driver.see(float("nan"), float("nan"), bad="it") is SKIP
    assert driver.guard.z == {"loss_z": None, "norm_z": None}
    assert driver.guard.state()["loss"] == [1e9]


def test_a_loss_far_below_its_window_or_a_vanishing_norm_is_no_trouble():
    driver = Driver().quiet()
    assert driver.see(0.1, 0.0) is APPLY


def test_many_bad_steps_in_a_row_roll_back_to_before_the_first():
    driver = Driver().quiet()
    assert [driver.see(9.0) for _ in range(BAD_STEPS)] == [SKIP] * (BAD_STEPS - 1) + [ROLLBACK]
    assert (driver.guard.since, driver.guard.factor) == (WINDOW, BACKOFF)
    assert f"{BAD_STEPS} bad steps in a row" in driver.guard.why


def test_a_good_step_between_ends_the_row():
    driver = Driver().quiet()
    for _ in range(3):
        assert [driver.see(9.0) for _ in range(BAD_STEPS - 1)] == [SKIP] * (BAD_STEPS - 1)
        assert driver.see() is APPLY


def test_a_loss_that_stays_high_rolls_back_although_no_step_of_it_is_extreme():
    driver = Driver().quiet()
    assert driver.guard.calm()
    verdicts = [driver.see(4.45, 0.5) for _ in range(RAISED_STEPS)]
    assert verdicts == [APPLY] * (RAISED_STEPS - 1) + [ROLLBACK]
    assert driver.guard.since == WINDOW


def test_a_score_sees_through_a_steady_fall():
    """The spread of neighbours is the noise; the deviation of all values would be mostly the fall."""
    score, rng = ZScore(1e-9), np.random.default_rng(0)
    for n in range(WINDOW):
        score.enter(6 - 0.02 * n + 0.05 * rng.standard_normal())
    z = score.of(7.0)
    assert (7 - np.mean(score.values)) / z == pytest.approx(0.05, rel=0.3)
    assert np.std(score.values) > 0.3


def test_a_loss_that_climbs_until_steps_are_bad_rolls_back_to_before_the_climb():
    driver = Driver().quiet()
    verdicts = [driver.see(min(4.3 + 0.15 * n, 9.0), 0.5) for n in range(3 * BAD_STEPS)]
    first = verdicts.index(ROLLBACK)
    assert SKIP in verdicts[:first]
    assert APPLY in verdicts[:verdicts.index(SKIP)]
    assert driver.guard.furthest == WINDOW                 # where it left its window


def test_right_after_a_rollback_the_data_get_longer_to_become_good():
    driver = Driver().quiet()
    while driver.see(9.0) is not ROLLBACK:
        pass
    step = driver.step
    assert [driver.see(9.0) for _ in range(STUCK_STEPS)] == [SKIP] * (STUCK_STEPS - 1) + [ROLLBACK]
    assert driver.step == step                             # the checkpoint is not what is suspected


def test_the_rate_is_halved_by_each_rollback_and_recovers_in_a_stated_number_of_updates():
    driver = Driver().quiet()
    for n in (1, 2):
        while driver.see(9.0) is not ROLLBACK:
            pass
        assert driver.guard.factor == pytest.approx(BACKOFF ** n, rel=0.02)
        driver.quiet(1)
    driver.guard.factor = BACKOFF
    driver.quiet(RECOVERY - 1)
    assert BACKOFF < driver.guard.factor < 1
    driver.quiet(2)
    assert driver.guard.factor == 1.0                      # exactly, so that the rate is the schedule's again


def until_it_gives_up(driver, **bad):
    verdicts = []
    try:
        while len(verdicts) < 10 * STUCK_STEPS:
            verdicts.append(driver.see(**bad))
    except CheckError as error:
        return verdicts.count(ROLLBACK), error
    pytest.fail("it never did")


@pytest.mark.parametrize("bad", [
    {"loss": 9.0}, {"bad": "the loss of step 9 must be finite; got nan, first in the weight x"}], ids=str)
def test_it_gives_up_with_an_error_that_names_what_is_wrong(bad):
    rolled_back, error = until_it_gives_up(Driver().quiet(), **bad)
    assert rolled_back == ROLLBACKS
    word = bad.get("bad", "a run must get past step")
    tiny.assert_three_parts(error, word, f"after {ROLLBACKS} rollbacks that did not help", "lower --lr")
    assert type(error) is (NonFiniteError if "bad" in bad else GaveUp)


def test_a_run_that_gets_well_past_its_trouble_has_all_its_tries_again():
    driver = Driver().quiet()
    for _ in range(2 * ROLLBACKS):
        while driver.see(9.0) is not ROLLBACK:
            pass
        driver.quiet(RECOVERY + 2)
    assert driver.guard.tries == 0
    for _ in range(ROLLBACKS):                             # and one that does not, has not
        while driver.see(9.0) is not ROLLBACK:
            pass
        driver.step = 0
        driver.quiet(RECOVERY + 2)
    assert driver.guard.tries == ROLLBACKS


def test_parameters_that_are_not_finite_roll_back_at_once():
    driver = Driver().quiet()
    assert driver.see(broken="the sum of the parameters must be finite; got inf") is ROLLBACK
    assert driver.guard.since == WINDOW + 1                # a checkpoint of that step would hold them


def test_switched_off_it_ends_the_run_where_something_is_not_finite_and_nowhere_else():
    off = Driver(Guard(on=False)).quiet()
    assert [off.see(99.0, 99.0) for _ in range(2 * BAD_STEPS)] == [APPLY] * (2 * BAD_STEPS)
    for bad in ({"bad": "the loss must be finite; got nan"}, {"broken": "the sum must be finite; got inf"}):
        with pytest.raises(NonFiniteError) as error:
            off.see(4.0, **bad)
        tiny.assert_three_parts(error.value, *bad.values(), "lower --lr")


# --- its state ---------------------------------------------------------------------------------------------


def replay(guard, seen):
    """What `guard` says to reports of (loss, norm, step after an update or before it)."""
    for loss, norm, step in seen:
        verdict = guard.judge(report(loss, norm), step)
        yield guard.settle(None, step + 1) if verdict is APPLY else verdict


def test_a_guard_restored_from_json_judges_the_same_wherever_it_was_saved():
    """Through skips, both kinds of rollback, the way back up, and until it gives up."""
    driver, seen, states, verdicts = Driver(), [], [], []
    noise = [None] * 10
    script = noise * 7 + [9.0] * (BAD_STEPS + 20) + noise + [4.7] * RAISED_STEPS + noise * 6 + [9.0] * 700
    with pytest.raises(CheckError) as end:                          # noqa: PT012
        for loss in script:
            loss = 4.0 + driver.rng.normal() * 0.1 if loss is None else loss
            states.append(json.dumps(driver.guard.state()))
            seen.append((loss, 0.5, driver.step))
            verdicts.append(driver.see(loss, 0.5))
    assert verdicts.count(ROLLBACK) >= ROLLBACKS
    assert json.loads(states[-1])["tries"] == ROLLBACKS
    for cut in [*range(0, len(states) - 1, 9), len(states) - 1]:
        again = Guard()
        again.restore(json.loads(states[cut]))
        given = []
        with pytest.raises(CheckError, match=re.escape(str(end.value))):
            given.extend(replay(again, seen[cut:]))
        assert given == verdicts[cut:], cut


@pytest.mark.parametrize(("name", "value"), [
    ("loss", None), ("loss", [1.0] * (WINDOW + 1)), ("loss", [float("nan")]), ("norm", [float("inf")]),
    ("norm", ["1"]), ("norm", [1]), ("norm", {"0": 1.0}), ("factor", 0.0), ("factor", 1.5),
    ("factor", float("nan")), ("factor", "1"), ("factor", True), ("moved", 1), ("moved", None),
    ("raised", -1), ("bad", 1.0), ("since", None), ("tries", 1 << 60), ("furthest", True)])
def test_a_state_that_no_guard_wrote_is_refused(name, value):
    with tiny.refusal("guard", name, "resume from a checkpoint that bitnet_ref.train wrote"):
        Guard().restore({**Guard().state(), name: value})


@pytest.mark.parametrize("state", [None, [], "guard", {}])
def test_what_is_no_state_at_all_is_refused(state):
    with tiny.refusal("guard"):
        Guard().restore(state)


def test_the_least_spreads_keep_a_quiet_run_quiet():
    driver = Driver()
    for _ in range(WINDOW):
        driver.see(4.0, 0.5)
    assert driver.see(4.0 + 5 * LOSS_SPREAD, 0.5 * math.exp(10 * NORM_SPREAD)) is APPLY
