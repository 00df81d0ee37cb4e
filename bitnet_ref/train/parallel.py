"""Several processes train one model, each a whole replica of it: `mpiexec -n 4 python -m bitnet_ref.train`.

Micro-batch m is computed by rank m % size. The sum of the gradients is a fixed binary tree over the numbers
of the micro-batches, whoever computed them, so the number of ranks changes no bit of a run (docs/scaling.md).
Every rank then makes the same update; the first alone prints, logs, saves and validates.
Read after: train/lock. Read next: train/checkpoint.
"""

import os
import platform
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from bitnet_ref import layers
from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import TrainConfig

SIZES, RANKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
PIECE = 1 << 20              # elements of a message: what has come is added while a core's cache holds it
GRACE = 3.0                  # seconds in which the first rank says what is wrong with all
NAP = 0.01                   # seconds between two looks at whether all have come


class World:
    """The processes of a job. `comm`: an mpi4py communicator, or what acts like one; None: this one alone."""

    def __init__(self, comm: Any = None) -> None:
        self.comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()

    def meet(self) -> None:
        """Wait for all ranks, asleep: what they wait for may take minutes of the same cores."""
        if self.size > 1:
            met = self.comm.Ibarrier()
            while not met.Test():
                time.sleep(NAP)

    def in_turn(self, act: Callable[[], Any]) -> Any:
        """act() by the first rank, which may write, and then by all the others, who find it done."""
        if self.rank == 0:
            result = act()
            self.meet()
            return result
        self.meet()
        return act()

    def told(self, act: Callable[[], Any]) -> Any:
        """What act() returns (a few bytes) on the first rank, which alone calls it."""
        result = act() if self.rank == 0 else None
        self.meet()
        return result if self.size == 1 else self.comm.bcast(result)

    def added(self, values: np.ndarray) -> np.ndarray:
        """The sum over all ranks of a few float64; exact where only one rank's is not 0."""
        if self.size == 1:
            return values
        total = np.empty_like(values)
        self.comm.Allreduce(values, total)
        return total

    def any(self, holds: bool) -> bool:
        """Whether it holds on some rank: so that all of them do the same at the same step."""
        return bool(self.added(np.array([float(holds)]))[0])

    def require_equal(self, what: str, data: np.ndarray) -> None:
        """Raise CheckError, on every rank, unless all hold the same bytes."""
        if self.size == 1:
            return
        sums = np.zeros(self.size)
        sums[self.rank] = zlib.crc32(np.ascontiguousarray(data).data)
        sums = self.added(sums)
        odd = np.flatnonzero(sums != sums[0])
        check(not odd.size, f"all ranks must hold the same {what}",
              f"another checksum on rank {', '.join(map(str, odd[:8]))} than on rank 0",
              "give every node the same files, versions and kind of processor, and resume")

    def threads(self, given: int | None) -> int | None:
        """Threads of this rank: those given, else its processors, shared with ranks that have the same."""
        if given is not None or self.size == 1:
            return given
        linux = hasattr(os, "sched_getaffinity")
        processors = sorted(os.sched_getaffinity(0)) if linux else list(range(os.cpu_count() or 1))
        own = (platform.node(), processors)
        return max(1, len(processors) // self.comm.allgather(own).count(own))

    def stop_signals(self) -> tuple[int, ...]:
        """What asks training to save and end: Ctrl-C; of a job also what mpiexec sends on."""
        names = ("SIGINT",) if self.size == 1 else ("SIGINT", "SIGTERM", "SIGUSR1")
        return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


# ---- who we are ----

@cache
def here() -> World:
    """The job that this process was started in, alone unless mpiexec (or srun) says otherwise.

    Raises CheckError where it was started as one of several and cannot speak to the others.
    >>> here().rank, here().size                        # not started by mpiexec: alone
    (0, 1)
    """
    sizes = [os.environ[name] for name in SIZES if name in os.environ]
    if sizes[:1] == ["1"] or not (sizes or "PMIX_RANK" in os.environ):
        return World()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as e:               # RuntimeError: it finds no MPI library
        raise CheckError(f"a run started by mpiexec needs mpi4py; got {e}; in a clone, "
                         "pip install '.[mpi]', or start one process without mpiexec") from None
    world = World(MPI.COMM_WORLD)
    check(not sizes or int(sizes[0]) == world.size, "mpi4py must be built for the MPI whose mpiexec is used",
          f"{world.size} rank where mpiexec started {sizes[0]}", "use the mpiexec that came with it")
    return world


def join(cfg: TrainConfig) -> World:
    """The job that a run of `cfg` is trained by. Raises CheckError for more ranks than micro-batches.
    >>> join(TrainConfig(accumulate=1)).size
    1
    """
    world = here()
    check(world.size <= cfg.accumulate, "every rank must have a micro-batch in each step",
          f"{world.size} ranks and --accumulate {cfg.accumulate}",
          f"start {cfg.accumulate} at most, or a new run with --accumulate {world.size} or a multiple of it")
    return world


def as_one(run: Callable[[Callable[[list[str]], int]], int], main: Callable[[list[str]], int]) -> int:
    """run(main), an exit code, on every rank: the first speaks for all, and a rank that fails ends the job.

    What befalls the others too they leave to the first to say, for GRACE; what is wrong with one alone, it
    then says itself.
    >>> as_one(lambda main: main(["--steps", "5"]), main=lambda argv: 0)             # alone: main's exit code
    0
    """
    rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
    joined, spoken = [], (sys.stdout, sys.stderr)

    def guarded(argv: list[str]) -> int:
        if rank != "0":
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")      # noqa: SIM115
        try:
            joined.append(here())
            code = main(argv)
            if code == 0:
                here().meet()                              # the first may still be writing
            return code
        except BaseException as e:
            if not isinstance(e, SystemExit):              # of --help
                _speak(rank, spoken)
            raise

    try:
        code = run(guarded)
    except BaseException as e:
        if isinstance(e, SystemExit) or not joined or joined[0].size == 1:
            raise
        traceback.print_exc()                              # as Python would, and then the others must end
        code = 1
    if code and joined and joined[0].size > 1:
        _speak(rank, spoken)
        sys.stderr.flush()
        joined[0].comm.Abort(code)
    return code


def _speak(rank: str, spoken: tuple[Any, Any]) -> None:
    """Give a rank that was silent its voice, once the first has had time to end the job."""
    if (sys.stdout, sys.stderr) != spoken:
        time.sleep(GRACE)
        sys.stdout, sys.stderr = spoken
        sys.stderr.write(f"rank {rank}: ")


# ---- the sum ----

def tree_sum(n: int, fill: Callable[[int, int], None], buffer: Callable[[int], np.ndarray],
             world: World, ops: Any = layers) -> None:
    """Leave the sum of n vectors in buffer(0) of every rank, in the same order of additions for any of them.

    fill(m, i) writes vector m into buffer(i), a flat array of the backend `ops`, from whose memory it goes to
    other ranks by way of NumPy's; it is called for m % size == rank. The sum of vectors first,
    first + stride, ... is that of those with twice the stride from first, plus that of those with twice the
    stride from first + stride. Needs n >= size, and about log2(n / size) + 1 buffers.
    >>> sums = np.zeros((3, 1))                         # of five vectors: 1, 2, 3, 4, 5
    >>> tree_sum(5, lambda m, i: sums[i].fill(m + 1), lambda i: sums[i], World())
    >>> sums[0].tolist()
    [15.0]
    """
    rank, size, comm = world.rank, world.size, world.comm

    def node(first: int, stride: int, at: int) -> None:
        """The sum of first, first + stride, ... into buffer(at) of the rank that has `first`."""
        left, right = first % size, (first + stride) % size
        if first + stride >= n:
            if left == rank:
                fill(first, at)
            return
        node(first, 2 * stride, at)
        node(first + stride, 2 * stride, at + (left == rank))
        if left == right == rank:
            ops.add_(buffer(at), buffer(at + 1))
        elif left == rank:
            _changed(buffer(at), lambda flat: receive_add(flat, right, comm), ops)
        elif right == rank:
            for piece in pieces(ops.fetch(buffer(at))):
                comm.Send(piece, left)

    if size & (size - 1) == 0:
        node(rank, size, 0)                                # the subtree that is this rank's alone
        if size > 1:
            _changed(buffer(0), lambda flat: butterfly(flat, world), ops)
    else:
        node(0, 1, 0)
        _changed(buffer(0), lambda flat: [comm.Bcast(piece) for piece in pieces(flat)], ops)


def _changed(x: Any, act: Callable[[np.ndarray], Any], ops: Any) -> None:
    """act(x), where NumPy reads it."""
    flat = ops.fetch(x)
    act(flat)
    if flat is not x:
        ops.store_(x, flat)


def butterfly(flat: np.ndarray, world: World) -> None:
    """The upper levels of the tree between a power of two of ranks: flat (n,) becomes the sum everywhere.

    At each level a pair of ranks splits what they both have, and each adds one half: a + b is b + a to the
    last bit, so whoever adds, the tree is the same, and all ranks send at once. Then the sums go the way
    back. A rank sends 2 (size - 1) / size of the vector: as much as a ring, in 2 log2(size) turns.
    >>> from types import SimpleNamespace
    >>> twin = lambda sent, to, recvbuf, source: np.copyto(recvbuf, sent)        # a rank that has the same
    >>> pair = World(SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 2, Sendrecv=twin))
    >>> x = np.ones(4); butterfly(x, pair); x.tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    begin, end, stride, splits = 0, len(flat), world.size // 2, []
    while stride:
        middle = (begin + end) // 2
        low, high = flat[begin:middle], flat[middle:end]
        splits.append((stride, low, high))
        mine, theirs = (high, low) if world.rank & stride else (low, high)
        exchange_add(mine, theirs, world.rank ^ stride, world.comm)
        begin, end = (middle, end) if world.rank & stride else (begin, middle)
        stride //= 2
    for stride, low, high in reversed(splits):
        mine, theirs = (high, low) if world.rank & stride else (low, high)
        for i in range(0, max(len(mine), len(theirs)), PIECE):
            partner = world.rank ^ stride
            world.comm.Sendrecv(mine[i:i + PIECE], partner, recvbuf=theirs[i:i + PIECE], source=partner)


def exchange_add(mine: np.ndarray, theirs: np.ndarray, partner: int, comm: Any) -> None:
    """Send `theirs` (k,), and add what the partner has of `mine` (k or k +- 1,) to it.
    >>> from types import SimpleNamespace
    >>> comm = SimpleNamespace(Sendrecv=lambda sent, to, recvbuf, source: recvbuf.fill(10.0))    # what it has
    >>> mine = np.array([1.0, 2.0]); exchange_add(mine, np.zeros(2), partner=1, comm=comm); mine.tolist()
    [11.0, 12.0]
    """
    came = np.empty(min(PIECE, len(mine)), mine.dtype)
    for i in range(0, max(len(mine), len(theirs)), PIECE):
        piece = mine[i:i + PIECE]
        comm.Sendrecv(theirs[i:i + PIECE], partner, recvbuf=came[:len(piece)], source=partner)
        np.add(piece, came[:len(piece)], out=piece)


def receive_add(flat: np.ndarray, source: int, comm: Any) -> None:
    """flat (n,) plus what `source` sends, piece by piece.
    >>> from types import SimpleNamespace
    >>> comm = SimpleNamespace(Recv=lambda into, source: into.fill(10.0))            # a rank that sends tens
    >>> x = np.array([1.0, 2.0]); receive_add(x, source=1, comm=comm); x.tolist()
    [11.0, 12.0]
    """
    came = np.empty(min(PIECE, len(flat)), flat.dtype)
    for piece in pieces(flat):
        comm.Recv(came[:len(piece)], source)
        np.add(piece, came[:len(piece)], out=piece)


def pieces(flat: np.ndarray) -> list[np.ndarray]:
    """Views of PIECE elements each, the last perhaps shorter: a message has fewer than 2^31.
    >>> [len(piece) for piece in pieces(np.zeros(2 * PIECE + 5, np.int8))]
    [1048576, 1048576, 5]
    """
    return [flat[i:i + PIECE] for i in range(0, len(flat), PIECE)]
