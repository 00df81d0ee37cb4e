"""Gated units: activation(gate) * up. SwiGLU (LLaMA, BitNet b1.58) and squared ReLU (BitNet b1.58 2B4T).

Elementwise, so backward recomputes the activation from `gate` and keeps nothing.
Port note: 2B4T has ReLU^2; running SiLU there gives fluent-looking wrong text (perplexity 100 instead of 17).
Port note: the square of a large gate overflows float16; keep this value in float32.
Read after: layers/attention. Read next: layers/linear.
"""

import numpy as np


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """y = silu(gate) * up,  silu(z) = z / (1 + exp(-z)).   gate, up (..., F)  ->  y (..., F)

    Source: Shazeer, arXiv 2002.05202 eq. 5.
    >>> swiglu(np.array([0.0, 100.0]), np.array([5.0, 0.5])).tolist()
    [0.0, 50.0]
    """
    return gate * _sigmoid(gate) * up                                           # (GL.1)


def swiglu_backward(dy: np.ndarray, gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns dgate, dup (..., F).
    >>> swiglu_backward(np.ones(1), np.zeros(1), np.full(1, 4.0))
    (array([2.]), array([0.]))
    """
    s = _sigmoid(gate)
    silu = gate * s
    return dy * up * (s + silu * (1 - s)), dy * silu                            # (GL.2)


def relu2(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """y = max(gate, 0)^2 * up.   gate, up (..., F)  ->  y (..., F)

    Source: arXiv 2504.12285; So et al., arXiv 2109.08668.
    >>> relu2(np.array([-2.0, 3.0]), np.ones(2)).tolist()
    [0.0, 9.0]
    """
    r = np.where(gate.real <= 0, 0, gate)                  # not `> 0`: NaN must stay NaN
    return r * r * up                                                           # (GL.3)


def relu2_backward(dy: np.ndarray, gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns dgate, dup (..., F).
    >>> relu2_backward(np.ones(2), np.array([-2.0, 3.0]), np.ones(2))
    (array([0., 6.]), array([0., 9.]))
    """
    r = np.where(gate.real <= 0, 0, gate)
    return dy * up * (2 * r), dy * r * r                                        # (GL.4)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):                       # exp(-z) = inf for z < -88 (float32): 1/inf = 0
        return 1 / (1 + np.exp(-z))
