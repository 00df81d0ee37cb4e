"""Kernels as data: a Python function, the C types of its parameters, its threads; their PTX, kept on disk.

Numba compiles a kernel to PTX, which needs no GPU. The same text is loaded by NVIDIA's driver and run by our
interpreter (kernels/ptx), so what is tested without a card is what runs on one. Parameters are plain pointers
and numbers, as in C: sizes are passed, bounds are the kernel's business.
Read after: kernels/numba_cuda/driver. Read next: kernels/numba_cuda/memory.
"""

import hashlib
import inspect
import math
import os
import re
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.checks import check
from bitnet_ref.config import cache_dir

SIZES = {"i8": 1, "u8": 1, "f16": 2, "bf16": 2, "u16": 2, "i32": 4, "u32": 4, "f32": 4, "i64": 8, "f64": 8}
NUMBA = {"i8": "int8", "u8": "uint8", "f16": "float16", "bf16": "uint16", "u16": "uint16", "i32": "int32",
         "u32": "uint32", "f32": "float32", "i64": "int64", "f64": "float64"}


class Kernel(NamedTuple):
    """A kernel that can be launched. `types`: of its parameters, "f32*" for a pointer to float32."""

    name: str
    function: Any
    types: tuple[str, ...]
    threads: tuple[int, ...]     # of a block
    needs: str                   # the least architecture: "80", or exactly one: "90a"
    registers: int               # at most, for the compile gate


def kernel(signature: str, threads: int | tuple[int, ...], needs: str = "80",
           registers: int = 64) -> Callable[[Any], Kernel]:
    """Declare a kernel: `@kernel("f32* x, f32* y, i32 n", threads=256)`. Names are the function's own."""
    pairs = [part.split() for part in signature.split(",")]

    def declare(function: Any) -> Kernel:
        assert [name for _, name in pairs] == list(inspect.signature(function).parameters), function.__name__
        block = (threads,) if isinstance(threads, int) else threads
        return Kernel(function.__name__, function, tuple(t for t, _ in pairs), block, needs, registers)

    return declare


def target(k: Kernel, capability: tuple[int, int]) -> str:
    """The architecture to compile kernel `k` for, on a card of that compute capability: "80", "90" or "90a".

    A newer card runs the PTX of an older one: each kernel has the two texts that are tested, and no others.
    Raises CheckError for a card that is older than the kernel needs, or another than it is made for.
    """
    major, minor = capability
    least = int(k.needs.rstrip("a"))
    exact = k.needs.endswith("a")
    check(10 * major + minor == least if exact else 10 * major + minor >= least,
          f"kernel {k.name} needs compute capability {least / 10}{'' if exact else ' or newer'}",
          f"{major}.{minor}", "use another card, or --backend numba")
    return k.needs if exact else "90" if major >= 9 else "80"


@cache
def ptx(k: Kernel, arch: str = "90") -> str:
    """The PTX of kernel `k` for architecture `arch` ("80", "90", "90a"), from disk where it is kept.

    Raises CheckError without numba-cuda and the libraries that it compiles with.
    """
    place = _folder() / f"{k.name}-sm_{arch}-{_digest(k)}.ptx"
    try:
        return place.read_text()
    except OSError:
        text = compiled(k, arch)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as f:
            f.write(text)
        os.replace(f.name, place)
    except OSError:
        pass                                               # it is compiled again next time
    return text


def compiled(k: Kernel, arch: str) -> str:
    """The PTX of kernel `k`, made anew."""
    try:
        from numba import cuda
        from numba.cuda import types
    except Exception as e:                                 # not ImportError alone: it looks for libraries
        check(False, "CUDA kernels need numba-cuda and the libraries that it compiles with",
              f"{type(e).__name__}: {e}", 'in a clone, pip install ".[cuda]"')
    made = []
    for t in k.types:
        base = getattr(types, NUMBA[t.rstrip("*")])
        made.append(types.CPointer(base) if t.endswith("*") else base)
    number = re.fullmatch(r"(\d+)(\d)(a?)", arch)
    assert number is not None
    cc = (int(number[1]), int(number[2])) + ((number[3],) if number[3] else ())
    text, _ = cuda.compile_ptx(k.function, tuple(made), cc=cc, launch_bounds=math.prod(k.threads))
    return text


def _folder() -> Path:
    """Beside what Numba compiles for the processor."""
    return Path(os.environ.get("NUMBA_CACHE_DIR") or cache_dir() / "numba") / "ptx"


@cache
def _made_of() -> str:
    """What every kernel may be made of: the sources of this package, and the compilers."""
    found = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        found.update(source.read_bytes())
    for name in ("numba-cuda", "numba", "llvmlite", "nvidia-nvvm"):
        try:
            found.update(f"{name} {version(name)}".encode())
        except PackageNotFoundError:
            found.update(f"{name} none".encode())
    return found.hexdigest()


def _digest(k: Kernel) -> str:
    own = Path(inspect.getsourcefile(k.function) or __file__).read_bytes()
    about = repr((k.name, k.types, k.threads)).encode()
    return hashlib.sha256(_made_of().encode() + own + about).hexdigest()[:16]
