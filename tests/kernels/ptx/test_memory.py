"""Loads and stores that are right, and what is noticed of those that are not."""

import numpy as np
import pytest
from small_ptx import execute, kernel, machine

from bitnet_ref.kernels.ptx.faults import PtxError
from bitnet_ref.kernels.ptx.module import parse

SHARED = ".shared .align 16 .b8 S[512];"
PLACE = "mov.u64 %d2, S;\nadd.s64 %d2, %d2, %at0;\n"
X = np.arange(64, dtype=np.uint32)


def test_vectors_of_two_and_four():
    body = """mul.wide.u32 %d0, %t, 16;
add.s64 %d1, %a0, %d0;
ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%d1];
add.s64 %d1, %a1, %d0;
st.global.v2.b32 [%d1], {%r3, %r2};
st.global.v2.b32 [%d1+8], {%r1, %r0};
"""
    got = execute(kernel(body, 2), X, X, threads=16)[1]
    np.testing.assert_array_equal(got.reshape(16, 4), X.reshape(16, 4)[:, ::-1])


def test_narrow_numbers_are_extended():
    body = """add.s64 %d0, %a0, %at0;
ld.global.s8 %r0, [%d0];
ld.global.u8 %r1, [%d0+1];
ld.global.s16 %h0, [%d0];
cvt.s32.s16 %r2, %h0;
add.s32 %r0, %r0, %r1;
add.s32 %r0, %r0, %r2;
st.global.u8 [%d0], %r0;
"""
    x = np.full(32, 0x1180FF80, np.uint32)
    got = execute(kernel(body), x)[0]
    sums = -128 + 255 - 128
    assert (got == (0x1180FF00 | sums & 0xFF)).all()


def test_parts_of_registers():
    body = """add.s64 %d0, %a0, %at0;
ld.global.u32 %r0, [%d0];
mov.b32 {%h0, %h1}, %r0;
mov.b32 %r1, {%h1, %h0};
mov.b64 %d3, {%r1, %r0};
mov.b64 {%r2, %r3}, %d3;
xor.b32 %r2, %r2, %r3;
st.global.u32 [%d0], %r2;
"""
    turned = X << 16 | X >> 16
    np.testing.assert_array_equal(execute(kernel(body), X, threads=64)[0], turned ^ X)


def test_shared_local_and_constant_memory():
    body = PLACE + """st.shared.u32 [%d2], %t;
bar.sync 0;
xor.b32 %r0, %t, 33;
mul.wide.u32 %d3, %r0, 4;
mov.u64 %d4, S;
cvta.shared.u64 %d4, %d4;
add.s64 %d4, %d4, %d3;
ld.u32 %r1, [%d4];
mov.u64 %d5, L;
st.local.u32 [%d5+4], %r1;
cvta.local.u64 %d6, %d5;
ld.u32 %r2, [%d6+4];
mov.u64 %d7, C;
ld.const.u32 %r3, [%d7+4];
add.u32 %r2, %r2, %r3;
add.s64 %d0, %a0, %at0;
st.global.u32 [%d0], %r2;
"""
    text = kernel(body, outside=SHARED + "\n.const .align 4 .u32 C[2] = {5, 1000};",
                  inside=".local .align 8 .b8 L[16];")
    np.testing.assert_array_equal(execute(text, X * 0, threads=64)[0], (np.arange(64) ^ 33) + 1000)


def test_the_grid_and_its_special_registers():
    body = """mov.u32 %r0, %ntid.x;
mad.lo.u32 %r1, %block, %r0, %t;
mov.u32 %r2, %nctaid.x;
mov.u32 %r3, %laneid;
mad.lo.u32 %r2, %r2, 1000, %r3;
mul.wide.u32 %d0, %r1, 4;
add.s64 %d0, %a0, %d0;
st.global.u32 [%d0], %r2;
"""
    got = execute(kernel(body), np.zeros(700 * 96, np.uint32), threads=96, grid=700)[0]     # several slices
    np.testing.assert_array_equal(got, 700_000 + np.arange(700 * 96) % 96 % 32)


def test_a_block_that_is_no_multiple_of_a_warp():
    body = "add.s64 %d0, %a0, %at0;\nst.global.u32 [%d0], %t;\nbar.sync 0;\n"
    assert execute(kernel(body), np.zeros(40, np.uint32), threads=40)[0].tolist() == list(range(40))


GLOBAL_ATOMIC = "mov.u32 %r0, 3;\natom.global.{} %r1, [%a0], %r0;\n"
SHARED_ATOMIC = """mov.u64 %d9, S;
setp.eq.u32 %p0, %t, 0;
@%p0 st.shared.u32 [%d9], 5;
bar.sync 0;
mov.u32 %r0, 3;
atom.shared.{} %r1, [%d9], %r0;
bar.sync 0;
ld.shared.u32 %r5, [%d9];
@%p0 st.global.u32 [%a0], %r5;
"""


@pytest.mark.parametrize("body", [GLOBAL_ATOMIC, SHARED_ATOMIC])
@pytest.mark.parametrize(("name", "want"), [("add.u32", 64 * 3 + 5), ("max.u32", 5), ("min.u32", 3),
                                             ("exch.b32", 3),
                                       ("or.b32", 7), ("and.b32", 1), ("xor.b32", 5)])
def test_atomics(body, name, want):
    text = kernel(body.format(name), outside=SHARED)
    assert execute(text, np.array([5], np.uint32), threads=64)[0].tolist() == [want]


def test_atomics_give_what_was_there():
    body = """atom.global.add.u32 %r1, [%a0], 1;
add.s64 %d0, %a1, %at0;
st.global.u32 [%d0], %r1;
red.global.add.f32 [%a2], 0f3F000000;
atom.global.cas.b32 %r2, [%a3], 0, 9;
"""
    got = execute(kernel(body, 4), np.zeros(1, np.uint32), np.zeros(64, np.uint32), np.zeros(1, np.float32),
                  np.zeros(1, np.uint32), threads=64)
    assert sorted(got[1].tolist()) == list(range(64))
    assert (got[0][0], got[2][0], got[3][0]) == (64, 32, 9)


# ---- what is noticed ---------------------------------------------------------------------------------------
LOAD = "add.s64 %d0, %a0, %at0;\nld.global.u32 %r0, [%d0{}];\n"
WRONG = {
    "misaligned": (LOAD.format("+2"), "aligned to 4.*2 past a multiple"),
    "past the end": (LOAD.format("+256"),
                     "global memory must be accessed inside.*byte 256 of an array of 256"),
    "before the start": (LOAD.format("-4"), "inside of its arrays"),
    "nowhere": ("mov.u64 %d0, 64;\nld.global.u32 %r0, [%d0];\n", "in no array"),
    "a wide load over the end": ("add.s64 %d0, %a0, 256;\nld.global.v4.b32 {%r0,%r1,%r2,%r3}, [%d0];\n",
                                 "inside of its"),
    "stores too": ("add.s64 %d0, %a0, 256;\nst.global.u32 [%d0], %t;\n", "inside of its arrays"),
    "never written": ("add.s64 %d0, %a1, %at0;\nld.global.u32 %r0, [%d0];\n",
                      "written before it is read.*never written"),
    "shared, past the end": (PLACE + "st.shared.u32 [%d2+384], %t;\n", "inside of its arrays"),
    "shared, before the start": (PLACE + "st.shared.u32 [%d2+-64], %t;\n", "inside of its arrays"),
    "shared, misaligned": (PLACE + "st.shared.v2.u32 [%d2], {%t, %t};\n", "aligned to 8"),
    "shared, never written": (PLACE + "ld.shared.u32 %r0, [%d2];\n", "shared memory must be written before"),
    "two warps write": ("mov.u64 %d2, S;\nst.shared.u32 [%d2], %t;\n",
                        "no warp may write what another warp writes"),
    "read without a barrier": (PLACE + "st.shared.u32 [%d2], %t;\nxor.b32 %r0, %t, 32;\n"
                               "mul.wide.u32 %d3, %r0, 4;\nmov.u64 %d4, S;\nadd.s64 %d4, %d4, %d3;\n"
                               "ld.shared.u32 %r1, [%d4];\n",
                               "read what another warp writes.*warp 0 and warp 1"),
    "written while others read": (PLACE + "st.shared.u32 [%d2], %t;\nbar.sync 0;\nmov.u64 %d4, S;\n"
                                  "ld.shared.u32 %r1, [%d4];\nsetp.eq.u32 %p0, %t, 0;\n"
                                  "@%p0 st.shared.u32 [%d4], 1;\n",
                                  "write what another warp reads.*several warps"),
    "an atomic, then a plain read": ("mov.u64 %d4, S;\nsetp.eq.u32 %p0, %t, 0;\n"
                                     "@%p0 st.shared.u32 [%d4], 1;\n"
                                     "bar.sync 0;\natom.shared.add.u32 %r1, [%d4], 1;\n"
                                     "ld.shared.u32 %r2, [%d4];\n", "read what another warp writes"),
    "a barrier for some": ("setp.lt.u32 %p0, %t, 32;\n@%p0 bra SKIP;\nbar.sync 0;\nSKIP:\nbar.sync 1;\n",
                           "all threads of a block reach its barrier.*32 of 64"),
    "a barrier for part of a warp": ("setp.lt.u32 %p0, %t, 8;\n@%p0 bar.sync 0;\n",
                                     "a warp reach a barrier together"),
    "a trap": ("setp.eq.u32 %p0, %t, 37;\n@%p0 trap;\n", "may not reach trap.*thread 37"),
    "local, past the end": ("mov.u64 %d5, L;\nst.local.u32 [%d5+16], %t;\n", "inside of its arrays"),
    "mma by part of a warp": ("setp.lt.u32 %p0, %t, 8;\nmov.u32 %r0, 0;\n"
                              "@%p0 mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%r0,%r1,%r2,%r3}, "
                              "{%r0,%r0,%r0,%r0}, {%r0,%r0}, {%r0,%r0,%r0,%r0};\n",
                              "all 32 threads of a warp execute mma.*8 of them"),
    "an unknown instruction": ("frobnicate.u32 %r0, %r1;\n", "the interpreter must know.*frobnicate.u32"),
    "an unknown register": ("mov.u32 %r0, %zz;\n", "a symbol that is declared.*%zz"),
    "an unknown label": ("bra NOWHERE;\n", "a label of the kernel.*NOWHERE"),
    "another rounding": ("div.rz.f32 %f0, %f0, %f0;\n", "the interpreter must know.*div.rz.f32"),
}


@pytest.mark.parametrize(("body", "says"), WRONG.values(), ids=WRONG)
def test_it_is_noticed(body, says):
    text = kernel(body, 2, outside=SHARED, inside=".local .align 8 .b8 L[16];")
    with pytest.raises(PtxError, match=says) as e:
        execute(text, X, 256, threads=64)
    assert "kernel small, line " in str(e.value)
    assert str(e.value).count("; ") >= 2


OWN = "mad.lo.u32 %r5, %block, 64, %t;\nmul.wide.u32 %d1, %r5, 4;\nadd.s64 %d0, %a0, %d1;\n"
BLOCKS = {
    "two blocks write": ("add.s64 %d0, %a0, %at0;\nst.global.u32 [%d0], %t;\n",
                         "write what another block writes"),
    "one reads what the other writes": (OWN + "st.global.u32 [%d0], %t;\nld.global.u32 %r1, [%a0];\n",
                                        "read what another block writes.*block [1-7] and block 0"),
    "one writes what all read": (OWN + "ld.global.u32 %r1, [%a0+4];\nst.global.u32 [%d0], %r1;\n",
                                 "what another block (writes|reads.*several blocks)"),
    "an atomic, then a plain read": ("atom.global.add.u32 %r1, [%a0], 1;\nld.global.u32 %r2, [%a0];\n",
                                     "read what another block writes"),
}


@pytest.mark.parametrize(("body", "says"), BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("slices", [False, True])
def test_blocks_of_a_launch_share_no_bytes_that_are_written(body, says, slices, monkeypatch):
    if slices:                                             # a block after the other, not all side by side
        monkeypatch.setattr("bitnet_ref.kernels.ptx.machine.SLICE_THREADS", 64)
    x, m = np.arange(512, dtype=np.uint32), machine()
    with pytest.raises(PtxError, match=says):
        execute(kernel(body), x, threads=64, grid=8, on=m)
    m.races = False
    execute(kernel(body), x, threads=64, grid=8, on=m)


def test_what_an_earlier_launch_wrote_is_no_race():
    m, x = machine(), np.arange(512, dtype=np.uint32)
    at, text = m.memory.allocate(x.nbytes), kernel(OWN + "st.global.u32 [%d0], %t;\n")
    back = kernel("sub.u32 %r6, 7, %block;\nmov.u32 %block, %r6;\n" + OWN + "ld.global.u32 %r1, [%d0];\n"
                  "add.u32 %r1, %r1, 1;\nst.global.u32 [%d0], %r1;\n")
    for each in (text, back, text, back):
        m.run(parse(each), (8,), (64,), [np.uint64(at).tobytes()])
    np.testing.assert_array_equal(m.memory.read(at, x.nbytes).view(np.uint32), np.tile(np.arange(1, 65), 8))


def test_freed_memory_is_noticed():
    m = machine()
    gone = m.memory.allocate(1024)
    m.memory.release(gone)
    with pytest.raises(PtxError, match="inside of its arrays"):
        execute(kernel(f"mov.u64 %d0, {gone};\nld.global.u32 %r0, [%d0];\n"), X, on=m)
    with pytest.raises(PtxError, match="freed once"):
        m.memory.release(gone)


def test_an_endless_loop_ends():
    m = machine()
    m.max_steps = 1000
    with pytest.raises(PtxError, match="a kernel ends; got more than 1000 steps"):
        execute(kernel("AGAIN:\nbra AGAIN;\n"), X, on=m)


def test_shared_arrays_are_aligned_as_promised_and_no_better():
    body = "mov.u64 %d2, S;\nst.shared.v4.b32 [%d2], {%t, %t, %t, %t};\n"
    execute(kernel(body, outside=SHARED), X, threads=1)
    with pytest.raises(PtxError, match="aligned to 16"):
        execute(kernel(body, outside=SHARED.replace("16", "8")), X, threads=1)


def test_dynamic_shared_memory_is_as_large_as_the_launch_asks():
    body = "mov.u64 %d2, D;\nadd.s64 %d2, %d2, %at0;\nst.shared.u32 [%d2], %t;\n"
    text = kernel(body, outside=".extern .shared .align 16 .b8 D[];")
    execute(text, X, threads=32, dynamic=128)
    with pytest.raises(PtxError, match="inside of its arrays"):
        execute(text, X, threads=33, dynamic=128)


def test_what_is_counted():
    """Neighbours share sectors; a stride of 32 words meets in one bank."""
    m = machine()
    m.counting = True
    stride = "mov.u64 %d2, S;\nmul.wide.u32 %d3, %t, 128;\nadd.s64 %d2, %d2, %d3;\nst.shared.u32 [%d2], %t;\n"
    execute(kernel(LOAD.format("") + stride, outside=".shared .align 4 .b8 S[4096];"), X, threads=32, on=m)
    t = m.counts.traffic
    assert (t["global load requests"], t["global load sectors"], t["global load bytes"]) == (1, 4, 128)
    assert (t["shared store wavefronts"], t["shared store ideal"]) == (32, 1)
    assert m.counts.instructions["ld.global.u32"] == 32
    assert m.counts.total == sum(m.counts.instructions.values()) > 32 * 6
