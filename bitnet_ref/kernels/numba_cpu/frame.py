"""How a compiled function gets its arrays: one table of addresses and shapes, and how threads call it.

Arrays that Numba hands from function to function carry a count of their users, which threads would fight
over; and what is called by name is compiled again into every caller. A frame is plain memory and a call by
address, so neither happens. Who makes a frame keeps its arrays alive for as long as it is used.
Read after: kernels/numba_cpu/program. Read next: kernels/numba_cpu/atomics.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, prange, types
from numba.extending import intrinsic

from bitnet_ref.kernels.numba_cpu.cache import compiled_parallel, inlined

FIELDS = 4                   # of a row of a frame: address, up to three sizes


def frame(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """int64 (arrays, FIELDS), for C-contiguous arrays."""
    rows = [(a.ctypes.data, *a.shape, *(0,) * (FIELDS - 1 - a.ndim)) for a in arrays]
    return np.array(rows, np.int64)


def _pointer(to: Any) -> Any:
    @intrinsic
    def cast(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(to)(types.int64), codegen

    return cast


_to_int64, _to_int32, _to_int8 = _pointer(types.int64), _pointer(types.int32), _pointer(types.int8)
_to_uint8, _to_float32 = _pointer(types.uint8), _pointer(types.float32)


@inlined
def table_at(address, rows):
    """The frame itself, int64 (rows, FIELDS)."""
    return carray(_to_int64(address), (rows, FIELDS))


@inlined
def int64_1(f, i):
    """Array i of the frame f, int64 (n,)."""
    return carray(_to_int64(f[i, 0]), (f[i, 1],))


@inlined
def int64_2(f, i):
    """int64 (n, m)."""
    return carray(_to_int64(f[i, 0]), (f[i, 1], f[i, 2]))


@inlined
def int64_3(f, i):
    """int64 (n, m, k)."""
    return carray(_to_int64(f[i, 0]), (f[i, 1], f[i, 2], f[i, 3]))


@inlined
def int32_1(f, i):
    """int32 (n,)."""
    return carray(_to_int32(f[i, 0]), (f[i, 1],))


@inlined
def int8_2(f, i):
    """int8 (n, m)."""
    return carray(_to_int8(f[i, 0]), (f[i, 1], f[i, 2]))


@inlined
def uint8_1(f, i):
    """uint8 (n,)."""
    return carray(_to_uint8(f[i, 0]), (f[i, 1],))


@inlined
def uint8_2(f, i):
    """uint8 (n, m)."""
    return carray(_to_uint8(f[i, 0]), (f[i, 1], f[i, 2]))


@inlined
def float32_1(f, i):
    """float32 (n,)."""
    return carray(_to_float32(f[i, 0]), (f[i, 1],))


@inlined
def float32_2(f, i):
    """float32 (n, m)."""
    return carray(_to_float32(f[i, 0]), (f[i, 1], f[i, 2]))


@inlined
def float32_3(f, i):
    """float32 (n, m, k)."""
    return carray(_to_float32(f[i, 0]), (f[i, 1], f[i, 2], f[i, 3]))


@intrinsic
def call(typingctx: Any, function: Any, address: Any, rows: Any, thread: Any) -> Any:
    """Call the C function at an address with (address of a frame, its rows, number of the thread)."""
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), codegen


@compiled_parallel
def on_threads(function, address, rows, threads):
    """Call it on every thread of the pool at once."""
    for t in prange(threads):
        call(function, address, rows, t)
