"""How long one waits: import, --help, the first token of a model, with compiled code at hand and without.

Each is a process of its own, as a user starts it. The model is a run of `nano` with its initial weights, in a
temporary folder. Cold means a fresh cache folder: everything is compiled.
Read after: bench/stability. Read next: bench/report.
"""

import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from bitnet_ref import kernels
from bitnet_ref.bench.child import PACKAGE
from bitnet_ref.bench.part import Claim, Measure, Part, Setup, by_turns, middle
from bitnet_ref.bench.random_model import NANO
from bitnet_ref.checks import check
from bitnet_ref.config import TrainConfig
from bitnet_ref.data.python_docs import python_docs
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.generate.language_model import TOKENIZER
from bitnet_ref.train.checkpoint import new_run, save

IMPORT, HELP, WARM, COLD = "import bitnet_ref", "--help", "first token, warm", "first token, cold"
LIMITS = {IMPORT: 0.15, HELP: 0.4, WARM: 1.5, COLD: 25.0}               # seconds
COLD_ROUNDS = 3


def part(setup: Setup) -> Part:
    """Seconds of each; cold in a few rounds of its own, for it takes long."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_run(folder / "run", setup.quick)
        token = ("-m", "bitnet_ref.generate", "--model", str(folder / "run"), "--tokens", "1", "--threads",
                 str(setup.threads))
        setup.say(f"startup: {setup.rounds} rounds")
        times = by_turns(setup, {IMPORT: partial(python, setup, "-c", "import bitnet_ref"),
                                 HELP: partial(python, setup, "-m", "bitnet_ref.generate", "--help"),
                                 "python": partial(python, setup, "-c", "pass"),
                                 WARM: partial(python, setup, *token)})
        setup.say("startup: compiling everything, a few times")
        fresh = itertools.count()
        if not setup.quick:
            times |= by_turns(setup._replace(rounds=COLD_ROUNDS), {
                COLD: lambda: python(setup, *token, cache=folder / f"cache-{next(fresh)}")})
    return Part("Start", [Measure("a process that does nothing, to compare", middle(times, "python"), "s"),
                          *(Measure(name, middle(times, name), "s") for name in LIMITS if name in times)],
                [Claim(name, middle(times, name) if name in times else None, "s", most, most=True)
                 for name, most in LIMITS.items()], [])


def make_run(folder: Path, quick: bool) -> None:
    """A run of nano at step 0: checkpoint and tokenizer."""
    tokenizer = train_bpe(["quick"] if quick else python_docs(), NANO.vocab_size)
    folder.mkdir()
    tokenizer.save(folder / TOKENIZER)
    cfg = replace(NANO, vocab_size=tokenizer.vocab_size)
    save(new_run(folder, cfg, TrainConfig(), {"tokenizer": tokenizer.checksum}, kernels.load("numpy")))


def python(setup: Setup, *arguments: str, cache: Path | None = None) -> None:
    """Run the interpreter with these arguments to its end. Raises CheckError if it fails."""
    path = os.pathsep.join(p for p in (str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")) if p)
    own = {} if cache is None else {"BITNET_REF_CACHE": str(cache), "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path, **own},
                          capture_output=True, text=True)
    check(done.returncode == 0, f"python {' '.join(arguments)} must run",
          f"exit code {done.returncode}, {done.stderr.strip()[-200:]}", "see whether it runs by itself")
