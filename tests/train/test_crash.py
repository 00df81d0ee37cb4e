"""train, killed with SIGKILL: nothing of ours runs then, and yet the run goes on and ends equal."""

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.config import cache_dir
from bitnet_ref.formats.checkpoint import checkpoints, latest, read_state, read_tensors
from bitnet_ref.train import log

GIVEN = {"steps": 30, "save_every": 3, "eval_every": 4, "log_every": 2, "requantize_every": 2, "keep": 2}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")

# A process that kills itself at the n-th call of a function of the standard library, before or after it.
KILLER = """
import os, pathlib, shutil, signal, sys
owner, name, n, when = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
owner = {"os": os, "Path": pathlib.Path, "shutil": shutil}[owner]
real, calls = getattr(owner, name), []
def deadly(*args, **kwargs):
    calls.append(args)
    if len(calls) == n and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if len(calls) == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
from bitnet_ref.train import loop, start
run, data = start.resume(sys.argv[5], {}) if len(sys.argv) == 6 else (None, None)
setattr(owner, name, deadly)
loop.train(run, data)
"""


@pytest.fixture(scope="module")
def whole():
    """The run that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch, tiny.thread_pools().limit(limits=1):
        patch.setenv("NUMBA_CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR") or str(cache_dir() / "numba"))
        patch.setenv("BITNET_REF_CACHE", str(tiny.folder() / "cache"))
        return tiny.train(tiny.folder() / "uninterrupted", **GIVEN)


def assert_goes_on(path, whole):
    """Whatever is called a checkpoint is whole; the resumed run equals the uninterrupted one."""
    for checkpoint in checkpoints(path):
        read_tensors(checkpoint, read_state(checkpoint), ["param.embedding"])
    tiny.assert_same_runs(tiny.resume(path), whole)
    assert [p.name for p in checkpoints(path)] == [p.name for p in checkpoints(whole.folder)]


def kill_inside(path, owner, name, n, when, monkeypatch):
    """Start the run, stop it at step 4, resume it in a process that dies at the n-th call of owner.name."""
    tiny.interrupt(path, 4, monkeypatch, **GIVEN)
    result = subprocess.run([sys.executable, "-c", KILLER, owner, name, str(n), when, str(path)],
                            env=tiny.environment(), capture_output=True, encoding="utf-8", timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr


# The resumed process validates step 4 (one file synced, the best before it removed) and saves step 6 (the
# log, three files and two folders synced, one checkpoint removed); what is meant is the next, of step 9.
@pytest.mark.parametrize(("owner", "name", "n", "when"), [
    ("os", "fsync", 8 + 2, "before"), ("Path", "rename", 4, "before"),
    pytest.param("os", "fsync", 8 + 1, "before", marks=pytest.mark.slow),
    pytest.param("os", "fsync", 8 + 3, "after", marks=pytest.mark.slow),
    pytest.param("os", "fsync", 8 + 5, "after", marks=pytest.mark.slow),
    pytest.param("Path", "mkdir", 3, "after", marks=pytest.mark.slow),
    pytest.param("Path", "rename", 3, "after", marks=pytest.mark.slow),
    pytest.param("shutil", "rmtree", 6, "after", marks=pytest.mark.slow)])
def test_killed_inside_a_checkpoint_the_run_goes_on_and_ends_equal(owner, name, n, when, whole, tmp_path,
                                                                   monkeypatch):
    path = tmp_path / "run"
    kill_inside(path, owner, name, n, when, monkeypatch)
    assert read_state(latest(path))["step"] in (6, 9)
    assert_goes_on(path, whole)


def kill_after(path, steps, seconds):
    """A new run as a process, killed `seconds` after its log has `steps` lines. Whether it still ran."""
    arguments = [sys.executable, "-m", "bitnet_ref.train", "--output", str(path), *tiny.flags(**GIVEN)]
    process = subprocess.Popen(arguments, env=tiny.environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, encoding="utf-8")
    tiny.wait_for(lambda: len(log.read(path, "step")) >= steps, process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def killed_at_random(seed, whole, tmp_path):
    chance = random.Random(seed)
    assert kill_after(tmp_path / "run", chance.randint(4, 20), chance.uniform(0, 0.05))
    assert_goes_on(tmp_path / "run", whole)


def test_killed_at_a_random_instant_the_run_goes_on_and_ends_equal(whole, tmp_path):
    killed_at_random(0, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 13))
def test_killed_at_more_random_instants_the_run_goes_on_and_ends_equal(seed, whole, tmp_path):
    killed_at_random(seed, whole, tmp_path)


def test_killed_before_its_first_checkpoint_a_run_is_begun_again_in_its_folder(whole, tmp_path):
    """The first is that of step 0, which every run begins with."""
    run, _ = tiny.begin(tmp_path / "run", **GIVEN)
    with tiny.refusal("must hold a complete checkpoint", "start it again"):
        tiny.resume(run.folder)
    tiny.assert_same_runs(tiny.train(run.folder, **GIVEN), whole)


def test_a_folder_with_a_log_is_not_written_over(tmp_path):
    run, _ = tiny.begin(tmp_path / "run", **GIVEN)
    log.append(run.folder, "step", 1, 1, loss=9.0)
    with tiny.refusal("a new run needs a new or empty folder"):
        tiny.begin(run.folder, **GIVEN)
