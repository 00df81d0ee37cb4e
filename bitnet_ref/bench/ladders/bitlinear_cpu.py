"""python -m bitnet_ref.bench.ladders.bitlinear_cpu [--n 2560 --k 2560 --m 1 512] [--quick]

A ternary matrix times int8 vectors, from a loop over bits to the speed of memory. One row of x (decode) is
limited by the bytes of the weights, many rows (prefill, training) by operations.
Every rung is y = x @ w.T in exact integers. Weights are codes u = w + 1, unsigned, in rungs that say so:
sum(w x) = sum(u x) - sum(x), and the second sum is taken once for all outputs.
Read after: bench/ladders/layouts. Read next: bench/ladders/attention_cpu.
"""

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from bitnet_ref.bench import timing
from bitnet_ref.bench.ladders import Step, climb, idea, layouts, options, report
from bitnet_ref.bench.ladders.layouts import BLOCK, WIDE, Layout, packed
from bitnet_ref.bench.roofline import Machine
from bitnet_ref.bench.vectors import (
    DOT,
    LANES,
    VNNI,
    across,
    add,
    dot4,
    four,
    int_lanes,
    load_bytes,
    load_sums,
    popcount,
    store_bytes,
    store_sums,
    triple,
    triple_carry,
    two_bits,
    undivided,
)
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command

COMMAND = "bench.ladders.bitlinear_cpu"
TILE_ROWS = 6                # of the register tile: with WIDE = 4, 24 sums, 4 weights, an input: 32 registers
DEPTH = 512                  # of k in a cache block: 64 outputs x 512 codes are 32 KiB, which L1 holds
NEEDS = {"dot": "an instruction for dot products of bytes", "vnni": "one (VNNI) that takes codes up to 255"}
MOST_K = 1 << 15             # 256 * 2 * 128 * K, the largest sum that is divided, stays below 2^31


class Rung(NamedTuple):
    """`run(w, x, y)`: packed w, x int8 (M, K), y int32 (M, N), M a multiple of `m`. `needs`: "dot", an
    instruction for dot products, or "vnni", one whose codes reach 255; `threads`: it uses all of them."""

    run: Any
    layout: Layout
    needs: str = ""
    m: int = 1
    threads: bool = False


# ---- rungs: one row of x ----

def float32_blas(w, x, y):
    """Weights as float32 and NumPy's product: no kernel of one's own.

    For one row sixteen times the bytes; a vector product in BLAS reaches memory's speed, so look at the time.
    """
    y[:] = x.astype(np.float32) @ w.T


@njit
def naive(w, x, y):
    """A loop over bytes and the four fields of each.

    N K / 4 bytes. Every weight costs a shift, a mask, a subtraction, a multiplication and an addition; LLVM
    makes vectors of that, and shuffles to bring each weight to its input. Look at: the share; memory waits.
    """
    for n in range(y.shape[1]):
        total = 0
        for i in range(w.shape[1]):
            for j in range(4):
                total += (np.int32((w[n, i] >> (2 * j)) & 3) - 1) * x[0, 4 * i + j]
        y[0, n] = total


@njit
def unpack_row_once(w, x, y):
    """Decoding and multiplying apart: each loop is simple enough for LLVM to vectorise.

    The same bytes; a row of trits, K bytes, is written to L1 and read again. Look at: that more work is
    less time.
    """
    row = np.empty(x.shape[1], np.int8)
    for n in range(y.shape[1]):
        for i in range(w.shape[1]):
            for j in range(4):
                row[4 * i + j] = np.int8((w[n, i] >> (2 * j)) & 3) - 1
        total = np.int32(0)
        for k in range(row.size):
            total = np.int32(total + np.int32(row[k]) * np.int32(x[0, k]))
        y[0, n] = total


@njit
def lookup_table(w, x, y):
    """No multiplication at all: the sum of four products is looked up by the byte.

    For four inputs there are 3^4 sums of +x, 0 or -x; a table of 256 entries, 1 KiB, is made once for all N
    outputs. The same bytes, read column by column, and the sums of all outputs pass by for each. Look at:
    a load that waits for a load, one output at a time. T-MAC (arXiv 2407.00088) keeps tables of 16 entries
    in registers, where a shuffle looks up 16 or more at once.
    """
    y[:] = 0
    sums = np.empty(256, np.int32)
    for i in range(w.shape[0]):
        a, b, c, d = x[0, 4 * i], x[0, 4 * i + 1], x[0, 4 * i + 2], x[0, 4 * i + 3]
        for code in range(256):
            sums[code] = (((code & 3) - 1) * a + ((code >> 2 & 3) - 1) * b
                          + ((code >> 4 & 3) - 1) * c + ((code >> 6) - 1) * d)
        for n in range(w.shape[1]):
            y[0, n] += sums[w[i, n]]


@njit
def bit_planes(w, x, y):
    """Bits beside bits: AND, count, and weigh each plane of x by its power of two.

    x becomes eight planes (two's complement: the last counts -128), the weights are two, +1 and -1. 64
    weights to a word, but 16 ANDs and counts for each. The same bytes. Look at: the cost grows with the bits
    of x. Processors that count the bits of whole registers (VPOPCNTDQ) do well here, others do not.
    """
    bits = np.zeros((8, w.shape[2]), np.uint64)
    for k in range(x.shape[1]):
        for b in range(8):
            bits[b, k // 64] |= np.uint64((x[0, k] >> b) & 1) << np.uint64(k % 64)
    for n in range(y.shape[1]):
        total = 0
        for b in range(8):
            count = 0
            for i in range(w.shape[2]):
                count += popcount(w[n, 0, i] & bits[b, i]) - popcount(w[n, 1, i] & bits[b, i])
            total += (count << b) if b < 7 else -(count << b)
        y[0, n] = total


@njit
def blocked(w, x, y):
    """Weights of a byte lie 64 apart, so that a block unpacks in the order of x, into 64 sums side by side.

    The layout first: neighbouring bytes hold neighbouring weights, so one shift and one mask serve a register
    full of them and nothing is scattered. The same bytes. Look at: no sum waits for the one before it;
    LLVM turns the innermost loop into vectors, but widens each byte to 32 bits before it multiplies.
    """
    x_sum = x[0].sum()
    sums = np.empty(64, np.int32)
    for n in range(y.shape[1]):
        sums[:] = 0
        for b in range(w.shape[1]):
            for i in range(64):
                byte, at = w[n, b, i], BLOCK * b + i
                sums[i] += ((byte & 3) * x[0, at] + (byte >> 2 & 3) * x[0, at + 64]
                            + (byte >> 4 & 3) * x[0, at + 128] + (byte >> 6) * x[0, at + 192])
        y[0, n] = sums.sum() - x_sum


@njit
def intrinsic(w, x, y):
    """The dot-product instruction: 4 products and their sum in every lane, at once.

    The loop of `blocked`, by registers: a load, and for each field a shift, a mask and a dot product with x.
    LLVM does not find the instruction by itself. The same bytes. Look at: what is left is the sum across
    the lanes at the end of each row, and one load of x for each dot product.
    """
    x_sum, row = x[0].sum(), x[0]
    for n in range(y.shape[1]):
        p = q = r = s = int_lanes(0)
        for at in range(0, w.shape[1] * 64, 4 * LANES):
            v = load_bytes(w, n * w.shape[1] * 64 + at)
            here = at // 64 * BLOCK + at % 64
            p = dot4(p, two_bits(v, 0), load_bytes(row, here))
            q = dot4(q, two_bits(v, 2), load_bytes(row, here + 64))
            r = dot4(r, two_bits(v, 4), load_bytes(row, here + 128))
            s = dot4(s, two_bits(v, 6), load_bytes(row, here + 192))
        y[0, n] = across(add(add(p, q), add(r, s))) - x_sum


@njit
def _panel(w, p, x, m, first):
    """LANES sums: the outputs of panel p, for row m of x."""
    a, b, c, d = int_lanes(first), int_lanes(0), int_lanes(0), int_lanes(0)
    for i in range(w.shape[1]):
        v = load_bytes(w, (p * w.shape[1] + i) * 4 * LANES)
        at = m * x.shape[1] + 16 * i
        a = dot4(a, two_bits(v, 0), four(x, at))
        b = dot4(b, two_bits(v, 2), four(x, at + 4))
        c = dot4(c, two_bits(v, 4), four(x, at + 8))
        d = dot4(d, two_bits(v, 6), four(x, at + 12))
    return add(add(a, b), add(c, d))


@njit
def outputs_in_lanes(w, x, y):
    """Every lane an output: four inputs, the same for all lanes, meet as many rows of weights.

    No sum across lanes, no end of a row: a register of sums walks down k and is stored. The weights of a
    panel are read in one stream. The same bytes. Look at: the bandwidth of one thread.
    """
    first = -x[0].sum()
    for p in range(w.shape[0]):
        store_sums(y, p * LANES, _panel(w, p, x, 0, first))


@njit
def _panel_base_3(w, p, x, first):
    a = int_lanes(first)
    b = c = d = e = int_lanes(0)
    for i in range(w.shape[1]):
        v = load_bytes(w, (p * w.shape[1] + i) * 4 * LANES)
        for j in range(5):                                 # five sums take turns: none waits for itself
            a, b, c, d, e = b, c, d, e, dot4(a, triple_carry(v), four(x, 20 * i + 4 * j))
            v = triple(v)
    return add(add(add(a, b), add(c, d)), e)


@njit
def base_3(w, x, y):
    """Five weights to a byte, 1.6 bits each, taken apart without a division.

    4/5 of the bytes. A byte is a fraction of 256 (see `lanes_of_fractions`): three times it carries its first
    digit out, and the rest is the fraction of the others. Look at: whether fewer bytes pay for more
    instructions; on one thread that has the memory to itself they may not.
    """
    first = -x[0].sum()
    for p in range(w.shape[0]):
        store_sums(y, p * LANES, _panel_base_3(w, p, x, first))


@njit
def _panel_fractions(w, p, x):
    a = b = c = d = e = int_lanes(0)
    q = r = s = t = u = int_lanes(0)
    for i in range(w.shape[1]):
        v = load_bytes(w, (p * w.shape[1] + i) * 4 * LANES)
        for j in range(5):
            inputs = four(x, 20 * i + 4 * j)
            a, b, c, d, e = b, c, d, e, dot4(a, v, inputs)
            v = triple(v)
            q, r, s, t, u = r, s, t, u, dot4(q, v, inputs)
    return undivided(add(add(add(a, b), add(c, d)), e), add(add(add(q, r), add(s, t)), u))


@njit
def base_3_undivided(w, x, y):
    """The digits are never taken apart: a sum of digits is a difference of two sums of fractions.

    digit = (3 q - q') / 256 for the fraction q before and q' after it, and a dot product is linear: so both
    fractions go through it as they are, and the division is done once, on the sums. Look at: two additions
    and one more dot product instead of two comparisons and their sum. Needs VNNI: fractions reach 255, and
    the sum of two such products does not fit into AVX2's 16 bits; and ten sums want AVX-512's 32 registers.
    """
    first = int_lanes(-x[0].sum())
    for p in range(w.shape[0]):
        store_sums(y, p * LANES, add(first, _panel_fractions(w, p, x)))


@njit(parallel=True)
def threads(w, x, y):
    """The panels of `outputs_in_lanes`, shared by all cores.

    Outputs do not meet, so nothing is shared but x, and the sums are the same for any number of threads.
    Look at: the gain is what memory has left over, not the number of cores; and a launch costs
    microseconds, which is why a model's token should be one compiled call.
    """
    first = -x[0].sum()
    for p in prange(w.shape[0]):
        store_sums(y, p * LANES, _panel(w, p, x, 0, first))


@njit(parallel=True)
def threads_base_3(w, x, y):
    """`base_3_undivided`, shared by all cores: the more of them share the memory, the more fewer bytes count.

    Look at: time against `threads`; memory alone would make it 0.8 of that.
    """
    first = int_lanes(-x[0].sum())
    for p in prange(w.shape[0]):
        store_sums(y, p * LANES, add(first, _panel_fractions(w, p, x)))


# ---- rungs: many rows of x ----

@njit
def row_by_row(w, x, y):
    """`outputs_in_lanes` for one row of x after the other.

    Each row reads and decodes all weights again. Look at: operations, not bytes, are the limit now, and of
    three instructions for 64 weights only one multiplies.
    """
    for m in range(x.shape[0]):
        first = -x[m].sum()
        for p in range(w.shape[0]):
            store_sums(y, m * y.shape[1] + p * LANES, _panel(w, p, x, m, first))


@njit
def _onto_row(acc, u, inputs):
    return (dot4(acc[0], u[0], inputs), dot4(acc[1], u[1], inputs),
            dot4(acc[2], u[2], inputs), dot4(acc[3], u[3], inputs))


@njit
def _load_row(y, at):
    return (load_sums(y, at), load_sums(y, at + LANES), load_sums(y, at + 2 * LANES),
            load_sums(y, at + 3 * LANES))


@njit
def _tile(codes, fours, x, x_at, y, y_at):
    """y[6 rows, 4 LANES outputs] += x @ codes, with 24 sums in registers. `codes`: (fours, 4 LANES, 4)."""
    k, n = x.shape[1], y.shape[1]
    a, b, c = _load_row(y, y_at), _load_row(y, y_at + n), _load_row(y, y_at + 2 * n)
    d, e, f = _load_row(y, y_at + 3 * n), _load_row(y, y_at + 4 * n), _load_row(y, y_at + 5 * n)
    for i in range(fours):
        at, here = i * 16 * LANES, x_at + 4 * i
        u = (load_bytes(codes, at), load_bytes(codes, at + 4 * LANES), load_bytes(codes, at + 8 * LANES),
             load_bytes(codes, at + 12 * LANES))
        a = _onto_row(a, u, four(x, here))
        b = _onto_row(b, u, four(x, here + k))
        c = _onto_row(c, u, four(x, here + 2 * k))
        d = _onto_row(d, u, four(x, here + 3 * k))
        e = _onto_row(e, u, four(x, here + 4 * k))
        f = _onto_row(f, u, four(x, here + 5 * k))
    for i in range(WIDE):
        at = y_at + i * LANES
        store_sums(y, at, a[i])
        store_sums(y, at + n, b[i])
        store_sums(y, at + 2 * n, c[i])
        store_sums(y, at + 3 * n, d[i])
        store_sums(y, at + 4 * n, e[i])
        store_sums(y, at + 5 * n, f[i])


@njit
def _less_sums(x, y):
    for m in range(len(x)):
        y[m] = -x[m].sum()


@njit
def register_tile(w, x, y):
    """Six rows meet four registers of weights: 24 dot products for 10 loads.

    Weights are decoded beforehand, a byte each: four times the bytes, read once for six rows. The 24 sums,
    the weights and an input fill the 32 registers of AVX-512 (machines with 16 must spill some; a smaller
    tile suits them). Look at: dot products per load.
    """
    _less_sums(x, y)
    for p in range(w.shape[0]):
        for m in range(0, x.shape[0], TILE_ROWS):
            _tile(w[p], w.shape[1], x, m * x.shape[1], y, m * y.shape[1] + p * WIDE * LANES)


@njit
def _unpack(w, p, k0, depth, codes):
    """codes (depth / 4, 4 LANES, 4): of the four panels from 4 p on, and of inputs k0 ..."""
    for v in range(WIDE):
        for i in range(depth // 16):
            bits = load_bytes(w, ((WIDE * p + v) * w.shape[1] + k0 // 16 + i) * 4 * LANES)
            at = (4 * i * WIDE + v) * 4 * LANES
            store_bytes(codes, at, two_bits(bits, 0))
            store_bytes(codes, at + 16 * LANES, two_bits(bits, 2))
            store_bytes(codes, at + 32 * LANES, two_bits(bits, 4))
            store_bytes(codes, at + 48 * LANES, two_bits(bits, 6))


@njit
def _wide_panel(w, p, x, y):
    codes = np.empty((DEPTH // 4, WIDE * LANES, 4), np.uint8)
    for k0 in range(0, x.shape[1], DEPTH):
        depth = min(DEPTH, x.shape[1] - k0)
        _unpack(w, p, k0, depth, codes)
        for m in range(0, x.shape[0], TILE_ROWS):
            _tile(codes, depth // 4, x, m * x.shape[1] + k0, y, m * y.shape[1] + p * WIDE * LANES)


@njit
def cache_blocked(w, x, y):
    """A block of weights is decoded into L1, and all rows meet it before the next.

    Weights stay packed in memory (a quarter of the bytes) and are decoded once for all rows. A block is
    shorter than k: the sums go out to y and come back. Look at: decoding costs nothing when hundreds of
    rows share it; with M = 6 it does.
    """
    _less_sums(x, y)
    for p in range(len(w) // WIDE):
        _wide_panel(w, p, x, y)


@njit(parallel=True)
def threads_rows(w, x, y):
    """The wide panels of `cache_blocked`, shared by all cores.

    Each thread has a block of its own. Look at: operations, unlike bytes, grow with the cores.
    """
    _less_sums(x, y)
    for p in prange(w.shape[0] // WIDE):
        _wide_panel(w, p, x, y)


VECTOR = {rung.run.__name__: rung for rung in (
    Rung(naive, layouts.ROWS), Rung(unpack_row_once, layouts.ROWS), Rung(lookup_table, layouts.COLUMNS),
    Rung(bit_planes, layouts.PLANES), Rung(blocked, layouts.BLOCKS), Rung(intrinsic, layouts.BLOCKS, "dot"),
    Rung(outputs_in_lanes, layouts.PANELS, "dot"), Rung(base_3, layouts.FRACTIONS, "dot"),
    Rung(base_3_undivided, layouts.FRACTIONS, "vnni"), Rung(threads, layouts.PANELS, "dot", threads=True),
    Rung(threads_base_3, layouts.FRACTIONS, "vnni", threads=True),
    Rung(float32_blas, layouts.FLOATS, threads=True))}
MATRIX = {rung.run.__name__: rung for rung in (
    Rung(row_by_row, layouts.PANELS, "dot"), Rung(register_tile, layouts.CODES, "dot", TILE_ROWS),
    Rung(cache_blocked, layouts.WIDE_PANELS, "dot", TILE_ROWS),
    Rung(threads_rows, layouts.WIDE_PANELS, "dot", TILE_ROWS, True),
    Rung(float32_blas, layouts.FLOATS, threads=True))}


# ---- verified, timed, printed ----

def run_next(run: Any, ring: Iterator[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
    """`run` with the next copy of the weights."""
    run(next(ring), x, y)


def runs_here(rung: Rung) -> bool:
    """Whether this machine has the instructions that the rung needs."""
    return not rung.needs or (DOT is not None and (rung.needs == "dot" or VNNI in DOT.bytes))


def operands(rung: Rung, w_q: np.ndarray, x_q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(w, x, y) of `rung` for trits w_q (N, K) and int8 x_q (M, K): packed, padded with zeros, and empty."""
    (n, k), layout = w_q.shape, rung.layout
    x = np.pad(x_q, ((0, -len(x_q) % rung.m), (0, -k % layout.k)))
    return packed(w_q, layout), x, np.empty((len(x), n + -n % layout.n), np.int32)


def verified(name: str, rung: Rung, w_q: np.ndarray, x_q: np.ndarray) -> tuple[np.ndarray, ...]:
    """The operands of `rung`; CheckError if it is not exact, as float32 is to 2^24 (docs/numerics.md)."""
    exact = (x_q.astype(np.float32) @ w_q.T.astype(np.float32)).astype(np.int32)
    w, x, y = operands(rung, w_q, x_q)
    rung.run(w, x, y)
    wrong = np.count_nonzero(y[:len(x_q), :len(w_q)] != exact)
    check(wrong == 0, f"{name} must be exact", f"{wrong} of {exact.size} sums are not", "do not use it")
    return w, x, y


def ladder(n: int, k: int, m: int, one: Machine, all_: Machine, quick: bool = False) -> str:
    """The table of all rungs that run here, for m rows of x; lines below it name those that do not.

    `one`, `all_`: the machine on one thread, and on all. The weights of a vector product come out of memory.
    """
    rng = np.random.default_rng(0)
    w_q = rng.integers(-1, 2, (n, k), np.int8)
    x_q = rng.integers(-128, 128, (m, k), np.int8)
    rungs, copied = (MATRIX, 1) if m > 1 else (VECTOR, timing.OUT_OF_CACHE // (64 if quick else 1))
    rings: dict[Layout, Iterator[np.ndarray]] = {}         # rungs of the same layout share its copies
    steps, skipped = [], ""
    for name, rung in rungs.items():
        if not runs_here(rung):
            skipped += f"\n\nSkipped: `{name}`, which needs {NEEDS[rung.needs]}."
            continue
        w, x, y = verified(name, rung, w_q, x_q)
        ring = rings.setdefault(rung.layout, timing.rotate(w, copied))
        limits = all_ if rung.threads else one
        peak = limits.float32 if rung.layout is layouts.FLOATS else limits.int8
        work, limit = (w.nbytes, limits.bandwidth) if m == 1 else (2 * w_q.size * m, peak)
        steps.append(Step(name, partial(run_next, rung.run, ring, x, y), work, limit, idea(rung.run)))
    return f"N = {n}, K = {k}, M = {m}:\n\n" + climb(steps, "GB/s" if m == 1 else "Gop/s", quick) + skipped


def main(argv: list[str]) -> int:
    """Parse, climb, print."""
    parser = Parser(f"python -m bitnet_ref.{COMMAND}", __doc__)
    parser.add_argument("--n", type=int, default=2560, metavar="N", help="outputs (default: 2560)")
    parser.add_argument("--k", type=int, default=2560, metavar="K", help="inputs (default: 2560)")
    parser.add_argument("--m", type=int, nargs="+", default=[1, 512], metavar="M",
                        help="rows of x, a ladder for each number (default: 1 512)")
    options(parser)
    args = parser.parse_args(argv)
    check(min(args.n, *args.m) > 0, "--n and --m must be positive", [args.n, *args.m], "give at least 1")
    check(0 < args.k < MOST_K, f"--k must lie in 1..{MOST_K - 1}", args.k, "choose another")
    print(report(args, COMMAND, lambda one, all_: [
        ladder(args.n, args.k, m, one, all_, args.quick) for m in args.m]))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
