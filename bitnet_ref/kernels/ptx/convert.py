"""cvt: numbers from one type to another, with the rounding and the limits that PTX asks for.

A float becomes an integer by the mode in the name, clamped to the type, NaN as 0; an integer is cut, or
clamped with .sat; a narrower float is rounded half to even, or as the name says.
Read after: kernels/ptx/scalar. Read next: kernels/ptx/access.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref.kernels.ptx.memory import refuse
from bitnet_ref.kernels.ptx.module import SIZE, Instruction
from bitnet_ref.kernels.ptx.scalar import flushed, from_bf16, to_bf16
from bitnet_ref.kernels.ptx.values import DTYPE, Slots, Step

WHOLE: dict[str, Any] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
TOWARD: dict[str, Any] = {"rm": lambda x: np.full_like(x, -np.inf), "rp": lambda x: np.full_like(x, np.inf),
                          "rz": np.zeros_like}


def build(i: Instruction, slots: Slots) -> Step:
    """The step of a cvt."""
    kinds = [part for part in i.op if part in SIZE]
    if len(kinds) != 2 or any(part in ("relu", "satfinite", "rna") for part in i.op):
        raise refuse(".".join(i.op))
    into, source = kinds
    if into in ("f16x2", "bf16x2"):
        return _pair(i, slots, into)
    d, a = slots.write(i.operands[0], into), slots.read(i.operands[1], source)
    f = conversion(into, source, i.op)

    def step(run: Any, lanes: Any) -> None:
        run.v[d][lanes] = f(run.v[a][lanes])
    return step


def _pair(i: Instruction, slots: Slots, into: str) -> Step:
    """Two float32 as halves of 32 bits: the first operand above."""
    d = slots.write(i.operands[0], "b32")
    high, low = (slots.read(x, "f32") for x in i.operands[1:3])
    f = conversion(into[:-2], "f32", i.op)

    def step(run: Any, lanes: Any) -> None:
        bits = [np.ascontiguousarray(f(run.v[s][lanes])).view(np.uint16).astype(np.uint32)
                for s in (high, low)]
        run.v[d][lanes] = bits[0] << np.uint32(16) | bits[1]
    return step


def conversion(into: str, source: str, modifiers: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """A function from vectors of type `source` to vectors of type `into`."""
    dtype = np.dtype(DTYPE[into])
    whole = next((WHOLE[part] for part in modifiers if part in WHOLE), None)
    floats = "f16", "bf16", "f32", "f64"

    def f(x: np.ndarray) -> np.ndarray:
        if source == "bf16":
            x = from_bf16(x)
        if "ftz" in modifiers:
            x = flushed(x)
        if into in floats:
            return flushed(_to_float(x, into, whole, modifiers)) if "ftz" in modifiers else \
                _to_float(x, into, whole, modifiers)
        if source in floats:
            return _to_integer(whole or np.rint, x, dtype)
        return _clamped(x, dtype) if "sat" in modifiers else x.astype(dtype)
    return f


def _to_float(x: np.ndarray, into: str, whole: Any, modifiers: tuple[str, ...]) -> np.ndarray:
    if whole is not None:
        x = whole(x)
    toward = next((TOWARD[part] for part in modifiers if part in TOWARD), None)
    if into == "bf16":
        if toward is not None:
            bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
            if "rz" not in modifiers:
                raise refuse("cvt." + ".".join(modifiers))
            return (bits >> np.uint32(16)).astype(np.uint16)
        return to_bf16(x.astype(np.float32))
    y: np.ndarray = x.astype(DTYPE[into])
    if toward is not None:
        exact = x.astype(np.longdouble)
        goal = toward(y)
        beyond = np.abs(y) > np.abs(exact) if "rz" in modifiers else \
            (y > exact if "rm" in modifiers else y < exact)
        y = np.where(beyond, np.nextafter(y, goal), y)
    return np.nan_to_num(np.clip(y, 0, 1), nan=0.0) if "sat" in modifiers else y


def _to_integer(whole: Any, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded and clamped. A limit of 64 bits is no float64: what reaches it is set apart."""
    y = whole(x.astype(np.float64))
    bounds = np.iinfo(dtype)
    y = np.where(np.isnan(y), 0.0, y)
    inside = np.where((y > bounds.min) & (y < bounds.max), y, 0.0).astype(dtype)
    return np.where(y >= bounds.max, dtype.type(bounds.max),
                    np.where(y <= bounds.min, dtype.type(bounds.min), inside))


def _clamped(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    bounds, own = np.iinfo(dtype), np.iinfo(x.dtype)
    return np.clip(x, max(bounds.min, own.min), min(bounds.max, own.max)).astype(dtype)
