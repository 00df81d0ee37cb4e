"""RMSNorm, alone or with its quantisation in one launch: a block of threads to a row.

absmax(x g rstd) = rstd absmax(x g): one pass over the row gives both. The sum of the codes goes along, which
products with unsigned codes need. A row that holds NaN or infinity gets x_scale NaN and codes 0, as in the
reference: the bits of |x| are compared as integers, among which NaN is the largest and cannot get lost.
Read after: kernels/numba_cuda/precision. Read next: kernels/numba_cuda/embedding.
"""

import math
from typing import Any

from numba import cuda, float32, int8, int32

from bitnet_ref.kernels.numba_cuda.device import round_int, warp_max, warp_sum, warp_sum_int
from bitnet_ref.kernels.numba_cuda.launch import Kernel, kernel
from bitnet_ref.kernels.numba_cuda.precision import bits_of, float_of

THREADS = 256
FREE, GAINED, BARE = 0, 1, 2                               # a norm without gain, with one; no norm
LARGEST = 3.4028234663852886e38                            # of float32


@cuda.jit(device=True, inline="always")
def row_sums(squares: Any, top: Any, sums: Any, tops: Any) -> Any:
    """The sum of `squares` and the largest int32 `top` of all threads of the block, in every thread."""
    tid = int32(cuda.threadIdx.x)
    squares, top = warp_sum(squares), warp_max(top)
    if tid & int32(31) == 0:
        sums[tid >> int32(5)] = squares
        tops[tid >> int32(5)] = top
    cuda.syncthreads()
    squares, top = float32(0), int32(0)
    for i in range(THREADS // 32):
        squares += sums[i]
        top = max(top, tops[i])
    return squares, top


@cuda.jit(device=True, inline="always")
def row_rstd(squares: Any, eps: Any, mode: Any, K: Any) -> Any:
    """1 / sqrt(mean of squares + eps); 1 where there is no norm."""
    return float32(1) if mode == BARE else float32(1) / math.sqrt(squares / float32(K) + eps)


@cuda.jit(device=True, inline="always")
def plain(a: Any, b: Any, at: Any) -> Any:
    """The number of the row at that place: what is normalised, when nothing is computed on the way."""
    return a[at]


def quantising(name: str, value: Any) -> Kernel:
    """The kernel that normalises and quantises `value(a, b, place)`, number by number of a row."""
    @kernel("f32* a, f32* b, i32 stride, f32* g, i32 mode, f32 eps, i8* x_q, f32* x_scale, i32* x_sum, "
            "f32* rstd_out, i32 K, i32 apart", THREADS)
    def quantise(a: Any, b: Any, stride: Any, g: Any, mode: Any, eps: Any, x_q: Any, x_scale: Any, x_sum: Any,
                 rstd_out: Any, K: Any, apart: Any) -> None:
        sums = cuda.shared.array(32, float32)
        tops = cuda.shared.array(32, int32)
        codes = cuda.shared.array(32, int32)
        tid = int32(cuda.threadIdx.x)
        row, out = cuda.blockIdx.x * stride, cuda.blockIdx.x * apart
        squares, top = float32(0), int32(0)
        for k in range(tid, K, THREADS):
            v = value(a, b, row + k)
            squares += v * v
            top = max(top, bits_of(abs(v * g[k] if mode == GAINED else v)))
        squares, top = row_sums(squares, top, sums, tops)
        rstd = row_rstd(squares, eps, mode, K)
        absmax = float_of(top) * rstd
        if absmax < float32(1e-5):                         # not max(): NaN must stay NaN
            absmax = float32(1e-5)
        finite = absmax <= float32(LARGEST)
        inv_scale = float32(127) / absmax
        total = int32(0)
        for k in range(tid, K, THREADS):
            n = value(a, b, row + k) * rstd
            if mode == GAINED:
                n *= g[k]
            code = min(max(round_int(n * inv_scale), int32(-128)), int32(127)) if finite else int32(0)
            x_q[out + k] = int8(code)
            total = int32(total + code)
        total = warp_sum_int(total)
        if tid & int32(31) == 0:
            codes[tid >> int32(5)] = total
        cuda.syncthreads()
        if tid == 0:
            total = int32(0)
            for i in range(THREADS // 32):
                total = int32(total + codes[i])
            x_scale[cuda.blockIdx.x] = absmax / float32(127) if finite else float32(math.nan)
            x_sum[cuda.blockIdx.x] = total
            rstd_out[cuda.blockIdx.x] = rstd
    return quantise._replace(name=name)


# a, b (M, K) in rows `stride` apart, g (K,)  ->  x_q int8 (M, K) in rows `apart`, x_scale, x_sum, rstd (M,).
# Grid (M,). What stands behind a row's K codes is not written.
rmsnorm_int8 = quantising("rmsnorm_int8", plain)


@kernel("f32* x, f32* g, i32 mode, f32 eps, f32* y, f32* rstd_out, i32 K, i32 apart", THREADS)
def rmsnorm(x: Any, g: Any, mode: Any, eps: Any, y: Any, rstd_out: Any, K: Any, apart: Any) -> None:
    """x (M, K), g (K,)  ->  y (M, K) in rows `apart`, zeros behind, rstd (M,). Mode BARE copies."""
    sums = cuda.shared.array(32, float32)
    tops = cuda.shared.array(32, int32)
    tid = int32(cuda.threadIdx.x)
    row = cuda.blockIdx.x * K
    squares = float32(0)
    for k in range(tid, K, THREADS):
        squares += x[row + k] * x[row + k]
    squares, _ = row_sums(squares, int32(0), sums, tops)
    rstd = row_rstd(squares, eps, mode, K)
    for k in range(tid, K, THREADS):
        n = x[row + k] * rstd
        y[cuda.blockIdx.x * apart + k] = n * g[k] if mode == GAINED else n
    for k in range(K + tid, apart, THREADS):
        y[cuda.blockIdx.x * apart + k] = float32(0)
    if tid == 0:
        rstd_out[cuda.blockIdx.x] = rstd
