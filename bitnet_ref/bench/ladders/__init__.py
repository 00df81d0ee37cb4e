"""Ladders: how a product becomes fast, one idea to a rung. They teach; the winners ship in kernels/.

A rung is the whole kernel again, so that two rungs can be read side by side, and is verified against the
reference before it is timed. Rungs carry the name of their idea, and no numbers: they do not get faster in
the order in which they are understood. docs/ladders.md tells what to see in each.
Read after: bench/roofline. Read next: bench/ladders/layouts.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.bench import timing
from bitnet_ref.bench.roofline import Machine, line, measure
from bitnet_ref.checks import check

HEAD = "| rung | time | rate | of the limit | the idea |\n|---|---|---|---|---|"
PAGE = "docs/ladders.md"
ROUNDS = 15                  # turns of each rung


class Step(NamedTuple):
    """A verified rung, ready to be timed. `run()` does `work`, in bytes or operations; the machine can do
    `limit` of them a second (0: not known)."""

    name: str
    run: Callable[[], object]
    work: float
    limit: float
    idea: str


def idea(run: Any) -> str:
    """The first sentence of a function's docstring."""
    return (run.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def climb(steps: list[Step], unit: str, quick: bool = False) -> str:
    """Time the rungs by turns: a table in Markdown. `unit`: of the rates, in thousands of millions."""
    middle = timing.median(timing.alternate({s.name: s.run for s in steps}, 3 if quick else ROUNDS))
    lines = []
    for s in steps:
        rate = s.work / middle[s.name]
        lines.append(f"| `{s.name}` | {duration(middle[s.name])} | {figure(rate / 1e9)} {unit} | "
                     f"{f'{rate / s.limit:.0%}' if s.limit else 'not known'} | {s.idea} |")
    return "\n".join([HEAD, *lines])


def duration(seconds: float) -> str:
    """Three digits, in ns, us or ms."""
    unit, many = ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6) if seconds >= 1e-6 else ("ns", 1e9)
    return f"{figure(seconds * many)} {unit}"


def figure(value: float) -> str:
    """Three digits, and those before the point."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def options(parser: argparse.ArgumentParser) -> None:
    """The flags of every ladder."""
    parser.add_argument("--threads", type=int, default=timing.available(), metavar="COUNT",
                        help="threads of the rungs that use more than one (default: all)")
    parser.add_argument("--quick", action="store_true", help="a look: fewer rounds, fewer bytes")
    parser.add_argument("--root", metavar="DIR", help="also put the tables into docs/ladders.md there")


def report(args: argparse.Namespace, command: str, tables: Callable[[Machine, Machine], list[str]]) -> str:
    """What `tables(one, all_)` says of this machine with one thread and with all, under its limits.

    With --root it goes into the page too; raises CheckError if that is not there.
    """
    page = Path(args.root or "") / PAGE
    check(not args.root or page.is_file(), "--root must be a clone", f"no {page}", "name one")
    all_ = measure(args.threads)
    one = measure(1) if args.threads > 1 else all_
    with timing.threads(args.threads):
        block = "\n\n".join([*map(line, dict.fromkeys((one, all_))), *tables(one, all_)])
    if args.root:
        from bitnet_ref.bench.page import put
        put(page, block, command)
    return block
