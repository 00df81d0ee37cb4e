"""bench/chains: guessing ahead as rows of the report, with the spread over prompts."""

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import chains, speculation


def found(ratios, distinct=0.9):
    return {"ways": {"greedy": {"texts": {"distinct 4-grams": distinct},
                                "drafters": {name: {"ratios": ratios} for name in ("table", "oracle")}}}}


def rows(ratios, **given):
    return chains.rows(found(ratios, **given), "BitNet", "command")


@pytest.mark.parametrize(("ratios", "verdict"), [([1.5, 1.6] * 5, "win"), ([0.8, 0.7] * 5, "loss"),
                                                 ([0.7, 1.4] * 5, "unknown"), ([1.5], "unknown")])
def test_verdicts(ratios, verdict):
    [row] = rows(ratios)
    assert row.verdict == verdict
    assert row.delta == pytest.approx(100 * (sum(ratios) / len(ratios) - 1))
    assert row.n == len(ratios)
    assert bool(row.flags) == (len(ratios) < 8)


def test_the_oracle_knows_the_text_and_is_no_row():
    assert [row.ours for row in rows([1.5, 1.6])] == ["BitNet, guesses by table"]


def test_texts_that_loop_do_not_count():
    [row] = rows([1.5, 1.6] * 5, distinct=0.1)
    assert row.verdict == "unknown"
    assert "loop" in row.flags[0]


@pytest.mark.slow
def test_a_run_is_measured():
    given = chains.measure(tiny.trained(context=96), 2, 12, 1)
    assert set(given["compression"]) == {"chains", "covered", "held out", "saved"}
    assert 0 <= given["compression"]["saved"] < 1
    made = chains.rows(given, "BitNet", "command")
    assert len(made) == len(speculation.WAYS) * (len(speculation.NAMES) - 1)
