"""Registers of all threads as vectors, and how an instruction names those that it reads and writes.

A register is one NumPy array with a number for each thread; a constant is an array of stride 0. Before a
kernel runs, every operand of every instruction becomes a slot: an array seen as the type that the instruction
wants. An instruction then is a function of (run, lanes), where lanes is a slice or an array of threads, and
run.v[slot][lanes] are its values.
Read after: kernels/ptx/module. Read next: kernels/ptx/memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.kernels.ptx.faults import Fault
from bitnet_ref.kernels.ptx.module import Number, Register, Symbol

Lanes = Any                                # slice or integer array: threads of the run, in rising order
Step = Callable[[Any, Lanes], None]
DTYPE = {"u8": np.uint8, "s8": np.int8, "b8": np.uint8, "u16": np.uint16, "s16": np.int16, "b16": np.uint16,
         "u32": np.uint32, "s32": np.int32, "b32": np.uint32, "f32": np.float32, "f16": np.float16,
         "bf16": np.uint16, "f16x2": np.uint32, "bf16x2": np.uint32,
         "u64": np.uint64, "s64": np.int64, "b64": np.uint64, "f64": np.float64, "pred": np.bool_}
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SINK = "_"                                 # the register that nobody reads
KEPT = 1 << 20                             # numbers in the slots of a launch that is small


class Slots:
    """The slots of a kernel: each an operand and the type it is seen as. `symbols`: addresses of arrays.

    `given`: names whose values come with a launch, as the special registers' do: parameters.
    """

    def __init__(self, registers: dict[str, str], symbols: dict[str, int], given: Any = ()) -> None:
        self.registers, self.symbols, self.given = registers, symbols, (*SPECIAL, *given)
        self.numbers: dict[Any, int] = {}
        self.kept: dict[int, list[np.ndarray]] = {}        # threads -> their arrays, of small launches
        self.named: list[tuple[int, str, np.dtype]] = []   # slots whose values come with a launch

    def read(self, operand: Any, kind: str) -> int:
        """The slot of `operand` as PTX type `kind`. Raises Fault for one that has no value."""
        if isinstance(operand, Symbol) and operand.name not in (*self.symbols, *self.given):
            raise Fault("an operand must be a register, a number or a symbol that is declared", operand.name,
                        "declare it; the interpreter knows the special registers " + ", ".join(SPECIAL))
        if isinstance(operand, Register) and self.registers[operand.name] == "pred":
            kind = "pred"
        return self._slot(operand, np.dtype(DTYPE[kind]))

    def write(self, operand: Any, kind: str) -> int:
        """The slot that results of type `kind` go to; in a wider register they are extended."""
        if isinstance(operand, Symbol) and operand.name == SINK:
            return self._slot(Symbol(SINK), np.dtype(DTYPE[kind]))
        if not isinstance(operand, Register):
            raise Fault("a result goes to a register", str(operand), "name one that is declared")
        own, dtype = np.dtype(DTYPE[self.registers[operand.name]]), np.dtype(DTYPE[kind])
        if own != np.bool_ and own.itemsize > dtype.itemsize:
            dtype = np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{own.itemsize}")
        return self._slot(Register(operand.name), dtype)

    def _slot(self, operand: Any, dtype: np.dtype) -> int:
        return self.numbers.setdefault((operand, dtype), len(self.numbers))

    def fill(self, n: int, value: Callable[[str], np.ndarray]) -> list[np.ndarray]:
        """The arrays of all slots for `n` threads; `value(name)`: of special registers and parameters.

        Registers hold what they held, or what memory held. Those of small launches are kept for the next one.
        """
        filled = self.kept.pop(n, None) or self._made(n)
        for slot, name, dtype in self.named:
            filled[slot] = value(name).astype(dtype)
        if n * len(filled) <= KEPT and len(self.kept) < 4:
            self.kept[n] = filled
        return filled

    def _made(self, n: int) -> list[np.ndarray]:
        bits: dict[str, np.ndarray] = {}
        for name, kind in self.registers.items():
            dtype = np.dtype(DTYPE[kind])
            bits[name] = np.empty(n, np.bool_ if kind == "pred" else BITS[dtype.itemsize])
        filled, self.named = [], []
        for slot, (operand, dtype) in enumerate(self.numbers):
            if isinstance(operand, Register):
                filled.append(_seen_as(bits[operand.name], dtype))
            elif isinstance(operand, Number):
                filled.append(np.broadcast_to(constant(operand, dtype), n))
            elif operand.name in self.symbols:
                filled.append(np.broadcast_to(np.array(self.symbols[operand.name]).astype(dtype), n))
            else:
                filled.append(np.empty(n, dtype))
                self.named += [(slot, operand.name, dtype)] if operand.name != SINK else []
        return filled


def _seen_as(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A register's bits as numbers of `dtype`; of a narrower one, the low bits."""
    if bits.dtype == np.bool_:
        return bits
    if bits.dtype.itemsize >= dtype.itemsize and dtype != np.bool_:
        return bits.view(dtype)[::bits.dtype.itemsize // dtype.itemsize]
    raise Fault("an operand must be at least as wide as the instruction's type",
                f"{8 * bits.dtype.itemsize} bits for {dtype}", "use a wider register")


def constant(number: Number, dtype: np.dtype) -> np.ndarray:
    """A constant as one number of `dtype`."""
    if number.float_bytes:
        value = np.array(number.value, BITS[number.float_bytes]).view(f"f{number.float_bytes}")
        if dtype.kind == "f":
            return value.astype(dtype)
    elif dtype.kind == "f":
        return np.array(number.value, dtype)
    if dtype == np.bool_:
        return np.array(bool(number.value))
    return np.array(number.value & _ones(dtype), BITS[dtype.itemsize]).view(dtype)


def _ones(dtype: np.dtype) -> int:
    return (1 << 8 * dtype.itemsize) - 1


SMS = 132                                  # multiprocessors, as an H100 or H200 has
SPECIAL = (*(f"%{name}.{axis}" for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"),
           *(f"%lanemask_{order}" for order in ("eq", "lt", "le", "gt", "ge")), "%laneid", "%warpid",
           "%nwarpid", "%smid", "%nsmid", "WARP_SZ", "%dynamic_smem_size", "%total_smem_size",
           "%clock", "%clock64", "%globaltimer", "%gridid")


class Geometry(NamedTuple):
    """A slice of a launch: blocks by number, `padded` threads each (whole warps), bytes of shared memory."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    blocks: np.ndarray
    padded: int
    dynamic: int
    shared: int

    def special(self, name: str) -> np.ndarray:
        """The value of a special register for each thread, padded ones included."""
        thread = np.tile(np.arange(self.padded), len(self.blocks))
        number = np.repeat(self.blocks, self.padded)
        base, _, axis = name.partition(".")
        if axis:
            n = "xyz".index(axis)
            sizes = self.block if "tid" in base else self.grid
            if base[1] == "n":
                return np.full_like(thread, sizes[n])
            value = (thread if base == "%tid" else number) // int(np.prod(sizes[:n]))
            return value % sizes[n] if n < 2 else value
        if base.startswith("%lanemask"):
            bit = np.uint64(1) << (thread % 32).astype(np.uint64)
            below, above = bit - np.uint64(1), np.uint64(1 << 32) - 2 * bit
            return {"eq": bit, "lt": below, "le": below + bit, "gt": above, "ge": above + bit}[base[-2:]]
        known = {"%laneid": thread % 32, "%warpid": thread // 32, "%smid": number % SMS}
        constants = {"%nwarpid": self.padded // 32, "%nsmid": SMS, "WARP_SZ": 32,
                     "%dynamic_smem_size": self.dynamic, "%total_smem_size": self.shared}
        return known[base] if base in known else np.full_like(thread, constants.get(base, 0))
