"""The device: its memory, its kernels and its graphs, through NVIDIA's driver or the interpreter.

An Array is an address with a shape; it lives until nobody holds it. A launch is a kernel, a grid and
parameters; launches made inside `recording()` become a graph, which is then started as one.
Read after: kernels/numba_cuda/launch. Read next: kernels/numba_cuda/asm.
"""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.kernels.numba_cuda.driver import call, load
from bitnet_ref.kernels.numba_cuda.launch import SIZES, Kernel, ptx, target

GB = 1 << 30                                               # in what is said of memory
MAJOR, MINOR = 75, 76                                      # CUdevice_attribute
MAX_DYNAMIC_SHARED = 8                                     # CUfunction_attribute
RELAXED = 2                                                # CUstreamCaptureMode: memory may go meanwhile
SCALARS = {"i8": np.int8, "u8": np.uint8, "i32": np.int32, "u32": np.uint32, "f32": np.float32,
           "i64": np.int64, "f64": np.float64, "u16": np.uint16}


class Block:
    """Memory of the device that is freed when nobody holds it."""

    def __init__(self, device: "Device", n_bytes: int) -> None:
        self.address = int(device.do("cuMemAlloc", max(n_bytes, 1)))
        weakref.finalize(self, _end, device.driver, device.context, "cuMemFree", self.address)


class Array(NamedTuple):
    """Numbers on the device, in row-major order."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    block: Block                 # kept alive

    @property
    def size(self) -> int:
        """Of numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of bytes."""
        return self.size * self.dtype.itemsize

    def part(self, start: int, shape: tuple[int, ...]) -> "Array":
        """The numbers from number `start` on, in that shape. The memory is the same."""
        assert 0 <= start <= self.size - math.prod(shape)
        return Array(self.address + start * self.dtype.itemsize, shape, self.dtype, self.block)

    def reshape(self, *shape: int) -> "Array":
        """In another shape, with the same memory."""
        assert math.prod(shape) == self.size
        return self._replace(shape=shape)


class Graph:
    """Launches that are started as one. `held`: what they use. Ended when nobody holds it."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.held: list[Any] = []


class Device:
    """A card (or the interpreter), its context and one stream. Not for several threads at once."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.do("cuInit", 0)
        check(self.do("cuDeviceGetCount") > 0, "--backend cuda needs an NVIDIA GPU", "none",
              "use a machine with one, --backend numba, or the interpreter (BITNET_REF_CUDA)")
        self.device = self.do("cuDeviceGet", 0)
        name = self.do("cuDeviceGetName", 100, self.device)
        self.name = (name if isinstance(name, bytes) else bytes(name)).split(b"\0")[0].decode()
        self.capability = (self.attribute(MAJOR), self.attribute(MINOR))
        check(self.capability >= (8, 0), "--backend cuda needs compute capability 8.0 or newer",
              f"{self.name}, {self.capability[0]}.{self.capability[1]}",
              "use another card, or --backend numba")
        self.context = self.do("cuDevicePrimaryCtxRetain", self.device)
        self.do("cuCtxSetCurrent", self.context)
        self.stream = self.do("cuStreamCreate", 1)         # non-blocking
        self.functions: dict[Kernel, Any] = {}
        self.recorded: list[Any] | None = None             # what the launches of the graph being made use
        self.events: list[Any] = []                        # begin and end of what is timed

    def do(self, name: str, *args: Any) -> Any:
        """A function of the driver. Raises CheckError unless it succeeds."""
        return call(self.driver, name, *args)

    def attribute(self, number: int) -> int:
        """A property of the card, by its number in CUdevice_attribute."""
        return int(self.do("cuDeviceGetAttribute", self.driver.CUdevice_attribute(number), self.device))

    def free(self) -> tuple[int, int]:
        """Bytes of its memory that are free, and all."""
        free, total = self.do("cuMemGetInfo")
        return int(free), int(total)

    def require(self, n_bytes: int, what: str) -> None:
        """Raise CheckError, with the numbers, unless so many bytes are free."""
        free, total = self.free()
        check(n_bytes <= free, f"the card must have memory for {what}: {n_bytes / GB:.3g} GB",
              f"{free / GB:.3g} GB free of {total / GB:.3g} GB ({self.name})",
              "use a smaller model, batch or context, or free the card's memory")

    # ---- memory -------------------------------------------------------------------------------------------
    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory for numbers, not set."""
        dtype = np.dtype(dtype)
        block = Block(self, math.prod(shape) * dtype.itemsize)
        return Array(block.address, shape, dtype, block)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory for numbers, all 0."""
        made = self.empty(shape, dtype)
        self.clear(made)
        return made

    def clear(self, array: Array) -> None:
        """All bits of `array` 0, in the order of the stream (also in a graph)."""
        if array.nbytes:
            self.do("cuMemsetD8Async", array.address, 0, array.nbytes, self.stream)

    def upload(self, values: np.ndarray) -> Array:
        """A copy of `values` on the device."""
        made = self.empty(values.shape, values.dtype)
        self.write(made, values)
        return made

    def write(self, array: Array, values: np.ndarray) -> None:
        """Host to device: `values` of the same dtype and size."""
        values = np.ascontiguousarray(values)
        assert (values.dtype, values.size) == (array.dtype, array.size), (values.dtype, values.shape, array)
        if array.nbytes:
            self.do("cuMemcpyHtoDAsync", array.address, values.ctypes.data, array.nbytes, self.stream)
            self.wait()                                    # `values` may go now

    def read(self, array: Array) -> np.ndarray:
        """Device to host, after all that was started."""
        values = np.empty(array.shape, array.dtype)
        if array.nbytes:
            self.do("cuMemcpyDtoHAsync", values.ctypes.data, array.address, array.nbytes, self.stream)
        self.wait()
        return values

    def copy(self, into: Array, source: Array) -> None:
        """Device to device, in the order of the stream (also in a graph)."""
        assert into.nbytes == source.nbytes
        if into.nbytes:
            self.do("cuMemcpyDtoDAsync", into.address, source.address, into.nbytes, self.stream)

    def wait(self) -> None:
        """Until all that was started has ended."""
        self.do("cuStreamSynchronize", self.stream)

    # ---- kernels ------------------------------------------------------------------------------------------
    def launch(self, k: Kernel, grid: tuple[int, ...], *args: Any, shared: int = 0) -> None:
        """Start `k` on `grid` blocks. `args`: Arrays for its pointers, numbers; `shared`: bytes, dynamic."""
        function = self.functions.get(k) or self._load(k)
        assert len(args) == len(k.types), (k.name, len(args), k.types)
        values = np.zeros(len(args), np.uint64)
        for i, (t, a) in enumerate(zip(k.types, args)):
            values[i:i + 1].view(np.uint8)[:8] = np.frombuffer(_bytes(k, t, a), np.uint8)
        pointers = values.ctypes.data + 8 * np.arange(len(args), dtype=np.uint64)
        if shared > 48 * 1024:
            most = self.driver.CUfunction_attribute(MAX_DYNAMIC_SHARED)
            self.do("cuFuncSetAttribute", function, most, shared)
        self.do("cuLaunchKernel", function, *(*grid, 1, 1)[:3], *(*k.threads, 1, 1)[:3], shared, self.stream,
                pointers.ctypes.data, 0)
        if self.recorded is not None:
            self.recorded.append(args)

    def _load(self, k: Kernel) -> Any:
        text = ptx(k, target(k, self.capability)).encode() + b"\0"
        entry = text.split(b".entry", 1)[1].split(b"(", 1)[0].strip()
        module = self.do("cuModuleLoadData", text)
        self.functions[k] = self.do("cuModuleGetFunction", module, entry)
        return self.functions[k]

    @contextmanager
    def recording(self) -> Iterator[Graph]:
        """The launches made inside become the graph that this gives; they do not run now."""
        for_graph = Graph()
        self.recorded = for_graph.held
        self.do("cuStreamBeginCapture", self.stream, self.driver.CUstreamCaptureMode(RELAXED))
        try:
            yield for_graph
        except BaseException:
            self.driver.cuStreamEndCapture(self.stream)    # what it says would hide what went wrong
            raise
        finally:
            self.recorded = None
        made = self.do("cuStreamEndCapture", self.stream)
        for_graph.handle = self.do("cuGraphInstantiate", made, 0)
        self.do("cuGraphDestroy", made)
        weakref.finalize(for_graph, _end, self.driver, self.context, "cuGraphExecDestroy", for_graph.handle)

    def start(self, graph: Graph) -> None:
        """Start a recorded graph."""
        self.do("cuGraphLaunch", graph.handle, self.stream)

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the stream takes for all that `work()` starts, by the card's own clock."""
        if not self.events:
            self.events = [self.do("cuEventCreate", 0) for _ in range(2)]
        before, after = self.events
        self.do("cuEventRecord", before, self.stream)
        work()
        self.do("cuEventRecord", after, self.stream)
        self.do("cuEventSynchronize", after)
        return float(self.do("cuEventElapsedTime", before, after)) / 1e3


def _end(driver: Any, context: Any, how: str, what: Any) -> None:
    """Give back what nobody holds, in whichever thread that is found: the context must be this thread's."""
    driver.cuCtxSetCurrent(context)
    getattr(driver, how)(what)


def _bytes(k: Kernel, t: str, a: Any) -> bytes:
    """A parameter as it lies in memory, in eight bytes."""
    if t.endswith("*"):
        assert isinstance(a, Array), f"{k.name}: a pointer needs an Array, got {type(a).__name__}"
        assert a.dtype.itemsize == SIZES[t[:-1]], f"{k.name}: {t} got {a.dtype}"
        return np.uint64(a.address).tobytes()
    return np.array(a, SCALARS[t]).tobytes().ljust(8, b"\0")


@cache
def device() -> Device:
    """The device of this process. Raises CheckError where there is none."""
    return Device(load())
