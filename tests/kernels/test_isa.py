"""kernels/numba_cpu/isa: one tier is chosen; each has its instruction; what cannot run is refused."""

import os
import re
import subprocess
import sys

import pytest
from llvmlite import binding, ir

from bitnet_ref.checks import CheckError
from bitnet_ref.kernels.numba_cpu import bf16, isa, tiles
from bitnet_ref.kernels.numba_cpu.isa import TIERS
from bitnet_ref.kernels.numba_cpu.vectors import emit_lanes

TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu",
           "any": "x86_64-unknown-linux-gnu"}


def assembly(tier, emit, **fixed):
    """What LLVM makes of a tile for the processors of `tier`, whatever this machine is."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = TRIPLES[tier.arch]
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * tiles.arguments(emit))
    function = ir.Function(module, kind, "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    emit(builder, tier, *function.args, **fixed)
    builder.ret_void()
    target = binding.Target.from_triple(TRIPLES[tier.arch])
    machine = target.create_target_machine(features=",".join(f"+{name}" for name in tier.needs), opt=3)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return machine.emit_assembly(parsed)


def count(text, instruction):
    return sum(instruction in line.split()[:2] for line in text.splitlines())       # "{vex} vpdpbusd" too


EACH = pytest.mark.parametrize("tier", [t for t in TIERS.values() if t.instruction], ids=lambda t: t.name)


@EACH
@pytest.mark.parametrize("bits", ["i2", "b3"])
def test_the_instruction_stands_in_the_assembly_of_packed_products(tier, bits):
    text = assembly(tier, tiles.emit_packed, bits=bits, rows=1)
    each = 2 if bits == "b3" and tier.instruction == "vpdpbusd" else 1      # fractions before and after
    dots = tiles.GROUPS[bits] * 16 // tier.lanes * each
    assert count(text, tier.instruction) == dots
    assert count(text, "call") == count(text, "bl") == 0


def hot_loop(text, tier):
    return max(text.split("\n.LBB"), key=lambda block: count(block, tier.instruction))


def spills(loop):
    return [line for line in loop.splitlines() if "(%rsp)" in line and "mm" in line]


@EACH
@pytest.mark.parametrize("bits", ["i2", "b3"])
@pytest.mark.parametrize("rows", [2, 3, 4])
def test_several_rows_share_one_decoding(tier, bits, rows):
    """One dot product per row, group and register; two panels at once where a panel is one register."""
    loop = hot_loop(assembly(tier, tiles.emit_packed, bits=bits, rows=rows), tier)
    registers = 2 if tier.lanes == 16 else 16 // tier.lanes
    assert count(loop, tier.instruction) == tiles.GROUPS[bits] * registers * rows
    if tier.name == "avx512vnni":
        assert not spills(loop)


@pytest.mark.parametrize("tier", [TIERS["avx512vnni"], TIERS["avxvnni"]], ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [1, 4])
def test_three_times_a_fraction_stays_two_additions(tier, rows):
    """LLVM would make one product by a power of three of them, and has no instruction for it on bytes."""
    loop = hot_loop(assembly(tier, tiles.emit_packed, bits="b3", rows=rows), tier)
    assert count(loop, "vpmullw") == count(loop, "vpmaddubsw") == 0
    assert count(loop, "vpavgb") == (10 * 2 if rows > 1 else 0)                # two registers, both tiers


@EACH
def test_a_tile_of_codes_keeps_its_sums_in_registers(tier):
    """One dot product per row, panel and part; nothing is stored but the result."""
    text = assembly(tier, tiles.emit_codes, rows=tier.rows, panels=tier.panels)
    sums = tier.rows * tier.panels * 16 // tier.lanes
    assert count(text, tier.instruction) == sums
    if tier.arch == "x86_64":
        assert not spills(hot_loop(text, tier))


FUSED = {"avx512vnni": (r"vfmadd\d+ps", 16), "avxvnni": (r"vfmadd\d+ps", 8), "avx2": (r"vfmadd\d+ps", 8),
         "neon": ("fmla", 4)}


@EACH
@pytest.mark.parametrize("kind", tiles.STORED)
@pytest.mark.parametrize("onto", ["", "chain", "sum"])
def test_a_tile_of_floats_is_fused_multiply_adds(tier, kind, onto):
    """One instruction per product of a register, whatever the weights are stored in; nothing is called."""
    rows, panels = 2, tier.float_panels
    text = assembly(tier, tiles.emit_floats, rows=rows, panels=panels, onto=onto, kind=kind, ahead=64)
    instruction, lanes = FUSED[tier.name]
    assert len(re.findall(rf"^\s+{instruction}\s", text, re.MULTILINE)) == rows * panels * 16 // lanes
    assert count(text, "call") == count(text, "callq") == count(text, "bl") == 0


def test_the_instruction_of_bfloat16_stands_in_the_assembly():
    tier = TIERS["avx512vnni"]
    text = assembly(tier._replace(needs=(*tier.needs, bf16.FEATURE)), bf16.emit_pairs, rows=6, panels=4)
    assert count(text, "vdpbf16ps") == 24
    assert count(text, "callq") == 0


@EACH
@pytest.mark.parametrize("bits", tiles.GROUPS)
def test_codes_are_unpacked_without_a_division(tier, bits):
    text = assembly(tier, tiles.emit_unpack, bits=bits)
    assert "div" not in text
    assert count(text, "call") == count(text, "callq") == count(text, "bl") == 0


@EACH
@pytest.mark.parametrize(("largest", "instructions"), [(True, ("max", "bsl", "bif", "bit", "blend", "cmp")),
                                                       (False, ("add",))])
def test_lanes_are_summed_or_compared_side_by_side(tier, largest, instructions):
    text = assembly(tier, emit_lanes, largest=largest)
    assert any(word in text for word in instructions)
    assert count(text, "call") == count(text, "bl") == 0


def test_the_portable_tier_has_no_instruction_of_its_own():
    """Neither in itself, nor when it is compiled for a processor that has them."""
    features = TIERS["avx512vnni"].needs
    text = assembly(TIERS["portable"]._replace(needs=features), tiles.emit_codes, rows=2, panels=1)
    assert count(text, "vpdpbusd") == count(text, "vpmaddubsw") == 0


def test_sixteen_bits_hold_what_avx2_sums():
    """Two products of a code and an int8: the instruction saturates above 32,767, and cannot get there."""
    largest_code = 2                            # of a trit; the digits of b3 are taken apart before
    assert 2 * largest_code * 128 <= 32_767


def test_the_first_tier_that_runs_is_chosen(monkeypatch):
    monkeypatch.delenv(isa.ENV, raising=False)
    names = list(TIERS)
    best = next(t for t in TIERS.values() if isa.runs(t))
    assert isa.choose() == best
    assert names.index("portable") == len(names) - 1
    assert isa.runs(TIERS["portable"])


def test_a_machine_without_vector_instructions_gets_the_portable_tier(monkeypatch):
    monkeypatch.delenv(isa.ENV, raising=False)
    monkeypatch.setattr(isa, "host", lambda: ("riscv64", frozenset()))
    assert isa.choose().name == "portable"


def test_a_tier_can_be_forced(monkeypatch):
    monkeypatch.setenv(isa.ENV, "portable")
    assert isa.choose().name == "portable"


def test_an_unknown_tier_lists_the_known_ones():
    with pytest.raises(CheckError, match=r"tier \(BITNET_REF_ISA\) must be one of avx512vnni.*; got 'mmx'"):
        isa.choose("mmx")


def test_a_tier_that_this_machine_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(isa, "host", lambda: ("x86_64", frozenset({"avx2", "fma", "f16c"})))
    with pytest.raises(CheckError, match=r"needs a processor with x86_64, avx512f.*; got x86_64 without "
                                         r"avx512bw, avx512f.*; unset .*, or choose of: avx2, portable"):
        isa.choose("avx512vnni")


def test_a_bad_tier_ends_a_command_with_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "bitnet_ref.train", "--output", str(tmp_path / "run")],
                          env={**os.environ, isa.ENV: "mmx"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: tier (BITNET_REF_ISA) must be one of")
    assert "Traceback" not in done.stderr
