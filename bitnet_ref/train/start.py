"""From options to a Run: the data, the vocabulary, the folder; new, or resumed from a checkpoint.

Read after: train/ema. Read next: train/interrupt.
"""

import json
import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bitnet_ref import kernels
from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.data.batches import windows
from bitnet_ref.data.prepare import Dataset, prepare
from bitnet_ref.formats.checkpoint import checkpoints, latest, model_config, read_state
from bitnet_ref.generate.language_model import TOKENIZER
from bitnet_ref.model import cost
from bitnet_ref.train.checkpoint import Run, new_run, refuse_changes, restore, train_config

CONFIG = "config.json"


def start(preset: str, model_cfg: ModelConfig, cfg: TrainConfig, output: str | None) -> tuple[Run, Dataset]:
    """A new run in `output` (default: the next free runs/<preset>-NNN), with its data prepared.

    The vocabulary is the tokenizer's; epochs, if given, become steps. Raises CheckError for a folder that is
    not new or empty, or not writable, and for a corpus shorter than one window.
    """
    ops = kernels.load(cfg.backend, cfg.threads, cfg.backward)
    if output is not None and not _is_free(Path(output)):
        go_on = f", or go on with --resume {output}" if checkpoints(Path(output)) else ""
        raise CheckError(f"a new run needs a new or empty folder; got {output}; give another --output{go_on}")
    _fits(model_cfg, cfg)
    data = prepare(cfg.corpus, cfg.tokenizer, model_cfg.vocab_size, cfg.val_fraction)
    check(data.val is not None, "training needs validation text", f"none in {data.folder}",
          "hold out a share of the documents, for example --val-fraction 0.05, also where shards are made")
    if model_cfg.vocab_size != data.tokenizer.vocab_size:
        print(f"the vocabulary is the tokenizer's: {data.tokenizer.vocab_size:,} entries", file=sys.stderr)
    model_cfg = replace(model_cfg, vocab_size=data.tokenizer.vocab_size)
    n = windows(len(data.train.tokens), model_cfg.context)
    if cfg.epochs is not None:
        cfg = replace(cfg, steps=max(1, math.ceil(cfg.epochs * n / (cfg.batch * cfg.accumulate))))
    try:
        folder = _claim(Path(output)) if output else _next_folder(preset)
        echo = {"preset": preset, "model": asdict(model_cfg), "train": asdict(cfg)}
        (folder / CONFIG).write_text(json.dumps(echo, indent=1), encoding="utf-8")
        data.tokenizer.save(folder / TOKENIZER)
    except OSError as e:
        raise CheckError(f"the run folder must be writable; got {e}; give another --output") from None
    return new_run(folder, model_cfg, cfg, _checksums(data), ops), data


def resume(path: str, typed: dict[str, Any]) -> tuple[Run, Dataset]:
    """The run in `path`, from its newest checkpoint. `typed`: config fields given anew; free ones may change.

    Raises CheckError for a missing, damaged or foreign checkpoint, a changed config (naming the fields) or
    other data.
    """
    checkpoint = latest(path)
    state = read_state(checkpoint)
    later = [c.name for c in checkpoints(checkpoint.parent) if c.name > checkpoint.name]
    check(not later, f"a run must go on from its newest checkpoint, {max(later, default='')}", checkpoint,
          f"give {checkpoint.parent}, or delete the later checkpoints first")
    was = train_config(state)
    refuse_changes(state, typed)
    cfg = replace(was, **{k: v for k, v in typed.items() if k in TrainConfig.__dataclass_fields__})
    tokenizer = str(checkpoint.parent / TOKENIZER)
    data = prepare(cfg.corpus, tokenizer, model_config(state).vocab_size, cfg.val_fraction)
    check(os.access(checkpoint.parent, os.W_OK), "the run folder must be writable", checkpoint.parent,
          "change its permissions, or copy it")
    ops = kernels.load(cfg.backend, cfg.threads, cfg.backward)
    return restore(checkpoint, state, cfg, _checksums(data), ops), data


def announcement(run: Run, data: Dataset) -> str:
    """The line before the first step: what will be trained, on what, and how."""
    threads = kernels.about(run.cfg.backend)["threads"]
    return (f"{run.folder}: {run.grads.flat.size:,} parameters, {run.cfg.steps} steps from {run.step}, "
            f"{len(data.train.tokens):,} training tokens; backend {run.cfg.backend}, threads {threads}")


def _checksums(data: Dataset) -> dict[str, str]:
    return {"tokenizer": data.tokenizer.checksum,
            "training tokens": data.train.header.payload_sha256,
            "validation tokens": data.val.header.payload_sha256 if data.val else "none"}


def _is_free(folder: Path) -> bool:
    """New or empty: what stands in a folder may be somebody's, even a run that has not saved yet."""
    try:
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as e:
        raise unreadable(folder, e, "give another --output") from None


def _fits(model_cfg: ModelConfig, cfg: TrainConfig) -> None:
    """Refuse, from formulas alone, what this machine's memory cannot hold (where it says how much it has)."""
    tokens = cfg.batch * model_cfg.context
    needed = cost.state_bytes(model_cfg) + tokens * cost.saved_bytes_per_token(model_cfg)
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    check(needed <= has, "the model and a micro-batch must fit in memory",
          f"{needed / 1e9:,.1f} GB of {has / 1e9:,.1f} GB",
          "use a smaller --batch or --context (more with --accumulate), or a smaller model")


def _claim(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _next_folder(preset: str) -> Path:
    """Make the first of runs/<preset>-001, -002, ... that is free: two runs started at once get two."""
    for n in range(1, 1_000_000):
        folder = Path("runs") / f"{preset}-{n:03d}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise CheckError(f"runs/{preset}-NNN must have a free number; got a million runs; give --output")
