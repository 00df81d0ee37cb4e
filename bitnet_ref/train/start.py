"""From options to a Run: the data, the vocabulary, the folder; new, or resumed from a checkpoint.

Read after: train/checkpoint. Read next: train/interrupt.
"""

import json
import math
import os
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bitnet_ref import kernels
from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.data.atomic import unreadable, whole_file
from bitnet_ref.data.batches import windows
from bitnet_ref.data.prepare import Dataset, prepare
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.formats.checkpoint import checkpoints, latest, model_config
from bitnet_ref.generate.language_model import TOKENIZER
from bitnet_ref.model import cost
from bitnet_ref.train.checkpoint import Run, new_run, refuse_changes, restore, train_config
from bitnet_ref.train.computed import changes, computed_with
from bitnet_ref.train.lock import LOCK, Lock, hold

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
    folder, lock = _claim(Path(output)) if output else _next_folder(preset)
    try:
        echo = {"preset": preset, "model": asdict(model_cfg), "train": asdict(cfg)}
        with whole_file(folder / CONFIG) as f:
            f.write(json.dumps(echo, indent=1).encode())
        data.tokenizer.save(folder / TOKENIZER)
    except CheckError as e:
        _give_back(folder)
        raise CheckError(f"the run folder must be writable; got {e.__cause__}; "
                         "make room, or give another --output") from None
    return replace(new_run(folder, model_cfg, cfg, _checksums(data), ops), lock=lock), data


def resume(path: str, typed: dict[str, Any]) -> tuple[Run, Dataset]:
    """The run in `path`, from its newest whole checkpoint; damaged ones after it are set aside, and it is
    said. `typed`: config fields given anew; free ones may change.

    Raises CheckError for a missing or foreign checkpoint, if all are damaged, where another process trains,
    for a changed config (naming the fields) or other data.
    """
    place = Path(path)
    folder = place.parent if files.is_best(place) or (place / files.MARK).is_file() else place
    check(folder.is_dir(), "a model must be the folder of a training run", place,
          "give the folder that training printed")
    check(os.access(folder, os.W_OK), "the run folder must be writable", folder,
          "change its permissions, or copy it")
    lock = hold(folder)
    files.tidy(folder)
    given, newest = latest(place), latest(folder)
    check(given == newest, f"a run must go on from its newest checkpoint, {newest.name}", given,
          f"give {folder}, or delete the later checkpoints first")
    checkpoint, state = _whole(folder)
    was = train_config(state)
    refuse_changes(state, typed)
    cfg = replace(was, **{k: v for k, v in typed.items() if k in TrainConfig.__dataclass_fields__})
    data = prepare(cfg.corpus, str(folder / TOKENIZER), model_config(state).vocab_size, cfg.val_fraction)
    ops = kernels.load(cfg.backend, cfg.threads, cfg.backward)
    run = replace(restore(checkpoint, state, cfg, _checksums(data), ops), lock=lock)
    if other := changes(state.get("computed with"), computed_with(cfg.backend)):
        print(f"{folder} goes on with {other}: it may differ from an uninterrupted run in the last digits; "
              f"for the same bits, resume with what {checkpoint.name}/{files.STATE} names", file=sys.stderr)
    return run, data


def _whole(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that is as it was written, and its state. Those after it are set aside.

    Raises DamagedError, and moves nothing, if there is none.
    """
    damaged: list[tuple[Path, CheckError]] = []
    for checkpoint in reversed(checkpoints(folder, marked=False)):
        try:
            state = files.verified(checkpoint)
            break
        except files.DamagedError as e:
            damaged.append((checkpoint, e))
    else:
        raise damaged[0][1]
    for bad, why in damaged:
        what, _, _ = str(why).rpartition("; ")
        print(f"a damaged checkpoint: {what}; it is now {files.set_aside(bad)}, and the run goes on from "
              f"{checkpoint.name}", file=sys.stderr)
    return checkpoint, state


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


def _claim(folder: Path) -> tuple[Path, Lock]:
    """Make the folder of a new run, and lock it. Of two that begin in the same one, the second is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder)
        others = [p.name for p in folder.iterdir() if p.name != LOCK]
    except OSError as e:
        raise CheckError(f"the run folder must be writable; got {e}; give another --output") from None
    check(not others, "a new run needs a new or empty folder", f"{others[0]} in {folder}" if others else "",
          "give another --output")
    return folder, lock


def _next_folder(preset: str) -> tuple[Path, Lock]:
    """Make the first of runs/<preset>-001, -002, ... that is free: two runs started at once get two."""
    for n in range(1, 1_000_000):
        folder = Path("runs") / f"{preset}-{n:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as e:
            raise CheckError(f"the run folder must be writable; got {e}; give another --output") from None
        return _claim(folder)
    raise CheckError(f"runs/{preset}-NNN must have a free number; got a million runs; give --output")


def _give_back(folder: Path) -> None:
    """Leave a folder in which a run could not begin as free as it was."""
    for name in (CONFIG, TOKENIZER, LOCK):
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
