"""The model: parameters, weights, blocks, the transformer and its cost. Takes `ops`, never imports kernels.

Read after: kernels/numba_cuda/train_step. Read next: model/layout.
"""

from bitnet_ref.model.params import Params, Spec, param_specs
from bitnet_ref.model.transformer import Transformer
from bitnet_ref.model.weights import Weights

__all__ = ["Params", "Spec", "Transformer", "Weights", "param_specs"]
