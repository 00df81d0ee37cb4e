"""Copies that run beside the program: right when they are waited for, noticed when they are not."""

import numpy as np
import pytest
from small_ptx import execute, kernel, machine

from bitnet_ref.kernels.ptx.faults import PtxError

SHARED = ".shared .align 16 .b8 S[2048];\n.shared .align 8 .b8 B[8];"
X = np.arange(256, dtype=np.uint32)
# Two groups of 16 bytes for each of 32 threads; the first is used while the second is under way.
COPY = """mul.wide.u32 %d0, %t, 16;
add.s64 %d1, %a0, %d0;
mov.u64 %d2, S;
add.s64 %d2, %d2, %d0;
cvt.u32.u64 %r9, %d2;
cp.async.cg.shared.global [%r9], [%d1], 16;
cp.async.commit_group;
cp.async.cg.shared.global [%r9+512], [%d1+512], 16;
cp.async.commit_group;
cp.async.wait_group 1;
ld.shared.v4.b32 {%r0, %r1, %r2, %r3}, [%d2];
cp.async.wait_group 0;
ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%d2+512];
add.s64 %d1, %a1, %d0;
st.global.v4.b32 [%d1], {%r0, %r1, %r2, %r3};
st.global.v4.b32 [%d1+512], {%r4, %r5, %r6, %r7};
"""
# One thread begins a bulk copy of 1 KiB; two warps wait for it.
BULK = """mov.u64 %d2, S;
mov.u64 %d3, B;
cvt.u32.u64 %r9, %d3;
cvt.u32.u64 %r8, %d2;
setp.ne.u32 %p0, %t, 0;
@%p0 bra MADE;
mbarrier.init.shared::cta.b64 [%r9], 1;
fence.proxy.async.shared::cta;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r9], 1024;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%a0], 1024, [%r9];
MADE:
bar.sync 0;
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r9], 0;
@%p1 bra DONE;
bra WAIT;
DONE:
mul.wide.u32 %d0, %t, 16;
add.s64 %d2, %d2, %d0;
ld.shared.v4.b32 {%r0, %r1, %r2, %r3}, [%d2];
add.s64 %d1, %a1, %d0;
st.global.v4.b32 [%d1], {%r0, %r1, %r2, %r3};
"""


def copied(body, threads):
    return execute(kernel(body, 2, outside=SHARED), X, np.zeros(256, np.uint32), threads=threads)[1]


def test_copies_arrive():
    np.testing.assert_array_equal(copied(COPY, 32), X)
    np.testing.assert_array_equal(copied(BULK, 64), X)


def test_the_rest_of_a_short_copy_is_zero():
    body = COPY.replace("[%d1], 16;", "[%d1], 16, 6;")
    got = copied(body, 32).view(np.uint16).reshape(-1, 8)
    np.testing.assert_array_equal(got[:32, :3], X.view(np.uint16).reshape(-1, 8)[:32, :3])
    assert not got[:32, 3:].any()


WRONG = {
    "waits for too few": (COPY, "cp.async.wait_group 1;", "cp.async.wait_group 2;", "never written"),
    "does not wait": (COPY, "cp.async.wait_group 0;", "", "never written"),
    "a group that is not ended": (COPY, "commit_group;\ncp.async.wait_group 1;", "wait_group 1;",
                                  "never written"),
    "misaligned": (COPY, "[%d1], 16;", "[%d1+8], 16;", "aligned to 16"),
    "from outside": (COPY, "[%d1+512], 16;", "[%d1+1024], 16;", "inside of its arrays"),
    "into nowhere": (COPY, "[%r9+512]", "[%r9+2048]", "inside of its arrays"),
    "a size that there is not": (COPY, "[%d1], 16;", "[%d1], 8;", "copies 4, 8 or 16 bytes"),
    "expects too few bytes": (BULK, "_, [%r9], 1024", "_, [%r9], 1008", "wait for ever"),
    "expects too many bytes": (BULK, "_, [%r9], 1024", "_, [%r9], 1040", "wait for ever"),
    "counts too many arrivals": (BULK, "[%r9], 1;", "[%r9], 2;", "wait for ever"),
    "arrives too often": (BULK, "MADE:", "MADE:\nbar.sync 0;\nmbarrier.arrive.shared.b64 _, [%r9], 2;",
                          "one more than 1"),
    "never initialised": (BULK, "mbarrier.init.shared::cta.b64 [%r9], 1;", "",
                          "initialised before it is used"),
    "waits for the other parity": (BULK, "[%r9], 0;", "[%r9], 1;", "wait for ever"),
    "does not wait for the bulk copy": (BULK, "WAIT:", "bra DONE;\nWAIT:", "never written"),
    "a ragged size": (BULK, "[%a0], 1024,", "[%a0], 1000,", "multiples of 16"),
}


@pytest.mark.parametrize(("body", "old", "new", "says"), WRONG.values(), ids=WRONG)
def test_it_is_noticed(body, old, new, says):
    assert old in body
    threads = 32 if body is COPY else 64
    with pytest.raises(PtxError, match=says):
        copied(body.replace(old, new), threads)


def test_a_stage_is_not_overwritten_while_another_warp_reads_it():
    """Warp 0 copies anew into what warp 1 still reads: a barrier between is missing."""
    body = BULK + """setp.ne.u32 %p0, %t, 0;
@%p0 bra END;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r9], 1024;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%a0], 1024, [%r9];
END:
"""
    with pytest.raises(PtxError, match="write what another warp reads"):
        copied(body, 64)
    copied(body.replace("setp.ne.u32 %p0, %t, 0;\n@%p0 bra END",
                        "bar.sync 0;\nsetp.ne.u32 %p0, %t, 0;\n@%p0 bra END"), 64)


def test_each_warp_waits_for_itself_or_meets_one_that_has():
    """Only warp 0 waits for the bulk copy; warp 1 comes later and would read, by luck, what is there."""
    alone = BULK.replace("WAIT:", "setp.gt.u32 %p2, %t, 31;\n@%p2 bra LATE;\nWAIT:").replace(
        "DONE:", "DONE:\nLATE:")
    with pytest.raises(PtxError, match=r"a thread waits for a bulk copy that it reads.*thread 32"):
        copied(alone, 64)
    np.testing.assert_array_equal(copied(alone.replace("LATE:", "LATE:\nbar.sync 0;"), 64), X)


# Each thread copies 16 bytes and reads those of a thread of the other warp.
EXCHANGE = """mul.wide.u32 %d0, %t, 16;
add.s64 %d1, %a0, %d0;
mov.u64 %d2, S;
add.s64 %d3, %d2, %d0;
cvt.u32.u64 %r9, %d3;
cp.async.cg.shared.global [%r9], [%d1], 16;
cp.async.wait_all;
bar.sync 0;
xor.b32 %r10, %t, 32;
mul.wide.u32 %d0, %r10, 16;
add.s64 %d2, %d2, %d0;
ld.shared.v4.b32 {%r0, %r1, %r2, %r3}, [%d2];
add.s64 %d1, %a1, %d0;
st.global.v4.b32 [%d1], {%r0, %r1, %r2, %r3};
"""


def test_a_wait_is_for_ones_own_copies():
    np.testing.assert_array_equal(copied(EXCHANGE, 64), X)
    with pytest.raises(PtxError, match="read what another warp writes"):
        copied(EXCHANGE.replace("bar.sync 0;", ""), 64)
    with pytest.raises(PtxError, match="never written"):
        copied(EXCHANGE.replace("cp.async.wait_all;", ""), 64)


def test_a_bulk_copy_is_no_request_of_a_warp():
    """One thread asks for it, and lanes meet in no bank: it would look like 32 that do."""
    m = machine()
    m.counting = True
    execute(kernel(BULK, 2, outside=SHARED), X, np.zeros(256, np.uint32), threads=64, on=m)
    t = m.counts.traffic
    assert (t["global fetch bytes"], t["shared deliver bytes"], t["global load bytes"]) == (1024, 1024, 0)
    assert t["shared load wavefronts"] == t["shared load ideal"] == 8              # 64 lanes by 16 bytes
    assert "shared deliver wavefronts" not in t
