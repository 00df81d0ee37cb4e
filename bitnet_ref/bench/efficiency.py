"""What a model costs to run: tokens per second, the wait for the first, memory, energy; a process each time.

Each round starts a new process for each model, by turns: its peak memory is its own, and what differs from
one start to the next (where memory lies, what the machine is doing) is in the spread of the rounds. Peak
memory has the interpreter and its libraries in it, which a small model does not outweigh.
Read after: bench/contest. Read next: bench/rivals.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench.child import Child, peak, serve
from bitnet_ref.checks import check

PROMPT, TOKENS = 128, 64     # tokens read, tokens written, at most; a short context has half of it for each
TURN = 0.3                   # seconds, at least, that a figure is taken over
METRICS = {"prefill tokens/s": "higher", "decode tokens/s": "higher", "first token ms": "lower",
           "peak MiB": "lower", "joules per token": "lower"}
MODULE = "bitnet_ref.bench.efficiency"
RAPL = Path("/sys/class/powercap")
Round = dict[str, float | None]


class Measured(NamedTuple):
    """`rounds`: {name: figures round by round}; `notes`: what could not be measured and why; `kernels`: what
    the children computed with, which may be other threads than this process has."""

    rounds: dict[str, list[Round]]
    notes: list[str]
    kernels: dict[str, Any]


def measured(models: Mapping[str, str], rounds: int, threads: int | None,
             say: Callable[[str], None] = lambda text: None) -> Measured:
    """Of models by path, in turns."""
    check(rounds > 1, "--rounds must be 2 or more", rounds, "one round has no spread")
    found: dict[str, list[Round]] = {name: [] for name in models}
    notes: dict[str, None] = {}
    names, computed = list(models), dict[str, Any]()
    for i in range(rounds):
        say(f"efficiency: round {i + 1} of {rounds}")
        for name in names[i % len(names):] + names[:i % len(names)]:
            with Child(sys.executable, MODULE, models[name], str(threads or 0), ours=True) as child:
                computed, said = child.about["kernels"], child.ask("measure")
            if said["why no energy"]:
                notes[f"energy: unknown: {said['why no energy']}"] = None
            found[name].append({metric: said[metric] for metric in METRICS})
    return Measured(found, list(notes), computed)


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
    known = not isinstance(spent, str)
    return {"prefill tokens/s": prompt / wait, "decode tokens/s": 1 / each,
            "first token ms": 1e3 * wait, "peak MiB": peak() / 2**20 or None,
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
