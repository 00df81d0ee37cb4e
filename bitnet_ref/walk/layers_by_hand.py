"""The questions of notebook 02: derivatives on paper, in NumPy, and by complex step.

Read after: walk/ternary. Read next: walk/a_block.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref.layers import (
    cross_entropy,
    cross_entropy_backward,
    linear_backward,
    relu2_backward,
    rmsnorm,
    rmsnorm_backward,
    rope,
    rope_backward,
)
from bitnet_ref.layers.rope import rope_table
from bitnet_ref.walk.puzzle import Question, choice, works_like

DRAW = np.random.default_rng(2)
X, DY, W = DRAW.normal(size=(3, 4)), DRAW.normal(size=(3, 4)), DRAW.normal(size=(5, 4))
TURN = rope_table(np.arange(3), 4, 10000.0, np.float64)


def _dw(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    dw = np.zeros((dy.shape[-1], x.shape[-1]))
    linear_backward(dy, x, np.zeros_like(dw), dw)
    return dw


def _dx(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    return rmsnorm_backward(dy, x, None, rmsnorm(x, None)[1], None)


def _dlogits(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return cross_entropy_backward(1.0, logits, targets, cross_entropy(logits, targets)[1])


def _slope(f: Callable[[Any], Any], x: float) -> float:
    return float(np.imag(f(x + 1e-30j)) / 1e-30)


def _cube(x: Any) -> Any:
    return x * x * x


def _silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


QUESTIONS = [
    Question("Write `slope(f, x)`: the derivative of f at the real number x, to fourteen digits.",
             works_like(_slope, (_cube, 0.7), (_silu, -1.3), (np.exp, 2.0), tolerance=1e-14),
             "np.imag(f(x + 1j * h)) / h with h as small as 1e-30; a difference loses half of its digits",
             lambda f, x: np.imag(f(x + 1e-30j)) / 1e-30),
    Question("Write `dw(dy, x)` of y = x @ w.T, the gradient of w (N, K), from dy (M, N) and x (M, K).",
             works_like(_dw, (DRAW.normal(size=(3, 5)), X)),
             "dw must have the shape of w, and rows of the batch add up", lambda dy, x: dy.T @ x),
    Question("Write `relu2_back(dy, gate, up)`: dgate and dup of y = max(gate, 0)^2 * up.",
             works_like(relu2_backward, (DY, X, DRAW.normal(size=(3, 4)))),
             "product rule: each factor's derivative times the other factor; r * r has the derivative 2 * r",
             lambda dy, gate, up: (dy * up * 2 * np.maximum(gate, 0), dy * np.maximum(gate, 0) ** 2)),
    Question("Write `norm_back(dy, x)`: dx of RMSNorm without gain, eps = 1e-5.",
             works_like(_dx, (DY, X), (10 * DY, 0.01 * X)),
             "(RN.4): take from dy its part along n = x * rstd, a mean over the channels of each token, then "
             "multiply by rstd; eps is inside the root",
             lambda dy, x: (lambda r: r * (dy - x * r * np.mean(dy * x * r, -1, keepdims=True)))(
                 (np.mean(x * x, -1, keepdims=True) + 1e-5) ** -0.5)),
    Question("Write `rope_back(dy, cos, sin)`: dx of the rotation, with one call of `rope`.",
             works_like(rope_backward, (DRAW.normal(size=(1, 3, 2, 4)), *TURN)),
             "the transpose of a rotation is the rotation back: cos stays, sin changes its sign",
             lambda dy, cos, sin: rope(dy, cos, -sin)),
    Question("Write `dlogits(logits, targets)` of the mean cross-entropy, logits (M, V) and targets (M,).",
             works_like(_dlogits, (3 * W, np.array([0, 3, 1, 1, 2])), (900 * W, np.array([2, 2, 0, 1, 3]))),
             "(CE.4): softmax, less 1 at the target, over the number of tokens M; subtract each row's "
             "largest logit before exp",
             lambda logits, targets: (_softmax(logits) - np.eye(logits.shape[1])[targets]) / len(targets)),
    Question("Which x multiplies dy in dw of BitLinear: \"x\", \"n\" (after the norm) or \"x_hat\" "
             "(after rounding)?",
             choice("x_hat", {"x": "The weights never meet the input before the norm",
                              "n": "The product in forward was made with another operand"}),
             "the derivative of a product by one factor is the other factor, as it was used", "x_hat"),
]
