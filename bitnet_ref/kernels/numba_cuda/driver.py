"""NVIDIA's driver, or the interpreter that speaks its language; and what its errors mean, in three parts.

Only some thirty functions of the driver are used, so that an interpreter can offer the same: with
BITNET_REF_CUDA=interpreter the whole backend runs on any machine, slowly, from the very PTX that a card runs.
Nothing chooses that by itself: without a card there is an error, and no fall-back.
Read after: kernels/numba_cuda. Read next: kernels/numba_cuda/launch.
"""

import os
from typing import Any

from bitnet_ref.checks import CheckError, check

ENV = "BITNET_REF_CUDA"
NEWER = "install an NVIDIA driver of version 580 or newer"
FIXES = {
    "CUDA_ERROR_NO_DEVICE": "use a machine with one, --backend numba, or the interpreter (BITNET_REF_CUDA)",
    "CUDA_ERROR_OUT_OF_MEMORY": "use a smaller model, batch or context, or free the card's memory",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "compile the kernel for this card: its architecture must match",
    "CUDA_ERROR_INVALID_PTX": NEWER,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": NEWER,
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": NEWER,
}


def load() -> Any:
    """What offers the driver's functions: cuda.bindings.driver, or the interpreter where that is asked for.

    Raises CheckError for another wish, and without the package or the driver.
    """
    wish = os.environ.get(ENV, "card")
    check(wish in ("card", "interpreter"), f"{ENV} must be card or interpreter", wish,
          "unset it to use the GPU")
    if wish == "interpreter":
        from bitnet_ref.kernels.ptx.driver import Driver
        return Driver()
    try:
        from cuda.bindings import driver
    except ImportError as e:
        check(False, "--backend cuda needs NVIDIA's Python package cuda-bindings", str(e),
              'in a clone, pip install ".[cuda]"')
    return driver


def require_compiler() -> None:
    """Raise CheckError where numba-cuda, which compiles the kernels, is missing or cannot be imported."""
    try:
        import numba_cuda  # noqa: F401                    # Numba's own module of that name is an older one
        from numba import cuda  # noqa: F401
    except Exception as e:                                 # not ImportError alone: it looks for libraries
        check(False, "--backend cuda needs numba-cuda, which compiles its kernels",
              f"{type(e).__name__}: {e}", 'in a clone, pip install ".[cuda]"')


def call(driver: Any, name: str, *args: Any) -> Any:
    """`driver.<name>(*args)`: its results without the status. Raises CheckError where that is not 0."""
    try:
        status, *results = getattr(driver, name)(*args)
    except (RuntimeError, ImportError, OSError) as e:
        if name != "cuInit":                               # the first call looks for the driver's library
            raise
        raise CheckError(f"--backend cuda needs NVIDIA's driver; got {type(e).__name__}: {str(e)[:200]}; "
                         "install the driver, use --backend numba, or the interpreter (BITNET_REF_CUDA)"
                         ) from None
    if int(status):
        said = getattr(status, "name", str(status))
        fix = FIXES.get(said, "see NVIDIA's documentation of this error")
        check(False, f"the GPU must do {name}", said, fix)
    return results[0] if len(results) == 1 else tuple(results)
