"""The machine: blocks of threads that execute a kernel's instructions, each by all threads that stand there.

Threads stand in groups at a place of the code. The group at the lowest place goes on, alone until it parts at
a branch or reaches the next group, which it joins: so branches meet again by themselves. A barrier holds
threads until all of their block are there. Blocks run in slices of the grid, one after another.
It has no weak memory (a write is seen at once), tells nothing about time, and runs a loop that waits for
another thread's plain write for ever.
Read after: kernels/ptx/counts. Read next: kernels/ptx/driver.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.kernels.ptx import access, asynchronous, convert, scalar, tensor, warp
from bitnet_ref.kernels.ptx.counts import Counts
from bitnet_ref.kernels.ptx.faults import Fault, PtxError, located
from bitnet_ref.kernels.ptx.memory import GlobalMemory, PrivateMemory, place, refuse
from bitnet_ref.kernels.ptx.module import SIZE, Instruction, Module, Number
from bitnet_ref.kernels.ptx.races import BlockRaces, Races
from bitnet_ref.kernels.ptx.values import DTYPE, Geometry, Slots, Step

BUILD: dict[str, Any] = {**scalar.BUILD, **access.BUILD, **warp.BUILD, **tensor.BUILD, **asynchronous.BUILD,
                         "cvt": convert.build}
IGNORED = {"membar", "fence", "prefetch", "prefetchu", "applypriority", "discard", "nanosleep", "pmevent",
           "griddepcontrol", "setmaxnreg"}       # they change nothing that is seen here
SLICE_THREADS, SLICE_BYTES = 16384, 128 << 20    # of registers: vectors that stay near the processor
MAX_SHARED, MAX_THREADS = 227 * 1024, 1024
MAX_STEPS = 50_000_000


class Line(NamedTuple):
    """An instruction ready to run. `flow`: what the machine does itself; `target`: of a branch."""

    instruction: Instruction
    step: Step | None
    guard: Callable[[Any, Any], np.ndarray] | None
    flow: str = ""
    target: int = 0
    slots: tuple[int, ...] = ()


class Run:
    """A slice of blocks: their registers, shared and local memory, and what is under way."""

    def __init__(self, machine: "Machine", program: "Program", part: Geometry, threads: int,
                 values: list[bytes]) -> None:
        blocks, padded = part.blocks, part.padded
        self.program = program
        n = len(blocks) * padded
        self.memory, self.counts = machine.memory, machine.counts if machine.counting else None
        self.ids, self.blocks, self.padded, self.threads = np.arange(n), blocks, padded, threads
        self.block = np.repeat(np.arange(len(blocks)), padded)
        self.warp = self.ids % padded // 32
        params = {name: np.broadcast_to(np.frombuffer(value, DTYPE[kind])[0], n)
                  for (name, kind), value in zip(program.module.params, values)}
        self.v = program.slots.fill(n, lambda name: params[name] if name in params else part.special(name))
        self.shared = PrivateMemory(len(blocks), program.shared, "shared memory")
        self.local = PrivateMemory(n if program.module.local else 0, program.local, "local memory")
        self.local.strict = self.shared.strict = machine.memory.strict
        looked_for = machine.races and program.granule > 0
        self.races = Races(self.shared.data.size, program.granule) if looked_for else None
        self.across = machine.across if machine.looks_across else None
        self.interval = np.zeros(len(blocks), np.int64)    # barriers that each block has passed
        self.copies, self.barriers = asynchronous.Copies(n), asynchronous.Barriers(n)
        self.wgmma = tensor.InFlight(n)
        self.waiting: np.ndarray | None = None             # threads whose mbarrier is not done

    def note(self, memory: Any, at: np.ndarray, n: int, lanes: Any, what: str) -> None:
        """An access: looked at for races, and counted. `what`: load, store, atomic; arrival, of cp.async;
        fetch and deliver, the two ends of a bulk copy; matrix, which wgmma reads.
        """
        reads = what in ("load", "fetch", "matrix")
        if memory is self.shared:
            self.ordered(at, n, lanes, reads, what == "atomic")
        elif memory is self.memory and self.across is not None:
            if reads:
                self.across.read(at, n, self.blocks[self.block[lanes]])
            else:
                self.across.write(at, n, self.blocks[self.block[lanes]], what == "atomic")
        if self.counts is not None:
            if memory is self.memory:
                self.counts.global_(at, n, self.ids[lanes], what)
            elif memory is self.shared:
                self.counts.shared(at, n, self.ids[lanes], what)

    def ordered(self, at: np.ndarray, n: int, lanes: Any, reads: bool, atomic: bool = False) -> None:
        """An access to shared memory. Raises Fault where nothing says what comes before it."""
        if self.races is not None:
            interval, warps = self.interval[self.block[lanes]], self.warp[lanes]
            if reads:
                self.races.read(at, n, interval, warps)
            else:
                self.races.write(at, n, interval, warps, atomic)
        if self.barriers.copied is not None:
            if reads:
                self.barriers.read(at, n, self.ids[lanes])
            else:
                self.barriers.overwritten(at, n)


def _granule(module: Module, space: str) -> int:
    """The bytes of the narrowest access that may be to `space`, at most 16."""
    narrowest = 16
    for i in module.code:
        if i.op[0] == "cp":
            narrowest = min(narrowest, 4)
        elif i.op[0] in ("ld", "st", "atom", "red") and i.space in (space, "generic"):
            numbers = next((len(x) for x in i.operands if isinstance(x, tuple)), 1)
            narrowest = min(narrowest, SIZE[i.type] * numbers)
    return narrowest


class Program:
    """A module made ready: every instruction a function of vectors, arrays at their addresses."""

    def __init__(self, module: Module, memory: GlobalMemory, dynamic: int) -> None:
        self.module = module
        self.shared, self.local = place(module.shared, dynamic), place(module.local)
        self.shared_bytes = sum(size for _, size in self.shared.spans)
        data = {}
        for name, _, values in module.data:
            at = memory.allocate(len(values))
            if at is None:
                raise PtxError(f"the arrays of kernel {module.name} must fit; got {len(values)} bytes; "
                               "free some")
            memory.write(at, np.frombuffer(values, np.uint8))
            data[name] = at
        names = {name: 0 for name, _ in module.params}
        self.params = list(names)
        self.slots = Slots(module.registers, {**self.shared.address, **self.local.address, **data}, names)
        self.granule = _granule(module, "shared") if module.shared else 0
        self.outside = _granule(module, "global")          # of global memory
        self.lines = [self._line(i) for i in module.code]
        self.bytes = sum(SIZE[kind] for kind in module.registers.values())

    def _line(self, i: Instruction) -> Line:
        try:
            guard = scalar.predicate(self.slots, i.guard) if i.guard else None
            name = i.op[0]
            if name in ("bra", "ret", "exit", "trap"):
                return Line(i, None, guard, name, self._target(i) if name == "bra" else 0)
            if name in ("bar", "barrier"):
                if i.op[1] == "warp":
                    return Line(i, warp.meet(i, self.slots), guard)
                if any(part in i.op for part in ("red", "arrive", "cluster")):
                    raise refuse(".".join(i.op))
                numbers = [self.slots.read(x, "u32") for x in (*i.operands, Number(0), Number(0))[:2]]
                return Line(i, None, guard, "barrier", slots=tuple(numbers))
            if name in IGNORED:
                return Line(i, lambda run, lanes: None, guard)
            if name not in BUILD:
                raise refuse(".".join(i.op))
            return Line(i, BUILD[name](i, self.slots), guard)
        except Fault as fault:
            raise located(fault, f"kernel {self.module.name}, line {i.line}: {i.text}") from None

    def _target(self, i: Instruction) -> int:
        name = getattr(i.operands[0], "name", "")
        if name not in self.module.labels:
            raise Fault("a branch goes to a label of the kernel", name, "declare the label")
        return self.module.labels[name]


class Machine:
    """Runs kernels on a memory. Settings: what is looked for (`races`), counted, and shown (`trace`)."""

    def __init__(self, memory: GlobalMemory) -> None:
        self.memory, self.races, self.counting = memory, True, False
        self.counts, self.across, self.looks_across = Counts(), BlockRaces(), False
        self.trace: Callable[[Run, Line, int, Any], None] | None = None
        self.max_steps, self.steps = MAX_STEPS, 0
        self.programs: dict[tuple[int, int], tuple[Module, Program]] = {}

    def run(self, module: Module, grid: tuple[int, ...], block: tuple[int, ...], values: list[bytes],
            dynamic: int = 0) -> None:
        """Execute `module` on a grid. `values`: the bytes of each parameter; `dynamic`: of shared memory.

        Raises PtxError for what the program may not do.
        """
        program = self._program(module, dynamic)
        threads, blocks = int(np.prod(block)), int(np.prod(grid))
        (gx, gy, gz), (bx, by, bz) = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        self._check(module, program, threads, blocks, values)
        padded = -(-threads // 32) * 32
        each = max(1, min(SLICE_THREADS // padded, SLICE_BYTES // max(1, padded * program.bytes)))
        self.steps = 0
        self.looks_across = self.races and self.across.begin(self.memory.end, program.outside, blocks)
        for first in range(0, blocks, each):
            numbers = np.arange(first, min(first + each, blocks))
            part = Geometry((gx, gy, gz), (bx, by, bz), numbers, padded, dynamic, program.shared_bytes)
            with np.errstate(all="ignore"):
                _Slice(self, program, Run(self, program, part, threads, values)).go()

    def _program(self, module: Module, dynamic: int) -> Program:
        key = id(module), dynamic
        if key not in self.programs:
            self.programs[key] = module, Program(module, self.memory, dynamic)
        return self.programs[key][1]

    def _check(self, module: Module, program: Program, threads: int, blocks: int,
               values: list[bytes]) -> None:
        for holds, rule, got in (
                (0 < threads <= min(module.max_threads, MAX_THREADS),
                 f"kernel {module.name} takes 1 to {min(module.max_threads, MAX_THREADS)} threads a block",
                 threads),
                (blocks > 0, "a grid has at least one block", blocks),
                (program.shared_bytes <= MAX_SHARED,
                 f"a block has at most {MAX_SHARED} bytes of shared memory",
                 program.shared_bytes),
                (len(values) == len(module.params),
                 f"kernel {module.name} takes {len(module.params)} parameters",
                 len(values))):
            if not holds:
                raise PtxError(f"{rule}; got {got}; launch it with others")


class _Slice:
    """The blocks of a run, executed to their end."""

    def __init__(self, machine: Machine, program: Program, run: Run) -> None:
        self.machine, self.program, self.run = machine, program, run
        self.executed = [0] * len(program.lines)
        alive = run.ids % run.padded < run.threads
        self.alive = np.bincount(run.block[alive], minlength=len(run.blocks))
        self.living = alive
        self.groups: dict[int, list[Any]] = {0: [tidy(run.ids[alive])]}
        self.held: dict[int, list[tuple[int, np.ndarray, int]]] = {}   # barrier -> place, threads, expected
        self.asleep: list[tuple[int, np.ndarray]] = []                   # at an mbarrier

    def go(self) -> None:
        """Until no thread is left. Raises PtxError."""
        while self.groups:
            pc = min(self.groups)
            lanes = joined(self.groups.pop(pc))
            self._advance(pc, lanes)
            if self.run.barriers.turned or (not self.groups and self.asleep):
                self._wake()
        if self.held or self.asleep:
            self._stuck()
        if self.machine.counting:
            for line, n in zip(self.program.lines, self.executed):
                self.machine.counts.instructions[".".join(line.instruction.op)] += n

    def _advance(self, pc: int, lanes: Any) -> None:
        """One group, from `pc` to where it parts, waits, ends or meets another."""
        run, lines, machine = self.run, self.program.lines, self.machine
        limit = min(self.groups, default=len(lines) + 1)
        n = size(lanes)
        while pc < limit:
            if pc == len(lines):
                return self._leave(lanes)
            line = lines[pc]
            machine.steps += 1
            if machine.steps > machine.max_steps:
                raise self._error(Fault("a kernel ends", f"more than {machine.max_steps} steps",
                                        "look for a loop that waits for another thread", 0), line, lanes)
            active, m = lanes, n
            if line.guard is not None:
                holds = line.guard(run, lanes)
                m = int(np.count_nonzero(holds))
                if m == 0:
                    pc += 1
                    continue
                if m < n:
                    active = tidy(run.ids[lanes][holds])
            self.executed[pc] += m
            if line.step is not None:
                try:
                    line.step(run, active)
                except Fault as fault:
                    raise self._error(fault, line, active) from None
                if machine.trace is not None:
                    machine.trace(run, line, pc, active)
                pc += 1
                if run.waiting is not None:
                    return self._sleep(pc - 1, lanes)
                if run.barriers.turned:
                    break
                continue
            if machine.trace is not None:
                machine.trace(run, line, pc, active)
            if line.flow == "bra" and m == n:
                pc = line.target
                continue
            return self._flow(line, pc, active, tidy(run.ids[lanes][~holds]) if m < n else None)
        self._add(pc, lanes)
        return None

    def _flow(self, line: Line, pc: int, active: Any, rest: Any) -> None:
        """A branch that parts a group, an end, a barrier. `rest`: the threads whose guard does not hold."""
        if rest is not None:
            self._add(pc + 1, rest)
        if line.flow == "bra":
            self._add(line.target, active)
        elif line.flow == "barrier":
            self._arrive(line, pc, active)
        elif line.flow == "trap":
            raise self._error(Fault("a kernel may not reach trap", "trap", "see the condition before it", 0),
                              line, active)
        else:
            self._leave(active, line)

    def _add(self, pc: int, lanes: Any) -> None:
        self.groups.setdefault(pc, []).append(lanes)

    # ---- ends and barriers ---------------------------------------------------------------------------------
    def _leave(self, lanes: Any, line: Line | None = None) -> None:
        run = self.run
        ids = run.ids[lanes]
        if run.wgmma.pending(lanes):
            raise self._error(Fault("wgmma is waited for", "threads that end before wgmma.wait_group",
                                    "commit the group and wait", 0), line or self.program.lines[-1], lanes)
        self.living[ids] = False
        self.alive -= np.bincount(run.block[ids], minlength=len(run.blocks))
        for number in list(self.held):
            self._open(number)

    def _arrive(self, line: Line, pc: int, lanes: Any) -> None:
        """bar.sync: threads wait for all of their block that live, or for as many as the barrier names."""
        run, ids = self.run, self.run.ids[lanes]
        number, expected = (run.v[slot][ids[0]] for slot in line.slots)
        whole = len(ids) % 32 == 0 and (ids.reshape(-1, 32)[:, -1] - ids.reshape(-1, 32)[:, 0] == 31).all()
        if not whole:
            warps = np.unique(ids // 32)
            living = self.living.reshape(-1, 32)[warps].sum()
            if living != len(ids):
                raise self._error(Fault("all threads of a warp reach a barrier together",
                                        f"{len(ids)} of {living}", "move it out of the branch", 0), line,
                                  lanes)
        self.held.setdefault(int(number), []).append((pc + 1, ids, int(expected)))
        self._open(int(number))

    def _open(self, number: int) -> None:
        """Let the blocks go on whose threads are all at the barrier."""
        run, held = self.run, self.held[number]
        come = np.bincount(np.concatenate([run.block[ids] for _, ids, _ in held]), minlength=len(run.blocks))
        wanted = held[0][2]
        done = (come == (wanted or self.alive)) & (come > 0)
        if not done.any():
            return
        run.interval[done] += 1
        run.barriers.met(done)
        left = []
        for pc, ids, expected in held:
            go = done[run.block[ids]]
            if go.any():
                self._add(pc, tidy(ids[go]))
            if not go.all():
                left.append((pc, ids[~go], expected))
        if left:
            self.held[number] = left
        else:
            del self.held[number]

    def _sleep(self, pc: int, lanes: Any) -> None:
        """Threads whose mbarrier is not done stay at `pc`; the others go on."""
        waiting = self.run.waiting
        self.run.waiting = None
        if waiting is None or not len(waiting):
            return self._add(pc + 1, lanes)
        self.asleep.append((pc, waiting))
        rest = np.setdiff1d(self.run.ids[lanes], waiting, assume_unique=True)
        if len(rest):
            self._add(pc + 1, tidy(rest))
        return None

    def _wake(self) -> None:
        """After a phase of an mbarrier has ended, all who wait look again. Else they would wait for ever."""
        if not self.run.barriers.turned:
            self._stuck()
        self.run.barriers.turned = False
        for pc, ids in self.asleep:
            self._add(pc, tidy(ids))
        self.asleep = []

    def _stuck(self) -> None:
        """Raise: some threads wait for what does not come."""
        pc, ids = self.asleep[0] if self.asleep else next(iter(self.held.values()))[0][:2]
        line = self.program.lines[pc if self.asleep else pc - 1]
        block = int(self.run.block[ids[0]])
        here = int((self.run.block[ids] == block).sum())
        if self.asleep:
            fault = Fault("the phase of an mbarrier that is waited for ends",
                          f"{here} threads that wait for ever",
                          "check its count, the bytes it expects and the copies", 0)
        else:
            fault = Fault("all threads of a block reach its barrier",
                          f"{here} of {int(self.alive[block])} that live", "move it out of the branch", 0)
        raise self._error(fault, line, ids)

    def _error(self, fault: Fault, line: Line, lanes: Any) -> PtxError:
        run, i = self.run, line.instruction
        where = f"kernel {self.program.module.name}, line {i.line}: {i.text}"
        if fault.lane is not None:
            thread = int(run.ids[lanes][fault.lane])
            where += f" (block {int(run.blocks[run.block[thread]])}, thread {thread % run.padded})"
        return located(fault, where)


def tidy(ids: np.ndarray) -> Any:
    """Threads as a slice where they lie together, which costs no copies; else as they are."""
    if len(ids) and ids[-1] - ids[0] == len(ids) - 1:
        return slice(int(ids[0]), int(ids[-1]) + 1)
    return ids


def size(lanes: Any) -> int:
    """How many threads."""
    return lanes.stop - lanes.start if isinstance(lanes, slice) else len(lanes)


def joined(groups: list[Any]) -> Any:
    """The threads of all groups."""
    if len(groups) == 1:
        return groups[0]
    return tidy(np.sort(np.concatenate([np.arange(g.start, g.stop) if isinstance(g, slice) else g
                                        for g in groups])))
