"""The same products in torch, as a peer on the same card: bf16 through cuBLAS, and int8.

Weights rotate and launches are replayed as a graph, exactly as ours are (bench/card.py). Where torch is not
installed there is nothing to compare with, and nothing is said.
Read after: bench/ptx. Read next: bench/cuda_stages.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bitnet_ref.bench import card

AT_MOST = 16                 # copies
MOST_BYTES = 4 << 30         # of them together


def seconds(n: int, k: int, m: int, on_card: bool, rounds: int) -> dict[str, float]:
    """{"bf16": seconds of x (M, K) @ w (N, K)', "int8": the same by torch._int_mm}; nothing without torch.

    Off the card the same functions run once on the processor: to see that they are called rightly.
    """
    try:
        import torch
    except ImportError:
        return {}
    place = "cuda" if on_card else "cpu"
    if on_card and not torch.cuda.is_available():
        return {}
    found = {}
    copies = int(min(AT_MOST, max(2, MOST_BYTES // (2 * n * k)))) if m <= 32 else 2
    x = torch.randn(m, k, device=place, dtype=torch.bfloat16)
    weights = [torch.randn(n, k, device=place, dtype=torch.bfloat16) for _ in range(copies)]
    out = torch.empty(m, n, device=place, dtype=torch.bfloat16)
    starts = [partial(torch.matmul, x, w.T, out=out) for w in weights]
    found["bf16"] = _seconds(torch, starts, on_card, rounds)
    del weights, starts
    if m > 32:                                             # what _int_mm takes
        codes = torch.randint(-128, 128, (m, k), device=place, dtype=torch.int8)
        trits = torch.randint(-1, 2, (n, k), device=place, dtype=torch.int8)
        found["int8"] = _seconds(torch, [lambda: torch._int_mm(codes, trits.T)] * 2, on_card, rounds)
    if on_card:
        torch.cuda.empty_cache()
    return found


def _seconds(torch: Any, starts: Sequence[Callable[[], object]], on_card: bool, rounds: int) -> float:
    if not on_card:
        began = time.perf_counter()
        starts[0]()
        return time.perf_counter() - began
    starts = [*starts] * -(-card.LAUNCHES // len(starts))
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        starts[0]()                                        # libraries prepare themselves outside of graphs
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=beside):
        for start in starts:
            start()
    took = []
    for _ in range(card.WARM + rounds):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        took.append(before.elapsed_time(after) / 1e3 / len(starts))
    return statistics.median(took[card.WARM:])
