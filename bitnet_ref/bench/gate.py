"""python -m bitnet_ref.bench.gate [--kernel NAME ...]

What a compiler can promise about the CUDA kernels where there is no GPU. Every kernel, shipped or of a
ladder, is compiled for sm_80 and sm_90 (or for sm_90a alone): nothing may spill, registers stay under the
kernel's cap, and its PTX, and its machine code where cuobjdump is found, hold the instructions it is about
and none that it must not. Exit 1 if any promise is broken.
Read after: bench/card. Read next: bench/ptx.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bitnet_ref.bench.examples import RUNGS, SHIPPED, kernels
from bitnet_ref.checks import CheckError, lookup
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, run_command, text

if TYPE_CHECKING:
    from bitnet_ref.kernels.numba_cuda.launch import Kernel

ARCHITECTURES = ("80", "90")
STATIC_SHARED = 48 << 10     # bytes of a block; more must be asked for when a kernel is launched
MMA = "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"
LOAD = "ld.global.nc.v4.b32"
ONCE = "ld.global.nc.L1::no_allocate.L2::256B.v4.b32"     # 16 bytes that are read once
# {kernel: what its PTX must hold}; what it is about, so that no compiler may lose it unseen.
MUST: dict[str, tuple[str, ...]] = {
    "naive": ("ld.global.u8|ld.global.b8|ld.global.s8",), "coalesced": ("shfl.sync.bfly",),
    "shared": ("shfl.sync.bfly", "bar.sync", "ld.shared"),
    "vector_dp4a": ("dp4a.u32.s32", LOAD), "tensor_core": (MMA, ONCE),
    "gemv_i2": (MMA, ONCE), "gemv_b3": (MMA, ONCE, "prmt.b32"),
    "gemm_i2": (MMA, "cp.async.cg.shared.global", "cp.async.wait_group", "ld.shared.v4", LOAD),
    "gemm_hopper": ("wgmma.mma_async.sync.aligned", "cp.async.bulk", "mbarrier.try_wait", LOAD),
    "in_core_order": (LOAD, "st.global.v4.b32"), "rmsnorm_int8": ("cvt.rni.s32.f32", "bar.sync")}
# {an instruction of PTX: what the machine code must hold then}
SASS = {"dp4a.": r"IDP\.4A", "mma.sync.aligned.m16n8k32": r"IMMA\.16832", "wgmma.mma_async": r"IGMMA",
        "cp.async.c": r"LDGSTS", "cp.async.bulk": r"UBLKCP"}
DOUBLES = {"sum_parts", "sum_sums", "absmean_scale"}       # they mean it
HEAD = "| kernel | sm | registers | cap | stack and spills, bytes | verdict |\n|---|---|---|---|---|---|"


class Verdict(NamedTuple):
    """Of one kernel for one architecture. `registers` and `spilled` are None without ptxas."""

    kernel: str
    arch: str
    registers: int | None
    cap: int
    spilled: int | None
    faults: list[str]


def ptxas() -> str | None:
    """NVIDIA's assembler: of the wheel nvidia-cuda-nvcc, which fits the compiler's, or on the PATH."""
    packages = Path(sysconfig.get_paths()["purelib"])
    found = [p for p in sorted(packages.glob("nvidia/*/bin/ptxas*")) if p.stem == "ptxas"]
    return str(found[0]) if found else shutil.which("ptxas")


def gate(chosen: "Iterable[Kernel]") -> list[Verdict]:
    """The verdict on each kernel and architecture."""
    assembler, disassembler = ptxas(), shutil.which("cuobjdump")
    return [judged(k, arch, assembler, disassembler) for k in chosen
            for arch in ((k.needs,) if k.needs.endswith("a") else ARCHITECTURES) if arch >= k.needs]


def judged(k: "Kernel", arch: str, assembler: str | None, disassembler: str | None) -> Verdict:
    """Compile `k` for `arch`, assemble it, and look at what came out."""
    from bitnet_ref.kernels.numba_cuda.launch import ptx

    try:
        code = ptx(k, arch)
    except CheckError:
        raise
    except Exception as e:                                 # whatever Numba's compiler raises is a fault of k
        return Verdict(k.name, arch, None, k.registers, None, [f"does not compile: {type(e).__name__}"])
    faults = [f"PTX lacks {want}" for want in MUST.get(k.name, ())
              if not any(each in code for each in want.split("|"))]
    never = [r"\.local\b"] + ([] if k.name in DOUBLES else [r"\.f64\b"])
    faults += [f"PTX has {found[0]}" for each in never if (found := re.search(each, code))]
    if not assembler:
        return Verdict(k.name, arch, None, k.registers, None, faults)
    registers, spilled, more = assembled(k, arch, code, assembler, disassembler)
    return Verdict(k.name, arch, registers, k.registers, spilled, faults + more)


def assembled(k: "Kernel", arch: str, code: str, assembler: str,
              disassembler: str | None) -> tuple[int | None, int | None, list[str]]:
    """(registers, bytes of stack and spills, faults) of the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "k.ptx", Path(folder) / "k.cubin"
        source.write_text(code, encoding="ascii")
        done = subprocess.run([assembler, f"-arch=sm_{arch}", "-v", str(source), "-o", str(made)],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            return None, None, [f"ptxas: {(done.stderr.strip().splitlines() or ['no word'])[0][:120]}"]
        used = re.search(r"Used (\d+) registers", done.stderr)
        registers = int(used[1]) if used else None
        kept = r"(\d+) bytes (?:stack frame|spill stores|spill loads|cumulative stack size)"
        spilled = max(map(int, re.findall(kept, done.stderr)), default=0)
        faults = ["ptxas names no registers"] if registers is None else []
        if registers and registers > k.registers:
            faults.append(f"{registers} registers, at most {k.registers}")
        if spilled:
            faults.append(f"{spilled} bytes of stack or spills")
        shared = max(map(int, re.findall(r"(\d+) bytes smem", done.stderr)), default=0)
        if shared > STATIC_SHARED:                         # ptxas lets it pass for sm_90a
            faults.append(f"{shared} bytes of static shared memory, at most {STATIC_SHARED}")
        return registers, spilled, faults + (machine_code(made, code, disassembler) if disassembler else [])


def machine_code(made: Path, code: str, disassembler: str) -> list[str]:
    """What the machine code lacks of what the PTX `code` says, and what it must not have."""
    command = [disassembler, "--dump-sass", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"cuobjdump: {done.stderr.strip()[:120]}"]
    lacking = [f"SASS lacks {want}" for said, want in SASS.items()
               if said in code and not re.search(want, done.stdout)]
    return lacking + [f"SASS has {each}" for each in ("LDL", "STL") if re.search(rf"\b{each}\b", done.stdout)]


def table(verdicts: list[Verdict]) -> str:
    """In Markdown."""
    lines = [f"| `{v.kernel}` | {v.arch} | {_number(v.registers)} | {v.cap} | {_number(v.spilled)} | "
             f"{'; '.join(v.faults) or 'good'} |" for v in verdicts]
    return "\n".join([HEAD, *lines])


def _number(value: int | None) -> str:
    return "not known" if value is None else str(value)


def main(argv: list[str]) -> int:
    """Parse, compile, print; exit 1 if a kernel does not keep its promises."""
    parser = Parser("python -m bitnet_ref.bench.gate", __doc__)
    parser.add_argument("--kernel", type=text, nargs="+", metavar="NAME", help="these alone (default: all)")
    args = parser.parse_args(argv)
    all_ = {**kernels(SHIPPED), **kernels(RUNGS)}
    verdicts = gate([lookup(all_, name, "kernel") for name in args.kernel or all_])
    print(table(verdicts))
    without = "not found, so registers and spills are not known: pip install nvidia-cuda-nvcc"
    print(f"\nptxas: {ptxas() or without}")
    print(f"cuobjdump: {shutil.which('cuobjdump') or 'not found, so machine code was not looked at'}")
    bad = sum(bool(v.faults) for v in verdicts)
    print(f"{len(verdicts)} compiled, {bad} with faults")
    return CHECK_FAILED if bad else DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
