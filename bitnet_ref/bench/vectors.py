"""A vector register as a value in Numba: load, shift, dot product, fused multiply-add, one instruction each.

Numba compiles through LLVM, whose vectoriser turns many loops into vector code, but never into a dot product
of bytes. Here such instructions are functions: each `op` writes a line of LLVM's language where it is called.
A vector is as wide as this machine's registers. Nothing checks that an offset lies inside its array.
Read after: bench/timing. Read next: bench/roofline.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

I8, I16, I32, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


class Dot(NamedTuple):
    """An instruction set with dot products of bytes. `needs`: features, in LLVM's words; `lanes`: int32 in a
    register; `bytes`: LLVM's name for the product that sums four bytes into a lane, or two into half."""

    name: str
    needs: tuple[str, ...]
    lanes: int
    bytes: str


VNNI, NEON = "vpdpbusd", "sdot"
DOTS = (Dot("AVX512-VNNI", ("avx512bw", "avx512vnni"), 16, "llvm.x86.avx512.vpdpbusd.512"),
        Dot("AVX512-BW", ("avx512bw",), 16, "llvm.x86.avx512.pmaddubs.w.512"),
        Dot("AVX-VNNI", ("avx2", "avxvnni"), 8, "llvm.x86.avx512.vpdpbusd.256"),
        Dot("AVX2", ("avx2",), 8, "llvm.x86.avx2.pmadd.ub.sw"),
        Dot("NEON", ("dotprod",), 4, "llvm.aarch64.neon.sdot.v4i32.v16i8"))


def features() -> frozenset[str]:
    """What this processor can do, in LLVM's words; nothing if LLVM does not know it."""
    try:
        return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)
    except RuntimeError:
        return frozenset()


def dots(has: frozenset[str]) -> list[Dot]:
    """Those of DOTS that a processor with these features runs, the widest first."""
    return [d for d in DOTS if has.issuperset(d.needs)]


DOT = next(iter(dots(features())), None)     # None: loops only
LANES = DOT.lanes if DOT else 4              # of four bytes


class Vector(types.Type):
    """Numba's type of a register."""


def _vector(name: str, element: ir.Type, count: int) -> Vector:
    kind = type(name, (Vector,), {"__module__": __name__})

    @register_model(kind)
    class Model(models.PrimitiveModel):
        def __init__(self, manager: Any, own: Any) -> None:
            super().__init__(manager, own, ir.VectorType(element, count))

    return kind(name)


BYTES = _vector("Bytes", I8, 4 * LANES)
SUMS = _vector("Sums", I32, LANES)
FLOATS = _vector("Floats", F32, LANES)
ARRAY = None                                 # any contiguous array; what arrives is its address


def op(result: Any, *kinds: Any) -> Callable[[Callable[..., ir.Value]], Any]:
    """Make `emit(builder, *values)`, which writes LLVM instructions, a function for compiled code."""
    def wrap(emit: Callable[..., ir.Value]) -> Any:
        def call(typingctx: Any, *args: Any) -> Any:
            own = [a if k is ARRAY else k for a, k in zip(args, kinds)]
            if any(k is ARRAY and a.layout != "C" for a, k in zip(args, kinds)):
                raise TypingError(f"{emit.__name__} reads memory: its array must be contiguous (C)")

            def codegen(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
                values = [context.make_array(s)(context, builder, v).data if k is ARRAY else v
                          for s, v, k in zip(sig.args, values, kinds)]
                made = emit(builder, *values)
                return context.get_dummy_value() if made is None else made

            return result(*own), codegen

        call.__name__, call.__doc__ = emit.__name__, emit.__doc__
        call.__signature__ = inspect.signature(emit)                      # type: ignore[attr-defined]
        return intrinsic(call)

    return wrap


def _llvm(kind: Vector) -> ir.VectorType:
    return {BYTES: ir.VectorType(I8, 4 * LANES), SUMS: ir.VectorType(I32, LANES),
            FLOATS: ir.VectorType(F32, LANES)}[kind]


def _at(builder: ir.IRBuilder, data: ir.Value, offset: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def _splat(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    first = builder.insert_element(ir.Constant(ir.VectorType(value.type, count), ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, count), [0] * count))


def _all(kind: ir.VectorType, value: float) -> ir.Value:
    return ir.Constant(kind, [value] * kind.count)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


# ---- bytes, and their dot products ----

@op(BYTES, ARRAY, types.intp)
def load_bytes(builder, data, offset):
    """4 LANES bytes of an array of bytes, from `offset` on."""
    return builder.load(_at(builder, data, offset, _llvm(BYTES)), align=1)


@op(types.void, ARRAY, types.intp, BYTES)
def store_bytes(builder, data, offset, v):
    """4 LANES bytes into an array of bytes, from `offset` on."""
    builder.store(v, _at(builder, data, offset, v.type), align=1)


@op(BYTES, ARRAY, types.intp)
def four(builder, data, offset):
    """The four bytes at `offset`, the same four in every lane."""
    word = builder.load(_at(builder, data, offset, I32), align=1)
    return builder.bitcast(_splat(builder, word, LANES), _llvm(BYTES))


@op(BYTES, BYTES, types.int16)
def two_bits(builder, v, place):
    """(v >> place) & 3 of every byte, shifted in pairs of bytes: no instruction shifts single ones."""
    pairs = ir.VectorType(I16, 2 * LANES)
    shifted = builder.lshr(builder.bitcast(v, pairs), _splat(builder, place, 2 * LANES))
    return builder.and_(builder.bitcast(shifted, v.type), _all(v.type, 3))


@op(BYTES, BYTES)
def triple(builder, v):
    """3 v of every byte, modulo 256."""
    return builder.add(builder.add(v, v), v)


@op(BYTES, BYTES)
def triple_carry(builder, v):
    """What 3 v carries out of every byte: 3 v // 256, that is (v > 85) + (v > 170)."""
    return builder.add(*(builder.zext(builder.icmp_unsigned(">", v, _all(v.type, edge)), v.type)
                         for edge in (85, 170)))


@op(SUMS, types.int32)
def int_lanes(builder, value):
    """The same integer in every lane."""
    return _splat(builder, value, LANES)


@op(SUMS, SUMS, SUMS)
def add(builder, a, b):
    """a + b."""
    return builder.add(a, b)


def emit_dot(builder: ir.IRBuilder, dot: Dot, acc: ir.Value, codes: ir.Value, x: ir.Value) -> ir.Value:
    """acc <lanes x i32> + each lane's four products of unsigned `codes` and signed `x` <4 lanes x i8>.

    AVX2 sums two products in 16 bits and saturates: codes must be at most 127 there, and for NEON, whose
    codes are signed. Trits use 0, 1 and 2.
    """
    if VNNI in dot.bytes:
        return _call(builder, dot.bytes, acc.type, acc, builder.bitcast(codes, acc.type),
                     builder.bitcast(x, acc.type))
    if NEON in dot.bytes:
        return _call(builder, dot.bytes, acc.type, acc, codes, x)
    words = ir.VectorType(I16, 2 * dot.lanes)
    pairs = _call(builder, dot.bytes, words, codes, x)
    join = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[dot.lanes]
    return builder.add(acc, _call(builder, join, acc.type, pairs, _all(words, 1)))


@op(SUMS, SUMS, BYTES, BYTES)
def dot4(builder, acc, codes, x):
    """acc + the four products of each lane: codes unsigned, x signed. The instruction that DOT names."""
    assert DOT
    return emit_dot(builder, DOT, acc, codes, x)


@op(types.int32, SUMS)
def across(builder, v):
    """The sum of the lanes."""
    return _call(builder, f"llvm.vector.reduce.add.v{LANES}i32", I32, v)


@op(SUMS, ARRAY, types.intp)
def load_sums(builder, data, offset):
    """LANES elements of an int32 array, from element `offset` on."""
    return builder.load(_at(builder, data, offset, _llvm(SUMS)), align=1)


@op(SUMS, SUMS, SUMS)
def undivided(builder, q, after):
    """(3 q - after) / 256 of sums of fractions before and after `triple`: the sum of what was carried."""
    return builder.ashr(builder.sub(builder.mul(q, _all(q.type, 3)), after), _all(q.type, 8))


@op(types.void, ARRAY, types.intp, SUMS)
def store_sums(builder, data, offset, v):
    """LANES int32 into an int32 array, from element `offset` on."""
    builder.store(v, _at(builder, data, offset, v.type), align=1)


# ---- float32 ----

@op(FLOATS, ARRAY, types.intp)
def load_floats(builder, data, offset):
    """LANES elements of a float32 array, from element `offset` on."""
    return builder.load(_at(builder, data, offset, _llvm(FLOATS)), align=1)


@op(types.void, ARRAY, types.intp, FLOATS)
def store_floats(builder, data, offset, v):
    """LANES floats into a float32 array, from element `offset` on."""
    builder.store(v, _at(builder, data, offset, v.type), align=1)


@op(FLOATS, types.float32)
def float_lanes(builder, value):
    """The same float in every lane."""
    return _splat(builder, value, LANES)


@op(FLOATS, FLOATS, FLOATS, FLOATS)
def fma(builder, a, b, c):
    """a b + c, rounded once."""
    return _call(builder, f"llvm.fma.v{LANES}f32", a.type, a, b, c)


@op(FLOATS, FLOATS, FLOATS)
def larger(builder, a, b):
    """The larger of each lane; b where one of them is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@op(FLOATS, FLOATS)
def nearest(builder, v):
    """Each lane rounded to an integer, half to even."""
    return _call(builder, f"llvm.rint.v{LANES}f32", v.type, v)


@op(FLOATS, FLOATS)
def power_of_two(builder, n):
    """2^n for integers n in -126..127, and 0 for -127: n + 127 is the exponent's bits."""
    integers = ir.VectorType(I32, LANES)
    biased = builder.add(builder.fptosi(n, integers), _all(integers, 127))
    return builder.bitcast(builder.shl(biased, _all(integers, 23)), n.type)


@op(types.float32, FLOATS)
def float_sum(builder, v):
    """The sum of the lanes, in halves: half as many lanes at each step."""
    kind = ir.FunctionType(F32, [F32, v.type])
    total = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(total, [F32(0), v], fastmath=("reassoc",))


@op(types.float32, FLOATS)
def largest(builder, v):
    """The largest lane."""
    return _call(builder, f"llvm.vector.reduce.fmax.v{LANES}f32", F32, v)


# ---- single numbers ----

@op(types.int64, types.uint64)
def popcount(builder, word):
    """How many bits of a word are set."""
    return builder.ctpop(word)
