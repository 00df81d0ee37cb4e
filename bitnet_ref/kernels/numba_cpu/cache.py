"""Where compiled code is kept between runs, and what is said when something must be compiled first.

In NUMBA_CACHE_DIR if that is set, else in the project's folder for caches (config.cache_dir). A folder
that cannot be written costs the compilation in every process, and says so once.
Read after: kernels/numba_cpu/isa. Read next: kernels/numba_cpu/tiles.
"""

import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numba
from numba.core import event

from bitnet_ref.config import cache_dir
from bitnet_ref.kernels.numba_cpu import isa

# Division by zero gives infinity, as in NumPy: a check would keep loops from being vectorised.
compiled = numba.njit(cache=True, error_model="numpy")
compiled_parallel = numba.njit(cache=True, error_model="numpy", parallel=True)
inlined = numba.njit(inline="always", error_model="numpy")


def folder() -> Path:
    """The folder of this tier and this Numba."""
    own = os.environ.get("NUMBA_CACHE_DIR") or cache_dir() / "numba"
    return Path(own) / f"{isa.choose().name}-{numba.__version__}"


def set_up() -> None:
    """Have compiled functions kept there, or say what it costs that they cannot be."""
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as e:
        print("note: compiled code must be kept in a folder that can be written; "
              f"{place} cannot ({e.strerror}), so each process compiles anew; set BITNET_REF_CACHE",
              file=sys.stderr)
        place = Path(tempfile.mkdtemp(prefix="bitnet_ref-numba-"))
    numba.config.CACHE_DIR = str(place)
    event.register("numba:compile", Patience(place))


class Patience(event.Listener):
    """Says once, after a second, that something is being compiled."""

    def __init__(self, place: Path) -> None:
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
        print(f"compiling for {isa.choose().name}, once for this machine (kept in {self.place})",
              file=sys.stderr)
