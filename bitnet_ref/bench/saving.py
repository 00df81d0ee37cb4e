"""python -m bitnet_ref.bench.saving
python -m bitnet_ref.bench.saving --preset nano --every 100 --rounds 5

What checkpoints cost: the seconds of one beside those of the steps between two, and the bytes written. Steps
and checkpoints are the trainer's own, taken by turns, so that a busy minute touches both; the file system is
that of --folder. Exit code 1 if they take 2 % of the run or more.
Read after: bench/training. Read next: bench/stability.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bitnet_ref import kernels
from bitnet_ref.bench.random_model import random_data
from bitnet_ref.checks import check, lookup
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, run_command, text
from bitnet_ref.config import PRESETS
from bitnet_ref.train.checkpoint import Run, new_run, save
from bitnet_ref.train.loop import optimise

MOST = 0.02                  # of a run's time


class Cost(NamedTuple):
    """Seconds of a step and of a checkpoint (medians), and the bytes of one."""

    step: float
    save: float
    n_bytes: int

    def share(self, every: int) -> float:
        """Of the time of a run that saves every so many steps."""
        return self.save / (every * self.step + self.save)


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def begin(preset: str, backend: str, folder: Path) -> tuple[Run, Any]:
    """A run of the preset on random tokens. Without the guard, so that each timed step is a whole one."""
    cfg, how = lookup(PRESETS, preset, "preset")
    run = new_run(folder, cfg, replace(how, backend=backend, guard=False), {}, kernels.load(backend))
    return run, random_data(cfg, 8 * how.batch * how.accumulate)


def measured(run: Run, data: Any, rounds: int, steps: int = 5) -> Cost:
    """After a warm-up, `rounds` times: some steps, then a checkpoint."""
    run.seen = {name: t.w_q for name, t in run.model.weights.trits().items()}
    optimise(run, data)
    path = save(run)
    took: list[float] = []
    saved: list[float] = []
    for _ in range(rounds):
        took += [seconds(lambda: optimise(run, data)) for _ in range(steps)]
        saved.append(seconds(lambda: save(run)))
    return Cost(median(took), median(saved), sum(f.stat().st_size for f in path.parent.glob("step-*/*"))
                // len(list(path.parent.glob("step-*"))))


def main(argv: list[str]) -> int:
    """Measure, print."""
    parser = Parser("python -m bitnet_ref.bench.saving", __doc__)
    parser.add_argument("--preset", type=text, default="nano", metavar="|".join(PRESETS),
                        help="the model (default: nano)")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints (default: 100)")
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints measured (default: 5)")
    parser.add_argument("--backend", type=text, default="numba", help="of the steps (default: numba)")
    parser.add_argument("--folder", type=text, metavar="DIR", help="where to write (default: temporary)")
    args = parser.parse_args(argv)
    for name in ("every", "rounds"):
        check(getattr(args, name) > 0, f"--{name} must be greater than 0", getattr(args, name), "give more")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(f"{args.preset}: {args.rounds} rounds of steps and a checkpoint", file=sys.stderr)
        cost = measured(*begin(args.preset, args.backend, Path(folder)), args.rounds)
    share = cost.share(args.every)
    print(f"{args.preset}: a step {1000 * cost.step:.0f} ms, a checkpoint {1000 * cost.save:.0f} ms for "
          f"{cost.n_bytes / 1e6:.1f} MB; every {args.every} steps it takes {share:.2%} of the run "
          f"(at most {MOST:.0%})")
    return DONE if share < MOST else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
