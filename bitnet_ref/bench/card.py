"""Times on a card, and what it is: launches replayed as a graph over rotating weights, by its own clock.

A launch costs the host more than a small product costs the card, so many are recorded and started as one. A
weight that was just read lies in the second cache, and in a model it never does: every launch of a graph has
a copy of its own, together several times that cache. Medians, like everywhere.
Read after: bench/examples/training. Read next: bench/gate.
"""

import datetime
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from bitnet_ref.bench.examples import Launch, placed

if TYPE_CHECKING:
    from bitnet_ref.kernels.numba_cuda.launch import Kernel
    from bitnet_ref.kernels.numba_cuda.memory import Array, Device

CACHES = 4                   # times the second cache, that copies fill together
LAUNCHES = 16                # in a graph, at least: starting it costs some microseconds
ROUNDS, WARM = 20, 3         # replays that count, and before them
# CUdevice_attribute
PROCESSORS, CLOCK, MEMORY_CLOCK, CACHE = 16, 13, 36, 38
ASKED = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
PACKAGES = ("numpy", "numba", "numba-cuda", "cuda-bindings", "nvidia-cuda-runtime", "nvidia-nvvm", "torch")


def is_interpreter(device: "Device") -> bool:
    """Whether `device` is no card but the interpreter, whose times mean nothing."""
    return type(device.driver).__module__.startswith("bitnet_ref.")


def about(device: "Device") -> dict[str, Any]:
    """The card, its clocks, the driver, the versions of what compiles for it, and the date."""
    _, memory = device.free()
    return {"date": datetime.date.today().isoformat(), "card": device.name,
            "compute capability": f"{device.capability[0]}.{device.capability[1]}", "memory bytes": memory,
            "processors": device.attribute(PROCESSORS), "clock kHz": device.attribute(CLOCK),
            "memory clock kHz": device.attribute(MEMORY_CLOCK), "cache bytes": device.attribute(CACHE),
            "CUDA of the driver": int(device.do("cuDriverGetVersion")), "nvidia-smi": _asked(),
            "python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _asked() -> dict[str, str]:
    """What nvidia-smi says of the first card; nothing where it is not found."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return {}
    try:
        done = subprocess.run([tool, f"--query-gpu={ASKED}", "--format=csv,noheader", "--id=0"],
                              capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(ASKED.split(","), (part.strip() for part in done.stdout.split(","))))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


# ---- times ----

def seconds(device: "Device", starts: Sequence[Callable[[], object]], rounds: int | None = None) -> float:
    """The median time of one of `starts`, functions that launch something, replayed as one graph."""
    rounds = rounds or ROUNDS
    with device.recording() as graph:
        for start in starts:
            start()
    for _ in range(min(WARM, rounds)):
        device.start(graph)
    return statistics.median(device.seconds(lambda: device.start(graph)) for _ in range(rounds)) / len(starts)


def rotated(device: "Device", weight: "Array") -> "list[Array]":
    """Copies of `weight`, itself the first, several times the second cache together.

    In turn, LAUNCHES or more; the interpreter, which has no cache, gets it twice.
    """
    copies = [weight]
    while len(copies) * weight.nbytes < CACHES * device.attribute(CACHE):
        copies.append(device.empty(weight.shape, weight.dtype))
        device.copy(copies[-1], weight)
    return copies * (2 if is_interpreter(device) else -(-LAUNCHES // len(copies)))


def ring(device: "Device", k: "Kernel", launch: Launch, rotate: str) -> list[Callable[[], object]]:
    """Functions that launch `k`, each with the next copy of argument `rotate`."""
    args = placed(device, k, launch)

    def start(weight: "Array") -> None:
        device.launch(k, launch.grid, *{**args, rotate: weight}.values(), shared=launch.shared)

    return [partial(start, weight) for weight in rotated(device, args[rotate])]


def copy_rate(device: "Device", n_bytes: int = 1 << 30, rounds: int | None = None) -> float:
    """Bytes per second that copying memory reads and writes together: what a kernel can hope for."""
    a, b = device.zeros((n_bytes,), "uint8"), device.zeros((n_bytes,), "uint8")
    return 2 * n_bytes / seconds(device, [lambda: device.copy(b, a)] * 4, rounds)
