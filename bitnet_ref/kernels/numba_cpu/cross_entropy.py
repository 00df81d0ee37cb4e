"""Cross-entropy by rows, and fused with the head so that only a chunk of the logits is ever held.

Read after: kernels/numba_cpu/embedding. Read next: kernels/numba_cpu/adamw.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from bitnet_ref import layers as reference
from bitnet_ref.kernels.numba_cpu.cache import compiled, compiled_parallel
from bitnet_ref.kernels.numba_cpu.linear import (
    delivered,
    flat,
    given,
    is_ours,
    product,
    product_dw,
    product_dx,
)
from bitnet_ref.kernels.numba_cpu.threads import team
from bitnet_ref.kernels.numba_cpu.vectors import LANES, exp, lane_sums, lane_tops


@compiled
def _log_sum_exp(row, chunk, lanes):
    """log(sum(exp(row))) of logits (V,), chunk by chunk: lane i sums every 16th, then the lanes in order."""
    whole = row.size // LANES * LANES
    top = row[row.size - 1]
    if whole:
        lane_tops((row.ctypes.data, whole // LANES, lanes.ctypes.data))
        for i in range(LANES):
            top = max(top, lanes[i])
    for j in range(whole, row.size):
        top = max(top, row[j])
    total = np.float64(0)
    for a in range(0, row.size, chunk.size):
        n = min(chunk.size, row.size - a)
        for j in range(n):
            chunk[j] = exp(row[a + j] - top)
        vectors = (n + LANES - 1) // LANES
        for j in range(n, vectors * LANES):
            chunk[j] = 0
        lane_sums((chunk.ctypes.data, vectors, lanes.ctypes.data))
        for i in range(LANES):
            total += np.float64(lanes[i])
    return np.float32(np.log(total)) + top                                      # (CE.1)


CHUNK = 1024                 # exponentials summed in float32 before float64 takes over
LOGITS = 1 << 20             # held at a time, but at least LEAST rows of them
LEAST = 64
Part = Callable[[int, int, np.ndarray], None]


@compiled_parallel
def rows_loss(logits, targets, lse, losses, scratch, threads):
    """lse, losses (M,) of logits (M, V)."""
    for t in prange(threads):
        floats = scratch[t].view(np.float32)
        chunk, lanes = floats[:CHUNK], floats[CHUNK:CHUNK + LANES]
        for m in range(len(logits) * t // threads, len(logits) * (t + 1) // threads):
            lse[m] = _log_sum_exp(logits[m], chunk, lanes)
            losses[m] = lse[m] - logits[m, targets[m]]                          # (CE.2)


@compiled_parallel
def rows_backward(scale, d, targets, lse, threads):
    """Logits d (M, V) become scale * (softmax(d) - onehot(targets)), in place."""
    for t in prange(threads):
        for m in range(len(d) * t // threads, len(d) * (t + 1) // threads):
            row, shift = d[m], lse[m]
            for j in range(row.size):
                row[j] = exp(row[j] - shift) * scale                            # (CE.3), (CE.4)
            row[targets[m]] -= scale


def losses_of(logits: np.ndarray, targets: np.ndarray, lse: np.ndarray, losses: np.ndarray) -> None:
    """lse, losses float32 (M,) of logits (M, V), targets int64 (M,)."""
    with team(4 * (CHUNK + LANES)) as t:
        rows_loss(logits, targets, lse, losses, t.scratch, t.threads)


def backward_(scale: float, d: np.ndarray, targets: np.ndarray, lse: np.ndarray) -> None:
    """Logits d (M, V) become their gradient; targets int64 (M,), lse (M,)."""
    with team() as t:
        rows_backward(np.float32(scale), d, targets, lse, t.threads)


def rows_at_once(M: int, V: int) -> int:
    """Rows of logits (M, V) that are held at a time."""
    return min(M, max(LEAST, LOGITS // V))


def chunk_by_chunk(multiply: Part, multiply_backward: Part, targets: np.ndarray, share: float,
                   logits: np.ndarray, lse: np.ndarray, losses: np.ndarray) -> float:
    """The mean loss of M tokens with `logits` (rows, V) as the only memory of its kind.

    multiply(a, b, y) makes the logits of tokens a to b in y; multiply_backward(a, b, dy) takes back their
    gradient, of share * loss. targets int64 (M,); lse, losses float32 (M,) are overwritten.
    """
    M = len(targets)
    for a in range(0, M, len(logits)):
        b = min(a + len(logits), M)
        part = logits[:b - a]
        multiply(a, b, part)
        losses_of(part, targets[a:b], lse[a:b], losses[a:b])
        backward_(share / M, part, targets[a:b], lse[a:b])
        multiply_backward(a, b, part)
    return float(np.sum(losses, dtype=np.float64)) / M


def _are_targets(targets: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether there is a target, of the vocabulary, for each row of logits (M, V)."""
    return (len(shape) == 2 and targets.shape == shape[:1] and targets.dtype.kind in "iu" and targets.size > 0
            and 0 <= targets.min() <= targets.max() < shape[1])


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[Any, np.ndarray]:
    """As layers.cross_entropy; the mean is summed in float64."""
    if not is_ours(logits) or not _are_targets(targets, logits.shape):
        return reference.cross_entropy(logits, targets)
    lse, losses = np.empty((2, len(logits)), np.float32)
    losses_of(np.ascontiguousarray(logits), np.ascontiguousarray(targets, np.int64), lse, losses)
    return np.float32(np.sum(losses, dtype=np.float64) / len(losses)), lse[:, None]


def cross_entropy_backward(dloss: Any, logits: np.ndarray, targets: np.ndarray, lse: np.ndarray,
                           out: np.ndarray | None = None) -> np.ndarray:
    """As layers.cross_entropy_backward."""
    fits = _are_targets(targets, logits.shape) and lse.size == len(logits)
    if not is_ours(logits, lse) or not fits or not logits.flags.c_contiguous:
        return reference.cross_entropy_backward(dloss, logits, targets, lse, out)
    d = given(out, logits.shape)
    if d is not logits:
        np.copyto(d, logits)
    backward_(float(dloss) / len(targets), d, np.ascontiguousarray(targets, np.int64),
              np.ascontiguousarray(lse.reshape(-1)))
    return delivered(d, out)


def linear_cross_entropy(x: np.ndarray, w: np.ndarray, targets: np.ndarray, share: Any,
                         dw: np.ndarray) -> tuple[Any, np.ndarray]:
    """As layers.linear_cross_entropy; never holds more than a chunk of the logits."""
    fits = x.ndim == 2 and dw.shape == w.shape and x.shape[1:] == w.shape[1:]
    if (not is_ours(x, w, dw) or not fits or not dw.flags.c_contiguous
            or not _are_targets(targets, (len(x), len(w)))):
        return reference.linear_cross_entropy(x, w, targets, share, dw)
    x, w, (M, V) = flat(x), np.ascontiguousarray(w), (len(x), len(w))
    dx, (lse, losses) = np.empty(x.shape, np.float32), np.empty((2, M), np.float32)

    def backward(a: int, b: int, dy: np.ndarray) -> None:                       # (CE.5)
        product_dx(dy, w, dx[a:b])
        product_dw(dy, x[a:b], dw)

    def forward(a: int, b: int, y: np.ndarray) -> None:
        product(x[a:b], w, y)

    loss = chunk_by_chunk(forward, backward, np.ascontiguousarray(targets, np.int64), float(share),
                          np.empty((rows_at_once(M, V), V), np.float32), lse, losses)
    return np.float32(loss), dx
