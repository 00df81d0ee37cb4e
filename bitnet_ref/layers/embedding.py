"""Token embedding: row `id` of a table. Full precision in BitNet b1.58.

Backward adds rows that occur several times in the batch into one row of dw: a scatter-add.
Read after: layers. Read next: layers/rmsnorm.
"""

import numpy as np


def embedding(ids: np.ndarray, w: np.ndarray) -> np.ndarray:
    """ids int (B, T)  w (V, D)  ->  y (B, T, D).   Ids are checked where they enter the model, not here.
    >>> embedding(np.array([[2, 0]]), np.eye(3)).tolist()
    [[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]
    """
    return w[ids]                                                               # (EM.1)


def embedding_backward(dy: np.ndarray, ids: np.ndarray, dw: np.ndarray) -> None:
    """Accumulates into dw (V, D), in token order (so the sum is reproducible). Ids have no gradient.
    >>> dw = np.zeros((3, 1))
    >>> embedding_backward(np.ones((1, 3, 1)), np.array([[2, 2, 0]]), dw); dw.tolist()
    [[1.0], [0.0], [2.0]]
    """
    np.add.at(dw, ids.reshape(-1), dy.reshape(-1, dy.shape[-1]))                # (EM.2)
