"""Faults planted in the PTX of shipped kernels: each is noticed, as an error or as a wrong result.

An edit that finds nothing to change fails, so that no fault is planted in vain when a kernel changes.
"""

import re
from importlib import import_module

import numpy as np
import pytest

from bitnet_ref import layers
from bitnet_ref.kernels.ptx.faults import PtxError

pytest.importorskip("numba_cuda")
M0 = "50529027"                  # 0x03030303, the mask of trits


@pytest.fixture(scope="module")
def device():
    from bitnet_ref.kernels.numba_cuda.memory import Device
    from bitnet_ref.kernels.ptx.driver import Driver
    return Device(Driver())


def example(name, **sizes):
    """A function of a device: whether the example of a kernel comes out right."""
    def right(device):
        from bitnet_ref.bench import examples
        launch = examples.launch_of(name, **sizes)
        return not examples.wrong(launch, examples.run(device, kernel_named(name), launch))
    return right


def product(rows, N=150, K=600, kind="i2", hopper=False):
    """A function of a device: whether a product of ragged sizes is the reference's."""
    def right(device):
        bitlinear = import_module("bitnet_ref.kernels.numba_cuda.bitlinear")
        rng = np.random.default_rng(4)
        x_q = rng.integers(-128, 128, (rows, bitlinear.padded(K))).astype(np.int8)
        x_scale, w_q = rng.random((rows, 1)).astype(np.float32), rng.integers(-1, 2, (N, K)).astype(np.int8)
        y = device.upload(np.full((rows, N), np.nan, np.float32))
        x_sum = x_q[:, :K].sum(1, dtype=np.int32)
        w = bitlinear.pack(device, [(w_q, np.float32(0.5))], kind)
        scratch = device.empty((bitlinear.scratch_size(rows, K),), np.int8) if hopper else None
        bitlinear.product(device, device.upload(x_q), device.upload(x_scale), device.upload(x_sum), w, y,
                          rows, scratch=scratch)
        want = layers.ternary_linear(x_q[:, :K], x_scale, layers.prepare(w_q, np.float32(0.5)))
        return np.array_equal(device.read(y), want)
    return right


RUN = {"rmsnorm_int8": example("rmsnorm_int8", K=610), "gemv_i2": product(5), "gemm_i2": product(140),
       "gemm_hopper": product(140, hopper=True)}


def nth(pattern, new, n=0):
    """An edit of match number n."""
    def edit(text):
        found = list(re.finditer(pattern, text))
        assert found, f"the kernel has no {pattern}"
        m = found[n]
        return text[:m.start()] + m.expand(new) + text[m.end():]
    return edit


def every(pattern, new):
    """An edit of all matches."""
    def edit(text):
        made, n = re.subn(pattern, new, text)
        assert n, f"the kernel has no {pattern}"
        return made
    return edit


BAR, LOAD4 = r"bar\.sync\s+0;", r"(ld\.global\.nc[\w.:]*\.v4\.b32\s*\{[^}]*\}, \[%rd\d+)\]"
WRONG = None                     # not an error: the result is wrong
READS, WRITES = "read what another warp writes", "write what another warp writes"
UNWRITTEN, OUTSIDE = "must be written before it is read", "must be accessed inside of its arrays"
# {what: (kernel, what the error says, the edit)}
PLANTED = {
    "norm: the barrier before the sums is gone": ("rmsnorm_int8", READS, nth(BAR, "", 0)),
    "norm: the last barrier is gone": ("rmsnorm_int8", READS, nth(BAR, "", -1)),
    "norm: a shuffle of 15 lanes for 16": (
        "rmsnorm_int8", WRONG, nth(r"(mov\.u32\s+%r\d+, )16;", r"\g<1>15;")),
    "norm: a shuffle takes part of the warp": (
        "rmsnorm_int8", "the mask of shfl", nth(r"(mov\.u32\s+%r\d+, )-1;", r"\g<1>65535;")),
    "norm: rows are taken for one longer": (
        "rmsnorm_int8", OUTSIDE, nth(
            r"(ld\.param\.u32\s+(%r\d+), \[\S+_param_\d+\];)", r"\1 add.s32 \2, \2, 1;", -1)),
    "norm: misaligned": (
        "rmsnorm_int8", "4 bytes must be aligned to 4", every(
            r"(ld\.global\.f32\s+%f\d+, \[%rd\d+)\]", r"\1+2]")),
    "norm: rounds toward zero": ("rmsnorm_int8", WRONG, every(r"cvt\.rni\.s32", "cvt.rzi.s32")),
    "norm: partial sums overwrite each other": (
        "rmsnorm_int8", WRITES, every(r"shr\.s32(\s+%r\d+, %r\d+), 5;", r"shr.s32\1, 6;")),
    "few: 16 bytes too far": ("gemv_i2", OUTSIDE, nth(LOAD4, r"\1+16]")),
    "few: misaligned by 4": ("gemv_i2", "16 bytes must be aligned to 16", nth(LOAD4, r"\1+4]")),
    "few: a mask of trits is wrong": ("gemv_i2", WRONG, nth(M0, "50529028")),
    "few: a barrier is gone": ("gemv_i2", READS, nth(BAR, "")),
    "few: two blocks take one strip": (
        "gemv_i2", "no block may write what another block writes", every(
            r"(mov\.u32\s+(%r\d+), %ctaid\.y;)", r"\1 shr.u32 \2, \2, 1;")),
    "many: the barrier of the loop is gone": ("gemm_i2", READS, nth(BAR, "")),
    "many: the last barrier is gone": ("gemm_i2", READS, nth(BAR, "", -1)),
    "many: waits for a group too few": (
        "gemm_i2", UNWRITTEN, every(r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;")),
    "many: the first group is not ended": ("gemm_i2", UNWRITTEN, nth(r"cp\.async\.commit_group;", "")),
    "many: shared memory aligned to 8": (
        "gemm_i2", "16 bytes must be aligned to 16", every(r"\.shared \.align \d+", ".shared .align 8")),
    "many: copies from 16 bytes further": (
        "gemm_i2", WRONG, nth(r"(cp\.async\.cg\S* \[%r\d+\], \[%rd\d+)\]", r"\1+16]")),
    "many: copies to 16 bytes further": ("gemm_i2", WRITES, nth(r"(cp\.async\.cg\S* \[%r\d+)\]", r"\1+16]")),
    "many: mma takes its operands crosswise": (
        "gemm_i2", WRONG, nth(r"(mma\.sync\S* \{[^}]*\}, \{)(%r\d+), (%r\d+)", r"\1\3, \2")),
    "many: mma takes unsigned codes": ("gemm_i2", WRONG, every(r"s32\.u8\.s8\.s32", "s32.u8.u8.s32")),
    "many: the guard of the last rows is gone": (
        "gemm_i2", WRONG, nth(r"@%p\d+ (bra\s+\$L__BB0_\d+;)", "", -1)),
    "Hopper: copies 16 bytes too many": (
        "gemm_hopper", "where no other is on its way", nth(r"(mov\.u32\s+%r\d+, )16384;", r"\g<1>16400;")),
    "Hopper: expects 16 bytes too many": (
        "gemm_hopper", "wait for ever", nth(r"(expect_tx\S* _, \[%r\d+\]), %r\d+;", r"\1, 16400;")),
    "Hopper: does not wait for a copy": (
        "gemm_hopper", UNWRITTEN, every(r"mbarrier\.try_wait[^;]*;", "setp.eq.u32 P, 0, 0;")),
    "Hopper: the sums are not waited for": (
        "gemm_hopper", "before wgmma.wait_group", every(r"wgmma\.wait_group\.sync\.aligned 0;", "")),
    "Hopper: the sums are not ended": (
        "gemm_hopper", "before wgmma.wait_group", every(r"wgmma\.commit_group\.sync\.aligned;", "")),
    "Hopper: the barrier of the loop is gone": (
        "gemm_hopper", "write what another warp reads", nth(BAR, "", 1)),
    "Hopper: no fence before wgmma": (
        "gemm_hopper", "wgmma.fence comes before", every(r"wgmma\.fence\.sync\.aligned;", "")),
    "Hopper: one warp alone waits for a copy": (
        "gemm_hopper", "a thread waits for a bulk copy that it reads", every(
            r"(mbarrier\.try_wait[^;]*;)", r"setp.ne.u32 P, %warpid, 0; @!P \1")),
}


def kernel_named(name):
    modules = (import_module(f"bitnet_ref.kernels.numba_cuda.{stem}") for stem in ("rmsnorm", "gemv", "gemm",
                                                                                   "gemm_hopper"))
    return next(getattr(m, name) for m in modules if hasattr(m, name))


def with_text(device, name, edit):
    """Whether the result is right with the kernel's PTX edited. Raises PtxError as the interpreter does."""
    from bitnet_ref.kernels.numba_cuda.launch import ptx, target
    k = kernel_named(name)
    text = edit(ptx(k, target(k, device.capability)))
    module = device.do("cuModuleLoadData", text.encode() + b"\0")
    device.functions[k] = device.do("cuModuleGetFunction", module,
                                    re.search(r"\.entry\s+(\S+?)\(", text)[1].encode())
    try:
        right = RUN[name](device)
        ran = [module for module, _ in device.driver.machine.programs.values()]
        assert any(module is device.functions[k] for module in ran), "another kernel was chosen"
        return right
    finally:
        del device.functions[k]


@pytest.mark.parametrize("name", RUN)
def test_the_kernels_as_they_are(device, name):
    assert with_text(device, name, lambda text: text)


@pytest.mark.parametrize(("name", "says", "edit"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_noticed(device, name, says, edit):
    """For its own reason: not because the edit broke something else."""
    if says is WRONG:
        assert not with_text(device, name, edit)
    else:
        with pytest.raises(PtxError, match=says):
            with_text(device, name, edit)
