"""An example launch of every CUDA kernel, with what must come of it.

The compile gate, the tests on the interpreter, `bench ptx` and `bench cuda` take their kernels from here.
They are found by looking through kernels/numba_cuda, so that none is forgotten: a kernel without an example
fails the suite. An example is a function of the kernel's name in a module of this package, with sizes that
the interpreter runs in a moment.
Read after: bench/ladders/attention_cpu. Read next: bench/examples/products.
"""

import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bitnet_ref.checks import check, lookup

if TYPE_CHECKING:
    from bitnet_ref.kernels.numba_cuda.launch import Kernel
    from bitnet_ref.kernels.numba_cuda.memory import Device

SHIPPED = "bitnet_ref.kernels.numba_cuda"
RUNGS = "bitnet_ref.bench.ladders.vector_cuda"
FLOAT = 2e-6                 # of the largest: tests/conftest.py's float32, two orders of summation
GARBAGE = 0xA5               # what memory that nobody has written holds


class Launch(NamedTuple):
    """`given`: arrays and numbers by the parameter's name. `expected`: what arrays hold afterwards, integers
    exactly and floats within `within` of the largest; those that are not given begin as garbage. `near`:
    codes of floats, of which one in a thousand may be off by one: at a tie the last digit decides."""

    grid: tuple[int, ...]
    given: dict[str, Any]
    expected: dict[str, np.ndarray]
    shared: int = 0          # bytes of dynamic shared memory
    within: float = FLOAT
    near: tuple[str, ...] = ()


EXAMPLES: dict[str, Callable[..., Launch]] = {}


def example(make: Callable[..., Launch]) -> Callable[..., Launch]:
    """Register `make(rng, ...)`, whose name is the kernel's, and whose sizes all have defaults."""
    EXAMPLES[make.__name__] = make
    return make


# ---- kernels ----

@cache
def kernels(place: str = SHIPPED) -> "dict[str, Kernel]":
    """{name: kernel} of the module `place`, or of all modules of the package. Raises CheckError without
    numba-cuda, and for two kernels of one name."""
    found: dict[str, Any] = {}
    for module in _modules(place):
        for k in _in(list(vars(module).values())):
            check(found.setdefault(k.name, k) == k, "kernels must have different names", k.name, "rename one")
    return found


def _modules(place: str) -> list[Any]:
    try:
        import numba_cuda  # noqa: F401  (without it Numba's own, older CUDA would be found)
        top = import_module(place)
        names = [m.name for m in pkgutil.iter_modules(getattr(top, "__path__", []))]
        return [top, *(import_module(f"{place}.{name}") for name in names)]
    except Exception as e:                                 # not ImportError alone: it looks for libraries
        check(False, "CUDA kernels need numba-cuda and the libraries that it compiles with",
              f"{type(e).__name__}: {str(e)[:200]}", 'in a clone, pip install ".[cuda]"')
    return []


def _in(values: list[Any]) -> "Iterator[Kernel]":
    """The kernels among `values`, also those in tables."""
    from bitnet_ref.kernels.numba_cuda.launch import Kernel

    for value in values:
        if isinstance(value, Kernel):
            yield value
        elif type(value) in (dict, list, tuple):
            yield from _in(list(value.values()) if isinstance(value, dict) else list(value))


def launch_of(name: str, seed: int = 0, **sizes: int) -> Launch:
    """The example of kernel `name`, of those sizes. Raises CheckError for a kernel that has none."""
    return lookup(examples(), name, "kernel")(np.random.default_rng(seed), **sizes)


def examples() -> dict[str, Callable[..., Launch]]:
    """{kernel: what makes its example}, of all modules of this package."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return EXAMPLES


# ---- launched and judged ----

def run(device: "Device", k: "Kernel", launch: Launch) -> dict[str, np.ndarray]:
    """What the arrays of `launch.expected` hold after kernel `k` ran."""
    args = placed(device, k, launch)
    device.launch(k, launch.grid, *args.values(), shared=launch.shared)
    return {name: device.read(args[name]) for name in launch.expected}


def placed(device: "Device", k: "Kernel", launch: Launch) -> dict[str, Any]:
    """The arguments of kernel `k` in its order, arrays on the device."""
    args = {}
    for name in inspect.signature(k.function).parameters:
        value = launch.given.get(name)
        assert value is not None or name in launch.expected, f"the example of {k.name} has no {name}"
        if value is None:
            value = np.full_like(launch.expected[name], 0)
            value.view(np.uint8)[...] = GARBAGE
        args[name] = device.upload(value) if isinstance(value, np.ndarray) else value
    return args


def wrong(launch: Launch, got: dict[str, np.ndarray]) -> str:
    """What differs from what is expected, in a few words; nothing if all is right."""
    said = []
    for name, right in launch.expected.items():
        values = got[name]
        if right.dtype.kind == "f":
            exact = right.astype(np.float64)
            most = launch.within * np.abs(exact).max(initial=1e-30)
            far = ~(np.abs(values.astype(np.float64) - exact) <= most)     # not a number is far
        else:
            far = values != right
        if name in launch.near and far.sum() <= max(1, far.size // 1000):
            far = np.abs(values.astype(np.int64) - right) > 1
        if far.any():
            said.append(f"{name}: {np.count_nonzero(far)} of {far.size} numbers differ")
    return ", ".join(said)
