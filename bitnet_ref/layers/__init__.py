"""THE REFERENCE: every op of a BitNet, forward and backward, in NumPy.

Each module is one op, forward first, its backward directly below. `ALL_OPS` is the contract between a model
and a backend: kernels.load(name) returns a namespace with these names, each from here unless the backend has
its own. Argument order: forward (inputs, params, hyper, out) -> (y, *stats); backward (dy, inputs, params,
*stats, d<param>). Activation gradients are returned; parameter gradients are accumulated into the array that
is passed.
Read after: pack/rosetta. Read next: layers/embedding.
"""

from bitnet_ref.layers.adamw import (
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
from bitnet_ref.layers.attention import attention, attention_backward
from bitnet_ref.layers.bitlinear import (
    bitlinear,
    bitlinear_backward,
    prepare,
    rmsnorm_int8,
    ternary_linear,
    ternary_linear_backward,
)
from bitnet_ref.layers.cross_entropy import cross_entropy, cross_entropy_backward, linear_cross_entropy
from bitnet_ref.layers.embedding import embedding, embedding_backward
from bitnet_ref.layers.glu import relu2, relu2_backward, swiglu, swiglu_backward
from bitnet_ref.layers.linear import linear, linear_backward, prepare_rows, prepare_table
from bitnet_ref.layers.rmsnorm import rmsnorm, rmsnorm_backward
from bitnet_ref.layers.rope import rope, rope_backward
from bitnet_ref.quant import absmax_int8, absmean_ternary

ALL_OPS = {op.__name__: op for op in (
    embedding, embedding_backward, rmsnorm, rmsnorm_backward, rope, rope_backward,
    attention, attention_backward, swiglu, swiglu_backward, relu2, relu2_backward, linear, linear_backward,
    absmean_ternary, absmax_int8, rmsnorm_int8, prepare, ternary_linear, ternary_linear_backward,
    bitlinear, bitlinear_backward, cross_entropy, cross_entropy_backward, linear_cross_entropy,
    prepare_rows, prepare_table, adamw_, square_sum,
    zeros, part, fetch, store_, scale_, add_, approach_, total,
)}
