"""Where compiled code is kept between runs, and what is said when something must be compiled first.

In NUMBA_CACHE_DIR if that is set, else in the project's folder for caches (config.cache_dir). A folder
that cannot be written costs the compilation in every process, and says so once.
Read after: kernels/numba_cpu/isa. Read next: kernels/numba_cpu/tiles.
"""

import atexit
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import event

from bitnet_ref.config import cache_dir
from bitnet_ref.kernels.numba_cpu import isa

MONTH = 30 * 86400.0         # seconds
# Division by zero gives infinity, as in NumPy: a check would keep loops from being vectorised.
compiled = numba.njit(cache=True, error_model="numpy")
compiled_parallel = numba.njit(cache=True, error_model="numpy", parallel=True)
inlined = numba.njit(inline="always", error_model="numpy")


def folder() -> Path:
    """The folder of this tier, this Numba, these sources: Numba itself looks at one file of those it used."""
    own = os.environ.get("NUMBA_CACHE_DIR") or cache_dir() / "numba"
    made_of = hashlib.sha256(llvmlite.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        made_of.update(source.read_bytes())
    return Path(own) / f"{isa.choose().name}-{numba.__version__}-{made_of.hexdigest()[:8]}"


def set_up() -> None:
    """Have compiled functions kept there, or say what it costs that they cannot be."""
    place = folder()
    kept = True
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
        _prune(place)
    except OSError as e:
        print("note: compiled code must be kept in a folder that can be written; "
              f"{place} cannot ({e.strerror}), so what is not there is compiled in each process; "
              "set BITNET_REF_CACHE", file=sys.stderr)
        kept, place = False, _copy(place)
    numba.config.CACHE_DIR = str(place)
    event.register("numba:compile", Patience(place if kept else None))
    if isa.choose().name == "portable" and not os.environ.get(isa.ENV):
        print("note: this processor has no vector instructions that we know; the portable tier runs, slowly",
              file=sys.stderr)


def _copy(place: Path) -> Path:
    """What is in a folder that can only be read, in one that can be written; gone when Python ends."""
    copy = Path(tempfile.mkdtemp(prefix="bitnet_ref-numba-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    with suppress(OSError, shutil.Error):
        shutil.copytree(place, copy, dirs_exist_ok=True)
    return copy


def _prune(place: Path) -> None:
    """Remove folders beside it that no process has started with for a month."""
    for other in place.parent.glob("*-*-*"):
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > MONTH:
                shutil.rmtree(other, ignore_errors=True)


class Patience(event.Listener):
    """Says once, after a second, that something is being compiled."""

    def __init__(self, place: Path | None) -> None:
        self.place, self.depth, self.said = place, 0, False
        self.timer: threading.Timer | None = None

    def on_start(self, event: Any) -> None:
        """A compilation begins, perhaps within another."""
        self.depth += 1
        if self.depth == 1 and not self.said:
            self.timer = threading.Timer(1.0, self.say)
            self.timer.daemon = True
            self.timer.start()

    def on_end(self, event: Any) -> None:
        """It ends."""
        self.depth -= 1
        if self.depth == 0 and self.timer is not None:
            self.timer.cancel()

    def say(self) -> None:
        """The line."""
        self.said = True
        kept = f"once for this machine (kept in {self.place})" if self.place else "for this process"
        print(f"compiling for {isa.choose().name}, {kept}", file=sys.stderr)
