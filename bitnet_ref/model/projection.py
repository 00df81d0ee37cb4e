"""What `linear = ternary | full` decides: how an input enters its projections, and how it is multiplied.

Both kinds have the same two verbs, so a block never asks which it runs: `normalise` (or `bare`) makes the
operand, for ternary quantised, once for all weights that read it; `multiply` is the product.
Read after: model/weights. Read next: model/saved.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.model.layout import FREE, Entry


class Entered(NamedTuple):
    """An input ready to be multiplied, and what backward needs of it."""

    operand: tuple[np.ndarray, ...]      # (x_q, x_scale) or (x,)
    rstd: np.ndarray | None              # of the norm at the entry; None where there is none


class Projection(NamedTuple):
    """normalise(x, g, eps) -> (*operand, rstd); bare(x) -> operand; the product and its backward."""

    normalise: Callable[..., tuple[np.ndarray, ...]]
    bare: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    multiply: Callable[..., np.ndarray]
    multiply_backward: Callable[..., np.ndarray]


PROJECTION: dict[str, Callable[[Any], Projection]] = {
    "ternary": lambda ops: Projection(ops.rmsnorm_int8, ops.absmax_int8,
                                      ops.ternary_linear, ops.ternary_linear_backward),
    "full": lambda ops: Projection(ops.rmsnorm, lambda x: (x,), ops.linear, ops.linear_backward),
}


def project(x: np.ndarray, entries: tuple[Entry, ...], w: dict[str, Any], prefix: str, kind: Projection,
            eps: float) -> tuple[list[np.ndarray], list[Entered]]:
    """The outputs of all projections that read x (B, T, K), in order, and what backward needs of each entry.

    x (B, T, K)  ->  [y (B, T, N), ...], one Entered per entry
    >>> from bitnet_ref import layers
    >>> x, w = np.array([[2.0, -2.0]]), {"a": np.array([[3, 1]]), "b": np.array([[0, 1]])}
    >>> ys, entered = project(x, (Entry(FREE, ("a", "b")),), w, "", PROJECTION["full"](layers), eps=0.0)
    >>> ys, entered[0].rstd            # normalised once to [1, -1], multiplied twice
    ([array([[2.]]), array([[-1.]])], array([[0.5]]))
    """
    ys, entered = [], []
    for entry in entries:
        if entry.norm is None:
            operand, rstd = kind.bare(x), None
        else:
            *codes, rstd = kind.normalise(x, _gain(w, prefix, entry), eps)
            operand = tuple(codes)
        ys += [kind.multiply(*operand, w[prefix + name]) for name in entry.weights]
        entered.append(Entered(operand, rstd))
    return ys, entered


def project_backward(dys: list[np.ndarray], x: np.ndarray, entered: list[Entered], entries: tuple[Entry, ...],
                     w: dict[str, Any], prefix: str, kind: Projection, ops: Any, grads: Any) -> np.ndarray:
    """Returns dx (B, T, K): the sum over all projections, back through each entry's norm. Codes are STE.

    Accumulates into grads, a table of arrays by name.
    >>> from bitnet_ref import layers
    >>> x, w = np.array([[1.0, 2.0]]), {"a": np.array([[3.0, 0.0]]), "b": np.array([[0.0, 4.0]])}
    >>> entry, entered, grads = Entry(None, ("a", "b")), Entered((x,), None), {"a": 0 * x, "b": 0 * x}
    >>> dys, kind = [np.ones((1, 1)), np.ones((1, 1))], PROJECTION["full"](layers)
    >>> project_backward(dys, x, [entered], (entry,), w, "", kind, layers, grads), grads["a"]
    (array([[3., 4.]]), array([[1., 2.]]))
    """
    dx: Any = None
    dys = list(dys)
    for entry, (operand, rstd) in zip(entries, entered):
        dn: Any = None
        for name in entry.weights:
            d = kind.multiply_backward(dys.pop(0), *operand, w[prefix + name], grads[prefix + name])
            dn = d if dn is None else np.add(dn, d, out=dn)
        if entry.norm is not None:
            dn = ops.rmsnorm_backward(dn, x, _gain(w, prefix, entry), rstd, _gain(grads, prefix, entry))
        dx = dn if dx is None else np.add(dx, dn, out=dx)
    return dx


def _gain(table: Any, prefix: str, entry: Entry) -> np.ndarray | None:
    return None if entry.norm == FREE else table[f"{prefix}{entry.norm}"]
