"""BitNet and whom it is held against: twins of as many parameters, as many bytes, as much time.

All see the same text in the same order for a seed. Equal parameters: the same shape, matrices in floats, as
many steps. Equal bytes: a narrower float model that, in float16, takes what BitNet takes with trits, as many
steps. Equal time: the twin for as many seconds of training as BitNet took, whichever steps are faster.
Read after: bench/engines. Read next: bench/chains.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref import kernels
from bitnet_ref.bench import timing
from bitnet_ref.bench.cells import Cell, run_cells
from bitnet_ref.bench.random_model import random_data
from bitnet_ref.checks import check
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.evaluate.provenance import machine
from bitnet_ref.model.cost import inference_bytes
from bitnet_ref.pack import i2
from bitnet_ref.train.checkpoint import new_run
from bitnet_ref.train.loop import optimise

BITNET, TWIN, SMALL, LONG = "bitnet", "twin", "small-twin", "long-twin"
NAMES = {BITNET: "BitNet b1.58", TWIN: "full-precision twin", SMALL: "narrower twin",
         LONG: "twin, the same seconds"}
CONTESTS = {TWIN: "equal parameters", SMALL: "equal bytes", LONG: "equal time"}
PACE, ROUNDS = "pace.json", 9
GRAIN = 8                        # of the width of a gated unit
# The best of the grids in docs/benchmarks/training.md, of 300 steps on this corpus, by validation text.
RATES = {"ternary": 1e-2, "full": 5e-3}


class Plan(NamedTuple):
    """What is trained: `model` is BitNet's shape, `train` the options that all share."""

    preset: str
    model: ModelConfig
    train: TrainConfig
    seeds: int
    jobs: int


def train_all(plan: Plan, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """{who: a figure table for each seed}; runs that are done are read. Raises CheckError if one diverged."""
    small = narrower(plan.model)
    shapes = {BITNET: plan.model, TWIN: replace(plan.model, linear="full"), SMALL: small}
    paces = kept_pace(plan, shapes, folder / PACE)
    paces[LONG] = paces[TWIN]
    steps = steps_in_time(plan.train.steps, paces)
    timed = plan._replace(train=replace(plan.train, steps=steps))
    cells = [c for who, shape in shapes.items() for c in _cells(plan, who, shape)]
    found = _trained(plan, [*cells, *_cells(timed, LONG, plan.model)], folder)
    return {who: [{**run, "seconds per step": paces[who]} for run in runs] for who, runs in found.items()}


# ---- time ----

def steps_in_time(steps: int, paces: dict[str, float]) -> int:
    """How many steps the twin takes in the seconds of BitNet's."""
    return max(1, round(steps * paces[BITNET] / paces[TWIN]))


def kept_pace(plan: Plan, shapes: dict[str, ModelConfig], file: Path) -> dict[str, float]:
    """{who: seconds per step}; from `file` if it was measured for these shapes and threads on this machine,
    so that a report that is gone on with asks for the same steps."""
    asked = {who: asdict(shape) for who, shape in shapes.items()} | {
        "batch": plan.train.batch, "threads": threads_of(plan), "machine": machine()}
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept.get("asked") == asked:
            return dict(kept["seconds per step"])
    found = pace(plan, shapes)
    with whole_file(file) as f:
        f.write(json.dumps({"asked": asked, "seconds per step": found}).encode())
    return found


def pace(plan: Plan, shapes: dict[str, ModelConfig], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds per step, measured by turns on random tokens: what a neighbour does meanwhile touches all."""
    ops, how = kernels.load("numba", threads_of(plan)), replace(plan.train, guard=False)
    steps: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as place:
        for who, shape in shapes.items():
            run = new_run(Path(place) / who, shape, how, {}, ops)
            run.seen = {name: t.w_q for name, t in run.model.weights.trits().items()}
            steps[who] = partial(optimise, run, random_data(shape, 8 * how.batch * how.accumulate))
        return timing.median(timing.alternate(steps, rounds))


def threads_of(plan: Plan) -> int:
    """Of each run."""
    return plan.train.threads or max(1, (os.cpu_count() or 1) // plan.jobs)


# ---- runs ----

def _cells(plan: Plan, who: str, model: ModelConfig) -> list[tuple[str, Cell]]:
    kind = "ternary" if who == BITNET else "full"
    every = max(1, plan.train.steps // 8)
    return [(who, Cell(f"{who}-seed-{seed}", replace(model, linear=kind),
                       replace(plan.train, lr=RATES[kind], seed=seed, guard=False, keep=1, eval_every=every,
                               save_every=plan.train.steps)))
            for seed in range(plan.train.seed, plan.train.seed + plan.seeds)]


def _trained(plan: Plan, cells: list[tuple[str, Cell]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    runs = run_cells(plan.preset, [cell for _, cell in cells], folder, plan.jobs, threads_of(plan))
    found: dict[str, list[dict[str, Any]]] = {}
    for (who, cell), run in zip(cells, runs):
        check(run["loss"] is not None, f"{cell.name} must train", "a run that diverged",
              "lower its rate, or give more steps")
        found.setdefault(who, []).append(
            {**run, "seed": cell.train.seed, "steps": cell.train.steps, "lr": cell.train.lr,
             "tokens": cell.train.steps * cell.train.batch * cell.train.accumulate * cell.model.context,
             "d_model": cell.model.d_model})
    return found


def narrower(cfg: ModelConfig) -> ModelConfig:
    """A full-precision model of the same depth whose float16 bytes are those of `cfg` with trits in 2 bits:
    of its proportions the widest that takes no more, with as much more gated unit as there is room for.

    Raises CheckError for a model that is all embedding, or so.
    """
    goal, unit = stored_bytes(cfg), 2 * cfg.n_heads
    shapes = [replace(cfg, linear="full", d_model=width, d_ff=max(1, round(cfg.d_ff * width / cfg.d_model)))
              for width in range(unit, cfg.d_model + 1, unit)]
    fitting = [shape for shape in shapes if stored_bytes(shape) <= goal]
    check(len(fitting) > 0, "a full-precision model must fit into BitNet's bytes", f"none with {cfg.n_heads} "
          "heads", "give fewer heads or more width")
    widest = fitting[-1]
    wider = [replace(widest, d_ff=widest.d_ff + more) for more in range(0, cfg.d_ff, GRAIN)]
    return min(wider, key=lambda shape: abs(stored_bytes(shape) - goal))


def stored_bytes(cfg: ModelConfig) -> float:
    """Bytes of a model as stored for inference: trits in 2 bits, all else in float16."""
    return inference_bytes(cfg, i2.BITS_PER_TRIT)
