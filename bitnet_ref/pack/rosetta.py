"""The Rosetta stone: the trits of one matrix in every layout that public files and programs use.

Bytes do not say which layout they are in; decoding with the wrong one mostly gives valid trits, plausible
histograms and nonsense. So layouts have names here, and `pack` and `unpack` take one. docs/formats/rosetta.md
has a picture of each.
Port note: I2_S is three layouts. Type number, size and name are the same.
Read after: pack/blocks. Read next: layers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.pack.b3 import pack_b3, unpack_b3
from bitnet_ref.pack.blocks import BLOCKS, block_bytes, pack_blocks, unpack_blocks
from bitnet_ref.pack.fields import (
    HIGH_FIRST,
    LOW_FIRST,
    Order,
    check_multiple,
    check_shape,
    pack_fields,
    unpack_fields,
)
from bitnet_ref.pack.i2 import check_bytes, check_trits, pack_i2, unpack_i2

TAIL = 32                                                # bytes after I2_S data; a float32 scale leads them
I2S = ("128", "64", "4row")
Shape = tuple[int, int]


class Unpacked(NamedTuple):
    """w_q int8 (N, K), and the scale that the bytes hold: float32 () or (N, blocks of a row), or None."""

    w_q: np.ndarray
    scale: Any


class Layout(NamedTuple):
    """A way to store a matrix of trits. Its bytes are one run, whatever axes a file gives them."""

    source: str                          # who writes it
    bits: float                          # per weight, scales of blocks included
    codes: str                           # of -1, 0, +1
    sizes: str                           # which (N, K) it takes, or how it pads
    scales: str                          # what it stores of them
    n_bytes: Callable[[Shape], int]      # and raises CheckError for a shape that it does not take
    pack: Callable[[np.ndarray, Any], np.ndarray]
    unpack: Callable[[np.ndarray, Shape], Unpacked]


def pack(layout: str, w_q: np.ndarray, scale: Any = 1.0) -> np.ndarray:
    """w_q int8 (N, K), scale () or one for each block  ->  uint8 (bytes,).   `layout` of LAYOUTS.

    Raises CheckError for other than trits, a shape that the layout does not take, a scale it cannot hold.
    Source: docs/formats/rosetta.md.

    >>> pack("hf", np.array([[-1], [0], [1], [0]], np.int8)).tolist()
    [100]
    """
    found = lookup(LAYOUTS, layout, "layout")
    check_trits(w_q)
    found.n_bytes(w_q.shape)
    return np.asarray(found.pack(np.ascontiguousarray(w_q), scale))


def unpack(layout: str, data: np.ndarray, shape: Shape) -> Unpacked:
    """uint8 of any axes, (N, K)  ->  w_q int8 (N, K), scale.   The inverse of `pack`.

    Raises CheckError for another number of bytes, a shape that the layout does not take, a code that is no
    trit (it names the first), a scale that is negative or not finite. Nothing is allocated before.

    >>> unpack("hf", np.array([[100]], np.uint8), (4, 1)).w_q[:, 0].tolist()
    [-1, 0, 1, 0]
    """
    found = lookup(LAYOUTS, layout, "layout")
    shape = check_shape(shape)
    n_bytes = found.n_bytes(shape)
    check(data.dtype == np.uint8 and data.size == n_bytes,
          f"{layout} of shape {shape} must be {n_bytes} bytes", f"{data.dtype} {data.shape}",
          "give all of the tensor's bytes as uint8, and its true shape")
    return Unpacked(*found.unpack(np.ascontiguousarray(data).reshape(-1), shape))


def possible(data: np.ndarray, shape: Shape) -> tuple[str, ...]:
    """uint8 of any axes, (N, K)  ->  the names of all layouts that `unpack` would read these bytes in.

    Never a decision: of those with one length and one code, every one reads the others' bytes. Raises
    CheckError for what is no shape of a matrix.

    >>> possible(np.array([[0xFF]], np.uint8), (4, 1))
    ()
    """
    def read(layout: str) -> bool:
        try:
            unpack(layout, data, shape)
        except CheckError:
            return False
        return True

    check_shape(shape)
    return tuple(layout for layout in LAYOUTS if read(layout))


# ---- Hugging Face ----

def pack_hf(w_q: np.ndarray) -> np.ndarray:
    """w_q int8 (N, K)  ->  uint8 (ceil(N/4), K).   Bits 2i, 2i+1 of byte (r, k) are row i * ceil(N/4) + r.

    Rows that N lacks to a multiple of 4 have the code 0, a -1. Raises CheckError for other than trits.
    Source: `pack_weights` of transformers, integrations/bitnet.py.

    >>> pack_hf(np.array([[-1], [0], [1], [0]], np.int8)).tolist()
    [[100]]
    """
    check_trits(w_q)
    n_rows, n_columns = w_q.shape
    if n_rows % 4:
        w_q = np.concatenate([w_q, np.full((-n_rows % 4, n_columns), -1, np.int8)])
    return pack_fields(w_q, _slabs(n_rows, n_columns)).reshape(-1, n_columns)


def unpack_hf(packed: np.ndarray, n_rows: int) -> np.ndarray:
    """uint8 (ceil(N/4), K), N  ->  w_q int8 (N, K).   Raises CheckError for another shape, or a code 3.

    >>> unpack_hf(np.array([[100]], np.uint8), 4)[:, 0].tolist()
    [-1, 0, 1, 0]
    """
    check_bytes("packed", packed, 2)
    check(-(-n_rows // 4) == len(packed), f"{n_rows} rows must fill {-(-n_rows // 4)} packed ones",
          len(packed), "give the N of the unpacked matrix, or the whole packed one")
    n_columns = packed.shape[1]
    w_q = unpack_fields(packed.reshape(-1), (4 * len(packed), n_columns), _slabs(n_rows, n_columns))
    return w_q[:n_rows]


def _slabs(n_rows: int, n_columns: int) -> Order:
    """Four slabs of ceil(N/4) rows, laid over each other."""
    return Order((4, -(-n_rows // 4), n_columns), (0, 1, 2), LOW_FIRST)


# ---- microsoft/BitNet ----

def pack_i2s(w_q: np.ndarray, w_scale: Any, layout: str) -> np.ndarray:
    """w_q int8 (N, K), w_scale ()  ->  uint8 (N K / 4 + 32,): the data, then the float32 scale, then zeros.

    layout "128": in every 128 trits byte p holds p, p + 32, p + 64, p + 96; "64": the same with 16; "4row":
    byte k of four rows holds their column k. The first trit has the high bits.
    Raises CheckError for other than trits, a shape that the layout does not allow, a bad scale.
    Source: microsoft/BitNet, src/ggml-bitnet-mad.cpp and utils/convert-hf-to-gguf-bitnet.py.

    >>> pack_i2s(np.zeros((1, 128), np.int8), 0.5, "128")[30:36].tolist()       # codes 1, then 0.5 as float32
    [85, 85, 0, 0, 0, 63]
    """
    check_trits(w_q)
    tail = np.zeros(TAIL // 4, "<f4")
    tail[0] = _checked_scale(w_scale)
    return np.concatenate([pack_fields(w_q, _i2s(w_q.shape, layout)), tail.view(np.uint8)])


def unpack_i2s(data: np.ndarray, shape: Shape, layout: str) -> tuple[np.ndarray, np.float32]:
    """uint8 (N K / 4 + 32,), (N, K)  ->  w_q int8 (N, K), w_scale float32 ().   `layout` as in `pack_i2s`.

    Bytes of the tail after the scale are not read. Raises CheckError for another length, a shape that the
    layout does not allow, a code 3, a bad scale.

    >>> data = pack_i2s(np.ones((1, 128), np.int8), 0.5, "128")
    >>> w_q, w_scale = unpack_i2s(data, (1, 128), "128")
    >>> int(w_q.sum()), float(w_scale)
    (128, 0.5)
    """
    check_bytes("data", data, 1)
    shape = check_shape(shape)
    order = _i2s(shape, layout)
    n_bytes = math.prod(shape) // 4
    check(len(data) == n_bytes + TAIL, f"I2_S of shape {tuple(shape)} must have {n_bytes + TAIL} bytes",
          len(data), "give the tensor's bytes, data and tail, and its true shape")
    w_scale = _checked_scale(data[n_bytes:n_bytes + 4].view("<f4")[0])
    return unpack_fields(data[:n_bytes], shape, order), w_scale


def _i2s(shape: tuple[int, ...], layout: str) -> Order:
    lookup(I2S, layout, "layout")
    n_rows, n_columns = check_shape(shape)
    if layout == "4row":
        check_multiple(n_rows, 4, "rows", "I2_S in layout 4row")
        return Order((n_rows // 4, 4, n_columns), (1, 0, 2), HIGH_FIRST)
    n, block = n_rows * n_columns, int(layout)
    check_multiple(n, block, "trits", f"I2_S in layout {layout}")
    return Order((n // block, 4, block // 4), (1, 0, 2), HIGH_FIRST)


def _checked_scale(w_scale: Any) -> np.float32:
    scale = np.float32(w_scale)
    check(bool(np.isfinite(scale) and scale >= 0), "w_scale must be finite and not negative", scale,
          "check the layout and the shape: the scale stands behind N K / 4 bytes")
    return scale


def _gpu(shape: Shape) -> Order:
    """Tiles of 16 x 32 in quarters of 8 x 16; 16 columns of a row are four bytes, byte b has b, b + 4, ...

    Source: microsoft/BitNet, gpu/pack_weight.py.
    """
    n_rows, n_columns = shape
    check_multiple(n_rows, 16, "rows", "gpu")
    check_multiple(n_columns, 32, "columns", "gpu")
    return Order((n_rows // 16, 2, 8, n_columns // 32, 2, 4, 4), (5, 0, 3, 1, 4, 2, 6), LOW_FIRST, zero=2)


def _torchao(shape: Shape) -> Order:
    """Four neighbours of a row, two's complement. Source: torchao, prototype/quantized_training/bitnet.py."""
    check_multiple(shape[1], 4, "columns", "torchao")
    return Order((shape[0], shape[1] // 4, 4), (2, 0, 1), HIGH_FIRST, zero=0)


# ---- the table ----

def _no_scale(scale: Any) -> None:
    one = np.shape(scale) == () and scale == 1
    check(one, "this layout stores no scale, so scale must be 1", scale, "keep the scale beside the bytes")


def _plain(source: str, codes: str, sizes: str, order: Callable[[Shape], Order]) -> Layout:
    """Two bits a trit and nothing else."""
    def n_bytes(shape: Shape) -> int:
        order(check_shape(shape))
        return math.prod(shape) // 4

    def packed(w_q: np.ndarray, scale: Any) -> np.ndarray:
        _no_scale(scale)
        return pack_fields(w_q, order(w_q.shape))

    return Layout(source, 2.0, codes, sizes, "none", n_bytes, packed,
                  lambda data, shape: Unpacked(unpack_fields(data, shape, order(shape)), None))


def _rows(source: str, bits: float, codes: str, sizes: str, packed_shape: Callable[[Shape], Shape],
          to_bytes: Callable[[np.ndarray], np.ndarray],
          from_bytes: Callable[[np.ndarray, Shape], np.ndarray]) -> Layout:
    """A layout with padding, whose bytes have two axes: of `packed_shape`."""
    def packed(w_q: np.ndarray, scale: Any) -> np.ndarray:
        _no_scale(scale)
        return np.ascontiguousarray(to_bytes(w_q)).reshape(-1)

    def unpacked(data: np.ndarray, shape: Shape) -> Unpacked:
        return Unpacked(from_bytes(data.reshape(packed_shape(shape)), shape), None)

    return Layout(source, bits, codes, sizes, "none",
                  lambda shape: math.prod(packed_shape(check_shape(shape))), packed, unpacked)


def _i2s_layout(layout: str, source: str, sizes: str) -> Layout:
    def n_bytes(shape: Shape) -> int:
        _i2s(shape, layout)
        return math.prod(shape) // 4 + TAIL

    return Layout(source, 2.0, "0 1 2", sizes, "one float32 in a tail of 32 bytes", n_bytes,
                  lambda w_q, scale: pack_i2s(w_q, scale, layout),
                  lambda data, shape: Unpacked(*unpack_i2s(data, shape, layout)))


def _block_layout(name: str, source: str) -> Layout:
    block = BLOCKS[name]
    codes = "digits 0 1 2" if block.stages else "0 1 2"
    return Layout(source, 8 * block_bytes((1, block.size), block) / block.size, codes,
                  f"K a multiple of {block.size}", f"a float16 for each {block.size}",
                  lambda shape: block_bytes(shape, block), lambda w_q, scale: pack_blocks(w_q, scale, block),
                  lambda data, shape: Unpacked(*unpack_blocks(data, shape, block)))


def _keras_shape(shape: Shape) -> Shape:
    return -(-shape[1] // 5), shape[0]


LAYOUTS: dict[str, Layout] = {
    "i2": _rows("bitnet_ref", 2.0, "0 1 2", "a row is padded with zero trits to a multiple of 4",
                lambda s: (s[0], -(-s[1] // 4)), pack_i2, lambda data, s: unpack_i2(data, s[1])),
    "b3": _rows("bitnet_ref", 1.6, "digits 0 1 2", "a row is padded with zero trits to a multiple of 5",
                lambda s: (s[0], -(-s[1] // 5)), pack_b3, lambda data, s: unpack_b3(data, s[1])),
    "hf": _rows("transformers", 2.0, "0 1 2", "rows of -1 (code 0) fill N up to a multiple of 4",
                lambda s: (-(-s[0] // 4), s[1]), pack_hf, lambda data, s: unpack_hf(data, s[0])),
    "i2s_128": _i2s_layout("128", "microsoft/BitNet: its converter, x86", "N·K a multiple of 128"),
    "i2s_64": _i2s_layout("64", "microsoft/BitNet on ARM", "N·K a multiple of 64"),
    "i2s_4row": _i2s_layout("4row", "microsoft/BitNet on x86 without ACT_PARALLEL", "N a multiple of 4"),
    "gpu": _plain("microsoft/BitNet, gpu/", "1 2 3", "N a multiple of 16, K of 32", _gpu),
    "torchao": _plain("torchao", "3 0 1", "K a multiple of 4", _torchao),
    "tq1_0": _block_layout("tq1_0", "llama.cpp, type 34"),
    "tq2_0": _block_layout("tq2_0", "llama.cpp, type 35"),
    "q2_0": _block_layout("q2_0", "llama.cpp, type 42"),
    "pq2_0": _block_layout("pq2_0", "PrismML, type 142; 42 in older files"),
    "ptq1_0": _block_layout("ptq1_0", "PrismML, type 143"),
    "base3": _rows("BitNet-b1.58-Sharp", 1.6, "digits 0 1 2",
                   "all is padded with zero trits to a multiple of 5", lambda s: (1, -(-s[0] * s[1] // 5)),
                   lambda w_q: pack_b3(w_q.reshape(1, -1)),
                   lambda data, s: unpack_b3(data, s[0] * s[1]).reshape(s)),
    "keras": _rows("Keras", 1.6, "digits 0 1 2", "a row is padded with zero trits to a multiple of 5",
                   _keras_shape, lambda w_q: pack_b3(w_q).T, lambda data, s: unpack_b3(data.T, s[1])),
}
