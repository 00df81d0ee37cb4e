"""What a run writes down: log.jsonl, one JSON object a line, and a progress bar.

Kinds of line: "step" (loss, norm, rates), "layers" (trits, scales, flips, gradient norms of every matrix),
"eval", "final" (all of the validation text). Only `seconds` differs between two runs of one seed. On resume,
lines after the checkpoint's step are cut: the log of a resumed run equals that of an uninterrupted one.
Read after: train/optim. Read next: train/checkpoint.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.checks import CheckError
from bitnet_ref.model import Params, Weights
from bitnet_ref.quant import ternary_stats

LOG = "log.jsonl"


def append(run: Path, kind: str, step: int, **values: Any) -> None:
    """Add one line to the run's log. Raises CheckError when the disk refuses."""
    try:
        with open(run / LOG, "a", encoding="utf-8") as f:
            f.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
    except OSError as e:
        raise CheckError(f"the log must be writable; got {e}; make room in {run} and resume") from None


def read(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log (of one kind), in order. A last line cut short by a crash is left out."""
    lines = []
    for text in (run / LOG).read_text(encoding="utf-8").splitlines() if (run / LOG).exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return [line for line in lines if kind in (None, line["kind"])]


def cut_after(run: Path, step: int) -> None:
    """Drop what a run resumed at `step` writes again: lines of later steps, and the validation of `step`."""
    kept = [line for line in read(run)
            if line["step"] < step or (line["step"] == step and line["kind"] not in ("eval", "final"))]
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
