"""Tensor cores: mma.sync and ldmatrix (a warp), wgmma (four warps).

A register holds e = 4, 2 or 1 numbers. With g = lane / 4, t = lane % 4, register r of A has columns
4e (r / 2) + et.. of row g + 8 (r % 2), register r of B rows 4er + et.. of column g; sums 2i, 2i + 1 lie in
row g + 8i, columns 2t, 2t + 1 (PTX ISA 9.0, "Matrix Fragments for mma"). Integer sums are exact; float sums
are made in float64 and rounded once, which a card does not promise. wgmma's are poison until waited for.
Read after: kernels/ptx/warp. Read next: kernels/ptx/asynchronous.
"""

import re
from typing import Any

import numpy as np

from bitnet_ref.kernels.ptx.access import address, load, resolve
from bitnet_ref.kernels.ptx.faults import Fault
from bitnet_ref.kernels.ptx.memory import refuse
from bitnet_ref.kernels.ptx.module import Instruction, Number, Register
from bitnet_ref.kernels.ptx.scalar import from_bf16, predicate
from bitnet_ref.kernels.ptx.values import DTYPE, Slots, Step
from bitnet_ref.kernels.ptx.warp import whole_warps

EACH = {"s8": 4, "u8": 4, "f16": 2, "bf16": 2, "tf32": 1}          # numbers in a register
POISON = 0xA5A5A5A5                                                # in sums that were not waited for
WARPGROUP = 128


def _numbers(words: np.ndarray, kind: str) -> np.ndarray:
    """Registers (..., ) of packed numbers as floats (..., e); products of bytes stay exact in them."""
    words = np.ascontiguousarray(words)
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
    if kind == "bf16":
        return from_bf16(words.view(np.uint16)).reshape(*words.shape, 2)
    dtype = {"s8": np.int8, "u8": np.uint8, "f16": np.float16}[kind]
    return words.view(dtype).reshape(*words.shape, EACH[kind]).astype(np.float32)


def fragments(registers: list[np.ndarray], kind: str, rows: int) -> np.ndarray:
    """Registers (warps * 32,) each of A (rows 16) or B (rows 8: its columns) as matrices (warps, rows, k)."""
    stacked = _numbers(np.stack(registers, -1), kind)             # (threads, r, e)
    warps, high, e = len(stacked) // 32, rows // 8, stacked.shape[-1]
    split = stacked.reshape(warps, 8, 4, -1, high, e)             # warp, g, t, k block, row block, number
    return split.transpose(0, 4, 1, 3, 2, 5).reshape(warps, rows, -1)


def _sums(a: np.ndarray, b: np.ndarray, whole: bool) -> np.ndarray:
    """A (..., m, k) by B^T (..., n, k); bytes of k <= 32 stay below 2^24."""
    if whole:
        return np.matmul(a, np.swapaxes(b, -1, -2)).astype(np.int32)
    return np.matmul(a.astype(np.float64), np.swapaxes(b, -1, -2))


def _mma(i: Instruction, slots: Slots) -> Step:
    shape = next((re.fullmatch(r"m16n8k(\d+)", part) for part in i.op if part.startswith("m16n8k")), None)
    types = i.op[-4:]
    if shape is None or not {"row", "col"} <= set(i.op) or not {types[1], types[2]} <= set(EACH):
        raise refuse(".".join(i.op))
    if types[0] not in ("s32", "f32") or types[3] != types[0] or "satfinite" in i.op:
        raise refuse(".".join(i.op))
    k, result = int(shape[1]), types[0]
    d = [slots.write(x, result) for x in i.operands[0]]
    a, b = ([slots.read(x, "b32") for x in operand] for operand in i.operands[1:3])
    c = [slots.read(x, result) for x in i.operands[3]]
    blocks = k // (4 * EACH[types[1]])
    if (len(d), len(a), len(b), len(c)) != (4, 2 * blocks, blocks, 4):
        raise Fault("mma takes as many registers as its fragments have", f"{len(a)} of A, {len(b)} of B",
                    "count the registers of this shape")

    def step(run: Any, lanes: Any) -> None:
        v, warps = run.v, whole_warps(run, lanes, "mma")
        left = fragments([v[s][lanes] for s in a], types[1], 16)
        right = fragments([v[s][lanes] for s in b], types[2], 8)
        sums = _sums(left, right, result == "s32").reshape(warps, 2, 8, 4, 2)
        for n in range(4):
            part = sums[:, n >> 1, :, :, n & 1].reshape(-1)
            v[d[n]][lanes] = part + v[c[n]][lanes]
    return step


def _ldmatrix(i: Instruction, slots: Slots) -> Step:
    """Matrices of 8 rows of 16 bytes; lane 8 m + r gives the address of row r of matrix m."""
    if "m8n8" not in i.op or "b16" not in i.op:
        raise refuse(".".join(i.op))
    into = i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0],)
    d, where, turned = [slots.write(x, "b32") for x in into], address(slots, i.operands[1]), "trans" in i.op
    count = len(d)

    def step(run: Any, lanes: Any) -> None:
        warps = whole_warps(run, lanes, "ldmatrix")
        ids = run.ids[lanes].reshape(-1, 32)[:, :8 * count].ravel()
        addresses = where(run, lanes).reshape(-1, 32)[:, :8 * count].ravel()
        rows = load(run, "shared", addresses, ids, 16).view(np.uint16).reshape(warps, count, 8, 8)
        if turned:
            rows = np.swapaxes(rows, -1, -2)
        words = np.ascontiguousarray(rows).view(np.uint32)
        for n, each in enumerate(d):
            run.v[each][lanes] = words[:, n].reshape(-1)
    return step


# ---- wgmma -------------------------------------------------------------------------------------------------
class InFlight:
    """Sums of wgmma that were not waited for: the true values of registers, which hold poison meanwhile."""

    def __init__(self, threads: int) -> None:
        self.true: dict[int, np.ndarray] = {}              # slot -> values (threads,)
        self.group: dict[int, np.ndarray] = {}             # slot -> the group whose end gives them; -1: none
        self.begun = np.zeros(threads, np.int64)           # groups committed
        self.fenced = np.zeros(threads, bool)

    def start(self, slot: int, lanes: Any, values: np.ndarray, register: np.ndarray) -> None:
        """Keep `values` for a register, and poison it."""
        if slot not in self.true:
            self.true[slot] = np.zeros_like(register)
            self.group[slot] = np.full(len(register), -1)
        self.true[slot][lanes] = values
        self.group[slot][lanes] = self.begun[lanes]
        register.view(np.uint32)[lanes] = POISON

    def current(self, slot: int, lanes: Any, register: np.ndarray) -> np.ndarray:
        """What a following wgmma adds to: sums in flight, or the register."""
        if slot not in self.true:
            return register[lanes]
        return np.where(self.group[slot][lanes] >= 0, self.true[slot][lanes], register[lanes])

    def wait(self, lanes: Any, newest: int, v: list[np.ndarray]) -> None:
        """All groups but the `newest` ones have ended: their sums are in the registers."""
        for slot, group in self.group.items():
            now = group[lanes]
            ended = (now >= 0) & (now < self.begun[lanes] - newest)
            v[slot][lanes] = np.where(ended, self.true[slot][lanes], v[slot][lanes])
            group[lanes] = np.where(ended, -1, now)

    def pending(self, lanes: Any) -> bool:
        """Whether any sums were never waited for."""
        return any(bool((group[lanes] >= 0).any()) for group in self.group.values())


def _wgmma(i: Instruction, slots: Slots) -> Step:
    if i.op[1] == "mma_async":
        return _multiply(i, slots)
    if i.op[1] not in ("fence", "commit_group", "wait_group"):
        raise refuse(".".join(i.op))

    def step(run: Any, lanes: Any) -> None:
        whole_warps(run, lanes, "wgmma." + i.op[1])
        if i.op[1] == "fence":
            run.wgmma.fenced[lanes] = True
        elif i.op[1] == "commit_group":
            run.wgmma.begun[lanes] += 1
        else:
            run.wgmma.wait(lanes, i.operands[0].value, run.v)
    return step


def _multiply(i: Instruction, slots: Slots) -> Step:
    """wgmma.mma_async: 64 rows of A (registers or shared memory) by n columns of B (shared memory)."""
    shape = next(re.fullmatch(r"m64n(\d+)k(\d+)", part) for part in i.op if part.startswith("m64n"))
    types = i.op[-3:]
    if shape is None or types[1] not in EACH or types[2] not in EACH or types[0] not in ("s32", "f32"):
        raise refuse(".".join(i.op))
    n, width = int(shape[1]), int(shape[2])
    if any(isinstance(x, Number) and x.value != want for x, want in zip(i.operands[4:], (1, 1, 0, 0))):
        raise refuse("wgmma with a negated or transposed operand")
    d = [slots.write(x, types[0]) for x in i.operands[0]]
    in_registers = isinstance(i.operands[1], tuple)
    a = [slots.read(x, "b32") for x in i.operands[1]] if in_registers else [slots.read(i.operands[1], "b64")]
    b, adds = slots.read(i.operands[2], "b64"), predicate(slots, i.operands[3]) \
        if isinstance(i.operands[3], Register) else None
    if len(d) != n // 2:
        raise Fault("wgmma takes n / 2 registers of sums", f"{len(d)} for n = {n}", "count them")

    def step(run: Any, lanes: Any) -> None:
        groups = whole_warps(run, lanes, "wgmma", WARPGROUP)
        if not run.wgmma.fenced[lanes].all():
            raise Fault("wgmma.fence comes before the first wgmma", "none", "add the fence", 0)
        v, ids = run.v, run.ids[lanes].reshape(-1, WARPGROUP)
        right = np.stack([_described(run, ids[w], int(v[b][ids[w, 0]]), n, width, types[2])
                          for w in range(groups)])
        if in_registers:
            left = fragments([v[s][lanes] for s in a], types[1], 16).reshape(groups, 64, width)
        else:
            left = np.stack([_described(run, ids[w], int(v[a[0]][ids[w, 0]]), 64, width, types[1])
                             for w in range(groups)])
        # warpgroup, warp, row block, g, column block, t, number -> lanes (warpgroup, warp, g, t)
        sums = _sums(left, right, types[0] == "s32").reshape(groups, 4, 2, 8, n // 8, 4, 2)
        sums = sums.transpose(4, 2, 6, 0, 1, 3, 5).reshape(n // 2, -1)
        added = adds(run, lanes) if adds else np.full(ids.size, bool(i.operands[3].value))
        for column, slot in zip(sums, d):
            before = run.wgmma.current(slot, lanes, v[slot])
            run.wgmma.start(slot, lanes, np.where(added, column + before, column).astype(v[slot].dtype),
                            v[slot])
    return step


def _described(run: Any, ids: np.ndarray, descriptor: int, rows: int, k: int, kind: str) -> np.ndarray:
    """The matrix (rows, k) that a descriptor names: K-major, not swizzled, pieces of 8 rows x 16 bytes."""
    if descriptor >> 62:
        raise refuse("a swizzled matrix descriptor")
    start, leading, stride = (((descriptor >> shift) & 0x3FFF) << 4 for shift in (0, 16, 32))
    bytes_k = 4 * k // EACH[kind]
    core, row = np.arange(bytes_k // 16), np.arange(rows)[:, None]
    addresses = (start + core * leading + row // 8 * stride + row % 8 * 16).astype(np.uint64)
    found = load(run, "shared", addresses.ravel(), np.full(addresses.size, ids[0]), 16, "matrix")
    _, at = resolve(run, "shared", addresses.ravel(), np.full(addresses.size, ids[0]), 16)
    for thread in ids[32::32]:                             # all four warps read it
        run.ordered(at, 16, np.full(addresses.size, thread), True)
    return _numbers(found.view(np.uint32).reshape(rows, -1), kind).reshape(rows, k)


BUILD: dict[str, Any] = {"mma": _mma, "ldmatrix": _ldmatrix, "wgmma": _wgmma}
__all__ = ["BUILD", "DTYPE", "InFlight", "fragments"]
