"""What a model costs to run: tokens per second, the wait for the first, memory, energy; a process each time.

Each round starts a new process for each model, by turns: its peak memory is its own, and what differs from
one start to the next (where memory lies, what the machine is doing) is in the spread of the rounds. Peak
memory has the interpreter and its libraries in it, which a small model does not outweigh.
Read after: bench/contest. Read next: bench/engines.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench.child import Child, peak, serve
from bitnet_ref.checks import CheckError, check

PROMPT, TOKENS = 128, 64     # tokens read, tokens written, at most; a short context has half of it for each
TURN = 0.3                   # seconds, at least, that a figure is taken over
METRICS = {"prefill tokens/s": "higher", "decode tokens/s": "higher", "first token ms": "lower",
           "peak MiB": "lower", "joules per token": "lower"}
MODULE = "bitnet_ref.bench.efficiency"
APART = "logits apart"
FAR = 0.1                        # of the largest logit: TQ2_0 quantises by blocks, and codes flip
RAPL = Path("/sys/class/powercap")
Round = dict[str, float | None]
NOBODY: Mapping[str, Any] = {}


class Ran(NamedTuple):
    """How a model is run by another engine: interpreter, module and arguments of its child; `like`: the name
    of the same model in ours."""

    python: str
    module: str
    arguments: tuple[str, ...]
    like: str


class Measured(NamedTuple):
    """`rounds`: {name: figures round by round}; `notes`: what could not be measured and why; `kernels`: what
    our children computed with, which may be other threads than this process has; `engines`: of each that ran
    in another engine to the end what that is, and how far its logits are from ours."""

    rounds: dict[str, list[Round]]
    notes: list[str]
    kernels: dict[str, Any]
    engines: dict[str, dict[str, Any]]


def measured(models: Mapping[str, str], rounds: int, threads: int | None,
             say: Callable[[str], None] = lambda text: None, peers: Mapping[str, Ran] = NOBODY) -> Measured:
    """Of models by path, and of `peers`, in turns. A peer that fails, or computes something else, is noted
    and left out."""
    check(rounds > 1, "--rounds must be 2 or more", rounds, "one round has no spread")
    found: dict[str, list[Round]] = {name: [] for name in (*models, *peers)}
    notes, computed, logits = dict[str, None](), dict[str, Any](), dict[str, Any]()
    engines: dict[str, dict[str, Any]] = {name: {} for name in peers}
    for i in range(rounds):
        say(f"efficiency: round {i + 1} of {rounds}")
        names = list(found)
        for name in names[i % len(names):] + names[:i % len(names)]:
            try:
                about, said = _asked(models.get(name), peers.get(name), threads)
            except CheckError as e:
                if name in models:
                    raise
                notes[f"{name}: left out: {e}"] = None
                del found[name], engines[name]
                continue
            computed, logits[name] = about["kernels"] or computed, np.array(said["logits"])
            if name in peers:
                engines[name] = {"engine": about["about"]}
            if said["why no energy"]:
                notes[f"energy: unknown: {said['why no energy']}"] = None
            found[name].append({metric: said[metric] for metric in METRICS})
    for name in [name for name in peers if name in found]:
        engines[name][APART] = away = apart(logits[peers[name].like], logits[name])
        if not away <= FAR:
            notes[f"{name}: left out: its logits are {away:.0%} of the largest from ours"] = None
            del found[name]
    return Measured(found, list(notes), computed, engines)


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of logits, as a share of the largest of ours; inf where one is not finite, or
    all of ours are zero, which say nothing."""
    if ours.shape != theirs.shape or not np.isfinite([ours, theirs]).all() or not ours.any():
        return math.inf
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def threads_of(path: str, threads: int | None) -> int:
    """How many threads a model of ours has in a process of its own: `threads`, or as many as that may use."""
    with Child(sys.executable, MODULE, path, str(threads or 0), ours=True) as child:
        return int(child.about["kernels"]["threads"])


def _asked(path: str | None, peer: Ran | None, threads: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(greeting, figures) of a model of ours, or of a peer."""
    words = (sys.executable, MODULE, str(path), str(threads or 0)) if peer is None else (
        peer.python, peer.module, *peer.arguments)
    with Child(*words, ours=peer is None) as child:
        return child.about, child.ask("measure")


# ---- in the child ----

def start() -> tuple[dict[str, Any], Mapping[str, Callable[..., dict[str, Any]]]]:
    """Load the model of the command line; what it can be asked."""
    from bitnet_ref.generate.language_model import load
    from bitnet_ref.kernels import about

    path, threads = sys.argv[1], int(sys.argv[2]) or None
    model = load(path, "numba", threads).transformer
    return {"about": path, "kernels": about("numba")}, {"measure": lambda: measure(model)}


def measure(model: Any) -> dict[str, Any]:
    """All figures of METRICS of a model, after a warm-up of each call."""
    half = model.cfg.context // 2
    prompt, tokens = min(PROMPT, half), min(TOKENS, half)
    ids = np.arange(prompt, dtype=np.int64)[None] % model.cfg.vocab_size

    def first() -> Any:
        logits, state = model.prefill(ids)
        return logits.reshape(-1, logits.shape[-1])[-1].argmax(), state

    def write() -> None:
        token, state = first()
        for _ in range(tokens):
            logits, state = model.decode_step(np.array([token], np.int64), state)
            token = logits.reshape(-1).argmax()

    write()                                                # compiled, its memory touched
    wait, _ = per_call(first)
    joules = energy()
    whole, calls = per_call(write)
    spent = joules()
    each = (whole - wait) / tokens
    known, most = not isinstance(spent, str), peak()
    logits, _ = model.prefill(ids)
    return {"logits": logits.reshape(-1, logits.shape[-1])[-1].tolist(),
            "prefill tokens/s": prompt / wait, "decode tokens/s": 1 / each,
            "first token ms": 1e3 * wait, "peak MiB": most / 2**20 or None,
            "joules per token": spent / (calls * (prompt + tokens)) if known else None,
            "why no energy": "" if known else spent}


def per_call(run: Callable[[], object]) -> tuple[float, int]:
    """The median seconds of a call, of as many as TURN holds and no fewer than 3; and how many."""
    times: list[float] = []
    while sum(times) < TURN or len(times) < 3:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times), len(times)


def energy(place: Path = RAPL) -> Callable[[], Any]:
    """Begins to count. The function that it returns: joules of all processor packages since, or why not.

    A counter goes back to zero at its range; more than one turn of it within a measurement is not seen.
    """
    packages = sorted(p for p in place.glob("intel-rapl:*") if p.name.count(":") == 1)
    if not packages:
        return lambda: "no counter in /sys/class/powercap"
    try:
        before = [(p, _micro(p / "energy_uj"), _micro(p / "max_energy_range_uj")) for p in packages]
    except (OSError, ValueError) as e:
        why = f"{packages[0].name}: {getattr(e, 'strerror', None) or e}"
        return lambda: why
    return lambda: sum((_micro(p / "energy_uj") - was) % (most + 1) for p, was, most in before) / 1e6


def _micro(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


if __name__ == "__main__":
    serve(start)
