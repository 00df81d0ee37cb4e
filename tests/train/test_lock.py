"""train/lock: one process trains in a folder; the kernel lets go of it when that process dies."""

import errno
import gc
import os
import signal
import subprocess
import sys

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.train import lock, start
from bitnet_ref.train.lock import LOCK, hold

HOLDER = """
import sys, time
from pathlib import Path
from bitnet_ref.train.lock import hold
mine = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], env=tiny.environment(),
                               stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_refused_and_told_whom_to_end(holder, tmp_path):
    with tiny.refusal("one trainer at a time", f"process {holder.pid} on ", "wait for it, or end it"):
        hold(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_killed_process_leaves_no_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    assert hold(tmp_path).file.closed is False
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def other_process_may(folder):
    code = "import sys, pathlib; from bitnet_ref.train.lock import hold; hold(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=tiny.environment(),
                          capture_output=True, encoding="utf-8")
    assert (done.returncode == 0) != ("one trainer at a time" in done.stderr), done.stderr
    return done.returncode == 0


def test_a_process_has_one_lock_of_a_folder_until_nobody_has_it_any_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    one, two = hold(tmp_path), hold(type(tmp_path)(tmp_path.name))
    assert one is two
    assert not other_process_may(tmp_path)
    one = None
    assert not other_process_may(tmp_path)
    two = None
    gc.collect()
    assert other_process_may(tmp_path)


def test_what_was_released_can_be_taken_again(tmp_path):
    mine = hold(tmp_path)
    mine.release()
    mine.release()
    assert other_process_may(tmp_path)
    again = hold(tmp_path)
    assert again is not mine
    assert not other_process_may(tmp_path)


def test_a_file_system_without_locks_is_said_and_not_refused(tmp_path, monkeypatch, capsys):
    def unsupported(file):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_lock", unsupported)
    assert hold(tmp_path)
    assert "has no locks (No locks available); start no second trainer there" in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    (tmp_path / LOCK).mkdir()
    with tiny.refusal("the run folder must be writable", "make room, change its rights"):
        hold(tmp_path)


def test_on_a_full_disk_the_lock_is_anonymous(tmp_path, monkeypatch):
    class Full:
        def truncate(self, size):
            raise OSError(errno.ENOSPC, "No space left on device")

    lock._sign(Full())                                     # says nothing, and is no reason to stop
    held = hold(tmp_path)
    (tmp_path / LOCK).write_text("")
    assert not held.file.closed


# --- of a run ----------------------------------------------------------------------------------------------


def test_a_run_that_is_trained_elsewhere_is_neither_resumed_nor_started(holder, tmp_path):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != LOCK}
    (run / LOCK).unlink()
    os.link(tmp_path / LOCK, run / LOCK)                   # one file, one lock
    with tiny.refusal("one trainer at a time", str(holder.pid)):
        start.resume(str(run), {})
    assert {p: p.read_bytes() for p in before} == before
    (tmp_path / "new").mkdir()
    os.link(tmp_path / LOCK, tmp_path / "new" / LOCK)
    with tiny.refusal("one trainer at a time", str(holder.pid)):
        tiny.begin(tmp_path / "new")


def test_of_two_that_begin_in_one_folder_the_second_is_refused(holder, tmp_path, monkeypatch):
    """Both have seen it empty."""
    monkeypatch.setattr(start, "_is_free", lambda folder: True)
    with tiny.refusal("one trainer at a time", str(holder.pid)):
        tiny.begin(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [LOCK]


def test_a_run_holds_its_folder_as_long_as_it_is_there(tmp_path):
    run, data = tiny.begin(tmp_path / "run", steps=2)
    assert not other_process_may(run.folder)
    folder = run.folder
    del run, data
    gc.collect()
    assert other_process_may(folder)


@pytest.mark.slow
def test_two_commands_on_one_run(tmp_path):
    """The real thing: the second ends with one line of error, the first does not notice."""
    given = {"steps": 400, "backend": "numpy", "save_every": 50}
    first = subprocess.Popen(
        [sys.executable, "-m", "bitnet_ref.train", "--output", "run", *tiny.flags(**given)], cwd=tmp_path,
        env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    tiny.wait_for(lambda: (tmp_path / "run" / "step-00000000").exists(), first)
    second = tiny.command("train", "--resume", "run", cwd=tmp_path)
    tiny.assert_refused(second, "one trainer at a time", f"process {first.pid} on")
    assert first.communicate()[1].count("error:") == 0
    assert first.returncode == 0
