"""Instructions that move: ld, st, mov, cvta, atom, red. Addresses become offsets of a memory, checked there.

Atomic operations of one instruction are made lane after lane, in the order of the threads; a card may take
any.
Read after: kernels/ptx/convert. Read next: kernels/ptx/warp.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref.kernels.ptx.faults import Fault
from bitnet_ref.kernels.ptx.memory import GLOBAL, LOCAL, SHARED, refuse
from bitnet_ref.kernels.ptx.module import SIZE, Address, Instruction, Number, Register, Symbol
from bitnet_ref.kernels.ptx.scalar import from_bf16, to_bf16
from bitnet_ref.kernels.ptx.values import BITS, DTYPE, Slots, Step

Where = Callable[[Any, Any], np.ndarray]


def address(slots: Slots, operand: Address) -> Where:
    """A function of (run, lanes): the addresses, as uint64."""
    base = operand.base
    short = isinstance(base, Register) and SIZE[slots.registers[base.name]] == 4
    slot, offset = slots.read(base, "u32" if short else "u64"), np.uint64(operand.offset % 2 ** 64)

    def where(run: Any, lanes: Any) -> np.ndarray:
        found = run.v[slot][lanes]
        return found.astype(np.uint64) + offset if short else found + offset
    return where


def resolve(run: Any, space: str, addresses: np.ndarray, lanes: Any, n: int) -> tuple[Any, np.ndarray]:
    """The memory that addresses of `space` lie in, and offsets there. Raises Fault outside of it."""
    if space == "generic":
        space, addresses = _window(addresses)
    if space in ("global", "const"):
        return run.memory, run.memory.offsets(addresses)
    if space == "shared":
        return run.shared, run.shared.offsets(addresses, run.block[lanes], n)
    return run.local, run.local.offsets(addresses, run.ids[lanes], n)


def _window(addresses: np.ndarray) -> tuple[str, np.ndarray]:
    """The space of generic addresses, which must be one, and the addresses there."""
    low, high = int(addresses.min()), int(addresses.max())
    if low >= GLOBAL - (1 << 32):
        return "global", addresses
    if low >= SHARED and high < LOCAL:
        return "shared", addresses - np.uint64(SHARED)
    if low >= LOCAL and high < GLOBAL - (1 << 32):
        return "local", addresses - np.uint64(LOCAL)
    raise Fault("a generic address must lie in global, shared or local memory", f"{low:#x} to {high:#x}",
                "check the pointer; all lanes of the interpreter must agree on the space")


def load(run: Any, space: str, addresses: np.ndarray, lanes: Any, n: int, what: str = "load") -> np.ndarray:
    """n bytes for each lane, as Bytes.load gives them; noted for races and counts."""
    memory, at = resolve(run, space, addresses, lanes, n)
    found = memory.load(at, n)
    run.note(memory, at, n, lanes, what)
    return found


def store(run: Any, space: str, addresses: np.ndarray, lanes: Any, n: int, values: np.ndarray) -> None:
    """Write n bytes for each lane; noted for races and counts."""
    memory, at = resolve(run, space, addresses, lanes, n)
    memory.store(at, n, values)
    run.note(memory, at, n, lanes, "store")


def _listed(operand: Any) -> tuple[Any, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def _load(i: Instruction, slots: Slots) -> Step:
    """ld, also of two and four numbers at once; of a parameter."""
    if i.space == "param":
        name = i.operands[1].base.name
        d, source = slots.write(i.operands[0], i.type), slots.read(Symbol(name), i.type)

        def parameter(run: Any, lanes: Any) -> None:
            run.v[d][lanes] = run.v[source][lanes]
        return parameter
    dtype, into = DTYPE[i.type], [slots.write(x, i.type) for x in _listed(i.operands[0])]
    n, space, where = SIZE[i.type] * len(into), i.space, address(slots, i.operands[1])
    if len(into) == 1:
        only = into[0]

        def one(run: Any, lanes: Any) -> None:
            run.v[only][lanes] = load(run, space, where(run, lanes), lanes, n).view(dtype)
        return one

    def several(run: Any, lanes: Any) -> None:
        found: np.ndarray = load(run, space, where(run, lanes), lanes, n).view(dtype).reshape(-1, len(into))
        for column, d in enumerate(into):
            run.v[d][lanes] = found[:, column]
    return several


def _store(i: Instruction, slots: Slots) -> Step:
    dtype, sources = DTYPE[i.type], [slots.read(x, i.type) for x in _listed(i.operands[1])]
    n, space, where = SIZE[i.type] * len(sources), i.space, address(slots, i.operands[0])

    def step(run: Any, lanes: Any) -> None:
        values = as_words([run.v[s][lanes] for s in sources], dtype, n)
        store(run, space, where(run, lanes), lanes, n, values)
    return step


def as_words(columns: list[np.ndarray], dtype: Any, n: int) -> np.ndarray:
    """Numbers side by side as integers of n bytes, or pairs of 8."""
    if len(columns) == 1:
        return np.ascontiguousarray(columns[0]).view(BITS[n])
    rows = np.empty((len(columns[0]), len(columns)), dtype)
    for j, column in enumerate(columns):
        rows[:, j] = column
    return rows.view(np.uint64) if n == 16 else rows.view(BITS[n])[:, 0]


def _move(i: Instruction, slots: Slots) -> Step:
    """mov, also of a register's parts to several and of several to one."""
    into, source = i.operands
    if isinstance(into, tuple):
        part = f"b{8 * SIZE[i.type] // len(into)}"
        d, a = [slots.write(x, part) for x in into], slots.read(source, i.type)

        def apart(run: Any, lanes: Any) -> None:
            found: np.ndarray = np.ascontiguousarray(run.v[a][lanes]).view(DTYPE[part]).reshape(-1, len(d))
            for column, each in enumerate(d):
                run.v[each][lanes] = found[:, column]
        return apart
    one = slots.write(into, i.type)
    if isinstance(source, tuple):
        part, n = f"b{8 * SIZE[i.type] // len(source)}", SIZE[i.type]
        parts = [slots.read(x, part) for x in source]

        def joined(run: Any, lanes: Any) -> None:
            words = as_words([run.v[s][lanes] for s in parts], DTYPE[part], n)
            run.v[one][lanes] = words.view(run.v[one].dtype)
        return joined
    only = slots.read(source, i.type)

    def plain(run: Any, lanes: Any) -> None:
        run.v[one][lanes] = run.v[only][lanes]
    return plain


def _to_address(i: Instruction, slots: Slots) -> Step:
    """cvta: an address of a space to a generic one, or back."""
    begin = {"shared": SHARED, "local": LOCAL}.get(i.space, 0)
    d, a = slots.write(i.operands[0], i.type), slots.read(i.operands[1], i.type)
    shift = DTYPE[i.type](begin)

    def step(run: Any, lanes: Any) -> None:
        found = run.v[a][lanes]
        run.v[d][lanes] = found - shift if "to" in i.op else found + shift
    return step


# ---- atomic operations -------------------------------------------------------------------------------------
def _wrapped_up(old: Any, limit: Any) -> Any:
    return old + 1 if old < limit else type(old)(0)


def _wrapped_down(old: Any, limit: Any) -> Any:
    return limit if old == 0 or old > limit else old - 1


COMBINE: dict[str, Any] = {"add": lambda o, x: o + x, "min": min, "max": max, "exch": lambda o, x: x,
                           "and": lambda o, x: o & x, "or": lambda o, x: o | x, "xor": lambda o, x: o ^ x,
                           "inc": _wrapped_up, "dec": _wrapped_down, "cas": None}
VECTORS: dict[str, Any] = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
                           "or": np.bitwise_or, "xor": np.bitwise_xor}


def _atomic(i: Instruction, slots: Slots) -> Step:
    """atom (which gives the old value) and red."""
    gives = i.op[0] == "atom"
    name = next((part for part in i.op if part in COMBINE), None)
    if name is None or isinstance(i.operands[-1], tuple) or i.type.endswith("x2"):
        raise refuse(".".join(i.op))
    d = slots.write(i.operands[0], i.type) if gives else None
    rest = i.operands[1:] if gives else i.operands
    where, values = address(slots, rest[0]), [slots.read(x, i.type) for x in rest[1:]]
    n, dtype = SIZE[i.type], DTYPE[i.type]

    def step(run: Any, lanes: Any) -> None:
        memory, at = resolve(run, i.space, where(run, lanes), lanes, n)
        old = memory.load(at, n).view(dtype)
        run.note(memory, at, n, lanes, "atomic")
        given = [run.v[s][lanes] for s in values]
        view, place = memory.views[n][0].view(dtype), (at >> np.uint64(n.bit_length() - 1)).astype(np.int64)
        alone = np.unique(place).size == place.size
        if d is None and name in VECTORS and i.type != "bf16":
            VECTORS[name].at(view, place, given[0])
        elif alone and name in VECTORS and i.type != "bf16":
            view[place] = VECTORS[name](old, given[0])
        else:
            for lane, p in enumerate(place):
                old[lane] = view[p]
                view[p] = _combined(name, i.type, view[p], [g[lane] for g in given])
        if d is not None:
            run.v[d][lanes] = old
    return step


def _combined(name: str, kind: str, old: Any, given: list[Any]) -> Any:
    """What an atomic operation leaves in memory."""
    if name == "cas":
        return given[1] if old == given[0] else old
    if kind == "bf16" and name == "add":
        return to_bf16(from_bf16(np.array([old])) + from_bf16(np.array([given[0]])))[0]
    return COMBINE[name](old, given[0])


BUILD: dict[str, Any] = {"ld": _load, "ldu": _load, "st": _store, "mov": _move, "cvta": _to_address,
                         "atom": _atomic, "red": _atomic}
__all__ = ["BUILD", "Number", "address", "as_words", "load", "resolve", "store"]
