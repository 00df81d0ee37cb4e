"""BitNet and whom it is held against, trained here: a twin with as many parameters, as many bytes, as much time.

All see the same text in the same order for a seed. Equal parameters: the same shape, its matrices in floats,
as many steps. Equal bytes: a narrower float model that, in float16, takes what BitNet takes with trits, as
many steps. Equal time: the twin for as many seconds of training as BitNet took, whichever steps are faster.
The rates are those of the grids in docs/benchmarks/training.md, chosen on validation text; the narrower
model has the twin's, which may not be its best.
Read after: bench/efficiency. Read next: bench/chains.
"""

import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.bench.cells import Cell, run_cells
from bitnet_ref.checks import check
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.model.cost import inference_bytes
from bitnet_ref.pack import i2
from bitnet_ref.train import log

BITNET, TWIN, SMALL, LONG = "bitnet", "twin", "small-twin", "long-twin"
NAMES = {BITNET: "BitNet b1.58", TWIN: "full-precision twin", SMALL: "narrower twin",
         LONG: "twin, the same seconds"}
CONTESTS = {TWIN: "equal parameters", SMALL: "equal bytes", LONG: "equal time"}
RECIPES: dict[str, dict[str, Any]] = {
    "ternary": {"lr": 1e-2}, "full": {"lr": 2e-3, "init_std": 0.02, "schedule": "linear"}}


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
    first = [*_cells(plan, BITNET, plan.model), *_cells(plan, TWIN, plan.model), *_cells(plan, SMALL, small)]
    found = _trained(plan, first, folder)
    steps = steps_in_time(plan.train.steps, found[BITNET], found[TWIN])
    timed = plan._replace(train=replace(plan.train, steps=steps))
    return found | _trained(plan, _cells(timed, LONG, plan.model), folder)


def _cells(plan: Plan, who: str, model: ModelConfig) -> list[tuple[str, Cell]]:
    kind = "ternary" if who == BITNET else "full"
    recipe = RECIPES[kind]
    shape = {k: v for k, v in recipe.items() if k in ModelConfig.__dataclass_fields__}
    how = {k: v for k, v in recipe.items() if k not in shape}
    model = replace(model, linear=kind, **shape)
    every = max(1, plan.train.steps // 8)
    return [(who, Cell(f"{who}-seed-{seed}", model,
                       replace(plan.train, **how, seed=seed, guard=False, keep=1, eval_every=every,
                               save_every=plan.train.steps)))
            for seed in range(plan.train.seed, plan.train.seed + plan.seeds)]


def _trained(plan: Plan, cells: list[tuple[str, Cell]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    threads = plan.train.threads or max(1, (os.cpu_count() or 1) // plan.jobs)
    runs = run_cells(plan.preset, [cell for _, cell in cells], folder, plan.jobs, threads)
    found: dict[str, list[dict[str, Any]]] = {}
    for (who, cell), run in zip(cells, runs):
        check(run["loss"] is not None, f"{cell.name} must train", "a run that diverged",
              "lower its rate, or give more steps")
        seconds = [line["seconds"] for line in log.read(folder / cell.name, "step")]
        found.setdefault(who, []).append(
            {**run, "seed": cell.train.seed, "steps": cell.train.steps, "lr": cell.train.lr,
             "d_model": cell.model.d_model, "seconds per step": statistics.median(seconds)})
    return found


def steps_in_time(steps: int, bitnet: list[dict[str, Any]], twin: list[dict[str, Any]]) -> int:
    """How many steps the twin takes in the seconds of BitNet's: medians over steps, then over seeds."""
    ours, theirs = (statistics.median(run["seconds per step"] for run in runs) for runs in (bitnet, twin))
    return max(1, round(steps * ours / theirs))


def narrower(cfg: ModelConfig) -> ModelConfig:
    """The full-precision model of the same depth and proportions whose float16 bytes are nearest to those of
    `cfg` with trits in 2 bits."""
    goal = stored_bytes(cfg)
    unit = 2 * cfg.n_heads
    shapes = [replace(cfg, linear="full", d_model=width, d_ff=max(1, round(cfg.d_ff * width / cfg.d_model)))
              for width in range(unit, cfg.d_model + 1, unit)]
    return min(shapes, key=lambda shape: abs(stored_bytes(shape) - goal))


def stored_bytes(cfg: ModelConfig) -> float:
    """Bytes of a model as stored for inference: trits in 2 bits, all else in float16."""
    return inference_bytes(cfg, i2.BITS_PER_TRIT)
