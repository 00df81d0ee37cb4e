"""Back to the last good checkpoint: parameters, moments and step, but not the batches, which stay behind.

Nothing is written but, where no checkpoint is old enough, the initial parameters. A run killed here goes on
from a checkpoint before the trouble (or in it) and comes to the same verdicts, hence to the same rollback.
Read after: train/gradient. Read next: train/inject.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

from bitnet_ref.checks import CheckError
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.model.params import init_params
from bitnet_ref.train.checkpoint import Run, find_best, load, scheduled, write
from bitnet_ref.train.stability import Guard


def roll_back(run: Run) -> int:
    """Restore the newest checkpoint from before the trouble (run.guard.since), else the initial parameters.

    The cursor, the guard's rate and the early-stopping state stay. Later checkpoints, which may be of the
    damaged model, are removed: killed before, between or after, the run repeats the steps to here. Where none
    is old enough, the beginning is saved first, so that at no moment there is nothing.
    Returns the step. Raises CheckError when the disk refuses.
    """
    found = [c for c in files.checkpoints(run.folder) if scheduled(run, c)]
    good = [c for c in found if files.step_of(c) < run.guard.since]
    if not any(_restored(run, checkpoint) for checkpoint in reversed(good)):
        _restart(run)
        write(replace(run, cursor=0, best=math.inf, stale=0, validated=-1, guard=Guard()))
    run.validated = run.step
    if run.world.rank == 0:
        _forget(run)
    return run.step


def _forget(run: Run) -> None:
    """Remove the checkpoints after run.step, the best so far too if it is one of them."""
    for later in files.checkpoints(run.folder):
        if files.step_of(later) > run.step:
            try:
                files.remove(later)
            except OSError as e:
                raise CheckError(f"a checkpoint of a damaged model must be removable; got {e}; delete "
                                 f"{later} and resume") from None
    if run.best_saved is not None and run.best_saved.step > run.step:
        find_best(run)


def _restored(run: Run, checkpoint: Path) -> bool:
    """Whether `checkpoint` is whole; if so, `run` is there now. A damaged one is passed over."""
    try:
        state = files.read_state(checkpoint)
        load(run, checkpoint, state)
        run.guard.rewind(state.get("guard", {}))
        run.step = state["step"]
    except CheckError as e:
        print(f"passing over {checkpoint}: {e}", file=sys.stderr)
        return False
    return True


def _restart(run: Run) -> None:
    """The initial parameters of the run's seed, and nothing learnt."""
    params = run.model.params
    assert params is not None
    params.flat[:] = init_params(run.model.cfg, run.cfg.seed).flat
    for table in (*run.adam, *([run.ema] if run.ema else [])):
        table.flat[:] = 0
    run.model.requantise()
    run.seen, run.step = {}, 0
    run.guard.rewind({"loss": [], "norm": []})
