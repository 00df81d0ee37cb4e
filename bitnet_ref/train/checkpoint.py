"""The state of a run, to disk and back, so that a resumed run equals an uninterrupted one bit for bit.

What that takes: parameters, their average if one is kept, both moments, the two counters (`step`: updates
applied, drives the schedules; `cursor`: batches consumed, drives the data), the guard, the early-stopping
state, and the trits of the last log line and of the last ternarisation. Batches and schedules are pure
functions of the counters, so there is nothing else to remember.
Read after: train/parallel. Read next: train/ema.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import ModelConfig, TrainConfig, from_dict
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.model import Params, Transformer
from bitnet_ref.model.params import init_params
from bitnet_ref.model.weights import Trits, Weights
from bitnet_ref.train import log
from bitnet_ref.train.computed import computed_with
from bitnet_ref.train.lock import Lock
from bitnet_ref.train.optim import Adam
from bitnet_ref.train.parallel import World, here
from bitnet_ref.train.stability import Guard

SEEN = "seen."                                             # prefix of the trits of the last log line
SCHEDULED = "scheduled"                                    # in the state
EMA = "ema."                                               # prefix of the averaged parameters
WORKING, SCALE = "working.", "working_scale."              # prefixes of those of the last ternarisation


class Best(NamedTuple):
    """Of the steps that were both saved and validated, the one with the lowest loss."""

    step: int
    loss: float


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
    best_saved: Best | None = None           # RUN/best, which is kept whatever its age
    lock: Lock | None = None                 # of the folder; the caller's, if it is None
    world: World = field(default_factory=here)
    sums: list[Params] = field(default_factory=list)       # of gradients, in progress
    ema: Params | None = None                # the average of the parameters, with cfg.ema


def new_run(folder: Path, model_cfg: ModelConfig, cfg: TrainConfig, data: dict[str, str], ops: Any) -> Run:
    """A run at step 0, with the initial parameters of cfg.seed.
    >>> from bitnet_ref import layers
    >>> run = new_run(Path("run"), ModelConfig(n_layers=1), TrainConfig(seed=7), {}, layers)
    >>> run.step, bool(run.adam.first.flat.any()), run.guard.on
    (0, False, True)
    """
    params = init_params(model_cfg, cfg.seed, ops=ops)
    model = Transformer(model_cfg, params, ops)
    adam = Adam(params.zeros_like(), params.zeros_like())
    return Run(folder, cfg, model, params.zeros_like(), adam, data, guard=Guard(cfg.guard),
               ema=None if cfg.ema is None else params.zeros_like())


def save(run: Run, on_schedule: bool = True) -> Path:
    """Write a checkpoint and remove those that need not be kept. Returns its folder.

    One that is not on the schedule, of Ctrl-C, is there to resume from and goes with the next, so that a
    rollback goes where it would have gone without. The log is on the disk before it: a power cut leaves no
    checkpoint that knows more than the log. Of a job, the first rank writes. Raises CheckError if the
    replicas have come apart, or the disk refuses.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run()
    >>> save(run).name, sorted(p.name for p in files.latest(run.folder).iterdir())
    ('step-00000000', ['DONE', 'state.json', 'tensors.safetensors'])
    """
    parts = {prefix: part.fetched() for prefix, part in zip(_prefixes(run.cfg), _parts(run))}
    for prefix, what in ((files.PARAM, "parameters"), (files.MOMENT1, "first moments"),
                         (files.MOMENT2, "second moments")):
        run.world.require_equal(what, parts[prefix].flat)
    if run.world.rank:
        return run.folder
    tensors = {name: t for prefix, part in parts.items() for name, t in files.named(prefix, part).items()}
    tensors |= {SEEN + name: w_q for name, w_q in run.seen.items()}
    if run.cfg.requantize_every > 1:         # otherwise the weights in use are the ternarised parameters
        for name, (w_q, w_scale) in run.model.weights.fetched(run.model.plan.ops).trits().items():
            tensors |= {WORKING + name: w_q, SCALE + name: np.asarray(w_scale)}
    state = {"model": asdict(run.model.cfg), "train": asdict(run.cfg), "step": run.step, "cursor": run.cursor,
             "best": run.best if np.isfinite(run.best) else None, "stale": run.stale,
             "validated": run.validated, "guard": run.guard.state(), "seen": sorted(run.seen),
             SCHEDULED: on_schedule, "computed with": computed_with(run.cfg.backend), **run.data}
    log.sync(run.folder)
    path = files.write_checkpoint(run.folder, run.step, tensors, state)
    _prune(run)
    return path


def regular(checkpoint: Path) -> bool:
    """Whether `checkpoint` is one of the schedule; one that does not say, or is damaged, counts as such.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); due = save(run)
    >>> run.step = 1; ctrl_c = save(run, on_schedule=False)
    >>> regular(due), regular(ctrl_c)
    (True, False)
    """
    try:
        return files.read_state(checkpoint).get(SCHEDULED) is not False
    except CheckError:
        return True


def _prune(run: Run) -> None:
    """Remove all checkpoints but the newest, the last `keep` of the schedule (for the guard's sake, two at
    least), and the best."""
    *older, newest = files.checkpoints(run.folder)
    keep = max(run.cfg.keep, 2 if run.cfg.guard else 1) - regular(newest)
    scheduled = [c for c in older if regular(c)]
    kept = scheduled[max(0, len(scheduled) - keep):]
    for old in older:
        if old not in kept and (run.best_saved is None or files.step_of(old) != run.best_saved.step):
            with suppress(OSError):          # one too many is no reason to stop
                files.remove(old)


def note_best(run: Run, loss: float) -> None:
    """Of the validation at run.step: if a checkpoint of it is there, it may be the best one so far.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); _ = save(run)
    >>> note_best(run, loss=3.2); note_best(run, loss=3.1)
    >>> run.best_saved
    Best(step=0, loss=3.1)
    """
    now = Best(run.step, loss)
    if run.best_saved is not None and run.best_saved.step != now.step and run.best_saved.loss <= loss:
        return
    if now.step in {files.step_of(c) for c in files.checkpoints(run.folder)}:
        run.best_saved = now
        files.note_best(run.folder, *now)
        _prune(run)                          # the best before it


def find_best(run: Run) -> None:
    """The same from the log, for a run that goes on: of the checkpoints that are there.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); _ = save(run)
    >>> for step, loss in ((0, 3.2), (1, 3.1)): log.append(run.folder, "eval", step, step, loss=loss)
    >>> find_best(run); run.best_saved                  # step 1 is better, but was not saved
    Best(step=0, loss=3.2)
    """
    there = {files.step_of(c) for c in files.checkpoints(run.folder)}
    losses = {line["step"]: line["loss"] for line in log.read(run.folder, "eval") if line["step"] in there}
    run.best_saved = min((Best(*item) for item in losses.items()), key=lambda b: b.loss, default=None)
    files.note_best(run.folder, *(run.best_saved or (None,)))


def train_config(state: dict[str, Any]) -> TrainConfig:
    """The TrainConfig in a checkpoint's state.
    >>> train_config({"train": {"steps": 6, "lr": 0.01}}).steps
    6
    """
    return from_dict(TrainConfig, state.get("train"), "checkpoint.train")


def restore(checkpoint: Path, state: dict[str, Any], cfg: TrainConfig, data: dict[str, str], ops: Any) -> Run:
    """The run as it was when `checkpoint` was written.

    Raises CheckError if the file is damaged.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); path = save(run)
    >>> again = restore(path, files.read_state(path), run.cfg, run.data, run.model.plan.ops)
    >>> again is run, np.array_equal(again.model.params.flat, run.model.params.flat)
    (False, True)
    """
    _check_counters(checkpoint / files.STATE, state, cfg)
    tensors = _tensors(checkpoint, state, cfg)
    run = new_run(checkpoint.parent, files.model_config(state), cfg, data, ops)
    _fill(run, checkpoint, state, tensors)
    run.step, run.cursor, run.stale = state["step"], state["cursor"], state["stale"]
    run.best = float("inf") if state.get("best") is None else state["best"]
    run.validated = state["validated"]
    if "guard" in state:                     # older runs had none
        run.guard.restore(state["guard"])
    if run.world.rank == 0:
        log.cut_after(run.folder, run.cursor, run.validated)
        find_best(run)
    return run


def load(run: Run, checkpoint: Path, state: dict[str, Any]) -> None:
    """Fill parameters, moments and trits of `run`, of the same model, from `checkpoint`; no counter changes.

    Raises CheckError if the file is damaged.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); path, was = save(run), run.model.params.flat.copy()
    >>> run.model.params.flat[:] = 0.0
    >>> load(run, path, files.read_state(path)); np.array_equal(run.model.params.flat, was)
    True
    """
    _fill(run, checkpoint, state, _tensors(checkpoint, state, run.cfg))


def _parts(run: Run) -> tuple[Params, ...]:
    """What a checkpoint holds of the size of the model, as _prefixes names it."""
    assert run.model.params is not None
    return run.model.params, *run.adam, *([run.ema] if run.ema else [])


def _prefixes(cfg: TrainConfig) -> tuple[str, ...]:
    return (files.PARAM, files.MOMENT1, files.MOMENT2, *(() if cfg.ema is None else (EMA,)))


def _tensors(checkpoint: Path, state: dict[str, Any], cfg: TrainConfig) -> dict[str, np.ndarray]:
    return files.read_tensors(checkpoint, state, [SEEN + name for name in state["seen"]], _prefixes(cfg))


def _fill(run: Run, checkpoint: Path, state: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    for prefix, part in zip(_prefixes(run.cfg), _parts(run)):
        held = part.fetched()
        files.fill(held, tensors, prefix)
        part.store(held)
    run.model.requantise()
    trits = run.model.weights.trits()
    run.seen = {name: _trits(tensors, SEEN + name, trits.get(name)) for name in state["seen"]}
    if run.cfg.requantize_every > 1:
        kept = files.read_tensors(checkpoint, state, [p + name for p in (WORKING, SCALE) for name in trits])
        run.model.use(Weights({**run.model.weights,
                               **{n: Trits(_trits(kept, WORKING + n, t), _scale(kept, SCALE + n))
                                  for n, t in trits.items()}}))


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
    """Raise CheckError, naming the fields, if `typed` would change what a resumed run must keep.
    >>> refuse_changes({"model": {"n_layers": 4}, "train": {"lr": 0.01}}, {"n_layers": 6})
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: a resumed run must keep its config; got n_layers: 4 -> 6; leave these
        options out, or start a new run
    """
    free = {f.name for f in fields(TrainConfig) if f.metadata["free"]}
    was = {**state["model"], **state["train"]}
    changed = [f"{name}: {was.get(name)} -> {value}" for name, value in typed.items()
               if name not in free and was.get(name) != value]
    check(not changed, "a resumed run must keep its config", ", ".join(changed),
          "leave these options out, or start a new run")
