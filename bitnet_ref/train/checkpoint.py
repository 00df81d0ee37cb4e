"""The state of a run, to disk and back, so that a resumed run equals an uninterrupted one bit for bit.

What that takes: parameters, their average if one is kept, both moments, the two counters (`step`: updates
applied, drives the schedules; `cursor`: batches consumed, drives the data), the early-stopping state, and the
trits of the last log line and of the last ternarisation. Batches and schedules are pure functions of the
counters, so there is nothing else to remember.
Read after: train/log. Read next: train/ema.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.checks import check
from bitnet_ref.config import ModelConfig, TrainConfig, from_dict
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.model import Params, Transformer
from bitnet_ref.model.params import init_params
from bitnet_ref.model.weights import Trits, Weights
from bitnet_ref.train import log
from bitnet_ref.train.optim import Adam
from bitnet_ref.train.stability import Guard

SEEN = "seen."                                             # prefix of the trits of the last log line
EMA = "ema."                                               # prefix of the averaged parameters
WORKING, SCALE = "working.", "working_scale."              # prefixes of those of the last ternarisation


@dataclass
class Run:
    """A training run: what changes from step to step, and where it is kept."""

    folder: Path
    cfg: TrainConfig
    model: Transformer
    grads: Params
    adam: Adam
    data: dict[str, str]                     # checksums of the tokenizer and the token shards trained on
    step: int = 0
    cursor: int = 0
    best: float = float("inf")               # lowest validation loss so far
    stale: int = 0                           # validations since then
    validated: int = -1                      # step of the last validation
    guard: Guard = field(default_factory=Guard)
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    ema: Params | None = None                # the average of the parameters, with cfg.ema


def new_run(folder: Path, model_cfg: ModelConfig, cfg: TrainConfig, data: dict[str, str], ops: Any) -> Run:
    """A run at step 0, with the initial parameters of cfg.seed."""
    params = init_params(model_cfg, cfg.seed)
    model = Transformer(model_cfg, params, ops)
    return Run(folder, cfg, model, params.zeros_like(), Adam(params.zeros_like(), params.zeros_like()), data,
               ema=None if cfg.ema is None else params.zeros_like())


def save(run: Run) -> Path:
    """Write a checkpoint and remove all but the last `keep`. Returns its folder."""
    params = run.model.params
    assert params is not None
    tensors = {**files.named(files.PARAM, params), **files.named(files.MOMENT1, run.adam.first),
               **files.named(files.MOMENT2, run.adam.second)}
    tensors |= files.named(EMA, run.ema) if run.ema else {}
    tensors |= {SEEN + name: w_q for name, w_q in run.seen.items()}
    if run.cfg.requantize_every > 1:         # otherwise the weights in use are the ternarised parameters
        for name, (w_q, w_scale) in run.model.weights.trits().items():
            tensors |= {WORKING + name: w_q, SCALE + name: np.asarray(w_scale)}
    state = {"model": asdict(run.model.cfg), "train": asdict(run.cfg), "step": run.step, "cursor": run.cursor,
             "best": run.best if np.isfinite(run.best) else None, "stale": run.stale,
             "validated": run.validated, "guard": run.guard.state(), "seen": sorted(run.seen),
             "computed with": kernels.about(run.cfg.backend), **run.data}
    path = files.write_checkpoint(run.folder, run.step, tensors, state)
    for old in files.checkpoints(run.folder)[:-run.cfg.keep]:
        with suppress(OSError):              # one too many is no reason to stop
            files.remove(old)
    return path


def train_config(state: dict[str, Any]) -> TrainConfig:
    """The TrainConfig in a checkpoint's state."""
    return from_dict(TrainConfig, state.get("train"), "checkpoint.train")


def restore(checkpoint: Path, state: dict[str, Any], cfg: TrainConfig, data: dict[str, str], ops: Any) -> Run:
    """The run as it was when `checkpoint` was written.

    Raises CheckError if the file is damaged or the data differ.
    """
    for name, value in data.items():
        check(state.get(name) == value, f"a resumed run must see the same data: the checksum of the {name}",
              f"{value[:12]}, trained on {str(state.get(name))[:12]}",
              "resume with the corpus that the run was started with")
    _check_counters(checkpoint / files.STATE, state, cfg)
    prefixes = (files.PARAM, files.MOMENT1, files.MOMENT2, *(() if cfg.ema is None else (EMA,)))
    tensors = files.read_tensors(checkpoint, state, [SEEN + name for name in state["seen"]], prefixes)
    run = new_run(checkpoint.parent, files.model_config(state), cfg, data, ops)
    params = run.model.params
    assert params is not None
    for prefix, part in zip(prefixes, (params, *run.adam, *([run.ema] if run.ema else []))):
        files.fill(part, tensors, prefix)
    run.model.requantise()
    trits = run.model.weights.trits()
    run.seen = {name: _trits(tensors, SEEN + name, trits.get(name)) for name in state["seen"]}
    if cfg.requantize_every > 1:
        kept = files.read_tensors(checkpoint, state, [p + name for p in (WORKING, SCALE) for name in trits])
        run.model.use(Weights({**run.model.weights,
                               **{n: Trits(_trits(kept, WORKING + n, t), _scale(kept, SCALE + n))
                                  for n, t in trits.items()}}))
    run.step, run.cursor, run.stale = state["step"], state["cursor"], state["stale"]
    run.best = float("inf") if state.get("best") is None else state["best"]
    run.validated = state["validated"]
    run.guard.restore(state["guard"])
    log.cut_after(run.folder, run.cursor, run.validated)
    return run


def _check_counters(file: Path, state: dict[str, Any], cfg: TrainConfig) -> None:
    fix = "resume from a checkpoint that bitnet_ref.train wrote"
    for name, most in (("step", cfg.steps), ("cursor", 1 << 53), ("stale", 1 << 53),
                       ("validated", cfg.steps)):
        value, least = state.get(name), -1 if name == "validated" else 0
        check(type(value) is int and least <= value <= most,
              f"{file} must hold the {name} of a run, an integer of {least}..{most}", repr(value), fix)
    best, seen = state.get("best"), state.get("seen")
    check(best is None or (type(best) in (int, float) and abs(best) < 1e300),
          f"{file} must hold the best loss of a run, a finite number or null", repr(best), fix)
    check(isinstance(seen, list) and all(isinstance(name, str) for name in seen),
          f"{file} must hold the seen matrices of a run, a list of names", repr(seen), fix)


def _trits(tensors: dict[str, np.ndarray], name: str, like: Trits | None) -> np.ndarray:
    """The int8 matrix `name`, of the shape of the model's own."""
    t, want = tensors[name], like.w_q.shape if like else "of a trit matrix"
    check(t.dtype == np.int8 and t.shape == want, f"{name} must be int8 {want}", f"{t.dtype} {t.shape}",
          "use a checkpoint of the same model")
    return t


def _scale(tensors: dict[str, np.ndarray], name: str) -> Any:
    t = tensors[name]
    check(t.dtype == np.float32 and t.size == 1, f"{name} must be one float32", f"{t.dtype} {t.shape}",
          "use a checkpoint of the same model")
    return t.reshape(())[()]


def refuse_changes(state: dict[str, Any], typed: dict[str, Any]) -> None:
    """Raise CheckError, naming the fields, if `typed` would change what a resumed run must keep."""
    free = {f.name for f in fields(TrainConfig) if f.metadata["free"]}
    was = {**state["model"], **state["train"]}
    changed = [f"{name}: {was.get(name)} -> {value}" for name, value in typed.items()
               if name not in free and was.get(name) != value]
    check(not changed, "a resumed run must keep its config", ", ".join(changed),
          "leave these options out, or start a new run")
