"""python -m bitnet_ref.bench.roofline [--threads N] [--json]

What this machine can do at most, measured: bytes read from memory, float32 multiply-adds, int8 dot products.
A kernel cannot be faster than the bytes it must read, nor than the operations it must do; how near it comes
to the lower of these two roofs says whether more work on it is worth while. Figures, not a datasheet's: a
shared or throttled machine has other limits today than it had yesterday.
Read after: bench/vectors. Read next: bench/ladders.
"""

import json
import sys
from typing import Any, NamedTuple

import llvmlite
import numba
import numpy as np
from numba import njit, prange

from bitnet_ref.bench import timing
from bitnet_ref.bench.vectors import (
    DOT,
    LANES,
    across,
    add,
    dot4,
    features,
    float_lanes,
    fma,
    four,
    int_lanes,
    load_bytes,
    load_floats,
    load_sums,
    store_floats,
    store_sums,
)
from bitnet_ref.cli import DONE, Parser, run_command

DEPTH, TURNS = 256, 2000                     # of the tiles: operands of 8 to 20 KiB, which stay in L1
ROWS, WIDE = 3, 4                            # 12 chains of sums: two a cycle, of 4 to 6 cycles each
SIDE = 1024                                  # of the matrices that BLAS multiplies
SHOWN = ("avx512vnni", "avx512bf16", "avx512bw", "avxvnni", "avx2", "fma", "dotprod", "i8mm", "neon")


class Machine(NamedTuple):
    """A machine and its limits on `threads` threads.

    `bandwidth`: bytes read per second; `float32`, `blas`, `int8`: operations per second, a multiplication and
    its addition counting as two, 0 if it has no instruction for it; `dot`: that instruction for int8.
    """

    cpu: str
    instructions: tuple[str, ...]
    dot: str
    threads: int
    bandwidth: float
    float32: float
    blas: float
    int8: float
    python: str
    numpy: str
    numba: str
    llvmlite: str


@njit(parallel=True)
def read_all(words, parts):
    """The sum of int32 words (n,), modulo 2^32: a register at a time, four sums in flight on each thread."""
    total = 0
    for t in prange(parts):
        n = words.size // parts // (4 * LANES)
        p = q = r = s = int_lanes(0)
        for i in range(t * n, (t + 1) * n):
            at = 4 * LANES * i
            p = add(p, load_sums(words, at))
            q = add(q, load_sums(words, at + LANES))
            r = add(r, load_sums(words, at + 2 * LANES))
            s = add(s, load_sums(words, at + 3 * LANES))
        total += across(add(add(p, q), add(r, s)))
    return total


@njit
def _fma_row(acc, b, x):
    return fma(x, b[0], acc[0]), fma(x, b[1], acc[1]), fma(x, b[2], acc[2]), fma(x, b[3], acc[3])


@njit
def _dot_row(acc, b, x):
    return dot4(acc[0], b[0], x), dot4(acc[1], b[1], x), dot4(acc[2], b[2], x), dot4(acc[3], b[3], x)


@njit(parallel=True)
def float_tiles(a, b, out, parts, turns):
    """`turns` times on each of `parts` threads: a (ROWS, DEPTH) @ b (DEPTH, WIDE LANES), from L1."""
    for t in prange(parts):
        zero = float_lanes(np.float32(0))
        p = q = r = (zero, zero, zero, zero)
        for _ in range(turns):
            for k in range(DEPTH):
                at = k * WIDE * LANES
                v = (load_floats(b, at), load_floats(b, at + LANES), load_floats(b, at + 2 * LANES),
                     load_floats(b, at + 3 * LANES))
                p = _fma_row(p, v, float_lanes(a[k]))
                q = _fma_row(q, v, float_lanes(a[DEPTH + k]))
                r = _fma_row(r, v, float_lanes(a[2 * DEPTH + k]))
        for i in range(WIDE):
            store_floats(out[t], i * LANES, p[i])
            store_floats(out[t], (WIDE + i) * LANES, q[i])
            store_floats(out[t], (2 * WIDE + i) * LANES, r[i])


@njit(parallel=True)
def dot_tiles(a, b, out, parts, turns):
    """The same of bytes: a int8 (ROWS, DEPTH), b codes (DEPTH / 4, WIDE LANES, 4)."""
    for t in prange(parts):
        p = q = r = (int_lanes(0), int_lanes(0), int_lanes(0), int_lanes(0))
        for _ in range(turns):
            for k in range(DEPTH // 4):
                at = k * WIDE * LANES * 4
                v = (load_bytes(b, at), load_bytes(b, at + 4 * LANES), load_bytes(b, at + 8 * LANES),
                     load_bytes(b, at + 12 * LANES))
                p = _dot_row(p, v, four(a, 4 * k))
                q = _dot_row(q, v, four(a, DEPTH + 4 * k))
                r = _dot_row(r, v, four(a, 2 * DEPTH + 4 * k))
        for i in range(WIDE):
            store_sums(out[t], i * LANES, p[i])
            store_sums(out[t], (WIDE + i) * LANES, q[i])
            store_sums(out[t], (2 * WIDE + i) * LANES, r[i])


def bandwidth(threads: int, size: int = timing.OUT_OF_CACHE) -> float:
    """Bytes per second that `threads` threads read from `size` bytes of memory. Source: measured here."""
    words = np.ones(size // 4, np.int32)
    with timing.threads(threads):
        return words.nbytes / timing.best(lambda: read_all(words, threads))


def float32_peak(threads: int) -> float:
    """float32 operations per second of a register tile whose operands lie in L1 (all processors at most)."""
    threads = min(threads, timing.available())
    a, b = np.ones(ROWS * DEPTH, np.float32), np.ones(DEPTH * WIDE * LANES, np.float32)
    return _tiles_per_second(float_tiles, a, b, np.float32, threads)


def int8_peak(threads: int) -> float:
    """The same of int8 dot products; 0 on a machine that has no instruction for them."""
    if DOT is None:
        return 0.0
    a, b = np.ones(ROWS * DEPTH, np.int8), np.ones(DEPTH * WIDE * LANES, np.uint8)
    return _tiles_per_second(dot_tiles, a, b, np.int32, threads)


def _tiles_per_second(tiles: Any, a: np.ndarray, b: np.ndarray, kind: Any, threads: int) -> float:
    out = np.zeros((threads, ROWS * WIDE * LANES), kind)
    with timing.threads(threads):
        seconds = timing.best(lambda: tiles(a, b, out, threads, TURNS))
    return 2 * ROWS * WIDE * LANES * DEPTH * TURNS * threads / seconds


def blas_rate(threads: int) -> float:
    """float32 operations per second of NumPy's product of two square matrices."""
    a = np.ones((SIDE, SIDE), np.float32)
    out = np.empty_like(a)
    with timing.threads(threads):
        return 2 * SIDE ** 3 / timing.best(lambda: np.matmul(a, a, out=out))


def measure(threads: int) -> Machine:
    """This machine on `threads` threads: a second, and two more to compile."""
    limits = bandwidth(threads), float32_peak(threads), blas_rate(threads), int8_peak(threads)
    from bitnet_ref.train.summary import machine
    about, has = machine(), features()
    return Machine(
        about["processor"], tuple(n for n in SHOWN if n in has), DOT.name if DOT else "none", threads,
        *limits, about["python"], np.__version__, numba.__version__, llvmlite.__version__)


def least_seconds(n_bytes: float, operations: float, bandwidth: float, peak: float) -> float:
    """The least time of a kernel that moves `n_bytes` and does `operations`, on a machine of those limits.

    >>> least_seconds(n_bytes=10e9, operations=20e9, bandwidth=20e9, peak=100e9)
    0.5
    """
    return max(n_bytes / bandwidth, operations / peak)                         # (RF.1)


def intensity(rows: float, bits: float) -> float:
    """Operations for each byte of weights, when `rows` rows of x meet weights of `bits` bits.

    >>> intensity(rows=1, bits=2)
    8.0
    """
    return 16 * rows / bits                                                    # (RF.2)


def ridge_rows(bits: float, bandwidth: float, peak: float) -> float:
    """The rows of x at which weights of `bits` bits keep memory and arithmetic busy for as long.

    >>> ridge_rows(bits=2, bandwidth=50e9, peak=1000e9)
    2.5
    """
    return peak / bandwidth / intensity(1, bits)                               # (RF.3)


def line(m: Machine) -> str:
    """The machine in one sentence, for the head of a table."""
    return (f"{m.cpu} ({', '.join(m.instructions) or 'no vector instructions that we know'}), {m.threads} "
            f"thread{'s' if m.threads > 1 else ''}: reads {m.bandwidth / 1e9:.1f} GB/s; float32 "
            f"{m.float32 / 1e9:.0f} Gop/s (BLAS {m.blas / 1e9:.0f}); int8 dot products "
            f"{m.int8 / 1e9:.0f} Gop/s ({m.dot}). Python {m.python}, NumPy {m.numpy}, Numba {m.numba}, "
            f"llvmlite {m.llvmlite}.")


def main(argv: list[str]) -> int:
    """Parse, measure, print."""
    parser = Parser("python -m bitnet_ref.bench.roofline", __doc__)
    parser.add_argument("--threads", type=int, default=timing.available(), metavar="N",
                        help="threads to measure with (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON: bytes and operations per second")
    args = parser.parse_args(argv)
    m = measure(args.threads)
    print(json.dumps(m._asdict()) if args.json else line(m))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
