"""Back to the last good checkpoint: parameters, moments and step, but not the batches, which stay behind.

Only later checkpoints are removed, nothing is written. A run killed here goes on from a checkpoint before the
trouble (or in it) and comes to the same verdicts, hence to the same rollback.
Read after: train/gradient. Read next: train/inject.
"""

import sys
from pathlib import Path

from bitnet_ref.checks import CheckError
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.train.checkpoint import Run, find_best, load, regular


def roll_back(run: Run) -> int:
    """Restore the newest checkpoint from before the trouble (run.guard.since), which the first rank chooses.

    The cursor, the guard's rate and the early-stopping state stay. Later checkpoints, which may be of the
    damaged model, are removed: killed before, between or after, the run repeats the steps to here.
    Returns the step. Raises CheckError, and removes none, where no checkpoint is old enough, or when the disk
    refuses.
    >>> from bitnet_ref.train.small import small_run; from bitnet_ref.train.checkpoint import save
    >>> run, _ = small_run(); path = save(run)
    >>> run.step, run.cursor, run.guard.since = 3, 3, 2          # the trouble began with the second update
    >>> roll_back(run), run.cursor                               # the step goes back, the batches do not
    (0, 3)
    """
    target = run.world.told(lambda: _target(run))
    state = files.read_state(target)
    load(run, target, state)
    run.guard.rewind(state.get("guard", {}))
    run.step = run.validated = state["step"]
    if run.world.rank == 0:
        _forget(run)
    return run.step


def _target(run: Run) -> Path:
    """The newest whole checkpoint of the schedule from before the trouble; damaged ones are set aside."""
    found = files.checkpoints(run.folder)
    for checkpoint in reversed([c for c in found if files.step_of(c) < run.guard.since and regular(c)]):
        try:
            files.verified(checkpoint)
            return checkpoint
        except files.DamagedError as e:
            print(f"passing over {checkpoint}: {e}; it is now {files.set_aside(checkpoint)}", file=sys.stderr)
    raise CheckError(f"a rollback needs a checkpoint from before step {run.guard.since}, where the trouble "
                     f"began; got {', '.join(c.name for c in found) or 'none'}; start a new run, with a "
                     f"higher --keep, or a lower --lr if it comes again ({run.guard.why})")


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
