"""The state of a run, to disk and back, so that a resumed run equals an uninterrupted one bit for bit.

What that takes: parameters, both moments, the two counters (`step`: updates applied, drives the schedules;
`cursor`: batches consumed, drives the data), the early-stopping state, and the trits of the last log line and
of the last ternarisation. Batches and schedules are pure functions of the counters, so there is nothing else
to remember.
Read after: train/log. Read next: train/start.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.model import Params, Transformer
from bitnet_ref.model.params import init_params
from bitnet_ref.model.weights import Trits, Weights
from bitnet_ref.train import log
from bitnet_ref.train.optim import Adam

SEEN = "seen."                                             # prefix of the trits of the last log line
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
    seen: dict[str, np.ndarray] = field(default_factory=dict)


def new_run(folder: Path, model_cfg: ModelConfig, cfg: TrainConfig, data: dict[str, str], ops: Any) -> Run:
    """A run at step 0, with the initial parameters of cfg.seed."""
    params = init_params(model_cfg, cfg.seed)
    model = Transformer(model_cfg, params, ops)
    return Run(folder, cfg, model, params.zeros_like(), Adam(params.zeros_like(), params.zeros_like()), data)


def save(run: Run) -> Path:
    """Write a checkpoint and remove all but the last `keep`. Returns its folder."""
    params = run.model.params
    assert params is not None
    tensors = {**files.named(files.PARAM, params), **files.named(files.MOMENT1, run.adam.first),
               **files.named(files.MOMENT2, run.adam.second)}
    tensors |= {SEEN + name: w_q for name, w_q in run.seen.items()}
    if run.cfg.requantize_every > 1:         # otherwise the weights in use are the ternarised parameters
        for name, (w_q, w_scale) in run.model.weights.trits().items():
            tensors |= {WORKING + name: w_q, SCALE + name: np.asarray(w_scale)}
    state = {"model": asdict(run.model.cfg), "train": asdict(run.cfg), "step": run.step, "cursor": run.cursor,
             "best": run.best if np.isfinite(run.best) else None, "stale": run.stale,
             "seen": sorted(run.seen), **run.data}
    path = files.write_checkpoint(run.folder, run.step, tensors, state)
    for old in files.checkpoints(run.folder)[:-run.cfg.keep]:
        with suppress(OSError):              # one too many is no reason to stop
            files.remove(old)
    return path


def train_config(state: dict[str, Any]) -> TrainConfig:
    """The TrainConfig in a checkpoint's state."""
    try:
        return TrainConfig(**state["train"])
    except (TypeError, KeyError) as e:
        raise CheckError(f"the checkpoint's train config must have the fields of TrainConfig; got {e}; "
                         "use the release of bitnet_ref that wrote it") from None


def restore(checkpoint: Path, state: dict[str, Any], cfg: TrainConfig, data: dict[str, str], ops: Any) -> Run:
    """The run as it was when `checkpoint` was written.

    Raises CheckError if the file is damaged or the data differ.
    """
    for name, value in data.items():
        check(state.get(name) == value, f"a resumed run must see the same data: the checksum of the {name}",
              f"{value[:12]}, trained on {str(state.get(name))[:12]}",
              "resume with the corpus that the run was started with")
    for name, kind in (("step", int), ("cursor", int), ("stale", int), ("seen", list)):
        check(type(state.get(name)) is kind, f"{checkpoint / files.STATE} must hold the {name} of a run",
              state.get(name), "resume from a checkpoint that bitnet_ref.train wrote")
    run = new_run(checkpoint.parent, files.model_config(state), cfg, data, ops)
    params = run.model.params
    assert params is not None
    trits = run.model.weights.trits() if cfg.requantize_every > 1 else {}
    parts = ((files.PARAM, params), (files.MOMENT1, run.adam.first), (files.MOMENT2, run.adam.second))
    names = [name for prefix, p in parts for name in files.named(prefix, p)]
    names += [SEEN + name for name in state["seen"]] + [p + name for p in (WORKING, SCALE) for name in trits]
    tensors = files.read_tensors(checkpoint, state, names)
    for prefix, p in parts:
        files.fill(p, tensors, prefix)
    run.model.requantise()
    if trits:
        run.model.use(Weights({**run.model.weights,
                               **{n: Trits(tensors[WORKING + n], tensors[SCALE + n][()]) for n in trits}}))
    run.seen = {name: tensors[SEEN + name] for name in state["seen"]}
    run.step, run.cursor, run.stale = state["step"], state["cursor"], state["stale"]
    run.best = float("inf") if state.get("best") is None else state["best"]
    log.cut_after(run.folder, run.step)
    return run


def refuse_changes(state: dict[str, Any], typed: dict[str, Any]) -> None:
    """Raise CheckError, naming the fields, if `typed` would change what a resumed run must keep."""
    free = {f.name for f in fields(TrainConfig) if f.metadata["free"]}
    was = {**state["model"], **state["train"]}
    changed = [f"{name}: {was.get(name)} -> {value}" for name, value in typed.items()
               if name not in free and was.get(name) != value]
    check(not changed, "a resumed run must keep its config", ", ".join(changed),
          "leave these options out, or start a new run")
