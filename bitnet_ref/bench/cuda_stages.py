"""What `bench cuda` does on a card, in stages that fail alone: first what is right, then what is fast.

A stage is a generator of rows, dicts that go to the disk as they come; it may be ended between any two. Every
product is compared with NumPy at the size at which it is timed, on a sample of its outputs.
Read after: bench/torch_products. Read next: bench/cuda.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bitnet_ref.bench import card, torch_products
from bitnet_ref.bench.examples import RUNGS, SHIPPED, kernels, launch_of, run, wrong
from bitnet_ref.bench.examples.products import codes, sums, trits
from bitnet_ref.checks import CheckError

if TYPE_CHECKING:
    from bitnet_ref.kernels.numba_cuda.memory import Device

Row = dict[str, Any]
CHECKED = 256                # outputs of a product that are compared
TOKENS, CONTEXT = 64, 64     # of a turn of decode, and of the prompt before it


class Size(NamedTuple):
    """How much is asked: of a card, or of the interpreter, where only the way through matters."""

    few: tuple[tuple[int, int], ...]                       # (N, K), the most important first
    many: tuple[tuple[int, int], ...]
    rows: int                                              # of `many`
    norm: tuple[int, int]                                  # (M, K)
    ladder: tuple[tuple[int, int, int], ...]               # (N, K, M)
    copied: int                                            # bytes
    rounds: int
    model: str
    tokens: int


CARD = Size(((8192, 28672), (13824, 2560), (2560, 2560), (3840, 2560), (2560, 6912), (8192, 8192)),
            ((8192, 8192), (8192, 28672), (2560, 6912)), 4096, (4096, 2560),
            ((8192, 28672, 1), (8192, 8192, 1024)), 1 << 30, card.ROUNDS, "2b4t", TOKENS)
QUICK = Size(((48, 256),), ((128, 256),), 128, (3, 256), ((32, 640, 1),), 1 << 12, 1, "quick", 2)


def right(device: "Device", size: Size, done: frozenset[str] = frozenset()) -> Iterator[Row]:
    """Every kernel, shipped and of the ladder, on its example against NumPy.

    `done`: those that had their turn. A row says that a kernel begins before it does: one that kills the
    process is known by that.
    """
    for place in (SHIPPED, RUNGS):
        for name, k in kernels(place).items():
            if name in done:
                continue
            yield {"kernel": name, "said": "began, and did not end"}
            try:
                launch = launch_of(name)
                said = wrong(launch, run(device, k, launch))
            except CheckError as e:
                said = str(e)
            yield {"kernel": name, "said": said}


def copies(device: "Device", size: Size) -> Iterator[Row]:
    """What copying memory reaches."""
    yield {"what": "copy", "rate": card.copy_rate(device, size.copied, size.rounds)}


def few_rows(device: "Device", size: Size) -> Iterator[Row]:
    """One row and eight, in both packings, beside torch's bf16: what decoding is made of."""
    for n, k in size.few:
        for m in (1, 8):
            yield from products(device, size, n, k, m, ("i2", "b3"))


def many_rows(device: "Device", size: Size) -> Iterator[Row]:
    """Thousands of rows, beside torch's bf16 and its int8: what prefill and training are made of."""
    for n, k in size.many:
        yield from products(device, size, n, k, size.rows, ("i2",))


def products(device: "Device", size: Size, n: int, k: int, m: int, kinds: tuple[str, ...]) -> Iterator[Row]:
    """y = x_q w_q' by `bitlinear.product`, over copies of the weights; then torch, where it is."""
    rng = np.random.default_rng(0)
    w_q, x_q = trits(rng, n, k), codes(rng, m, k)
    some = np.sort(rng.permutation(n)[:CHECKED])
    exact = sums(w_q[some], x_q).astype(np.float32)
    shape = {"N": n, "K": k, "M": m}
    for kind in kinds:
        starts, y, n_bytes = _starts(device, w_q, x_q, kind)
        starts[0]()
        far = np.count_nonzero(device.read(y)[:, some] != exact)
        if far:
            yield {"what": "product", "kind": kind, **shape, "said": f"{far} of {exact.size} sums are wrong"}
            continue
        yield {"what": "product", "kind": kind, **shape, "bytes": n_bytes,
               "seconds": card.seconds(device, starts, size.rounds)}
    on_card = not card.is_interpreter(device)
    for kind, seconds in torch_products.seconds(n, k, m, on_card, size.rounds).items():
        yield {"what": "torch", "kind": kind, **shape, "seconds": seconds}


def _starts(device: "Device", w_q: np.ndarray, x_q: np.ndarray,
            kind: str) -> tuple[list[Callable[[], None]], Any, int]:
    """(functions that start the product, each with the next copy of the weights; y; bytes of the weights)."""
    from bitnet_ref.kernels.numba_cuda.bitlinear import pack, padded, product, scratch_size
    (n, k), m = w_q.shape, len(x_q)
    w = pack(device, [(w_q, np.float32(1))], kind)
    x = np.zeros((m, padded(k)), np.int8)
    x[:, :k] = x_q
    placed, scale, total = (device.upload(a) for a in (
        x, np.ones(m, np.float32), x_q.sum(axis=1, dtype=np.int32)))
    y, scratch = device.empty((m, n), np.float32), device.empty((scratch_size(m, k),), np.int8)

    def start(words: Any) -> None:
        product(device, placed, scale, total, w._replace(words=words), y, m, scratch=scratch)

    return [partial(start, words) for words in card.rotated(device, w.words)], y, w.words.nbytes


def norm(device: "Device", size: Size) -> Iterator[Row]:
    """RMSNorm and quantisation: bytes that must be read and written, over the time."""
    m, k = size.norm
    launch = launch_of("rmsnorm_int8", M=m, K=k)
    kernel = kernels()["rmsnorm_int8"]
    said = wrong(launch, run(device, kernel, launch))
    if said:
        yield {"what": "norm", "M": m, "K": k, "said": said}
        return
    took = card.seconds(device, card.ring(device, kernel, launch, "a"), size.rounds)
    yield {"what": "norm", "M": m, "K": k, "bytes": 5 * m * k, "seconds": took}


def decode(device: "Device", size: Size) -> Iterator[Row]:
    """Tokens per second of a model of 2B4T's shape, random weights, one text, as `generate` runs it."""
    from bitnet_ref import kernels as backends
    from bitnet_ref.bench import random_model
    from bitnet_ref.config import PRESETS
    from bitnet_ref.model.transformer import Transformer
    cfg = random_model.QUICK if size.model == "quick" else PRESETS[size.model].model
    ops: Any = backends.load("cuda")
    model, token = Transformer(cfg, random_model.random_weights(cfg), ops), np.ones(1, np.int64)
    _, after_prompt = model.prefill(np.ones((1, CONTEXT if size.model != "quick" else 5), np.int64))
    took = []
    for _ in range(size.rounds + 1):                       # the first is not counted
        began, state = time.perf_counter(), after_prompt
        for _ in range(size.tokens):
            _, state = model.decode_step(token, state)
        took.append((time.perf_counter() - began) / size.tokens)
    yield {"what": "decode", "model": size.model, "seconds": statistics.median(took[1:])}


def ladder(device: "Device", size: Size) -> Iterator[Row]:
    """The rungs, each verified, then timed (or counted, by the interpreter)."""
    from bitnet_ref.bench.ladders import bitlinear_cuda
    for n, k, m in size.ladder:
        yield {"what": "ladder", "table": bitlinear_cuda.ladder(device, n, k, m)}


STAGES: dict[str, tuple[Callable[..., Iterator[Row]], float]] = {        # and the seconds that it may take
    "right": (right, 150), "copies": (copies, 20), "few rows": (few_rows, 120), "decode": (decode, 90),
    "many rows": (many_rows, 90), "norm": (norm, 20), "ladder": (ladder, 90)}
