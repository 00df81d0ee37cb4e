"""python -m bitnet_ref.bench.ladders.attention_cpu [--t 1024 --dh 128] [--quick]

Causal attention of one head in float32, from a matrix of scores to tiles that never leave the cache.
Every rung is o = softmax(mask(q k^T / sqrt(Dh))) v: q, k, v and o float32 (T, Dh). The heads of a group share
k and v and are otherwise the same again. Counted are the 4 Dh operations of each query and key that see each
other, T (T + 1) / 2 pairs; a rung that computes masked scores too does more, and is not paid for it.
Read after: bench/ladders/bitlinear_cpu. Read next: bench/examples.
"""

import math
import sys
from functools import partial
from typing import Any

import numpy as np
from numba import njit, prange

from bitnet_ref import layers
from bitnet_ref.bench.ladders import Step, climb, idea, options, report
from bitnet_ref.bench.roofline import Machine
from bitnet_ref.bench.vectors import (
    LANES,
    float_lanes,
    float_sum,
    fma,
    larger,
    largest,
    load_floats,
    nearest,
    power_of_two,
    store_floats,
)
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command

COMMAND = "bench.ladders.attention_cpu"
TOLERANCE = 2e-6             # of the largest output, against the reference in float64
ROWS, WIDE = 6, 4            # the register tile: 24 registers of sums
KEYS = WIDE * LANES          # of a tile: 64 keys of 128 floats are 32 KiB, which L1 holds
QUERIES = 4 * ROWS           # that share a tile of keys while it is there
FAR = -np.float32(np.inf)
LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.4426950), np.float32(0.693359375), np.float32(-2.12194440e-4)
UNDERFLOW = np.float32(-88)  # exp of less is 0


def numpy(q, k, v, o):
    """The reference: two products in BLAS and a softmax in NumPy, all scores in memory."""
    o[:] = layers.attention(*(a[None, :, None] for a in (q, k, v)))[0][0, :, 0]


@njit
def naive(q, k, v, o):
    """All scores, then all probabilities, then the weighted values: the formula as it stands.

    4 T^2 bytes of scores, and twice the operations: masked scores are computed and thrown away. Sums are
    single chains: each addition waits for the one before it.
    """
    T, Dh = q.shape
    p = np.empty((T, T), np.float32)
    for i in range(T):
        for j in range(T):
            s = np.float32(0)
            for d in range(Dh):
                s += q[i, d] * k[j, d]
            p[i, j] = s / np.float32(math.sqrt(Dh)) if j <= i else FAR
    for i in range(T):
        top, total = FAR, np.float32(0)
        for j in range(T):
            top = max(top, p[i, j])
        for j in range(T):
            p[i, j] = math.exp(p[i, j] - top)
            total += p[i, j]
        for j in range(T):
            p[i, j] /= total
    for i in range(T):
        for d in range(Dh):
            s = np.float32(0)
            for j in range(T):
                s += p[i, j] * v[j, d]
            o[i, d] = s


@njit
def row_at_a_time(q, k, v, o):
    """One query at a time, over the keys that it sees: one row of scores, and half of the operations.

    4 T bytes of scores, which stay in the cache. Values are added row by row, so that the innermost loop has
    a sum for every feature and becomes vectors; the scores' sums are still single chains.
    """
    T, Dh = q.shape
    p = np.empty(T, np.float32)
    for i in range(T):
        top, total = FAR, np.float32(0)
        for j in range(i + 1):
            s = np.float32(0)
            for d in range(Dh):
                s += q[i, d] * k[j, d]
            p[j] = s / np.float32(math.sqrt(Dh))
            top = max(top, p[j])
        for d in range(Dh):
            o[i, d] = 0
        for j in range(i + 1):
            weight = np.float32(math.exp(p[j] - top))
            total += weight
            for d in range(Dh):
                o[i, d] += weight * v[j, d]
        for d in range(Dh):
            o[i, d] /= total


@njit
def _mask(s, i0, j0):
    """Scores of keys after their query, minus infinity."""
    for r in range(len(s)):
        for j in range(max(0, i0 + r + 1 - j0), KEYS):
            s[r, j] = FAR


@njit
def _weigh(s, tops, totals, o):
    """Scores s (queries, KEYS) -> weights exp(s - top), in place, of the largest score so far.

    A row that meets a larger score than before multiplies what it has, its total and its outputs o, by
    exp(old top - new top): the softmax of a row that was never there as a whole.
    """
    for r in range(len(s)):
        top, total = tops[r], np.float32(0)
        for j in range(KEYS):
            top = max(top, s[r, j])
        shrink = np.float32(math.exp(tops[r] - top))
        for j in range(KEYS):
            s[r, j] = math.exp(s[r, j] - top)
            total += s[r, j]
        tops[r], totals[r] = top, totals[r] * shrink + total
        for d in range(o.shape[1]):
            o[r, d] *= shrink


@njit
def tiled_online_softmax(q, k, v, o):
    """Tiles of queries and keys, the softmax put right whenever a larger score turns up.

    The scores of a tile are 6 KiB for any T: memory is linear in T, and a tile of keys that was read once
    serves all queries of the tile. This is what makes long texts possible (Milakov and Gimelshein, arXiv
    1805.02867; FlashAttention, arXiv 2205.14135). Look at: nothing gets faster yet; the loops are the same.
    """
    T, Dh = q.shape
    s, totals, tops = np.empty((QUERIES, KEYS), np.float32), np.empty(T, np.float32), np.empty(T, np.float32)
    o[:], tops[:], totals[:] = 0, FAR, 0
    for i0 in range(0, T, QUERIES):
        end = min(i0 + QUERIES, T)
        for j0 in range(0, end, KEYS):
            for i in range(i0, end):
                for j in range(j0, min(j0 + KEYS, T)):
                    x = np.float32(0)
                    for d in range(Dh):
                        x += q[i, d] * k[j, d]
                    s[i - i0, j - j0] = x / np.float32(math.sqrt(Dh))
            _mask(s, i0, j0)
            _weigh(s[:end - i0], tops[i0:end], totals[i0:end], o[i0:end])
            for i in range(i0, end):
                for j in range(j0, min(j0 + KEYS, i + 1)):
                    for d in range(Dh):
                        o[i, d] += s[i - i0, j - j0] * v[j, d]
    for i in range(T):
        for d in range(Dh):
            o[i, d] /= totals[i]


# ---- from here on the arrays are padded: T to whole tiles, Dh to a multiple of KEYS ----

@njit
def _onto_row(acc, b, x):
    return fma(x, b[0], acc[0]), fma(x, b[1], acc[1]), fma(x, b[2], acc[2]), fma(x, b[3], acc[3])


@njit
def _load_row(c, at):
    return (load_floats(c, at), load_floats(c, at + LANES), load_floats(c, at + 2 * LANES),
            load_floats(c, at + 3 * LANES))


@njit
def _store_row(c, at, v):
    store_floats(c, at, v[0])
    store_floats(c, at + LANES, v[1])
    store_floats(c, at + 2 * LANES, v[2])
    store_floats(c, at + 3 * LANES, v[3])


@njit
def _tile(a, row, b, b_at, b_step, n, c, col):
    """c[row : row + 6, col : col + KEYS] += a[row : row + 6, :n] @ b, with 24 registers of sums.

    The n rows of b are KEYS floats each, from b_at on, b_step apart.
    """
    step = c.shape[1]
    at = row * step + col
    p, q, r = _load_row(c, at), _load_row(c, at + step), _load_row(c, at + 2 * step)
    s, t, u = _load_row(c, at + 3 * step), _load_row(c, at + 4 * step), _load_row(c, at + 5 * step)
    for i in range(n):
        v = _load_row(b, b_at + i * b_step)
        p = _onto_row(p, v, float_lanes(a[row, i]))
        q = _onto_row(q, v, float_lanes(a[row + 1, i]))
        r = _onto_row(r, v, float_lanes(a[row + 2, i]))
        s = _onto_row(s, v, float_lanes(a[row + 3, i]))
        t = _onto_row(t, v, float_lanes(a[row + 4, i]))
        u = _onto_row(u, v, float_lanes(a[row + 5, i]))
    _store_row(c, at, p)
    _store_row(c, at + step, q)
    _store_row(c, at + 2 * step, r)
    _store_row(c, at + 3 * step, s)
    _store_row(c, at + 4 * step, t)
    _store_row(c, at + 5 * step, u)


@njit
def _panels(k):
    """(ceil(T / KEYS), Dh, KEYS): feature after feature, of as many keys as a tile has lanes."""
    T, Dh = k.shape
    out = np.zeros((-(-T // KEYS), Dh, KEYS), np.float32)
    for j in range(T):
        for d in range(Dh):
            out[j // KEYS, d, j % KEYS] = k[j, d]
    return out


@njit
def _padded(a, rows, columns, scale):
    """a times scale, in a corner of zeros (rows, columns)."""
    out = np.zeros((rows, columns), np.float32)
    for i in range(len(a)):
        for d in range(a.shape[1]):
            out[i, d] = a[i, d] * scale
    return out


@njit
def _padded_values(v):
    T, Dh = v.shape
    return _padded(v, -(-T // KEYS) * KEYS, -(-Dh // KEYS) * KEYS, np.float32(1))


@njit
def _queries(q, panels, v, i0, weigh, o):
    """The outputs of QUERIES queries from i0 on; `weigh`: the softmax of a tile."""
    Dh, width = q.shape[1], v.shape[1]
    end = min(i0 + QUERIES, len(q))
    own = _padded(q[i0:end], QUERIES, Dh, np.float32(1 / math.sqrt(Dh)))
    s, out = np.empty((QUERIES, KEYS), np.float32), np.zeros((QUERIES, width), np.float32)
    tops, totals = np.full(QUERIES, FAR, np.float32), np.zeros(QUERIES, np.float32)
    for j0 in range(0, end, KEYS):
        s[:] = 0
        for r in range(0, QUERIES, ROWS):
            _tile(own, r, panels, j0 * Dh, KEYS, Dh, s, 0)
        _mask(s, i0, j0)
        weigh(s, tops, totals, out)
        for r in range(0, QUERIES, ROWS):
            for d in range(0, width, KEYS):
                _tile(s, r, v, j0 * width + d, width, KEYS, out, d)
    for i in range(i0, end):
        for d in range(Dh):
            o[i, d] = out[i - i0, d] / totals[i - i0]


@njit
def keys_in_lanes(q, k, v, o):
    """Every lane a key: a feature of a query, the same in all lanes, meets that feature of 64 keys.

    Keys are laid out feature by feature once; then no sum goes across lanes, and six queries share each load.
    The weighted values are the same product with features in the lanes. Look at: the products are fast now,
    and most of what is left is exp, one call at a time.
    """
    panels, values = _panels(k), _padded_values(v)
    for i0 in range(0, len(q), QUERIES):
        _queries(q, panels, values, i0, _weigh, o)


@njit
def exp(x):
    """exp of a register of floats that are at most 0, to 2.5e-7 of the value; 0 for what is too small.

    x = n ln 2 + r with |r| <= ln(2) / 2; exp(r) by its series up to r^6 / 720, whose next term is below
    1.2e-7; and 2^n by writing n into the exponent. ln 2 is subtracted in two parts, the first of so few bits
    that n times it is exact.
    """
    x = larger(x, float_lanes(UNDERFLOW))
    n = nearest(fma(x, float_lanes(LOG2E), float_lanes(np.float32(0))))
    r = fma(n, float_lanes(-LN2_HIGH), x)
    r = fma(n, float_lanes(-LN2_LOW), r)
    p = float_lanes(np.float32(1 / 720))
    for c in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        p = fma(p, r, float_lanes(np.float32(c)))
    return fma(p, power_of_two(n), float_lanes(np.float32(0)))


@njit
def _weigh_in_registers(s, tops, totals, o):
    """_weigh, a row of KEYS scores in four registers."""
    one = float_lanes(np.float32(1))
    for r in range(len(s)):
        at = r * KEYS
        a, b, c, d = _load_row(s, at)
        top = max(tops[r], largest(larger(larger(a, b), larger(c, d))))
        less = float_lanes(-top)
        a, b = exp(fma(a, one, less)), exp(fma(b, one, less))
        c, d = exp(fma(c, one, less)), exp(fma(d, one, less))
        _store_row(s, at, (a, b, c, d))
        shrink = np.float32(math.exp(tops[r] - top))
        total = float_sum(fma(fma(a, one, b), one, fma(c, one, d)))
        tops[r], totals[r] = top, totals[r] * shrink + total
        for i in range(o.shape[1]):
            o[r, i] *= shrink


@njit
def polynomial_exp(q, k, v, o):
    """exp by arithmetic alone, a register at a time: a polynomial, and the exponent's bits.

    A call of the C library's exp takes one number. Largest score, weights and their sum now stay in registers
    too. Look at: exp is no longer what attention costs.
    """
    panels, values = _panels(k), _padded_values(v)
    for i0 in range(0, len(q), QUERIES):
        _queries(q, panels, values, i0, _weigh_in_registers, o)


@njit(parallel=True)
def threads(q, k, v, o):
    """Tiles of queries shared by all cores, the first with the last: late queries see more keys.

    Queries do not meet, so outputs are the same for any number of threads. Look at: without pairing, the
    thread that has the second half does three quarters of the work.
    """
    panels, values = _panels(k), _padded_values(v)
    n = -(-len(q) // QUERIES)
    for t in prange((n + 1) // 2):
        _queries(q, panels, values, t * QUERIES, _weigh_in_registers, o)
        if n - 1 - t > t:
            _queries(q, panels, values, (n - 1 - t) * QUERIES, _weigh_in_registers, o)


RUNGS: dict[str, Any] = {f.__name__: f for f in (
    naive, row_at_a_time, tiled_online_softmax, keys_in_lanes, polynomial_exp, threads, numpy)}
SHARED = ("threads", "numpy")                # rungs that use all threads


# ---- verified, timed, printed ----

def error(run: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> float:
    """Largest error of run's outputs, relative to the largest output of the reference in float64."""
    o, exact = np.empty_like(q), np.empty(q.shape)
    run(q, k, v, o)
    numpy(q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), exact)
    return float(np.abs(o - exact).max() / np.abs(exact).max())


def ladder(T: int, Dh: int, one: Machine, all_: Machine, quick: bool = False) -> str:
    """The table of all rungs for T tokens of Dh features. `one`, `all_`: one thread, and all of them."""
    rng = np.random.default_rng(0)
    q, k, v, o = (rng.standard_normal((T, Dh), np.float32) for _ in range(4))
    steps = []
    for name, run in RUNGS.items():
        off = error(run, q, k, v)
        check(off <= TOLERANCE, f"{name} must be within {TOLERANCE} of the reference", off, "do not use it")
        limit = (all_ if name in SHARED else one).float32
        steps.append(Step(name, partial(run, q, k, v, o), 2 * T * (T + 1) * Dh, limit, idea(run)))
    return f"T = {T}, Dh = {Dh}:\n\n" + climb(steps, "Gop/s", quick)


def main(argv: list[str]) -> int:
    """Parse, climb, print."""
    parser = Parser(f"python -m bitnet_ref.{COMMAND}", __doc__)
    parser.add_argument("--t", type=int, default=1024, metavar="T", help="tokens (default: 1024)")
    parser.add_argument("--dh", type=int, default=128, metavar="DH", help="features (default: 128)")
    options(parser)
    args = parser.parse_args(argv)
    check(min(args.t, args.dh) > 0, "--t and --dh must be positive", [args.t, args.dh], "give more")
    print(report(args, COMMAND, lambda one, all_: [ladder(args.t, args.dh, one, all_, args.quick)]))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
