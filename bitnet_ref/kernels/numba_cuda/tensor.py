"""Tensor cores and copies that run beside the program: mma.sync, ldmatrix, cp.async (compute capability 8.0).

mma multiplies 16 x 32 unsigned bytes by 32 x 8 signed ones into 16 x 8 int32, the three spread over a warp.
With g = lane / 4 and t = lane % 4, lane holds of A: columns 4t.. of rows g (a0) and g + 8 (a1), columns
16 + 4t.. of these rows (a2, a3); of B: rows 4t.. and 16 + 4t.. of column g (b0, b1); of the sums: columns 2t
and 2t + 1 of rows g and g + 8. Source: PTX ISA 9.0, "Matrix Fragments for mma.m16n8k32".
Read after: kernels/numba_cuda/device. Read next: kernels/numba_cuda/hopper.
"""

from typing import Any

from numba.cuda import types
from numba.cuda.extending import intrinsic

from bitnet_ref.kernels.numba_cuda.asm import emit, four


@intrinsic
def mma(typingctx: Any, sums: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any) -> Any:
    """sums + A B: mma.sync.m16n8k32, A unsigned bytes, B signed."""
    text = ("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
            "{$0, $1, $2, $3}, {$8, $9, $10, $11}, {$12, $13}, {$4, $5, $6, $7};")
    return four()(sums, a0, a1, a2, a3, b0, b1), emit(text, "Tiiiiii", "iiii", warp=True)


@intrinsic
def ldmatrix(typingctx: Any, array: Any, i: Any) -> Any:
    """Four 8 x 16-byte matrices from shared memory, a lane giving the place of one row: ldmatrix.x4."""
    text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];"
    return four()(array, i), emit(text, "s", "iiii", memory=True, warp=True)


@intrinsic
def copy16(typingctx: Any, into: Any, i: Any, source: Any, j: Any) -> Any:
    """Begin to copy 16 bytes from global `source[j]` to shared `into[i]`: cp.async.cg."""
    text = "cp.async.cg.shared.global.L2::128B [$0], [$1], 16;"
    return types.void(into, i, source, j), emit(text, "sg", memory=True)


@intrinsic
def copies_end(typingctx: Any) -> Any:
    """The copies begun since the last such line are a group: cp.async.commit_group."""
    return types.void(), emit("cp.async.commit_group;", "", memory=True)


@intrinsic
def copies_wait(typingctx: Any, n: Any) -> Any:
    """Until at most the `n` newest groups are under way, of this thread's: cp.async.wait_group."""
    if not isinstance(n, types.IntegerLiteral):
        return None
    return types.void(n), emit(f"cp.async.wait_group {n.literal_value};", "#", memory=True)
