"""bench/vectors: what each instruction computes, on every set of instructions that can be run or compiled."""

import numpy as np
import pytest
from llvmlite import binding, ir
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from bitnet_ref.bench import vectors as v

HERE = v.dots(v.features())


def by(dot):
    """acc int32 (lanes,) += dot products of codes and x (4 lanes,), compiled with `dot`."""
    def at(context, builder, sig, args, i, kind):
        data = context.make_array(sig.args[i])(context, builder, args[i]).data
        return builder.bitcast(data, kind.as_pointer())

    @intrinsic
    def call(typingctx, acc, codes, x):
        def codegen(context, builder, sig, args):
            sums, bytes_ = ir.VectorType(v.I32, dot.lanes), ir.VectorType(v.I8, 4 * dot.lanes)
            place = at(context, builder, sig, args, 0, sums)
            read = [builder.load(at(context, builder, sig, args, i, bytes_), align=1) for i in (1, 2)]
            total = v.emit_dot(builder, dot, builder.load(place, align=1), *read)
            builder.store(total, place, align=1)
            return context.get_dummy_value()

        return types.void(acc, codes, x), codegen

    return njit(lambda acc, codes, x: call(acc, codes, x))


@pytest.mark.parametrize("dot", HERE, ids=lambda d: d.name)
@pytest.mark.parametrize("code", [2, 127, 255])
def test_dot_products_are_exact(dot, code, rng):
    if code == 255 and v.VNNI not in dot.bytes:
        pytest.skip("its sums of two saturate: codes end at 127")
    codes = np.full(4 * dot.lanes, code, np.uint8)
    codes[::3] = 0
    run = by(dot)
    for x in (np.full(4 * dot.lanes, -128), rng.integers(-128, 128, 4 * dot.lanes)):
        acc = np.arange(dot.lanes, dtype=np.int32)
        run(acc, codes, x.astype(np.int8))
        products = codes.astype(np.int64) * x
        assert np.array_equal(acc, np.arange(dot.lanes) + products.reshape(-1, 4).sum(1))


@pytest.mark.parametrize("dot", v.DOTS, ids=lambda d: d.name)
def test_every_dot_becomes_its_instruction(dot):
    """Also on machines that cannot run it: compiled for one that can."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    arm = v.NEON in dot.bytes
    triple = "aarch64-unknown-linux-gnu" if arm else "x86_64-unknown-linux-gnu"
    sums, bytes_ = ir.VectorType(v.I32, dot.lanes), ir.VectorType(v.I8, 4 * dot.lanes)
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(sums, [sums, bytes_, bytes_]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(v.emit_dot(builder, dot, *function.args))
    machine = binding.Target.from_triple(triple).create_target_machine(
        features=",".join(f"+{need}" for need in dot.needs))
    assembly = machine.emit_assembly(binding.parse_assembly(str(module)))
    names = {"llvm.x86.avx512.pmaddubs.w.512": "vpmaddubsw", "llvm.x86.avx2.pmadd.ub.sw": "vpmaddubsw"}
    assert names.get(dot.bytes, v.NEON if arm else v.VNNI) in assembly


def test_which_dots():
    assert v.dots(frozenset()) == []
    assert [d.name for d in v.dots(frozenset({"avx2", "avxvnni"}))] == ["AVX-VNNI", "AVX2"]
    assert (HERE[0] if HERE else None) == v.DOT


@njit
def bytes_through(a, out):
    v.store_bytes(out[0], 0, v.two_bits(v.load_bytes(a, 0), 4))
    v.store_bytes(out[1], 0, v.triple(v.load_bytes(a, 0)))
    v.store_bytes(out[2], 0, v.triple_carry(v.load_bytes(a, 0)))
    v.store_bytes(out[3], 0, v.four(a, 1))


def test_bytes():
    for first in range(0, 256, 4 * v.LANES):
        a = np.arange(first, first + 4 * v.LANES).astype(np.uint8)
        out = np.zeros((4, a.size), np.uint8)
        bytes_through(a, out)
        wide = a.astype(int)
        assert np.array_equal(out, [wide >> 4 & 3, wide * 3 % 256, wide * 3 // 256, np.tile(a[1:5], v.LANES)])


@njit
def floats_through(a, out):
    x = v.load_floats(a, 0)
    v.store_floats(out[0], 0, v.fma(x, x, v.float_lanes(np.float32(1))))
    v.store_floats(out[1], 0, v.nearest(x))
    v.store_floats(out[2], 0, v.power_of_two(v.nearest(x)))
    v.store_floats(out[3], 0, v.larger(x, v.float_lanes(np.float32(0.5))))
    return v.float_sum(x), v.largest(x), v.popcount(np.uint64(0xF0F0)), v.across(v.int_lanes(-3))


def test_floats_and_single_numbers():
    a = (np.arange(v.LANES, dtype=np.float32) - 2) / 2
    out = np.zeros((4, v.LANES), np.float32)
    assert floats_through(a, out) == (a.sum(), a.max(), 8, -3 * v.LANES)
    assert np.array_equal(out, [a * a + 1, np.rint(a), 2 ** np.rint(a), np.maximum(a, 0.5)])


def test_memory_must_be_contiguous():
    with pytest.raises(TypingError, match="must be contiguous"):
        njit(lambda a: v.across(v.load_sums(a, 0)))(np.zeros((2, 64), np.int32)[:, ::2])
