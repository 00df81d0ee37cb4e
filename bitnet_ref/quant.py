"""The two quantisers of BitNet b1.58 and what backward does about them. No matrix product here.

A scale multiplies integers: `w ~ w_q * w_scale`, `x ~ x_q * x_scale` (papers and files often store 1/scale).
The defaults equal the official code to the last digit of the codes; docs/ops/quant.md lists every choice.
Straight-through estimator (STE): rounding has derivative 0 almost everywhere; backward takes the identity
instead, dx_hat/dx := I and dw_hat/dw := I, with no mask for clipped values and no path through a scale.
Port note: rounding is half to even (np.rint); C `roundf` and CUDA `roundf` round half away from zero.
Read after: config. Read next: pack.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import lookup

FLOOR = 1e-5                 # smallest absmean and absmax; the official code's clamp(min=1e-5)


def absmean_ternary(w: np.ndarray, rule: str = "official") -> tuple[np.ndarray, Any]:
    """w (N, K)  ->  w_q int8 (N, K) in {-1, 0, +1}, w_scale () of w's dtype.   Per tensor.

    "official": code of the BitNet FAQ, `w * (1 / max(mean|w|, 1e-5))`. "paper": arXiv 2402.17764 eq. 1-3,
    `w / (mean|w| + 1e-5)`: differs in the last digit, so a weight at a tie may flip.
    A tensor that holds NaN or infinity gives w_scale NaN and w_q 0: it poisons every product loudly.
    >>> w_q, w_scale = absmean_ternary(np.array([[1.0, -2.0, 0.25, 0.75]]))
    >>> w_q.tolist(), float(w_scale)
    ([[1, -1, 0, 1]], 1.0)
    """
    lookup(("official", "paper"), rule, "rule")
    mean = np.mean(np.abs(w))                                                   # (QU.1)
    if not np.isfinite(mean):
        return np.zeros(w.shape, np.int8), w.dtype.type(np.nan)
    if rule == "paper":
        w_scale = mean + w.dtype.type(FLOOR)                                    # (QU.4)
        scaled = w / w_scale
    else:
        w_scale = np.maximum(mean, w.dtype.type(FLOOR))                         # (QU.2)
        scaled = w * (1 / w_scale)
    np.clip(np.rint(scaled, out=scaled), -1, 1, out=scaled)                     # (QU.3)
    return scaled.astype(np.int8), w_scale


def absmax_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (..., K)  ->  x_q int8 (..., K) in [-127, 127], x_scale (..., 1) of x's dtype.   Per token.

    A row of zeros gives codes 0. A row that holds NaN or infinity gives x_scale NaN and codes 0, other rows
    unharmed.
    >>> x_q, x_scale = absmax_int8(np.array([[127.0, -63.5, 0.4]]))
    >>> x_q.tolist(), x_scale.tolist()
    ([[127, -64, 0]], [[1.0]])
    """
    absmax = np.maximum(x.max(axis=-1, keepdims=True), -x.min(axis=-1, keepdims=True))  # no |x| in memory
    floored = np.maximum(absmax, x.dtype.type(FLOOR))                           # (QU.5)
    finite = np.isfinite(floored)
    inv_scale = 127 / floored                                                   # (QU.6)
    if not finite.all():
        x, floored = np.where(finite, x, 0), np.where(finite, floored, np.nan)
        inv_scale = np.where(finite, inv_scale, 0)
    scaled = x * inv_scale
    np.clip(np.rint(scaled, out=scaled), -128, 127, out=scaled)                 # (QU.7)
    return scaled.astype(np.int8), floored / 127


def dequantise(q: np.ndarray, scale: Any) -> np.ndarray:
    """q int8, scale -> q * scale, of scale's dtype.
    >>> dequantise(np.array([1, 0, -1], np.int8), 0.5).tolist()
    [0.5, 0.0, -0.5]
    """
    return q * scale


class TernaryStats(NamedTuple):
    """What a ternary matrix is made of. `entropy`: bits per trit, log2(3) = 1.585 for equal fractions."""

    minus: float
    zero: float
    plus: float
    scale: float
    entropy: float


def ternary_stats(w_q: np.ndarray, w_scale: Any) -> TernaryStats:
    """Fractions of -1, 0, +1, the scale, and the entropy of that histogram.   w_q int8 (N, K)
    >>> ternary_stats(np.array([[-1, 0, 0, 1]], np.int8), 0.5)
    TernaryStats(minus=0.25, zero=0.5, plus=0.25, scale=0.5, entropy=1.5)
    """
    count = np.array([np.count_nonzero(w_q == t) for t in (-1, 0, 1)])
    p = count / w_q.size
    seen = p[p > 0]
    entropy = float(-np.sum(seen * np.log2(seen)) + 0.0)                        # (QU.8)
    minus, zero, plus = p.tolist()
    return TernaryStats(minus, zero, plus, float(w_scale), entropy)
