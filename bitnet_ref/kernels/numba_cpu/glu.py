"""Gated units, one pass over memory each way; exp is a polynomial that vectorises (vectors.exp).

Read after: kernels/numba_cpu/rope. Read next: kernels/numba_cpu/embedding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from bitnet_ref import layers as reference
from bitnet_ref.kernels.numba_cpu.cache import compiled, compiled_parallel
from bitnet_ref.kernels.numba_cpu.linear import delivered, given, is_ours
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.vectors import sigmoid


@compiled
def gated(gate, up, relu2, y):
    """y (n,) of gate, up (n,). No two may overlap, or the loop is not vectorised."""
    if relu2:
        for i in range(gate.size):
            r = np.float32(0) if gate[i] <= 0 else gate[i]
            y[i] = r * r * up[i]                                                # (GL.3)
    else:
        for i in range(gate.size):
            y[i] = gate[i] * sigmoid(gate[i]) * up[i]                           # (GL.1)


@compiled
def gated_backward(dy, gate, up, relu2, dgate, dup):
    """dgate, dup (n,). No two may overlap."""
    if relu2:
        for i in range(gate.size):
            r, d, u = np.float32(0) if gate[i] <= 0 else gate[i], dy[i], up[i]
            dgate[i] = d * u * (np.float32(2) * r)                              # (GL.4)
            dup[i] = d * r * r
    else:
        for i in range(gate.size):
            z, d, u = gate[i], dy[i], up[i]
            s = sigmoid(z)
            silu = z * s
            dgate[i] = d * u * (s + silu * (np.float32(1) - s))                 # (GL.2)
            dup[i] = d * silu


@compiled_parallel
def _forward(gate, up, relu2, y, threads):
    for t in prange(threads):
        a, b = gate.size * t // threads, gate.size * (t + 1) // threads
        gated(gate[a:b], up[a:b], relu2, y[a:b])


@compiled_parallel
def _backward(dy, gate, up, relu2, dgate, dup, threads):
    for t in prange(threads):
        a, b = gate.size * t // threads, gate.size * (t + 1) // threads
        gated_backward(dy[a:b], gate[a:b], up[a:b], relu2, dgate[a:b], dup[a:b])


def forward(gate: np.ndarray, up: np.ndarray, relu2: bool, y: np.ndarray) -> None:
    """Arrays of any one shape, C-contiguous."""
    with team() as t:
        _forward(gate.reshape(-1), up.reshape(-1), relu2, y.reshape(-1), t.threads)


def backward(dy: np.ndarray, gate: np.ndarray, up: np.ndarray, relu2: bool, dgate: np.ndarray,
             dup: np.ndarray) -> None:
    """Arrays of any one shape, C-contiguous."""
    with team() as t:
        _backward(dy.reshape(-1), gate.reshape(-1), up.reshape(-1), relu2, dgate.reshape(-1), dup.reshape(-1),
                  t.threads)


def _op(name: str, relu2: bool) -> Callable[..., Any]:
    def op(gate: np.ndarray, up: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if not is_ours(gate, up) or gate.shape != up.shape:
            return delivered(getattr(reference, name)(gate, up), out)
        y = given(out, gate.shape)
        forward(np.ascontiguousarray(gate), np.ascontiguousarray(up), relu2, y)
        return delivered(y, out)

    op.__name__, op.__doc__ = name, f"As layers.{name}."
    return op


def _op_backward(name: str, relu2: bool) -> Callable[..., Any]:
    def op(dy: np.ndarray, gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not is_ours(dy, gate, up) or not dy.shape == gate.shape == up.shape:
            return getattr(reference, name)(dy, gate, up)
        dgate, dup = np.empty(gate.shape, np.float32), np.empty(gate.shape, np.float32)
        contiguous = np.ascontiguousarray
        backward(contiguous(dy), contiguous(gate), contiguous(up), relu2, dgate, dup)
        return dgate, dup

    op.__name__, op.__doc__ = name, f"As layers.{name}."
    return op


swiglu, swiglu_backward = _op("swiglu", False), _op_backward("swiglu_backward", False)
relu2, relu2_backward = _op("relu2", True), _op_backward("relu2_backward", True)
