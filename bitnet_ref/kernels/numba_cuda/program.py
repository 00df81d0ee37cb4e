"""A model's weights on the device, in the order in which a token meets them: made once for a set of weights.

What one input is multiplied by is stacked into one matrix (q, k, v; gate, up), unless each has a norm of its
own. Ternary matrices are packed, full ones stay in the precision that they are stored in. A model that the
card cannot hold is refused before anything is sent to it.
Read after: kernels/numba_cuda/sampling. Read next: kernels/numba_cuda/decode_step.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.kernels.numba_cuda.bitlinear import Packed, check_columns, pack, padded, send
from bitnet_ref.kernels.numba_cuda.linear import in_sixteens
from bitnet_ref.kernels.numba_cuda.memory import GB, Array, Device
from bitnet_ref.kernels.numba_cuda.precision import NAMES, bits
from bitnet_ref.kernels.numba_cuda.rmsnorm import BARE, FREE, GAINED
from bitnet_ref.pack.tiles import ROWS, pack_tiles, unpack_tiles


class Held:
    """A ternary matrix on the host: as trits, or (`keep` False) packed, until the device has it."""

    def __init__(self, w_q: Any, w_scale: Any, keep: bool) -> None:
        self.w_scale, self.shape = w_scale, w_q.shape
        self.w_q: Any = w_q if keep else None
        self.words: np.ndarray | None = None if keep else pack_tiles(w_q)

    def trits(self) -> np.ndarray:
        """int8 (N, K)."""
        return self.w_q if self.words is None else unpack_tiles(self.words, *self.shape)

    def sent(self) -> None:
        """The device has it: nobody else need what was packed."""
        self.words = None


class ByteRows(NamedTuple):
    """A full matrix as int8 rows w_q (N, K), each with a scale: w_scale (N, 1)."""

    w_q: np.ndarray
    w_scale: np.ndarray


class Table(NamedTuple):
    """A full matrix (N, K padded) on the device. `kept`: f32, f16, bf16, or i8 with a scale for each row."""

    numbers: Array
    kept: str
    scales: Array | None


class Step(NamedTuple):
    """An input's norm and quantisation, and what it is then multiplied by, N outputs of K inputs."""

    mode: int                    # of rmsnorm.py
    gain: Array | None
    matrix: Packed | Table
    N: int
    K: int


class Layer(NamedTuple):
    """The steps of a block, place by place. Several at a place: each has a norm of its own."""

    qkv: tuple[Step, ...]
    out: tuple[Step, ...]
    gate_up: tuple[Step, ...]
    down: tuple[Step, ...]


class Program(NamedTuple):
    """All of a model that lies on the device. `kept`: buffers and graphs of calls by their kind."""

    device: Device
    embedding: Table
    layers: tuple[Layer, ...]
    head: Step
    none: Array                  # a float, where a kernel takes an array that it does not read
    n_bytes: int
    kept: dict[Any, Any]


def prepare(w_q: np.ndarray, w_scale: Any, keep: bool = True) -> Held:
    """w_q int8 (N, K), w_scale ()  ->  the matrix as it waits for the device.

    `keep` False: packed now, a quarter of the bytes, and forgotten as soon as the device has it.
    Raises CheckError for other than trits.
    """
    return Held(w_q, w_scale, keep)


def prepare_rows(w_q: np.ndarray, w_scale: np.ndarray) -> ByteRows:
    """w_q int8 (N, K), w_scale (N, 1)  ->  the same: bytes stay bytes."""
    return ByteRows(w_q, w_scale)


def prepare_table(w: np.ndarray) -> np.ndarray:
    """A table (N, K) of 16-bit floats stays one."""
    return w


def size(matrix: Any) -> int:
    """Bytes that a matrix will take on the device."""
    if isinstance(matrix, Held):
        N, K = matrix.shape
        return -(-N // 16) * 16 * padded(K) // 4 + 4 * N
    if isinstance(matrix, ByteRows):
        return matrix.w_q.nbytes + matrix.w_scale.nbytes
    return matrix.nbytes


def cache_size(cfg: Any, n_texts: int, room: int, half: bool) -> int:
    """Bytes of the keys and values of so many texts at so many positions."""
    return 2 * cfg.n_layers * n_texts * cfg.n_kv_heads * room * cfg.head_dim * (2 if half else 4)


def check_memory(device: Device, weights: int, cache: int, what: str) -> None:
    """Raise CheckError, with the numbers, unless the card has that many bytes free."""
    free, total = device.free()
    check(weights + cache <= free, "the card must have memory for the model: "
          f"{weights / GB:.3g} GB of weights and {cache / GB:.3g} GB of cache for {what}",
          f"{free / GB:.3g} GB free of {total / GB:.3g} GB ({device.name})",
          "use a smaller model, fewer texts, a shorter context or --half-cache, or free the card's memory")


def build(device: Device, plan: Any, w: Any, n_texts: int, room: int) -> Program:
    """Send the weights `w` of `plan` to the device. Raises CheckError where they, and the cache of so many
    texts with so many positions, do not fit.
    """
    cfg = plan.cfg
    tied, half = w["head"] is w["embedding"], w.half_cache           # type: ignore[attr-defined]
    w = {name: _here(device, m) for name, m in w.items()}
    n_bytes = sum(size(m) for name, m in w.items() if not (name == "head" and tied))
    check_memory(device, n_bytes, cache_size(cfg, n_texts, room, half),
                 f"{n_texts} texts of {room} positions")
    embedding = _table(device, [w["embedding"]])
    layers = tuple(Layer(*(tuple(_step(device, entry, w, f"layers.{l}.") for entry in place)
                           for place in plan.layout)) for l in range(cfg.n_layers))
    head = _step(device, plan.head_entry[0], w, "", embedding if tied else None)
    for matrix in w.values():
        if isinstance(matrix, Held):
            matrix.sent()                                  # all of them, or the next attempt would lack some
    return Program(device, embedding, layers, head, device.zeros((1,), np.float32), n_bytes, {})


def _here(device: Device, matrix: Any) -> Any:
    """A matrix of a model in training, which lies on the device, on the host; others as they are."""
    if isinstance(matrix, Held) and isinstance(matrix.w_q, Array):
        return Held(device.read(matrix.w_q), device.read(matrix.w_scale), True)
    return device.read(matrix) if isinstance(matrix, Array) else matrix


def _step(device: Device, entry: Any, w: dict[str, Any], prefix: str, made: Table | None = None) -> Step:
    gain = None if entry.norm in (None, "free") else device.upload(w[prefix + entry.norm].astype(np.float32))
    mode = BARE if entry.norm is None else FREE if gain is None else GAINED
    matrices = [w[prefix + name] for name in entry.weights]
    (N, K) = sum(_shape(m)[0] for m in matrices), _shape(matrices[0])[1]
    if made is not None:
        return Step(mode, gain, made, N, K)
    if not isinstance(matrices[0], Held):
        return Step(mode, gain, _table(device, matrices), N, K)
    return Step(mode, gain, _packed(device, matrices, (N, K)), N, K)


def _packed(device: Device, matrices: list[Held], shape: tuple[int, int]) -> Packed:
    """Ternary matrices, stacked: what is packed already as it is, where whole strips of rows allow it."""
    words = [m.words for m in matrices if m.words is not None and m.shape[0] % ROWS == 0]
    if len(words) < len(matrices):
        return pack(device, [(m.trits(), m.w_scale) for m in matrices])
    check_columns([m.shape for m in matrices])
    scales = [np.full(m.shape[0], m.w_scale, np.float32) for m in matrices]
    return send(device, np.concatenate(words), np.concatenate(scales), *shape)


def _shape(matrix: Any) -> tuple[int, int]:
    return matrix.w_q.shape if isinstance(matrix, ByteRows) else matrix.shape


def _table(device: Device, matrices: list[Any]) -> Table:
    """Full matrices, stacked."""
    first = matrices[0]
    if isinstance(first, ByteRows):
        scales = first.w_scale.reshape(-1).astype(np.float32)
        return Table(device.upload(in_sixteens(first.w_q)), "i8", device.upload(scales))
    whole = np.concatenate(matrices) if len(matrices) > 1 else first
    return Table(device.upload(in_sixteens(bits(whole))), NAMES[whole.dtype.name], None)
