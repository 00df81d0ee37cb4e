"""Where compiled code is kept between runs, and what is said when something must be compiled first.

In NUMBA_CACHE_DIR if that is set, else under BITNET_REF_CACHE (default: the user's cache folder). A folder that
cannot be written costs the compilation in every process, and says so once.
Read after: kernels/numba_cpu/isa. Read next: kernels/numba_cpu/tiles.
"""

import os
import sys
import tempfile
from pathlib import Path

import numba

from bitnet_ref.kernels.numba_cpu import isa

# Division by zero gives infinity, as in NumPy: a check would keep loops from being vectorised.
compiled = numba.njit(cache=True, error_model="numpy")
compiled_parallel = numba.njit(cache=True, error_model="numpy", parallel=True)
inlined = numba.njit(inline="always", error_model="numpy")


def folder() -> Path:
    """The folder of this tier and this Numba."""
    own = os.environ.get("NUMBA_CACHE_DIR") or Path(
        os.environ.get("BITNET_REF_CACHE") or Path.home() / ".cache" / "bitnet_ref") / "numba"
    return Path(own) / f"{isa.choose().name}-{numba.__version__}"


def set_up() -> bool:
    """Have compiled functions kept there. Returns whether they can be; if not, says what it costs."""
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as e:
        print(f"note: compiled code must be kept in a folder that can be written; {place} cannot ({e.strerror}): "
              "compiling takes some seconds in every process; set BITNET_REF_CACHE to another folder",
              file=sys.stderr)
        place = Path(tempfile.mkdtemp(prefix="bitnet_ref-numba-"))
    numba.config.CACHE_DIR = str(place)
    return True
