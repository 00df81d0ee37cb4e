"""Other projects' layouts of ternary matrices: Hugging Face's, and the three that are all called I2_S.

All four store a trit as its value + 1 in two bits, four trits to a byte, and leave code 3 unused. They
differ in *which* four trits share a byte and in which of them has the low bits; no file says which it is.
docs/formats/rosetta.md has a picture of each.
Port note: decoding with the wrong layout gives valid trits, plausible histograms and nonsense.
Read after: pack/b3. Read next: layers.
"""

import math
from typing import Any

import numpy as np

from bitnet_ref.checks import check, lookup
from bitnet_ref.pack.i2 import check_bytes, check_trits

LOW_FIRST, HIGH_FIRST = (0, 2, 4, 6), (6, 4, 2, 0)       # the bit of the first, second, ... trit of a byte
TAIL = 32                                                # bytes after I2_S data; a float32 scale leads them
I2S = ("128", "64", "4row")


def pack_hf(w_q: np.ndarray) -> np.ndarray:
    """w_q int8 (N, K)  ->  uint8 (ceil(N/4), K).   Bits 2i, 2i+1 of byte (r, k) are row i * ceil(N/4) + r.

    Rows that N lacks to a multiple of 4 have the code 0. Raises CheckError for other than trits.
    Source: `pack_weights` of transformers, integrations/bitnet.py.
    """
    check_trits(w_q)
    n_rows, n_bytes = len(w_q), -(-len(w_q) // 4)
    packed = np.zeros((n_bytes, w_q.shape[1]), np.uint8)
    for i, shift in enumerate(LOW_FIRST):
        rows = w_q[i * n_bytes:min((i + 1) * n_bytes, n_rows)]
        packed[:len(rows)] |= _codes(rows) << np.uint8(shift)
    return packed


def unpack_hf(packed: np.ndarray, n_rows: int) -> np.ndarray:
    """uint8 (ceil(N/4), K), N  ->  w_q int8 (N, K).   Raises CheckError for another shape, or a code 3."""
    check_bytes("packed", packed, 2)
    check(-(-n_rows // 4) == len(packed), f"{n_rows} rows must fill {-(-n_rows // 4)} packed ones",
          len(packed), "give the N of the unpacked matrix, or the whole packed one")
    w_q = np.empty((4, *packed.shape), np.int8)
    return _unpack(packed, w_q, LOW_FIRST).reshape(-1, packed.shape[1])[:n_rows]


def pack_i2s(w_q: np.ndarray, w_scale: Any, layout: str) -> np.ndarray:
    """w_q int8 (N, K), w_scale ()  ->  uint8 (N K / 4 + 32,): the data, then the float32 scale, then zeros.

    layout "128": in every 128 trits byte p holds p, p + 32, p + 64, p + 96; "64": the same with 16; "4row":
    byte k of four rows holds their column k. The first trit has the high bits.
    Raises CheckError for other than trits, a shape that the layout does not allow, a bad scale.
    Source: microsoft/BitNet, src/ggml-bitnet-mad.cpp and utils/convert-hf-to-gguf-bitnet.py.
    """
    check_trits(w_q)
    groups = w_q.reshape(_groups(w_q.shape, layout))
    data = np.zeros((len(groups), groups.shape[2]), np.uint8)
    for i, shift in enumerate(HIGH_FIRST):
        data |= _codes(groups[:, i]) << np.uint8(shift)
    tail = np.zeros(TAIL // 4, "<f4")
    tail[0] = _checked_scale(w_scale)
    return np.concatenate([data.reshape(-1), tail.view(np.uint8)])


def unpack_i2s(data: np.ndarray, shape: tuple[int, int], layout: str) -> tuple[np.ndarray, np.float32]:
    """uint8 (N K / 4 + 32,), (N, K)  ->  w_q int8 (N, K), w_scale float32 ().   `layout` as in `pack_i2s`.

    Bytes of the tail after the scale are not read. Raises CheckError for another length, a shape that the
    layout does not allow, a code 3, a bad scale.
    """
    check_bytes("data", data, 1)
    groups = _groups(shape, layout)
    n_bytes = math.prod(shape) // 4
    check(len(data) == n_bytes + TAIL, f"I2_S of shape {tuple(shape)} must have {n_bytes + TAIL} bytes",
          len(data), "give the tensor's bytes, data and tail, and its true shape")
    w_scale = _checked_scale(data[n_bytes:n_bytes + 4].view("<f4")[0])
    w_q = np.empty(groups, np.int8)
    _unpack(data[:n_bytes].reshape(groups[0], groups[2]), w_q.swapaxes(0, 1), HIGH_FIRST)
    return w_q.reshape(shape), w_scale


def _unpack(packed: np.ndarray, w_q: np.ndarray, shifts: tuple[int, ...]) -> np.ndarray:
    """Fill w_q int8 (4, *packed.shape): field i of every byte is w_q[i]. No wider type on the way."""
    bad = np.count_nonzero(packed & packed >> 1 & 0b01010101)                   # both bits of a field set
    check(bad == 0, "every 2-bit code must be 0, 1 or 2", f"a 3 in {bad:,} of {packed.size:,} bytes",
          "check that the bytes are this tensor's, and that its codes are trit + 1")
    for i, shift in enumerate(shifts):
        codes = w_q[i].view(np.uint8)
        np.right_shift(packed, np.uint8(shift), out=codes)
        np.bitwise_and(codes, np.uint8(3), out=codes)
        np.subtract(w_q[i], np.int8(1), out=w_q[i])
    return w_q


def _codes(w_q: np.ndarray) -> np.ndarray:
    return (w_q + np.int8(1)).view(np.uint8)


def _groups(shape: tuple[int, ...], layout: str) -> tuple[int, int, int]:
    """(groups, 4, bytes of a group): reshaped so, the second axis is the trits that share a byte."""
    lookup(I2S, layout, "layout")
    check(len(shape) == 2 and min(shape) > 0, "a ternary matrix must have a shape (N, K)", tuple(shape),
          "give rows and columns")
    n = math.prod(shape)
    if layout == "4row":
        check(shape[0] % 4 == 0, "the rows of I2_S in layout 4row must be a multiple of 4", shape[0],
              "use another layout, or pad with rows of zeros")
        return shape[0] // 4, 4, shape[1]
    block = int(layout)
    check(n % block == 0, f"the trits of I2_S in layout {layout} must be a multiple of {block}",
          f"{n} of shape {tuple(shape)}", "use another layout, or pad with rows of zeros")
    return n // block, 4, block // 4


def _checked_scale(w_scale: Any) -> np.float32:
    scale = np.float32(w_scale)
    check(bool(np.isfinite(scale) and scale >= 0), "w_scale must be finite and not negative", scale,
          "check the layout and the shape: the scale stands behind N K / 4 bytes")
    return scale
