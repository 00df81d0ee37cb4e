"""What a run writes down: log.jsonl, one JSON object a line, and a progress bar.

Kinds of line: "step" (loss, norm, rates), "layers" (trits, scales, flips, gradient norms of every matrix),
"eval", "final" (all of the validation text), "final ema" (the same by the averaged parameters). Only
`seconds` differs between two runs of one seed. On resume, lines after the checkpoint's step are cut: the log
of a resumed run equals that of an uninterrupted one.
Read after: train/optim. Read next: train/checkpoint.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.model import Params, Weights
from bitnet_ref.quant import ternary_stats

LOG = "log.jsonl"
NUMBERS = {"step": ("loss", "decay"), "eval": ("loss",), "final": ("loss",)}      # what the pictures need
ENDS = "final", "final ema"
FIX = "correct or delete that line, or restore the log from a copy"


def append(run: Path, kind: str, step: int, cursor: int, **values: Any) -> None:
    """Add one line to the run's log. Raises CheckError when the disk refuses."""
    try:
        with open(run / LOG, "a", encoding="utf-8") as f:
            f.write(json.dumps({"kind": kind, "step": step, "cursor": cursor, **values}) + "\n")
    except OSError as e:
        raise CheckError(f"the log must be writable; got {e}; make room in {run} and resume") from None


def read(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log (of one kind), in order. A last line cut short by a crash is left out.

    Raises CheckError, naming the line, for anything else that is not a line of a log.
    """
    file = run / LOG
    try:
        *texts, last = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as e:
        raise unreadable(file, e) from None
    if _is_whole(last):
        texts.append(last)
    lines = [_line(text, f"line {n} of {file}") for n, text in enumerate(texts, 1)]
    return [line for line in lines if kind in (None, line["kind"])]


def _is_whole(last: bytes) -> bool:
    """Whether the text after the last newline is more than the beginning of a line (ours are ASCII)."""
    try:
        json.loads(str(last, "utf-8"))
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        pass                                 # no crash makes these: to be refused
    return True


def _line(text: bytes, where: str) -> dict[str, Any]:
    """One line as a dict, checked as far as resuming and the pictures need it."""
    try:
        line = json.loads(str(text, "utf-8"))
    except (ValueError, RecursionError) as e:
        raise CheckError(f"{where} must be JSON; got {e}; {FIX}") from None
    check(isinstance(line, dict) and isinstance(line.get("kind"), str) and type(line.get("step")) is int,
          f"{where} must be an object with a kind and an integer step", text[:60], FIX)
    check(type(line.setdefault("cursor", line["step"])) is int, f"{where} must have an integer cursor",
          text[:60], FIX)
    for name in NUMBERS.get(line["kind"], ()):
        check(_is_number(line.get(name)), f"{where} must have a number as {name}", repr(line.get(name)), FIX)
    if line["kind"] == "layers":
        layers = line.get("layers")
        check(isinstance(layers, dict) and all(isinstance(m, dict) and all(map(_is_number, m.values()))
                                               for m in layers.values()),
              f"{where} must have numbers by matrix as layers", text[:60], FIX)
    return line


def _is_number(value: Any) -> bool:
    """Finite, or NaN."""
    return type(value) in (int, float) and not abs(value) > sys.float_info.max


def cut_after(run: Path, cursor: int, validated: int) -> None:
    """Drop what a run resumed at `cursor` writes again: lines of later batches, the final score, and
    validations of steps after `validated`."""
    kept = [line for line in read(run) if line["cursor"] <= cursor and line["kind"] not in ENDS
            and not (line["kind"] == "eval" and line["cursor"] == cursor and line["step"] > validated)]
    partial = run / f".{LOG}.partial"
    try:
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, run / LOG)
    except OSError as e:
        raise CheckError(f"the log must be writable; got {e}; make room in {run} and resume") from None


def layer_measures(weights: Weights, before: dict[str, np.ndarray],
                   grads: Params) -> dict[str, dict[str, float]]:
    """Per trit matrix: fractions of -1, 0, +1, scale, entropy, share of flipped trits, gradient norm.

    `before`: name -> w_q int8 of the last call, since when trits have flipped. A full-precision twin has
    gradient norms only.
    """
    measures: dict[str, dict[str, float]] = {}
    for name, (w_q, w_scale) in weights.trits().items():
        flipped = float(np.mean(w_q != before[name])) if name in before else 0.0
        measures[name] = {**ternary_stats(w_q, w_scale)._asdict(), "flipped": flipped}
    for name, g in grads.view.items():
        measures.setdefault(name, {})["grad_norm"] = math.sqrt(np.sum(np.square(g, dtype=np.float64)))
    return measures
