"""RMSNorm: divide each token by its root mean square; no mean is subtracted, no bias is added.

A gain `g` of None is the parameter-free norm that the BitNet FAQ puts inside BitLinear.
Only rstd is kept for backward (D times smaller than x); the normalised x is recomputed.
Port note: eps stands inside the root, added to the mean square.
Read after: layers/embedding. Read next: layers/rope.
"""

import numpy as np


def rmsnorm(x: np.ndarray, g: np.ndarray | None, eps: float = 1e-5,
            out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """y = x * rstd * g,  rstd = 1/sqrt(mean(x^2) + eps).

    x (..., D)  g (D,) or None  ->  y (..., D), rstd (..., 1)
    Source: Zhang and Sennrich, arXiv 1910.07467.
    >>> y, rstd = rmsnorm(np.array([[2.0, -2.0]]), None, eps=0.0)
    >>> y.tolist(), rstd.tolist()
    ([[1.0, -1.0]], [[0.5]])
    """
    rstd = (np.mean(x * x, axis=-1, keepdims=True) + eps) ** -0.5               # (RN.1)
    y = np.multiply(x, rstd, out=out)
    return (y if g is None else np.multiply(y, g, out=y)), rstd                 # (RN.2)


def rmsnorm_backward(dy: np.ndarray, x: np.ndarray, g: np.ndarray | None, rstd: np.ndarray,
                     dg: np.ndarray | None) -> np.ndarray:
    """Returns dx (..., D). Accumulates into dg (D,); both g and dg are None for the parameter-free norm.
    >>> dy, x, rstd = np.array([[1.0, 0.0]]), np.array([[2.0, -2.0]]), np.array([[0.5]])
    >>> rmsnorm_backward(dy, x, None, rstd, None).tolist()
    [[0.25, 0.25]]
    """
    n = x * rstd
    if g is not None:
        dg += np.sum((dy * n).reshape(-1, x.shape[-1]), axis=0)                 # (RN.3)
        dy = dy * g
    n *= np.mean(dy * n, axis=-1, keepdims=True)
    return (dy - n) * rstd                                                      # (RN.4)
