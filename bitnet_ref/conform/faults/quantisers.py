"""Faults of the two quantisers and of the integer product.

Read after: conform/faults/files. Read next: conform/faults/forward.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref.conform import slots as op
from bitnet_ref.quant import FLOOR

Table = dict[str, Callable[..., Any]]
Array = np.ndarray


def round_half_away() -> Table:
    """Halves are rounded away from zero (C and CUDA roundf).
    To do: round half to even: rintf, nearbyintf, __float2int_rn, torch.round.
    """
    return {"round": lambda z: np.sign(z) * np.floor(np.abs(z) + 0.5)}


def round_half_up() -> Table:
    """Values are rounded by floor(x + 0.5).
    To do: round half to even: rintf, nearbyintf, __float2int_rn, torch.round.
    """
    return {"round": lambda z: np.floor(z + 0.5)}


def divide_by_scale() -> Table:
    """Activations are quantised as x / (absmax / 127).
    To do: multiply by the reciprocal, x * (127 / absmax), in the activations' own precision.
    """
    return {"scaled": lambda x, a: np.where(a == 0, 0, x / (a / 127))}


def floor_missing() -> Table:
    """The absmax or absmean has no floor, so rows near zero become large codes and rows of zeros 0/0.
    To do: max(absmax, 1e-5), max(absmean, 1e-5).
    """
    return {"absmax": lambda x: np.abs(x).max(axis=-1, keepdims=True),
            "absmean": lambda w: np.mean(np.abs(w))}


def floor_added() -> Table:
    """1e-5 is added to the absmax or absmean.
    To do: use it as a floor: max(absmax, 1e-5), max(absmean, 1e-5).
    """
    return {"absmax": lambda x: np.abs(x).max(axis=-1, keepdims=True) + x.dtype.type(FLOOR),
            "absmean": lambda w: np.mean(np.abs(w)) + w.dtype.type(FLOOR)}


def activations_per_tensor() -> Table:
    """All tokens share one activation scale.
    To do: one scale per token, the absmax along the features.
    """
    return {"absmax": lambda x: np.broadcast_to(op.absmax(x).max(), (len(x), 1))}


def activations_per_block() -> Table:
    """Activations have a scale for every 256 features (as llama.cpp's Q8_K).
    To do: one scale per token, the absmax along all features.
    """
    def absmax(x: Array, size: int = 256) -> Array:
        pad = np.pad(x, ((0, 0), (0, -x.shape[1] % size)))
        return op.absmax(pad.reshape(len(x), -1, size))[..., 0]

    return {"absmax": absmax, "scaled": lambda x, a: x * op.spread(127 / a, x.shape[1])}


def activations_wrong_axis() -> Table:
    """The activation scale is taken over the tokens instead of the features.
    To do: one scale per token, the absmax along the features.
    """
    return {"absmax": lambda x: op.absmax(x.T).T}


def activations_not_quantised() -> list[Table]:
    """Activations enter the product as floats.
    To do: quantise them to int8 per token, as in training; the model expects the rounding.
    """
    return [{"scaled": lambda x, a: x, "to_codes": lambda s, z: z, "x_scale": np.ones_like},
            {"operand": lambda x_q, x_scale, x: (x_q, x_scale) if x is None else (x, np.ones_like(x_scale))}]


def activation_scale_inverted() -> list[Table]:
    """The activation scale is 127 / absmax where absmax / 127 is meant.
    To do: x = x_q * x_scale with x_scale = absmax / 127.
    """
    return [{"x_scale": lambda a: 127 / a}, {"x_factor": lambda x_scale: 1 / x_scale}]


def weights_minus_mean() -> Table:
    """Weights are binarised: the sign of w minus its mean (BitNet b1, not b1.58).
    To do: round(w / mean|w|), clamped to -1, 0, +1.
    """
    return {"to_trits": lambda s, w, mean: np.where(w > w.mean(), 1, -1)}


def weights_by_absmax() -> Table:
    """Weights are scaled by their largest magnitude instead of their mean magnitude.
    To do: absmean: round(w / mean|w|), clamped to -1, 0, +1.
    """
    return {"absmean": lambda w: np.maximum(np.abs(w).max(), w.dtype.type(FLOOR))}


def accumulator_int16() -> Table:
    """The sum of the products wraps around at 16 bits.
    To do: accumulate in 32 bits; 259 products of 127 are enough to overflow 16.
    """
    def wrapped(x_q: Array, w_q: Array) -> Array:
        return (op.accumulate(x_q, w_q) + 32768) % 65536 - 32768

    def saturated(x_q: Array, w_q: Array) -> Array:
        return np.clip(op.accumulate(x_q, w_q), -32768, 32767)

    return [{"accumulate": wrapped}, {"accumulate": saturated}]                 # type: ignore[return-value]
