"""python -m bitnet_ref.bench.ladders.bitlinear_cuda [--n 640 --k 2560 --m 1 8 128] [--root .]

A ternary matrix times int8 vectors on a card, from a loop over bits to tensor cores. Without a card, with
BITNET_REF_CUDA=interpreter, the very code that a card would run is interpreted and counted: what it asks of
memory, and what that costs. On a card the rungs are timed. Every rung is compared with the reference first.
docs/ladders-cuda.md tells what to see in each.
Read after: bench/ladders/vector_cuda. Read next: bench/random_model.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bitnet_ref.bench import card, gate
from bitnet_ref.bench.examples import RUNGS, SHIPPED, Launch, kernels, launch_of, run, wrong
from bitnet_ref.bench.ladders import duration, figure, idea
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command, text

if TYPE_CHECKING:
    from bitnet_ref.kernels.numba_cuda.launch import Kernel
    from bitnet_ref.kernels.numba_cuda.memory import Device

COMMAND = "bench.ladders.bitlinear_cuda"
PAGE = "docs/ladders-cuda.md"
FEW = 8                      # rows that a tensor core takes at once, and the most of a vector product
LARGEST = 1 << 32            # weights: their trits, a byte each, must fit on the host
STEP = 640                   # of K: a multiple of every layout's
COUNTED = ("| rung | registers | instructions per weight | sectors per request | fetched, of what is needed "
           "| wavefronts over ideal | the idea |\n|---|---|---|---|---|---|---|")
TIMED = "| rung | time | rate | of the limit | the idea |\n|---|---|---|---|---|"


class Rung(NamedTuple):
    """A kernel of the ladder, or one that `ships`. `weights`: its parameter that holds them; `idea`, where
    its docstring says what it computes and not why."""

    weights: str = "w"
    ships: bool = False
    idea: str = ""


def _shipped(why: str) -> Rung:
    return Rung("words", True, why)


VECTOR = {
    "naive": Rung(), "coalesced": Rung(), "shared": Rung(), "vector_dp4a": Rung(), "tensor_core": Rung(),
    "gemv_i2": _shipped("Latency: four tiles are under way before the first is used, and the sums lie where "
                        "no two lanes meet in a bank"),
    "gemv_b3": _shipped("1.6 bits: five weights to a byte, taken apart by multiplications by three")}
MATRIX = {
    "gemm_i2": _shipped("Prefill: activations are copied two stages ahead of the tensor cores, into places "
                        "where no two lanes meet in a bank"),
    "gemm_hopper": _shipped("Four warps as one, which read activations from shared memory by themselves; one "
                            "copy brings a whole tile, and a barrier counts its bytes")}


def operands(name: str, rung: Rung, n: int, k: int, m: int) -> tuple["Kernel", Launch]:
    """The kernel of a rung and its example of that size. K is rounded up to a multiple of STEP."""
    found = kernels(SHIPPED if rung.ships else RUNGS)
    return found[name], launch_of(name, M=m, N=n, K=-(-k // STEP) * STEP)


def verified(device: "Device", name: str, k: "Kernel", launch: Launch) -> None:
    """Run once. Raises CheckError unless the result is the reference's."""
    said = wrong(launch, run(device, k, launch))
    check(not said, f"{name} must agree with the reference", said, "do not use it")


class Count(NamedTuple):
    """What a rung does, counted. `fetched`: bytes, of those that are needed; `wavefronts`: of shared memory,
    over the ideal; 0 where it uses none."""

    instructions: float
    sectors: float
    fetched: float
    wavefronts: float


def count(device: "Device", name: str, rung: Rung, n: int, k: int, m: int) -> Count:
    """Run a rung on the interpreter: instructions for each weight, sectors for each request."""
    kernel, launch = operands(name, rung, n, k, m)
    machine = device.driver.machine
    machine.counting, machine.counts = True, type(machine.counts)()
    try:
        verified(device, name, kernel, launch)
    finally:
        machine.counting = False
    traffic, needed = machine.counts.traffic, launch.given[rung.weights].nbytes + m * k
    sectors, requests = traffic["global load sectors"], traffic["global load requests"]
    took, ideal = (sum(traffic[f"shared {what} {kind}"] for what in ("load", "store"))
                   for kind in ("wavefronts", "ideal"))
    fetched = sectors + traffic["global fetch sectors"]    # by bulk copies, which are no requests of a warp
    return Count(machine.counts.total / (n * k), sectors / max(requests, 1), 32 * fetched / needed,
                 took / ideal if ideal else 0.0)


def counted(device: "Device", name: str, rung: Rung, n: int, k: int, m: int) -> str:
    """A line of the table without a card."""
    c, (kernel, _) = count(device, name, rung, n, k, m), operands(name, rung, n, k, m)
    (verdict, *_) = gate.gate([kernel._replace(needs=kernel.needs if kernel.needs.endswith("a") else "90")])
    cells = [f"`{name}`", str(verdict.registers or "not known"), figure(c.instructions), f"{c.sectors:.1f}",
             f"{c.fetched:.1f} x", f"{c.wavefronts:.1f}" if c.wavefronts else "none",
             rung.idea or idea(kernel.function)]
    return f"| {' | '.join(cells)} |"


def timed(device: "Device", name: str, rung: Rung, n: int, k: int, m: int, limit: float) -> str:
    """A line of the table on a card. `limit`: bytes per second that copying reaches."""
    kernel, launch = operands(name, rung, n, k, m)
    verified(device, name, kernel, launch)
    took = card.seconds(device, card.ring(device, kernel, launch, rung.weights))
    weights = launch.given[rung.weights].nbytes
    rate, share = (f"{figure(weights / took / 1e9)} GB/s", f"{weights / took / limit:.0%}") if m <= FEW else (
        f"{figure(2 * n * k * m / took / 1e12)} Top/s", "")
    return f"| `{name}` | {duration(took)} | {rate} | {share} | {rung.idea or idea(kernel.function)} |"


def ladder(device: "Device", n: int, k: int, m: int) -> str:
    """The rungs for m rows of x: counted on the interpreter, timed on a card."""
    rungs, on_card = VECTOR if m <= FEW else MATRIX, not card.is_interpreter(device)
    limit = card.copy_rate(device) if on_card else 0.0
    lines = [timed(device, name, rung, n, k, m, limit) if on_card else counted(device, name, rung, n, k, m)
             for name, rung in rungs.items()]
    return "\n".join([f"N = {n}, K = {k}, M = {m}:\n", TIMED if on_card else COUNTED, *lines])


def report(device: "Device", n: int, k: int, rows: Iterable[int]) -> str:
    """The ladders, under a line that says where they were climbed."""
    where = (f"{device.name}, compute capability {device.capability[0]}.{device.capability[1]}; "
             + ("counted, not timed" if card.is_interpreter(device) else "weights out of cache"))
    return "\n\n".join([where + ".", *(ladder(device, n, k, m) for m in rows)])


def main(argv: list[str]) -> int:
    """Parse, climb, print."""
    parser = Parser(f"python -m bitnet_ref.{COMMAND}", __doc__)
    parser.add_argument("--n", type=int, default=640, metavar="N", help="outputs (default: 640)")
    parser.add_argument("--k", type=int, default=2560, metavar="K", help="inputs (default: 2560)")
    parser.add_argument("--m", type=int, nargs="+", default=[1, 8, 128], metavar="M",
                        help="rows of x, a ladder for each number (default: 1 8 128)")
    parser.add_argument("--root", type=text, metavar="DIR", help=f"also put the tables into {PAGE} there")
    args = parser.parse_args(argv)
    check(min(args.n, args.k, *args.m) > 0, "--n, --k and --m must be positive", [args.n, args.k, *args.m],
          "give at least 1")
    check(args.n * args.k <= LARGEST, f"--n times --k must be at most {LARGEST}", args.n * args.k,
          "take a smaller matrix")
    page = Path(args.root or "") / PAGE
    check(not args.root or page.is_file(), "--root must be a clone", f"no {page}", "name one")
    kernels()                                              # says what is missing before a driver is asked for
    from bitnet_ref.kernels.numba_cuda.memory import device
    block = report(device(), args.n, args.k, args.m)
    print(block)
    if args.root:
        from bitnet_ref.bench.page import put
        put(page, block, COMMAND)
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
