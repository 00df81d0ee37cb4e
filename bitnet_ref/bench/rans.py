"""python -m bitnet_ref.bench.rans
python -m bitnet_ref.bench.rans --root .

What rans makes of random trits of several histograms, beside their entropy, i2, b3, gzip and xz; and how fast
the compiled code packs and unpacks them, on one thread. With --root the table goes into docs/formats/rans.md.
Read after: bench/readme. Read next: bench/full_size.
"""

import gzip
import lzma
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitnet_ref.bench.page import put
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.kernels.numba_cpu.rans import pack_rans, unpack_rans
from bitnet_ref.pack import b3, i2
from bitnet_ref.pack.rans import entropy, histogram
from bitnet_ref.train.summary import machine

PAGE = "docs/formats/rans.md"
SHAPE, SMALL = (6912, 2560), (640, 256)
ZEROS = (1 / 3, 0.42, 0.6, 0.9)      # shares; the rest is -1 and +1 in halves
ROUNDS = 7


class Row(NamedTuple):
    """Of one histogram: bits per trit by name, and trits per second."""

    zeros: float
    bits: dict[str, float]
    packed: float
    unpacked: float


def measured(zeros: float, shape: tuple[int, int], rounds: int = ROUNDS) -> Row:
    """Random trits, packed by everything; times are the best of the rounds."""
    p = (1 - zeros) / 2
    rng = np.random.default_rng(0)
    w_q = rng.choice(np.array([-1, 0, 1], np.int8), shape, p=[p, zeros, p])
    packed, two = pack_rans(w_q), i2.pack_i2(w_q)
    n_bytes = {"rans": packed.size, "b3": b3.pack_b3(w_q).size, "i2": two.size,
               "gzip -9": len(gzip.compress(two.tobytes(), 9)),
               "xz -9": len(lzma.compress(two.tobytes(), preset=9))}
    bits = {"entropy": entropy(histogram(w_q)), **{name: 8 * n / w_q.size for name, n in n_bytes.items()}}
    rates = (w_q.size / seconds(run, rounds)
             for run in (lambda: pack_rans(w_q), lambda: unpack_rans(packed, shape)))
    return Row(zeros, bits, *rates)


def seconds(run: Callable[[], object], rounds: int) -> float:
    """The least that a call takes of its own thread: what others do with the processor does not count."""
    found = []
    for _ in range(rounds + 1):                            # the first may compile
        began = time.thread_time()
        run()
        found.append(time.thread_time() - began)
    return max(min(found[1:]), 1e-9)                       # a coarse clock may not have moved


def table(rows: list[Row]) -> str:
    """The rows in Markdown, and the machine."""
    names = list(rows[0].bits)
    lines = [f"| zeros | {' | '.join(names)} | above entropy | packs, M trits/s | unpacks, M trits/s |",
             "|" + "---|" * (len(names) + 4)]
    for r in rows:
        over = r.bits["rans"] / r.bits["entropy"] - 1
        figures = " | ".join(f"{r.bits[name]:.4f}" for name in names)
        lines.append(f"| {r.zeros:.0%} | {figures} | {over:.4%} | {r.packed / 1e6:.0f} | "
                     f"{r.unpacked / 1e6:.0f} |")
    m = machine()
    about = (f"Bits per trit. {m['processor']}, one thread, its own time, best of {ROUNDS}; "
             f"Python {m['python']}, NumPy {m['numpy']}.")
    return "\n".join([*lines, "", about])


def main(argv: list[str]) -> int:
    """Parse, measure, print."""
    parser = Parser("python -m bitnet_ref.bench.rans", __doc__)
    parser.add_argument("--quick", action="store_true", help="a small matrix, to see that it works")
    parser.add_argument("--root", metavar="DIR", help=f"also put the table into {PAGE} of the clone there")
    args = parser.parse_args(argv)
    block = table([measured(zeros, SMALL if args.quick else SHAPE) for zeros in ZEROS])
    print(block)
    if args.root:
        put(Path(args.root) / PAGE, block, "bench.rans")
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
