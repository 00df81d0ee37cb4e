"""What a run with --compress owes: its table, what it saves, and what it has cost beside a run without.

A compressed run is judged on plain text. Its summary, its page and the terminal begin with the verdict: how
it compares with the run that --baseline names, or that nobody has compared it.
Read after: train/ema. Read next: train/start.
"""

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.chain.compress import saved
from bitnet_ref.chain.merge import ChainTokenizer
from bitnet_ref.chain.mine import mine_for
from bitnet_ref.chain.table import Table, read_table, write_table
from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import ModelConfig, TrainConfig, cache_dir
from bitnet_ref.data.prepare import Dataset
from bitnet_ref.evaluate.perplexity import Score, score
from bitnet_ref.formats.checkpoint import latest, model_config, read_state
from bitnet_ref.formats.source import compression
from bitnet_ref.train.checkpoint import Run
from bitnet_ref.train.log import SUMMARY, read_object

VERSION = 1                      # of how a run's table is made
MINED = 1 << 22                  # tokens of a corpus that are read for it: a run begins some seconds later
STRETCHES = 16                   # of a longer corpus, evenly spaced
LONG = 1 << 20                   # tokens from which on mining shows a bar
WORSE = 0.01                     # of the baseline's bits per byte: what compression may cost


def table_of(data: Dataset) -> Table:
    """The table of a run: mined from its training side, or from 16 stretches of a long one; kept in the
    cache. A text in which nothing repeats has an empty one.
    >>> from bitnet_ref.train.small import small_run
    >>> _, data = small_run()
    >>> any("plus" in data.tokenizer.decode(chain.ids) for chain in table_of(data).chains)
    True
    """
    header = data.train.header
    key = json.dumps([VERSION, header.payload_sha256, header.tokenizer_sha256, data.report["corpus"]])
    path = cache_dir() / "chains" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"
    with suppress(CheckError):
        return read_table(path, data.tokenizer)
    table = mine_for(_sampled(data), progress=len(data.train.tokens) > LONG)
    with suppress(CheckError):                             # a cache that cannot be written is none
        write_table(path, table)
    return table


def _sampled(data: Dataset) -> Dataset:
    tokens = data.train.tokens
    if len(tokens) <= MINED:
        return data
    size, end = MINED // STRETCHES - 1, np.full(1, data.train.header.eos, tokens.dtype)
    starts = np.arange(STRETCHES) * (len(tokens) - size) // (STRETCHES - 1)
    parts = [part for start in starts for part in (tokens[start:start + size], end)]
    return data._replace(train=data.train._replace(tokens=np.concatenate(parts)))


# ---- the baseline ----

class Baseline(NamedTuple):
    """A finished run without compression."""

    folder: Path
    steps: int
    bits_per_byte: float


def against(cfg: TrainConfig, model_cfg: ModelConfig, sums: dict[str, str]) -> Baseline | None:
    """What cfg.baseline names; None for nothing. `sums`: the checksums of the run's data.

    Raises CheckError: no run, compressed itself, of another model or of other data, not finished.
    >>> from bitnet_ref.train.small import small_run; from bitnet_ref.train.checkpoint import save
    >>> run, _ = small_run(); path = save(run)
    >>> _ = (run.folder / SUMMARY).write_text('{"steps": 4, "bits per byte": 3.5}')
    >>> cfg = TrainConfig(compress="first", baseline=str(run.folder))
    >>> base = against(cfg, run.model.cfg, run.data); base.steps, base.bits_per_byte
    (4, 3.5)
    """
    if cfg.baseline is None:
        return None
    try:
        checkpoint = latest(cfg.baseline)
    except CheckError as e:
        raise CheckError(f"a baseline must be a run that has been trained; got {cfg.baseline}: {e}") from None
    state, folder = read_state(checkpoint), checkpoint.parent
    check(compression(state) == "off",
          "a baseline must be a run without --compress", f"a compressed one in {folder}", "give another run")
    plain = replace(model_config(state), vocab_size=model_cfg.vocab_size)
    check(plain == model_cfg, "a baseline must have the same model", f"another in {folder}",
          "train one with these options, but without --compress")
    other = [name for name in ("tokenizer", "training tokens", "validation tokens")
             if state.get(name) != sums[name]]
    check(not other, "a baseline must be of the same corpus, split and tokenizer",
          f"other {', '.join(other)} in {folder}", "train one with these options, but without --compress")
    summary = read_object(folder / SUMMARY)
    bits, steps = summary.get("bits per byte"), summary.get("steps")
    check(type(bits) is float and 0 < bits < math.inf and type(steps) is int,
          "a baseline must be a finished run, with its bits per byte in its summary",
          f"{bits!r} in {folder / SUMMARY}", f"finish it with --resume {folder}")
    return Baseline(folder, int(steps or 0), float(bits or 0))


# ---- the result ----

def result(run: Run, data: Dataset, final: Score) -> dict[str, Any]:
    """What the summary of a compressed run says besides: {} without --compress; else "verdict", the first.

    With super-tokens the validation text is scored a second time as plain tokens: none of them comes in, none
    is a target, and what the model gives to them is lost, so this is no figure of the model at its best.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run(compress="first")
    >>> final = score(run.model, data.val.tokens, data.tokenizer.token_bytes)
    >>> list(result(run, data, final)), result(*small_run(), final)
    (['verdict', 'compression'], {})
    """
    if run.cfg.compress == "off":
        return {}
    plain, tokens = final, final.tokens
    if isinstance(data.tokenizer, ChainTokenizer):
        assert data.val is not None
        ids = data.tokenizer.expanded(data.val.tokens)
        plain, tokens = score(run.model, ids, data.tokenizer.token_bytes), len(ids) - 1
    return {"verdict": verdict(run, final.bits_per_byte),
            "compression": {**data.report["compressed"], "tokens saved": saved(data),
                            "perplexity per plain token": math.exp(min(700.0, final.nats / tokens)),
                            "bits per byte as plain tokens": plain.bits_per_byte,
                            "perplexity as plain tokens": plain.perplexity}}


def verdict(run: Run, bits: float) -> str:
    """The first line of a compressed run's result. `bits`: per byte of plain text.
    >>> from bitnet_ref.train.small import small_run; from bitnet_ref.train.checkpoint import save
    >>> plain, _ = small_run(); path = save(plain)
    >>> _ = (plain.folder / SUMMARY).write_text('{"steps": 4, "bits per byte": 3.5}')
    >>> run, _ = small_run(compress="first", baseline=str(plain.folder))
    >>> verdict(run, bits=3.6).partition(":")[0]
    'WORSE than without compression, by more than 1%'
    """
    try:
        base = against(run.cfg, run.model.cfg, run.data)
    except CheckError as e:                                # it was there when the run began
        return f"NOT COMPARED with its baseline: {e}"
    if base is None:
        return ("NOT COMPARED with a run without compression, so its cost is not known: train one without "
                f"--compress, then: python -m bitnet_ref.train --resume {run.folder} --baseline THAT_RUN")
    worse = bits / base.bits_per_byte - 1
    said = (f"{bits:.4f} bits per byte on plain text after {run.step} steps, without compression "
            f"{base.bits_per_byte:.4f} after {base.steps} steps in {base.folder}: {worse:+.2%}")
    if worse > WORSE:
        return f"WORSE than without compression, by more than {WORSE:.0%}: {said}"
    return f"compressed, and no more than {WORSE:.0%} worse than without: {said}"
