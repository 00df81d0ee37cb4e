"""AdamW: Adam with bias correction, and weight decay that acts on the weight itself, not on the gradient.

Works in place on flat arrays, block by block so that the four streams stay in the processor's cache. What
else training does to whole vectors is here too, so that they may lie where NumPy does not reach: a backend
with memory of its own hands out vectors of it, and `fetch` and `store_` are the only ways between the two.
Port note: the decay is multiplied by the learning rate and applied before the Adam step, as PyTorch does.
Read after: layers/cross_entropy. Read next: kernels.
"""

import math

import numpy as np

BLOCK = 1 << 15              # elements: 4 arrays and 2 temporaries of 128 KiB each fit in a 1 MiB L2 cache


def zeros(n: int, dtype: type = np.float32) -> np.ndarray:
    """A vector (n,) of zeros, in the memory that the backend trains in.
    >>> zeros(2).tolist()
    [0.0, 0.0]
    """
    return np.zeros(n, dtype)


def part(x: np.ndarray, start: int, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of x (n,) from number `start` on, in that shape: the same memory.
    >>> part(np.arange(6), 2, (2, 2)).tolist()
    [[2, 3], [4, 5]]
    """
    return x[start:start + math.prod(shape)].reshape(shape)


def fetch(x: np.ndarray) -> np.ndarray:
    """x (...) where NumPy reads it: itself, or a copy that later changes of x do not reach.
    >>> fetch(zeros(2)).tolist()
    [0.0, 0.0]
    """
    return x


def store_(x: np.ndarray, values: np.ndarray | float) -> None:
    """x (...) = values, of the same shape, or one number for all.
    >>> x = zeros(2); store_(x, 3); x.tolist()
    [3.0, 3.0]
    """
    x[...] = values


def scale_(x: np.ndarray, factor: float) -> None:
    """x (n,) *= factor.
    >>> x = np.ones(2); scale_(x, 0.5); x.tolist()
    [0.5, 0.5]
    """
    x *= factor


def add_(x: np.ndarray, y: np.ndarray) -> None:
    """x (n,) += y (n,).
    >>> x = np.ones(2); add_(x, np.arange(2)); x.tolist()
    [1.0, 2.0]
    """
    np.add(x, y, out=x)


def approach_(x: np.ndarray, y: np.ndarray, weight: float) -> None:
    """x (n,) moves towards y (n,) by `weight` of the way.
    >>> x = zeros(2); approach_(x, np.ones(2), 0.25); x.tolist()
    [0.25, 0.25]
    """
    x += weight * (y - x)


def total(x: np.ndarray) -> float:
    """The sum of x (n,): finite only if all of x is.
    >>> total(np.arange(4.0))
    6.0
    """
    return float(np.sum(x))


def square_sum(x: np.ndarray) -> float:
    """Sum of squares of flat x (n,) in float64: what the norm of a gradient is the root of.
    >>> square_sum(np.array([3.0, 4.0]))
    25.0
    """
    parts = (x[a:a + BLOCK] for a in range(0, len(x), BLOCK))
    return sum(float(np.sum(np.square(part, dtype=np.float64))) for part in parts)             # (AW.5)


def adamw_(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, lr: float, decay: float,
           beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8) -> None:
    """One update in place of p, m, v (n,) from the gradient g (n,). `step` counts from 1.

    Source: Loshchilov and Hutter, arXiv 1711.05101 alg. 2.
    >>> p, g, m, v = np.ones(1), np.full(1, 0.5), np.zeros(1), np.zeros(1)
    >>> adamw_(p, g, m, v, step=1, lr=0.1, decay=0.0)
    >>> p.round(6).tolist()           # the first step is lr long, whatever the size of g
    [0.9]
    """
    correct1, correct2 = 1 - beta1**step, 1 - beta2**step
    for a in range(0, len(p), BLOCK):
        pb, gb, mb, vb = p[a:a + BLOCK], g[a:a + BLOCK], m[a:a + BLOCK], v[a:a + BLOCK]
        mb *= beta1
        mb += (1 - beta1) * gb                                                  # (AW.1)
        vb *= beta2
        vb += (1 - beta2) * (gb * gb)                                           # (AW.2)
        pb *= 1 - lr * decay                                                    # (AW.3)
        pb -= (lr / correct1) * mb / (np.sqrt(vb / correct2) + eps)             # (AW.4)
