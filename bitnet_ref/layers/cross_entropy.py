"""Cross-entropy: the mean of -log p(target) over the tokens, in nats. Softmax and loss in one op.

Kept for backward: the log-sum-exp of each row, V times smaller than the logits.
Port note: subtract the row's largest logit before exp; the mean is over all tokens of the batch.
Read after: layers/bitlinear. Read next: layers/adamw.
"""

from typing import Any

import numpy as np


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[Any, np.ndarray]:
    """logits (M, V)  targets int (M,)  ->  loss () in nats per token, lse (M, 1)"""
    top = logits.real.max(axis=-1, keepdims=True)
    lse = np.log(np.sum(np.exp(logits - top), axis=-1, keepdims=True)) + top    # (CE.1)
    return np.mean(lse[:, 0] - logits[np.arange(len(targets)), targets]), lse   # (CE.2)


def cross_entropy_backward(dloss: Any, logits: np.ndarray, targets: np.ndarray, lse: np.ndarray,
                           out: np.ndarray | None = None) -> np.ndarray:
    """Returns dlogits (M, V) = dloss/M * (softmax(logits) - onehot(targets)); `out` may be `logits`."""
    d = np.subtract(logits, lse, out=out)
    d = np.exp(d, out=d)                                                        # (CE.3)
    d[np.arange(len(targets)), targets] -= 1
    return np.multiply(d, dloss / len(targets), out=d)                          # (CE.4)
