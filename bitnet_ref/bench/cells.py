"""Runs to be compared: each an ordinary run folder, several at a time, none made twice.

A cell's figures are kept in its folder; a cell that was interrupted is run anew from its beginning. What a
few seeds say about a difference is its mean and Student's interval, not the best of them.
Read after: bench/torch_peer. Read next: bench/twins.
"""

import json
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.checks import GaveUp, NonFiniteError, check
from bitnet_ref.config import ModelConfig, TrainConfig, from_dict
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.train import log, loop, start
from bitnet_ref.train.ema import ema_score

FIGURES = "final.json"
# Two-sided 95 % quantiles of Student's t with n - 1 degrees of freedom, by n.
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


class Cell(NamedTuple):
    """One run: the name of its folder, and what it is."""

    name: str
    model: ModelConfig
    train: TrainConfig


def run_cell(preset: str, cell: Cell, folder: Path, threads: int | None) -> dict[str, Any]:
    """Train `cell` in its folder, or read its figures if that was done before. Diverged, or given up by the
    guard: its loss is None. Whatever else ends a run is an error, and no figure.

    With an average of the weights (cfg.ema) "loss" and "bits per byte" are of the average, "raw" of the rest.
    """
    place, done = folder / cell.name, folder / cell.name / FIGURES
    if done.exists():
        figures = json.loads(done.read_text(encoding="utf-8"))
        check(_is_of(figures.get("asked", {}), cell), f"{place} must have these options", "others",
              "give another --output, or delete it")
    else:
        check(not place.exists() or (place / start.CONFIG).is_file(), f"{place} must be new or a run's",
              "other files", "give another --output")
        shutil.rmtree(place, ignore_errors=True)                    # of cells that were interrupted
        figures = {**_trained(preset, cell, place, threads),
                   "asked": {"model": asdict(cell.model), "train": asdict(cell.train)}}
        with whole_file(done) as f:
            f.write(json.dumps(figures).encode())
    del figures["asked"]
    curve = {line["step"]: line["loss"] for line in log.read(place) if line["kind"] in ("eval", "final")}
    return {"name": cell.name, **figures, "curve": list(curve.items())}


def _trained(preset: str, cell: Cell, place: Path, threads: int | None) -> dict[str, Any]:
    figures: dict[str, Any] = {"loss": None, "bits per byte": None}
    began, how = time.process_time(), cell.train
    run, data = start.start(preset, cell.model, replace(how, threads=how.threads or threads), str(place))
    with suppress(NonFiniteError, GaveUp):
        loop.train(run, data)
        raw = final = loop.final_score(run, data)
        if run.ema is not None:
            final = ema_score(run, data) or raw
            figures["raw"] = raw.loss
        figures |= {"loss": final.loss, "bits per byte": final.bits_per_byte}
    return {**figures, "cpu seconds": time.process_time() - began}


def _is_of(asked: dict[str, Any], cell: Cell) -> bool:
    """Whether a cell was asked for with this config; fields that are younger than it have their default, but
    for the guard: what is older than that had none."""
    if not asked:
        return False
    return (from_dict(ModelConfig, asked["model"], "model") == cell.model
            and from_dict(TrainConfig, {"guard": False, **asked["train"]}, "train") == cell.train)


def run_cells(preset: str, cells: list[Cell], folder: Path, jobs: int,
              threads: int) -> list[dict[str, Any]]:
    """The figures of every cell, in order; `jobs` processes of so many threads. The data are made before."""
    texts = {(how.corpus, how.tokenizer, model.vocab_size, how.val_fraction, how.val)
             for _, model, how in cells}
    for corpus, tokenizer, vocab_size, val_fraction, val in texts:
        start.prepare(corpus, tokenizer, vocab_size, val_fraction, val=val)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return [f.result() for f in [pool.submit(run_cell, preset, c, folder, threads) for c in cells]]


class Spread(NamedTuple):
    """Of a figure over seeds: its mean and half the width of the 95 % interval of that mean."""

    mean: float
    half: float

    @property
    def decided(self) -> bool:
        """Whether zero lies outside the interval."""
        return abs(self.mean) > self.half


def spread(values: list[float]) -> Spread:
    """Mean and interval of two to five figures, by Student's t."""
    assert len(values) in T95
    return Spread(statistics.mean(values), T95[len(values)] * statistics.stdev(values) / len(values) ** 0.5)
