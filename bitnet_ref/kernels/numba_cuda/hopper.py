"""What compute capability 9.0 has beside: wgmma, copies by a machine of their own, and barriers for them.

wgmma multiplies 64 x 32 unsigned bytes, in the registers of four warps (each 16 rows, as for mma), by 32 x
128 signed ones that lie in shared memory, and goes on while the program does. A bulk copy is begun by one
thread and tells a barrier in shared memory how many bytes have come. Source: PTX ISA 9.0, "wgmma.mma_async",
"mbarrier", "cp.async.bulk".
Read after: kernels/numba_cuda/tensor. Read next: kernels/numba_cuda/gemv.
"""

from typing import Any

from numba.cuda import types
from numba.cuda.extending import intrinsic

from bitnet_ref.kernels.numba_cuda.asm import emit

WIDTH = 128                                                # columns of B: rows of activations
SUMS = WIDTH // 2                                          # of a thread
_D = ", ".join(f"${i}" for i in range(SUMS))
_A = ", ".join(f"${2 * SUMS + i}" for i in range(4))
_WGMMA = ("{ .reg .pred p; setp.ne.b32 p, 1, 0; "
          f"wgmma.mma_async.sync.aligned.m64n{WIDTH}k32.s32.u8.s8 {{{_D}}}, {{{_A}}}, ${2 * SUMS + 4}, p; }}")


@intrinsic
def wgmma(typingctx: Any, sums: Any, a0: Any, a1: Any, a2: Any, a3: Any, b: Any) -> Any:
    """Begin sums += A B: wgmma.mma_async. `sums`: a local array of 64 int32.

    `b` says where B lies, in blocks of 8 columns by 16 rows (128 bytes, column by column), all by 16: bits
    0-13 the address, from bit 16 on the way to the block of the next 16 rows, from 32 of the next 8 columns.
    """
    return types.void(sums, a0, a1, a2, a3, b), emit(_WGMMA, "aiiiil", "i" * SUMS, memory=True, warp=True)


@intrinsic
def wgmma_fence(typingctx: Any) -> Any:
    """Registers written before are seen by the multiplications begun after: wgmma.fence."""
    return types.void(), emit("wgmma.fence.sync.aligned;", "", memory=True, warp=True)


@intrinsic
def wgmma_end(typingctx: Any) -> Any:
    """The multiplications begun since the last such line are a group: wgmma.commit_group."""
    return types.void(), emit("wgmma.commit_group.sync.aligned;", "", memory=True, warp=True)


@intrinsic
def wgmma_wait(typingctx: Any) -> Any:
    """Until all groups are done: wgmma.wait_group 0."""
    return types.void(), emit("wgmma.wait_group.sync.aligned 0;", "", memory=True, warp=True)


@intrinsic
def shared_address(typingctx: Any, array: Any, i: Any) -> Any:
    """Of `array[i]`, as instructions for shared memory want it."""
    return types.int32(array, i), emit("mov.b32 $0, $1;", "s", "i")


@intrinsic
def barrier_init(typingctx: Any, barriers: Any, i: Any, count: Any) -> Any:
    """Barrier `i` of an int64 array, to wait for `count` arrivals in each phase: mbarrier.init."""
    text = "mbarrier.init.shared::cta.b64 [$0], $1;"
    return types.void(barriers, i, count), emit(text, "si", memory=True)


@intrinsic
def barriers_made(typingctx: Any) -> Any:
    """What was written to shared memory is seen by copies begun after: fence.proxy.async."""
    return types.void(), emit("fence.proxy.async.shared::cta;", "", memory=True)


@intrinsic
def barrier_expect(typingctx: Any, barriers: Any, i: Any, n_bytes: Any) -> Any:
    """Arrive at barrier `i`, which waits for so many bytes as well: mbarrier.arrive.expect_tx."""
    text = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;"
    return types.void(barriers, i, n_bytes), emit(text, "si", memory=True)


@intrinsic
def barrier_wait(typingctx: Any, barriers: Any, i: Any, parity: Any) -> Any:
    """Until barrier `i`'s phase of that parity (0: the first) is over: mbarrier.try_wait in a loop."""
    text = ("{ .reg .pred P; AGAIN_${:uid}: mbarrier.try_wait.parity.shared::cta.b64 P, [$0], $1; "
            "@P bra OVER_${:uid}; bra AGAIN_${:uid}; OVER_${:uid}: }")
    return types.void(barriers, i, parity), emit(text, "si", memory=True)


@intrinsic
def copy_bulk(typingctx: Any, into: Any, i: Any, source: Any, j: Any, n_bytes: Any, barriers: Any,
              k: Any) -> Any:
    """Begin to copy from global `source[j]` to shared `into[i]`; barrier `k` learns of it: cp.async.bulk."""
    text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"
    return types.void(into, i, source, j, n_bytes, barriers, k), emit(text, "sgis", memory=True)
