"""How threads share the tasks of a phase without a barrier that could hang: by claiming them.

Every thread walks the same phases; in each it claims tasks until none is left. Whoever claims a task finishes
it, so one thread alone gets through, however many were asked for and whenever they come: nobody waits for a
thread to arrive, only for tasks that a running thread has begun.
Read after: kernels/numba_cpu/frame. Read next: kernels/numba_cpu/whole.
"""

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bitnet_ref.kernels.numba_cpu.cache import compiled, inlined

PATIENCE = 2000              # looks at the counter before the processor is offered to others
I64 = ir.IntType(64)


@intrinsic
def fetch_add(typingctx: Any, counters: Any, index: Any, value: Any) -> Any:
    """counters int64 (n,)[index] += value, atomically; returns what was there before."""
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        at = builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])
        return builder.atomic_rmw("add", at, args[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), codegen


@intrinsic
def look(typingctx: Any, counters: Any, index: Any) -> Any:
    """counters int64 (n,)[index] as other threads left it; what they wrote before is seen after."""
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        at = builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])
        return builder.load_atomic(at, "seq_cst", 8)

    return types.int64(counters, types.int64), codegen


if sys.platform == "win32":                  # no such function there: waiting costs what it costs
    @inlined
    def _offer():
        return 0
else:
    _offer = types.ExternalFunction("sched_yield", types.int32())


@compiled
def wait(counters, index, goal):
    """Return when counters[index] has reached `goal`."""
    looks = 0
    while look(counters, index) < goal:
        looks += 1
        if looks > PATIENCE:
            _offer()
