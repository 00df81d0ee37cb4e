"""Who may use the device: one caller at a time, whichever thread it is; and what the device is.

Read after: kernels/numba_cuda/decode_step. Read next: kernels/numba_cuda/linear_backward.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bitnet_ref.checks import check
from bitnet_ref.kernels.numba_cuda.driver import ENV
from bitnet_ref.kernels.numba_cuda.memory import device

_lock = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """The device is this thread's for the block: its stream and buffers are shared. Raises CheckError."""
    with _lock:
        found = device()
        found.do("cuCtxSetCurrent", found.context)         # a context belongs to a thread
        yield


def require() -> None:
    """Raise CheckError unless there is a device to compute on."""
    device()


def use(threads: int) -> None:
    """Threads of the processor, which only prepare. Raises CheckError for less than one."""
    check(threads >= 1, "threads must be at least 1", threads, "leave --threads out to use all processors")


def about() -> dict[str, Any]:
    """What a result was computed with: the device's name, its compute capability, the driver's CUDA version.

    "interpreter" is True where no card, but the interpreter of PTX, stood for it.
    """
    found = device()
    version = int(found.do("cuDriverGetVersion"))
    return {"device": found.name, "compute capability": ".".join(map(str, found.capability)),
            "driver": f"{version // 1000}.{version % 1000 // 10}",
            "interpreter": os.environ.get(ENV) == "interpreter"}
