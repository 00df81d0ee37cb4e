"""python -m bitnet_ref.bench.twins --corpus wikitext-2 --steps 400 --output runs/twins

BitNet against its full-precision twin: same model, data, batches and steps; each at the best of a small grid
of learning rates. Every cell of the grid is an ordinary run folder; cells that are done are not run again.
Ends with figures.json and twins.png: both best curves, and the final loss over the rate, so that a best rate
on the edge of its grid is seen.
Read after: bench/torch_peer. Read next: bench/backward.
"""

import json
import math
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from bitnet_ref.checks import CheckError, NonFiniteError, check
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, add_args, configs, run_command
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.train import log, loop, start

KINDS = {"ternary": ("BitNet b1.58", "#d1603d"), "full": ("full-precision twin", "#3b6fb6")}


def cell(preset: str, model_cfg: ModelConfig, cfg: TrainConfig, folder: Path, threads: int) -> dict[str, Any]:
    """Train one model of the grid in `folder`, or read its figures if that was done before. A rate at which
    training diverges has loss None."""
    done, asked = folder / "final.json", {"model": asdict(model_cfg), "train": asdict(cfg)}
    if done.exists():
        figures = json.loads(done.read_text(encoding="utf-8"))
        check(figures["asked"] == json.loads(json.dumps(asked)), f"{folder} must have these options",
              "others", "give another --output, or delete it")
    else:
        check(not folder.exists() or (folder / start.CONFIG).is_file(), f"{folder} must be new or a run's",
              "other files", "give another --output")
        shutil.rmtree(folder, ignore_errors=True)                   # of a grid that was interrupted
        figures = {"kind": model_cfg.linear, "lr": cfg.lr, "loss": None, "bits per byte": None,
                   "asked": asked}
        with threadpool_limits(threads):
            run, data = start.start(preset, model_cfg, cfg, str(folder))
            with suppress(NonFiniteError):
                loop.train(run, data)
                final = loop.final_score(run, data)
                figures |= {"loss": final.loss, "bits per byte": final.bits_per_byte}
        with whole_file(done) as f:
            f.write(json.dumps(figures).encode())
    return {**figures, "curve": [(line["step"], line["loss"]) for line in log.read(folder)
                                  if line["kind"] in ("eval", "final")]}


def grid(preset: str, model_cfg: ModelConfig, cfg: TrainConfig, rates: dict[str, list[float]], folder: Path,
         jobs: int) -> list[dict[str, Any]]:
    """The figures of every cell. `jobs` processes share the cores."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        cells = [pool.submit(cell, preset, replace(model_cfg, linear=kind), replace(cfg, lr=lr),
                             folder / f"{kind}-{lr:g}", threads) for kind, lrs in rates.items() for lr in lrs]
        figures = [c.result() for c in cells]
    return [{k: v for k, v in c.items() if k != "asked"} for c in figures]


def best(cells: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The cell of lowest final loss, and whether it lies inside its grid (not on the edge)."""
    row = sorted((c for c in cells if c["kind"] == kind), key=lambda c: c["lr"])
    at = min(range(len(row)), key=lambda i: math.inf if row[i]["loss"] is None else row[i]["loss"])
    check(row[at]["loss"] is not None, f"some rate of {kind} must train", "none that does", "lower the rates")
    return {**row[at], "inside": 0 < at < len(row) - 1}


def draw(cells: list[dict[str, Any]], title: str, path: Path) -> None:
    """Both best curves, the others faint; and the final loss over the learning rate."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for kind, (name, color) in KINDS.items():
        top = best(cells, kind)
        for c in (c for c in cells if c["kind"] == kind):
            left.plot(*zip(*c["curve"]), color=color, alpha=0.18, lw=1)
        left.plot(*zip(*top["curve"]), color=color, lw=2.2,
                  label=f"{name}, lr {top['lr']:g}: {top['loss']:.3f} nats, "
                        f"{top['bits per byte']:.3f} bits per byte")
        row = sorted((c["lr"], c["loss"]) for c in cells if c["kind"] == kind and c["loss"] is not None)
        right.plot(*zip(*row), "o-", color=color, label=name)
    left.set(title=title, xlabel="optimiser step", ylabel="validation loss, nats per token")
    right.set(title="Final validation loss over the learning rate", xlabel="peak learning rate", xscale="log")
    low = min(c["loss"] for c in cells if c["loss"] is not None)
    left.set_ylim(low - 0.1, low + 2.5)
    for ax in (left, right):
        ax.legend(frameon=False)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def parse_rates(text: str) -> list[float]:
    """The learning rates in "1e-3,2e-3"."""
    try:
        return [float(lr) for lr in text.split(",")]
    except ValueError as e:
        raise CheckError(f"rates must be numbers between commas; got {e}; write 1e-3,2e-3") from None


def main(argv: list[str]) -> int:
    """Parse, run the grid, draw, print. Exit code 1 if a best rate lies on the edge of its grid."""
    parser = Parser("python -m bitnet_ref.bench.twins", __doc__)
    parser.add_argument("--preset", metavar="|".join(PRESETS),
                        help="a named model and its rates (default: nano)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the grid")
    parser.add_argument("--ternary-lrs", default="5e-3,1e-2,2e-2",
                        help="rates of BitNet (default: %(default)s)")
    parser.add_argument("--full-lrs", default="2e-3,5e-3,1.25e-2",
                        help="rates of the twin (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add_args(parser, TrainConfig, "training")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)
    check(args.jobs > 0, "--jobs must be greater than 0", args.jobs, "use 1")
    rates = {"ternary": parse_rates(args.ternary_lrs), "full": parse_rates(args.full_lrs)}
    preset, model_cfg, cfg = configs(args)
    folder = Path(args.output)
    # The data once, before the pool.
    start.prepare(cfg.corpus, cfg.tokenizer, model_cfg.vocab_size, cfg.val_fraction, val=cfg.val)
    cells = grid(preset, model_cfg, cfg, rates, folder, args.jobs)
    tops = {kind: best(cells, kind) for kind in KINDS}
    with whole_file(folder / "figures.json") as f:
        f.write(json.dumps({"cells": cells, "best": tops}, indent=1).encode())
    draw(cells, f"{preset} on {cfg.corpus}, {cfg.steps} steps", folder / "twins.png")
    for kind, top in tops.items():
        print(f"{KINDS[kind][0]:<22} lr {top['lr']:<8g} {top['loss']:.4f} nats per token   "
              f"{top['bits per byte']:.4f} bits per byte   "
              f"{'inside its grid' if top['inside'] else 'ON THE EDGE of its grid'}")
    return DONE if all(top["inside"] for top in tops.values()) else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
