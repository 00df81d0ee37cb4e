"""The Numba backend for CPUs: packed weights, register tiles, whole tokens in one compiled call. No compiler.

Compiled code is kept on disk, one folder for each tier (isa.py): Numba's own key knows the processor, not
which of its instructions were asked for.
Read after: kernels/state. Read next: kernels/numba_cpu/isa.
"""

from bitnet_ref.kernels.numba_cpu import cache

cache.set_up()                               # before the first compiled function is defined

from bitnet_ref.kernels.numba_cpu.adamw import adamw_, square_sum  # noqa: E402
from bitnet_ref.kernels.numba_cpu.attention import attention, attention_backward  # noqa: E402
from bitnet_ref.kernels.numba_cpu.bitlinear import (  # noqa: E402
    prepare,
    rmsnorm_int8,
    ternary_linear,
    ternary_linear_backward,
)
from bitnet_ref.kernels.numba_cpu.cross_entropy import (  # noqa: E402
    cross_entropy,
    cross_entropy_backward,
    linear_cross_entropy,
)
from bitnet_ref.kernels.numba_cpu.decode_step import decode_step, extend, prefill  # noqa: E402
from bitnet_ref.kernels.numba_cpu.embedding import embedding_backward  # noqa: E402
from bitnet_ref.kernels.numba_cpu.glu import relu2, relu2_backward, swiglu, swiglu_backward  # noqa: E402
from bitnet_ref.kernels.numba_cpu.linear import (  # noqa: E402
    linear,
    linear_backward,
    prepare_rows,
    prepare_table,
)
from bitnet_ref.kernels.numba_cpu.quant import absmax_int8, absmean_ternary  # noqa: E402
from bitnet_ref.kernels.numba_cpu.rmsnorm import rmsnorm, rmsnorm_backward  # noqa: E402
from bitnet_ref.kernels.numba_cpu.rope import rope, rope_backward  # noqa: E402
from bitnet_ref.kernels.numba_cpu.threads import about, use  # noqa: E402
from bitnet_ref.kernels.numba_cpu.train_step import bf16_train_step, train_step  # noqa: E402

__all__ = [
    "about",
    "absmax_int8",
    "absmean_ternary",
    "adamw_",
    "attention",
    "attention_backward",
    "bf16_train_step",
    "cross_entropy",
    "cross_entropy_backward",
    "decode_step",
    "embedding_backward",
    "extend",
    "linear",
    "linear_backward",
    "linear_cross_entropy",
    "prefill",
    "prepare",
    "prepare_rows",
    "prepare_table",
    "relu2",
    "relu2_backward",
    "rmsnorm",
    "rmsnorm_backward",
    "rmsnorm_int8",
    "rope",
    "rope_backward",
    "square_sum",
    "swiglu",
    "swiglu_backward",
    "ternary_linear",
    "ternary_linear_backward",
    "train_step",
    "use",
]
PROVIDES = {name: globals()[name] for name in __all__ if name not in ("about", "bf16_train_step", "use")}
