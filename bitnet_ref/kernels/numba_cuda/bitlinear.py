"""Ternary products on the device: packed trits times int8 codes, the integer sum exact.

Activations come as codes x_q int8 with rows `padded(K)` numbers apart (K rounded up to 128; what stands
between K and there is multiplied by 0 and may be anything), their scales and their sums.
Read after: kernels/numba_cuda/gemm_hopper. Read next: kernels/numba_cuda/precision.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import check, lookup
from bitnet_ref.kernels.numba_cuda.gemm import SIDE, gemm_i2
from bitnet_ref.kernels.numba_cuda.gemm_hopper import SHARED, gemm_hopper, in_core_order
from bitnet_ref.kernels.numba_cuda.gemv import gemv_b3, gemv_i2
from bitnet_ref.kernels.numba_cuda.launch import Kernel
from bitnet_ref.kernels.numba_cuda.memory import Array, Device
from bitnet_ref.pack.tiles import COLUMNS, ROWS, pack_tiles

APART = 128                                                # rows of codes lie at multiples of so many apart
FEW = 64                                                   # rows up to which eight are taken at a time
MOST_K = (2**31 - 1) // (128 * 128)      # a code in place is at most 128, an activation too: no sum overflows


class Packed(NamedTuple):
    """Ternary matrices on the device, stacked: rows of one may have another scale than rows of the next."""

    words: Array                 # int32 (strips, tiles, 32, 4), as pack/tiles.py has them
    w_scale: Array               # float32, one for each of N rows
    N: int
    K: int
    kind: str                    # "i2" or "b3"


def padded(K: int) -> int:
    """How far apart rows of K codes lie: a multiple of 128. Codes are arrays (M, padded(K))."""
    return -(-K // APART) * APART


def pack(device: Device, matrices: Sequence[tuple[np.ndarray, Any]], kind: str = "i2") -> Packed:
    """Matrices (w_q int8 (n, K), w_scale () or (n,)), stacked, packed in tiles  ->  Packed, N the sum of n.

    Raises CheckError for another kind, for other than trits, for unequal K, and for a K whose sums overflow.
    """
    check_columns([w_q.shape for w_q, _ in matrices])
    stacked = np.concatenate([w_q for w_q, _ in matrices]) if len(matrices) > 1 else matrices[0][0]
    scales = np.concatenate([np.broadcast_to(np.asarray(scale, np.float32), len(w_q))
                             for w_q, scale in matrices])
    return send(device, pack_tiles(stacked, kind), scales, stacked.shape[0], stacked.shape[1], kind)


def send(device: Device, words: np.ndarray, w_scale: np.ndarray, N: int, K: int,
         kind: str = "i2") -> Packed:
    """Tiles of pack/tiles.py of a matrix (N, K), and w_scale f32 (N,)  ->  Packed."""
    return Packed(device.upload(words), device.upload(w_scale), N, K, kind)


def empty(device: Device, N: int, K: int, kind: str = "i2") -> Packed:
    """Packed trits that are still to be written, all codes 0.   Raises CheckError as pack does."""
    columns = lookup(COLUMNS, kind, "kind")
    check_columns([(N, K)])
    words = device.zeros((-(-N // ROWS), -(-K // columns), 32, 4), np.int32)
    return Packed(words, device.zeros((N,), np.float32), N, K, kind)


def check_columns(shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise CheckError unless matrices (n, K) have one K, and no sum of K products can overflow."""
    widths = sorted({K for _, K in shapes})
    check(len(widths) == 1, "matrices that are stacked must have one K", widths, "pack them one by one")
    check(widths[0] <= MOST_K, f"K must be at most {MOST_K}, so that no sum of int32 overflows", widths[0],
          "use --backend numba")


def product(device: Device, x_q: Array, x_scale: Array, x_sum: Array, w: Packed, y: Array, M: int,
            add: Array | None = None, scratch: Array | None = None) -> None:
    """y f32 (M, N) = x_q w_q' (x_scale w_scale) [+ add (M, N), which may be y itself].

    x_q int8 (M, padded(K)), x_scale f32 (M,), x_sum int32 (M,): the sum of a row's K codes. The integer sums
    are exact, the floats are the reference's, acc * (x_scale * w_scale), to the last digit; those of a row do
    not depend on the others. `scratch`: int8, at least scratch_size(M, K); without it wgmma is not used.
    """
    ld, tiles = padded(w.K), w.words.shape[1]
    assert x_q.size >= M * ld, "rows of codes lie padded(K) apart"
    assert y.size >= M * w.N
    rest = (x_scale, x_sum, w.w_scale, y if add is None else add, int(add is not None), y, M, w.N, tiles, ld)
    k = chosen(device.capability, w.kind, M, scratch is not None)
    blocks = -(-w.N // SIDE), -(-M // SIDE)
    if k is gemm_hopper:
        assert scratch is not None
        assert scratch.size >= scratch_size(M, w.K)
        device.launch(in_core_order, (blocks[1], tiles), x_q, scratch, M, ld)
        device.launch(k, blocks, w.words, scratch, *rest, shared=SHARED)
    elif k is gemm_i2:
        device.launch(k, blocks, w.words, x_q, *rest)
    else:
        device.launch(k, (-(-M // 8), -(-w.N // ROWS)), w.words, x_q, *rest)


def scratch_size(M: int, K: int) -> int:
    """Bytes of scratch that products of M rows of K codes can use."""
    return -(-M // SIDE) * SIDE * padded(K)


def chosen(capability: tuple[int, int], kind: str, M: int, scratch: bool) -> Kernel:
    """The kernel for M rows. A rule of thumb from counting bytes and multiplications, not yet from clocks:

    kind  M         card        kernel       because
    b3    any       any         gemv_b3      it is a form for decoding; eight rows at a time
    i2    <= FEW    any         gemv_i2      blocks of 16 outputs keep all processors busy; weights are in L2
    i2    > FEW     9.0 alone   gemm_hopper  wgmma; needs scratch
    i2    > FEW     others      gemm_i2      mma.sync
    """
    if kind == "b3":
        return gemv_b3
    if M <= FEW:
        return gemv_i2
    return gemm_hopper if scratch and capability == (9, 0) else gemm_i2
