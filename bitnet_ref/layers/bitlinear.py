"""BitLinear: RMSNorm, int8 activations, ternary weights, an exact integer product, then the two scales.

The three stages are separate ops because a block quantises once what several projections read (q, k, v), and
ternarises weights once per optimiser step: `rmsnorm_int8` (or `absmax_int8`), `prepare`, `ternary_linear`.
`bitlinear` is their composition, the op of the papers. Backward keeps int8 codes, a quarter of the floats.
Port note: dw uses the *quantised* activation, as the straight-through estimator on both operands demands.
Read after: layers/linear. Read next: layers/cross_entropy.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.layers.rmsnorm import rmsnorm, rmsnorm_backward
from bitnet_ref.quant import absmax_int8, absmean_ternary, dequantise

EXACT_IN_FLOAT32 = 2**24 // 128     # up to this K a sum of K products |x_q w_q| <= 128 is exact in float32


class Prepared(NamedTuple):
    """What the reference keeps of a ternary matrix: int8 trits (N, K) and a scale. A fast backend packs."""

    w_q: np.ndarray
    w_scale: Any


def prepare(w_q: np.ndarray, w_scale: Any, keep: bool = True) -> Prepared:
    """w_q int8 (N, K), w_scale ()  ->  the backend's own form of it, opaque to the model.

    `keep` False: nobody else holds the trits, and a backend may store its own form alone.
    >>> prepare(np.array([[1, 0]], np.int8), 0.5).w_q.tolist()
    [[1, 0]]
    """
    return Prepared(w_q, w_scale)


def rmsnorm_int8(x: np.ndarray, g: np.ndarray | None,
                 eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RMSNorm, then absmax int8 per token.

    x (..., K)  g (K,) or None  ->  x_q int8 (..., K), x_scale (..., 1), rstd (..., 1)
    >>> x_q, x_scale, rstd = rmsnorm_int8(np.array([[2.0, -2.0]]), None, eps=0.0)
    >>> x_q.tolist(), rstd.tolist()
    ([[127, -127]], [[0.5]])
    """
    n, rstd = rmsnorm(x, g, eps)                                                # (BL.1)
    return *absmax_int8(n), rstd                                                # (BL.2)


def ternary_linear(x_q: np.ndarray, x_scale: np.ndarray, w: Prepared) -> np.ndarray:
    """y = (x_q @ w_q.T) * (x_scale * w_scale), the integer sum exact.

    x_q int8 (..., K)  x_scale (..., 1)  ->  y (..., N)
    >>> w = prepare(np.array([[1, 0, -1]], np.int8), 0.5)
    >>> ternary_linear(np.array([[5, 7, 3]], np.int8), np.array([[0.25]]), w).tolist()
    [[0.25]]
    """
    w_q, w_scale = w
    exact = np.float32 if w_q.shape[1] <= EXACT_IN_FLOAT32 else np.float64
    acc = x_q.astype(exact) @ w_q.T.astype(exact)          # integers below 2^24: no rounding in float32 BLAS
    scale = x_scale * w_scale
    return (acc * scale).astype(scale.dtype, copy=False)                        # (BL.3)


def ternary_linear_backward(dy: np.ndarray, x_q: np.ndarray, x_scale: np.ndarray, w: Prepared,
                            dw: np.ndarray) -> np.ndarray:
    """Straight-through: dx_hat/dx := I, dw_hat/dw := I. Returns dx (..., K); accumulates into dw (N, K).
    >>> w, dw = prepare(np.array([[1, 0, -1]], np.int8), 0.5), np.zeros((1, 3))
    >>> x_q, x_scale = np.array([[4, 8, 0]], np.int8), np.array([[0.25]])
    >>> ternary_linear_backward(np.ones((1, 1)), x_q, x_scale, w, dw).tolist(), dw.tolist()
    ([[0.5, 0.0, -0.5]], [[1.0, 2.0, 0.0]])
    """
    x_hat = dequantise(x_q, x_scale).reshape(-1, x_q.shape[-1])
    dw += dy.reshape(-1, dy.shape[-1]).T @ x_hat                                # (BL.5)
    return (dy * w.w_scale) @ w.w_q.astype(dy.dtype)                            # (BL.4)


def bitlinear(x: np.ndarray, g: np.ndarray | None, w: np.ndarray,
              eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray, np.ndarray, Prepared, np.ndarray]:
    """The whole op on float weights.

    x (..., K)  g (K,) or None  w (N, K)  ->  y (..., N), x_q int8 (..., K), x_scale (..., 1), prepared w,
    rstd (..., 1)
    >>> y, *saved = bitlinear(np.array([[2.0, -2.0]]), None, np.array([[3.0, -1.0]]), eps=0.0)
    >>> y.round(6).tolist(), saved[2].w_q.tolist()
    ([[2.0]], [[1, 0]])
    """
    x_q, x_scale, rstd = rmsnorm_int8(x, g, eps)
    ternary = prepare(*absmean_ternary(w))
    return ternary_linear(x_q, x_scale, ternary), x_q, x_scale, ternary, rstd


def bitlinear_backward(dy: np.ndarray, x: np.ndarray, g: np.ndarray | None,
                       x_q: np.ndarray, x_scale: np.ndarray, ternary: Prepared, rstd: np.ndarray,
                       dg: np.ndarray | None, dw: np.ndarray) -> np.ndarray:
    """Returns dx (..., K). Accumulates into dg (K,) and dw (N, K), the gradient of the latent weights.
    >>> x, dw = np.array([[2.0, -2.0]]), np.zeros((1, 2))
    >>> y, *saved = bitlinear(x, None, np.array([[3.0, -1.0]]), eps=0.0)
    >>> bitlinear_backward(np.ones((1, 1)), x, None, *saved, None, dw).round(6).tolist()
    [[0.5, 0.5]]
    """
    dn = ternary_linear_backward(dy, x_q, x_scale, ternary, dw)
    return rmsnorm_backward(dn, x, g, rstd, dg)                                 # (BL.6)
