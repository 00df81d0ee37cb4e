"""The register tiles under every product, written as LLVM instructions: ternary x int8, and float32.

A tile holds sums in vector registers while it walks along k. Outputs lie in the lanes of a vector, sixteen
outputs to a panel, so nothing is summed across lanes and every output is one chain in the order of k: the
same bits for any number of rows, threads, or batch (docs/decisions/020). Memory is passed as addresses, whose
bounds the callers answer for.
Read after: kernels/numba_cpu/cache. Read next: kernels/numba_cpu/vectors.
"""

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bitnet_ref.kernels.numba_cpu import isa
from bitnet_ref.kernels.numba_cpu.isa import I8, I16, I32, Tier

PANEL = 16                   # outputs of a panel: the float32 lanes of the widest vectors
TIER = isa.choose()
F16, F32, I64 = ir.HalfType(), ir.FloatType(), ir.IntType(64)
STORED = {"float32": F32, "float16": F16, "int8": I8, "bfloat16": I16}   # of a full matrix; sums in float32
LARGEST_F16 = 65504.0
GROUPS = {"i2": 4, "b3": 5}  # fours of k in a block of 64 bytes
AHEAD = 4096                 # bytes: how far ahead of use packed weights are asked of memory
Emit = Callable[..., None]
Steps = Iterator[tuple[ir.Value, ...]]


def kernel(emit: Emit, **fixed: Any) -> Any:
    """What `emit` writes, as a function for compiled code; it takes a tuple of integers.

    They are emit's positional arguments after builder and tier: addresses, counts, strides in bytes. Where
    `rows` is a tuple, there is a tile for each of its numbers, and which it shall be is the first integer.
    """
    counts = fixed.pop("rows", None)
    several = isinstance(counts, tuple)
    n_args = arguments(emit) + several

    @intrinsic
    def call(typingctx: Any, args: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
            given = cgutils.unpack_tuple(builder, values[0], n_args)
            if not several:
                emit(builder, TIER, *given, **fixed, **({} if counts is None else {"rows": counts}))
            else:
                for n in counts:
                    with builder.if_then(builder.icmp_signed("==", given[0], I64(n))):
                        emit(builder, TIER, *given[1:], **fixed, rows=n)
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.int64, n_args)), codegen

    return call


def arguments(emit: Emit) -> int:
    """How many integers the function of `emit` takes."""
    return sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in signature(emit).parameters.values()) - 2


class Memory:
    """Loads and stores at an address plus an offset, both in bytes, whatever their alignment."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def at(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
        """Pointer to a `kind` there."""
        offset = I64(offset) if isinstance(offset, int) else offset
        return self.builder.inttoptr(self.builder.add(address, offset), kind.as_pointer())

    def load(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
        """The value there."""
        return self.builder.load(self.at(address, offset, kind), align=1)

    def store(self, value: ir.Value, address: ir.Value, offset: ir.Value | int) -> None:
        """Put `value` there."""
        self.builder.store(value, self.at(address, offset, value.type), align=1)

    def prefetch(self, address: ir.Value, offset: ir.Value) -> None:
        """Ask for the cache line there; beyond the end of memory this does nothing."""
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        ask = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(ask, [self.at(address, offset, I8), I32(0), I32(3), I32(1)])

    def splat(self, value: ir.Value, lanes: int) -> ir.Value:
        """<lanes x value>."""
        undef = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.builder.insert_element(undef, value, I32(0))
        return self.builder.shuffle_vector(first, undef, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def sums(builder: ir.IRBuilder, kind: ir.Type, n: int) -> list[ir.Value]:
    """n accumulators of zeros. LLVM keeps them in registers."""
    return [cgutils.alloca_once_value(builder, ir.Constant(kind, [0] * kind.count)) for _ in range(n)]


def dot_onto(builder: ir.IRBuilder, tier: Tier, slot: ir.Value, codes: ir.Value, x: ir.Value) -> None:
    """slot += the dot products of four bytes each."""
    builder.store(isa.dot4(builder, tier, builder.load(slot), codes, x), slot)


# ---- ternary x int8 ----

def emit_store(builder: ir.IRBuilder, tier: Tier, acc: ir.Value, row: int, x_scales: ir.Value,
               w_scale: ir.Value, x_sums: ir.Value, y: ir.Value, ldy: ir.Value, offset: int,
               above: int = 1) -> None:
    """y[row, offset...] = (acc - above x_sum) * (x_scale * w_scale), a vector: codes are w + above."""
    m = Memory(builder)
    x_sum = m.splat(builder.mul(m.load(x_sums, 4 * row, I32), I32(above)), tier.lanes)
    scale = m.splat(builder.fmul(m.load(x_scales, 4 * row, F32), m.load(w_scale, 0, F32)), tier.lanes)
    total = builder.sitofp(builder.sub(acc, x_sum), ir.VectorType(F32, tier.lanes))
    m.store(builder.fmul(total, scale), y, builder.add(builder.mul(ldy, I64(row)), I64(4 * offset)))


def emit_packed(builder: ir.IRBuilder, tier: Tier, w: ir.Value, panels: ir.Value, blocks: ir.Value,
                x: ir.Value, ldx: ir.Value, x_scales: ir.Value, w_scale: ir.Value, x_sums: ir.Value,
                y: ir.Value, ldy: ir.Value, *, bits: str, rows: int) -> None:
    """Packed panels, one after the other, against `rows` rows: 64 bytes are 16 outputs x 4 x `groups`.

    Each weight byte is read once, asked for AHEAD bytes before its turn, and decoded in registers. Several
    rows meet two panels at once where a panel is one register: what is loaded of a row is used twice.
    """
    pair = 2 if rows > 1 and tier.lanes == PANEL else 1
    even = builder.sub(panels, builder.urem(panels, I64(pair)))
    for count, first, end in ((pair, I64(0), even), (1, even, panels))[:pair]:
        with cgutils.for_range_slice(builder, first, end, I64(count)) as (panel, _):
            here = builder.add(w, builder.mul(panel, builder.mul(blocks, I64(64))))
            there = builder.add(y, builder.mul(panel, I64(4 * PANEL)))
            _emit_panels(builder, tier, here, blocks, x, ldx, x_scales, w_scale, x_sums, there, ldy, bits,
                         rows, count)


def _emit_panels(builder: ir.IRBuilder, tier: Tier, w: ir.Value, blocks: ir.Value, x: ir.Value, ldx: ir.Value,
                 x_scales: ir.Value, w_scale: ir.Value, x_sums: ir.Value, y: ir.Value, ldy: ir.Value,
                 bits: str, rows: int, panels: int) -> None:
    m, lanes, groups, size = Memory(builder), tier.lanes, GROUPS[bits], builder.mul(blocks, I64(64))
    places = [(p, part) for p in range(panels) for part in range(0, PANEL, lanes)]     # of a register
    raised = bits == "b3" and tier.instruction == "vpdpbusd"          # it takes codes up to 255
    fractions = raised and rows == 1
    room = (20 if lanes == PANEL else 16) // (rows * len(places) * (1 + fractions))   # registers for sums
    chains = max(1, min(groups, room))                      # sums in flight per row hide the latency
    vector, codes_of = ir.VectorType(I32, lanes), ir.VectorType(I8, 4 * lanes)
    slots = [[sums(builder, vector, chains * (1 + fractions)) for _ in range(rows)] for _ in places]
    for slot in (s for place in slots for row in place for s in row):
        builder.store(ir.Constant(vector, [0] * lanes), slot)         # made once, but a panel comes often
    steps = (i2_steps if bits == "i2" else b3_fractions if fractions else b3_raised if raised
             else b3_digits)
    with cgutils.for_range(builder, blocks) as loop:
        at = builder.mul(loop.index, I64(64))
        x_at = builder.mul(loop.index, I64(4 * groups))
        within = builder.icmp_signed("<", builder.add(at, I64(AHEAD)), size)       # else in the next pair
        beyond = builder.select(within, I64(0), builder.mul(size, I64(panels - 1)))
        decoded = []
        for p, part in places:
            here = builder.add(builder.add(at, I64(4 * part)), builder.mul(size, I64(p)))
            if part == 0:
                m.prefetch(w, builder.add(builder.add(here, beyond), I64(AHEAD)))
            decoded.append(steps(builder, tier, m.load(w, here, codes_of)))
        for j, found in enumerate(zip(*decoded)):
            for r in range(rows):
                here = builder.add(builder.add(x_at, I64(4 * j)), builder.mul(ldx, I64(r)))
                four = builder.bitcast(m.splat(m.load(x, here, I32), lanes), codes_of)
                for place, codes in zip(slots, found):
                    for i, code in enumerate(codes):
                        dot_onto(builder, tier, place[r][chains * i + j % chains], code, four)
    for (p, part), place in zip(places, slots):
        for r in range(rows):
            totals = [total(builder, place[r][i:i + chains]) for i in range(0, len(place[r]), chains)]
            if fractions:                                   # (3 q - q') / 256, see b3_fractions
                totals[0] = builder.sub(builder.mul(totals[0], ir.Constant(vector, [3] * lanes)), totals[1])
            if raised:                                      # by 256, or by 64: see b3_raised
                totals[0] = builder.ashr(totals[0], ir.Constant(vector, [8 if fractions else 6] * lanes))
            emit_store(builder, tier, totals[0], r, x_scales, w_scale, x_sums, y, ldy, PANEL * p + part,
                       2 if raised and not fractions else 1)


def total(builder: ir.IRBuilder, slots: list[ir.Value]) -> ir.Value:
    """The sum of some sums."""
    first, *others = (builder.load(s) for s in slots)
    for other in others:
        first = builder.add(first, other)
    return first


def i2_steps(builder: ir.IRBuilder, tier: Tier, block: ir.Value) -> Steps:
    """Codes 0, 1, 2 of the four bit pairs of every byte, low bits first."""
    words = ir.VectorType(I16, 2 * tier.lanes)
    three = ir.Constant(block.type, [3] * 4 * tier.lanes)
    for j in range(4):
        shifted = builder.lshr(builder.bitcast(block, words), ir.Constant(words, [2 * j] * 2 * tier.lanes))
        yield (builder.and_(builder.bitcast(shifted, block.type), three),)


def b3_digits(builder: ir.IRBuilder, tier: Tier, block: ir.Value) -> Steps:
    """Codes 0, 1, 2 of the five trits of every byte, without a division: a byte is a fraction of 256.

    Three times the fraction is its first digit to the base of 3 and the fraction that holds the others.
    """
    n = 2 * tier.lanes
    words = ir.VectorType(I16, n)
    low, high, eight, three = (ir.Constant(words, [c] * n) for c in (255, -256, 8, 3))
    pair = builder.bitcast(block, words)
    even, odd = builder.and_(pair, low), builder.lshr(pair, eight)
    for _ in range(5):
        even, odd = builder.mul(even, three), builder.mul(odd, three)
        digits = builder.or_(builder.lshr(even, eight), builder.and_(odd, high))
        even, odd = builder.and_(even, low), builder.and_(odd, low)
        yield (builder.bitcast(digits, block.type),)


def b3_fractions(builder: ir.IRBuilder, tier: Tier, block: ir.Value) -> Steps:
    """The fraction q before each digit and q' after it, instead of the digit: it is (3 q - q') / 256.

    Dot products are linear, so that division is done once, on the sums: two additions and one more dot
    product replace the taking apart. For several rows taking apart is cheaper: it is done once for all.
    """
    q = block
    for _ in range(5):
        after = _three_times(builder, q)
        yield q, after
        q = after


def b3_raised(builder: ir.IRBuilder, tier: Tier, block: ir.Value) -> Steps:
    """The digit plus one, times 64: the upper two bits of a quarter of 3 q + 252, without a wider word.

    The instruction for averages, (a + b + 1) / 2 of bytes, keeps the bit that a sum would lose. Twice with
    q it makes (3 q + 252) / 4, rounded up, which is at least 64 n where 3 q > 256 (n - 1). Since a fraction
    is never 0, that is one more than the digit; and sums of them are divided by 64 once.
    """
    n = block.type.count
    upper, start = ir.Constant(block.type, [192] * n), ir.Constant(block.type, [252] * n)
    q = block
    for _ in range(5):
        quarter = _average(builder, q, _average(builder, q, start))
        yield (builder.and_(quarter, upper),)
        q = _three_times(builder, q)


def _three_times(builder: ir.IRBuilder, q: ir.Value) -> ir.Value:
    """3 q mod 256, two additions. LLVM must not see them: it makes a product of powers, which is slower."""
    hidden = ir.InlineAsm(ir.FunctionType(q.type, [q.type]), "", "=v,0")
    return builder.call(hidden, [builder.add(builder.add(q, q), q)])


def _average(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """(a + b + 1) / 2 of unsigned bytes; LLVM knows the instruction by this."""
    words = ir.VectorType(I16, a.type.count)
    one = ir.Constant(words, [1] * a.type.count)
    total = builder.add(builder.add(builder.zext(a, words), builder.zext(b, words)), one)
    return builder.trunc(builder.lshr(total, one), a.type)


def emit_unpack(builder: ir.IRBuilder, tier: Tier, w: ir.Value, blocks: ir.Value, codes: ir.Value, *,
                bits: str) -> None:
    """The codes (groups * blocks, 16, 4) of one packed panel, for emit_codes: used by many rows."""
    m, groups = Memory(builder), GROUPS[bits]
    with cgutils.for_range(builder, blocks) as loop:
        for part in range(0, 64, 4 * tier.lanes):
            here = builder.add(builder.mul(loop.index, I64(64)), I64(part))
            block = m.load(w, here, ir.VectorType(I8, 4 * tier.lanes))
            for j, (digits,) in enumerate((i2_steps if bits == "i2" else b3_digits)(builder, tier, block)):
                there = builder.add(builder.mul(loop.index, I64(64 * groups)), I64(64 * j + part))
                m.store(digits, codes, there)


def emit_codes(builder: ir.IRBuilder, tier: Tier, codes: ir.Value, stride: ir.Value, fours: ir.Value,
               x: ir.Value, ldx: ir.Value, x_scales: ir.Value, w_scale: ir.Value, x_sums: ir.Value,
               y: ir.Value, ldy: ir.Value, *, rows: int, panels: int) -> None:
    """`panels` panels of unpacked codes (each fours x 16 x 4 bytes, `stride` apart) against `rows` rows."""
    m, lanes, parts = Memory(builder), tier.lanes, PANEL // tier.lanes
    bytes_of = ir.VectorType(I8, 4 * lanes)
    slots = [sums(builder, ir.VectorType(I32, lanes), panels * parts) for _ in range(rows)]
    with cgutils.for_range(builder, fours) as loop:
        at, x_at = builder.mul(loop.index, I64(64)), builder.mul(loop.index, I64(4))
        vectors = [m.load(codes, builder.add(builder.add(at, I64(4 * lanes * part)),
                                             builder.mul(stride, I64(p))), bytes_of)
                   for p in range(panels) for part in range(parts)]
        for r in range(rows):
            word = m.load(x, builder.add(x_at, builder.mul(ldx, I64(r))), I32)
            four = builder.bitcast(m.splat(word, lanes), bytes_of)
            for slot, v in zip(slots[r], vectors):
                dot_onto(builder, tier, slot, v, four)
    for r in range(rows):
        for i, slot in enumerate(slots[r]):
            emit_store(builder, tier, builder.load(slot), r, x_scales, w_scale, x_sums, y, ldy, i * lanes)


# ---- float32 ----

def _widened(builder: ir.IRBuilder, v: ir.Value, kind: str, vector: ir.Type) -> ir.Value:
    """Sixteen of a `kind` of STORED as float32, exactly."""
    if kind == "bfloat16":                                 # the upper half of a float32
        words = ir.VectorType(I32, PANEL)
        upper = builder.shl(builder.zext(v, words), ir.Constant(words, [16] * PANEL))
        return builder.bitcast(upper, vector)
    widen = {"int8": builder.sitofp, "float16": builder.fpext}.get(kind)
    return widen(v, vector) if widen else v


def emit_floats(builder: ir.IRBuilder, tier: Tier, a: ir.Value, a_row: ir.Value, a_k: ir.Value, b: ir.Value,
                b_panel: ir.Value, b_k: ir.Value, n_k: ir.Value, c: ir.Value, ldc: ir.Value, *,
                rows: int, panels: int, onto: str = "", kind: str = "float32", ahead: int = 0) -> None:
    """c[r, 16 p ...] = sum over k of a[r, k] * b[p][k], each product fused with its sum.

    onto: "" writes the sum; "chain" goes on from what c holds; "sum" adds what c holds at the end, since long
    sums are more exact in parts. a: floats, a_row and a_k bytes apart; b: sixteen of a `kind` of STORED,
    b_panel and b_k apart, asked for `ahead` bytes before their turn.
    """
    m, vector = Memory(builder), ir.VectorType(F32, PANEL)
    stored = ir.VectorType(STORED[kind], PANEL)
    slots = [sums(builder, vector, panels) for _ in range(rows)]
    places = [[builder.add(builder.mul(ldc, I64(r)), I64(4 * PANEL * p)) for p in range(panels)]
              for r in range(rows)]
    if onto == "chain":
        for r in range(rows):
            for p in range(panels):
                builder.store(m.load(c, places[r][p], vector), slots[r][p])
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3),
                                         "llvm.fma.v16f32")
    with cgutils.for_range(builder, n_k) as loop:
        at, a_at = builder.mul(loop.index, b_k), builder.mul(loop.index, a_k)
        vectors = []
        for p in range(panels):
            if ahead:
                m.prefetch(b, builder.add(builder.add(at, builder.mul(b_panel, I64(p))), I64(ahead)))
            v = m.load(b, builder.add(at, builder.mul(b_panel, I64(p))), stored)
            vectors.append(_widened(builder, v, kind, vector))
        for r in range(rows):
            x = m.splat(m.load(a, builder.add(a_at, builder.mul(a_row, I64(r))), F32), PANEL)
            for slot, v in zip(slots[r], vectors):
                builder.store(builder.call(fma, [x, v, builder.load(slot)]), slot)
    for r in range(rows):
        for p in range(panels):
            done = builder.load(slots[r][p])
            if onto == "sum":
                done = builder.fadd(m.load(c, places[r][p], vector), done)
            m.store(done, c, places[r][p])


def emit_stored(builder: ir.IRBuilder, tier: Tier, x: ir.Value, y: ir.Value, step: ir.Value, n: ir.Value, *,
                kind: str) -> None:
    """y[i] = x[i], n float32 one after the other, into numbers of a `kind` of STORED `step` bytes apart."""
    m = Memory(builder)
    with cgutils.for_range(builder, n) as loop:
        value = m.load(x, builder.mul(loop.index, I64(4)), F32)
        m.store(_narrowed(builder, value) if kind == "float16" else value, y, builder.mul(loop.index, step))


def _narrowed(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A float32 as float16; what is too large becomes the largest, a NaN stays one."""
    for sign, most in ((">", F32(LARGEST_F16)), ("<", F32(-LARGEST_F16))):
        value = builder.select(builder.fcmp_ordered(sign, value, most), most, value)
    return builder.fptrunc(value, F16)
