"""bench/saving: what checkpoints cost, in small."""

import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import saving
from bitnet_ref.cli import run_command
from bitnet_ref.formats.checkpoint import checkpoints


def test_a_share_of_the_run():
    assert saving.Cost(0.1, 1.0, 5).share(90) == 0.1


def test_it_measures_the_trainers_own_steps_and_checkpoints(tmp_path):
    run, data = saving.begin("tiny", "numpy", tmp_path)
    assert not run.guard.on                                # a rollback would be timed as a step
    cost = saving.measured(run, data, rounds=2, steps=1)
    assert (run.step, len(checkpoints(tmp_path))) == (3, 2)
    assert cost.step > 0
    assert cost.save > 0
    assert cost.n_bytes > 3 * run.grads.flat.nbytes


def test_the_command_says_whether_it_is_too_much(capsys, monkeypatch):
    monkeypatch.setattr(saving, "measured", lambda *_: saving.Cost(0.1, 1.0, 50_000_000))
    for every, code in ((100, 1), (1000, 0)):
        arguments = ["--preset", "tiny", "--backend", "numpy", "--every", str(every)]
        assert run_command(saving.main, arguments) == code
        assert "a step 100 ms, a checkpoint 1000 ms for 50.0 MB" in capsys.readouterr().out


def test_bad_arguments_are_refused(capsys):
    for arguments in (["--rounds", "0"], ["--preset", "huge"]):
        assert run_command(saving.main, arguments) == 2
        tiny.assert_three_parts(capsys.readouterr().err)
