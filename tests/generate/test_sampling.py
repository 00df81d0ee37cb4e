"""generate/sampling: what is kept is what the definitions say, and one seed and place are one draw."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref.generate.sampling import (
    BLOCK,
    GREEDY,
    GROUPS,
    WORTH,
    Sampling,
    candidates,
    from_settings,
    logprob,
    sample,
    uniform,
)

ALL = Sampling(temperature=1.0, top_k=None)
how_to = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 30), top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.1, 1e-9]),
    min_p=st.sampled_from([0.0, 1e-9, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 20.0]))
# Few values, so that ties are common; and some that nobody expects.
some_logits = st.lists(st.sampled_from([-np.inf, -3e38, -5.0, -1.0, 0.0, 0.25, 1.0, 1.0, 2.0, 3e38])
                       | st.floats(-20, 20, width=32), min_size=1,
                       max_size=25).filter(lambda x: max(x) > -np.inf)


def softmax(logits):
    e = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return e / e.sum()


def by_definition(logits, how, seen):
    """{id: p}: the definitions written out for one id after the other, in plain Python."""
    score = {}
    for i, x in enumerate(map(float, logits)):
        if i in seen:
            x = x / how.repetition_penalty if x > 0 else x * how.repetition_penalty
        score[i] = x
    order = sorted(score, key=lambda i: (-score[i], i))
    if how.temperature == 0:
        return {order[0]: 1.0}
    order = order[:how.top_k]
    best = score[order[0]]
    weight = {i: 1.0 if score[i] == best else math.exp(max((score[i] - best) / how.temperature, -1e4))
              for i in order}
    total = math.fsum(weight.values())
    kept, before = {}, 0.0
    for i in order:
        p = weight[i] / total
        if p > 0 and before < how.top_p and weight[i] >= how.min_p:
            kept[i] = p
        before += p
    total = math.fsum(kept.values())
    return {i: p / total for i, p in kept.items()}


def near_an_edge(logits, how, seen):
    """Whether rounding decides who is kept: a sum of probabilities is top_p but for the last digits."""
    p = sorted(by_definition(logits, replace(how, top_p=1.0, min_p=0.0), seen).values(), reverse=True)
    return bool(np.any(np.abs(np.cumsum(p) - how.top_p) < 1e-9)) if how.top_p < 1 else False


def counts(logits, n, how):
    drawn = [sample(logits, how, t) for t in range(n)]
    return np.bincount(drawn, minlength=len(logits))


def chi_square(count, p):
    """Divided by the degrees of freedom: about 1 if `count` was drawn from `p`."""
    seen = p > 0
    if count[~seen].sum():
        return math.inf
    expected = count.sum() * p[seen]
    return float(np.sum((count[seen] - expected) ** 2 / expected)) / max(1, seen.sum() - 1)


# --- property: who is kept ---------------------------------------------------------------------------------


@given(logits=some_logits, how=how_to, seen=st.sets(st.integers(0, 24)))
@example([1.0, 1.0, 1.0], Sampling(top_k=2), set())
@example([0.0, 0.0, 0.0, 0.0], Sampling(temperature=1.0, top_p=0.5), set())
@example([3e38, -3e38, 3e38], Sampling(temperature=0.1, min_p=1.0), {0})
def test_who_may_be_drawn_is_who_the_definitions_keep(logits, how, seen):
    seen = {i for i in seen if i < len(logits)}
    ids, p = candidates(np.array(logits, np.float32), how, seen)
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert math.fsum(p) == pytest.approx(1, abs=1e-12)
    assert np.all(p > 0)
    if not near_an_edge(np.float32(logits), how, seen):
        want = by_definition(np.float32(logits), how, seen)
        assert ids.tolist() == sorted(want)
        np.testing.assert_allclose(p, [want[i] for i in sorted(want)], rtol=1e-9)


@given(logits=some_logits, k=st.integers(1, 30))
def test_of_equals_the_lowest_ids_are_kept(logits, k):
    ids, _ = candidates(np.array(logits), Sampling(temperature=1e6, top_k=k))
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert set(ids.tolist()) == {i for i in order if logits[i] > -np.inf
                                 and (logits[i] - max(logits)) / 1e6 > -700}


def test_the_sum_of_top_p_is_reached_by_equality():
    for p, n in ((0.25, 1), (0.5, 2), (0.5 + 1e-9, 3), (0.75, 3), (1.0, 4)):
        assert candidates(np.zeros(4), replace(ALL, top_p=p))[0].tolist() == list(range(n))


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 3), more=st.integers(0, 40),
       steps=st.sampled_from([2, 9, 1e6]))
def test_of_a_large_vocabulary_the_same_are_kept(seed, k, more, steps):
    """What few scores can be among the k largest is found first; ties and the tail are not forgotten."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=GROUPS * WORTH * k + more) * steps).astype(np.float32)
    want = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    np.testing.assert_array_equal(candidates(logits, Sampling(1e6, k))[0], sorted(want))


def test_the_order_is_penalty_temperature_top_k_top_p_min_p():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    assert candidates(logits, replace(ALL, top_p=0.65))[0].tolist() == [0, 1]
    assert candidates(logits, replace(ALL, top_p=0.65, top_k=2))[0].tolist() == [0, 1]     # of 0.57, 0.43
    assert candidates(logits, replace(ALL, top_p=0.55, top_k=2))[0].tolist() == [0]
    assert candidates(logits, replace(ALL, top_p=0.65, temperature=0.4))[0].tolist() == [0, 1]
    assert candidates(logits, replace(ALL, top_p=0.55, temperature=0.4))[0].tolist() == [0]
    assert candidates(logits + 2, replace(ALL, top_k=1, repetition_penalty=2.0), [0])[0].tolist() == [1]
    assert candidates(logits, replace(ALL, min_p=0.6))[0].tolist() == [0, 1]
    assert candidates(logits, replace(ALL, min_p=0.6, temperature=0.5))[0].tolist() == [0]


def test_a_penalty_counts_a_token_once_and_lowers_scores_of_either_sign():
    logits = np.array([2.0, -2.0, 1.0])
    _, p = candidates(logits, replace(ALL, repetition_penalty=2.0), [0, 1, 0, 0])
    np.testing.assert_allclose(p, softmax([1.0, -4.0, 1.0]))
    assert sample(logits, replace(GREEDY, repetition_penalty=3.0), 0, [0]) == 2


# --- the draw ----------------------------------------------------------------------------------------------


@given(logits=some_logits, seed=seeds)
def test_temperature_zero_is_argmax(logits, seed):
    assert sample(np.array(logits), Sampling(0.0, seed=seed), 0) == np.argmax(logits)


def test_among_equals_the_lowest_id_is_greedy():
    assert sample(np.array([1.0, 3.0, 3.0, 3.0]), GREEDY, 0) == 1


@pytest.mark.parametrize("how", [ALL, Sampling(0.5, None), Sampling(2.0, 20), Sampling(1.0, 3),
                                 Sampling(1.0, None, top_p=0.8), Sampling(1.5, None, min_p=0.1),
                                 Sampling(1.0, 9, 0.9, 0.02, 1.5)], ids=str)
def test_draws_follow_the_distribution(how):
    logits = np.random.default_rng(7).normal(0, 2, 12).astype(np.float32)
    want = by_definition(logits, how, ())
    p = np.array([want.get(i, 0.0) for i in range(12)])
    assert chi_square(counts(logits, 4000, how), p) < 2.2
    wrong = replace(how, temperature=how.temperature * 1.3)
    assert chi_square(counts(logits, 4000, wrong), p) > 2.5


@given(logits=some_logits, how=how_to, position=st.integers(0, 2**40))
def test_only_what_is_kept_is_drawn(logits, how, position):
    logits = np.array(logits)
    token = sample(logits, how, position, [0])
    assert type(token) is int
    assert token in candidates(logits, how, [0])[0]


@given(seed=seeds, sequence=st.integers(0, 2**64 - 1), position=st.integers(0, 2**63))
def test_a_draw_depends_on_seed_sequence_and_place_alone(seed, sequence, position):
    u = uniform(seed, sequence, position)
    assert 0 <= u < 1
    key = np.array([seed, sequence], np.uint64)
    one_by_one = np.random.Philox(key=key, counter=position // BLOCK * (BLOCK // 4))
    assert u == np.random.Generator(one_by_one).random(position % BLOCK + 1)[-1]


@pytest.mark.parametrize("moved", ["seed", "sequence", "position"])
def test_other_seeds_sequences_and_places_are_other_draws(moved):
    drawn = [uniform(**{"seed": 5, "sequence": 5, "position": 5, moved: n}) for n in range(300)]
    assert len(set(drawn)) == 300
    assert 0.4 < np.mean(drawn) < 0.6


def test_numbers_of_neighbouring_blocks_do_not_overlap():
    drawn = [uniform(1, 0, t) for t in range(3 * BLOCK)]
    assert len(set(drawn)) == len(drawn)


# --- extremes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e-320, 1e-300, 1e-30])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = np.random.default_rng(1).normal(size=30)
    drawn = {sample(logits, Sampling(temperature, k), t) for k in (None, 5) for t in range(20)}
    assert drawn == {int(np.argmax(logits))}


def test_the_highest_temperature_is_uniform_but_for_what_cannot_be():
    logits = np.array([1.0, -np.inf, -8, 3, 2, 0.5, 2, 2])
    p = np.where(np.isfinite(logits), 1 / 7, 0)
    assert chi_square(counts(logits, 4000, replace(ALL, temperature=sys.float_info.max)), p) < 2


def test_large_logits_do_not_overflow():
    assert sample(np.array([1e38, -1e38, 3e38], np.float32), Sampling(), 0) == 2


def test_infinite_logits_share_everything_among_themselves():
    logits = np.array([0.0, np.inf, -np.inf, np.inf])
    ids, p = candidates(logits, ALL)
    assert (ids.tolist(), p.tolist()) == ([1, 3], [0.5, 0.5])


@pytest.mark.parametrize("k", [3, 4, None])
def test_a_token_of_no_probability_is_never_drawn(k):
    logits = np.array([0.0, -np.inf, 0.0, -np.inf])
    assert {sample(logits, Sampling(1.0, k), t) for t in range(100)} == {0, 2}


@pytest.mark.parametrize("logits", [[np.nan, 1.0], [-np.inf, -np.inf], []])
def test_logits_that_leave_no_choice_are_refused(logits):
    with tiny.refusal("a logit must be a number"):
        sample(np.array(logits), ALL, 0)


# --- log-probabilities -------------------------------------------------------------------------------------


@given(logits=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30))
def test_logprob_is_the_log_softmax_of_all_logits(logits):
    got = [logprob(np.float32(logits), i) for i in range(len(logits))]
    total = math.log(math.fsum(math.exp(x - max(logits)) for x in logits))
    np.testing.assert_allclose(got, [x - max(logits) - total for x in logits], atol=1e-12)


# --- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "words"), [
    ({"temperature": -0.5}, ["temperature must not be negative; got -0.5; use 0 (greedy) or more"]),
    ({"temperature": math.inf}, ["temperature must be finite; got inf"]),
    ({"temperature": 10**400}, ["temperature must be finite"]),
    ({"temperature": "hot"}, ["temperature must be a number; got 'hot'"]),
    ({"temperature": None}, ["temperature must be a number; got None"]),
    ({"top_p": True}, ["top_p must be a number; got True"]), ({"min_p": [0]}, ["min_p must be a number"]),
    ({"repetition_penalty": 1j}, ["repetition_penalty must be a number"]),
    ({"top_k": 2.5}, ["top_k must be an integer; got 2.5"]),
    ({"top_k": True}, ["top_k must be an integer"]), ({"seed": 1.5}, ["seed must be an integer; got 1.5"]),
    ({"seed": None}, ["seed must be an integer; got None"]),
    ({"sequence": "1"}, ["sequence must be an integer"]),
    ({"temperature": math.nan}, ["temperature must not be negative; got nan"]),
    ({"top_k": 0}, ["top_k must be greater than 0; got 0; use 1 (greedy) or more"]),
    ({"top_p": 0}, ["top_p must lie in (0, 1]; got 0"]), ({"top_p": 1.1}, ["got 1.1"]),
    ({"min_p": -0.1}, ["min_p must lie in [0, 1]; got -0.1"]), ({"min_p": math.nan}, ["min_p"]),
    ({"repetition_penalty": 0}, ["repetition_penalty must be greater than 0"]),
    ({"repetition_penalty": math.inf}, ["and finite; got inf"]),
    ({"seed": -1}, ["seed must lie in [0, 2^64); got -1; choose another"]),
    ({"seed": 1 << 64}, ["18446744073709551616"]), ({"sequence": -1}, ["sequence must lie in"]),
])
def test_options_out_of_range_are_refused(given, words):
    with tiny.refusal(*words):
        Sampling(**given)


def test_a_models_settings_are_defaults():
    got = from_settings({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "top_k": 0,
                         "min_p": None, "seed": 9})
    assert got == Sampling(temperature=0.6, top_p=0.9, top_k=None)
    assert from_settings({}) == Sampling()
    assert from_settings({"do_sample": False, "temperature": 0.6}).temperature == 0


@pytest.mark.parametrize("settings", [
    {"temperature": "hot"}, {"top_k": 2.5}, {"top_k": -1}, {"top_p": True}, {"temperature": [1]},
    {"top_p": 7}, {"repetition_penalty": 1 << 70}, {"temperature": math.nan}])
def test_a_strangers_settings_are_checked(settings):
    with tiny.refusal(next(iter(settings))):
        from_settings(settings)


def test_numbers_of_numpy_become_pythons():
    how = Sampling(np.float32(0.5), np.int64(3), seed=np.uint64(7))
    assert how == Sampling(0.5, 3, seed=7)
    assert [type(v) for v in (how.temperature, how.top_k, how.seed)] == [float, int, int]
