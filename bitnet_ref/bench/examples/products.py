"""Examples of the kernels of BitLinear: norm and quantisation, and the products in their packings.

The rungs of the ladder have theirs here too. Sums are exact; scales are random, and outputs as ragged as the
layout allows.
Read after: bench/examples. Read next: bench/examples/decoder.
"""

from typing import Any

import numpy as np

from bitnet_ref import layers
from bitnet_ref.bench.examples import Launch, example

FEW = 8                      # rows that a tensor core takes at once
SIDE = 128                   # rows and outputs of a block of many rows


def normal(rng: Any, *shape: int) -> np.ndarray:
    """float32, of the standard normal distribution."""
    return rng.standard_normal(shape, np.float32)


def trits(rng: Any, N: int, K: int) -> np.ndarray:
    """int8 (N, K) of -1, 0 and 1."""
    return rng.integers(-1, 2, (N, K), np.int8)


def codes(rng: Any, M: int, K: int) -> np.ndarray:
    """int8 (M, K), all of them."""
    return rng.integers(-128, 128, (M, K), np.int8)


def sums(w_q: np.ndarray, x_q: np.ndarray) -> np.ndarray:
    """x_q @ w_q.T in int32, exact: BLAS in float32 is, to 2^24 (docs/numerics.md)."""
    exact = np.float32 if w_q.shape[1] <= 1 << 17 else np.float64
    return (x_q.astype(exact) @ w_q.T.astype(exact)).astype(np.int32)


@example
def rmsnorm_int8(rng: Any, M: int = 3, K: int = 600) -> Launch:
    """Rows of float32, a gain."""
    x, g = normal(rng, M, K), rng.random(K, np.float32) + np.float32(0.5)
    x_q, x_scale, rstd = layers.rmsnorm_int8(x, g)
    return Launch((M,), {"a": x, "b": x, "stride": K, "g": g, "mode": 1, "eps": 1e-5, "K": K, "apart": K},
                  {"x_q": x_q, "x_scale": x_scale[:, 0], "x_sum": x_q.sum(axis=1, dtype=np.int32),
                   "rstd_out": rstd[:, 0]}, near=("x_q", "x_sum"))


# ---- rungs of the ladder ----

def _of_bytes(rng: Any, M: int, N: int, K: int, per_block: int) -> Launch:
    from bitnet_ref.bench.ladders.layouts import rows_of_bytes
    w_q, x_q = trits(rng, N, K), codes(rng, M, K)
    return Launch((-(-N // per_block), M), {"w": rows_of_bytes(w_q), "x": x_q, "N": N, "K": K},
                  {"y": sums(w_q, x_q)})


@example
def naive(rng: Any, M: int = 2, N: int = 70, K: int = 256) -> Launch:
    """K a multiple of 4."""
    return _of_bytes(rng, M, N, K, 128)


@example
def coalesced(rng: Any, M: int = 2, N: int = 70, K: int = 256) -> Launch:
    """K a multiple of 4."""
    return _of_bytes(rng, M, N, K, 4)


@example
def shared(rng: Any, M: int = 2, N: int = 70, K: int = 256) -> Launch:
    """K a multiple of 4, and so small that a row of x fits into shared memory."""
    return _of_bytes(rng, M, N, K, 4)._replace(shared=K)


@example
def vector_dp4a(rng: Any, M: int = 2, N: int = 70, K: int = 256) -> Launch:
    """K a multiple of 64. Bits 2 j of byte b of word i hold the code of column 16 i + 4 j + b."""
    w_q, x_q = trits(rng, N, K), codes(rng, M, K)
    fields = (w_q + 1).astype(np.uint8).reshape(N, K // 16, 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    words = np.ascontiguousarray(np.bitwise_or.reduce(fields, axis=2)).view(np.int32)
    return Launch((-(-N // 4), M), {"w": words, "x": x_q, "x_sum": x_q.sum(axis=1, dtype=np.int32), "N": N,
                                    "K": K}, {"y": sums(w_q, x_q)})


@example
def tensor_core(rng: Any, M: int = 3, N: int = 70, K: int = 256) -> Launch:
    """K a multiple of 128, M at most 8."""
    from bitnet_ref.pack.tiles import pack_tiles
    w_q, x_q = trits(rng, N, K), codes(rng, M, K)
    words, x = pack_tiles(w_q), np.zeros((FEW, K), np.int8)
    x[:M] = x_q
    total, tiles = x_q.sum(axis=1, dtype=np.int32), words.shape[1]
    return Launch((len(words),), {"w": words, "x": x, "x_sum": total, "M": M, "N": N, "tiles": tiles},
                  {"y": sums(w_q, x_q)})


# ---- what ships ----

def _few_rows(rng: Any, M: int, N: int, K: int, kind: str) -> Launch:
    from bitnet_ref.kernels.numba_cuda.bitlinear import padded
    from bitnet_ref.pack.tiles import pack_tiles
    w_q, x_q, ld = trits(rng, N, K), codes(rng, M, K), padded(K)
    words, x = pack_tiles(w_q, kind), rng.integers(-128, 128, (M, ld), np.int8)
    x[:, :K] = x_q
    x_scale, w_scale = (rng.random(n, np.float32) + np.float32(0.5) for n in (M, N))
    add = normal(rng, M, N)
    y = sums(w_q, x_q) * (x_scale[:, None] * w_scale) + add
    return Launch((-(-M // FEW), len(words)),
                  {"words": words, "x_q": x, "x_scale": x_scale, "x_sum": x_q.sum(axis=1, dtype=np.int32),
                   "w_scale": w_scale, "add": add, "added": 1, "M": M, "N": N, "tiles": words.shape[1],
                   "ld": ld}, {"y": y.astype(np.float32)})


@example
def gemv_i2(rng: Any, M: int = 11, N: int = 70, K: int = 600) -> Launch:
    """Two bits to a weight, rows in eights."""
    return _few_rows(rng, M, N, K, "i2")


@example
def gemv_b3(rng: Any, M: int = 11, N: int = 70, K: int = 600) -> Launch:
    """Five weights to a byte."""
    return _few_rows(rng, M, N, K, "b3")


@example
def gemm_i2(rng: Any, M: int = 131, N: int = 150, K: int = 300) -> Launch:
    """Many rows: 128 of them by 128 outputs to a block."""
    return _few_rows(rng, M, N, K, "i2")._replace(grid=(-(-N // SIDE), -(-M // SIDE)))


@example
def gemm_hopper(rng: Any, M: int = 131, N: int = 150, K: int = 600) -> Launch:
    """As gemm_i2, by wgmma; activations in its order."""
    from bitnet_ref.kernels.numba_cuda.gemm_hopper import SHARED
    launch = gemm_i2(rng, M, N, K)
    x_t = _core_order(launch.given["x_q"])
    return launch._replace(given={**launch.given, "x_t": x_t}, shared=SHARED)


@example
def in_core_order(rng: Any, M: int = 131, K: int = 300) -> Launch:
    """Activations into the order of wgmma."""
    x_q = codes(rng, M, -(-K // SIDE) * SIDE)
    return Launch((-(-M // SIDE), x_q.shape[1] // SIDE), {"x_q": x_q, "M": M, "ld": x_q.shape[1]},
                  {"x_t": _core_order(x_q)})


def _core_order(x_q: np.ndarray) -> np.ndarray:
    """(M, ld)  ->  (ceil(M / 128), ld / 128, 8, 128, 16), a row too many repeats the last.

    Piece 4p + 2j + h has columns 64p + 16t + 8j + 4h + b.
    """
    rows = x_q[np.minimum(np.arange(-(-len(x_q) // SIDE) * SIDE), len(x_q) - 1)]
    axes = rows.reshape(len(rows) // SIDE, SIDE, -1, 2, 4, 2, 2, 4)          # block row tile p t j h b
    ordered = np.ascontiguousarray(axes.transpose(0, 2, 3, 5, 6, 1, 4, 7))
    return ordered.reshape(len(axes), axes.shape[2], 8, SIDE, 16)
