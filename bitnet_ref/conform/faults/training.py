"""Faults of training: the straight-through estimator, clipping, AdamW.

Read after: conform/faults/forward. Read next: conform/judge.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Table = dict[str, Callable[..., Any]]
Array = np.ndarray


def gradient_raw_activation() -> Table:
    """dw is made from the activation before quantisation.
    To do: dw = dy.T @ x_hat, where x_hat = x_q * x_scale is what the product saw.
    """
    return {"dw_operand": lambda x, x_hat: x}


def gradient_through_scale() -> list[Table]:
    """The gradient also flows through the weight scale.
    To do: dw := dw_hat; the scale is a constant in backward (detach the whole of w_hat - w).
    """
    def through(dw_hat: Array, w: Array, w_q: Array, w_scale: Any) -> Array:
        return np.sum(dw_hat * w_q) * np.sign(w) / w.size

    def through_both(dw_hat: Array, w: Array, w_q: Array, w_scale: Any) -> Array:
        return np.sum(dw_hat * (w_q - w / w_scale)) * np.sign(w) / w.size

    def instead(dw_hat: Array, w: Array, w_q: Array, w_scale: Any) -> Array:
        return through(dw_hat, w, w_q, w_scale) - dw_hat

    return [{"through_scale": how} for how in (through, through_both, instead)]


def gradient_clipped_ste() -> list[Table]:
    """The gradient is zeroed where a latent weight lies beyond the clamp.
    To do: pass it through unmasked; clamped weights must be able to come back.
    """
    def masked(limit: float) -> Callable[..., Array]:
        return lambda dw_hat, in_scales: np.where(np.abs(in_scales) <= limit, dw_hat, 0)

    return [{"ste": masked(1.0)}, {"ste": masked(1.5)}]


def decay_on_norms() -> Table:
    """Weight decay shrinks the norms' gains.
    To do: decay matrices only.
    """
    return {"decay_of_gain": lambda decay: decay}


def decay_in_gradient() -> Table:
    """Weight decay is added to the gradient (L2 in Adam) instead of shrinking the weight.
    To do: p *= 1 - lr * decay, apart from the moments (AdamW).
    """
    return {"adam_gradient": lambda g, p, decay: g + decay * p, "decayed": lambda p, lr, decay: p}


def bias_correction_missing() -> Table:
    """Adam's moments are not divided by 1 - beta^step.
    To do: m / (1 - beta1^step), v / (1 - beta2^step), steps counted from 1.
    """
    return {"correction": lambda beta, step: 1.0}


def moments_exchanged() -> Table:
    """The decay rates of Adam's two moments are exchanged.
    To do: beta1 = 0.9 for the mean of g, beta2 = 0.95 for the mean of g^2.
    """
    return {"betas": lambda beta1, beta2: (beta2, beta1)}


def clip_per_tensor() -> Table:
    """Each tensor's gradient is clipped by its own norm.
    To do: one norm over all tensors, one factor for all.
    """
    def clip(grads: tuple[Array, ...], max_norm: float) -> list[Array]:
        norms = [np.sqrt(np.sum(np.square(g))) for g in grads]
        return [g * (max_norm / n) if n > max_norm else g for g, n in zip(grads, norms)]

    return {"clip": clip}
