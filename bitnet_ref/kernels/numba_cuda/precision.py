"""Numbers as tables and caches keep them, and as sums take them: float32, float16, bfloat16, int8.

Numbers of 16 bits are handled as their bits, and widened by one instruction each.
Read after: kernels/numba_cuda/bitlinear. Read next: kernels/numba_cuda/rmsnorm.
"""

from typing import Any

import numpy as np
from numba import cuda, float32, int32
from numba.cuda import types
from numba.cuda.extending import intrinsic

from bitnet_ref.kernels.numba_cuda.asm import emit


@intrinsic
def bits_of(typingctx: Any, x: Any) -> Any:
    """The 32 bits of a float32 as int32. Those of |x| are in the numbers' order: inf above them, then NaN."""
    return types.int32(x), emit("mov.b32 $0, $1;", "f", "i")


@intrinsic
def float_of(typingctx: Any, bits: Any) -> Any:
    """The float32 that has these 32 bits."""
    return types.float32(bits), emit("mov.b32 $0, $1;", "i", "f")


@intrinsic
def from_half(typingctx: Any, bits: Any) -> Any:
    """The 16 bits of a float16 -> float32."""
    return types.float32(bits), emit("cvt.f32.f16 $0, $1;", "h", "f")


@intrinsic
def to_half(typingctx: Any, x: Any) -> Any:
    """float32 -> the 16 bits of the nearest float16, half to even."""
    return types.uint16(x), emit("cvt.rn.f16.f32 $0, $1;", "f", "h")


@cuda.jit(device=True, inline="always")
def wide_float(x: Any) -> Any:
    """A float32, as it is."""
    return x


@cuda.jit(device=True, inline="always")
def wide_half(x: Any) -> Any:
    """The bits of a float16 -> float32."""
    return from_half(x)


@cuda.jit(device=True, inline="always")
def wide_bf16(x: Any) -> Any:
    """The bits of a bfloat16, which are the upper half of a float32 -> float32."""
    return float_of(int32(x) << int32(16))


@cuda.jit(device=True, inline="always")
def wide_byte(x: Any) -> Any:
    """int8 -> float32."""
    return float32(x)


@cuda.jit(device=True, inline="always")
def narrow_float(x: Any) -> Any:
    """A float32, as it is."""
    return x


@cuda.jit(device=True, inline="always")
def narrow_half(x: Any) -> Any:
    """float32 -> the bits of the nearest float16; of a number too large for one, those of the largest."""
    x = float32(-65504) if x < float32(-65504) else x
    return to_half(float32(65504) if x > float32(65504) else x)


# What a table may be kept in: the C type of a kernel's pointer, and how it is read.
KEPT = {"f32": ("f32", wide_float), "f16": ("u16", wide_half), "bf16": ("u16", wide_bf16),
        "i8": ("i8", wide_byte)}
NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "i8"}


def bits(table: np.ndarray) -> np.ndarray:
    """`table` as a kernel's pointer takes it: 16-bit floats as their bits."""
    return table.view(np.uint16) if table.dtype.itemsize == 2 else table
