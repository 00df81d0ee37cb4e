"""kernels/numba_cuda/train_step: loss and gradients of whole models on the device, for every variant."""

from functools import partial

import numpy as np
import pytest
import tiny
from derivative import array_error
from strategies import NORMS, label, small_batch, small_config, small_params, variants

from bitnet_ref.bench import golden
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.block import build
from bitnet_ref.model.params import Params
from bitnet_ref.model.transformer import name_nonfinite, train_step
from bitnet_ref.model.weights import ternarise

pytest.importorskip("numba_cuda")

NUMPY = load("numpy")
ODD = {"vocab_size": 19, "d_model": 24, "n_layers": 1, "n_heads": 4, "d_ff": 37, "context": 300}
FEW = [{}, {"linear": "full", "n_kv_heads": 1}, {"norm": "pre", "glu": "relu2", "head": "ternary"},
       {"norm": "inner", "inner_gain": True, "tied_embeddings": False}, {"norm": "inner", "linear": "full"}]
KINDS = variants(norm=NORMS, glu=("swiglu", "relu2"), n_kv_heads=(4, 2, 1), linear=("ternary", "full"),
                 head=("full", "ternary"), tied_embeddings=(True, False))
# Every seventh is of the marked checks (7 divides the length of no axis, so each value of each has its turn).
ALL = [*FEW, *(pytest.param(kind, marks=pytest.mark.nightly if n % 7 else pytest.mark.slow)
               for n, kind in enumerate(KINDS))]


def step(given, ops, path, seed=0, batches=1, start=0.0, B=2, T=5, resident=True, queries=1.0,
         own_trits=True):
    """(loss, gradients by name) of `path` on a small model of odd widths. `queries`: a factor of wq.
    `own_trits`: those that `ops` makes of the weights, else the reference's."""
    cfg = small_config(**{**ODD, **given})
    params = small_params(cfg, seed, np.float32)
    params["layers.0.attn.wq"][:] *= queries
    reference = ternarise(cfg, params, NUMPY)
    if resident:
        params, values = Params(params.specs, ops=ops), params
        params.store(values)
    ready = (ternarise(cfg, params, ops) if own_trits else reference).ready(ops)
    grads = params.zeros_like()
    ops.store_(grads.flat, start)
    given = [small_batch(cfg, seed + i, B, T) for i in range(batches)]
    return path(build(cfg, ops), ready, given, 1 / batches, grads), grads.fetched()


def differences(got, want):
    """Of the loss, and the largest over all gradients, each against the largest entry of its tensor."""
    (loss, grads), (loss_wanted, wanted) = got, want
    assert type(loss) is float
    return (abs(loss - loss_wanted) / loss_wanted,
            max(array_error(grads[s.name], wanted[s.name]) for s in grads.specs))


# --- twin ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ALL, ids=label)
def test_against_the_reference(ops, given, tol):
    """A code on the edge of rounding may flip (docs/numerics.md), and gradients move: not on three seeds."""
    best = (1.0, 1.0)
    for seed in range(3):
        found = differences(step(given, ops, ops.train_step, seed), step(given, NUMPY, train_step, seed))
        best = min(best, found, key=lambda e: e[1])
        if best[1] <= tol["float32_model"]:
            break
    assert best[0] <= 1e-6
    assert best[1] <= tol["float32_model"]


def test_micro_batches_are_averaged_and_gradients_added_to_what_is_there(ops, tol):
    """Also where parameters and gradients are NumPy's: then the gradient comes back."""
    given = {"linear": "full", "n_heads": 2, "n_kv_heads": 2, "d_model": 8}
    want = step(given, NUMPY, train_step, batches=2, start=0.5)
    for resident in (True, False):
        got = step(given, ops, ops.train_step, batches=2, start=0.5, resident=resident)
        assert max(differences(got, want)) <= tol["float32_model"]


def test_more_tokens_than_a_chunk_of_logits(ops, tol, monkeypatch):
    """Loss, and what flows back, are of each token; only the head's gradient is summed in chunks."""
    from bitnet_ref.kernels.numba_cuda import workspace

    given = {"d_model": 8, "n_heads": 2, "n_kv_heads": 1}
    whole = step(given, ops, ops.train_step, B=3, T=5)
    monkeypatch.setattr(workspace, "LOGITS", 1)
    monkeypatch.setattr(workspace, "LEAST", 7)             # 7, 7 and 1 rows
    assert max(differences(step(given, ops, ops.train_step, B=3, T=5), whole)) <= tol["float32"]
    assert max(differences(whole, step(given, NUMPY, train_step, B=3, T=5))) <= tol["float32_model"]


@pytest.mark.slow
def test_the_widths_of_2b4t(ops, tol):
    """One block of them, three tokens. At this width initial scores are hundreds; a softmax of one key has
    a gradient of rounding errors alone: smaller queries make it one of numbers. Of 53 million weights one is
    so near a tie that the two means of |w|, which differ in the last digit, make two trits of it, and logits
    are so large that the loss moves by a thousandth: so both are given the same trits (NU.6, NU.7)."""
    given = {"vocab_size": 300, "d_model": 2560, "n_heads": 20, "n_kv_heads": 5, "d_ff": 6912, "n_layers": 1,
             "glu": "relu2"}
    how = {"B": 1, "T": 3, "queries": 1 / 400, "own_trits": False}
    found = differences(step(given, ops, ops.train_step, **how), step(given, NUMPY, train_step, **how))
    assert found[0] <= 1e-6
    assert found[1] <= tol["float32_model"]


@pytest.mark.slow
def test_golden_train10(ops, tol):
    """Ten steps of forward, backward, clipping, schedule and AdamW on the device, and what is left after."""
    found = golden.train10(ops, "float32")
    assert len(found) == 4 * 10 + 3 * (1 + 2 * 11 + 1)
    assert {name: e for name, e in found.items() if not e <= tol["float32_train10"]} == {}


# --- property -----------------------------------------------------------------------------------------------


def test_the_same_bits_again_and_after_a_step_of_another_shape(ops):
    cfg = small_config(**{**ODD, "n_heads": 2, "n_kv_heads": 1})
    params = Params(small_params(cfg, 0, np.float32).specs, ops=ops)
    params.store(small_params(cfg, 0, np.float32))
    model, grads, seen = Transformer(cfg, params, ops), params.zeros_like(), []
    for B, T in ((2, 5), (1, 3), (2, 5)):
        loss = model.loss_and_grads([small_batch(cfg, B, B, T)], grads)
        seen.append((loss, grads.fetched().flat))
    assert seen[0][0] == seen[2][0]
    np.testing.assert_array_equal(seen[0][1], seen[2][1])
    assert np.abs(seen[0][1]).max() > 0


def test_logits_are_those_of_forward(ops, tol):
    cfg = small_config(**{**ODD, "head": "ternary"})
    params = small_params(cfg, 0, np.float32)
    there = Params(params.specs, ops=ops)
    there.store(params)
    ids, targets = small_batch(cfg, 0, 2, 5)
    got, loss = Transformer(cfg, there, ops)(ids, targets)
    want, loss_wanted = Transformer(cfg, params, NUMPY)(ids, targets)
    assert array_error(got, want) <= tol["float32_model"]
    assert loss == pytest.approx(loss_wanted, rel=1e-6)


def test_other_precisions_are_left_to_the_reference(ops):
    cfg = small_config()
    params = small_params(cfg, 0, np.float64)
    ready, grads = ternarise(cfg, params, ops).ready(ops), params.zeros_like()
    assert ops.train_step(build(cfg, ops), ready, [small_batch(cfg)], 1.0, grads) is NotImplemented
    assert not grads.flat.any()
    with tiny.refusal("a call of the op embedding alone", "numba or numpy"):
        Transformer(cfg, params, ops).loss_and_grads([small_batch(cfg)], grads)


def test_a_model_in_training_writes_as_one_that_was_fetched(ops):
    """Prefill and decoding read weights that lie on the device, as they are now."""
    cfg = small_config(**{**ODD, "d_model": 8, "n_heads": 2, "n_kv_heads": 1})
    params = Params(small_params(cfg, 0, np.float32).specs, ops=ops)
    params.store(small_params(cfg, 0, np.float32))
    model, (ids, _) = Transformer(cfg, params, ops), small_batch(cfg)
    before, _ = model.prefill(ids)
    ops.scale_(params.flat, 1.5)
    model.requantise()
    got, _ = model.prefill(ids)
    np.testing.assert_array_equal(got, model.fetched().prefill(ids)[0])
    assert not np.array_equal(got, before)


def test_what_the_card_cannot_hold_is_refused_with_the_numbers(ops, device, monkeypatch):
    """Vectors, trits and workspace, each before any memory is taken."""
    from bitnet_ref.kernels.numba_cuda import memory
    cfg = small_config(**{**ODD, "d_model": 8, "n_heads": 2, "n_kv_heads": 1})
    values = small_params(cfg, 0, np.float32)
    params = Params(values.specs, ops=ops)
    params.store(values)
    model, grads = Transformer(cfg, params, ops), params.zeros_like()
    batch = small_batch(cfg, 0, 2, 5)
    model.loss_and_grads([batch], grads)
    model.requantise()
    monkeypatch.setattr(memory.Device, "free", lambda self: (100, 1 << 30))
    monkeypatch.setattr(memory.Device, "empty", lambda self, shape, dtype: pytest.fail("memory was taken"))
    refused = {"the trits of a training step": partial(model.loss_and_grads, [batch], grads),
               "a training step of 1 x 3": partial(model.loss_and_grads, [small_batch(cfg, 0, 1, 3)], grads),
               f"a vector of {params.flat.size:,} numbers": params.zeros_like}
    for said, call in refused.items():
        with tiny.refusal(f"memory for {said}", "got 9.31e-08 GB free of 1 GB", "smaller model, batch or"):
            call()


def test_the_memory_that_is_counted_is_the_memory_that_is_taken(ops, monkeypatch):
    """A workspace that just fits is made; with a byte less it is refused."""
    from bitnet_ref.kernels.numba_cuda import memory, workspace
    plan = build(small_config(**ODD), ops)
    tally, taken, empty = workspace.Tally(), [], memory.Device.empty
    workspace._arrays(tally, plan, 2, 5)
    monkeypatch.setattr(memory.Device, "empty", lambda self, shape, dtype: taken.append((shape, dtype)) or
                        empty(self, shape, dtype))
    for free in (tally.n_bytes - 1, tally.n_bytes):
        monkeypatch.setattr(memory.Device, "free", lambda self, free=free: (free, 1 << 30))
        if free < tally.n_bytes:
            with tiny.refusal("a training step of 2 x 5 tokens", "GB free"):
                workspace.workspace(memory.device(), plan, 2, 5)
            assert not taken
        else:
            workspace.workspace(memory.device(), plan, 2, 5)
    sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in taken]
    assert sum(-(-n // workspace.GRAIN) * workspace.GRAIN for n in sizes) == tally.n_bytes


@pytest.mark.parametrize(("name", "said"), [("layers.0.attn.wv", "the weight layers.0.attn.wv"),
                                            ("layers.0.ffn_norm", "the weight layers.0.ffn_norm")])
def test_what_is_not_finite_shows_in_the_loss_and_is_named(ops, name, said):
    cfg = small_config(**{**ODD, "d_model": 8, "n_heads": 2, "n_kv_heads": 1})
    values = small_params(cfg, 0, np.float32)
    values[name].reshape(-1)[3] = np.nan
    params = Params(values.specs, ops=ops)
    params.store(values)
    model, batch = Transformer(cfg, params, ops), small_batch(cfg)
    assert np.isnan(model.loss_and_grads([batch], params.zeros_like()))
    assert name_nonfinite(model, batch[0]) == said


def test_a_model_that_only_runs_says_who_can_name_an_activation(ops):
    """Its weights are finite and its logits are not."""
    cfg = small_config(**{**ODD, "d_model": 8, "n_heads": 2, "n_kv_heads": 1, "tied_embeddings": False})
    values = small_params(cfg, 0, np.float32)
    values["final_norm"][:] = values["head"][:] = 3e38
    model, ids = Transformer(cfg, ternarise(cfg, values, NUMPY), ops), small_batch(cfg)[0]
    assert not np.isfinite(model(ids)[0]).all()
    assert name_nonfinite(model, ids) == "an activation (which one, --backend numpy says)"
