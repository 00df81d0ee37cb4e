"""train/rollback: back to the newest checkpoint from before the trouble, and killed at any instant of it, a
run ends equal to one that was not."""

import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.checks import CheckError, NonFiniteError
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.model.params import init_params
from bitnet_ref.train import gradient, log, loop, stability
from bitnet_ref.train.rollback import roll_back

# Trouble at batch 21, when the window is full enough to see it; steps 15 and 20 have checkpoints.
GIVEN = {"steps": 30, "save_every": 5, "eval_every": 7, "log_every": 4, "inject": "flip@21", "threads": 1}
LEAST, BAD_STEPS, STUCK_STEPS = 12, 6, 10                  # a patient guard makes long tests


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name in ("LEAST", "BAD_STEPS", "STUCK_STEPS"):
        monkeypatch.setattr(stability, name, globals()[name])


# A process that kills itself right before or after the n-th rename within a rollback.
KILLER = """
import os, pathlib, signal, sys
from bitnet_ref.train import loop, stability, start
n, when, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
stability.LEAST, stability.BAD_STEPS, stability.STUCK_STEPS = 12, 6, 10
real, rename, calls = loop.roll_back, pathlib.Path.rename, []
def deadly(*args):
    calls.append(args)
    if len(calls) == n and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*args)
    if len(calls) == n:
        os.kill(os.getpid(), signal.SIGKILL)
def roll_back(run):
    pathlib.Path.rename = deadly
    return real(run)
loop.roll_back = roll_back
loop.train(*start.resume(path, {}))
"""


def train_to(run, data, step):
    """Train `run` to `step` by the definition of the loop, whose end is cfg.steps."""
    run.cfg, cfg = replace(run.cfg, steps=step), run.cfg
    loop.train(run, data)
    run.cfg = cfg
    return run


def names(path):
    return [int(p.name[5:]) for p in files.checkpoints(path)]


@pytest.fixture(scope="module")
def whole():
    """A guarded run with trouble, that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch, tiny.thread_pools().limit(limits=1):
        patch.setenv("BITNET_REF_CACHE", str(tiny.folder() / "cache"))
        for name in ("LEAST", "BAD_STEPS", "STUCK_STEPS"):
            patch.setattr(stability, name, globals()[name])
        return tiny.train(tiny.folder() / "trouble", **GIVEN)


# --- what it does ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"requantize_every": 3}, {"linear": "full"}], ids=str)
def test_parameters_moments_trits_and_step_go_back_and_the_batches_do_not(given, tmp_path):
    how = {"steps": 20, "save_every": 5, "log_every": 4, "patience": 9, **given}
    run, data = tiny.begin(tmp_path / "run", **how)
    train_to(run, data, 10)
    run.step = run.cursor = 10
    then, windows = tiny.state(run), run.guard.state()["loss"]
    train_to(run, data, 13)
    run.guard.since, run.guard.factor, run.best, run.stale, run.cursor = 12, 0.25, 1.5, 3, 17
    run.model.params.flat[:] = np.nan
    assert roll_back(run) == 10
    assert tiny.state(run) == {**then, "cursor": 17, "best": 1.5, "stale": 3}
    assert (run.step, run.validated, run.guard.factor) == (10, 10, 0.25)
    assert run.guard.state()["loss"] == windows            # of the model that it is again


def test_checkpoints_from_the_trouble_on_are_removed_and_earlier_ones_stay(tmp_path):
    run, data = tiny.begin(tmp_path / "run", keep=4)
    loop.train(run, data)
    assert names(run.folder) == [5, 10, 15, 20]
    run.guard.since = 15                                   # what step 15 saved is what had trouble there
    assert roll_back(run) == 10
    assert names(run.folder) == [5, 10]
    assert [p.name for p in run.folder.glob(".*")] == [".lock"]


def test_it_may_go_back_to_the_beginning(tmp_path):
    run, data = tiny.begin(tmp_path / "run", keep=3, steps=10)
    loop.train(run, data)
    run.guard.since = 3
    assert roll_back(run) == 0
    np.testing.assert_array_equal(run.model.params.flat, init_params(run.model.cfg, run.cfg.seed).flat)
    assert not run.adam.first.flat.any()
    assert not run.adam.second.flat.any()
    assert (run.step, run.cursor, run.seen) == (0, 10, {})
    assert names(run.folder) == [0]
    assert roll_back(run) == 0                             # it serves again


def test_with_no_checkpoint_that_old_it_says_so_and_removes_none(tmp_path):
    """Of `--keep 1` the guard makes two; both, and the best, are of step 5 and later."""
    run, data = tiny.begin(tmp_path / "run", keep=1, steps=10)
    loop.train(run, data)
    assert names(run.folder) == [5, 10]
    run.guard.since = 3
    with tiny.refusal("a rollback needs a checkpoint from before step 3", "step-00000005, step-00000010",
                      "--keep"):
        roll_back(run)
    assert names(run.folder) == [5, 10]


def test_a_checkpoint_serves_again_when_the_data_stay_bad(tmp_path):
    """Right after a rollback the model is good: what is bad then does not cost the checkpoint."""
    run, data = tiny.begin(tmp_path / "run", keep=3)
    loop.train(run, data)
    bad = gradient.Report(9.0, 1.0, 1, "the loss; got nan")
    for _ in range(3):
        while run.guard.judge(bad, run.step) is not stability.Verdict.ROLLBACK:
            pass
        assert roll_back(run) == 15
        assert names(run.folder) == [10, 15]


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    run, data = tiny.begin(tmp_path / "run")
    loop.train(run, data)
    with open(run.folder / "step-00000015" / files.TENSORS, "r+b") as f:
        f.seek(-1, 2)
        f.write(b"\x99")
    run.guard.since = 18
    assert roll_back(run) == 10
    assert "passing over" in capsys.readouterr().err


def test_a_disk_that_refuses_ends_in_one_error_and_loses_nothing(tmp_path, monkeypatch):
    run, data = tiny.begin(tmp_path / "run")
    loop.train(run, data)
    run.guard.since = 18

    def refuse(*_):
        raise OSError("read-only file system")

    monkeypatch.setattr(files, "remove", refuse)
    with tiny.refusal("removable", "read-only file system", "step-00000020", "resume"):
        roll_back(run)
    assert names(run.folder) == [10, 15, 20]


# --- in a run ----------------------------------------------------------------------------------------------


def test_an_undisturbed_run_is_the_same_with_the_guard_and_without(tmp_path):
    on, off = (tiny.train(tmp_path / str(guard), guard=guard, steps=30) for guard in (True, False))
    assert tiny.state(on) == tiny.state(off)
    assert log.read(on.folder, "event") == []
    scores = [line["loss_z"] for line in log.read(on.folder, "step")]
    assert scores[:LEAST] == [None] * LEAST
    assert None not in scores[LEAST:]


def test_a_damaged_model_is_rolled_back_and_ends_as_an_undisturbed_one(whole, tmp_path):
    (back,) = (e for e in log.read(whole.folder, "event") if e["what"] == "rollback")
    assert (back["from"], back["to"]) == (22, 20)
    assert back["cursor"] == 22 + BAD_STEPS
    assert (whole.step, whole.cursor) == (30, 30 + 2 + BAD_STEPS)
    calm = tiny.train(tmp_path / "calm", **{**GIVEN, "inject": None})
    alone = tiny.train(tmp_path / "alone", **{**GIVEN, "guard": False})
    loss = {run.folder.name: log.read(run.folder, "step")[-1]["loss"] for run in (whole, calm, alone)}
    assert loss["trouble"] < loss["calm"] + 0.5 < loss["alone"]


def test_no_checkpoint_is_written_while_the_loss_is_raised(tmp_path, monkeypatch):
    """It might be of a damaged model, and push out one that is not; the last step is saved all the same."""
    run, data = tiny.begin(tmp_path / "run")
    monkeypatch.setattr(run.guard, "calm", lambda: run.step < 8)
    loop.train(run, data)
    assert names(run.folder) == [0, 5, 20]


def test_weights_that_are_not_finite_are_named_and_rolled_back_over(tmp_path):
    run, data = tiny.begin(tmp_path / "run")
    train_to(run, data, 7)
    run.model.params["layers.1.ffn.w_up"][0, 0] = np.nan
    run.model.requantise()
    loop.train(run, data)
    skipped, (back,) = ([e for e in log.read(run.folder, "event") if e["what"] == what]
                        for what in ("skip", "rollback"))
    assert len(skipped) == BAD_STEPS - 1
    assert "the loss of step 7 must be finite; got nan, first in the weight layers.1.ffn.w_up" in back["why"]
    assert (back["from"], back["to"], back["loss"]) == (7, 5, None)
    assert run.step == 20
    assert np.isfinite(run.model.params.flat).all()


def test_parameters_that_an_update_made_infinite_are_rolled_back_at_once(tmp_path, monkeypatch):
    run, data = tiny.begin(tmp_path / "run")
    real = loop.update_

    def overflow(*args):
        real(*args)
        if run.cursor == 8:
            run.model.params["layers.0.attn.wq"][1, 1] = np.inf

    monkeypatch.setattr(loop, "update_", overflow)
    loop.train(run, data)
    (back,) = log.read(run.folder, "event")
    assert (back["what"], back["from"], back["to"], back["cursor"]) == ("rollback", 8, 5, 8)
    assert "the sum of the parameters after step 8" in back["why"]
    assert "the weight layers.0.attn.wq" in back["why"]
    assert (run.step, run.cursor) == (20, 23)


@pytest.mark.parametrize("linear", ["ternary", "full"])
def test_a_rate_that_nothing_helps_ends_in_an_error_that_says_what_to_do(linear, tmp_path):
    run, data = tiny.begin(tmp_path / "run", lr=1e30, max_norm=1e30, eval_every=100, linear=linear, warmup=0)
    with pytest.raises(CheckError) as error:
        loop.train(run, data)
    tiny.assert_three_parts(error.value, "rollbacks that did not help", "start a new run with a lower --lr")
    assert isinstance(error.value, NonFiniteError)
    whats = [e["what"] for e in log.read(run.folder, "event")]
    assert whats.count("rollback") == stability.ROLLBACKS


# --- killed, and resumed -----------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing of ours runs after it."""


def die_at(monkeypatch, owner, name, n, when):
    """Make the n-th call of owner.name from now on the last thing that happens, before it or after it."""
    real, calls = getattr(owner, name), []

    def deadly(*args, **more):
        calls.append(args)
        if len(calls) == n and when == "before":
            raise Killed
        result = real(*args, **more)
        if len(calls) == n:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, deadly)


def killed_in_the_rollback(path, owner, name, n, when, **given):
    """A run that dies at the n-th call of owner.name within its first rollback."""
    run, data = tiny.begin(path, **given)
    real = loop.roll_back

    def deadly(run):
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, owner, name, n, when)
            return real(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "roll_back", deadly)
        with pytest.raises(Killed):
            loop.train(run, data)


@cache
def ended(inject, keep):
    """A run that nothing interrupted, and its folder."""
    return tiny.train(tiny.folder() / f"ended-{inject}-{keep}", **{**GIVEN, "inject": inject, "keep": keep})


# Batch 19 makes the parameters of step 20, which are saved: that checkpoint must go.
@pytest.mark.parametrize(("owner", "name", "n", "when"), [
    (files, "read_tensors", 1, "before"), (files, "remove", 1, "before"), (Path, "rename", 1, "before"),
    (Path, "rename", 1, "after"), (files.shutil, "rmtree", 2, "before"), (files, "remove", 1, "after")])
def test_killed_in_a_rollback_the_run_ends_equal(owner, name, n, when, tmp_path):
    whole = ended("flip@19", 3)
    killed_in_the_rollback(tmp_path / "run", owner, name, n, when, **{**GIVEN, "inject": "flip@19"})
    resumed = tiny.resume(tmp_path / "run")
    tiny.assert_same_runs(resumed, whole)
    assert names(resumed.folder) == names(whole.folder) == [20, 25, 30]


@pytest.mark.parametrize("cursor", [15, 20, 21, 24, 21 + BAD_STEPS, 22 + BAD_STEPS, 29 + BAD_STEPS])
def test_interrupted_around_a_rollback_the_run_ends_equal(cursor, whole, tmp_path, monkeypatch):
    """Ctrl-C in the row of skipped batches saves a guard in the middle of its count."""
    run, data = tiny.begin(tmp_path / "run", **GIVEN)
    real = loop.gradient

    def interrupted(run, data):
        if run.cursor == cursor:
            signal.raise_signal(signal.SIGINT)
        return real(run, data)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradient", interrupted)
        with pytest.raises(loop.Interrupted):
            loop.train(run, data)
    tiny.assert_same_runs(tiny.resume(tmp_path / "run"), whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("keep", [2, 3])
@pytest.mark.parametrize(("n", "when"), [(1, "before"), (1, "after"), (2, "before"), (2, "after")])
def test_a_process_killed_in_a_rollback_is_resumed_and_ends_equal(n, when, keep, tmp_path, monkeypatch):
    """At the rename that removes 20, or at the next checkpoint's."""
    tiny.interrupt(tmp_path / "run", 18, monkeypatch, **{**GIVEN, "inject": "flip@19", "keep": keep})
    killed = subprocess.run([sys.executable, "-c", KILLER, str(n), when, str(tmp_path / "run")],
                            env=tiny.environment(), capture_output=True, encoding="utf-8", timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    tiny.assert_same_runs(tiny.resume(tmp_path / "run"), ended("flip@19", keep))
