"""From options to a Run: the data, the vocabulary, the folder; new, or resumed from a checkpoint.

Read after: train/compression. Read next: train/small.
"""

import json
import math
import os
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.chain.compress import compressed, saved
from bitnet_ref.chain.merge import checksum
from bitnet_ref.chain.table import CHAINS, Table, write_table
from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.data.atomic import unreadable, whole_file
from bitnet_ref.data.dataset import is_dataset
from bitnet_ref.data.feed import account, checksums, open_feed
from bitnet_ref.data.prepare import Dataset, changed_since, kept, prepare
from bitnet_ref.data.tokenizer import Tokenizer, load
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.formats.checkpoint import checkpoints, latest, model_config
from bitnet_ref.formats.source import run_chains
from bitnet_ref.generate.language_model import TOKENIZER
from bitnet_ref.model import scaling
from bitnet_ref.train import board, parallel
from bitnet_ref.train.checkpoint import Run, new_run, refuse_changes, restore, train_config
from bitnet_ref.train.compression import LONG, against, table_of
from bitnet_ref.train.computed import changes, computed_with
from bitnet_ref.train.lock import LOCK, Lock, hold

CONFIG = "config.json"


def start(preset: str, model_cfg: ModelConfig, cfg: TrainConfig, output: str | None) -> tuple[Run, Dataset]:
    """A new run in `output` (default: the next free runs/<preset>-NNN), with its data prepared.

    The vocabulary is the tokenizer's; epochs, if given, become steps. Raises CheckError for a folder that is
    not new or empty, or not writable, and for a corpus shorter than one window.
    >>> from bitnet_ref.train.small import small_run
    >>> first, _ = small_run(); output = str(first.folder.parent / "second")
    >>> run, data = start("small", first.model.cfg, first.cfg, output)
    >>> run.step, sorted(p.name for p in run.folder.iterdir())
    (0, ['.lock', 'chains.json', 'config.json', 'tokenizer.json'])
    """
    cfg = _placed(cfg)
    world = parallel.join(cfg)
    ops = kernels.load(cfg.backend, world.threads(cfg.threads), cfg.backward)
    board.require(cfg.tensorboard)
    if output is not None and not _is_free(Path(output)):
        go_on = f", or go on with --resume {output}" if checkpoints(Path(output)) else ""
        raise CheckError(f"a new run needs a new or empty folder; got {output}; give another --output{go_on}")
    _fits(model_cfg, cfg)
    data = world.in_turn(lambda: prepare(cfg.corpus, cfg.tokenizer, model_cfg.vocab_size, cfg.val_fraction,
                                         val=cfg.val))
    check(data.val is not None, "training needs validation text", f"none in {data.folder}",
          "hold out a share of the documents, for example --val-fraction 0.05, also where shards are made")
    if model_cfg.vocab_size != data.tokenizer.vocab_size:
        print(f"the vocabulary is the tokenizer's: {data.tokenizer.vocab_size:,} entries", file=sys.stderr)
    table = world.told(lambda: table_of(data))
    fed = world.in_turn(lambda: _fed(data, table, model_cfg.context, cfg))
    sums = _checksums(data, fed, None if cfg.compress == "off" else table)
    world.told(lambda: against(cfg, model_cfg, sums))
    cfg = _counted(cfg, fed)
    echo = {"preset": preset, "train": asdict(cfg),        # as a run that repeats this one must be asked for
            "model": asdict(replace(model_cfg, vocab_size=data.tokenizer.vocab_size))}
    model_cfg = replace(model_cfg, vocab_size=fed.tokenizer.vocab_size)
    locks: list[Lock] = []                                 # of the first rank alone
    folder = world.told(lambda: _new_folder(preset, output, echo, data.tokenizer, table, locks))
    run = new_run(folder, model_cfg, cfg, sums, ops)
    _require_one_job(run)
    return replace(run, lock=next(iter(locks), None)), fed


def _placed(cfg: TrainConfig) -> TrainConfig:
    """With the baseline where it is, whatever folder a later resume is begun in."""
    return cfg if cfg.baseline is None else replace(cfg, baseline=os.path.abspath(cfg.baseline))


def _fed(data: Dataset, table: Table | None, context: int, cfg: TrainConfig) -> Dataset:
    """The dataset as the run sees it: compressed, if it is to be, and with its feed."""
    if table is not None:
        data = compressed(data, table, cfg.compress, progress=len(data.train.tokens) > LONG)
    return data._replace(feed=open_feed(data.train, data.report, context, cfg.seed, cfg.packing))


def _counted(cfg: TrainConfig, data: Dataset) -> TrainConfig:
    """With the epochs, if they are given, as steps."""
    if cfg.epochs is None or data.feed is None:
        return cfg
    rows = cfg.batch * cfg.accumulate
    return replace(cfg, steps=max(1, math.ceil(cfg.epochs * data.feed.windows / rows)))


def _new_folder(preset: str, output: str | None, echo: dict[str, Any], tokenizer: Tokenizer, table: Table,
                locks: list[Lock]) -> Path:
    """The folder of a new run, with its config, its tokenizer and its table; its lock is added to `locks`."""
    folder, lock = _claim(Path(output)) if output else _next_folder(preset)
    try:
        with whole_file(folder / CONFIG) as f:
            f.write(json.dumps(echo, indent=1).encode())
        tokenizer.save(folder / TOKENIZER)
        write_table(folder / CHAINS, table)
    except CheckError as e:
        _give_back(folder)
        raise CheckError(f"the run folder must be writable; got {e.__cause__}; "
                         "make room, or give another --output") from None
    locks.append(lock)
    return folder


def _require_one_job(run: Run) -> None:
    """Raise CheckError unless all ranks of a job have the same config, data and state."""
    about = repr((run.model.cfg, run.cfg, run.data, run.step, run.cursor))
    run.world.require_equal("config and data", np.frombuffer(about.encode(), np.uint8))


def resume(path: str, typed: dict[str, Any]) -> tuple[Run, Dataset]:
    """The run in `path`, from its newest whole checkpoint; damaged ones after it are set aside, and it is
    said. `typed`: config fields given anew; free ones may change.

    Raises CheckError for a missing or foreign checkpoint, if all are damaged, where another process trains,
    for a changed config (naming the fields) or other data.
    >>> from bitnet_ref.train.checkpoint import save; from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); run.step = run.cursor = 2; path = save(run)
    >>> again, data = resume(str(run.folder), {"keep": 5})
    >>> again.step, again.cfg.keep
    (2, 5)
    """
    place = Path(path)
    folder = place.parent if files.is_best(place) or (place / files.MARK).is_file() else place
    begun = folder.is_dir() and ((folder / CONFIG).is_file() or any(folder.glob("*step-*")))
    check(begun, "a model must be the folder of a training run", place,
          "give the folder that training printed")
    locks: list[Lock] = []                                 # of the first rank alone
    checkpoint, state = parallel.here().told(lambda: _secured(place, folder, locks))
    was = train_config(state)
    refuse_changes(state, typed)
    cfg = _placed(replace(was, **{k: v for k, v in typed.items() if k in TrainConfig.__dataclass_fields__}))
    world = parallel.join(cfg)
    if "val" not in typed and is_dataset(cfg.corpus):      # perhaps instead of texts; it has its validation
        cfg = replace(cfg, val=None)
    data, sums = world.in_turn(lambda: _same_data(checkpoint, state, cfg))
    if "baseline" in typed:
        world.told(lambda: against(cfg, model_config(state), sums))
    ops = kernels.load(cfg.backend, world.threads(cfg.threads), cfg.backward)
    board.require(cfg.tensorboard)
    run = restore(checkpoint, state, cfg, sums, ops)
    _require_one_job(run)
    if other := changes(state.get("computed with"), computed_with(cfg.backend)):
        print(f"{folder} goes on with {other}: it may differ from an uninterrupted run in the last digits; "
              f"for the same bits, resume with what {checkpoint.name}/{files.STATE} names", file=sys.stderr)
    return replace(run, lock=next(iter(locks), None)), data


def _secured(place: Path, folder: Path, locks: list[Lock]) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to go on from, and its state; the lock of its folder is added to `locks`."""
    check(os.access(folder, os.W_OK), "the run folder must be writable", folder,
          "change its permissions, or copy it")
    locks.append(hold(folder))
    files.tidy(folder)
    given, newest = latest(place), latest(folder)
    check(given == newest, f"a run must go on from its newest checkpoint, {newest.name}", given,
          f"give {folder}, or delete the later checkpoints first")
    return _whole(folder)


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
    """The lines before the first step: what will be trained, on what, and how.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run(); said = announcement(run, data)
    >>> said.partition(": ")[2].partition(";")[0]
    '6,488 parameters, 4 steps from 0, 1,426 training tokens'
    """
    rows = run.cfg.batch * run.cfg.accumulate
    about_data = f"\n{account(data.feed, run.cfg.steps * rows, rows)}" if data.feed else ""
    threads = kernels.about(run.cfg.backend)["threads"]
    ranks = f" in each of {run.world.size} ranks" if run.world.size > 1 else ""
    less = ("" if run.cfg.compress == "off" else
            f", {saved(data):.1%} fewer than without --compress {run.cfg.compress}")
    return (f"{run.folder}: {run.grads.flat.size:,} parameters, {run.cfg.steps} steps from {run.step}, "
            f"{len(data.train.tokens):,} training tokens{less}; backend {run.cfg.backend}, "
            f"threads {threads}{ranks}"
            f"{about_data}")


def _same_data(checkpoint: Path, state: dict[str, Any], cfg: TrainConfig) -> tuple[Dataset, dict[str, str]]:
    """The data that the run was trained on, found again, and its checksums. Raises CheckError, saying what of
    it has changed."""
    run, model_cfg = checkpoint.parent, model_config(state)
    table, size = None, model_cfg.vocab_size
    if cfg.compress != "off":
        plain = load(run / TOKENIZER)
        table, size = run_chains(checkpoint, state, plain), plain.vocab_size
    try:
        data = prepare(cfg.corpus, str(run / TOKENIZER), size, cfg.val_fraction, val=cfg.val)
    except CheckError as e:
        raise type(e)(f"{e}{_also(state)}") from e
    fed = _fed(data, table, model_cfg.context, cfg)
    sums = _checksums(data, fed, table)
    other = [name for name, value in sums.items() if state.get(name) != value]
    if other:
        began = (run / CONFIG if (run / CONFIG).exists() else checkpoint).stat().st_mtime_ns
        texts = [cfg.corpus] if cfg.val is None else [cfg.corpus, cfg.val]
        changed = [file for text in texts for file in changed_since(text, began)]
        back = f"put back {run / TOKENIZER}" if "tokenizer" in other else "put the text back as it was"
        raise CheckError("a resumed run must see the same data: the corpus that it was started with; "
                         f"got other {', '.join(other)} from {' and '.join(texts)}, of which "
                         f"{', '.join(changed[:9]) or 'none by its time'} changed since the run began; "
                         f"{back}{_also(state)}")
    return fed, sums


def _also(state: dict[str, Any]) -> str:
    """The way out where the cache still has what the run was trained on."""
    sums = (str(state.get(name)) for name in ("training tokens", "validation tokens", "tokenizer"))
    folder = kept(*sums)
    return f", or give --corpus {folder}, where it is kept as it was" if folder else ""


def _checksums(data: Dataset, fed: Dataset, table: Table | None) -> dict[str, str]:
    """Of plain `data`, the feed made of it, and, where that is compressed, the chains."""
    return {**(checksums(fed.feed) if fed.feed else {}),
            **({} if table is None else {"chains": checksum(table)}),
            "tokenizer": data.tokenizer.checksum,
            "training tokens": data.train.header.payload_sha256,
            "validation tokens": data.val.header.payload_sha256 if data.val else "none"}


def _is_free(folder: Path) -> bool:
    """New, empty, or of a run that ended before its first step: what else stands there may be somebody's."""
    try:
        return not folder.exists() or (folder.is_dir() and not _others(folder))
    except OSError as e:
        raise unreadable(folder, e, "give another --output") from None


def _fits(model_cfg: ModelConfig, cfg: TrainConfig) -> None:
    """Refuse, from formulas alone, what this machine's memory cannot hold (where it says how much it has)."""
    needed = scaling.rank_bytes(scaling.Job(model_cfg, cfg.batch, cfg.accumulate, parallel.here().size))
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    check(needed <= has, "the model and a micro-batch must fit in memory",
          f"{needed / 1e9:,.1f} GB of {has / 1e9:,.1f} GB",
          "use a smaller --batch or --context (more with --accumulate), or a smaller model")


def _others(folder: Path) -> list[str]:
    """What is in a folder besides the beginnings of a run, of which the config is the first."""
    names = {p.name for p in folder.iterdir()}
    ours = {LOCK, CONFIG, TOKENIZER, CHAINS} if CONFIG in names else {LOCK}
    return sorted(name for name in names - ours if not files.LEFTOVER.fullmatch(name))


def _claim(folder: Path) -> tuple[Path, Lock]:
    """Make the folder of a new run, and lock it. Of two that begin in the same one, the second is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder)
        others = _others(folder)
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
    for name in (CONFIG, TOKENIZER, CHAINS, LOCK):
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
