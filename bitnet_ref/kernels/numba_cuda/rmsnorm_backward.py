"""The backward of RMSNorm: a block of threads to a row; the gain's gradient, a lane to a column.

No sum depends on which block ends first: the gradient of a gain is summed by rows in a fixed order.
Read after: kernels/numba_cuda/linear_backward. Read next: kernels/numba_cuda/rope_backward.
"""

from typing import Any

from numba import cuda, float32, int32, int64

from bitnet_ref.kernels.numba_cuda.device import THREADS, block_sum
from bitnet_ref.kernels.numba_cuda.launch import kernel
from bitnet_ref.kernels.numba_cuda.memory import Array, Device

ROWS, COLUMNS = 8, 32                                      # of a block that sums the gradient of a gain


@kernel("f32* dy, f32* x, f32* g, i32 gained, f32* rstd, f32* dx, i32 onto, i32 K", THREADS)
def rmsnorm_dx(dy: Any, x: Any, g: Any, gained: Any, rstd: Any, dx: Any, onto: Any, K: Any) -> None:
    """dy, x (M, K), g (K,), rstd (M,)  ->  dx (M, K), or added to it. dx may be dy. Grid (M,)."""
    row = int64(cuda.blockIdx.x) * K
    r = rstd[cuda.blockIdx.x]
    dot = float32(0)
    for k in range(cuda.threadIdx.x, K, THREADS):
        d = dy[row + k]
        dot += (d * g[k] if gained else d) * (x[row + k] * r)
    mean = block_sum(dot) / float32(K)
    for k in range(cuda.threadIdx.x, K, THREADS):
        d = dy[row + k]
        d = ((d * g[k] if gained else d) - x[row + k] * r * mean) * r                       # (RN.4)
        dx[row + k] = dx[row + k] + d if onto else d


@kernel("f32* dy, f32* x, f32* rstd, f32* dg, i32 M, i32 K", ROWS * COLUMNS)
def rmsnorm_dg(dy: Any, x: Any, rstd: Any, dg: Any, M: Any, K: Any) -> None:
    """dg (K,) += the sum over the rows of dy n: every eighth row in order, then the eight sums.

    Grid (K / 32,).
    """
    sums = cuda.shared.array((ROWS, COLUMNS), float32)
    tid = int32(cuda.threadIdx.x)
    lane, group = tid & int32(31), tid >> int32(5)
    k = int64(cuda.blockIdx.x) * COLUMNS + lane
    total = float32(0)
    if k < K:
        for m in range(int64(group), M, ROWS):
            total += dy[m * K + k] * (x[m * K + k] * rstd[m])
    sums[group, lane] = total
    cuda.syncthreads()
    if group == 0 and k < K:
        total = float32(0)
        for i in range(ROWS):
            total += sums[i, lane]
        dg[k] += total                                                                      # (RN.3)


def norm_backward(device: Device, dy: Array, x: Array, g: Array | None, rstd: Array, dx: Array,
                  dg: Array | None, onto: bool, M: int, K: int) -> None:
    """dx (M, K) = (or +=) dy back through the norm of x; accumulates into dg. Both g and dg None: no gain."""
    if dg is not None:                                     # before dx, which may be dy
        device.launch(rmsnorm_dg, (-(-K // COLUMNS),), dy, x, rstd, dg, M, K)
    device.launch(rmsnorm_dx, (M,), dy, x, g or dy, int(g is not None), rstd, dx, int(onto), K)
