"""What a run is computed with: code, libraries and processor, of which any may change the last digit.

A checkpoint carries it. A run that goes on with something else goes on, and is told that it no longer equals
the run that nothing happened to, bit for bit: to refuse would lose the run, to say nothing the promise.
Read after: train/board. Read next: train/lock.
"""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bitnet_ref import __version__, kernels

ROOT = Path(__file__).parents[1]
# What a parameter is computed by, of the package's own sources.
SOURCES = ("config.py", "quant.py", "layers", "kernels", "model", "data", "evaluate/perplexity.py",
           *(f"train/{name}.py" for name in ("schedule", "stability", "optim", "parallel", "checkpoint",
                                             "ema", "gradient", "rollback", "inject", "loop")))
LIBRARIES = "numpy", "numba", "llvmlite"
FREE = "threads", "sources"                  # the first changes no bit; the second is told in words


def computed_with(backend: str) -> dict[str, Any]:
    """{what: which} of this process, with a digest of the sources; JSON.
    >>> sorted(computed_with("numpy"))
    ['backend', 'bitnet_ref', 'blas', 'llvmlite', 'numba', 'numpy', 'processor', 'python', 'sources',
     'threads']
    """
    found = {"bitnet_ref": __version__, "sources": sources(), "python": platform.python_version(),
             "processor": platform.machine(), **{name: _version(name) for name in LIBRARIES}, **_blas()}
    return found | kernels.about(backend)


@cache
def sources() -> str:
    """16 hex digits of the SHA-256 of the sources that compute a run, names and line ends included.
    >>> len(sources()), set(sources()) <= set("0123456789abcdef")
    (16, True)
    """
    digest = hashlib.sha256()
    for file in sorted(f for name in SOURCES for f in (ROOT / name, *(ROOT / name).rglob("*.py"))):
        if not file.is_file():
            continue
        text = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{file.relative_to(ROOT).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:16]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"


def _blas() -> dict[str, Any]:
    """Which BLAS, and which of its kernels it has chosen for this processor."""
    from threadpoolctl import threadpool_info

    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            return {"blas": " ".join(str(pool.get(k)) for k in ("internal_api", "version", "architecture"))}
    return {"blas": "unknown"}


def changes(was: Any, now: dict[str, Any]) -> str:
    """In words, what of a checkpoint's "computed with" is another now; empty when nothing is.

    Of a checkpoint that does not say, nothing is known to have changed.
    >>> changes({"python": "3.11", "threads": 2}, {"python": "3.12", "threads": 8, "sources": "0a1b"})
    'python 3.11 -> 3.12'
    """
    old = was if isinstance(was, dict) else {}
    told = [f"{name} {old[name]} -> {value}" for name, value in now.items()
            if name not in FREE and name in old and old[name] != value]
    if old.get("sources", now["sources"]) != now["sources"]:
        told.append(f"code of bitnet_ref {old['sources']} -> {now['sources']}")
    return ", ".join(told)
