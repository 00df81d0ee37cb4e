"""A corpus and runs so small that a test can afford to train: for train, generate, evaluate, formats, bench.

Everything lies in one temporary folder, made when first asked for and shared by all tests; a test that
damages a run works on a `copy` of it. `own_cache`, imported into a test file, keeps the prepared corpora
there too.
"""

import atexit
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from bitnet_ref.checks import CheckError
from bitnet_ref.cli import run_command
from bitnet_ref.config import ModelConfig, TrainConfig, cache_dir
from bitnet_ref.formats.checkpoint import (
    MARK,
    PARAM,
    STATE,
    fill,
    latest,
    model_config,
    named,
    read_state,
    read_tensors,
)
from bitnet_ref.kernels import load
from bitnet_ref.train import log, loop, start
from bitnet_ref.train.checkpoint import new_run, train_config

ROOT = Path(__file__).resolve().parent.parent
MODEL = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48,
         "context": 32}
HOW = {"steps": 20, "batch": 4, "lr": 1e-2, "warmup": 3, "eval_every": 5, "eval_windows": 4, "save_every": 5,
       "keep": 3, "log_every": 2, "val_fraction": 0.1}
SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "né", "pi", "ro", "su", "ta", "vö"]


@cache
def folder():
    """The folder of everything; gone when Python ends."""
    path = Path(tempfile.mkdtemp(prefix="bitnet-ref-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    """A file that imports this name leaves the user's cache alone, but for compiled code.

    One thread is quicker at this size.
    """
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR") or str(cache_dir() / "numba"))
    monkeypatch.setenv("BITNET_REF_CACHE", str(folder() / "cache"))
    with thread_pools().limit(limits=1):
        yield


@cache
def thread_pools():
    """What has threads in this process, looked up once."""
    return ThreadpoolController()


def text(sentences=4000, seed=0):
    """Sentences of invented words of one to three syllables, some not ASCII: learnable, hardly repeated."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 4))) for _ in range(150)] + ["—", "日本", "🙂"]
    weight = 1 / np.arange(1, len(words) + 1)
    lengths = rng.integers(4, 14, sentences)
    lines = [" ".join(rng.choice(words, n, p=weight / weight.sum())).capitalize() + "." for n in lengths]
    return "".join(line + ("\n\n" if n % 20 == 19 else "\n") for n, line in enumerate(lines))


@cache
def corpus(sentences=4000, seed=0):
    """A text file of about 200 KB (of about 50 bytes a sentence)."""
    path = folder() / f"text-{sentences}-{seed}.txt"
    path.write_text(text(sentences, seed), encoding="utf-8")
    return path


def configs(**given):
    """(ModelConfig, TrainConfig) of a tiny run; fields of either may be given."""
    model = {k: v for k, v in given.items() if k in ModelConfig.__dataclass_fields__}
    how = {k: v for k, v in given.items() if k in TrainConfig.__dataclass_fields__}
    assert len(model) + len(how) == len(given), f"{sorted(given)}: unknown field"
    return ModelConfig(**{**MODEL, **model}), TrainConfig(**{"corpus": str(corpus()), **HOW, **how})


def flags(**given):
    """The same as a command line: ["--d-model", "32", ...]."""
    given = {"corpus": corpus(), **MODEL, **HOW, **given}
    return [part for k, v in given.items() for part in (f"--{k.replace('_', '-')}", str(v))]


def begin(path, **given):
    """(run, data) at step 0 in the folder `path`."""
    return start.start("tiny", *configs(**given), str(path))


def train(path, **given):
    """A finished run in `path`, without its summary."""
    run, data = begin(path, **given)
    loop.train(run, data)
    return run


def resume(path, **typed):
    """The run in `path`, resumed and finished."""
    run, data = start.resume(str(path), typed)
    loop.train(run, data)
    return run


def begin_at_end(path):
    """The run in `path` as its last checkpoint has it. Nothing in the folder changes."""
    checkpoint = latest(path)
    stored = read_state(checkpoint)
    cfg = train_config(stored)
    run = new_run(Path(path), model_config(stored), cfg, {}, load(cfg.backend))
    fill(run.model.params, read_tensors(checkpoint, stored, list(named(PARAM, run.model.params))), PARAM)
    run.model.requantise()
    run.step = stored["step"]
    return run


def begin_again(path):
    """The run in `path`, resumed from a copy. Nothing in the folder changes."""
    return resume(copy(path, Path(tempfile.mkdtemp(dir=folder())) / "run"))


def interrupt(path, step, monkeypatch, **given):
    """A run that gets Ctrl-C during update number `step` (from 1), and is saved at its end.

    Its folder is free for another process, as it is when a command has ended.
    """
    run, data = begin(path, **given)
    update = loop.update_

    def interrupted(*args):
        update(*args)
        if args[3] == step:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update_", interrupted)
        with pytest.raises(loop.Interrupted, match=f"interrupted at step {step}; saved; go on with"):
            loop.train(run, data)
    run.lock.release()
    return run


def state(run):
    """{name: bytes or number}: everything that a run carries from step to step."""
    arrays = {"parameters": run.model.params.fetched().flat, "moment 1": run.adam.first.fetched().flat,
              "moment 2": run.adam.second.fetched().flat}
    for name, (w_q, w_scale) in run.model.weights.fetched(run.model.plan.ops).trits().items():
        arrays |= {f"trits {name}": w_q, f"scale {name}": np.asarray(w_scale)}
    arrays |= {f"seen {name}": w_q for name, w_q in run.seen.items()}
    arrays |= {} if run.ema is None else {"average": run.ema.fetched().flat}
    counters = {"step": run.step, "cursor": run.cursor, "best": run.best, "stale": run.stale}
    return {name: a.tobytes() for name, a in arrays.items()} | counters


def lines(path, kind=None):
    """The log of the run in `path`, without the seconds, the only thing in it that chance decides, and
    without the final score, which the command asks for and a user of the library may not."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in log.read(Path(path), kind)
            if line["kind"] != "final"]


def assert_same_runs(a, b):
    """Bit for bit: parameters, moments, trits, counters and every logged value."""
    assert state(a) == state(b)
    assert lines(a.folder) == lines(b.folder)


@cache
def trained(**given):
    """The folder of a finished run; do not change it (see `copy`)."""
    name = "-".join(["run", *(f"{k}-{v}" for k, v in given.items())])
    train(folder() / name, **given)
    return folder() / name


def copy(run, to):
    """A copy of a run's folder, to be damaged."""
    return Path(shutil.copytree(run, to))


def put_state(checkpoint, state):
    """Write state.json (a dict, text or bytes) with its right checksum: what a foreign tool would write."""
    data = json.dumps(state) if isinstance(state, dict) else state
    data = data.encode() if isinstance(data, str) else data
    (checkpoint / STATE).write_bytes(data)
    (checkpoint / MARK).write_text(hashlib.sha256(data).hexdigest())


class AtOnce:
    """A pool of no processes, for a command whose cells a test makes here."""

    def __init__(self, jobs, mp_context=None):
        self.jobs = jobs

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *args):
        """What has happened by now."""
        result = function(*args)
        return type("Future", (), {"result": lambda self: result})()


def command(module, *args, **options):
    """`python -m bitnet_ref.<module>` as a process: with returncode, stdout and stderr."""
    return subprocess.run([sys.executable, "-m", f"bitnet_ref.{module}", *map(str, args)], env=environment(),
                          capture_output=True, encoding="utf-8", timeout=300, **options)


def wait_for(happened, process, seconds=120):
    """Poll until `happened()`; fail if the process ends before, or after `seconds`."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def environment():
    """This process's environment, in which a child finds this library and prints UTF-8."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def assert_refused(result, *words):
    """Exit code 2 and one line of error with three parts, in which each of `words` stands."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert_three_parts(errors[0], *words)


def commanded(main, capsys):
    """run(*arguments): the command on the trained model, in this process  ->  (exit code, stdout, stderr).

    Without the line that a slow compilation writes: which test meets one depends on the cache.
    """
    trained()
    capsys.readouterr()

    def run(*arguments):
        code = run_command(main, ["--model", str(trained()), *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, "".join(l for l in err.splitlines(True) if not l.startswith("compiling for "))

    return run


def assert_three_parts(message, *words):
    """What must hold; what came; what to do."""
    message = str(message)
    assert message.count("; ") >= 2, message
    assert "; got " in message, message
    assert [w for w in words if str(w) not in message] == [], message


def refusal(*words):
    """`pytest.raises(CheckError)` whose message has three parts and each of `words`."""
    return _Refusal(words)


class _Refusal:
    def __init__(self, words):
        self.words, self.raises = words, pytest.raises(CheckError)

    def __enter__(self):
        return self.raises.__enter__()

    def __exit__(self, kind, error, trace):
        caught = self.raises.__exit__(kind, error, trace)
        if caught:
            assert_three_parts(error, *self.words)
        return caught
