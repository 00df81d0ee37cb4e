"""The kernels of notebook 07, run by the interpreter of PTX while a reader looks on, and its questions.

What a warp asks of memory, kernels with a line of their PTX changed, and what has been measured on a card.
All of it is the interpreter's, also on a machine that has a card: it sees what a card lets pass in silence.
Read after: walk/cpu_kernels. Read next: walk/evaluate.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitnet_ref.bench.examples import RUNGS, SHIPPED, kernels, launch_of, placed, run, wrong
from bitnet_ref.bench.ladders.bitlinear_cuda import VECTOR, Count, count
from bitnet_ref.bench.ptx import WIDE, traced
from bitnet_ref.checks import check, lookup
from bitnet_ref.kernels.ptx.counts import SECTOR, Counts
from bitnet_ref.kernels.ptx.driver import Driver
from bitnet_ref.kernels.ptx.faults import PtxError
from bitnet_ref.kernels.ptx.memory import GLOBAL
from bitnet_ref.walk.puzzle import Question, choice, number, works_like
from bitnet_ref.walk.show import Lines

LANES, STEPS = 32, 2000
LETTERS = 30                                         # of an instruction: what it does, and to which register
ISSUED, DELIVERED = 132 * 128 * 1.98e9, 4.8e12       # instructions and bytes a second: an H200's data sheet
RECORD = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "cuda.md"


class Request(NamedTuple):
    """A load by the lanes of a warp: `n_bytes` for each lane, from `offsets` int64 (32,) of an array on."""

    array: str
    offsets: np.ndarray
    n_bytes: int

    @property
    def sectors(self) -> int:
        """Of 32 bytes, that must be fetched for it."""
        last = self.offsets + self.n_bytes - 1
        return len(np.unique(np.concatenate([self.offsets // SECTOR, last // SECTOR])))


class Loads(Counts):
    """Counts that also keep what the first warp loads from global memory: offsets, and bytes for a lane."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[np.ndarray, int]] = []

    def global_(self, at: np.ndarray, n: int, ids: np.ndarray, what: str) -> None:
        """As Counts, and kept."""
        super().global_(at, n, ids, what)
        if what == "load" and (ids < LANES).sum() == LANES:
            self.kept.append((at[ids < LANES].astype(np.int64), n))


def requests(name: str, N: int = 64, K: int = 4096) -> list[Request]:
    """What the first warp of a rung loads from its arrays, in order, for one row of x.

    Raises CheckError for an unknown rung, and without numba-cuda.

    >>> requests("coalesced")[0].sectors                     # needs numba_cuda
    1
    """
    from bitnet_ref.kernels.numba_cuda.memory import Device

    rung = lookup(VECTOR, name, "rung")
    k, launch = kernels(SHIPPED if rung.ships else RUNGS)[name], launch_of(name, M=1, N=N, K=K)
    device = Device(Driver())
    device.driver.machine.counting, device.driver.machine.counts = True, Loads()
    arrays = placed(device, k, launch)
    device.launch(k, launch.grid, *arrays.values(), shared=launch.shared)
    found = []
    for at, n in device.driver.machine.counts.kept:
        for array, a in arrays.items():
            first = at.min() - (getattr(a, "address", 0) - GLOBAL)
            if 0 <= first < getattr(a, "nbytes", 0):
                found.append(Request(array, at - at.min() + first, n))
    return found


def counted(N: int = 64, K: int = 2560, M: int = 1) -> dict[str, Count]:
    """{rung: what it does for each weight}, of the ladder for a few rows.

    Raises CheckError without numba-cuda.

    >>> found = counted(K=640)                               # needs numba_cuda
    >>> found["shared"].fetched < found["naive"].fetched
    True
    """
    from bitnet_ref.kernels.numba_cuda.memory import Device

    kernels()                                              # says what is missing
    device = Device(Driver())
    return {name: count(device, name, rung, N, K, M) for name, rung in VECTOR.items()}


def with_edit(name: str, pattern: str, new: str) -> str:
    """What is said of a rung's example after the first match of `pattern` in its PTX became `new`.

    "right", which numbers differ, or the interpreter's error. Raises CheckError where nothing matches.

    >>> with_edit("shared", "bar.sync", "bar.sync")          # needs numba_cuda
    'right'
    """
    from bitnet_ref.kernels.numba_cuda.launch import ptx, target
    from bitnet_ref.kernels.numba_cuda.memory import Device

    k, device, launch = kernels(RUNGS)[name], Device(Driver()), launch_of(name)
    text, n = re.subn(pattern, new, ptx(k, target(k, device.capability)), count=1)
    check(n == 1, "the pattern must match a line of the PTX", pattern, f"look at it: `text({name!r})`")
    module = device.do("cuModuleLoadData", text.encode() + b"\0")
    entry = text.split(".entry", 1)[1].split("(", 1)[0].strip()
    device.functions[k] = device.do("cuModuleGetFunction", module, entry.encode())
    try:
        return wrong(launch, run(device, k, launch)) or "right"
    except PtxError as e:
        return str(e)


def text(name: str) -> str:
    """The PTX of a rung, as Numba makes it for compute capability 9.0. Raises CheckError without numba-cuda.

    >>> "bar.sync" in text("shared")                         # needs numba_cuda
    True
    """
    from bitnet_ref.kernels.numba_cuda.launch import ptx
    return ptx(lookup(kernels(RUNGS), name, "rung"))


def warp_from(name: str, first: str, steps: int = 25) -> Lines:
    """What the first warp of a rung executes, from the first instruction on that begins with `first`.

    Lanes and what they hold stand first, where one sees them; long instructions are cut.

    >>> lines = str(warp_from("coalesced", "shfl", 3)).splitlines()      # needs numba_cuda
    >>> len(lines), "shfl" in lines[2]
    (5, True)
    """
    _, columns, *rows = traced(name, 0, STEPS)
    rows = [row for row in rows if " mov." not in row]     # constants, which are made along the way
    start = next((i for i, row in enumerate(rows) if f"  {first}" in row), None)
    check(start is not None, "the warp must execute such an instruction", first, "look at `text`")
    at, shown = columns.index("instruction"), [columns, *rows[start:][:steps]]
    cut = [text if len(text) <= LETTERS else f"{text[:LETTERS - 3]}..."
           for text in (row[at:at + WIDE].rstrip() for row in shown)]
    held = [row[at + WIDE:].ljust(len(columns) - at - WIDE) for row in shown]
    lines = [f"{row[:at - 2]}{values}  {text}" for row, values, text in zip(shown, held, cut)]
    return Lines("\n".join([f"{name}, warp 0", *lines]))


def on_a_card() -> str:
    """What docs/benchmarks/cuda.md says has been measured: its first generated line.

    >>> len(on_a_card()) > 0
    True
    """
    if not RECORD.is_file():
        return "a clone has the page docs/benchmarks/cuda.md"
    return RECORD.read_text(encoding="utf-8").split("<!-- generated", 1)[1].split("\n", 2)[1]


def _sectors(offsets: np.ndarray) -> int:
    return Request("", np.asarray(offsets), 1).sectors


def _turns(words: np.ndarray) -> int:
    found = Counts()
    found.shared(4 * np.asarray(words), 4, np.arange(LANES), "load")
    return found.traffic["shared load wavefronts"]


def _partner(lane: int, distance: int) -> int:
    return lane ^ distance


LANE = np.arange(LANES)
QUESTIONS = [
    Question("Write `partner(lane, distance)`: with whom a lane exchanges in `shfl.bfly`, for a distance of "
             "16, 8, 4, 2 or 1.",
             works_like(_partner, (5, 8), (13, 8), (31, 1), (0, 16)),
             "whoever gives to you takes from you: one bit of the lane's number is turned",
             lambda lane, distance: lane ^ distance),
    Question("Write `sectors(offsets)`: how many sectors of 32 bytes a request touches; `offsets` int64 "
             "(32,), a byte to a lane.",
             works_like(_sectors, (LANE,), (LANE * 640,), (LANE * 4,), (LANE + 16,), (LANE * 0,)),
             "byte b lies in sector b // 32; count the different ones",
             lambda offsets: len({*(offsets // 32)})),
    Question("A kernel has lost a barrier, and a card gives the right sums a thousand times. Is that "
             "\"luck\", \"proof\" or \"slow\"?",
             choice("luck", {"proof": "Nothing orders the two warps; they happened to come in order",
                             "slow": "It is the barrier that costs time"}),
             "who makes one warp wait for the other?", "luck"),
    Question("Write `turns(words)`: how many wavefronts a request to shared memory takes; `words` int64 "
             "(32,), a word of 4 bytes to a lane.",
             works_like(_turns, (LANE,), (LANE * 2,), (LANE * 4,), (LANE * 0,), (LANE * 33,),
                        (LANE // 2 * 32,)),
             "word i lies in bank i % 32; a bank serves one word at a time, to all lanes that want it",
             lambda words: max(len({*words[words % 32 == bank]}) for bank in range(32))),
    Question("By the data sheet an H200 issues 33.5e12 instructions of threads a second and its memory gives "
             "4.8e12 bytes. How many instructions has it for a weight of 2 bits, while that comes?",
             number(ISSUED / (4 * DELIVERED), 0.05),
             "a byte has four weights", ISSUED / (4 * DELIVERED)),
    Question("Memory answers after 0.5 microseconds and can deliver 4.8e12 bytes a second. How many "
             "megabytes (10^6 bytes) must be under way at any time?", number(DELIVERED * 0.5e-6 / 1e6, 0.01),
             "Little's law: what is inside is the rate times the time that each stays", 2.4),
]
