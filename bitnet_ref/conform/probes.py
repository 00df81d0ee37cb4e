"""The probes: inputs of single ops that show what a model rarely does: ties, rows of zeros, the largest sums,
overflow; and, for ports that train, a BitLinear's backward and two optimiser steps.

Read after: conform. Read next: conform/homework.
"""

import zlib
from typing import Any

import numpy as np

WIDE = 2560                  # the width of 2B4T


def draw(seed: int, *place: str) -> np.random.Generator:
    """A counter-based stream of its own for every place."""
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32("/".join(place).encode())]))


def probes(seed: int) -> dict[str, np.ndarray]:
    """name -> array, float32 or int8."""
    return {**_quantisers(seed), **_ops(seed), **_training(seed)}


def _normal(seed: int, place: str, *shape: int) -> np.ndarray:
    return draw(seed, "probe", place).normal(0, 1, shape).astype(np.float32)


def _quantisers(seed: int) -> dict[str, np.ndarray]:
    def signs(place: str, *shape: int) -> np.ndarray:
        return np.where(draw(seed, place).random(shape) < 0.5, -1, 1).astype(np.int8)

    worst = signs("w", 3, WIDE)
    x_worst = np.concatenate([127 * worst[:1], -127 * worst[1:2], signs("x", 1, WIDE) * np.int8(127)])
    wide = _normal(seed, "wide", 3, WIDE) * np.repeat(np.float32(10) ** np.arange(-2, 3), WIDE // 5)
    wide[1, 77] = 1e4
    return {
        "quant.ties.x": ties(_normal(seed, "ties", 3, 9)),
        "quant.small.x": np.stack([np.zeros(8), np.linspace(-3e-6, 2e-6, 8), np.full(8, 1e-35),
                                   np.linspace(-1, 1, 8)]).astype(np.float32),
        "quant.reciprocal.x": sensitive(draw(seed, "recip")),
        "quant.wide.x": wide.astype(np.float32),
        "ternary.ties.w": ternary_ties(),
        "ternary.offset.w": _normal(seed, "offset", 6, 10) + np.float32(0.7),
        "ternary.small.w": _normal(seed, "tiny", 4, 6) * np.float32(4e-6),
        "product.worst.x_q": x_worst,
        "product.worst.x_scale": np.array([[0.5], [0.25], [2.0]], np.float32),
        "product.worst.w_q": worst,
        "product.worst.w_scale": np.array(0.125, np.float32),
    }


def _gains(seed: int, name: str, n: int) -> np.ndarray:
    """Positive, float32 (n,); to two digits, for the last one of an exp differs between machines."""
    return np.round(np.exp(_normal(seed, name, n).astype(np.float64)), 2).astype(np.float32)


def _ops(seed: int) -> dict[str, np.ndarray]:
    return {
        "rmsnorm.small.x": _normal(seed, "small", 3, 12) * np.array([[3e-3], [3e-4], [3e-6]], np.float32),
        "rmsnorm.large.x": _normal(seed, "large", 2, 12) * np.float32(1e5) + np.float32(3e4),
        "rmsnorm.g": _gains(seed, "gain", 12),
        "glu.large.gate": _normal(seed, "gate", 2, 10) * np.float32(1e3),
        "glu.large.up": _normal(seed, "up", 2, 10) * np.float32(50),
        "residual.large.x": _normal(seed, "stream", 2, 6) * np.float32(1e5),
        "residual.large.y": _normal(seed, "branch", 2, 6),
        "attention.single.q": _normal(seed, "q", 1, 4, 8),
        "attention.single.k": _normal(seed, "k", 1, 2, 8),
        "attention.single.v": _normal(seed, "v", 1, 2, 8),
    }


def _training(seed: int) -> dict[str, np.ndarray]:
    found = {"train.x": _normal(seed, "train.x", 5, 12), "train.w": _normal(seed, "train.w", 7, 12),
             "train.dy": _normal(seed, "train.dy", 5, 7), "train.p.matrix": _normal(seed, "p", 5, 4),
             "train.p.gain": _gains(seed, "pg", 4)}
    for step in (1, 2):                                    # the matrix has a gradient that is clipped
        found[f"train.step{step}.grad.matrix"] = _normal(seed, f"{step}matrix", 5, 4) * np.float32(3)
        found[f"train.step{step}.grad.gain"] = _normal(seed, f"{step}gain", 4) * np.float32(0.7)
    return found


def ties(like: np.ndarray) -> np.ndarray:
    """Rows whose scale is exactly 1 (largest magnitude 127) or 1/2 and whose other values lie on ties."""
    halves = np.round(np.clip(like[:, :-1] * 8, -60, 60)) + 0.5
    halves[:, :4] = -2.5, -0.5, 0.5, 1.5
    rows = np.concatenate([halves, np.full((len(like), 1), -127.0)], axis=1)
    return (rows * np.array([[1], [0.5], [2]])).astype(np.float32)


def ternary_ties() -> np.ndarray:
    """(4, 4), mean magnitude exactly 1, half of the entries at the thresholds."""
    w = np.array([0.5, -0.5, 1.5, -1.5, 0.5, -0.5, 1.5, -1.5, 0.25, -2.0, 1.75, -0.75, 1.0, -1.0, 0.25, 1.0])
    assert np.mean(np.abs(w)) == 1
    return w.reshape(4, 4).astype(np.float32)


def sensitive(draw: np.random.Generator) -> np.ndarray:
    """(4, 8): values whose code depends on the spelling, x * (127/a) or x / (a/127), in float32 arithmetic
    (the first two rows) and in float64 (the last two).

    With a = 127 m the second spelling meets x = m (n + 1/2) at an exact tie, the first beside it.
    """
    rows = []
    for dtype in (np.float32, np.float32, np.float64, np.float64):
        found: np.ndarray = np.zeros(0)
        while len(found) < 3:
            m = int(draw.integers(3, 2000))
            a: Any = dtype(127 * m)
            x = (m * (np.arange(120) + 0.5)).astype(dtype)
            found = x[np.rint(x * (127 / a)) != np.rint(x / (a / 127))]
        rows.append(np.concatenate([np.resize(found, 7), [a]]))
    return np.stack(rows).astype(np.float32)
