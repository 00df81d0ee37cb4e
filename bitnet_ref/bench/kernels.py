"""The ternary products by themselves: from memory with one row, in cache with many.

One row (decode) must read the weights at the speed of memory, so it walks a ring of copies that no cache
holds, all inside one compiled call. Many rows (prefill, training) are limited by dot products; NumPy's BLAS
in float32 is what a user would have otherwise.
Read after: bench/limits. Read next: bench/inference.
"""

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench import timing
from bitnet_ref.bench.limits import FLOAT32, INT8, READ, SHORT, limits, rates, runs, share, unrest, worst
from bitnet_ref.bench.part import Claim, Measure, Part, Setup, by_turns, middle, over, ratio

SHAPES = ((2560, 2560), (6912, 2560), (2560, 6912))        # (N, K) of 2B4T's blocks
ROWS = (512, 2048)
PACKINGS = ("i2", "b3")


def part(setup: Setup) -> Part:
    """Both halves, for the shapes that were asked for."""
    m, n, k = setup.shape
    usual, rows = ([(64, 256)], (16,)) if setup.quick else (list(SHAPES), ROWS)
    shapes = usual if n is k is None else [(n or usual[0][0], k or usual[0][1])]
    rows = rows if m is None else (m,)
    one, many = from_memory(setup, shapes), in_cache(setup, shapes, rows)
    return Part("Products", one.measures + many.measures, one.claims + many.claims,
                worst(one.notes + many.notes))


# ---- one row ----

class Ring(NamedTuple):
    """One compiled call over `copies` of a packed matrix, `n_bytes` together."""

    run: Callable[[], object]
    copies: int
    n_bytes: int


def from_memory(setup: Setup, shapes: list[tuple[int, int]]) -> Part:
    """GEMV over copies: bytes of packed weights per second, and b3's time beside i2's."""
    size = SHORT if setup.quick else timing.OUT_OF_CACHE
    rings = {f"{bits} GEMV {n}x{k}": ring(n, k, bits, size, setup.threads)
             for (n, k), bits in itertools.product(shapes, PACKINGS)}
    found = limits(setup.threads, setup.quick, READ)
    setup.say(f"one row, {len(shapes)} shapes from memory")
    times = by_turns(setup, {**runs(found), **{name: r.run for name, r in rings.items()}})
    shares = {name: share(times, name, {READ: r.n_bytes}, found) for name, r in rings.items()}
    measures = [Measure("memory, read only", rates(times, found)[READ] / 1e9, "GB/s")]
    measures += [Measure(name, r.n_bytes / middle(times, name) / 1e9, "GB/s", shares[name], READ)
                 for name, r in rings.items()]
    claims = [Claim(f"i2 GEMV {n}x{k}, of read bandwidth", shares[f"i2 GEMV {n}x{k}"], "%", 0.85, 0.95)
              for n, k in shapes]
    for n, k in shapes:
        i2, b3 = (f"{bits} GEMV {n}x{k}" for bits in PACKINGS)
        slower = over(rings[i2].copies / rings[b3].copies, ratio(times, b3, i2))      # of one matrix
        claims.append(Claim(f"b3 GEMV {n}x{k}, time against i2", slower, "x", 1.35, 1.0, most=True))
    return Part("", measures, claims, unrest(times, found, setup.machine))


def ring(n: int, k: int, bits: str, at_least: int, threads: int) -> Ring:
    """Copies of a random matrix of N outputs and K inputs, and the call that walks them."""
    from bitnet_ref.kernels.numba_cpu.bitlinear import pack_panels
    from bitnet_ref.kernels.numba_cpu.tiles import GROUPS
    rng = np.random.default_rng(0)
    packed = np.stack(timing.copies(pack_panels(rng.integers(-1, 2, (n, k), np.int8), bits), at_least))
    x = np.zeros((1, packed.shape[2] * 4 * GROUPS[bits]), np.int8)
    x[:, :k] = rng.integers(-127, 128, k)
    one, sums = np.ones(1, np.float32), x.sum(axis=1, dtype=np.int32)
    y, edge = np.zeros((1, n), np.float32), np.zeros((threads, 4, 16), np.float32)
    walk = over_copies()
    return Ring(lambda: walk(packed, GROUPS[bits], x, one, one, sums, y, edge), len(packed), packed.nbytes)


@lru_cache
def over_copies() -> Any:
    """Compiled: y (1, N) by every copy in turn, the panels shared out among len(edge) threads."""
    from numba import prange

    from bitnet_ref.kernels.numba_cpu.bitlinear import few_rows
    from bitnet_ref.kernels.numba_cpu.cache import compiled_parallel

    @compiled_parallel
    def walk(packed, groups, x, x_scale, w_scale, sums, y, edge):
        threads, panels = len(edge), packed.shape[1]
        for t in prange(threads):
            for c in range(len(packed)):
                few_rows(packed[c], groups, panels * t // threads, panels * (t + 1) // threads, x, x_scale,
                         w_scale, sums, y, edge[t])

    return walk


# ---- many rows ----

def in_cache(setup: Setup, shapes: list[tuple[int, int]], rows: tuple[int, ...]) -> Part:
    """GEMM: operations per second beside the limit of dot products, and beside float32 BLAS."""
    measures, claims = [], []
    found = limits(setup.threads, setup.quick, INT8, FLOAT32)
    notes = [] if INT8 in found else ["this machine has no int8 dot product that we know: no share of it"]
    for (n, k), m in itertools.product(shapes, rows):
        setup.say(f"{m} rows, {n}x{k}")
        times = by_turns(setup, {**runs(found), **gemm(m, n, k)})
        notes += unrest(times, found, setup.machine)
        for name in (*PACKINGS, "trits", "BLAS"):
            limit, ops = FLOAT32 if name == "BLAS" else INT8, 2 * m * n * k
            measures.append(Measure(f"{name} GEMM {n}x{k}, M = {m}", ops / middle(times, name) / 1e9, "Gop/s",
                                    share(times, name, {limit: ops}, found), limit, name == "BLAS"))
        claims.append(Claim(f"int8 x ternary GEMM {n}x{k}, M = {m}, against float32 BLAS",
                            ratio(times, "b3", "BLAS"), "x", 3.5, 4.5))
    return Part("", measures, claims, notes)


def gemm(m: int, n: int, k: int) -> dict[str, Callable[[], object]]:
    """The product from either packing (prefill), from trits (training), and in float32 by BLAS."""
    from bitnet_ref.kernels.numba_cpu.bitlinear import NOT_PACKED, pack_panels, ternary_product
    rng = np.random.default_rng(0)
    w_q, x_q = rng.integers(-1, 2, (n, k), np.int8), rng.integers(-127, 128, (m, k), np.int8)
    w, x = w_q.astype(np.float32), x_q.astype(np.float32)
    x_scale, y = np.ones(m, np.float32), np.empty((m, n), np.float32)
    i2, b3 = (pack_panels(w_q, bits) for bits in PACKINGS)
    return {"i2": lambda: ternary_product(x_q, x_scale, w_q, 1.0, y, i2, "i2"),
            "b3": lambda: ternary_product(x_q, x_scale, w_q, 1.0, y, b3, "b3"),
            "trits": lambda: ternary_product(x_q, x_scale, w_q, 1.0, y, NOT_PACKED),
            "BLAS": lambda: np.matmul(x, w.T, out=y)}
