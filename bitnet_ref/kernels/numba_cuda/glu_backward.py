"""Gradients of the gated unit, in one kernel for SwiGLU and squared ReLU. Forward is glu.py's.

Read after: kernels/numba_cuda/attention_backward. Read next: kernels/numba_cuda/embedding_backward.
"""

import math
from typing import Any

from numba import cuda, float32

from bitnet_ref.kernels.numba_cuda.launch import kernel

THREADS = 256


@kernel("f32* du, f32* gate, f32* up, i32 apart, i32 squared, f32* dgate, f32* dup, i32 F, i64 n", THREADS)
def gated_backward(du: Any, gate: Any, up: Any, apart: Any, squared: Any, dgate: Any, dup: Any, F: Any,
                   n: Any) -> None:
    """du (M, F)  ->  dgate, dup: rows that lie as those of gate and up."""
    e = cuda.grid(1)
    if e < n:
        at = e // F * apart + e % F
        z, d = gate[at], du[e]
        if squared:
            r = float32(0) if z <= float32(0) else z
            dgate[at] = d * up[at] * (float32(2) * r)                                       # (GL.4)
            dup[at] = d * r * r
        else:
            s = float32(1) / (float32(1) + math.exp(-z))
            silu = z * s
            dgate[at] = d * up[at] * (s + silu * (float32(1) - s))                          # (GL.2)
            dup[at] = d * silu
