"""What a kernel does along one row besides products: squares, largest magnitude, exp, rounding.

No fastmath anywhere: every sum has an order that depends on its length alone, so a row gives the same bits in
any batch. Where a reduction must be fast it is written over integers, which any order leaves exact.
Read after: kernels/numba_cpu/tiles. Read next: kernels/numba_cpu/threads.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bitnet_ref.kernels.numba_cpu.cache import compiled, inlined
from bitnet_ref.kernels.numba_cpu.isa import Tier
from bitnet_ref.kernels.numba_cpu.tiles import F32, Memory, kernel

LANES = 16
MAGIC = np.float32(12582912.0)           # 1.5 * 2^23: adding it rounds to an integer, half to even
MAGIC_BITS = np.int32(0x4B400000)
LOG2E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)   # n * high is exact: 9 bits
MAGNITUDE, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)


def _cast(kind: Any, to: ir.Type) -> Any:
    @intrinsic
    def cast(typingctx: Any, x: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], to)

        return kind(x), codegen

    return cast


bits_of = _cast(types.int32, ir.IntType(32))             # float32 -> the int32 of the same bits
float_of = _cast(types.float32, ir.FloatType())          # and back


@inlined
def exp(x):
    """exp(x) of a float32, to 2 units in the last place: plain arithmetic, which loops vectorise.

    x = n ln 2 + r, |r| <= ln(2)/2; a polynomial for exp(r); 2^n by its exponent bits. Below -87.3 it is 0.
    The coefficients are a fit to exp(r) of least relative error on that interval (3e-9 before rounding).
    """
    x = np.float32(89.0) if x > np.float32(89.0) else x
    x = np.float32(-104.0) if x < np.float32(-104.0) else x                # NaN passes both
    shifted = x * LOG2E + MAGIC
    n = shifted - MAGIC
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = np.float32(1.381455542e-3)
    p = p * r + np.float32(8.368706733e-3)
    p = p * r + np.float32(4.166838789e-2)
    p = p * r + np.float32(1.666652072e-1)
    p = p * r + np.float32(4.999999345e-1)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    power = np.int32(bits_of(shifted) - MAGIC_BITS + 126)                  # of 2^(n - 1): n may be 128
    power = max(power, np.int32(0))
    return p * float_of(np.int32(power << 23)) * np.float32(2.0)


@inlined
def round_even(x):
    """The nearest integer to a float32 of magnitude below 2^22, half to even, as np.rint."""
    return (x + MAGIC) - MAGIC


@compiled
def square_sum(x):
    """Sum of squares of float32 x (n,), in float64: eight chains, then their sum. Nearly exact."""
    a = b = c = d = e = f = g = h = 0.0
    whole = x.size // 8 * 8
    for i in range(0, whole, 8):
        a += np.float64(x[i]) * np.float64(x[i])
        b += np.float64(x[i + 1]) * np.float64(x[i + 1])
        c += np.float64(x[i + 2]) * np.float64(x[i + 2])
        d += np.float64(x[i + 3]) * np.float64(x[i + 3])
        e += np.float64(x[i + 4]) * np.float64(x[i + 4])
        f += np.float64(x[i + 5]) * np.float64(x[i + 5])
        g += np.float64(x[i + 6]) * np.float64(x[i + 6])
        h += np.float64(x[i + 7]) * np.float64(x[i + 7])
    for i in range(whole, x.size):
        a += np.float64(x[i]) * np.float64(x[i])
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


def emit_lanes(builder: ir.IRBuilder, tier: Tier, x: ir.Value, vectors: ir.Value, out: ir.Value, *,
               largest: bool) -> None:
    """Sixteen lanes over float32 x (vectors, 16): the sum of each, or the largest (or what is not a NaN)."""
    m, kind = Memory(builder), ir.VectorType(F32, LANES)
    first = m.load(x, 0, kind) if largest else ir.Constant(kind, [0] * LANES)
    slot = cgutils.alloca_once_value(builder, first)
    with cgutils.for_range(builder, vectors) as loop:
        v = m.load(x, builder.mul(loop.index, ir.IntType(64)(4 * LANES)), kind)
        acc = builder.load(slot)
        builder.store(builder.select(builder.fcmp_ordered(">", v, acc), v, acc) if largest
                      else builder.fadd(acc, v), slot)
    m.store(builder.load(slot), out, 0)


lane_sums, lane_tops = kernel(emit_lanes, largest=False), kernel(emit_lanes, largest=True)


@compiled
def softmax_row(scores, n, lanes):
    """scores float32 (n rounded up to 16,)  ->  exp(scores - max) in place; sum and max are returned.

    Entries from n to the next multiple of 16 become 0. Lane i sums every 16th entry; then the lanes in order.
    A NaN makes the sum NaN. `lanes` (16,): scratch.
    """
    vectors = (n + LANES - 1) // LANES
    for j in range(n, vectors * LANES):
        scores[j] = -np.float32(np.inf)
    lane_tops((scores.ctypes.data, vectors, lanes.ctypes.data))
    top = lanes[0]
    for i in range(1, LANES):
        top = max(top, lanes[i])
    for j in range(vectors * LANES):
        scores[j] = exp(scores[j] - top)
    lane_sums((scores.ctypes.data, vectors, lanes.ctypes.data))
    total = np.float32(0)
    for i in range(LANES):
        total += lanes[i]
    return total, top


@compiled
def rstd_of(x, eps):
    """1/sqrt(mean(x^2) + eps) of a row, in float64, then rounded once."""
    return np.float32(1 / np.sqrt(square_sum(x) / x.size + eps))


@inlined
def sigmoid(z):
    """1/(1 + exp(-z)) of a float32."""
    return np.float32(1) / (np.float32(1) + exp(-z))
