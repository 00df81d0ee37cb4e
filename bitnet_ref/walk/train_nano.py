"""Notebook 04: runs of the trainer that one can wait for, what is read off their logs, and the questions.

The trainer is the project's own, with folder, log, guard and checkpoints. The model is that of walk/twin and
the backend the reference: nothing is compiled first, and the figures are the same wherever it runs.
Read after: walk/a_block. Read next: walk/packing.
"""

import io
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.config import PRESETS, TrainConfig
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.train import log, loop, start
from bitnet_ref.train.checkpoint import Run
from bitnet_ref.train.schedule import lr_at, wd_at
from bitnet_ref.train.stability import LOSS_SPREAD, SKIP_LOSS, ZScore
from bitnet_ref.walk.puzzle import Question, choice, number, works_like
from bitnet_ref.walk.twin import SMALL

RECIPE = TrainConfig(steps=400, batch=4, eval_every=20, save_every=20, backend="numpy")
TROUBLE = "spike@120,lr@280"


def lived(folder: Path, cfg: TrainConfig = RECIPE) -> Run:
    """A run of the trainer in `folder`, new, from its first step to its last; its progress bar is not shown.

    >>> import tempfile
    >>> from dataclasses import replace
    >>> few = replace(RECIPE, steps=2, eval_windows=1)
    >>> lived(Path(tempfile.mkdtemp()) / "run", few).step
    2
    """
    with redirect_stderr(io.StringIO()):
        run, data = start.start("walk", SMALL, cfg, str(folder))
        loop.train(run, data)
    return run


def gone_on(run: Run, step: int, folder: Path) -> Run:
    """The run that somebody finds who resumes `run` from its checkpoint of `step`, in a copy.

    >>> import tempfile
    >>> from dataclasses import replace
    >>> place = Path(tempfile.mkdtemp())
    >>> run = lived(place / "run", replace(RECIPE, steps=2, save_every=1, eval_windows=1))
    >>> bool(np.array_equal(gone_on(run, 1, place / "copy").model.params.flat, run.model.params.flat))
    True
    """
    shutil.copytree(run.folder, folder)
    for later in files.checkpoints(folder):
        if files.step_of(later) > step:
            files.remove(later)
    with redirect_stderr(io.StringIO()):
        again, data = start.resume(str(folder), {})
        loop.train(again, data)
    return again


def validations(folder: Path) -> dict[int, float]:
    """{step: loss of some validation text, in nats per token} of a run.

    >>> validations(Path("no such run"))
    {}
    """
    return {line["step"]: line["loss"] for line in log.read(folder, "eval")}


def over_matrices(folder: Path, measure: str) -> dict[int, float]:
    """{batches seen: mean of a `measure` of train/measures over the matrices of trits} of a run.

    Flips begin with the second line: the first has none before it, and a 0 that stands for nothing.
    >>> over_matrices(Path("no such run"), "flipped")
    {}
    """
    lines = log.read(folder, "layers")[1 if measure == "flipped" else 0:]
    return {line["cursor"]: float(np.mean([m[measure] for m in line["layers"].values() if measure in m]))
            for line in lines}


def without_clock(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log but for the seconds, which nothing repeats.

    >>> without_clock(Path("no such run"))
    []
    """
    return [{k: v for k, v in line.items() if k != "seconds"} for line in log.read(folder)]


def left_by_decay(cfg: TrainConfig) -> float:
    """What (AW.3) alone leaves of a latent weight in a run of `cfg`, as a share.

    >>> left_by_decay(TrainConfig(weight_decay=0.0))
    1.0
    """
    return float(np.prod([1 - lr_at(step, cfg) * wd_at(step, cfg) for step in range(cfg.steps)]))


# ---- the questions ----

def _rate(step: int, steps: int, lr: float) -> float:
    return lr_at(step, TrainConfig(steps=steps, lr=lr, warmup=0, lr_end=0.0))


def _kept(rates: np.ndarray, decay: float) -> float:
    return float(np.prod(1 - rates * decay))


def _z(values: np.ndarray, new: float) -> float:
    window = ZScore(LOSS_SPREAD)
    for value in values.tolist():
        window.enter(value)
    z = window.of(new)
    assert z is not None
    return z


def _own_z(values: np.ndarray, new: float) -> float:
    return float((new - np.mean(values)) / max((np.mean(np.diff(values) ** 2) / 2) ** 0.5, 0.02))


NOISY = 3.5 + np.random.default_rng(0).normal(size=40) / 10
FALLING = np.linspace(4.0, 3.0, 40)
BIG = PRESETS["700m"].train
RATES = np.linspace(BIG.lr, BIG.lr / 2, 50)

QUESTIONS = [
    Question("Write `rate(step, steps, lr)`: the two-stage rate (SC.3) with no warm-up, s = 2/3 and e = 0.",
             works_like(_rate, (0, 100, 0.01), (49, 100, 0.01), (50, 100, 0.01), (99, 100, 0.01)),
             "two lines to 0 at the last step plus one, from lr and from 2/3 of it; the second from 2 * step "
             "= steps on",
             lambda step, steps, lr: lr * (1 if 2 * step < steps else 2 / 3) * (1 - step / steps)),
    Question("Write `kept(rates, decay)`: the share of itself that a latent weight keeps after updates at "
             "these rates, by (AW.3) alone.",
             works_like(_kept, (np.array([0.01, 0.02]), 0.1), (RATES, 0.5)),
             "each update multiplies it by 1 - rate * decay, whatever it was",
             lambda rates, decay: np.exp(np.sum(np.log(1 - rates * decay)))),
    Question("A latent weight is 0, its matrix's scale 0.09, each update moves it by 0.01 the same way. "
             "After how many updates is its trit no longer 0?", number(5, 0),
             "the threshold is at half the scale, and the weight must be beyond it", 5),
    Question("Two schedules are compared by their losses. When: \"at the switch\", \"in the middle\" or \"at "
             "the end\"?",
             choice("at the end", {"at the switch": "The rate that drops first is ahead there",
                                   "in the middle": "One of them may be ahead there and not later"}),
             "where have both rates come down?", "at the end"),
    Question("Write `z(values, new)`: the score (ST.2) of a new loss behind a window of values, least spread "
             "0.02.", works_like(_z, (NOISY, 4.5), (FALLING, 3.5), (np.full(32, 3.0), 3.1)),
             "the spread (ST.1) is of differences between neighbours, np.diff: the root of half their mean "
             "square", _own_z),
    Question("The window's mean is 3.5 and its spread 0.04; a finite batch has loss 3.7 and an ordinary "
             "gradient. The guard does what: \"apply\", \"skip\" or \"rollback\"?",
             choice("apply" if SKIP_LOSS > (3.7 - 3.5) / 0.04 else "skip",
                    {"skip": "A batch is skipped beyond six spreads, (ST.3)",
                     "rollback": "One batch is no reason, (ST.5) wants a row of them"}),
             "(3.7 - 3.5) / 0.04 is the score", "apply"),
    Question("Of a run's two counters, which does a rollback take back: \"step\", \"cursor\" or \"both\"?",
             choice("step", {"cursor": "The bad batches would come again",
                             "both": "The bad batches would come again"}),
             "the model is as it was some updates ago; the data are behind us", "step"),
]
