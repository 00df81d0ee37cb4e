"""The CUDA backend: kernels in Python, launched through NVIDIA's driver; whole-model paths and nothing else.

A model's numbers stay on the device from call to call, so its ops are not to be had one by one: those that
are asked for raise an error. On the host remain what prepares weights and what reads logits. Vectors of
parameters are the device's own, with all that training does to them.
Read after: kernels/ptx/driver. Read next: kernels/numba_cuda/driver.
"""

from collections.abc import Callable
from typing import Any

from bitnet_ref.checks import check
from bitnet_ref.kernels.numba_cuda.driver import require_compiler
from bitnet_ref.layers import ALL_OPS

require_compiler()                                         # before the first kernel is defined

from bitnet_ref.kernels.numba_cuda.decode_step import decode_step, extend, prefill  # noqa: E402
from bitnet_ref.kernels.numba_cuda.program import prepare, prepare_rows, prepare_table  # noqa: E402
from bitnet_ref.kernels.numba_cuda.threads import about, require, use  # noqa: E402
from bitnet_ref.kernels.numba_cuda.train_step import forward, train_step  # noqa: E402
from bitnet_ref.kernels.numba_cuda.vectors import (  # noqa: E402
    absmean_ternary,
    adamw_,
    add_,
    approach_,
    fetch,
    part,
    scale_,
    square_sum,
    store_,
    total,
    zeros,
)

__all__ = ["about", "absmean_ternary", "adamw_", "add_", "approach_", "decode_step", "extend", "fetch",
           "forward", "part", "prefill", "prepare", "prepare_rows", "prepare_table", "require", "scale_",
           "square_sum", "store_", "total", "train_step", "use", "zeros"]
# Of the reference, on the host: weights into int8 rows, once; the loss of logits that were read.
ON_THE_HOST = ("absmax_int8", "cross_entropy")


def _refusal(op: str) -> Callable[..., Any]:
    def refused(*args: Any, **given: Any) -> Any:
        check(False, "the CUDA backend computes whole models (forward, prefill, decode_step, train_step)",
              f"a call of the op {op} alone", "use the backend numba or numpy for single ops")
    return refused


OWN = {name: globals()[name] for name in __all__ if name not in ("about", "require", "use")}
PROVIDES = {op: _refusal(op) for op in ALL_OPS if op not in ON_THE_HOST} | OWN
