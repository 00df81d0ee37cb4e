"""The training loop: one optimisation step at a time, and around it validation, log and checkpoint.

A checkpoint is written before the validation of the same step, so a validation that fails costs nothing; a
run resumed there validates first, as it would have.
Read after: train/interrupt. Read next: train/plots.
"""

import sys
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from bitnet_ref.checks import NonFiniteError
from bitnet_ref.data.batches import batch
from bitnet_ref.data.prepare import Dataset
from bitnet_ref.evaluate.perplexity import Score, score
from bitnet_ref.model.transformer import require_finite
from bitnet_ref.train import log
from bitnet_ref.train.checkpoint import Run, save
from bitnet_ref.train.interrupt import Interrupted, deferred
from bitnet_ref.train.optim import clip_, update_
from bitnet_ref.train.schedule import lr_at, wd_at


def train(run: Run, data: Dataset) -> None:
    """Train until cfg.steps updates are done, or validation stops improving (cfg.patience), or Ctrl-C.

    Raises Interrupted after Ctrl-C, and NonFiniteError, naming step and tensor, when the loss or the gradient
    is not finite.
    """
    cfg = run.cfg
    with (deferred() as interrupted,
          tqdm(total=cfg.steps, initial=run.step, unit="step", dynamic_ncols=True) as bar):
        while run.step < cfg.steps:
            if due(run.step, cfg.eval_every) and validate(run, data, bar):
                save(run)
                break
            report(run, bar, **optimise(run, data))
            if due(run.step, cfg.save_every) or run.step == cfg.steps or interrupted():
                save(run)
            if interrupted():
                raise Interrupted(f"interrupted at step {run.step}; saved; go on with:\n"
                                  f"    python -m bitnet_ref.train --resume {run.folder}")


def optimise(run: Run, data: Dataset) -> dict[str, float]:
    """One optimisation step; nothing else changes the model. Returns what the log says of it.

    Raises NonFiniteError when the loss, the gradient or the new parameters are not finite.
    """
    cfg, params, began = run.cfg, run.model.params, time.perf_counter()
    assert params is not None
    first, length = run.cursor * cfg.accumulate, run.model.cfg.context
    batches = [batch(data.train.tokens, first + m, cfg.batch, length, cfg.seed)
               for m in range(cfg.accumulate)]
    ids = np.concatenate([ids for ids, _ in batches])
    with np.errstate(over="ignore", invalid="ignore"):                     # what comes of it is named below
        loss = run.model.loss_and_grads(batches, run.grads)
        require_finite(loss, f"the loss of step {run.step}", run.model, ids)
        norm = clip_(run.grads.flat, cfg.max_norm, run.model.plan.ops)
        _require_finite_gradient(run, norm)
        lr, decay = lr_at(run.step, cfg), wd_at(run.step, cfg)
        run.step, run.cursor = run.step + 1, run.cursor + 1
        update_(params, run.grads, run.adam, run.step, lr, decay, cfg, run.model.plan.ops)
        if run.step % cfg.requantize_every == 0:
            run.model.requantise()
        total = float(np.sum(params.flat))
        require_finite(total, f"the sum of the parameters after step {run.step}", run.model, ids)
    return {"loss": loss, "norm": norm, "lr": lr, "decay": decay, "tokens": ids.size,
            "seconds": time.perf_counter() - began}


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps happens at `step`."""
    return step % every == 0


def validate(run: Run, data: Dataset, bar: Any) -> bool:
    """Score part of the validation text, log it, and say whether to stop early."""
    assert data.val is not None
    result = score(run.model, data.val.tokens, data.tokenizer.token_bytes, run.cfg.eval_windows,
                   what=f"the validation loss of step {run.step}")
    log.append(run.folder, "eval", run.step, loss=result.loss, bits_per_byte=result.bits_per_byte)
    bar.write(f"step {run.step:6d}   validation loss {result.loss:.4f}   "
              f"{result.bits_per_byte:.4f} bits per byte", file=sys.stderr)
    run.best, run.stale = (result.loss, 0) if result.loss < run.best else (run.best, run.stale + 1)
    stop = run.cfg.patience is not None and run.stale >= run.cfg.patience
    if stop:
        bar.write(f"step {run.step:6d}   no improvement in {run.stale} validations: stopping early",
                  file=sys.stderr)
    return stop


def final_score(run: Run, data: Dataset) -> Score:
    """Score of the whole validation text, also logged, by the model that loading the run would give."""
    assert data.val is not None
    run.model.requantise()                   # with requantize_every > 1 the trits in use lag behind
    result = score(run.model, data.val.tokens, data.tokenizer.token_bytes)
    log.append(run.folder, "final", run.step, loss=result.loss, bits_per_byte=result.bits_per_byte)
    return result


def report(run: Run, bar: Any, **values: float) -> None:
    """A log line for the step just done, one for its layers every log_every steps, and the progress bar."""
    log.append(run.folder, "step", run.step, **values)
    if due(run.step, run.cfg.log_every):
        measures = log.layer_measures(run.model.weights, run.seen, run.grads)
        log.append(run.folder, "layers", run.step, layers=measures)
        run.seen = {name: t.w_q for name, t in run.model.weights.trits().items()}
    bar.set_postfix_str(f"loss {values['loss']:.3f}, lr {values['lr']:.1e}, "
                        f"{values['tokens'] / values['seconds']:,.0f} tok/s", refresh=False)
    bar.update()


def _require_finite_gradient(run: Run, norm: float) -> None:
    if not np.isfinite(norm):
        bad = next((n for n, g in run.grads.view.items() if not np.all(np.isfinite(g))),
                   "their sum of squares")
        raise NonFiniteError(f"the gradient of step {run.step} must be finite; got {norm}, first in {bad}; "
                             "start a new run with a lower --lr, or look at the data there")
