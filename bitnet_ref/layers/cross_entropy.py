"""Cross-entropy: the mean of -log p(target) over the tokens, in nats. Softmax and loss in one op.

Kept for backward: the log-sum-exp of each row, V times smaller than the logits.
Port note: subtract the row's largest logit before exp; the mean is over all tokens of the batch.
Read after: layers/bitlinear. Read next: layers/adamw.
"""

from typing import Any

import numpy as np

from bitnet_ref.layers.linear import linear, linear_backward


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[Any, np.ndarray]:
    """logits (M, V)  targets int (M,)  ->  loss () in nats per token, lse (M, 1)
    >>> loss, lse = cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(float(loss), 6)                    # log 4: four equal guesses
    1.386294
    """
    top = logits.real.max(axis=-1, keepdims=True)
    lse = np.log(np.sum(np.exp(logits - top), axis=-1, keepdims=True)) + top    # (CE.1)
    return np.mean(lse[:, 0] - logits[np.arange(len(targets)), targets]), lse   # (CE.2)


def cross_entropy_backward(dloss: Any, logits: np.ndarray, targets: np.ndarray, lse: np.ndarray,
                           out: np.ndarray | None = None) -> np.ndarray:
    """Returns dlogits (M, V) = dloss/M * (softmax(logits) - onehot(targets)); `out` may be `logits`.
    >>> lse = np.log([[2.0]])
    >>> cross_entropy_backward(1.0, np.zeros((1, 2)), np.array([0]), lse).round(6).tolist()
    [[-0.5, 0.5]]
    """
    d = np.subtract(logits, lse, out=out)
    d = np.exp(d, out=d)                                                        # (CE.3)
    d[np.arange(len(targets)), targets] -= 1
    return np.multiply(d, dloss / len(targets), out=d)                          # (CE.4)


def linear_cross_entropy(x: np.ndarray, w: np.ndarray, targets: np.ndarray, share: Any,
                         dw: np.ndarray) -> tuple[Any, np.ndarray]:
    """Output projection and loss, forward and backward at once: what a backend fuses, never to hold (M, V).

    x (M, K)  w (V, K)  targets int (M,)  ->  loss (), dx (M, K) of share * loss; accumulates into dw (V, K).
    >>> x, w, dw = np.ones((1, 2)), np.zeros((4, 2)), np.zeros((4, 2))
    >>> loss, dx = linear_cross_entropy(x, w, np.array([0]), 1.0, dw)
    >>> dw[:, 0].round(6).tolist()
    [-0.75, 0.25, 0.25, 0.25]
    """
    logits = linear(x, w)
    loss, lse = cross_entropy(logits, targets)
    dlogits = cross_entropy_backward(share, logits, targets, lse, out=logits)
    return loss, linear_backward(dlogits, x, w, dw)                             # (CE.5)
