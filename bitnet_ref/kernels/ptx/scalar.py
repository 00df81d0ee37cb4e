"""Arithmetic of one thread: integers, floats, bits, comparisons; each instruction as a function of vectors.

Float results are rounded once, as PTX asks for .rn: NumPy's + - * / and sqrt are; fma of float32 is made so
below, that of float64 is rounded twice. The .approx functions are computed in float64 and rounded: a card may
differ in the last places that PTX allows it.
Read after: kernels/ptx/races. Read next: kernels/ptx/convert.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref.kernels.ptx.memory import refuse
from bitnet_ref.kernels.ptx.module import Instruction, Number, Register
from bitnet_ref.kernels.ptx.values import BITS, DTYPE, Slots, Step

Build = Callable[[Instruction, Slots], Step]
COMPARE: dict[str, Any] = {
    "eq": np.equal, "ne": lambda x, y: (x < y) | (x > y), "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
    "equ": lambda x, y: ~((x < y) | (x > y)), "neu": np.not_equal, "ltu": lambda x, y: ~(x >= y),
    "leu": lambda x, y: ~(x > y), "gtu": lambda x, y: ~(x <= y), "geu": lambda x, y: ~(x < y),
    "num": lambda x, y: (x == x) & (y == y), "nan": lambda x, y: (x != x) | (y != y)}
LOGIC: dict[str, Any] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def pointwise(function: Callable[..., Any], kinds: str = "", result: str = "") -> Build:
    """The instruction d = function(a, b, ...) on vectors. `kinds`, `result`: types other than the name's."""
    def build(i: Instruction, slots: Slots) -> Step:
        inputs = kinds.split() or [i.type] * (len(i.operands) - 1)
        d = slots.write(i.operands[0], result or i.type)
        sources = [slots.read(operand, kind) for operand, kind in zip(i.operands[1:], inputs)]
        return _step(_in_type(i, function), d, sources)
    return build


def _step(f: Callable[..., Any], d: int, sources: list[int]) -> Step:
    """The step of one, two or more operands."""
    if len(sources) == 1:
        a, = sources

        def one(run: Any, lanes: Any) -> None:
            run.v[d][lanes] = f(run.v[a][lanes])
        return one
    if len(sources) == 2:
        a, b = sources

        def two(run: Any, lanes: Any) -> None:
            v = run.v
            v[d][lanes] = f(v[a][lanes], v[b][lanes])
        return two

    def more(run: Any, lanes: Any) -> None:
        v = run.v
        v[d][lanes] = f(*[v[s][lanes] for s in sources])
    return more


def _in_type(i: Instruction, f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` as the name's modifiers want it: bf16 through float32, two halves, .ftz, .sat, a direction."""
    mode = next((part for part in i.op if part in ("rz", "rm", "rp")), None)
    if mode:
        f = _directed(i, mode)
    if i.type == "bf16":
        return lambda *x: to_bf16(f(*[from_bf16(each) for each in x]))
    if i.type == "f16x2":
        return lambda *x: _halves(f(*[np.ascontiguousarray(each).view(np.float16) for each in x]))
    if i.type == "bf16x2":
        return lambda *x: _halves(to_bf16(f(*[from_bf16(np.ascontiguousarray(e).view(np.uint16))
                                              for e in x])))
    if "ftz" in i.op:
        inner = f
        f = lambda *x: flushed(inner(*[flushed(each) for each in x]))                    # noqa: E731
    if "sat" in i.op:
        return _saturated(i, f)
    return f


def _halves(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint32)


def _saturated(i: Instruction, f: Callable[..., Any]) -> Callable[..., Any]:
    if i.type[0] == "f":
        return lambda *x: np.nan_to_num(np.clip(f(*x), 0, 1))
    bounds = np.iinfo(np.int32)
    return lambda *x: np.clip(f(*[each.astype(np.int64) for each in x]), bounds.min, bounds.max)


def flushed(x: Any) -> Any:
    """Subnormal numbers of float32 become 0 of the same sign (.ftz)."""
    if getattr(x, "dtype", None) != np.float32:
        return x
    small = np.abs(x) < np.finfo(np.float32).tiny
    return np.where(small, np.copysign(np.float32(0), x), x) if small.any() else x


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as 16 bits -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 as 16 bits, rounded half to even; NaN becomes the quiet 0x7FFF."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


# ---- floats ------------------------------------------------------------------------------------------------
def fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x y + z, rounded once for float32 and float16; for float64 twice."""
    if x.dtype != np.float32:
        return x * y + z if x.dtype == np.float64 else (x.astype(np.float64) * y + z).astype(x.dtype)
    p = x.astype(np.float64) * y                       # exact: 24 + 24 bits
    s = p + z
    # Rounding s again goes wrong only where it lies half-way between two float32, or among the subnormals.
    doubtful = (s.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    doubtful |= (np.abs(s) < 2.0 ** -125) & (s != 0)
    if doubtful.any():
        s[doubtful] = to_odd(p[doubtful], z[doubtful], s[doubtful])
    return s.astype(np.float32)


def to_odd(p: np.ndarray, z: np.ndarray, s: np.ndarray) -> np.ndarray:
    """s = p + z in float64, rounded to odd: where bits are lost the last one is 1, so that it can be rounded
    again, in any direction, as if nothing was lost (Boldo, Melquiond 2008)."""
    b = s - p
    lost = (p - (s - b)) + (z - b)                     # exactly (Knuth's two-sum)
    bits = s.view(np.int64)
    toward = np.where((lost > 0) == (s > 0), 1, -1)
    even = (lost != 0) & (bits & 1 == 0) & np.isfinite(s)
    return np.where(even, bits + toward, bits).view(np.float64)


def _directed(i: Instruction, mode: str) -> Callable[..., Any]:
    """add, sub, mul, fma of float32, rounded down (.rm), up (.rp) or toward 0 (.rz)."""
    if i.type != "f32" or i.op[0] not in ("add", "sub", "mul", "fma"):
        raise refuse(".".join(i.op))

    def f(x: np.ndarray, y: np.ndarray, z: Any = None) -> np.ndarray:
        p = x.astype(np.float64) * (y if i.op[0] in ("mul", "fma") else 1)
        z = (z if i.op[0] == "fma" else np.full_like(p, -0.0) if i.op[0] == "mul" else
             y if i.op[0] == "add" else -y).astype(np.float64)
        s = to_odd(p, z, p + z)
        near = s.astype(np.float32)
        beyond = near > s if mode == "rm" else near < s if mode == "rp" else np.abs(near) > np.abs(s)
        goal = np.float32({"rm": -np.inf, "rp": np.inf, "rz": 0}[mode])
        return np.where(beyond, np.nextafter(near, goal), near)
    return f


def _least(i: Instruction, slots: Slots) -> Step:
    """min and max: a number before NaN (unless .NaN), and -0 below +0."""
    smaller = i.op[0] == "min"
    if i.type[0] not in "fb":
        f: Any = np.minimum if smaller else np.maximum
    else:
        nan = "NaN" in i.op
        pick: Any = (np.minimum if nan else np.fmin) if smaller else (np.maximum if nan else np.fmax)
        merge = np.bitwise_or if smaller else np.bitwise_and

        def f(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            found = pick(x, y)
            zero = found == 0
            if zero.any():                             # equal zeros may have two signs
                bits = BITS[x.dtype.itemsize]
                same = zero & (x == y)
                found = np.where(same, merge(np.ascontiguousarray(x).view(bits),
                                             np.ascontiguousarray(y).view(bits)).view(x.dtype), found)
            return found
    return pointwise(f)(i, slots)


def _near(f: Callable[[Any], Any]) -> Build:
    """A function of one float, computed in float64."""
    return pointwise(lambda x: f(x.astype(np.float64)).astype(x.dtype))


def _test(i: Instruction, slots: Slots) -> Step:
    tests: dict[str, Any] = {
        "finite": np.isfinite, "infinite": np.isinf, "number": lambda x: ~np.isnan(x), "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).tiny),
        "subnormal": lambda x: (np.abs(x) < np.finfo(x.dtype).tiny) & (x != 0)}
    return pointwise(tests[i.op[1]], i.type, "pred")(i, slots)


# ---- integers ----------------------------------------------------------------------------------------------
def quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x / y, toward zero; all ones where y is 0, as cards do (PTX leaves it open)."""
    q = x // y
    if x.dtype.kind == "i":
        q = q + ((q * y != x) & ((x < 0) != (y < 0)))
    return np.where(y == 0, ~np.zeros_like(x), q)


def remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What x / y leaves, with the sign of x; x itself where y is 0."""
    return np.where(y == 0, x, x - np.where(y == 0, x, quotient(x, y)) * y)


def _divide(i: Instruction, slots: Slots) -> Step:
    return pointwise(np.divide if i.type in ("f32", "f64", "f16", "bf16") else quotient)(i, slots)


def _product(i: Instruction, slots: Slots) -> Step:
    """mul and mad: .lo, .hi, .wide; of floats as they are."""
    if i.type[0] in "fb":
        return pointwise(np.multiply if i.op[0] == "mul" else fma)(i, slots)
    f: Any = _wide if "wide" in i.op else _high if "hi" in i.op else np.multiply
    result = f"{i.type[0]}{2 * int(i.type[1:])}" if "wide" in i.op else i.type
    if i.op[0] == "mul":
        return pointwise(f, f"{i.type} {i.type}", result)(i, slots)
    return pointwise(lambda x, y, z: f(x, y) + z, f"{i.type} {i.type} {result}", result)(i, slots)


def _wide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    wide = np.dtype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")
    return x.astype(wide) * y.astype(wide)


def _high(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The upper half of the product; of 64 bits from four products of 32."""
    if x.dtype.itemsize < 8:
        return (_wide(x, y) >> (8 * x.dtype.itemsize)).astype(x.dtype)
    a, b, half, low = x.view(np.uint64), y.view(np.uint64), np.uint64(32), np.uint64(0xFFFFFFFF)
    mid = (a >> half) * (b & low) + ((a & low) * (b & low) >> half)
    cross = (a & low) * (b >> half) + (mid & low)
    top = (a >> half) * (b >> half) + (mid >> half) + (cross >> half)
    if x.dtype.kind == "i":                            # the unsigned product counts a sign bit as 2^63
        top = top - np.where(x < 0, b, np.uint64(0)) - np.where(y < 0, a, np.uint64(0))
    return top.view(x.dtype)


def _mad24(i: Instruction, slots: Slots) -> Step:
    def f(x: np.ndarray, y: np.ndarray, z: Any = 0) -> np.ndarray:
        cut = [(each.astype(np.int64) << 40) >> 40 if i.type[0] == "s" else each.astype(np.int64) & 0xFFFFFF
               for each in (x, y)]
        product = cut[0] * cut[1]
        return ((product if "lo" in i.op else product >> 16) + z).astype(np.uint64).astype(np.uint32)
    return pointwise(f, result="u32")(i, slots)


def _shift(i: Instruction, slots: Slots) -> Step:
    """shl, shr: amounts of the width and above shift everything out."""
    kind = i.type if i.op[0] == "shr" else "u" + i.type[1:]
    move = np.left_shift if i.op[0] == "shl" else np.right_shift
    dtype = np.dtype(DTYPE[kind])
    width = 8 * dtype.itemsize
    d, a = slots.write(i.operands[0], kind), slots.read(i.operands[1], kind)
    if isinstance(i.operands[2], Number) and 0 <= i.operands[2].value < width:
        amount = dtype.type(i.operands[2].value)

        def fixed(run: Any, lanes: Any) -> None:
            run.v[d][lanes] = move(run.v[a][lanes], amount)
        return fixed

    def f(x: np.ndarray, n: np.ndarray) -> np.ndarray:
        r = move(x, np.minimum(n, width - 1).astype(dtype))
        return np.where(n >= width, np.where((x < 0) & (move is np.right_shift), dtype.type(-1),
                                             dtype.type(0))
                        if dtype.kind == "i" else dtype.type(0), r)
    return _step(f, d, [a, slots.read(i.operands[2], "u32")])


def _funnel(i: Instruction, slots: Slots) -> Step:
    left, wrap = "l" in i.op, "wrap" in i.op

    def f(low: np.ndarray, high: np.ndarray, n: np.ndarray) -> np.ndarray:
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        n = (n & np.uint32(31) if wrap else np.minimum(n, 32)).astype(np.uint64)
        moved = (both << n) >> np.uint64(32) if left else both >> n
        return moved.astype(np.uint32)
    return pointwise(f, "b32 b32 u32", "b32")(i, slots)


def _mask(length: np.ndarray) -> np.ndarray:
    """`length` ones, 64 at most."""
    one = np.uint64(1)
    return np.where(length >= 64, ~np.uint64(0), (one << np.minimum(length, 63).astype(np.uint64)) - one)


def _extract(i: Instruction, slots: Slots) -> Step:
    """bfe: bits of x from a position on, sign-extended where the type is signed."""
    width = int(i.type[1:])

    def f(x: np.ndarray, at: np.ndarray, length: np.ndarray) -> np.ndarray:
        at, length = at.astype(np.int64) & 0xFF, length.astype(np.int64) & 0xFF
        wide = x.astype(np.int64).view(np.uint64) if i.type[0] == "s" else x.astype(np.uint64)
        found = np.where(at >= width, np.uint64(0),
                         wide >> np.minimum(at, 63).astype(np.uint64)) & _mask(length)
        if i.type[0] == "s":
            sign = wide >> np.minimum(at + length - 1, width - 1).clip(0).astype(np.uint64) & np.uint64(1)
            known = np.minimum(length, np.maximum(width - at, 0))     # beyond them stands the sign
            found = np.where((sign == 1) & (length > 0), found | ~_mask(known), found)
        return found.astype(BITS[width // 8])
    return pointwise(f, f"{i.type} u32 u32", "b" + i.type[1:])(i, slots)


def _insert(i: Instruction, slots: Slots) -> Step:
    """bfi: the low bits of x put into y."""
    width = int(i.type[1:])

    def f(x: np.ndarray, y: np.ndarray, at: np.ndarray, length: np.ndarray) -> np.ndarray:
        at, length = at.astype(np.int64) & 0xFF, length.astype(np.int64) & 0xFF
        shift = np.minimum(at, 63).astype(np.uint64)
        mask = np.where(at >= width, np.uint64(0), _mask(length) << shift)
        return (y.astype(np.uint64) & ~mask | x.astype(np.uint64) << shift & mask).astype(x.dtype)
    return pointwise(f, f"{i.type} {i.type} u32 u32")(i, slots)


def _lookup3(i: Instruction, slots: Slots) -> Step:
    """lop3: any function of three bits, given by its eight results."""
    table = i.operands[4].value

    def f(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        found = np.zeros_like(x)
        for n in (n for n in range(8) if table >> n & 1):
            found |= (x if n & 4 else ~x) & (y if n & 2 else ~y) & (z if n & 1 else ~z)
        return found
    return _step(f, slots.write(i.operands[0], "b32"), [slots.read(x, "b32") for x in i.operands[1:4]])


def _permute(i: Instruction, slots: Slots) -> Step:
    """prmt: four of eight bytes, or their signs."""
    if i.op[1:] != ("b32",):
        raise refuse(".".join(i.op))

    def f(x: np.ndarray, y: np.ndarray, pick: np.ndarray) -> np.ndarray:
        both = x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32)
        found = np.zeros_like(x)
        for n in range(4):
            nibble = pick >> np.uint32(4 * n)
            byte = (both >> ((nibble & np.uint32(7)) * np.uint32(8)).astype(np.uint64)).astype(np.uint32)
            byte &= np.uint32(255)
            signs = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
            found |= np.where(nibble & np.uint32(8), signs, byte) << np.uint32(8 * n)
        return found
    return pointwise(f, "b32 b32 b32", "b32")(i, slots)


def bytes_of(x: np.ndarray, signed: bool) -> np.ndarray:
    """The four bytes of each number (n,) as int32 (n, 4)."""
    return np.ascontiguousarray(x).view(np.int8 if signed else np.uint8).reshape(-1, 4).astype(np.int32)


def _dot4(i: Instruction, slots: Slots) -> Step:
    """dp4a: c plus the products of four bytes."""
    def f(x: np.ndarray, y: np.ndarray, c: np.ndarray) -> np.ndarray:
        return c + (bytes_of(x, i.op[1][0] == "s") * bytes_of(y, i.op[2][0] == "s")).sum(1, dtype=np.int32)
    return pointwise(f, "b32 b32 s32", "s32")(i, slots)


def _reversed(x: np.ndarray) -> np.ndarray:
    """brev: the bits in the other order."""
    found = np.zeros_like(x)
    for n in range(8 * x.dtype.itemsize):
        found = found << x.dtype.type(1) | x >> x.dtype.type(n) & x.dtype.type(1)
    return found


def _leading_zeros(x: np.ndarray) -> np.ndarray:
    """clz."""
    for shift in (1, 2, 4, 8, 16, 32)[:5 if x.dtype.itemsize == 4 else 6]:
        x = x | x >> x.dtype.type(shift)
    return np.uint32(8 * x.dtype.itemsize) - np.bitwise_count(x).astype(np.uint32)


def _find(i: Instruction, slots: Slots) -> Step:
    """bfind: the place of the highest bit that differs from the sign; all ones where there is none."""
    width = int(i.type[1:])

    def f(x: np.ndarray) -> np.ndarray:
        bits = np.where(x < 0, ~x, x).astype(BITS[width // 8])
        zeros = _leading_zeros(bits)
        return np.where(bits == 0, np.uint32(0xFFFFFFFF), zeros if "shiftamt" in i.op else width - 1 - zeros)
    return pointwise(f, i.type, "u32")(i, slots)


# ---- choices -----------------------------------------------------------------------------------------------
def _compare(i: Instruction, slots: Slots) -> Step:
    """setp: a comparison, joined with a predicate if there is one; a second register gets the opposite."""
    if i.type.endswith("x2"):
        raise refuse(".".join(i.op))
    f = _compared(i)
    joined = next((LOGIC[part] for part in i.op if part in LOGIC), None)
    where = i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0],)
    d = [slots.write(each, "pred") for each in where]
    a, b = (slots.read(each, i.type) for each in i.operands[1:3])
    if joined is None and len(d) == 1:
        return _step(f, d[0], [a, b])
    more = predicate(slots, i.operands[3]) if joined else None

    def step(run: Any, lanes: Any) -> None:
        holds = f(run.v[a][lanes], run.v[b][lanes])
        other = more(run, lanes) if more else None
        run.v[d[0]][lanes] = joined(holds, other) if joined else holds
        if len(d) > 1:
            run.v[d[1]][lanes] = joined(~holds, other) if joined else ~holds
    return step


def _compared(i: Instruction) -> Callable[[Any, Any], Any]:
    """The comparison of setp, of numbers of its type."""
    f = COMPARE[i.op[1]]
    if i.type == "bf16":
        return lambda x, y: f(from_bf16(x), from_bf16(y))
    if "ftz" in i.op:
        return lambda x, y: f(flushed(x), flushed(y))
    return np.not_equal if i.op[1] == "ne" and i.type[0] != "f" else f       # the faster, where no NaN is


def predicate(slots: Slots, operand: Any) -> Callable[[Any, Any], np.ndarray]:
    """A function of (run, lanes): the values of a predicate, or of its opposite (!p)."""
    inverted = isinstance(operand, Register) and operand.inverted
    p = slots.read(Register(operand.name) if inverted else operand, "pred")
    if inverted:
        return lambda run, lanes: ~run.v[p][lanes]
    return lambda run, lanes: run.v[p][lanes]


def _select(i: Instruction, slots: Slots) -> Step:
    d = slots.write(i.operands[0], i.type)
    a, b = (slots.read(each, i.type) for each in i.operands[1:3])
    p = predicate(slots, i.operands[3])

    def step(run: Any, lanes: Any) -> None:
        v = run.v
        v[d][lanes] = np.where(p(run, lanes), v[a][lanes], v[b][lanes])
    return step


def _logic(f: Any) -> Build:
    """and, or, xor, not: of bits, or of predicates."""
    def build(i: Instruction, slots: Slots) -> Step:
        if i.type != "pred" or not any(getattr(x, "inverted", False) for x in i.operands[1:]):
            return pointwise(f)(i, slots)
        d, sources = slots.write(i.operands[0], "pred"), [predicate(slots, x) for x in i.operands[1:]]

        def step(run: Any, lanes: Any) -> None:
            run.v[d][lanes] = f(*[p(run, lanes) for p in sources])
        return step
    return build


BUILD: dict[str, Build] = {
    "add": pointwise(np.add), "sub": pointwise(np.subtract), "neg": pointwise(np.negative),
    "abs": pointwise(np.abs),
    "mul": _product, "mad": _product, "fma": pointwise(fma), "div": _divide, "rem": pointwise(remainder),
    "min": _least, "max": _least, "sqrt": pointwise(np.sqrt), "rcp": pointwise(np.reciprocal),
    "rsqrt": _near(lambda x: 1 / np.sqrt(x)), "ex2": _near(np.exp2), "lg2": _near(np.log2),
    "sin": _near(np.sin), "cos": _near(np.cos), "tanh": _near(np.tanh), "testp": _test,
    "copysign": pointwise(lambda x, y: np.copysign(y, x)), "mul24": _mad24, "mad24": _mad24,
    "sad": pointwise(lambda x, y, z: np.where(x < y, y - x, x - y) + z),
    "and": _logic(np.bitwise_and), "or": _logic(np.bitwise_or), "xor": _logic(np.bitwise_xor),
    "not": _logic(np.invert), "cnot": pointwise(lambda x: x == 0), "shl": _shift, "shr": _shift,
    "shf": _funnel, "bfe": _extract, "bfi": _insert, "lop3": _lookup3, "prmt": _permute, "dp4a": _dot4,
    "brev": pointwise(_reversed), "clz": pointwise(_leading_zeros, result="u32"), "bfind": _find,
    "popc": pointwise(lambda x: np.bitwise_count(x).astype(np.uint32), result="u32"),
    "setp": _compare, "selp": _select}
