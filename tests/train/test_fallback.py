"""train/start: a damaged checkpoint is set aside and told, and the run goes on from the newest whole one.

And the best checkpoint, which stays whatever its age; disks that fill; clocks that jump.
"""

import builtins
import errno
import json
import os
import random
import re
import time

import numpy as np
import pytest
import tiny
import tqdm.std
from tiny import own_cache  # noqa: F401

from bitnet_ref.formats.checkpoint import (
    BEST_FILE,
    MARK,
    STATE,
    TENSORS,
    DamagedError,
    best,
    checkpoints,
    latest,
    read_state,
    set_aside,
    verified,
    write_checkpoint,
)
from bitnet_ref.generate.language_model import load
from bitnet_ref.train import loop, start, summary
from bitnet_ref.train.checkpoint import Best, find_best, note_best, save


@pytest.fixture
def run(tmp_path):
    return tiny.copy(tiny.trained(), tmp_path / "run")


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def learning_rate(checkpoint):
    """One digit of state.json: JSON as before, and a run with another rate."""
    text = (checkpoint / STATE).read_text()
    assert '"lr": 0.01' in text
    (checkpoint / STATE).write_text(text.replace('"lr": 0.01', '"lr": 0.03'))


DAMAGE = {
    "tensors cut": lambda c: os.truncate(c / TENSORS, 5000),
    "tensors flipped": lambda c: flip(c / TENSORS, -1),
    "tensors gone": lambda c: (c / TENSORS).unlink(),
    "state cut": lambda c: os.truncate(c / STATE, 50),
    "state gone": lambda c: (c / STATE).unlink(),
    "no JSON": lambda c: tiny.put_state(c, "{"),
    "another rate": learning_rate,
    "mark gone": lambda c: (c / MARK).unlink(),
    "mark empty": lambda c: os.truncate(c / MARK, 0),
    "mark flipped": lambda c: flip(c / MARK, 5),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_run_goes_on_from_the_checkpoint_before_and_ends_equal(name, run, capsys):
    newest, before = latest(run), checkpoints(run)[-2]
    DAMAGE[name](newest)
    resumed = tiny.resume(run)
    err = capsys.readouterr().err
    assert re.search(f"a damaged checkpoint: .*{newest.name}.*; got .*; it is now .*damaged-{newest.name}, "
                     f"and the run goes on from {before.name}", err), err
    tiny.assert_same_runs(resumed, tiny.begin_again(tiny.trained()))
    assert (run / f"damaged-{newest.name}").is_dir()
    assert verified(newest)["step"] == 20


def test_several_damaged_checkpoints_are_all_set_aside(run, capsys):
    oldest, *others = checkpoints(run)
    for bad in others:
        flip(bad / TENSORS, 300)
    resumed, _ = start.resume(str(run), {})
    assert resumed.step == read_state(oldest)["step"] == 10
    assert sorted(p.name for p in run.glob("damaged-*")) == [f"damaged-{p.name}" for p in others]
    assert capsys.readouterr().err.count("a damaged checkpoint: ") == 2


def test_the_log_is_cut_to_where_it_goes_on(run):
    flip(latest(run) / TENSORS, 300)
    resumed, _ = start.resume(str(run), {})
    assert resumed.step == 15
    assert max(line["step"] for line in tiny.lines(run)) == 15
    assert [line["step"] for line in tiny.lines(run, "eval")] == [0, 5, 10]       # that of 15 is made again


def test_without_a_whole_checkpoint_nothing_is_moved(run):
    for c in checkpoints(run):
        flip(c / TENSORS, 300)
    names = sorted(p.name for p in run.iterdir())
    with tiny.refusal("must have the SHA-256", latest(run).name):
        start.resume(str(run), {})
    assert sorted(p.name for p in run.iterdir() if p.name != ".lock") == [n for n in names if n != ".lock"]


def test_what_is_foreign_or_newer_is_refused_and_not_set_aside(run):
    path = latest(run)
    state = read_state(path)
    others = ({**state, "version": 3}, "must have version 2"), ({"format": "x"}, "must say format")
    for other, words in others:
        tiny.put_state(path, other)
        with tiny.refusal(words):
            start.resume(str(run), {})
        assert list(run.glob("damaged-*")) == []


def test_a_file_that_may_not_be_read_is_refused_and_not_set_aside(run, monkeypatch):
    real = builtins.open

    def denied(file, *args, **kwargs):
        if str(file).endswith(TENSORS):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", denied)
    with tiny.refusal("Permission denied", "check its rights"):
        start.resume(str(run), {})
    assert list(run.glob("damaged-*")) == []


def test_a_sector_that_cannot_be_read_is_damage(run, monkeypatch):
    real = builtins.open

    def worn(file, *args, **kwargs):
        if str(file) == str(latest(run) / TENSORS):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", worn)
        with pytest.raises(DamagedError):
            verified(latest(run))


def test_a_second_damaged_checkpoint_of_one_step_has_a_number(tmp_path):
    for name in ("", "-2", "-3"):
        path = write_checkpoint(tmp_path, 7, {"a": np.zeros(1, np.float32)}, {"model": {}})
        assert set_aside(path).name == f"damaged-step-00000007{name}"
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_of_version_1_is_read_and_goes_on(run):
    """Its DONE is empty: its state has no checksum."""
    for c in checkpoints(run):
        state = {k: v for k, v in read_state(c).items() if k not in ("guard", "computed with")}
        tiny.put_state(c, {**state, "version": 1})
        (c / MARK).write_bytes(b"")
    assert load(run)
    assert start.resume(str(run), {})[0].step == 20


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (99_999_999, 100_000_000, 5):
        write_checkpoint(tmp_path, step, {"a": np.zeros(1, np.float32)}, {"model": {}})
    (tmp_path / "step-notes").mkdir()
    assert [c.name for c in checkpoints(tmp_path)] == ["step-00000005", "step-99999999", "step-100000000"]


# --- a kill between two names ------------------------------------------------------------------------------


def test_a_checkpoint_killed_while_it_is_replaced_is_not_lost(tmp_path, monkeypatch):
    """With one kept, it was the only one."""
    run, _ = tiny.begin(tmp_path / "run", keep=1)
    save(run)
    real = type(run.folder).rename

    def killed(path, goal):
        if path.name.endswith(".partial"):
            raise SystemExit
        return real(path, goal)

    with monkeypatch.context() as patch:
        patch.setattr(type(run.folder), "rename", killed)
        with pytest.raises(SystemExit):
            save(run)
    assert checkpoints(run.folder) == []
    again, data = start.resume(str(run.folder), {})
    assert [p.name for p in run.folder.glob(".step*")] == []
    loop.train(again, data)
    tiny.assert_same_runs(again, tiny.begin_again(tiny.trained()))


def test_a_disk_that_fills_while_a_checkpoint_is_replaced_leaves_the_old_one(tmp_path, monkeypatch):
    run, _ = tiny.begin(tmp_path / "run", keep=1)
    save(run)
    real = type(run.folder).rename

    def full(path, goal):
        if path.name.endswith(".partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, goal)

    monkeypatch.setattr(type(run.folder), "rename", full)
    with tiny.refusal("room for a checkpoint", "No space left"):
        save(run)
    assert [c.name for c in checkpoints(run.folder)] == ["step-00000000"]
    assert [p.name for p in run.folder.glob(".step*")] == []


# --- the best ----------------------------------------------------------------------------------------------


def scripted(monkeypatch, losses):
    """Validations whose losses are given."""
    told, real = iter(losses), loop.score
    monkeypatch.setattr(loop, "score", lambda *args, **more: real(*args, **more)._replace(
        nats=next(told), tokens=1))


def test_the_best_of_the_saved_and_validated_steps_is_kept(tmp_path, monkeypatch):
    scripted(monkeypatch, [9.0, 2.0, 1.0, 5.0, 3.0])       # of steps 0, 4, 8, 12, 15
    run = tiny.train(tmp_path / "run", steps=15, save_every=2, eval_every=4, keep=1, guard=False)
    assert run.best_saved == Best(8, 1.0)
    run = tiny.begin_at_end(run.folder)
    assert [c.name for c in checkpoints(run.folder)] == ["step-00000008", "step-00000015"]
    assert json.loads((run.folder / BEST_FILE).read_text()) == {"step": 8, "loss": 1.0}


def test_a_step_that_was_not_saved_is_not_the_best(tmp_path, monkeypatch):
    scripted(monkeypatch, [9.0, 2.0, 1.0, 5.0, 3.0])       # 4 and 8 are not saved
    run = tiny.train(tmp_path / "run", steps=15, save_every=3, eval_every=4, keep=1)
    assert run.best_saved == Best(15, 3.0)
    assert best(run.folder).name == "step-00000015"


def test_the_last_step_is_validated_and_may_be_the_best(tmp_path):
    run = tiny.train(tmp_path / "run", steps=7)
    assert [line["step"] for line in tiny.lines(run.folder, "eval")] == [0, 5, 7]
    assert run.best_saved.step == run.validated == 7


@pytest.mark.parametrize("stop", [9, 10, 11])
def test_a_resumed_run_has_the_same_best(stop, tmp_path, monkeypatch):
    whole = tiny.trained()
    tiny.interrupt(tmp_path / "run", stop, monkeypatch)
    resumed = tiny.resume(tmp_path / "run")
    assert (resumed.folder / BEST_FILE).read_text() == (whole / BEST_FILE).read_text()


def test_the_best_falls_back_with_the_run(run, monkeypatch):
    """A best that is set aside is no longer the best."""
    assert best(run) == latest(run)
    flip(latest(run) / TENSORS, 300)
    resumed, _ = start.resume(str(run), {})
    assert resumed.best_saved.step == 10                   # the validation of 15 is still to come
    assert best(run).name == "step-00000010"


def test_a_step_validated_anew_counts_as_it_is_now(tmp_path):
    run, _ = tiny.begin(tmp_path / "run")
    save(run)
    for loss, kept in ((5.0, 5.0), (6.0, 6.0), (4.0, 4.0)):
        note_best(run, loss)
        assert run.best_saved == Best(0, kept)
    run.step = 1
    note_best(run, 1.0)                                    # not saved
    assert run.best_saved == Best(0, 4.0)
    (run.folder / "log.jsonl").unlink(missing_ok=True)
    find_best(run)
    assert run.best_saved is None
    assert not (run.folder / BEST_FILE).exists()


def test_run_best_is_a_model(run, tmp_path):
    import bitnet_ref as br

    (run / BEST_FILE).write_text('{"step": 10, "loss": 1.0}')
    assert latest(run / "best").name == "step-00000010"
    for opened in (load(run / "best"), br.load(str(run / "best"))):
        assert opened.generate("ba", tokens=5, temperature=0.0) == load(
            run / "step-00000010").generate("ba", tokens=5, temperature=0.0)
    with tiny.refusal("must go on from its newest checkpoint"):
        start.resume(str(run / "best"), {})
    result = tiny.command("generate", "--model", run / "best", "--prompt", "ba", "--tokens", 3)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("content", "words"), [
    ("{", "must be JSON"), ("[" * 2000, "must be JSON"), ("[]", "must name the step"), ("{}", "got None"),
    ('{"step": "../x"}', "must name the step"), ('{"step": true}', "got True"), ('{"step": 11}', "got 11"),
    ('{"step": -1}', "got -1")])
def test_a_damaged_best_is_refused(content, words, run):
    (run / BEST_FILE).write_text(content)
    with tiny.refusal(words, BEST_FILE):
        load(run / "best")
    assert start.resume(str(run), {})[0].step == 20        # which writes it anew; 20 is yet to be validated
    assert best(run).name == "step-00000015"


# --- disks and clocks --------------------------------------------------------------------------------------


def failing(monkeypatch, name, code):
    """Every write to a file whose path has `name` in it meets a disk that is full, or read-only."""
    real, real_replace = builtins.open, os.replace

    def refuse(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(builtins, "open", lambda file, mode="r", *a, **k: refuse(file)
                        if name in str(file) and set(mode) & set("wa+") else real(file, mode, *a, **k))
    monkeypatch.setattr(os, "replace", lambda a, b: refuse(b) if name in str(b) else real_replace(a, b))


REFUSALS = [pytest.param(name, code, id=f"{name}-{what}",
                         marks=[] if (name, what) in ((TENSORS, "full"), ("log.jsonl", "read-only")) else
                         pytest.mark.slow)
            for name in ("log.jsonl", TENSORS, STATE, MARK, BEST_FILE, "summary.json", "loss.png")
            for code, what in ((errno.ENOSPC, "full"), (errno.EROFS, "read-only"))]


@pytest.mark.parametrize(("name", "code"), REFUSALS)
def test_a_disk_that_refuses_is_one_line_and_the_run_goes_on_later(name, code, tmp_path, monkeypatch):
    tiny.interrupt(tmp_path / "run", 12, monkeypatch)
    with monkeypatch.context() as patch:
        failing(patch, name, code)
        with tiny.refusal(os.strerror(code)):
            resumed_and_finished(tmp_path / "run")
    left = [p.name for p in (tmp_path / "run").rglob(".*") if p.name != ".lock"]
    assert left == []
    tiny.assert_same_runs(resumed_and_finished(tmp_path / "run"), tiny.begin_again(tiny.trained()))


def resumed_and_finished(path):
    """As the command does it."""
    run, data = start.resume(str(path), {})
    loop.train(run, data)
    summary.finish(run, data)
    return run


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", ".lock"])
def test_a_run_that_cannot_begin_leaves_its_place_free(name, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, name, errno.ENOSPC)
        with tiny.refusal("the run folder must be writable", "No space left"):
            tiny.begin(tmp_path / "run")
    assert tiny.begin(tmp_path / "run")[0].step == 0


def test_no_clock_decides_anything(tmp_path, monkeypatch):
    """The time jumps by years, both ways, and every file says that it was changed at another of them."""
    chance = random.Random(0)

    def jumping():
        return 1e9 + chance.uniform(-1e9, 1e9)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(tqdm.std, "time", jumping)
    tiny.interrupt(tmp_path / "run", 12, monkeypatch)
    for file in sorted((tmp_path / "run").rglob("*")):
        os.utime(file, (jumping(), jumping()))
    tiny.assert_same_runs(tiny.resume(tmp_path / "run"), tiny.begin_again(tiny.trained()))
    assert all(line["seconds"] >= 0 for line in loop.log.read(tmp_path / "run", "step"))
