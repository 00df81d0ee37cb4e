"""kernels/numba_cpu/train_step: the step of the reference, for every variant, with nothing allocated."""

import sys
import tracemalloc

import numpy as np
import pytest
from derivative import array_error
from numba.core.runtime import _nrt_python, rtsys
from strategies import NORMS, label, small_batch, small_config, small_params, variants

from bitnet_ref.kernels import load
from bitnet_ref.kernels.numba_cpu import threads as pool
from bitnet_ref.model import Transformer
from bitnet_ref.model.block import build
from bitnet_ref.model.params import Params, param_specs
from bitnet_ref.model.transformer import train_step
from bitnet_ref.model.weights import ternarise

NUMPY, NUMBA = load("numpy"), load("numba")
ODD = {"vocab_size": 19, "d_model": 24, "n_heads": 4, "d_ff": 37, "context": 300}
KINDS = list(variants(norm=NORMS, glu=("swiglu", "relu2"), n_kv_heads=(4, 2, 1), linear=("ternary", "full"),
                      head=("full", "ternary"), tied_embeddings=(True, False)))


def step(given, ops, path, seed=0, batches=1, start=0.0, B=2, T=5):
    """(loss, gradients by name) of `path` on a small model of odd widths."""
    cfg = small_config(**{**ODD, **given})
    params = small_params(cfg, seed, np.float32)
    ready = ternarise(cfg, params, ops).ready(ops)
    grads = Params(param_specs(cfg), np.float32)
    grads.flat[:] = start
    given = [small_batch(cfg, seed + i, B, T) for i in range(batches)]
    return path(build(cfg, ops), ready, given, 1 / batches, grads), grads


def differences(got, want):
    """Of the loss, and the largest over all gradients, each against the largest entry of its tensor."""
    (loss, grads), (loss_wanted, wanted) = got, want
    assert type(loss) is float
    return (abs(loss - loss_wanted) / loss_wanted,
            max(array_error(grads[s.name], wanted[s.name]) for s in grads.specs))


# --- twin ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", KINDS, ids=label)
def test_against_the_reference_on_the_same_ops(given, tol):
    """Same quantisers, so the same codes: what differs is the orchestration alone."""
    loss, grads = differences(step(given, NUMBA, NUMBA.train_step), step(given, NUMBA, train_step))
    assert loss <= 1e-6
    assert grads <= tol["float32_model"]


@pytest.mark.parametrize("given", KINDS, ids=label)
def test_against_the_reference(given, tol):
    """A code on the edge of rounding may flip (docs/numerics.md), and gradients move: not on three seeds.

    Nor do sums cancel on all three until little is left of their terms, as they can without any trits.
    """
    errors = [differences(step(given, NUMBA, NUMBA.train_step, seed), step(given, NUMPY, train_step, seed))
              for seed in range(3)]
    loss, grads = min(errors, key=lambda e: e[1])
    assert loss <= 1e-6
    assert grads <= tol["float32_model"]


@pytest.mark.parametrize("given", [{}, {"linear": "full"}, {"head": "ternary", "norm": "inner"}], ids=str)
def test_micro_batches_are_averaged_and_gradients_added_to_what_is_there(given, tol):
    got = step(given, NUMBA, NUMBA.train_step, batches=3, start=0.5)
    want = step(given, NUMBA, train_step, batches=3, start=0.5)
    assert max(differences(got, want)) <= tol["float32_model"]
    alone = [step(given, NUMBA, NUMBA.train_step, seed=0, batches=b)[0] for b in (1, 3)]
    assert alone[0] != alone[1]


def test_more_tokens_than_a_chunk_of_logits(tol, monkeypatch):
    """Loss, and what flows back, are of each token; only the head's gradient is summed in chunks."""
    got = step({}, NUMBA, NUMBA.train_step, B=3, T=70)
    assert max(differences(got, step({}, NUMBA, train_step, B=3, T=70))) <= tol["float32_model"]
    chunks = sys.modules["bitnet_ref.kernels.numba_cpu.cross_entropy"]      # not its function of that name
    monkeypatch.setattr(chunks, "LOGITS", 1)
    in_chunks = step({}, NUMBA, NUMBA.train_step, B=3, T=70)
    assert in_chunks[0] == got[0]
    assert max(differences(in_chunks, got)) <= tol["float32"]


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 299), (7, 2)])
def test_one_token_and_long_rows(B, T, tol):
    """Against the largest of all gradients: that of the queries of a single token is rounding alone."""
    (loss, got), (loss_wanted, want) = (step({"n_kv_heads": 1}, NUMBA, path, B=B, T=T)
                                        for path in (NUMBA.train_step, train_step))
    assert loss == pytest.approx(loss_wanted, rel=1e-6)
    assert array_error(got.flat, want.flat) <= tol["float32_model"]


# --- property -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"linear": "full", "norm": "pre"},
                                   {"norm": "inner", "inner_gain": True}], ids=str)
def test_the_same_bits_again_and_on_any_number_of_threads(given):
    results, before = [], pool.pool_size()
    try:
        for threads in (before, before, 1):
            pool.use(threads)
            results.append(step(given, NUMBA, NUMBA.train_step, batches=2, B=3, T=50))
    finally:
        pool.use(before)
    for loss, grads in results[1:]:
        assert loss == results[0][0]
        np.testing.assert_array_equal(grads.flat, results[0][1].flat)


def test_a_step_of_another_shape_in_between_leaves_no_trace():
    cfg = small_config(**ODD)
    model = Transformer(cfg, small_params(cfg, 0, np.float32), NUMBA)
    grads = model.params.zeros_like()
    shapes, seen = [(2, 5), (1, 9), (3, 70), (2, 5)], []
    for B, T in shapes:
        loss = model.loss_and_grads([small_batch(cfg, B, B, T)], grads)
        seen.append((loss, grads.flat.copy()))
    assert seen[0][0] == seen[3][0]
    np.testing.assert_array_equal(seen[0][1], seen[3][1])


def test_two_models_have_memory_of_their_own():
    a, b = small_config(**ODD), small_config(**{**ODD, "d_model": 16})
    alone = step({}, NUMBA, NUMBA.train_step)
    models = [Transformer(cfg, small_params(cfg, 0, np.float32), NUMBA) for cfg in (a, b)]
    for model in (*models, *models):
        grads = model.params.zeros_like()
        loss = model.loss_and_grads([small_batch(model.cfg)], grads)
        if model is models[0]:
            assert loss == alone[0]
            np.testing.assert_array_equal(grads.flat, alone[1].flat)


@pytest.fixture
def counted():
    """Numba counts its allocations."""
    _nrt_python.memsys_enable_stats()
    yield
    _nrt_python.memsys_disable_stats()


def allocated(model, batches):
    """(peak of Python's and NumPy's memory above the start, allocations of Numba) of the third step."""
    grads = model.params.zeros_like()
    for _ in range(2):
        model.loss_and_grads(batches, grads)
    tracemalloc.start()
    before, (start, _) = rtsys.get_allocation_stats(), tracemalloc.get_traced_memory()
    model.loss_and_grads(batches, grads)
    after, (_, peak) = rtsys.get_allocation_stats(), tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after.alloc - before.alloc == after.free - before.free
    return peak - start, after.alloc - before.alloc


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("given", [{}, {"linear": "full", "head": "ternary"}, {"glu": "relu2", "norm": "pre"},
                                   {"norm": "inner", "inner_gain": True, "tied_embeddings": False}], ids=str)
def test_a_third_step_allocates_nothing_that_grows(given):
    """Under 64 KiB where one activation has 600 KiB; Numba makes only headers of arrays that it is passed."""
    counts = []
    for T in (20, 200):
        cfg = small_config(**{"vocab_size": 1000, "d_model": 256, "d_ff": 300, "context": 200, **given})
        model = Transformer(cfg, small_params(cfg, 0, np.float32), NUMBA)
        size, count = allocated(model, [small_batch(cfg, 0, 3, T)])
        assert size < 64 << 10
        counts.append(count)
    assert counts[0] == counts[1]


def test_other_precisions_are_left_to_the_reference():
    cfg = small_config()
    params = small_params(cfg, 0, np.float64)
    ready, grads = ternarise(cfg, params, NUMBA).ready(NUMBA), params.zeros_like()
    assert NUMBA.train_step(build(cfg, NUMBA), ready, [small_batch(cfg)], 1.0, grads) is NotImplemented
    assert not grads.flat.any()
    loss = Transformer(cfg, params, NUMBA).loss_and_grads([small_batch(cfg)], grads)
    want = Transformer(cfg, params, NUMPY)
    assert loss == pytest.approx(want.loss_and_grads([small_batch(cfg)], want.params.zeros_like()), rel=1e-12)


@pytest.mark.parametrize("name", ["embedding", "layers.1.attn.wq", "layers.0.ffn_norm", "final_norm"])
def test_what_is_not_finite_shows_in_the_loss(name):
    cfg = small_config(**ODD)
    params = small_params(cfg, 0, np.float32)
    params[name].reshape(-1)[3] = np.nan
    if name == "embedding":
        params[name][:] = np.nan
    model = Transformer(cfg, params, NUMBA)
    assert np.isnan(model.loss_and_grads([small_batch(cfg)], params.zeros_like()))
