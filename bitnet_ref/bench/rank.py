"""mpiexec -n 2 python -m bitnet_ref.bench.rank --rounds 7

One rank of a job that bench/scaling starts: times, in turns, the steps of nano, and apart from them what the
cost model is told of the machine: other models' micro-batches, an update, messages. All ranks do the same at
once, so that cores and memory are as busy as in a step. The first prints one JSON object.
Read after: bench/backward. Read next: bench/scaling.
"""

import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.bench.random_model import NANO, random_data
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.data.feed import micro_batch
from bitnet_ref.train.checkpoint import Run, new_run
from bitnet_ref.train.gradient import gradient
from bitnet_ref.train.loop import optimise, update
from bitnet_ref.train.parallel import PIECE, World, as_one, here

BATCH, ACCUMULATE = 2, 4                     # of the measured step: enough micro-batches for 4 ranks
# On either side of nano, of the same vocabulary and heads: what is measured of these must hold between them.
SMALL = replace(NANO, d_model=128, n_heads=4, n_kv_heads=4, d_ff=384)
LARGE = replace(NANO, d_model=512, n_heads=16, n_kv_heads=16, d_ff=1536)
MESSAGES, PIECES = 200, 16                   # of a turn


def begun(cfg: ModelConfig, world: World, accumulate: int) -> tuple[Run, Any]:
    """A run on random tokens, the same on every rank. Without the guard: each timed step is a whole one, and
    none goes back to a checkpoint, for it has no folder of its own."""
    how = TrainConfig(batch=BATCH, accumulate=accumulate, guard=False)
    run = new_run(Path(), cfg, how, {}, kernels.load("numba", 1))
    run.world = world
    return run, random_data(cfg, 8 * BATCH * accumulate)


def turns(world: World) -> tuple[dict[str, Callable[[], object]], Run]:
    """{name: what is timed}, and the run whose steps are the measured ones."""
    run, data = begun(NANO, world, ACCUMULATE)
    small, large = (begun(cfg, World(), 1) for cfg in (SMALL, LARGE))
    spare = large[0].grads.zeros_like().flat

    def whole_update() -> None:
        """All that a step does to flat arrays: an update, and clearing and adding a gradient once."""
        spare[:] = 0
        np.add(large[0].grads.flat, spare, out=large[0].grads.flat)
        update(large[0])

    def one(run: Run, data: Any) -> Callable[[], object]:
        return lambda: run.model.loss_and_grads([micro_batch(data.feed, 0, BATCH)], run.grads)

    gradient(*large)                                       # so that there is something to update by
    timed: dict[str, Callable[[], object]] = {
        "step": lambda: optimise(run, data), "small": one(*small), "large": one(*large),
        "update": whole_update}
    return {**timed, **(messages(world) if world.size == 2 else {})}, run


def messages(world: World) -> dict[str, Callable[[], object]]:
    """An empty message, and a large one while as much comes, between two ranks: MESSAGES and PIECES times."""
    partner = 1 - world.rank
    arrays = {n: (np.zeros(n, np.float32), np.ones(n, np.float32)) for n in (1, PIECE)}

    def swap(n: int, times: int) -> None:
        for _ in range(times):
            world.comm.Sendrecv(arrays[n][0], partner, recvbuf=arrays[n][1], source=partner)

    return {"message": lambda: swap(1, MESSAGES), "piece": lambda: swap(PIECE, PIECES)}


def measure(world: World, rounds: int) -> dict[str, Any]:
    """{"seconds": {name: [the slowest rank's, each round]}, "parameters": their checksum at the end}"""
    runs, run = turns(world)
    for act in runs.values():
        act()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, act in runs.items():
            world.any(False)                               # all begin together
            began = time.perf_counter()
            act()
            took = np.zeros(world.size)
            took[world.rank] = time.perf_counter() - began
            seconds[name].append(float(world.added(took).max()))
    assert run.model.params is not None
    return {"ranks": world.size, "seconds": seconds, "parameters": zlib.crc32(run.model.params.flat.data)}


def main(argv: list[str]) -> int:
    """Parse, measure, print."""
    parser = Parser("mpiexec -n 2 python -m bitnet_ref.bench.rank", __doc__)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each (default: 7)")
    args = parser.parse_args(argv)
    print(json.dumps(measure(here(), args.rounds)))
    return DONE


if __name__ == "__main__":
    sys.exit(as_one(run_command, main))
