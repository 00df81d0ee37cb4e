"""kernels/numba_cpu/workspace: its size is known before; nothing overlaps; it is linear in the tokens."""

import sys
import tracemalloc

import numpy as np
import pytest
from strategies import NORMS, label, small_config, variants

from bitnet_ref.config import PRESETS
from bitnet_ref.kernels import load
from bitnet_ref.kernels.numba_cpu.workspace import needed, workspace
from bitnet_ref.model.block import build

OPS = load("numba")
cross_entropy = sys.modules["bitnet_ref.kernels.numba_cpu.cross_entropy"]    # not its function of that name
EACH = pytest.mark.parametrize("given", list(variants(
    norm=NORMS, linear=("ternary", "full"), head=("full", "ternary"))), ids=label)


def arrays(parts):
    """Every array inside, in the order of the fields."""
    if isinstance(parts, np.ndarray):
        yield parts
    elif isinstance(parts, dict):
        yield from arrays(list(parts.values()))
    elif isinstance(parts, list | tuple):
        for part in parts:
            yield from arrays(part)


@EACH
def test_nothing_overlaps_and_all_is_aligned(given):
    ws = workspace(build(small_config(**given, d_ff=37), OPS), 3, 7)
    parts = list(arrays(ws))
    for i, a in enumerate(parts):
        a[...] = i
    for i, a in enumerate(parts):
        assert (a == i).all()
        assert a.size == 0 or a.ctypes.data % 64 == 0
        assert a.flags.c_contiguous
        assert a.flags.writeable


@EACH
def test_the_size_is_known_before_it_is_allocated(given):
    plan = build(small_config(**given), OPS)
    ws = workspace(plan, 2, 9)
    used = sum((a.nbytes + 63) // 64 * 64 for a in arrays(ws))
    assert used == ws.n_bytes == needed(plan, 2, 9)


def test_asking_allocates_nothing():
    plan = build(PRESETS["2b4t"].model, OPS)
    tracemalloc.start()
    size = needed(plan, 64, 2048)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 1 << 30
    assert peak < 1 << 20


@pytest.mark.parametrize("linear", ["ternary", "full"])
def test_twice_the_length_is_twice_the_memory(linear):
    plan = build(small_config(linear=linear, vocab_size=100_000), OPS)
    a, b, c = (needed(plan, 1, T) for T in (1024, 2048, 4096))
    assert abs((c - b) / (b - a) - 2) < 1e-3            # a chunk of the logits is the same for all


def test_ternary_keeps_a_quarter_of_what_its_products_read():
    """Per layer and token: the inputs of the products as int8 codes; the twin keeps them as floats."""
    cfg = {"norm": "sub", "n_layers": 1, "d_model": 64, "d_ff": 192}
    twin, ternary = (needed(build(small_config(linear=linear, **cfg), OPS), 4, 64)
                     for linear in ("full", "ternary"))
    assert twin - ternary == 3 * 4 * 64 * (3 * 64 + 192)


def test_only_a_chunk_of_the_logits_is_held():
    plan = build(small_config(vocab_size=50_000), OPS)
    ws = workspace(plan, 4, 256)
    assert len(ws.logits) < 4 * 256
    assert len(ws.logits) == max(cross_entropy.LEAST, cross_entropy.LOGITS // 50_000)
