"""Which vector instructions this machine has, chosen once: a tier.

A ternary product is sums of four (unsigned code) x (signed int8). Each tier names the LLVM intrinsic that its
processors have for that, so no compiler is needed on the user's machine. `BITNET_REF_ISA` forces a tier.
All tiers give the same bits: integer sums are exact, and float sums are in the order of k on every machine.
Read after: kernels/numba_cpu. Read next: kernels/numba_cpu/cache.
"""

import os
from typing import NamedTuple

from llvmlite import binding, ir
from numba.core import config

from bitnet_ref.checks import check, lookup

ENV = "BITNET_REF_ISA"
I8, I16, I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


class Tier(NamedTuple):
    """A family of instructions.

    `needs`: features of the processor, as LLVM names them; `arch`: of which architecture; `lanes`: int32 per
    vector; `rows`, `panels`: the register tile, in rows of x and in panels of 16 outputs; `float_rows`,
    `float_panels`: the same in float32; `instruction`: what must stand in the assembly.
    """

    name: str
    arch: str
    needs: tuple[str, ...]
    lanes: int
    rows: int
    panels: int
    float_rows: int
    float_panels: int
    instruction: str


TIERS = {t.name: t for t in (
    Tier("avx512vnni", "x86_64", ("avx512f", "avx512bw", "avx512vl", "avx512vnni"), 16, 6, 4, 6, 4,
         "vpdpbusd"),
    Tier("avxvnni", "x86_64", ("avx2", "fma", "f16c", "avxvnni"), 8, 4, 1, 6, 1, "vpdpbusd"),
    Tier("avx2", "x86_64", ("avx2", "fma", "f16c"), 8, 3, 1, 6, 1, "vpmaddubsw"),
    Tier("neon", "aarch64", ("neon", "dotprod"), 4, 4, 1, 6, 1, "sdot"),
    Tier("portable", "any", (), 4, 2, 1, 2, 1, ""),
)}


def host() -> tuple[str, frozenset[str]]:
    """(architecture, features) of this machine, as LLVM sees them, or as Numba was told to."""
    triple = binding.get_default_triple().split("-")[0]
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(triple, triple)
    if config.CPU_NAME or config.CPU_FEATURES is not None:                 # by NUMBA_CPU_...
        told = (config.CPU_FEATURES or "").split(",")
        return arch, frozenset(name[1:] for name in told if name.startswith("+"))
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:                     # LLVM does not know this system: the portable tier runs anywhere
        return arch, frozenset()
    return arch, frozenset(name for name, has in features.items() if has)


def runs(tier: Tier) -> bool:
    """Whether this machine has the instructions of `tier`."""
    arch, features = host()
    return tier.arch in ("any", arch) and features.issuperset(tier.needs)


def choose(forced: str | None = None) -> Tier:
    """The first tier that this machine has, or the one that `forced` (or BITNET_REF_ISA) names.

    Raises CheckError for an unknown tier or one whose instructions this machine lacks.
    """
    name = os.environ.get(ENV, "") if forced is None else forced
    if not name:
        return next(t for t in TIERS.values() if runs(t))
    tier = lookup(TIERS, name, f"tier ({ENV})")
    arch, features = host()
    check(runs(tier), f"{ENV}={name} needs a processor with {', '.join((tier.arch, *tier.needs))}",
          f"{arch} without {', '.join(sorted(set(tier.needs) - features)) or tier.arch}",
          f"unset {ENV}, or choose of: {', '.join(t.name for t in TIERS.values() if runs(t))}")
    return tier


def dot4(builder: ir.IRBuilder, tier: Tier, acc: ir.Value, codes: ir.Value, x: ir.Value) -> ir.Value:
    """acc <lanes x i32> + sums of four bytes: unsigned `codes` times signed `x`, both <4 lanes x i8>.

    Codes are at most 127 here (trits use 0, 1, 2), so AVX2's 16-bit sums of two products stay within
    2 * 127 * 128 = 32,512 and never saturate, and a signed product (NEON) is the same as an unsigned one.
    """
    lanes = tier.lanes
    sums, words = ir.VectorType(I32, lanes), ir.VectorType(I16, 2 * lanes)

    def call(name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [a.type for a in args])
        found = builder.module.globals.get(name)
        return builder.call(found or ir.Function(builder.module, kind, name), args)

    if tier.name in ("avx512vnni", "avxvnni"):
        as_sums = (builder.bitcast(v, sums) for v in (codes, x))
        return call(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", sums, acc, *as_sums)
    if tier.name == "avx2":
        pairs = call("llvm.x86.avx2.pmadd.ub.sw", words, codes, x)
        ones = ir.Constant(words, [1] * 2 * lanes)
        return builder.add(acc, call("llvm.x86.avx2.pmadd.wd", sums, pairs, ones))
    if tier.name == "neon":
        return call("llvm.aarch64.neon.sdot.v4i32.v16i8", sums, acc, codes, x)
    return builder.add(acc, _dot4_in_plain_ir(builder, lanes, codes, x))


def _dot4_in_plain_ir(builder: ir.IRBuilder, lanes: int, codes: ir.Value, x: ir.Value) -> ir.Value:
    """The same with multiplications and additions only: any processor."""
    wide = ir.VectorType(I32, 4 * lanes)
    product = builder.mul(builder.zext(codes, wide), builder.sext(x, wide))
    undef = ir.Constant(wide, ir.Undefined)
    picks = [ir.Constant(ir.VectorType(I32, lanes), [4 * i + j for i in range(lanes)]) for j in range(4)]
    a, b, c, d = (builder.shuffle_vector(product, undef, pick) for pick in picks)
    return builder.add(builder.add(a, b), builder.add(c, d))
