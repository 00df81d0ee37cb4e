"""Token embedding: row `id` of a table. Full precision in BitNet b1.58.

Backward adds rows that occur several times in the batch into one row of dw: a scatter-add.
Read after: layers. Read next: layers/rmsnorm.
"""

import numpy as np


def embedding(ids: np.ndarray, w: np.ndarray) -> np.ndarray:
    """ids int (B, T)  w (V, D)  ->  y (B, T, D).   Ids are checked where they enter the model, not here."""
    return w[ids]                                                               # (EM.1)


def embedding_backward(dy: np.ndarray, ids: np.ndarray, dw: np.ndarray) -> None:
    """Accumulates into dw (V, D), in token order (so the sum is reproducible). Ids have no gradient."""
    np.add.at(dw, ids.reshape(-1), dy.reshape(-1, dy.shape[-1]))                # (EM.2)
