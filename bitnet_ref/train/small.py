"""A run so small that an example can train it: sums of small numbers, in a folder that goes with the run.

Nothing of it is made up: the text is a corpus, the vocabulary is trained on it, and the run is one that the
trainer trains, saves and resumes. The examples of this package begin with it; at a prompt it is the quickest
way to have something to look at.
Read after: train/start. Read next: train/interrupt.
"""

import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.data.corpus import MARKER
from bitnet_ref.data.dataset import Dataset, Recipe, write_dataset
from bitnet_ref.train.checkpoint import Run
from bitnet_ref.train.start import start

MODEL = ModelConfig(vocab_size=280, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=24, context=16)
HOW = TrainConfig(steps=4, batch=2, warmup=1, eval_every=2, eval_windows=4, save_every=2, log_every=1,
                  backend="numpy")


def small_run(**given: Any) -> tuple[Run, Dataset]:
    """A new run of four steps, and its data. `given`: fields of TrainConfig.
    >>> run, data = small_run(steps=2)
    >>> run.step, run.cfg.steps, run.model.params.flat.size, len(data.train.tokens)
    (0, 2, 6488, 1426)
    """
    place = Path(tempfile.mkdtemp(prefix="bitnet_ref-"))
    documents = ["\n".join(f"{a} plus {b} is {a + b}." for b in range(10)) for a in range(20)]
    (place / "sums.txt").write_text(f"\n{MARKER}\n".join(documents), encoding="utf-8")
    write_dataset(place / "data", Recipe(str(place / "sums.txt"), vocab_size=MODEL.vocab_size), False)
    run, data = start("small", MODEL, replace(HOW, corpus=str(place / "data"), **given), str(place / "run"))
    weakref.finalize(run, shutil.rmtree, place, ignore_errors=True)
    return run, data
