"""python -m bitnet_ref.bench.twins --corpus wikitext-2 --steps 400 --seeds 3 --output runs/twins

BitNet against its full-precision twin: same model, data, batches and steps; each at the best of a small grid
of recipes and rates, chosen with the first seed; the best then runs with the other seeds. Every cell is an
ordinary run folder; cells that are done are not run again. Ends with figures.json and twins.png, on which a
best rate on the edge of its grid is seen.
Read after: bench/cells. Read next: bench/twins_picture.
"""

import argparse
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitnet_ref.bench.cells import T95, Cell, run_cells, spread
from bitnet_ref.bench.twins_picture import KINDS, draw
from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, add_args, configs, run_command
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig
from bitnet_ref.data.atomic import whole_file

# What each side may try, so that the twin is not held to a recipe that was made for trits: the initial width
# of published checkpoints, with the single line and the decay of the FAQ's full-precision models (Table 2).
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "ternary": {"as given": {}},
    "full": {"as given": {}, "narrow, one line": {"init_std": 0.02, "schedule": "linear"}}}


def cell(kind: str, recipe: str, lr: float, seed: int, model_cfg: ModelConfig, cfg: TrainConfig) -> Cell:
    """One run of one side. Without the guard, which would halve a high rate under its own name."""
    changes = RECIPES[kind][recipe]
    model = {k: v for k, v in changes.items() if k in ModelConfig.__dataclass_fields__}
    how = {k: v for k, v in changes.items() if k not in model}
    slug = "-".join([kind, *recipe.replace(",", "").split(), f"{lr:g}", f"seed-{seed}"])
    return Cell(slug, replace(model_cfg, linear=kind, **model),
                replace(cfg, **how, lr=lr, seed=seed, guard=False))


def grid(asked: list[tuple[str, str, float, int]], preset: str, model_cfg: ModelConfig, cfg: TrainConfig,
         folder: Path, jobs: int) -> list[dict[str, Any]]:
    """The figures of the cells (kind, recipe, rate, seed). `jobs` processes share the cores."""
    made = [cell(*a, model_cfg, cfg) for a in asked]
    runs = run_cells(preset, made, folder, jobs, max(1, (os.cpu_count() or 1) // jobs))
    return [{"kind": kind, "recipe": recipe, "lr": lr, "seed": seed, **run}
            for (kind, recipe, lr, seed), run in zip(asked, runs)]


def best(cells: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The cell of lowest final loss, and whether its rate lies inside its recipe's grid (not on the edge)."""
    rows = sorted((c for c in cells if c["kind"] == kind), key=lambda c: c["lr"])
    top = min(rows, key=lambda c: math.inf if c["loss"] is None else c["loss"])
    check(top["loss"] is not None, f"some rate of {kind} must train", "none that does", "lower the rates")
    row = [c["lr"] for c in rows if c["recipe"] == top["recipe"]]
    return {**top, "inside": row[0] < top["lr"] < row[-1]}


def gap(cells: list[dict[str, Any]], tops: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """By how many percent BitNet's perplexity is above its twin's, by seed; None with one seed.

    The first seed has also chosen the rates. Raises CheckError where a seed diverged.
    """
    loss = {kind: {c["seed"]: c["loss"] for c in cells
                   if all(c[name] == top[name] for name in ("kind", "recipe", "lr"))}
            for kind, top in tops.items()}
    seeds = sorted(loss["full"])
    for kind in KINDS:
        check(None not in loss[kind].values(), f"every seed of {kind} must train", "one that diverged",
              "give lower rates")
    if len(seeds) < 2:
        return None
    perplexity = {kind: [math.exp(loss[kind][s]) for s in seeds] for kind in KINDS}
    percent = [100 * (b / f - 1) for b, f in zip(perplexity["ternary"], perplexity["full"])]
    return {"seeds": seeds, "perplexity": perplexity, "percent": percent,
            "spread": {**{k: spread(p)._asdict() for k, p in perplexity.items()},
                       "percent": spread(percent)._asdict()}}


def parse_rates(text: str) -> list[float]:
    """The learning rates in "1e-3,2e-3"."""
    try:
        return [float(lr) for lr in text.split(",")]
    except ValueError as e:
        raise CheckError(f"rates must be numbers between commas; got {e}; write 1e-3,2e-3") from None


def said(figures: dict[str, Any]) -> list[str]:
    """The lines that the command prints."""
    lines = [f"{KINDS[kind][0]:<22} {top['recipe']:<17} lr {top['lr']:<8g} "
             f"{top['loss']:.4f} nats per token   {top['bits per byte']:.4f} bits per byte   "
             f"{'inside its grid' if top['inside'] else 'ON THE EDGE of its grid'}"
             for kind, top in figures["best"].items()]
    if found := figures["gap"]:
        away = found["spread"]["percent"]
        lines += [f"{KINDS[kind][0]:<22} perplexity {' '.join(f'{p:.2f}' for p in found['perplexity'][kind])}"
                  for kind in KINDS]
        each = " ".join(f"{p:+.2f}" for p in found["percent"])
        lines.append(f"gap in perplexity: {away['mean']:+.2f} % ± {away['half']:.2f} (mean and 95 % interval "
                     f"of {len(found['seeds'])} seeds: {each})")
    return lines


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; its rates as numbers."""
    parser = Parser("python -m bitnet_ref.bench.twins", __doc__)
    parser.add_argument("--preset", metavar="|".join(PRESETS),
                        help="a named model and its rates (default: nano)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the grid")
    parser.add_argument("--ternary-lrs", default="5e-3,1e-2,2e-2",
                        help="rates of BitNet (default: %(default)s)")
    parser.add_argument("--full-lrs", default="1e-3,2e-3,5e-3,1.25e-2",
                        help="rates of the twin (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1,
                        help="seeds, from --seed on, of the best (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add_args(parser, TrainConfig, "training")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)
    check(args.jobs > 0, "--jobs must be greater than 0", args.jobs, "use 1")
    check(args.seeds in (1, *T95), f"--seeds must be 1 to {max(T95)}", args.seeds, "use 3")
    args.rates = {"ternary": parse_rates(args.ternary_lrs), "full": parse_rates(args.full_lrs)}
    return args


def main(argv: list[str]) -> int:
    """Parse, run the grid, draw, print. Exit code 1 if a best rate lies on the edge of its grid."""
    args = parse(argv)
    preset, model_cfg, cfg = configs(args)
    how = preset, model_cfg, cfg, Path(args.output), args.jobs
    cells = grid([(kind, recipe, lr, cfg.seed) for kind, lrs in args.rates.items() for recipe in RECIPES[kind]
                  for lr in lrs], *how)
    tops = {kind: best(cells, kind) for kind in KINDS}
    cells += grid([(kind, top["recipe"], top["lr"], cfg.seed + s) for s in range(1, args.seeds)
                   for kind, top in tops.items()], *how)
    figures = {"steps": cfg.steps, "cells": cells, "best": tops, "gap": gap(cells, tops)}
    with whole_file(Path(args.output) / "figures.json") as f:
        f.write(json.dumps(figures, indent=1).encode())
    draw(figures, f"{preset} on {cfg.corpus}, {cfg.steps} steps", Path(args.output) / "twins.png")
    print("\n".join(said(figures)))
    return DONE if all(top["inside"] for top in tops.values()) else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
