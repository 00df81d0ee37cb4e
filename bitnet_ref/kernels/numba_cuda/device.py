"""What kernels are made of: single instructions of PTX as functions, and sums over a warp and a block.

Each intrinsic is one instruction, spelt out where a reader looks for it. Numba widens int32 + int32 to int64;
kernels write int32(...) around sums that must stay narrow.
Read after: kernels/numba_cuda/asm. Read next: kernels/numba_cuda/tensor.
"""

from typing import Any

from numba import cuda, float32, float64, int32
from numba.cuda import types
from numba.cuda.extending import intrinsic

from bitnet_ref.kernels.numba_cuda.asm import emit, four

ALL = 0xFFFFFFFF             # every lane of the warp
THREADS = 256                # of a block that sums
BLOCK_WARPS = THREADS // 32
V4 = "{$0, $1, $2, $3}, [$4];"


@intrinsic
def round_int(typingctx: Any, x: Any) -> Any:
    """float32 -> int32, half to even: cvt.rni."""
    return types.int32(x), emit("cvt.rni.s32.f32 $0, $1;", "f", "i")


@intrinsic
def times(typingctx: Any, a: Any, b: Any) -> Any:
    """a * b in float32, rounded; never joined with a sum into one rounding: mul.rn."""
    return types.float32(a, b), emit("mul.rn.f32 $0, $1, $2;", "ff", "f")


@intrinsic
def plus(typingctx: Any, a: Any, b: Any) -> Any:
    """a + b in float32, rounded; never joined with a product into one rounding: add.rn."""
    return types.float32(a, b), emit("add.rn.f32 $0, $1, $2;", "ff", "f")


@intrinsic
def dp4a(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """c + the sum of four products, the bytes of `a` unsigned and those of `b` signed: dp4a.u32.s32."""
    return types.int32(a, b, c), emit("dp4a.u32.s32 $0, $1, $2, $3;", "iii", "i")


@intrinsic
def lop3(typingctx: Any, a: Any, b: Any, c: Any, table: Any) -> Any:
    """Any function of three bits, on 32 at once: bit 4a + 2b + c of the literal `table`. lop3.b32."""
    if not isinstance(table, types.IntegerLiteral):
        return None
    text = f"lop3.b32 $0, $1, $2, $3, {table.literal_value};"
    return types.int32(a, b, c, table), emit(text, "iii#", "i")


@intrinsic
def prmt(typingctx: Any, a: Any, b: Any, which: Any) -> Any:
    """Four of the eight bytes of `a` (0-3) and `b` (4-7), one for each hexadecimal digit of `which`: prmt."""
    return types.int32(a, b, which), emit("prmt.b32 $0, $1, $2, $3;", "iii", "i")


@intrinsic
def load16(typingctx: Any, array: Any, i: Any) -> Any:
    """Four int32 from `array[i]` on, which no kernel running now writes: ld.global.nc.v4."""
    return four()(array, i), emit("ld.global.nc.v4.b32 " + V4, "g", "iiii", keep=True)


@intrinsic
def load16_once(typingctx: Any, array: Any, i: Any, holds: Any) -> Any:
    """As load16 where `holds`, else zeros and no access; read once, so not kept in L1: a predicated load."""
    text = ("{ .reg .pred p; setp.ne.u32 p, $5, 0; "
            "mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0; "
            "@p ld.global.nc.L1::no_allocate.L2::256B.v4.b32 " + V4 + " }")
    return four()(array, i, holds), emit(text, "g?", "&iiii", keep=True)


@intrinsic
def load16_if(typingctx: Any, array: Any, i: Any, holds: Any) -> Any:
    """As load16 where `holds`, else zeros and no access: a predicated load."""
    text = ("{ .reg .pred p; setp.ne.u32 p, $5, 0; "
            "mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0; @p ld.global.nc.v4.b32 " + V4 + " }")
    return four()(array, i, holds), emit(text, "g?", "&iiii", keep=True)


@intrinsic
def as_float(typingctx: Any, x: Any) -> Any:
    """The float32 that has the bits of an int32: mov."""
    return types.float32(x), emit("mov.b32 $0, $1;", "i", "f")


@intrinsic
def store4(typingctx: Any, array: Any, i: Any, value: Any) -> Any:
    """An int32 to `array[i]` on, of any type: st.global. The address is a multiple of 4."""
    return types.void(array, i, value), emit("st.global.b32 [$0], $1;", "gi", memory=True)


@intrinsic
def load8_if(typingctx: Any, array: Any, i: Any, holds: Any) -> Any:
    """Two int32 from `array[i]` on where `holds`, else zeros and no access: a predicated ld.global.nc.v2."""
    text = ("{ .reg .pred p; setp.ne.u32 p, $3, 0; mov.b32 $0, 0; mov.b32 $1, 0; "
            "@p ld.global.nc.v2.b32 {$0, $1}, [$2]; }")
    return types.UniTuple(types.int32, 2)(array, i, holds), emit(text, "g?", "&ii", keep=True)


@intrinsic
def store16(typingctx: Any, array: Any, i: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Four int32 to `array[i]` on: st.global.v4."""
    text = "st.global.v4.b32 [$0], {$1, $2, $3, $4};"
    return types.void(array, i, a, b, c, d), emit(text, "giiii", memory=True)


@intrinsic
def load16_shared(typingctx: Any, array: Any, i: Any) -> Any:
    """Four int32 from `array[i]` on, in shared memory: ld.shared.v4. The address is a multiple of 16."""
    return four()(array, i), emit("ld.shared.v4.b32 " + V4, "s", "iiii", memory=True)


@intrinsic
def load4_shared(typingctx: Any, array: Any, i: Any) -> Any:
    """An int32 from `array[i]` on, in shared memory of any type: ld.shared. Address: a multiple of 4."""
    return types.int32(array, i), emit("ld.shared.b32 $0, [$1];", "s", "i", memory=True)


@intrinsic
def store4_shared(typingctx: Any, array: Any, i: Any, value: Any) -> Any:
    """An int32 to `array[i]` on, in shared memory of any type: st.shared."""
    return types.void(array, i, value), emit("st.shared.b32 [$0], $1;", "si", memory=True)


@intrinsic
def store16_shared(typingctx: Any, array: Any, i: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Four int32 to `array[i]` on, in shared memory: st.shared.v4."""
    text = "st.shared.v4.b32 [$0], {$1, $2, $3, $4};"
    return types.void(array, i, a, b, c, d), emit(text, "siiii", memory=True)


@cuda.jit(device=True, inline="always")
def warp_sum(v: Any) -> Any:
    """The sum over the 32 lanes, in every lane; of one order whatever the values."""
    for d in (16, 8, 4, 2, 1):
        v += cuda.shfl_xor_sync(ALL, v, d)
    return v


@cuda.jit(device=True, inline="always")
def warp_max(v: Any) -> Any:
    """The largest of the 32 lanes, in every lane."""
    for d in (16, 8, 4, 2, 1):
        v = max(v, cuda.shfl_xor_sync(ALL, v, d))
    return v


@cuda.jit(device=True, inline="always")
def warp_sum_int(v: Any) -> Any:
    """As warp_sum, for int32."""
    for d in (16, 8, 4, 2, 1):
        v = int32(v + cuda.shfl_xor_sync(ALL, v, d))
    return v


def _block_sum(number: Any) -> Any:
    @cuda.jit(device=True, inline="always")
    def block_sum(v: Any) -> Any:
        """The sum over the block's THREADS threads, in every one, always in one order."""
        partial = cuda.shared.array(BLOCK_WARPS, number)
        tid = int32(cuda.threadIdx.x)
        v = warp_sum(v)
        cuda.syncthreads()                                 # whoever read the sum before has done so
        if (tid & int32(31)) == 0:
            partial[tid >> int32(5)] = v
        cuda.syncthreads()
        total = number(0)
        for i in range(BLOCK_WARPS):
            total += partial[i]
        return total
    return block_sum


block_sum, block_sum64 = _block_sum(float32), _block_sum(float64)
