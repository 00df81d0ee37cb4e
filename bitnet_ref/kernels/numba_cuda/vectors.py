"""Parameters, gradients and moments in the device's memory: the ops on whole vectors, and trits made of them.

An Array of the device takes part in no NumPy expression: `fetch` and `store_` are the only ways between the
two, so nothing can be stale. What already is NumPy's is the reference's.
Read after: kernels/numba_cuda/ternarise. Read next: kernels/numba_cuda/workspace.
"""

from typing import Any

import numpy as np

from bitnet_ref import layers as reference
from bitnet_ref import quant
from bitnet_ref.kernels.numba_cuda import adamw
from bitnet_ref.kernels.numba_cuda.adamw import SQUARES, blocks, summed
from bitnet_ref.kernels.numba_cuda.memory import Array, device
from bitnet_ref.kernels.numba_cuda.ternarise import trits


def zeros(n: int, dtype: type = np.float32) -> Any:
    """As layers.zeros: on the device for float32, the only precision that trains there.

    Raises CheckError, with the numbers, where it does not fit.
    """
    if dtype != np.float32:
        return reference.zeros(n, dtype)
    device().require(4 * n, f"a vector of {n:,} numbers (parameters, a gradient or moments)")
    return device().zeros((n,), dtype)


def part(x: Any, start: int, shape: tuple[int, ...]) -> Any:
    """As layers.part."""
    return x.part(start, shape) if isinstance(x, Array) else reference.part(x, start, shape)


def fetch(x: Any) -> np.ndarray:
    """As layers.fetch: a copy, of this moment."""
    return device().read(x) if isinstance(x, Array) else x


def store_(x: Any, values: Any) -> None:
    """As layers.store_."""
    if not isinstance(x, Array):
        reference.store_(x, values)
    elif isinstance(values, np.ndarray):
        assert values.shape == x.shape
        device().write(x, values.astype(x.dtype))
    elif values == 0:
        device().clear(x)
    elif x.size:
        device().launch(adamw.fill, blocks(x.size), x, x.size, values)


def scale_(x: Any, factor: float) -> None:
    """As layers.scale_."""
    if isinstance(x, Array):
        device().launch(adamw.scale, blocks(x.size), x, x.size, factor)
    else:
        reference.scale_(x, factor)


def add_(x: Any, y: Any) -> None:
    """As layers.add_."""
    if isinstance(x, Array):
        device().launch(adamw.add, blocks(x.size), x, y, x.size)
    else:
        reference.add_(x, y)


def approach_(x: Any, y: Any, weight: float) -> None:
    """As layers.approach_."""
    if isinstance(x, Array):
        device().launch(adamw.approach, blocks(x.size), x, y, x.size, weight)
    else:
        reference.approach_(x, y, weight)


def total(x: Any) -> float:
    """As layers.total, in float64."""
    return float(device().read(summed(device(), x))[0]) if isinstance(x, Array) else reference.total(x)


def square_sum(x: Any) -> float:
    """As layers.square_sum."""
    if isinstance(x, Array):
        return float(device().read(summed(device(), x, SQUARES))[0])
    return reference.square_sum(x)


def adamw_(p: Any, g: Any, m: Any, v: Any, step: int, lr: float, decay: float, beta1: float = 0.9,
           beta2: float = 0.95, eps: float = 1e-8) -> None:
    """As layers.adamw_."""
    if not isinstance(p, Array):
        reference.adamw_(p, g, m, v, step, lr, decay, beta1, beta2, eps)
    elif p.size:
        device().launch(adamw.adamw, blocks(p.size), p, g, m, v, p.size, beta1, beta2, 1 - beta1, 1 - beta2,
                        1 - lr * decay, lr / (1 - beta1**step), 1 - beta2**step, eps)


def absmean_ternary(w: Any, rule: str = "official") -> tuple[Any, Any]:
    """As quant.absmean_ternary. Of a matrix on the device, trits and scale stay there."""
    if isinstance(w, Array) and rule == "official":
        return trits(device(), w)
    return quant.absmean_ternary(fetch(w), rule)
