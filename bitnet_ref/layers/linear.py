"""Linear: y = x @ w.T, weights stored (out, in), no bias. The output projection; all projections of the twin.

Read after: layers/glu. Read next: layers/bitlinear.
"""

from typing import Any

import numpy as np


def linear(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """y = x @ w.T.   x (..., K)  w (N, K)  ->  y (..., N)
    >>> linear(np.array([1.0, 2.0]), np.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [11.0, 2.0]
    """
    return x @ w.T                                                              # (LI.1)


def prepare_rows(w_q: np.ndarray, w_scale: np.ndarray) -> Any:
    """w of `linear` from w_q int8 (N, K) and w_scale (N, 1), for inference. A backend may keep the bytes.
    >>> prepare_rows(np.array([[1, -1]], np.int8), np.array([[0.5]])).tolist()
    [[0.5, -0.5]]
    """
    return w_q * w_scale                                                        # (LI.4)


def prepare_table(w: np.ndarray) -> Any:
    """w of `embedding` and `linear` from a table (N, K) of 16-bit floats, for inference; exact.

    Products need wider numbers. A backend may keep the 16 bits.
    >>> prepare_table(np.ones((1, 2), np.float16)).dtype
    dtype('float32')
    """
    return w.astype(np.float32)


def linear_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, dw: np.ndarray) -> np.ndarray:
    """Returns dx (..., K). Accumulates into dw (N, K).
    >>> x, w, dw = np.array([[3.0, 4.0]]), np.array([[5.0, 6.0]]), np.zeros((1, 2))
    >>> linear_backward(np.ones((1, 1)), x, w, dw).tolist(), dw.tolist()
    ([[5.0, 6.0]], [[3.0, 4.0]])
    """
    dw += dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])           # (LI.2)
    return dy @ w                                                               # (LI.3)
