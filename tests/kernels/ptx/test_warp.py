"""Instructions of a warp, against their definition lane by lane."""

import numpy as np
import pytest
from small_ptx import execute, kernel

from bitnet_ref.kernels.ptx.faults import PtxError

READ = "add.s64 %d0, %a0, %at0;\nld.global.u32 %r0, [%d0];\n"
WRITE = "add.s64 %d1, %a1, %at0;\nst.global.u32 [%d1], %r1;\n"


def warp(body, x, threads=64, **more):
    """What a body makes of %r0 in %r1."""
    return execute(kernel(READ + body + WRITE, 2), np.asarray(x, np.uint32), np.zeros(threads, np.uint32),
                   threads=threads, **more)[1]


def shuffled(how, b, c, x):
    """shfl.sync as the PTX ISA defines it."""
    got = []
    for lane in range(len(x)):
        me, segment, clamp = lane % 32, c >> 8 & 31, c & 31
        low = me & segment
        high = low | clamp & ~segment
        j = {"up": me - b, "down": me + b, "bfly": me ^ b, "idx": low | b & ~segment}[how]
        inside = j >= high if how == "up" else j <= high
        got.append(x[lane - me + (j if inside else me)])
    return got


@pytest.mark.parametrize(("how", "b", "c"), [
    ("bfly", 16, 31), ("bfly", 1, 31), ("down", 3, 31), ("up", 5, 0), ("idx", 7, 31), ("idx", 2, 0x181F),
    ("down", 1, 0x1C1F), ("bfly", 2, 0x181F), ("up", 1, 0x1800)])
def test_shuffles(rng, how, b, c):
    x = rng.integers(0, 1 << 32, 64, np.uint32)
    np.testing.assert_array_equal(warp(f"shfl.sync.{how}.b32 %r1, %r0, {b}, {c}, -1;\n", x),
                                  shuffled(how, b, c, x))


def test_a_shuffle_says_whether_its_source_was_inside():
    got = warp("shfl.sync.down.b32 %r2|%p1, %r0, 4, 31, -1;\nselp.u32 %r1, 1, 0, %p1;\n", np.arange(64))
    assert got.tolist() == ([1] * 28 + [0] * 4) * 2


def test_votes(rng):
    x = rng.integers(0, 2, 64)
    bits = [sum(int(v) << i for i, v in enumerate(row)) for row in x.reshape(2, 32)]
    test = "setp.ne.u32 %p0, %r0, 0;\n"
    assert warp(test + "vote.sync.ballot.b32 %r1, %p0, -1;\n", x).tolist() == [bits[0]] * 32 + [bits[1]] * 32
    for how, want in (("all", [0] * 32 + [1] * 32), ("any", [1] * 64)):
        some = np.concatenate([x[:32] | (np.arange(32) == 3), np.ones(32, int)])
        some[5] = 0
        code = f"vote.sync.{how}.pred %p1, %p0, -1;\nselp.u32 %r1, 1, 0, %p1;\n"
        assert warp(test + code, some).tolist() == want


def test_reductions_and_matches(rng):
    x = rng.integers(0, 5, 64)
    for name, f in (("add", np.sum), ("min", np.min), ("max", np.max)):
        want = np.repeat([f(row) for row in x.reshape(2, 32)], 32)
        np.testing.assert_array_equal(warp(f"redux.sync.{name}.u32 %r1, %r0, -1;\n", x), want)
    want = [sum(1 << j for j in range(32) if x[i // 32 * 32 + j] == x[i]) for i in range(64)]
    assert warp("match.any.sync.b32 %r1, %r0, -1;\n", x).tolist() == want


def test_part_of_a_warp_with_its_mask():
    body = "mov.u32 %r1, 7;\nsetp.lt.u32 %p0, %t, 8;\n@%p0 shfl.sync.bfly.b32 %r1, %r0, 1, 31, 255;\n"
    got = warp(body, np.arange(32), threads=32)
    assert got.tolist() == [i ^ 1 for i in range(8)] + [7] * 24
    active = warp("setp.lt.u32 %p0, %t, 3;\nmov.u32 %r1, 0;\n@%p0 activemask.b32 %r1;\n", np.arange(32),
                  threads=32)
    assert active.tolist() == [7] * 3 + [0] * 29


@pytest.mark.parametrize(("code", "says"), [
    ("@%p0 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;", "the mask of shfl names the lanes.*lanes 0x000000ff"),
    ("shfl.sync.bfly.b32 %r1, %r0, 1, 31, 255;", "mask 0x000000ff, lanes 0xffffffff"),
    ("@%p0 vote.sync.ballot.b32 %r1, %p0, -1;", "the mask of vote"),
    ("@%p0 bar.warp.sync -1;", "the mask of bar.warp.sync"),
    ("@%p0 shfl.sync.bfly.b32 %r1, %r0, 8, 31, 255;", "a lane that takes part")])
def test_a_part_of_a_warp_is_refused(code, says):
    with pytest.raises(PtxError, match=says):
        warp(f"mov.u32 %r1, 0;\nsetp.lt.u32 %p0, %t, 8;\n{code}\n", np.arange(32), threads=32)


def test_branches_meet_again():
    """Odd lanes take a longer way; the shuffle after it is whole again."""
    body = """and.b32 %r2, %t, 1;
setp.eq.u32 %p0, %r2, 0;
@%p0 bra EVEN;
add.u32 %r0, %r0, 100;
add.u32 %r0, %r0, 100;
EVEN:
shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;
"""
    assert warp(body, np.zeros(64)).tolist() == [200, 0] * 32


def test_loops_of_different_lengths():
    """Lane i runs i rounds: the sum of 1..i."""
    body = """mov.u32 %r1, 0;
LOOP:
setp.eq.u32 %p0, %r0, 0;
@%p0 bra DONE;
add.u32 %r1, %r1, %r0;
sub.u32 %r0, %r0, 1;
bra LOOP;
DONE:
"""
    assert warp(body, np.arange(64)).tolist() == [i * (i + 1) // 2 for i in range(64)]
