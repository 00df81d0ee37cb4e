"""NVIDIA's driver, as far as the CUDA backend uses it, over the interpreter: memory, launches, graphs.

The functions have the driver's names, arguments and results: (status, result, ...). All is done at once, so
that a stream has nothing to wait for; what is recorded for a graph is done when the graph is started.
Read after: kernels/ptx/machine. Read next: kernels/numba_cuda.
"""

import ctypes
import enum
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref.kernels.ptx.faults import PtxError
from bitnet_ref.kernels.ptx.machine import MAX_SHARED, Machine
from bitnet_ref.kernels.ptx.memory import GlobalMemory
from bitnet_ref.kernels.ptx.module import SIZE, Module, parse

Result = tuple[Any, ...]


class Status(enum.IntEnum):
    """CUresult, those that are given."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_INVALID_PTX = 218
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


OK = (Status.CUDA_SUCCESS,)
INVALID = (Status.CUDA_ERROR_INVALID_VALUE,)
MOST_BLOCKS = (2**31 - 1, 65535, 65535)                    # of a grid
UNASKED = 48 * 1024          # bytes of dynamic shared memory that a kernel has without asking for more
RECORDING = (Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)


class Driver:
    """A card that is none: compute capability, bytes of memory, devices. `machine`: settings, counts."""

    CUdevice_attribute = CUfunction_attribute = CUstreamCaptureMode = int

    def __init__(self, capability: tuple[int, int] = (9, 0), total: int = 4 << 30, devices: int = 1) -> None:
        self.capability, self.devices = capability, devices
        self.memory = GlobalMemory(total)
        self.machine = Machine(self.memory)
        self.recorded: list[Callable[[], None]] | None = None
        self.asked: dict[int, int] = {}                    # dynamic shared memory of functions, by their id

    # ---- the device ----------------------------------------------------------------------------------------
    def cuInit(self, flags: int) -> Result:
        """Nothing to do."""
        return OK

    def cuDriverGetVersion(self) -> Result:
        """CUDA 13.0, whose PTX (9.0) this reads."""
        return *OK, 13000

    def cuDeviceGetCount(self) -> Result:
        """How many there are."""
        return *OK, self.devices

    def cuDeviceGet(self, ordinal: int) -> Result:
        """A device."""
        return (*OK, ordinal) if 0 <= ordinal < self.devices else (Status.CUDA_ERROR_NO_DEVICE, None)

    def cuDeviceGetName(self, length: int, device: Any) -> Result:
        """What it is, so that nobody takes it for a card."""
        return *OK, b"PTX interpreter (no GPU)"

    def cuDeviceGetAttribute(self, number: int, device: Any) -> Result:
        """Compute capability (75, 76), shared memory of a block (97); 0 for others."""
        return *OK, {75: self.capability[0], 76: self.capability[1], 97: MAX_SHARED}.get(number, 0)

    def cuDevicePrimaryCtxRetain(self, device: Any) -> Result:
        """A context."""
        return *OK, "context"

    def cuCtxSetCurrent(self, context: Any) -> Result:
        """Nothing to do."""
        return OK

    def cuStreamCreate(self, flags: int) -> Result:
        """A stream."""
        return *OK, "stream"

    def cuStreamSynchronize(self, stream: Any) -> Result:
        """Nothing to wait for."""
        return OK if self.recorded is None else RECORDING

    # ---- memory --------------------------------------------------------------------------------------------
    def cuMemGetInfo(self) -> Result:
        """Bytes that are free, and all."""
        return *OK, self.memory.total - self.memory.used, self.memory.total

    def cuMemAlloc(self, n_bytes: int) -> Result:
        """An address."""
        address = self.memory.allocate(n_bytes)
        return (Status.CUDA_ERROR_OUT_OF_MEMORY, None) if address is None else (*OK, address)

    def cuMemFree(self, address: int) -> Result:
        """Given back."""
        self.memory.release(int(address))
        return OK

    def cuMemcpyHtoDAsync(self, into: int, source: int, n: int, stream: Any) -> Result:
        """From the host; not into a graph."""
        if self.recorded is not None:
            return RECORDING
        self.memory.write(int(into), np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(source)))
        return OK

    def cuMemcpyDtoHAsync(self, into: int, source: int, n: int, stream: Any) -> Result:
        """To the host; not into a graph."""
        if self.recorded is not None:
            return RECORDING
        np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(into))[:] = self.memory.read(int(source), n)
        return OK

    def cuMemcpyDtoDAsync(self, into: int, source: int, n: int, stream: Any) -> Result:
        """On the device."""
        return self._now_or_later(lambda: self.memory.copy(int(into), int(source), n))

    def cuMemsetD8Async(self, into: int, value: int, n: int, stream: Any) -> Result:
        """n bytes of one value."""
        return self._now_or_later(lambda: self.memory.write(int(into), np.full(n, value, np.uint8)))

    # ---- kernels -------------------------------------------------------------------------------------------
    def cuModuleLoadData(self, text: bytes) -> Result:
        """PTX, if it is, and for this architecture."""
        try:
            module = parse(text.rstrip(b"\0").decode())
        except (PtxError, UnicodeDecodeError):
            return Status.CUDA_ERROR_INVALID_PTX, None
        number, exact = int(module.target.rstrip("af")), module.target.endswith("a")
        have = 10 * self.capability[0] + self.capability[1]
        if number > have or (exact and number != have):
            return Status.CUDA_ERROR_NO_BINARY_FOR_GPU, None
        return *OK, module

    def cuModuleGetFunction(self, module: Module, name: bytes) -> Result:
        """The kernel of that name."""
        return (*OK, module) if module.entry == name.decode() else (Status.CUDA_ERROR_NOT_FOUND, None)

    def cuFuncSetAttribute(self, function: Any, number: int, value: int) -> Result:
        """Dynamic shared memory beyond 48 KiB, within what a block can have."""
        if value > MAX_SHARED:
            return INVALID
        self.asked[id(function)] = value
        return OK

    def cuLaunchKernel(self, function: Module, gx: int, gy: int, gz: int, bx: int, by: int, bz: int,
                       shared: int, stream: Any, pointers: int, extra: int) -> Result:
        """`pointers`: the address of an array of addresses, one to each parameter. Raises PtxError."""
        if not all(0 < n <= most for n, most in zip((gx, gy, gz), MOST_BLOCKS)):
            return INVALID
        if shared > self.asked.get(id(function), UNASKED):
            return INVALID
        each = (ctypes.c_void_p * len(function.params)).from_address(pointers)
        values = [bytes((ctypes.c_uint8 * SIZE[kind]).from_address(at))
                  for at, (_, kind) in zip(each, function.params)]
        return self._now_or_later(
            lambda: self.machine.run(function, (gx, gy, gz), (bx, by, bz), values, shared))

    def _now_or_later(self, work: Callable[[], None]) -> Result:
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)
        return OK

    # ---- graphs and events ---------------------------------------------------------------------------------
    def cuStreamBeginCapture(self, stream: Any, mode: int) -> Result:
        """What follows is recorded."""
        self.recorded = []
        return OK

    def cuStreamEndCapture(self, stream: Any) -> Result:
        """What was recorded."""
        made, self.recorded = self.recorded, None
        return *OK, made

    def cuGraphInstantiate(self, graph: Any, flags: int) -> Result:
        """The same."""
        return *OK, graph

    def cuGraphLaunch(self, graph: Any, stream: Any) -> Result:
        """All that was recorded, now."""
        for work in graph:
            work()
        return OK

    def cuGraphDestroy(self, graph: Any) -> Result:
        """Nothing to do."""
        return OK

    cuGraphExecDestroy = cuGraphDestroy

    def cuEventCreate(self, flags: int) -> Result:
        """An event."""
        return *OK, [0.0]

    def cuEventRecord(self, event: Any, stream: Any) -> Result:
        """The time of this machine, which says nothing about a card."""
        event[0] = time.perf_counter()
        return OK

    def cuEventSynchronize(self, event: Any) -> Result:
        """Nothing to wait for."""
        return OK

    def cuEventElapsedTime(self, a: Any, b: Any) -> Result:
        """Milliseconds."""
        return *OK, 1e3 * (b[0] - a[0])


__all__ = ["Driver", "PtxError", "Status"]
