"""Instructions that a warp executes together: shfl, vote, match, redux, activemask, bar.warp.

The lanes that execute must be those that the mask names: a warp that has parted does not meet by itself.
Read after: kernels/ptx/access. Read next: kernels/ptx/tensor.
"""

from typing import Any

import numpy as np

from bitnet_ref.kernels.ptx.faults import Fault, demand
from bitnet_ref.kernels.ptx.memory import refuse
from bitnet_ref.kernels.ptx.module import Instruction, Number, Symbol
from bitnet_ref.kernels.ptx.scalar import predicate
from bitnet_ref.kernels.ptx.values import Slots, Step

LANE = np.arange(32)
ALL = 0xFFFFFFFF


def whole_warps(run: Any, lanes: Any, what: str, width: int = 32) -> int:
    """How many warps (or groups of `width` threads) execute. Raises Fault for a part of one."""
    ids = run.ids[lanes]
    if len(ids) % width == 0:
        rows = ids.reshape(-1, width)
        if isinstance(lanes, slice) and ids[0] % width == 0:
            return len(rows)
        if not ((rows[:, 0] % width != 0) | (rows[:, -1] - rows[:, 0] != width - 1)).any():
            return len(rows)
    warp, count = np.unique(ids // width, return_counts=True)
    short = int(warp[count < width][0]) if (count < width).any() else int(warp[0])
    lane = int(np.argmax(ids // width == short))
    raise Fault(f"all {width} threads of a {'warp' if width == 32 else 'warpgroup'} execute {what} together",
                f"{int(count[warp == short][0])} of them",
                "move it out of the branch, or name the lanes in a mask", lane)


class Rows:
    """Lanes as rows of 32, one for each warp; absent ones where only a part executes."""

    def __init__(self, run: Any, lanes: Any, mask: np.ndarray, what: str) -> None:
        self.ids = ids = run.ids[lanes]
        self.whole = len(ids) % 32 == 0 and bool((ids[::32] % 32 == 0).all()) and \
            bool((ids[31::32] - ids[::32] == 31).all())
        self.warps, self.row = ids[::32] // 32, ids // 32
        if not self.whole:
            self.warps, self.row = np.unique(self.row, return_inverse=True)
        here = np.full(len(self.warps), ALL, np.uint64)
        if not self.whole:
            here = np.bitwise_or.reduce(self.spread(np.uint64(1) << (ids % 32).astype(np.uint64)), 1)
        named = self.each(here)
        demand(mask.astype(np.uint64) != named, f"the mask of {what} names the lanes that execute it",
               lambda i: f"mask {int(mask[i]):#010x}, lanes {int(named[i]):#010x}",
               "move it out of the branch, or name those lanes")

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of lanes (n,) as (warps, 32); 0 where no lane is."""
        if self.whole:
            return values.reshape(-1, 32)
        made = np.zeros((len(self.warps), 32), values.dtype)
        made[self.row, self.ids % 32] = values
        return made

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The opposite of spread."""
        return rows.reshape(-1) if self.whole else rows[self.row, self.ids % 32]

    def each(self, values: np.ndarray) -> np.ndarray:
        """A value of each warp for its lanes."""
        return np.repeat(values, 32) if self.whole else values[self.row]

    def present(self) -> np.ndarray:
        """Which lanes execute (warps, 32)."""
        return self.spread(np.ones(len(self.ids), bool))


def _source(how: str, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lane that each lane of shfl reads (warps, 32), and whether it lies in its segment."""
    b, c = b.astype(np.int64) & 31, c.astype(np.int64)
    segment, clamp = (c >> 8) & 31, c & 31
    low = LANE & segment
    high = low | (clamp & ~segment)
    if how == "bfly":
        j = LANE ^ b
    elif how == "down":
        j = LANE + b
    elif how == "up":
        j = LANE - b
        return j, j >= high
    else:
        j = low | (b & ~segment)
    return j, j <= high


def _shuffle(i: Instruction, slots: Slots) -> Step:
    into = i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0],)
    d, found = slots.write(into[0], "b32"), slots.write(into[1], "pred") if len(into) > 1 else None
    a, b, c, mask = (slots.read(x, "b32") for x in i.operands[1:5])
    how = i.op[2]

    def step(run: Any, lanes: Any) -> None:
        v = run.v
        rows = Rows(run, lanes, v[mask][lanes], "shfl")
        values = rows.spread(v[a][lanes])
        j, ok = _source(how, rows.spread(v[b][lanes]), rows.spread(v[c][lanes]))
        j = np.where(ok, j, LANE) & 31
        if not rows.whole:
            absent = rows.present() & ~np.take_along_axis(rows.present(), j, 1)
            demand(rows.gather(absent), "a lane must read from a lane that takes part", "one that does not",
                   "name it in the mask and let it execute")
        v[d][lanes] = rows.gather(np.take_along_axis(values, j, 1))
        if found is not None:
            v[found][lanes] = rows.gather(ok & np.ones_like(values, bool))
    return step


def _vote(i: Instruction, slots: Slots) -> Step:
    how = i.op[2]
    if how not in ("all", "any", "uni", "ballot"):
        raise refuse(".".join(i.op))
    d = slots.write(i.operands[0], "b32" if how == "ballot" else "pred")
    p, mask = predicate(slots, i.operands[1]), slots.read(i.operands[2], "b32")

    def step(run: Any, lanes: Any) -> None:
        rows = Rows(run, lanes, run.v[mask][lanes], "vote")
        held, here = rows.spread(p(run, lanes)), rows.present()
        if how == "ballot":
            bits = (held.astype(np.uint64) << LANE.astype(np.uint64)).sum(1, dtype=np.uint64)
            run.v[d][lanes] = rows.each(bits)
        else:
            every, some = (held | ~here).all(1), held.any(1)
            run.v[d][lanes] = rows.each({"all": every, "any": some, "uni": every | ~some}[how])
    return step


def _match(i: Instruction, slots: Slots) -> Step:
    """match.any: the lanes that hold my value; match.all: all of them if they hold one value, or none."""
    into = i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0],)
    d, p = slots.write(into[0], "b32"), slots.write(into[1], "pred") if len(into) > 1 else None
    a, mask = slots.read(i.operands[1], i.type), slots.read(i.operands[2], "b32")

    def step(run: Any, lanes: Any) -> None:
        rows = Rows(run, lanes, run.v[mask][lanes], "match")
        values, here = rows.spread(run.v[a][lanes]), rows.present()
        same = (values[:, :, None] == values[:, None, :]) & here[:, None, :]
        bits = (same.astype(np.uint64) << LANE.astype(np.uint64)).sum(2, dtype=np.uint64)
        if i.op[1] == "all":
            together = (same | ~here[:, None, :]).all(2) & here
            bits = np.where(together, bits, np.uint64(0))
            if p is not None:
                run.v[p][lanes] = rows.gather(together)
        run.v[d][lanes] = rows.gather(bits)
    return step


def _reduce(i: Instruction, slots: Slots) -> Step:
    """redux: the sum, least, largest or bitwise sum over the lanes."""
    f: Any = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
              "xor": np.bitwise_xor}[i.op[2]]
    d, a, mask = slots.write(i.operands[0], i.type), slots.read(i.operands[1], i.type), \
        slots.read(i.operands[2], "b32")

    def step(run: Any, lanes: Any) -> None:
        rows = Rows(run, lanes, run.v[mask][lanes], "redux")
        values = rows.spread(run.v[a][lanes])
        if not rows.whole:
            first = np.argmax(rows.present(), 1)
            if f in (np.add, np.bitwise_xor, np.bitwise_or):
                filler = np.zeros_like(first)
            else:
                filler = values[np.arange(len(values)), first]
            values = np.where(rows.present(), values, filler[:, None]).astype(values.dtype)
        run.v[d][lanes] = rows.each(f.reduce(values, 1, dtype=values.dtype))
    return step


def _active(i: Instruction, slots: Slots) -> Step:
    d = slots.write(i.operands[0], "b32")

    def step(run: Any, lanes: Any) -> None:
        warp, row = np.unique(run.ids[lanes] // 32, return_inverse=True)
        bits = np.zeros(len(warp), np.uint64)
        np.bitwise_or.at(bits, row, np.uint64(1) << (run.ids[lanes] % 32).astype(np.uint64))
        run.v[d][lanes] = bits[row]
    return step


def meet(i: Instruction, slots: Slots) -> Step:
    """bar.warp.sync: the lanes that the mask names are here."""
    mask = slots.read(i.operands[0] if i.operands else Number(ALL), "b32")

    def step(run: Any, lanes: Any) -> None:
        Rows(run, lanes, run.v[mask][lanes], "bar.warp.sync")
    return step


BUILD: dict[str, Any] = {"shfl": _shuffle, "vote": _vote, "match": _match, "redux": _reduce,
                         "activemask": _active}
__all__ = ["BUILD", "Rows", "Symbol", "meet", "whole_warps"]
