"""Tensor cores, number by number after the tables of the PTX ISA: who holds which element of which matrix."""

import ml_dtypes
import numpy as np
import pytest
from small_ptx import execute, kernel

from bitnet_ref.kernels.ptx.faults import PtxError


def held(matrix, each):
    """A (16, k) or the transpose of B (8, k) as registers (r, 32) of `each` numbers, element by element."""
    rows, k = matrix.shape
    high = rows // 8
    out = np.empty((k // (4 * each) * high, 32, each), matrix.dtype)
    for r in range(len(out)):
        for lane in range(32):
            g, t = lane // 4, lane % 4
            for j in range(each):
                out[r, lane, j] = matrix[g + 8 * (r % high), r // high * 4 * each + t * each + j]
    return np.ascontiguousarray(out).view(np.uint32).reshape(len(out), 32)


def sums_of(registers):
    """Four registers (4, 32) of sums as the matrix (16, 8)."""
    out = np.empty((16, 8), registers.dtype)
    for i in range(4):
        for lane in range(32):
            out[lane // 4 + 8 * (i >> 1), 2 * (lane % 4) + (i & 1)] = registers[i, lane]
    return out


def multiply(shape, types, a, b, kind):
    """A (16, k) by B^T (8, k) as `held` has them, after sums of 7, -7, 1 and 0 that are taken off again."""
    first = [7, -7, 1, 0]
    dtype, letter = (np.int32, "%r") if kind == "u32" else (np.float32, "%f")
    begin = np.repeat(np.array(first, dtype)[:, None], 32, 1)
    code = []
    for source, registers, n in ((0, "%r", len(a)), (1, "%r1", len(b)), (2, f"{letter}", 4)):
        for i in range(n):
            name = f"{letter}{20 + i if kind == 'u32' else i}" if source == 2 else f"{registers}{i}"
            code += [f"add.s64 %d0, %a{source}, %at0;", f"ld.global.{kind if source == 2 else 'u32'} {name}, "
                     f"[%d0+{128 * i}];"]
    c = [f"%r{20 + i}" if kind == "u32" else f"%f{i}" for i in range(4)]
    d = [f"%r{30 + i}" if kind == "u32" else f"%f{4 + i}" for i in range(4)]
    left, right = (", ".join(f"%r{prefix}{i}" for i in range(len(x))) for prefix, x in (("", a), ("1", b)))
    code.append(f"mma.sync.aligned.{shape}.row.col.{types} {{{', '.join(d)}}}, {{{left}}}, {{{right}}}, "
                f"{{{', '.join(c)}}};")
    for i in range(4):
        code += ["add.s64 %d1, %a3, %at0;", f"st.global.{kind} [%d1+{128 * i}], {d[i]};"]
    got = execute(kernel("\n".join(code), 4), a, b, begin, np.zeros((4, 32), dtype))[3]
    return sums_of(got.reshape(4, 32)) - sums_of(begin)


@pytest.mark.parametrize("k", [16, 32])
@pytest.mark.parametrize(("left", "right"), [("u8", "s8"), ("s8", "s8"), ("s8", "u8")])
def test_bytes(rng, k, left, right):
    pick = {"u8": (0, 256, np.uint8), "s8": (-128, 128, np.int8)}
    a, b = (rng.integers(*pick[t][:2], (rows, k)).astype(pick[t][2]) for t, rows in ((left, 16), (right, 8)))
    got = multiply(f"m16n8k{k}", f"s32.{left}.{right}.s32", held(a, 4), held(b, 4), "u32")
    np.testing.assert_array_equal(got, a.astype(int) @ b.astype(int).T)


@pytest.mark.parametrize(("k", "kind"), [(16, "bf16"), (16, "f16"), (8, "bf16"), (8, "tf32")])
def test_floats(rng, k, kind):
    dtype = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "tf32": np.float32}[kind]
    a, b = (rng.integers(-8, 8, (rows, k)).astype(dtype) for rows in (16, 8))       # sums that are exact
    each = 1 if kind == "tf32" else 2
    got = multiply(f"m16n8k{k}", f"f32.{kind}.{kind}.f32", held(a, each), held(b, each), "f32")
    np.testing.assert_array_equal(got, a.astype(float) @ b.astype(float).T)


def test_tf32_has_ten_bits(rng):
    a, b = np.full((16, 8), 1 + 2.0 ** -11, np.float32), np.eye(8, dtype=np.float32)
    np.testing.assert_array_equal(multiply("m16n8k8", "f32.tf32.tf32.f32", held(a, 1), held(b, 1), "f32"), 1)


@pytest.mark.parametrize("turned", [False, True])
def test_ldmatrix(rng, turned):
    """Lane 8 m + r gives row r of matrix m; lane 4 r + c receives numbers 2 c, 2 c + 1 of row or column r."""
    x = rng.integers(0, 1 << 16, (4, 8, 8), np.uint16)
    body = f"""mul.wide.u32 %d0, %t, 16;
add.s64 %d1, %a0, %d0;
ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%d1];
mov.u64 %d2, S;
add.s64 %d2, %d2, %d0;
st.shared.v4.b32 [%d2], {{%r0, %r1, %r2, %r3}};
bar.warp.sync -1;
cvt.u32.u64 %r9, %d2;
ldmatrix.sync.aligned.m8n8.x4{'.trans' if turned else ''}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r9];
add.s64 %d1, %a1, %d0;
st.global.v4.b32 [%d1], {{%r4, %r5, %r6, %r7}};
"""
    text = kernel(body, 2, outside=".shared .align 16 .b8 S[512];")
    got = execute(text, x, np.zeros((32, 8), np.uint16))[1].reshape(32, 4, 2)
    for lane in range(32):
        for m in range(4):
            for j in range(2):
                r, c = lane // 4, 2 * (lane % 4) + j
                assert got[lane, m, j] == (x[m, c, r] if turned else x[m, r, c])


WG = """mul.wide.u32 %d0, %t, 16;
add.s64 %d1, %a0, %d0;
ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%d1];
setp.lt.u32 %p1, %t, 16;
@!%p1 bra LOADED;
add.s64 %d1, %a1, %d0;
ld.global.v4.b32 {%r8, %r9, %r10, %r11}, [%d1];
mov.u64 %d2, S;
add.s64 %d2, %d2, %d0;
st.shared.v4.b32 [%d2], {%r8, %r9, %r10, %r11};
LOADED:
fence.proxy.async.shared::cta;
bar.sync 0;
mov.u64 %d3, S;
shr.u64 %d3, %d3, 4;
or.b64 %d3, %d3, 0x800080000;
mov.u32 %r4, 1;
mov.u32 %r5, 2;
mov.u32 %r6, 3;
mov.u32 %r7, 4;
setp.ne.u32 %p0, %t, 9999;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k32.s32.u8.s8 {%r4, %r5, %r6, %r7}, {%r0, %r1, %r2, %r3}, %d3, %p0;
wgmma.mma_async.sync.aligned.m64n8k32.s32.u8.s8 {%r4, %r5, %r6, %r7}, {%r0, %r1, %r2, %r3}, %d3, %p0;
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
add.s64 %d1, %a2, %d0;
st.global.v4.b32 [%d1], {%r4, %r5, %r6, %r7};
"""
WG_SHARED = ".shared .align 128 .b8 S[256];"


def wgmma(rng, body):
    """Whether 64 x 32 by 32 x 8, twice, plus 1..4 comes out of the body."""
    a, b = rng.integers(0, 256, (64, 32)).astype(np.uint8), rng.integers(-128, 128, (8, 32)).astype(np.int8)
    registers = np.concatenate([held(a[16 * w:16 * w + 16], 4).T for w in range(4)])          # (128, 4)
    core = b.reshape(8, 2, 16).transpose(1, 0, 2)          # 16 columns after another, 8 rows of 16 bytes each
    got = execute(kernel(body, 3, outside=WG_SHARED, target="90a"), np.ascontiguousarray(registers),
                  np.ascontiguousarray(core), np.zeros((128, 4), np.int32), threads=128)[2].reshape(4, 32, 4)
    want = 2 * (a.astype(int) @ b.astype(int).T)
    return all(np.array_equal(sums_of(got[w].T), want[16 * w:16 * w + 16] +
                              sums_of(np.repeat([[1], [2], [3], [4]], 32, 1))) for w in range(4))


def test_wgmma(rng):
    assert wgmma(rng, WG)


@pytest.mark.parametrize(("old", "new", "says"), [
    ("wgmma.wait_group.sync.aligned 0;", "", "wgmma is waited for"),
    ("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;", "wgmma is waited for"),
    ("wgmma.commit_group.sync.aligned;", "", "wgmma is waited for"),
    ("wgmma.fence.sync.aligned;", "", "wgmma.fence comes before"),
    ("bar.sync 0;", "", "read what another warp writes"),
    ("0x800080000", "0x800100000", "inside of its arrays"),
    ("wgmma.fence.sync.aligned;", "setp.lt.u32 %p2, %t, 8;\n@%p2 wgmma.fence.sync.aligned;",
     "all 32 threads of a warp execute"),
    ("0x800080000", "0x4000000800080000", "swizzled")])
def test_what_wgmma_asks_for(rng, old, new, says):
    with pytest.raises(PtxError, match=says):
        wgmma(rng, WG.replace(old, new))
