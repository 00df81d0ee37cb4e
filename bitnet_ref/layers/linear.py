"""Linear: y = x @ w.T, weights stored (out, in), no bias. The output projection; all projections of the twin.

Read after: layers/glu. Read next: layers/bitlinear.
"""

from typing import Any

import numpy as np


def linear(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """y = x @ w.T.   x (..., K)  w (N, K)  ->  y (..., N)"""
    return x @ w.T                                                              # (LI.1)


def prepare_rows(w_q: np.ndarray, w_scale: np.ndarray) -> Any:
    """w of `linear` from w_q int8 (N, K) and w_scale (N, 1), for inference. A backend may keep the bytes."""
    return w_q * w_scale                                                        # (LI.4)


def prepare_table(w: np.ndarray) -> Any:
    """w of `embedding` and `linear` from a table (N, K) of 16-bit floats, for inference; exact.

    Products need wider numbers. A backend may keep the 16 bits.
    """
    return w.astype(np.float32)


def linear_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, dw: np.ndarray) -> np.ndarray:
    """Returns dx (..., K). Accumulates into dw (N, K)."""
    dw += dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])           # (LI.2)
    return dy @ w                                                               # (LI.3)
