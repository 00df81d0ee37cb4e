"""train/inject: trouble comes where it was asked for, from the batch's number alone, and nowhere else."""

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.config import injections
from bitnet_ref.train import inject, log, loop


def test_the_list_is_read():
    assert injections(None) == []
    assert injections("spike@200") == [("spike", 200)]
    assert injections("nan@0, nan@7,lr@3,flip@12") == [("nan", 0), ("nan", 7), ("lr", 3), ("flip", 12)]


@pytest.mark.parametrize("text", ["", "spike", "spike@", "spike@-1", "spike@1.5", "@3", "nan@1;lr@2",
                                  "storm@3", "nan@1,", "nan@٣", "nan@" + "9" * 20, "nan@1@2"])
def test_what_is_no_list_of_troubles_is_refused(text):
    with tiny.refusal("inject must be a list of nan@N, spike@N, lr@N, flip@N", "spike@200,nan@350"):
        tiny.configs(inject=text)


def test_a_spike_is_random_tokens_for_its_batches_only_and_the_same_each_time(tmp_path):
    run, _ = tiny.begin(tmp_path / "run", inject="spike@5")
    batch = tuple(np.zeros((4, 32), np.int64) for _ in range(2))
    for cursor in (0, 4, 5 + inject.SPIKE_BATCHES):
        run.cursor = cursor
        assert inject.tokens(run, cursor, batch) is batch
    seen = []
    for cursor in (5, 5, 5 + inject.SPIKE_BATCHES - 1):
        run.cursor = cursor
        ids, targets = inject.tokens(run, cursor, batch)
        assert (ids[:, 1:] == targets[:, :-1]).all()
        assert ids.shape == (4, 32)
        assert 0 <= ids.min() < ids.max() < run.model.cfg.vocab_size
        seen.append(ids)
    assert (seen[0] == seen[1]).all()
    assert (seen[0] != seen[2]).any()


def test_a_rate_is_too_high_for_its_batches_only(tmp_path):
    given = {"inject": "lr@3", "steps": 30, "schedule": "constant", "warmup": 0}
    run, data = tiny.begin(tmp_path / "run", guard=False, **given)
    loop.train(run, data)
    rates = [line["lr"] for line in log.read(run.folder, "step")]
    high = [inject.RATE if 3 <= n < 3 + inject.RATE_BATCHES else 1.0 for n in range(30)]
    assert rates == [1e-2 * h for h in high]


def test_a_flip_turns_one_bit_of_one_weight_once(tmp_path):
    """The run beside it has none: up to there they are equal, after it one weight is 2^128 times as large."""
    runs = {}
    for given in (None, "flip@3"):
        run, data = tiny.begin(tmp_path / str(given), inject=given, guard=False)
        for _ in range(4):
            loop.optimise(run, data)
        runs[given] = run.model.params.flat.copy()
    (changed,) = np.flatnonzero(runs[None] != runs["flip@3"])
    before, after = runs[None][changed], runs["flip@3"][changed]
    assert after == pytest.approx(float(before) * 2.0 ** 128, rel=1e-6)


def test_a_batch_that_is_not_a_number_is_one_batch(tmp_path):
    run, data = tiny.begin(tmp_path / "run", inject="nan@3")
    verdicts = [loop.optimise(run, data).verdict.value for _ in range(6)]
    assert verdicts == ["apply"] * 3 + ["skip"] + ["apply"] * 2
    assert (run.step, run.cursor) == (5, 6)
    assert np.isfinite(run.model.params.flat).all()


def test_the_command_refuses_in_one_line(tmp_path):
    tiny.assert_refused(tiny.command("train", "--inject", "storm@3", cwd=tmp_path), "inject", "'storm@3'")
