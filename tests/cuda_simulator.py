"""The ladder's first rungs in Numba's own simulator: python cuda_simulator.py, with NUMBA_ENABLE_CUDASIM=1.

The simulator has threads, shared memory and barriers, and neither warps nor instructions of PTX. So the
instructions are stubs here, and the sum over a warp is 32 threads that meet at a barrier.
"""

import sys
import threading
import types
from pathlib import Path

import numpy as np

import bitnet_ref.kernels

PACKAGE = "bitnet_ref.kernels.numba_cuda"
LOCK, WARPS = threading.Lock(), {}


def exchange(value):
    """The values of all 32 threads of this thread's warp."""
    me = threading.current_thread()
    lane, name = me.threadIdx.x % 32, (tuple(me.blockIdx), me.threadIdx.x // 32)
    with LOCK:
        barrier, slots = WARPS.setdefault(name, (threading.Barrier(32), [0] * 32))
    slots[lane] = int(value)
    barrier.wait(timeout=60)
    found = list(slots)
    barrier.wait(timeout=60)
    return found


def stand_in(name, **names):
    """A module in place of one that the simulator cannot import."""
    module = types.ModuleType(f"{PACKAGE}{name}")
    module.__dict__.update(names)
    sys.modules[module.__name__] = module
    return module


def nothing(*operands):
    """An instruction that no rung of the three uses."""
    raise NotImplementedError


stand_in("").__path__ = [str(Path(bitnet_ref.kernels.__file__).parent / "numba_cuda")]
stand_in(".device", warp_sum_int=lambda v: np.int32(sum(exchange(v))), dp4a=nothing, load16=nothing,
         load16_once=nothing)
stand_in(".tensor", mma=nothing)

from numba import cuda  # noqa: E402

from bitnet_ref.bench import examples  # noqa: E402
from bitnet_ref.bench.ladders import vector_cuda  # noqa: E402

for rung in ("naive", "coalesced", "shared"):
    kernel = getattr(vector_cuda, rung)
    launch = examples.launch_of(rung, M=2, N=6, K=132)
    y = np.zeros_like(launch.expected["y"])
    w, x, N, K = (launch.given[name] for name in ("w", "x", "N", "K"))
    with np.errstate(over="ignore"):
        cuda.jit(kernel.function)[launch.grid, kernel.threads, 0, launch.shared](
            w.ravel(), x.ravel(), y.ravel(), N, K)
    print(rung, examples.wrong(launch, {"y": y}) or "right")
