"""Rotary position embedding: pair (i, i + Dh/2) of every head turns by position * theta^(-2i/Dh).

Half-split pairs (NEOX, Hugging Face); files with interleaved pairs (2i, 2i+1) are converted at the border.
A rotation's inverse is its transpose, so backward is the same function with -sin.
Port note: the angle of position 0 is 0; the product of a query and a key depends on their distance only.
Read after: layers/rmsnorm. Read next: layers/attention.
"""

import numpy as np


def rope_table(positions: np.ndarray, head_dim: int, theta: float,
               dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """positions int (T,)  ->  cos, sin (T, 1, Dh/2).   In float64, then cast; the 1 is for the heads.
    >>> cos, sin = rope_table(np.array([0, 1]), 4, 10000.0)
    >>> cos.shape, cos[0].tolist()
    ((2, 1, 2), [[1.0, 1.0]])
    """
    freq = theta ** (-np.arange(0, head_dim, 2) / head_dim)                     # (RO.1)
    angle = positions[:, None, None] * freq
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """x (B, T, H, Dh)  cos, sin (T, 1, Dh/2)  ->  y (B, T, H, Dh)

    Source: Su et al., arXiv 2104.09864 eq. 34.
    >>> cos, sin = np.zeros((1, 1, 1)), np.ones((1, 1, 1))             # a quarter turn
    >>> rope(np.array([[[[3.0, 4.0]]]]), cos, sin).tolist()
    [[[[-4.0, 3.0]]]]
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    y = np.empty_like(x) if out is None else out
    y[..., :half] = a * cos - b * sin                                           # (RO.2)
    y[..., half:] = b * cos + a * sin                                           # (RO.3)
    return y


def rope_backward(dy: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Returns dx (B, T, H, Dh): the rotation back.
    >>> cos, sin = np.zeros((1, 1, 1)), np.ones((1, 1, 1))
    >>> rope_backward(np.array([[[[-4.0, 3.0]]]]), cos, sin).tolist()
    [[[[3.0, 4.0]]]]
    """
    return rope(dy, cos, -sin)                                                  # (RO.4)
