"""python -m bitnet_ref.bench ptx --kernel coalesced --trace --warp 0 --steps 40
python -m bitnet_ref.bench ptx --kernel naive --counts

A CUDA kernel in slow motion, without a card: the interpreter of PTX runs it on its example, and shows a warp
executing (which of its 32 lanes, what they compute) or counts what it does to memory.
Read after: bench/gate. Read next: bench/torch_products.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.bench.examples import RUNGS, Launch, kernels, launch_of, run, wrong
from bitnet_ref.bench.page import put
from bitnet_ref.checks import check, lookup
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, run_command
from bitnet_ref.kernels.ptx.driver import Driver
from bitnet_ref.kernels.ptx.machine import Line, Run
from bitnet_ref.kernels.ptx.memory import GLOBAL
from bitnet_ref.kernels.ptx.module import Register
from bitnet_ref.kernels.ptx.values import DTYPE

SHOWN = (0, 1, 2, 31)            # lanes whose values are shown
WIDE = 58                        # letters of an instruction
PAGE = "docs/ptx.md"


class Watch:
    """What one warp executes, as lines of text; at most `steps` of them."""

    def __init__(self, warp: int, steps: int) -> None:
        self.warp, self.steps = warp, steps
        self.rows: list[str] = []

    def __call__(self, run: Run, line: Line, pc: int, lanes: Any) -> None:
        """Note an instruction, if the warp takes part in it."""
        if len(self.rows) >= self.steps:
            return
        ids = run.ids[lanes]
        number = (run.blocks[run.block[ids]] * run.padded + ids % run.padded) // 32
        mine = ids[number == self.warp]
        if len(mine):
            here = np.zeros(32, bool)
            here[mine % 32] = True
            values = shown(run, line, mine[0] // 32 * 32, here)
            self.rows.append(f"{line.instruction.line:5}  {''.join('#' if on else '.' for on in here)}  "
                             f"{plain(line)[:WIDE]:{WIDE}}  {values}".rstrip())


def plain(line: Line) -> str:
    """An instruction without the prefix that compilers give to the names of parameters."""
    return re.sub(r"_ZN[\w$]*?_(param_\d+)", r"\1", line.instruction.text)


def shown(run: Run, line: Line, first: int, here: np.ndarray) -> str:
    """What a few lanes hold after an instruction in the register it writes, or in what it stores."""
    i = line.instruction
    operand = i.operands[1 if i.op[0] == "st" else 0] if i.operands else None
    while isinstance(operand, tuple):
        operand = operand[0]
    if not isinstance(operand, Register):
        return ""
    register = Register(operand.name)
    slots = {dtype: slot for (o, dtype), slot in run.program.slots.numbers.items() if o == register}
    kind = "s32" if i.type == "b32" else i.type
    slot = slots.get(np.dtype(DTYPE[kind]), next(iter(slots.values())))
    texts = [number(run.v[slot][first + lane]) if here[lane] else "" for lane in SHOWN]
    return "  ".join(f"{text:>10}" for text in texts)


def number(value: Any) -> str:
    """A value in at most ten characters; addresses of global memory by their offset, @1f00."""
    if isinstance(value, np.floating):
        return f"{value:.4g}"
    if isinstance(value, np.bool_):
        return "yes" if value else "no"
    if abs(int(value)) < 10 ** 8:
        return str(value)
    return f"@{int(value) - GLOBAL:x}" if value >= GLOBAL else f"{int(value) % 2 ** 32:#x}"


def traced(name: str, warp: int = 0, steps: int = 40) -> list[str]:
    """The lines of a trace of kernel `name` on its example. Raises CheckError for an unknown warp."""
    launch, driver = launch_of(name), Driver()
    watch = Watch(warp, steps)
    driver.machine.trace = watch
    said, _ = executed(name, launch, driver)
    check(bool(watch.rows), "--warp must be one of the launch", warp, "use a smaller number")
    lanes = "".join(str(lane % 10) for lane in range(32))
    values = "  ".join(f"{f'lane {lane}':>10}" for lane in SHOWN)
    return [f"{name}, warp {warp}, its first {len(watch.rows)} instructions ({said})",
            f" line  {lanes}  {'instruction':{WIDE}}  {values}", *watch.rows]


def counted(name: str) -> list[str]:
    """The lines of a table of what kernel `name` does on its example."""
    launch, driver = launch_of(name), Driver()
    driver.machine.counting = True
    said, blocks = executed(name, launch, driver)
    c = driver.machine.counts
    rows = [("instructions of threads", f"{c.total:,}")]
    N, K = (launch.given.get(letter) for letter in "NK")
    if N and K:
        rows.append(("  for each of N x K weights", f"{c.total / (N * K):.2f}"))
    rows += [(f"  {kind}", f"{n:,}") for kind, n in c.instructions.most_common(12) if n]
    rows += [(what, f"{n:,}") for what, n in sorted(c.traffic.items())]
    for what in ("load", "store"):
        if c.traffic[f"global {what} requests"]:
            share = c.traffic[f"global {what} bytes"] / (32 * c.traffic[f"global {what} sectors"])
            rows.append((f"global {what}: bytes asked for, of those moved", f"{share:.0%}"))
    width = max(len(what) for what, _ in rows)
    return [f"{name}, {blocks} blocks ({said})", *(f"{what:{width}}  {value:>14}" for what, value in rows)]


def executed(name: str, launch: Launch, driver: Driver) -> tuple[str, int]:
    """Run kernel `name`: what to say of its results, and its blocks. Raises CheckError without numba-cuda."""
    found = {**kernels(), **kernels(RUNGS)}
    from bitnet_ref.kernels.numba_cuda.memory import Device
    said = wrong(launch, run(Device(driver), lookup(found, name, "kernel"), launch))
    return said or "right", int(np.prod(launch.grid))


def page_block() -> str:
    """The traced and counted examples of docs/ptx.md."""
    def block(lines: list[str]) -> str:
        return "```\n" + "\n".join(lines) + "\n```"
    trace = traced("coalesced", 0, 400)
    start = next(n for n, row in enumerate(trace) if "shfl" in row)
    sums = [row for row in trace[start:] if " mov." not in row]
    return "\n\n".join([block([*trace[:2], *sums]), "What a kernel of a thread to a row does:",
                        block(counted("naive")), "And one of a warp to a row:", block(counted("coalesced"))])


def main(argv: list[str]) -> int:
    """Parse, run, print."""
    parser = Parser("python -m bitnet_ref.bench ptx", __doc__)
    parser.add_argument("--kernel", metavar="NAME", help="which kernel, or rung of the ladder")
    parser.add_argument("--trace", action="store_true", help="show a warp executing")
    parser.add_argument("--counts", action="store_true", help="count instructions and traffic")
    parser.add_argument("--warp", type=int, default=0, help="which warp of the launch (default: 0)")
    parser.add_argument("--steps", type=int, default=40, help="how many of its instructions (default: 40)")
    parser.add_argument("--root", metavar="DIR", help="write the examples into docs/ptx.md of this clone")
    args = parser.parse_args(argv)
    check(args.steps > 0, "--steps must be greater than 0", args.steps, "use 1 or more")
    check(bool(args.kernel or args.root), "bench ptx needs a kernel", "none", "give --kernel NAME")
    if args.root:
        put(Path(args.root) / PAGE, page_block(), "bench ptx --root .")
        return DONE
    lines = traced(args.kernel, args.warp, args.steps) if args.trace else []
    lines += counted(args.kernel) if args.counts or not args.trace else []
    print("\n".join(lines))
    return DONE if "(right)" in lines[0] else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
