"""Gated units: alone, and with the norm and the quantisation that follow, in one launch.

The unit is computed twice, before and behind the sum over its row, and never stored: exp costs less than the
way to memory and back.
Read after: kernels/numba_cuda/attention. Read next: kernels/numba_cuda/linear.
"""

import math
from typing import Any

from numba import cuda, float32, int32

from bitnet_ref.kernels.numba_cuda.launch import Kernel, kernel
from bitnet_ref.kernels.numba_cuda.rmsnorm import THREADS, quantising


@cuda.jit(device=True, inline="always")
def swiglu_of(gate: Any, up: Any, at: Any) -> Any:
    """silu(gate) * up at that place."""
    z = gate[at]
    return z * (float32(1) / (float32(1) + math.exp(-z))) * up[at]              # (GL.1)


@cuda.jit(device=True, inline="always")
def relu2_of(gate: Any, up: Any, at: Any) -> Any:
    """max(gate, 0)^2 * up at that place."""
    r = gate[at]
    if r <= float32(0):                                    # not `> 0`: NaN must stay NaN
        r = float32(0)
    return r * r * up[at]                                                       # (GL.3)


def _gated(name: str, value: Any) -> Kernel:
    @kernel("f32* gate, f32* up, i32 stride, f32* u, i32 F", THREADS)
    def gated(gate: Any, up: Any, stride: Any, u: Any, F: Any) -> None:
        row = cuda.blockIdx.x * stride
        for f in range(int32(cuda.threadIdx.x), F, THREADS):
            u[cuda.blockIdx.x * F + f] = value(gate, up, row + f)
    return gated._replace(name=name)


# gate, up (M, F), their rows `stride` apart  ->  u (M, F); or its codes, as rmsnorm_int8 has them. Grid (M,).
GLU = {"swiglu": _gated("swiglu", swiglu_of), "relu2": _gated("relu2", relu2_of)}
GLU_INT8 = {"swiglu": quantising("swiglu_int8", swiglu_of), "relu2": quantising("relu2_int8", relu2_of)}
