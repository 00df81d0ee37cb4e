"""bench/contest: a win only where nothing else explains it, and refusals of what would flatter."""

from dataclasses import replace

import made_up
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.bench import contest
from bitnet_ref.bench.contest import LOSS, REFUSED, UNKNOWN, WIN

NAMES = "BitNet", "twin"


def row(ours, theirs, metric="bits per byte"):
    return contest.contest("equal", ours, theirs, metric, NAMES)


def seeds(nats, first=0):
    return [made_up.perplexity(nats + 0.002 * n, seed=first + n, noise=0.002) for n in range(3)]


# ---- property ----

@given(st.floats(0.5, 2), st.integers(0, 50))
def test_the_same_answers_are_parity_and_unknown(nats, seed):
    same = [made_up.perplexity(nats, seed=seed)]
    found = row(same, same)
    assert (found.delta, found.low, found.high, found.verdict) == (0, 0, 0, UNKNOWN)


@pytest.mark.parametrize(("ours", "theirs", "verdict"), [(1.9, 2.0, WIN), (2.0, 1.9, LOSS),
                                                         (2.0, 2.0003, UNKNOWN)])
def test_verdicts_of_three_seeds(ours, theirs, verdict):
    found = row(seeds(ours), seeds(theirs, first=3))
    assert found.verdict == verdict
    assert found.low < found.delta < found.high
    assert found.delta == pytest.approx(100 * (theirs - ours) / theirs, abs=0.6)
    assert found.flags == []
    assert (found.n, found.unit, len(found.values)) == (160_000, "bytes", 3)


def test_a_claim_must_survive_the_text_and_the_seeds():
    """One seed is sure of what three, which differ as much among themselves, are not."""
    ours = [made_up.perplexity(n, noise=0.001, seed=i) for i, n in enumerate((1.90, 1.98, 2.06))]
    theirs = [made_up.perplexity(2.0, noise=0.001, seed=3 + i) for i in range(3)]
    assert row(ours[:1], theirs[:1]).verdict == WIN
    assert row(ours, theirs).verdict == UNKNOWN
    noisy = [made_up.perplexity(n, noise=0.5, seed=9 + i) for i, n in enumerate((1.97, 1.97, 1.97))]
    assert row(noisy, theirs).verdict == UNKNOWN


def test_one_seed_is_flagged():
    assert any("one seed" in words for words in row(seeds(1.9)[:1], seeds(2.0)[:1]).flags)


@pytest.mark.parametrize("vocabulary", ["words", "others"])
def test_one_record_is_held_against_every_seed(vocabulary):
    """A baseline was not trained here. Either side may be the one; no seed is left out of the delta."""
    one = [made_up.perplexity(2.0, noise=0.002, seed=9, vocabulary=vocabulary)]
    many = [made_up.perplexity(nats, noise=0.002, seed=n) for n, nats in enumerate((1.6, 1.9, 2.0))]
    base = one[0].metrics["bits per byte"].value
    values = [r.metrics["bits per byte"].value for r in many]
    found = row(many, one)
    assert found.delta == pytest.approx(sum(100 * (base - v) / base for v in values) / 3)
    assert found.verdict == UNKNOWN                        # another seed could be worse than it
    assert any("one side has one seed" in words for words in found.flags)
    turned = row(one, many)
    assert turned.delta == pytest.approx(sum(100 * (v - base) / v for v in values) / 3)
    assert turned.verdict == UNKNOWN
    assert row([made_up.perplexity(1.5 + 0.01 * n, seed=n) for n in range(3)], one).verdict == WIN


def test_two_seeds_against_three_are_no_contest():
    with tiny.refusal("as many seeds"):
        row(seeds(1.9)[:2], seeds(2.0))


def test_questions_in_pairs():
    found = row([made_up.choice(0.60)], [made_up.choice(0.50)], "acc")
    assert found.verdict == WIN
    assert found.delta == pytest.approx(20)
    assert found.unit == "questions"
    assert row([made_up.choice(0.51)], [made_up.choice(0.50, seed=1)], "acc").verdict == UNKNOWN


def test_rounds_by_turns():
    fast, slow = made_up.efficiency([110, 112, 109, 111, 113]), made_up.efficiency([100, 101, 99, 102, 100])
    assert row([fast], [slow], "decode tokens/s").verdict == WIN
    assert row([slow], [fast], "decode tokens/s").verdict == LOSS
    wild = made_up.efficiency([60, 150, 140, 70, 135])
    assert row([wild], [slow], "decode tokens/s").verdict == UNKNOWN


def test_rounds_favour_nobody():
    """One twice as fast, then the other: parity both ways, by logarithms. A time of nothing has no ratio."""
    some, others = made_up.efficiency([100, 50, 70]), made_up.efficiency([50, 100, 70])
    for sides in ((some, others), (others, some)):
        assert row([sides[0]], [sides[1]], "decode tokens/s").delta == pytest.approx(0, abs=1e-9)
    none = made_up.efficiency([0, 100, 100])
    assert row([none], [some], "decode tokens/s").verdict == UNKNOWN


def test_bytes_are_counted_not_sampled():
    found = row([made_up.efficiency([1, 2], 300)], [made_up.efficiency([1, 2], 400)], "model bytes")
    assert (found.verdict, found.delta, found.flags) == (WIN, 25, [])
    nothing = row([made_up.efficiency([1, 2], 300)], [made_up.efficiency([1, 2], 0)], "model bytes")
    assert (nothing.verdict, nothing.delta) == (UNKNOWN, None)


# ---- refused ----

@pytest.mark.parametrize(("theirs", "metric", "words"), [
    (made_up.perplexity(vocabulary="others"), "perplexity", "compare bits per byte"),
    (made_up.perplexity(sha256="another text"), "bits per byte", "other data"),
    (made_up.perplexity(nats=6.0), "perplexity", "worse than guessing"),
    (replace(made_up.perplexity(), task="wikitext-103"), "bits per byte", "another task")])
def test_what_must_not_be_compared(theirs, metric, words):
    for ours, other in (([made_up.perplexity()], [theirs]), ([theirs], [made_up.perplexity()])):
        found = row(ours, other, metric)
        assert found.verdict == REFUSED
        assert words in found.flags[0]
        assert (found.value, found.other, found.delta, found.low) == (None,) * 4


def scored(found, **how):
    return replace(found, data=replace(found.data, how=how))


@pytest.mark.parametrize(("found", "how"), [
    (made_up.perplexity(), ({"context": 128, "stride": 16}, {"context": 128, "stride": 128})),
    (made_up.choice(0.6), ({"first": True}, {"first": False})),
    (made_up.choice(0.6), ({"first": True}, {}))])
def test_figures_that_were_made_otherwise(found, how):
    metric = "acc" if "acc" in found.metrics else "bits per byte"
    other = row([scored(found, **how[0])], [scored(found, **how[1])], metric)
    assert other.verdict == REFUSED
    assert "scored otherwise" in other.flags[0]
    same = row([scored(found, **how[0])], [scored(found, **how[0])], metric)
    assert (same.verdict, same.how, same.data) == (UNKNOWN, how[0], found.data.sha256)


def test_forty_questions_are_not_four_hundred():
    found = row([made_up.choice(0.8, n=40)], [made_up.choice(0.4)], "acc")
    assert found.verdict == REFUSED
    assert "40 and 400" in found.flags[0]


@pytest.mark.parametrize("metric", ["perplexity", "word perplexity"])
def test_a_rival_that_is_worse_than_guessing_has_no_perplexity(metric):
    """Its record leaves them out."""
    good = made_up.perplexity()
    good.metrics["word perplexity"] = good.metrics["perplexity"]
    bad = replace(made_up.perplexity(nats=6.0), metrics={
        "bits per byte": made_up.perplexity(nats=6.0).metrics["bits per byte"]})
    for ours, theirs in (([good] * 3, [bad]), ([bad], [good])):
        found = row(ours, theirs, metric)
        assert (found.verdict, found.better) == (REFUSED, "lower")
        assert "worse than guessing" in found.flags[0]


def test_timings_of_two_machines():
    here = made_up.efficiency([100, 101, 102])
    there = replace(here, made=replace(made_up.MADE, machine={"cpu": "another"}))
    assert row([here], [there], "decode tokens/s").verdict == REFUSED
    assert row([here], [there], "model bytes").verdict == UNKNOWN          # the same, wherever


def test_any_seed_may_be_refused():
    """The third was trained on another text, or guesses."""
    bad = [*seeds(1.9)[:2], made_up.perplexity(nats=6.0)]
    assert row(bad, seeds(2.0), "perplexity").verdict == REFUSED
    assert row(seeds(2.0), [*seeds(1.9)[:2], made_up.perplexity(sha256="x")]).verdict == REFUSED


def test_two_vocabularies_are_compared_on_bits_per_byte_and_not_in_pairs():
    found = row([made_up.perplexity(1.5)], [made_up.perplexity(2.0, vocabulary="others", windows=50)])
    assert found.verdict == WIN
    assert found.low < 25 < found.high


def test_without_the_metric():
    with tiny.refusal("must have acc"):
        row([made_up.perplexity()], [made_up.perplexity()], "acc")


# ---- flagged ----

def test_a_small_set_is_flagged():
    few = [made_up.choice(0.9, n=40)], [made_up.choice(0.4, n=40)]
    assert "below the minimum: 40 questions of 250" in row(*few, "acc").flags
    assert any("below the minimum" in words for words in row([made_up.perplexity(windows=4)],
                                                             [made_up.perplexity(windows=4)]).flags)


def test_chance_is_not_a_result():
    """0.27 of 400 questions with four answers each: guessing does that, and who is better is not known."""
    guess, worse = made_up.choice(0.27), made_up.choice(0.20, seed=1)
    found = row([guess], [worse], "acc")
    assert [words for words in found.flags if "at chance" in words] == [
        "ours is at chance: guessing explains it", "theirs is at chance: guessing explains it"]
    assert found.verdict == UNKNOWN
    assert not contest.at_chance(made_up.choice(0.5), "acc")


def test_a_baseline_of_nothing_has_no_delta():
    found = row([made_up.choice(0.5, chance=None)], [made_up.choice(0.0, chance=None)], "acc")
    assert (found.verdict, found.delta) == (UNKNOWN, None)


@pytest.mark.filterwarnings("error")
def test_one_right_answer_is_no_ground():
    """Twenty times as many as one of 300: a draw without the one says infinitely many."""
    found = row([made_up.choice(20 / 300, n=300, chance=None)],
                [made_up.choice(1 / 300, n=300, seed=1, chance=None)], "acc")
    assert (found.verdict, found.low, found.high) == (UNKNOWN, None, None)
    assert found.delta == pytest.approx(1900)
    assert any("too few" in words for words in found.flags)


def test_a_single_window_has_no_interval():
    found = row([made_up.perplexity(1.9, windows=1)], [made_up.perplexity(2.0, windows=1)])
    assert (found.verdict, found.low) == (UNKNOWN, None)
    assert any("too few" in words for words in found.flags)


def test_without_items_nothing_is_known():
    bare = [replace(made_up.choice(share), items=None, item_fields=None) for share in (0.9, 0.5)]
    found = row(bare[:1], bare[1:], "acc")
    assert found.verdict == UNKNOWN
    assert found.delta == pytest.approx(80)
    assert any("no values by item" in words for words in found.flags)


def test_a_row_is_json():
    table = row(seeds(1.9), seeds(2.0)).table()
    assert table["verdict"] == WIN
    assert table["commands"] == [made_up.MADE.command]
