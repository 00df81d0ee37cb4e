"""The ladder of notebook 06, climbed while a reader looks on, and its questions.

Rungs, limits and clocks are those of bench/ladders; here a few are taken at a time, and what was measured is
kept as numbers, for a table below the cell and for the roofline. A rung is verified before it is timed; one
whose instructions this machine lacks is named and left out.
Read after: walk/formats. Read next: walk/gpu_kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from bitnet_ref.bench import timing
from bitnet_ref.bench.ladders import bitlinear_cpu, duration, figure, layouts
from bitnet_ref.bench.ladders.bitlinear_cpu import MATRIX, NEEDS, VECTOR, Rung, runs_here
from bitnet_ref.bench.roofline import Machine, intensity, least_seconds, line, ridge_rows
from bitnet_ref.checks import lookup
from bitnet_ref.walk.packing import TRITS
from bitnet_ref.walk.puzzle import Question, choice, number, works_like
from bitnet_ref.walk.show import Lines, wrapped

COPIES = 128 << 20           # bytes of the ring that a vector product reads: more than caches hold
ROUNDS = 5
PYTHON = "naive, by Python"
DISTURBED = "this machine was disturbed"                   # .ci/notebooks.py keeps no such output
SLACK = 0.95                 # one thread can be all that memory serves, and two measurements differ a little


class Rate(NamedTuple):
    """A rung on this machine: what it moved and did in `seconds`, and of `threads` threads the limits."""

    name: str
    seconds: float
    n_bytes: float
    operations: float
    threads: int
    bandwidth: float
    peak: float

    @property
    def share(self) -> float:
        """Of the speed that the nearer of the two limits allows."""
        return least_seconds(self.n_bytes, self.operations, self.bandwidth, self.peak) / self.seconds


@dataclass(frozen=True, repr=False)
class Rates:
    """What was climbed, and what this machine cannot climb. Shows itself as a table."""

    rates: tuple[Rate, ...]
    missing: tuple[str, ...] = ()

    def __repr__(self) -> str:
        head = f"{'rung':24}{'time':>9}{'GB/s':>8}{'Gop/s':>8}{'of limit':>10}"
        rows = [f"{r.name:24}{duration(r.seconds):>9}{_small(r.n_bytes / r.seconds / 1e9):>8}"
                f"{_small(r.operations / r.seconds / 1e9):>8}{_small(100 * r.share) + ' %':>10}"
                for r in self.rates]
        return "\n".join([head] * bool(rows) + rows + list(self.missing))

    def _repr_html_(self) -> str:
        return Lines(repr(self))._repr_html_()


def limits(one: Machine, every: Machine) -> str:
    """What one thread and all of them have been measured to do at most; and whether that can be.

    >>> from bitnet_ref.bench.roofline import Machine
    >>> two = Machine("a machine", (), "none", 2, 40e9, 200e9, 200e9, 0.0, "", "", "", "")
    >>> print(limits(two._replace(threads=1, bandwidth=50e9), two).splitlines()[-1])
    this machine was disturbed: 2 threads did less than one; stop what else runs, and measure again
    """
    said = [wrapped(line(one)), wrapped(line(every))]
    kinds = ("bandwidth", "float32", "int8")
    if every.threads > one.threads and any(getattr(every, k) < SLACK * getattr(one, k) for k in kinds):
        said.append(f"{DISTURBED}: {every.threads} threads did less than one; "
                    "stop what else runs, and measure again")
    return "\n".join(said)


def climb(names: Sequence[str], w_q: np.ndarray, x_q: np.ndarray, one: Machine,
          every: Machine | None = None) -> Rates:
    """Verify the rungs, then time them by turns: x_q int8 (M, K) @ w_q trits (N, K).T.

    one, every: the limits of one thread and of all; without `every` all that runs has one thread, NumPy's
    product too. With one row of x weights come out of memory. Raises CheckError for an unknown rung, and for
    one that is not exact.

    >>> from bitnet_ref.bench.roofline import Machine
    >>> limits = Machine("a machine", (), "none", 1, 20e9, 100e9, 100e9, 400e9, "", "", "", "")
    >>> w_q, x_q = np.ones((64, 256), np.int8), np.ones((1, 256), np.int8)
    >>> [rate] = climb(["blocked"], w_q, x_q, limits).rates
    >>> rate.name, rate.operations / rate.n_bytes < intensity(1, 2)
    ('blocked', True)
    """
    table, every = VECTOR if len(x_q) == 1 else MATRIX, every or one
    rungs = {name: lookup(table, name, "rung") for name in names}
    missing = tuple(f"{name:24}needs {NEEDS[r.needs]}: not here" for name, r in rungs.items()
                    if not runs_here(r))
    runs, rates = {}, []
    for name, rung in rungs.items():
        if runs_here(rung):
            w, x, y = bitlinear_cpu.verified(name, rung, w_q, x_q)
            ring = timing.rotate(w, COPIES if len(x_q) == 1 else 1)
            runs[name] = partial(bitlinear_cpu.run_next, rung.run, ring, x, y)
            n_bytes = w.nbytes + x_q.nbytes + 4 * len(x_q) * len(w_q)
            rates.append(_rate(name, rung, n_bytes, 2 * w_q.size * len(x_q), one, every))
    with timing.threads(min(every.threads, timing.available())):
        seconds = timing.median(timing.alternate(runs, ROUNDS)) if runs else {}
    rows = f", {len(x_q)} rows" if table is MATRIX else ""
    return Rates(tuple(r._replace(name=r.name + rows, seconds=seconds[r.name]) for r in rates), missing)


def _rate(name: str, rung: Rung, n_bytes: int, operations: int, one: Machine, every: Machine) -> Rate:
    limits = every if rung.threads else one
    peak = limits.float32 if rung.layout is layouts.FLOATS else limits.int8 or limits.float32
    return Rate(name, 0.0, n_bytes, operations, limits.threads, limits.bandwidth, peak)


def _small(value: float) -> str:
    """Three digits; of what is far below 1, one, and not 0.00."""
    return figure(value) if value >= 0.1 else np.format_float_positional(value, 1, fractional=False, trim="-")


def interpreted(w_q: np.ndarray, x_q: np.ndarray, one: Machine) -> Rates:
    """The rung `naive` without a compiler: the same lines, run by Python, verified and timed once.

    >>> from bitnet_ref.bench.roofline import Machine
    >>> limits = Machine("a machine", (), "none", 1, 20e9, 100e9, 100e9, 400e9, "", "", "", "")
    >>> interpreted(np.ones((2, 8), np.int8), np.ones((1, 8), np.int8), limits).rates[0].operations
    32
    """
    rung = VECTOR["naive"]._replace(run=bitlinear_cpu.naive.py_func)
    w, x, y = bitlinear_cpu.verified(PYTHON, rung, w_q, x_q)
    rate = _rate(PYTHON, rung, w.nbytes + x.nbytes + y.nbytes, 2 * w_q.size, one, one)
    seconds = timing.best(partial(rung.run, w, x, y), rounds=3)
    return Rates((rate._replace(seconds=seconds),))


def _less(sum_of_codes: int, x: np.ndarray) -> int:
    return sum_of_codes - int(x.sum())


def _per_load(rows: int, registers: int) -> float:
    return rows * registers / (rows + registers)


QUESTIONS = [
    Question("Write `least(n_bytes, operations, bandwidth, peak)`: the least seconds that a kernel can take.",
             works_like(least_seconds, (10e9, 20e9, 20e9, 100e9), (1e9, 90e9, 20e9, 100e9)),
             "both go on at the same time, so (RF.1) has no sum; and the slower one decides",
             lambda n_bytes, operations, bandwidth, peak: max(n_bytes / bandwidth, operations / peak)),
    Question("2B4T has 2.08e9 trits. At 2 bits, read once for every token, by a machine that reads 50 GB/s: "
             "how many tokens a second at most?", number(50e9 / (TRITS / 4), 1),
             "a byte holds four: 521 million bytes", 50e9 / (TRITS / 4)),
    Question("Codes are u = w + 1. Write `less(s, x)`: the sum of w x, from the sum s of u x and the int8 "
             "array x.",
             works_like(_less, (0, np.array([3, -4, 5], np.int8)), (40, np.full(9, 127, np.int8))),
             "sum(w x) = sum(u x) - sum(x)", lambda s, x: s - x.sum()),
    Question("Two threads instead of one, and a vector product at the speed of memory. Which figure says how "
             "much faster it can get: \"cores\", \"bandwidth\" or \"peak\"?",
             choice("bandwidth", {"cores": "The second core waits for the same memory",
                                  "peak": "Arithmetic is not what it waits for"}),
             "compare the two lines of the machine: what grew by how much?", "bandwidth"),
    Question("Write `per_load(rows, registers)`: dot products for each load, where each of `rows` inputs "
             "meets each of `registers` registers of weights.",
             works_like(_per_load, (6, 4), (1, 1), (4, 2)),
             "every input and every register is loaded once, every pair of them is a product",
             lambda rows, registers: rows * registers / (rows + registers)),
    Question("Write `rows(bits, bandwidth, peak)`: from how many rows of x on arithmetic is the limit.",
             works_like(ridge_rows, (2, 50e9, 1000e9), (1.6, 50e9, 1000e9), (16, 40e9, 200e9)),
             "(RF.2) must equal peak / bandwidth",
             lambda bits, bandwidth, peak: peak / bandwidth * bits / 16),
    Question("One row of x, both at the speed of memory: how many times as fast as float16 weights are those "
             "of 1.6 bits?", number(intensity(1, 1.6) / intensity(1, 16), 1e-3),
             "the time is that of the bytes, and of operations there are as many", 10),
]
