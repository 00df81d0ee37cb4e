"""python -m bitnet_ref.bench.conform [--seeds 3] [--pairs 50]

Does `conform` name the right line? Every fault of the catalogue is planted in two ports that were written
apart from bitnet_ref, alone and in random pairs; the page docs/benchmarks/conform.md and the example in the
README are written from what conform says of them. Run it in a clone.
Read after: conform/__main__. Read next: walk.
"""

import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench.page import put
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.conform import report
from bitnet_ref.conform.export import export, read_list
from bitnet_ref.conform.faults import catalogue
from bitnet_ref.conform.graph import graph, leaves
from bitnet_ref.conform.homework import homework
from bitnet_ref.conform.read import Dump

PORTS = {"first": Path("tests/conform/mini_port.py"), "second": Path("tests/conform/second_port.py")}
COMMAND = "bench.conform"
EXAMPLE = ("code_map_zero_plus_minus", "order_consecutive")      # the public port of facts: both at once
IN_I2S = "order_row_blocks"                                # the right order in Hugging Face files
Port = Callable[..., dict[str, tuple[tuple[int, ...], Any]]]


class Trial(NamedTuple):
    """A port with faults before the judge. `ranked`: every name in the report, the causes first.

    A pair is one name, "a + b". `found`: each fault in a cause.
    """

    port: str
    planted: tuple[str, ...]
    seed: int
    ranked: tuple[str, ...]
    found: frozenset[str]
    worst: float
    seconds: float


def load_port(path: Path) -> Port:
    """`run(folder, faults)` of the port in `path`. Raises CheckError if it is not there."""
    check(path.is_file(), "the port must be a file", path, "run this in a clone")
    spec = importlib.util.spec_from_file_location("mini_port", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run


def judged(port: Port, folder: Path, planted: tuple[str, ...]) -> report.Report:
    """What conform says of the port with these faults, run on the homework in `folder`."""
    seed, layout = read_list(folder)
    tensors = {name: np.asarray(values, np.float64).reshape(shape)
               for name, (shape, values) in port(folder, frozenset(planted)).items()}
    return report.judge_dump(graph(layout), leaves(homework(seed), layout), Dump(tensors, [], 1))


def trial(port: Port, folder: Path, planted: tuple[str, ...], name: str = "first") -> Trial:
    """One row of the table. `name`: of the port."""
    seed, _ = read_list(folder)
    began = time.perf_counter()
    found = judged(port, folder, planted)
    seconds = time.perf_counter() - began
    causes = [c.suspect.name for c in found.causes]
    others = [n for c in found.causes for n in (*c.like, *(name for name, _ in c.next))]
    return Trial(name, planted, seed, tuple(dict.fromkeys(causes + others)),
                 frozenset(f.name for c in found.causes for f in c.suspect.faults),
                 max((v.share for v in found.verdicts), default=0.0), seconds)


def singles(port: Port, folders: dict[str, Path], name: str = "first") -> Iterator[Trial]:
    """Every fault by itself, in files in which it is one."""
    for fault in catalogue():
        yield trial(port, folders["i2s" if fault.name == IN_I2S else "hf"], (fault.name,), name)


def pairs(port: Port, folder: Path, count: int, seed: int, name: str = "first") -> Iterator[Trial]:
    """Random pairs of faults that do not contradict each other (no slot in common)."""
    able = [f for f in catalogue() if f.name != IN_I2S]
    apart = [(a.name, b.name) for a, b in combinations(able, 2) if not a.slots & b.slots]
    for planted in random.Random(seed).sample(apart, count):
        yield trial(port, folder, planted, name)


def homeworks(root: Path, seed: int) -> dict[str, Path]:
    """The two exports that the trials need."""
    folders = {kind: root / f"{kind}-{seed}" for kind in ("hf", "i2s")}
    for kind, folder in folders.items():
        export(folder, kind, seed=seed)
    return folders


def page(single: list[Trial], paired: list[Trial], seeds: int) -> str:
    """The block of docs/benchmarks/conform.md."""
    lines = []
    for port in PORTS:
        first = [t.ranked[:1] == t.planted for t in single if t.port == port]
        three = [t.planted[0] in t.ranked[:3] for t in single if t.port == port]
        both = [set(t.planted) <= t.found for t in paired if t.port == port]
        lines.append(f"- The {port} port. One fault, {seeds} seeds: named first in {sum(first)} of "
                     f"{len(first)} trials, among the first three in {sum(three)}. Two faults at once: both "
                     f"named in {sum(both)} of {len(both)} random pairs.")
    lines += ["- The smallest effect of any fault on its worst tensor: "
              f"{min(t.worst for t in single):.3g} tolerances.", ""]
    lines += ["| fault | named first | worst tensor, in tolerances |", "|---|---|---|"]
    for fault in catalogue():
        own = [t for t in single if t.planted == (fault.name,)]
        named = sum(t.ranked[:1] == t.planted for t in own)
        lines.append(f"| [{fault.name}](../faults.md#{fault.name}) | {named} of {len(own)} | "
                     f"{min(t.worst for t in own):.2g} |")
    missed = [" + ".join(t.planted) + f" (named: {', '.join(sorted(t.found)) or 'nothing'})"
              for t in paired if not set(t.planted) <= t.found]
    return "\n".join(lines) + ("\n\nPairs of which one was not named: " + "; ".join(missed) if missed else "")


def example(port: Port, folder: Path) -> str:
    """The README's block: the wrong lines and the cause, as printed."""
    said = report.text(judged(port, folder, EXAMPLE)).splitlines()
    bad = [line for line in said if line.startswith("BAD")]
    tail = said[next(i for i, line in enumerate(said) if line.startswith("1. ")):]
    return "\n".join(["```", *bad[:3], f"... and {len(bad) - 3} more", "", *tail, "```"])


def main(argv: list[str]) -> int:
    """Parse, try, write."""
    parser = Parser("python -m bitnet_ref.bench.conform", __doc__)
    parser.add_argument("--root", default=".", metavar="DIR", help="the clone to write into (default: here)")
    parser.add_argument("--seeds", type=int, default=3, help="homeworks for every fault (default: 3)")
    parser.add_argument("--pairs", type=int, default=50, help="random pairs for each port (default: 50)")
    args = parser.parse_args(argv)
    root = Path(args.root)
    ports = {name: load_port(root / path) for name, path in PORTS.items()}
    single: list[Trial] = []
    paired: list[Trial] = []
    with tempfile.TemporaryDirectory() as temporary, np.errstate(all="ignore"):
        for seed in range(args.seeds):
            folders = homeworks(Path(temporary), seed)
            for name, port in ports.items():
                single += singles(port, folders, name)
            print(f"seed {seed}: {len(single)} trials", file=sys.stderr)
        folder = Path(temporary) / "hf-0"
        for i, (name, port) in enumerate(ports.items()):
            paired += pairs(port, folder, args.pairs, seed=i, name=name)
        put(root / "README.md", example(ports["first"], folder), COMMAND)
    put(root / "docs" / "benchmarks" / "conform.md", page(single, paired, args.seeds), COMMAND)
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
