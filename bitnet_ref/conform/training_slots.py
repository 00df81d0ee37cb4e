"""The slots of a training port: the weight gradient behind the straight-through estimator, clipping, AdamW.

As in conform/slots, each is a decision that ports get wrong, with the reference's choice as its default.
Read after: conform/slots. Read next: conform/graph.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

Slots = SimpleNamespace
Array = np.ndarray


class Hyper(NamedTuple):
    """Of the homework's two optimiser steps."""

    lr: float = 0.05
    decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    max_norm: float = 1.0


def weight_gradient(s: Slots, dy: Array, x: Array, x_q: Array, x_scale: Array, w: Array, w_q: Array,
                    w_scale: Any) -> Array:
    """dw (N, K): dy.T @ x_hat, passed to the latent weight as it is (docs/ops/bitlinear.md)."""
    dw_hat = dy.T @ s.dw_operand(x, x_q * x_scale)
    return s.ste(dw_hat, w / w_scale) + s.through_scale(dw_hat, w, w_q, w_scale)


def input_gradient(s: Slots, dy: Array, w_q: Array, w_scale: Any) -> Array:
    """dx (M, K): the product with the ternary weight."""
    return (dy * w_scale) @ w_q.astype(dy.dtype)


def clip(grads: tuple[Array, ...], max_norm: float) -> list[Array]:
    """One norm over all tensors."""
    norm = math.sqrt(sum(float(np.sum(np.square(g))) for g in grads))
    return [g * (max_norm / norm) if norm > max_norm else g for g in grads]


def first_moment(s: Slots, m: Array, g: Array, p: Array, decay: float, h: Hyper) -> Array:
    """m (n,) after a step."""
    beta = s.betas(h.beta1, h.beta2)[0]
    return beta * m + (1 - beta) * s.adam_gradient(g, p, decay)


def second_moment(s: Slots, v: Array, g: Array, p: Array, decay: float, h: Hyper) -> Array:
    """v (n,) after a step."""
    beta = s.betas(h.beta1, h.beta2)[1]
    return beta * v + (1 - beta) * np.square(s.adam_gradient(g, p, decay))


def updated(s: Slots, p: Array, m: Array, v: Array, decay: float, step: int, h: Hyper) -> Array:
    """p (n,) after step number `step`, from 1."""
    beta1, beta2 = s.betas(h.beta1, h.beta2)
    m_hat, v_hat = m / s.correction(beta1, step), v / s.correction(beta2, step)
    return s.decayed(p, h.lr, decay) - h.lr * m_hat / (np.sqrt(v_hat) + h.eps)


TRAINING: dict[str, Callable[..., Any]] = {
    "dw_operand": lambda x, x_hat: x_hat,
    "ste": lambda dw_hat, in_scales: dw_hat,
    "through_scale": lambda dw_hat, w, w_q, w_scale: 0,
    "clip": clip,
    "betas": lambda beta1, beta2: (beta1, beta2),
    "adam_gradient": lambda g, p, decay: g,
    "correction": lambda beta, step: 1 - beta**step,
    "decay_of_gain": lambda decay: 0.0,
    "decayed": lambda p, lr, decay: p * (1 - lr * decay),
}
