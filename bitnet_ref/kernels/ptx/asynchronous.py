"""Copies that run beside the program, and barriers in memory: cp.async, cp.async.bulk, mbarrier, fences.

A copy is as late as it may be: the bytes it goes to are poison, never written, until the program has waited
for them (cp.async.wait_group by the thread that began it; the phase of its mbarrier for a bulk copy). So a
wait that is missing, or waits for too few, is found by the first read. Who did not wait may read what a bulk
copy brought behind a barrier of the block that somebody reached who did.
Read after: kernels/ptx/tensor. Read next: kernels/ptx/counts.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.kernels.ptx.access import address, load, resolve
from bitnet_ref.kernels.ptx.faults import Fault, demand
from bitnet_ref.kernels.ptx.memory import POISON, UNWRITTEN, WRITTEN, refuse
from bitnet_ref.kernels.ptx.module import Instruction, Number
from bitnet_ref.kernels.ptx.values import Slots, Step

LARGEST_COUNT, LARGEST_BYTES = (1 << 20) - 1, (1 << 20) - 1        # of an mbarrier


class Copy(NamedTuple):
    """Bytes on their way: n to each offset of shared memory, begun by threads `ids` in their group."""

    at: np.ndarray
    n: int
    values: np.ndarray
    ids: np.ndarray
    group: np.ndarray


class Copies:
    """The cp.async of a run that were not waited for."""

    def __init__(self, threads: int) -> None:
        self.under_way: list[Copy] = []
        self.group = np.zeros(threads, np.int64)           # groups that each thread has committed

    def land(self, run: Any, lanes: Any, newest: int, committed: bool) -> None:
        """The copies of `lanes` end, but for the `newest` groups; without `committed` also those in none."""
        here = np.zeros(len(run.ids), bool)
        here[lanes] = True
        left = []
        for c in self.under_way:
            now = here[c.ids] & ((c.group < self.group[c.ids] - newest) if committed else True)
            if now.any():
                ids, at = c.ids[now], c.at[now]
                run.note(run.shared, at, c.n, ids, "arrival")
                run.shared.store(at, c.n, c.values[now])
            if not now.all():
                left.append(Copy(c.at[~now], c.n, c.values[~now], c.ids[~now], c.group[~now]))
        self.under_way = left


def poison(shared: Any, at: np.ndarray, n: int) -> None:
    """n bytes from each offset on are as if never written."""
    place = (at.astype(np.int64)[:, None] + np.arange(n)).ravel()
    shared.data[place] = POISON
    shared.known[place] = UNWRITTEN


def _copy(i: Instruction, slots: Slots) -> Step:
    """cp.async and its groups; cp.async.bulk."""
    if i.op[1] != "async":
        raise refuse(".".join(i.op))
    if "bulk" in i.op:
        return _bulk(i, slots)
    if i.op[2] in ("ca", "cg"):
        return _begin(i, slots)
    if i.op[2] not in ("commit_group", "wait_group", "wait_all"):
        raise refuse(".".join(i.op))

    def step(run: Any, lanes: Any) -> None:
        if i.op[2] == "commit_group":
            run.copies.group[lanes] += 1
        elif i.op[2] == "wait_group":
            run.copies.land(run, lanes, i.operands[0].value, True)
        else:
            run.copies.land(run, lanes, 0, False)
    return step


def _begin(i: Instruction, slots: Slots) -> Step:
    n = i.operands[2].value
    into, source = address(slots, i.operands[0]), address(slots, i.operands[1])
    some = slots.read(i.operands[3], "u32") if len(i.operands) > 3 else None      # bytes; the rest is 0
    if n not in (4, 8, 16) or (n != 16 and i.op[2] == "cg"):
        raise Fault("cp.async copies 4, 8 or 16 bytes, .cg 16", str(n), "choose another size")

    def step(run: Any, lanes: Any) -> None:
        memory, at = resolve(run, "shared", into(run, lanes), lanes, n)
        run.note(memory, at, n, lanes, "store")
        given = np.full(len(at), n, np.uint32) if some is None else run.v[some][lanes]
        demand(given > n, f"cp.async fills at most its {n} bytes", lambda j: str(given[j]),
               "pass a smaller size")
        ids, addresses = run.ids[lanes], source(run, lanes)
        demand(addresses % np.uint64(n) != 0, f"an access of {n} bytes must be aligned to {n}",
               lambda j: hex(int(addresses[j])), "align the array")
        values = np.zeros((len(at), n), np.uint8)
        whole = given == n
        if whole.any():
            found = load(run, "global", addresses[whole], ids[whole], n)
            values[whole] = np.ascontiguousarray(found).view(np.uint8).reshape(-1, n)
        for j in np.flatnonzero(~whole & (given > 0)):
            for byte in range(int(given[j])):
                one = load(run, "global", addresses[j:j + 1] + np.uint64(byte), ids[j:j + 1], 1)
                values[j, byte] = one[0]
        memory.store(at, n, _words(values, n))             # inside and aligned; and then as late as can be
        poison(memory, at, n)
        run.copies.under_way.append(Copy(at, n, _words(values, n), ids, run.copies.group[lanes].copy()))
    return step


def _words(values: np.ndarray, n: int) -> np.ndarray:
    """Bytes (lanes, n) as Bytes.store takes them."""
    return values.view(np.uint64) if n == 16 else values.view(f"u{n}")[:, 0]


# ---- mbarrier ----------------------------------------------------------------------------------------------
class Phase:
    """An mbarrier: arrivals and bytes that its phase waits for, and the copies that end with it."""

    def __init__(self, count: int) -> None:
        self.count = self.pending = count
        self.bytes = self.number = 0
        self.landing: list[tuple[int, int, np.ndarray]] = []         # (phase, offset in the block, bytes)


class Barriers:
    """The mbarriers of a run, by block and address."""

    def __init__(self, threads: int) -> None:
        self.at: dict[tuple[int, int], Phase] = {}
        self.turned = False                                # a phase ended: whoever waits looks again
        self.waited: dict[int, np.ndarray] = {}            # address -> phases that threads know have ended
        self.copied: np.ndarray | None = None              # (address + 1, phase) that brought each 16 bytes
        self.threads = threads

    def find(self, block: int, where: int) -> Phase:
        """The mbarrier there. Raises Fault where none was made."""
        if (block, where) not in self.at:
            raise Fault("an mbarrier must be initialised before it is used", f"address {where}",
                        "call mbarrier.init, and let all threads see it (syncthreads)", 0)
        return self.at[block, where]

    def look(self, run: Any, block: int, phase: Phase) -> None:
        """End the phase if nothing is missing, and begin the next one."""
        if phase.pending or phase.bytes:
            return
        phase.pending, phase.number = phase.count, phase.number + 1
        run.interval[block] += 1                           # what follows is ordered after what came before
        self.turned = True

    def on_the_way(self, block: int) -> list[tuple[int, int]]:
        """Places and sizes of the copies of a block that nobody has waited for."""
        return [(at, len(values)) for (owner, _), phase in self.at.items() if owner == block
                for _, at, values in phase.landing]

    def land(self, run: Any, block: int, where: int, phase: Phase) -> None:
        """The copies of phases that have ended arrive: somebody has waited for them."""
        for number, at, values in phase.landing:
            if number < phase.number:
                start = block * run.shared.stride + at
                run.shared.data[start:start + len(values)] = values
                run.shared.known[start:start + len(values)] = WRITTEN
                if self.copied is None:
                    self.copied = np.zeros((run.shared.data.size // 16 + 1, 2), np.int64)
                self.copied[start // 16:(start + len(values)) // 16] = where + 1, number
        phase.landing = [c for c in phase.landing if c[0] >= phase.number]

    def know(self, where: int, number: int, ids: np.ndarray) -> None:
        """Threads have seen that `number` phases ended."""
        if where not in self.waited:
            self.waited[where] = np.zeros(self.threads, np.int64)
        self.waited[where][ids] = number

    def met(self, blocks: np.ndarray) -> None:
        """A barrier of these blocks: what one of their threads knows, all of them know."""
        for number in self.waited.values():
            rows = number.reshape(len(blocks), -1)
            rows[blocks] = rows[blocks].max(1, keepdims=True)

    def read(self, at: np.ndarray, n: int, ids: np.ndarray) -> None:
        """Threads read shared memory. Raises Fault for what a copy brought that they did not wait for."""
        assert self.copied is not None
        where, number = self.copied[at.astype(np.int64) // 16].T
        for one in np.unique(where[where > 0]):
            demand((where == one) & (self.waited[one - 1][ids] <= number),
                   "a thread waits for a bulk copy that it reads, or meets at a barrier one who has waited",
                   f"{n} bytes that the mbarrier at {one - 1} stands for", "let every thread wait")

    def overwritten(self, at: np.ndarray, n: int) -> None:
        """Bytes that are no copy's any more."""
        assert self.copied is not None
        self.copied[at.astype(np.int64) // 16] = 0


def _mbarrier(i: Instruction, slots: Slots) -> Step:
    what = i.op[1]
    if what in ("try_wait", "test_wait"):
        return _wait(i, slots)
    if what not in ("init", "arrive", "expect_tx", "inval", "arrive_drop") or what == "arrive_drop":
        raise refuse(".".join(i.op))
    gives = what == "arrive"
    rest = i.operands[1:] if gives else i.operands
    d = slots.write(i.operands[0], "b64") if gives else None
    where = address(slots, rest[0])
    number = slots.read(rest[1] if len(rest) > 1 else Number(1), "u32")

    def step(run: Any, lanes: Any) -> None:
        addresses, given, ids = where(run, lanes), run.v[number][lanes], run.ids[lanes]
        for lane, (at, n, thread) in enumerate(zip(addresses.tolist(), given.tolist(), ids.tolist())):
            block = int(run.block[thread])
            if at % 8 or at + 8 > run.shared.size:
                raise Fault("an mbarrier is 8 bytes of shared memory, aligned to 8", f"address {at}",
                            "declare it as int64", lane)
            if what == "init":
                if not 0 < n <= LARGEST_COUNT:
                    raise Fault(f"an mbarrier counts 1 to {LARGEST_COUNT} arrivals", str(n), "pass another",
                                lane)
                run.barriers.at[block, at] = Phase(n)
            elif what == "inval":
                run.barriers.at.pop((block, at), None)
            else:
                phase = run.barriers.find(block, at)
                _arrive(run, block, phase, n, i, lane)
                if d is not None:
                    run.v[d][thread] = phase.number
    return step


def _arrive(run: Any, block: int, phase: Phase, n: int, i: Instruction, lane: int) -> None:
    if "expect_tx" in i.op:
        phase.bytes += n
        if phase.bytes > LARGEST_BYTES:
            raise Fault(f"an mbarrier expects at most {LARGEST_BYTES} bytes", str(phase.bytes),
                        "expect fewer", lane)
    if i.op[1] == "arrive":
        arrivals = 1 if "expect_tx" in i.op else n
        if phase.pending < arrivals:
            raise Fault("an mbarrier is met by as many threads as it counts in a phase",
                        f"one more than {phase.count}", "raise its count, or arrive once", lane)
        phase.pending -= arrivals
        run.barriers.look(run, block, phase)


def _wait(i: Instruction, slots: Slots) -> Step:
    """try_wait, test_wait: done lanes get true; the machine lets the others wait (see Run.waiting)."""
    d, where = slots.write(i.operands[0], "pred"), address(slots, i.operands[1])
    parity = slots.read(i.operands[2], "u32" if "parity" in i.op else "b64")

    def step(run: Any, lanes: Any) -> None:
        ids, addresses = run.ids[lanes], where(run, lanes)
        keys = run.block[lanes].astype(np.int64) << 32 | addresses.astype(np.int64)
        found, which = np.unique(keys, return_inverse=True)
        phases = [run.barriers.find(int(key) >> 32, int(key) & 0xFFFFFFFF) for key in found]
        wanted = run.v[parity][lanes].astype(np.int64)
        done = (np.array([phase.number for phase in phases])[which] - wanted) & 1 == 1
        for n in np.unique(which[done]):
            block, at = int(found[n]) >> 32, int(found[n]) & 0xFFFFFFFF
            run.barriers.land(run, block, at, phases[n])
            run.barriers.know(at, phases[n].number, ids[done & (which == n)])
        run.v[d][lanes] = done
        run.waiting = ids[~done]
    return step


def _bulk(i: Instruction, slots: Slots) -> Step:
    """cp.async.bulk from global to shared memory: a multiple of 16 bytes, ends with an mbarrier."""
    if i.op[2:] and not ("mbarrier::complete_tx::bytes" in i.op and "global" in i.op
                         and len(i.operands) >= 4):
        raise refuse(".".join(i.op))
    into, source, meets = (address(slots, i.operands[j]) for j in (0, 1, 3))
    size = slots.read(i.operands[2], "u32")

    def step(run: Any, lanes: Any) -> None:
        to, begin, barrier = into(run, lanes), source(run, lanes), meets(run, lanes)
        for lane, thread in enumerate(run.ids[lanes].tolist()):
            n, at, where = int(run.v[size][thread]), int(to[lane]), int(begin[lane])
            if n % 16 or at % 16 or where % 16 or not n:
                raise Fault("a bulk copy takes a size and addresses that are multiples of 16",
                            f"{n} bytes from {where:#x} to {at}", "align them", lane)
            one, block = np.array([thread]), int(run.block[thread])
            every = np.arange(0, n, 16, dtype=np.uint64)
            ids = np.repeat(one, len(every))
            values = load(run, "global", every + np.uint64(where), ids, 16, "fetch")
            memory, offsets = resolve(run, "shared", every + np.uint64(at), ids, 16)
            for start, held in run.barriers.on_the_way(block):
                if start < at + n and at < start + held:
                    raise Fault("a bulk copy goes where no other is on its way to",
                                f"bytes {at} to {at + n} and {start} to {start + held}", "wait for the other",
                                lane)
            run.note(memory, offsets, 16, ids, "deliver")
            poison(memory, offsets, 16)
            phase = run.barriers.find(block, int(barrier[lane]))
            phase.landing.append((phase.number, at, np.ascontiguousarray(values).view(np.uint8).ravel()))
            phase.bytes -= n
            run.barriers.look(run, block, phase)
    return step


BUILD: dict[str, Any] = {"cp": _copy, "mbarrier": _mbarrier}
