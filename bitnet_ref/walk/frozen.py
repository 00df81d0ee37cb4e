"""The straight-through estimator, for a whole ternary model and without trusting a line of its backward.

Every quantiser is replaced by its input plus its residual, x_hat = x + r, with r frozen at the evaluation
point. That model has the same value there, is smooth, and its derivative is what straight-through means. The
complex step finds it through forward alone; the hand-written backward must agree (docs/ops/bitlinear.md).
Read after: walk/derivative. Read next: walk/twin.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitnet_ref import layers
from bitnet_ref.config import ModelConfig
from bitnet_ref.model.params import Params
from bitnet_ref.quant import dequantise
from bitnet_ref.walk.derivative import model_gradients, model_loss, parameter_errors


def overlay(**replaced: Callable[..., Any]) -> SimpleNamespace:
    """The ops of the reference, some of them replaced.
    >>> ops = overlay(relu2=lambda gate, up: up)
    >>> ops.relu2(1.0, 2.0), ops.linear is layers.linear
    (2.0, True)
    """
    return SimpleNamespace(**{**layers.ALL_OPS, **replaced})


def frozen(tape: list[np.ndarray]) -> SimpleNamespace:
    """The ops with x + r for every quantiser. An empty tape records the residuals, a full one plays them.
    >>> tape, w = [], np.array([[0.5, -1.0, 0.25]])
    >>> w_hat, _ = frozen(tape).absmean_ternary(w)                   # records what rounding did
    >>> moved, _ = frozen(tape).absmean_ternary(w + 1e-3)            # plays it: no step any more
    >>> np.allclose(moved - w_hat, 1e-3)
    True
    """
    replay = iter(tape) if tape else None

    def quantised(x: np.ndarray, quantise: Callable[..., Any]) -> np.ndarray:
        if replay is None:
            tape.append(dequantise(*quantise(x)) - x)
        return x + (tape[-1] if replay is None else next(replay))

    def rmsnorm_int8(x: np.ndarray, g: np.ndarray | None, eps: float) -> tuple[np.ndarray, float, np.ndarray]:
        n, rstd = layers.rmsnorm(x, g, eps)
        return quantised(n, layers.absmax_int8), 1.0, rstd

    return overlay(absmean_ternary=lambda w: (quantised(w, layers.absmean_ternary), 1.0),
                   absmax_int8=lambda x: (quantised(x, layers.absmax_int8), 1.0),
                   rmsnorm_int8=rmsnorm_int8, prepare=lambda w_hat, _: w_hat,
                   ternary_linear=lambda x_hat, _, w_hat: layers.linear(x_hat, w_hat))


def ste_errors(cfg: ModelConfig, ops: Any, params: Params, ids: np.ndarray, targets: np.ndarray,
               rng: np.random.Generator) -> dict[str, float]:
    """{tensor: relative error} of the gradients of backend `ops`.   ids, targets int (B, T)
    >>> from bitnet_ref.model.params import init_params
    >>> cfg = ModelConfig(vocab_size=9, d_model=8, n_heads=2, n_kv_heads=1, d_ff=12, n_layers=1)
    >>> params, ids, rng = init_params(cfg, 0, np.float64), np.array([[1, 2, 3]]), np.random.default_rng(0)
    >>> max(ste_errors(cfg, layers, params, ids, ids, rng).values()) < 1e-8
    True
    """
    tape: list[np.ndarray] = []
    model_loss(cfg, frozen(tape), params, ids, targets)                        # records
    return parameter_errors(lambda moved: model_loss(cfg, frozen(tape), moved, ids, targets), params,
                            model_gradients(cfg, ops, params, ids, targets), rng)
