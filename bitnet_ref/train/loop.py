"""The training loop: one optimisation step at a time, and around it validation, log and checkpoint.

A checkpoint is written before the validation of the same step, so a validation that fails costs nothing; a
run resumed there validates first, as it would have. The first step and the last are always saved.
Read after: train/inject. Read next: train/plots.
"""

import sys
import time
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref.chain.compress import saved
from bitnet_ref.checks import NonFiniteError
from bitnet_ref.data.dataset import unchanged
from bitnet_ref.data.prepare import Dataset
from bitnet_ref.evaluate.perplexity import Score, score
from bitnet_ref.train import board, inject, log
from bitnet_ref.train.checkpoint import Run, note_best, save
from bitnet_ref.train.ema import average_
from bitnet_ref.train.gradient import gradient
from bitnet_ref.train.interrupt import Interrupted, deferred
from bitnet_ref.train.measures import layer_measures
from bitnet_ref.train.optim import update_
from bitnet_ref.train.rollback import roll_back
from bitnet_ref.train.schedule import lr_at, wd_at
from bitnet_ref.train.stability import Verdict


def train(run: Run, data: Dataset) -> None:
    """Train until cfg.steps updates are done, or validation stops improving (cfg.patience), or Ctrl-C.

    Raises Interrupted after Ctrl-C, and NonFiniteError or CheckError, naming step and tensor, when the guard
    gives up, or is off and something is not finite.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run(steps=4, save_every=2); train(run, data)
    >>> run.step, sorted(p.name for p in run.folder.glob("step-*"))
    (4, ['step-00000002', 'step-00000004'])
    """
    cfg = run.cfg
    follow_it = cfg.tensorboard and run.world.rank == 0
    with (deferred(run.world.stop_signals()) as interrupted, board.following(run.folder, follow_it) as follow,
          tqdm(total=cfg.steps, initial=run.step, unit="step", dynamic_ncols=True) as bar):
        if run.cursor == 0:
            save(run)                                      # from here on there is something to resume
        while True:
            last = run.step == cfg.steps
            if (last or due(run.step, cfg.eval_every)) and run.validated < run.step:
                validate(run, data, bar)
            if last:
                break
            if cfg.patience is not None and run.stale >= cfg.patience:
                bar.write(f"step {run.step:6d}   no improvement in {run.stale} validations: stopping early",
                          file=sys.stderr)
                save(run)
                break
            outcome = optimise(run, data)
            if run.world.rank == 0:
                tell(run, bar, outcome)
                follow()
            stop = run.world.any(interrupted())
            good = worth_saving(run, outcome.verdict)
            if good or stop:
                save(run, good)
            if stop:
                run.world.meet()                           # the first has saved
                raise Interrupted(f"interrupted at step {run.step}; saved; go on with:\n"
                                  f"    python -m bitnet_ref.train --resume {run.folder}")


def worth_saving(run: Run, verdict: Verdict) -> bool:
    """Whether the step just done is one to go back to: due and not of a damaged model, or the last.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(steps=4, save_every=2); run.step = 2
    >>> worth_saving(run, Verdict.APPLY), worth_saving(run, Verdict.SKIP)
    (True, False)
    """
    good = due(run.step, run.cfg.save_every) and run.guard.calm()
    return verdict is Verdict.APPLY and (good or run.step == run.cfg.steps)


class Outcome(NamedTuple):
    """What became of one step, and what the log says of it."""

    verdict: Verdict
    values: dict[str, Any]


def optimise(run: Run, data: Dataset) -> Outcome:
    """One optimisation step: the gradient, the guard's verdict, and what follows from it.

    Nothing else changes the model. Raises as `train` does.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run(); before = run.model.params.flat.copy()
    >>> outcome = optimise(run, data)
    >>> outcome.verdict, run.step, np.array_equal(run.model.params.flat, before)
    (<Verdict.APPLY: 'apply'>, 1, False)
    """
    began = time.perf_counter()
    report = gradient(run, data)
    verdict = run.guard.judge(report, run.step)
    run.cursor += 1                                        # whatever the verdict, this batch is behind us
    values: dict[str, Any] = {"loss": report.loss, "norm": report.norm, **run.guard.z}
    if verdict is Verdict.APPLY:
        rates, bad = update(run)
        values |= rates
        verdict = run.guard.settle(bad, run.step)
    if verdict is Verdict.ROLLBACK:
        values |= {"from": run.step, "to": roll_back(run)}
    return Outcome(verdict, {**values, "tokens": report.tokens, "seconds": time.perf_counter() - began})


def update(run: Run) -> tuple[dict[str, float], str | None]:
    """One update by the gradient in run.grads. Returns the rates, and what of the model is not finite now.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run(lr=0.01, weight_decay=0.1); report = gradient(run, data)
    >>> update(run), run.step
    (({'lr': 0.01, 'decay': 0.1}, None), 1)
    """
    cfg, params, ops = run.cfg, run.model.params, run.model.plan.ops
    assert params is not None
    lr, decay = lr_at(run.step, cfg) * run.guard.factor * inject.rate(run), wd_at(run.step, cfg)
    run.step += 1
    with np.errstate(over="ignore", invalid="ignore"):                     # what comes of it is named below
        update_(params, run.grads, run.adam, run.step, lr, decay, cfg, ops)
        inject.flip_(run)
        if run.ema is not None:
            average_(run.ema, params, run.step, cfg.ema or 0.0)
        if run.step % cfg.requantize_every == 0:
            run.model.requantise()
        total = ops.total(params.flat)
    bad = None
    if not np.isfinite(total):
        held = params.fetched().view
        first = next((f"the weight {n}" for n, w in held.items() if not np.all(np.isfinite(w))),
                     "their sum alone")
        bad = f"the sum of the parameters after step {run.step} must be finite; got {total}, first in {first}"
    return {"lr": lr, "decay": decay}, bad


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps happens at `step`.
    >>> [step for step in range(7) if due(step, every=3)]
    [0, 3, 6]
    """
    return step % every == 0


def validate(run: Run, data: Dataset, bar: Any) -> None:
    """Score part of the validation text, log it, and count since when it has not improved.

    A loss that is not finite is no improvement; with the guard on, the next step's verdict deals with it.
    Raises NonFiniteError for it when the guard is off.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run()
    >>> validate(run, data, tqdm(disable=True))
    >>> run.validated, run.best == log.read(run.folder, "eval")[0]["loss"]
    (0, True)
    """
    unchanged(data)
    result = run.world.told(lambda: _part_score(run, data))
    run.validated = run.step
    improved = result is not None and result.loss < run.best
    run.best, run.stale = (result.loss, 0) if improved else (run.best, run.stale + 1)
    if run.world.rank or result is None:
        return
    log.append(run.folder, "eval", run.step, run.cursor, loss=result.loss, bits_per_byte=result.bits_per_byte)
    note_best(run, result.loss)
    bar.write(f"step {run.step:6d}   validation loss {result.loss:.4f}   "
              f"{result.bits_per_byte:.4f} bits per byte", file=sys.stderr)


def _part_score(run: Run, data: Dataset) -> Score | None:
    assert data.val is not None
    try:
        return score(run.model, data.val.tokens, data.tokenizer.token_bytes, run.cfg.eval_windows,
                     what=f"the validation loss of step {run.step}")
    except NonFiniteError as e:
        if not run.cfg.guard:
            raise
        print(e, file=sys.stderr)
        return None


def final_score(run: Run, data: Dataset) -> Score:
    """Score of the whole validation text, also logged, by the model that loading the run would give.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run()
    >>> final_score(run, data).tokens == len(data.val.tokens) - 1      # each but the first is predicted
    True
    """
    assert data.val is not None
    unchanged(data)
    run.model.requantise()                   # with requantize_every > 1 the trits in use lag behind
    result = score(run.model, data.val.tokens, data.tokenizer.token_bytes)
    also = {} if run.cfg.compress == "off" else {"tokens_saved": saved(data)}
    log.append(run.folder, "final", run.step, run.cursor, loss=result.loss,
               bits_per_byte=result.bits_per_byte, **also)
    return result


def tell(run: Run, bar: Any, outcome: Outcome) -> None:
    """The log and the progress bar of a step: its line, one for its layers every log_every steps, or what the
    guard did.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run(); outcome = optimise(run, data)
    >>> tell(run, tqdm(disable=True), outcome)
    >>> [line["kind"] for line in log.read(run.folder)]
    ['step', 'layers']
    """
    values = outcome.values
    if outcome.verdict is not Verdict.APPLY:
        what, why = outcome.verdict.value, run.guard.why
        values = {k: v if v is None or np.isfinite(v) else None for k, v in values.items()}       # in `why`
        log.append(run.folder, "event", run.step, run.cursor, what=what, why=why, **values)
        said = f"back from step {values['from']}" if "from" in values else f"batch {run.cursor - 1} skipped"
        bar.write(f"step {run.step:6d}   {said}: {why}", file=sys.stderr)
    else:
        log.append(run.folder, "step", run.step, run.cursor, **values)
        if due(run.step, run.cfg.log_every):
            params, weights = run.model.params, run.model.weights
            assert params is not None
            weights = weights.fetched(params.ops)
            measures = layer_measures(params.fetched(), weights, run.seen, run.grads.fetched(), params.ops)
            log.append(run.folder, "layers", run.step, run.cursor, layers=measures)
            run.seen = {name: t.w_q for name, t in weights.trits().items()}
        z = "" if values["loss_z"] is None else f" (z {values['loss_z']:+.1f}, {values['norm_z']:+.1f})"
        bar.set_postfix_str(f"loss {values['loss']:.3f}{z}, lr {values['lr']:.1e}, "
                            f"{values['tokens'] / values['seconds']:,.0f} tok/s", refresh=False)
    bar.update(run.step - bar.n)
