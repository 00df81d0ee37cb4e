"""model/transformer: the whole twin differentiated; causality, batches, decoding, accumulation, errors."""

import math
from types import SimpleNamespace

import by_hand
import numpy as np
import pytest
from derivative import array_error, model_gradients, model_loss, parameter_errors
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NORMS, label, seeds, small_batch, small_config, small_params, variants

from bitnet_ref.checks import CheckError, NonFiniteError
from bitnet_ref.kernels import load
from bitnet_ref.layers import linear, rmsnorm
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import Params, param_specs
from bitnet_ref.model.transformer import (
    decode_step,
    forward,
    name_nonfinite,
    prefill,
    require_finite,
    train_step,
)
from bitnet_ref.model.weights import Trits, Weights, ternarise

OPS = load("numpy")
EACH_NORM = pytest.mark.parametrize("norm", NORMS)
KINDS = list(variants(norm=NORMS, linear=("ternary", "full")))
EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=label)


def small_model(dtype=np.float64, seed=0, **given):
    cfg = small_config(**given)
    return Transformer(cfg, small_params(cfg, seed, dtype), OPS)


# --- derivative --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", list(variants(norm=NORMS, glu=("swiglu", "relu2"), n_kv_heads=(4, 2, 1),
                                                tied_embeddings=(True, False))), ids=label)
def test_backward_of_the_twin_is_the_derivative(given, tol, rng):
    cfg = small_config(linear="full", **given)
    params, batch = small_params(cfg), small_batch(cfg)
    errors = parameter_errors(lambda moved: model_loss(cfg, OPS, moved, *batch), params,
                              model_gradients(cfg, OPS, params, *batch), rng)
    assert max(errors.values()) <= tol["model_derivative"], errors


# --- the formulas, written a second time -------------------------------------------------------------------


@pytest.mark.parametrize("given", list(variants(
    norm=NORMS, glu=("swiglu", "relu2"), n_kv_heads=(4, 2, 1), linear=("ternary", "full"),
    head=("full", "ternary"), tied_embeddings=(True, False))), ids=label)
def test_against_the_model_by_hand(given, tol):
    """With an eps and a theta that show."""
    cfg = small_config(**given, norm_eps=0.05, rope_theta=50.0)
    params, (ids, targets) = small_params(cfg), small_batch(cfg)
    logits, loss = Transformer(cfg, params, OPS)(ids, targets)
    want = by_hand.logits(cfg, params.view, ids)
    assert array_error(logits, want) <= tol["float64"]
    p = np.exp(want) / np.exp(want).sum(axis=-1, keepdims=True)
    assert loss == pytest.approx(-np.log(np.take_along_axis(p, targets[..., None], -1)).mean(), rel=1e-12)


# --- property: forward -------------------------------------------------------------------------------------


@EACH_KIND
@settings(max_examples=8)
@given(seed=seeds, t=st.integers(0, 3))
def test_a_later_token_cannot_move_an_earlier_logit(kind, seed, t):
    model, (ids, _) = small_model(**kind), small_batch(small_config(), seed)
    logits, _ = model(ids)
    ids[:, t + 1] = (ids[:, t + 1] + 1) % 13
    moved, _ = model(ids)
    np.testing.assert_array_equal(moved[:, :t + 1], logits[:, :t + 1])
    assert np.any(moved[:, t + 1] != logits[:, t + 1])


@EACH_KIND
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sequence_has_the_same_logits_alone_as_in_a_batch(kind, dtype):
    """Exactly: NumPy multiplies a batch matrix by matrix, and every reduction stays within a token."""
    model, (ids, targets) = small_model(dtype, **kind), small_batch(small_config(), B=4, T=7)
    logits, _ = model(ids, targets)
    for row, want in zip(ids, logits):
        np.testing.assert_array_equal(model(row)[0][0], want)
    np.testing.assert_array_equal(model(ids[::-1])[0], logits[::-1])


@EACH_KIND
def test_decoding_equals_the_full_forward(kind, tol):
    model, (ids, _) = small_model(**kind), small_batch(small_config(), B=2, T=9)
    want, _ = model(ids)
    logits, state = prefill(model.plan, model.ready, ids[:, :4])
    np.testing.assert_array_equal(state.ids, ids[:, :4])
    for t in range(4, 9):
        assert logits.shape == (2, 13)
        assert array_error(logits, want[:, t - 1]) <= tol["float64"]
        logits, state = decode_step(model.plan, model.ready, ids[:, t], state)
    assert array_error(logits, want[:, -1]) <= tol["float64"]


@EACH_KIND
def test_texts_of_different_lengths_are_each_their_own_forward(kind, tol, backends):
    """Prefilled together, extended by different counts, taken back, and gone on with."""
    model = small_model(**kind)
    model = Transformer(model.cfg, model.params, backends)
    rng = np.random.default_rng(0)
    ids, more = rng.integers(0, 13, (3, 6)), rng.integers(0, 13, (3, 4))
    lengths, counts, back = np.array([6, 2, 1]), np.array([1, 0, 4]), np.array([7, 1, 3])

    def alone(texts):
        return [model(t)[0][0] for t in texts]

    logits, state = model.prefill(ids, lengths)
    for got, want in zip(logits, alone([row[:n] for row, n in zip(ids, lengths)])):
        assert array_error(got, want[-1]) <= tol["float64"]
    texts = [np.concatenate([row[:n], new[:c]]) for row, n, new, c in zip(ids, lengths, more, counts)]
    logits, state = model.extend(more, state, counts)
    assert logits.shape == (3, 4, 13)
    for got, want, c in zip(logits, alone(texts), counts):
        assert not c or array_error(got[:c], want[-c:]) <= tol["float64"]
        assert not got[c:].any()
    token = np.array([3, 4, 5])
    logits, state = model.decode_step(token, state.back(back))
    texts = [np.append(t[:n], i) for t, n, i in zip(texts, back, token)]
    for got, want in zip(logits, alone(texts)):
        assert array_error(got, want[-1]) <= tol["float64"]
    assert list(state.lengths) == [8, 2, 4]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_lengths_and_states_that_make_no_sense_are_refused(backend):
    cfg = small_config()
    model = Transformer(cfg, small_params(cfg, dtype=np.float32), load(backend))
    ids = np.zeros((2, 3), int)
    for lengths in ([0, 3], [4, 1], [1], [1.0, 2.0], [[1], [2]]):
        with pytest.raises(CheckError, match="lengths must be 2 integers from 1 to 3"):
            model.prefill(ids, lengths)
    _, state = model.prefill(ids, [3, 1])
    for lengths in ([0, 0], [-1, 1], [4, 0]):
        with pytest.raises(CheckError, match="lengths must be 2 integers from 0 to 3, not all 0"):
            model.extend(ids, state, lengths)
    with pytest.raises(CheckError, match="a step must have a token for each of 2 sequences; got 1"):
        model.extend(ids[:1], state)
    for back in (0, 2, [3, 0], [1], "x", None, 1.0, [1, 1, 1], np.array([[1, 1]]), [[1], 1]):
        with pytest.raises(CheckError, match="a state goes back to lengths from 1 to what they are"):
            state.back(back)
    for back in (1, np.array([1, 1]), (np.int64(1), 1)):
        assert list(state.back(back).lengths) == [1, 1]
    with pytest.raises(CheckError, match="lengths must be 2 integers"):
        model.prefill(ids, [[1], 2])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_steps_and_states_that_make_no_sense_are_refused(backend):
    cfg = small_config()
    model, other = (Transformer(cfg, small_params(cfg, n, np.float32), load(backend)) for n in (0, 1))
    ids = np.zeros((1, 3), int)
    _, state = model.prefill(ids)
    for token in ([13], [-1]):
        with pytest.raises(CheckError, match=r"token must lie in 0\.\.12"):
            model.decode_step(token, state)
    for token in ([[1], 2], [1.0], [], 3):
        with pytest.raises(CheckError, match="a step needs tokens"):
            model.decode_step(token, state)
    for wrong in (None, 3, ids):
        with pytest.raises(CheckError, match="a state must be of prefill"):
            model.decode_step([1], wrong)
    for wrong in (other.prefill(ids)[1], Transformer(cfg, model.params, load("numpy")).prefill(ids)[1],
                  Transformer(cfg, model.params, load("numba")).prefill(ids)[1]):
        with pytest.raises(CheckError, match="a state must be of these weights"):
            model.extend(ids, wrong)
    for _ in range(cfg.context - 3):
        _, state = model.decode_step([1], state)
    before = state.back(cfg.context - 2)
    for step in (lambda: model.decode_step([1], state), lambda: model.extend(ids, before)):
        with pytest.raises(CheckError, match=f"a sequence must have at most {cfg.context} tokens; got 13"):
            step()


def test_a_state_keeps_its_own_ids():
    model, ids = small_model(), np.array([[1, 2, 3]])
    _, state = model.prefill(ids)
    want = model.decode_step([4], state)[0]
    ids[:] = 0
    np.testing.assert_array_equal(model.decode_step([4], state)[0], want)


def test_a_backend_without_a_cache_has_none_in_float16():
    cfg = small_config()
    with pytest.raises(CheckError, match="half_cache needs a backend that keeps a cache"):
        Transformer(cfg, small_params(cfg), OPS, half_cache=True)


def test_a_model_that_knows_nothing_has_loss_log_v():
    cfg = small_config()
    model = Transformer(cfg, Params(param_specs(cfg), np.float64), OPS)
    logits, loss = model(*small_batch(cfg))
    assert not logits.any()
    assert loss == pytest.approx(math.log(13), rel=1e-14)


def test_ternary_and_full_differ_in_their_products_only(tol):
    """With quantisers that do nothing the ternary model is its twin."""
    model, twin, batch = small_model(), small_model(linear="full"), small_batch(small_config())
    idle = load("numpy")
    vars(idle).update(absmean_ternary=lambda w: (w, 1.0), prepare=lambda w, _: w,
                      rmsnorm_int8=lambda x, g, eps: (rmsnorm(x, g, eps)[0], 1.0, None),
                      ternary_linear=lambda x, _, w: linear(x, w))
    want, want_loss = twin(*batch)
    logits, loss = Transformer(model.cfg, model.params, idle)(*batch)
    assert array_error(logits, want) <= tol["float64"]
    assert loss == pytest.approx(want_loss, rel=1e-14)
    assert abs(model(*batch)[1] - want_loss) > 0.01


def test_forward_keeps_nothing_unless_asked():
    model, (ids, _) = small_model(), small_batch(small_config())
    logits, saved = forward(model.plan, model.ready, ids, keep=False)
    assert saved is None
    kept, saved = forward(model.plan, model.ready, ids)
    np.testing.assert_array_equal(kept, logits)
    assert len(saved.blocks) == 2


# --- property: training ------------------------------------------------------------------------------------


@EACH_KIND
def test_two_micro_batches_are_one_batch_of_twice_the_size(kind, tol):
    model = small_model(**kind)
    ids, targets = small_batch(model.cfg, B=4)
    one, two = model.params.zeros_like(), model.params.zeros_like()
    loss = model.loss_and_grads([(ids, targets)], one)
    halves = model.loss_and_grads([(ids[:2], targets[:2]), (ids[2:], targets[2:])], two)
    assert halves == pytest.approx(loss, rel=tol["float64"])
    assert array_error(two.flat, one.flat) <= tol["float64"]
    assert loss == pytest.approx(model(ids, targets)[1], rel=1e-14)


def test_gradients_are_cleared_by_the_model_and_accumulated_by_train_step():
    model, batch = small_model(), small_batch(small_config())
    grads, again = model.params.zeros_like(), model.params.zeros_like()
    model.loss_and_grads([batch], grads)
    once = grads.flat.copy()
    model.loss_and_grads([batch], grads)
    np.testing.assert_array_equal(grads.flat, once)
    for _ in range(2):
        train_step(model.plan, model.ready, [batch], 1.0, again)
    np.testing.assert_allclose(again.flat, 2 * once, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("head", ["full", "ternary"])
def test_the_gradient_of_a_tied_head_is_the_sum_of_its_two_uses(head, tol):
    tied, untied = small_config(head=head), small_config(head=head, tied_embeddings=False)
    params, apart = small_params(tied), Params(param_specs(untied), np.float64)
    for s in apart.specs:
        apart[s.name][...] = params["embedding" if s.name == "head" else s.name]
    batch = small_batch(tied)
    both, two = model_gradients(tied, OPS, params, *batch), model_gradients(untied, OPS, apart, *batch)
    assert array_error(both["embedding"], two["embedding"] + two["head"]) <= tol["float64"]
    for s in params.specs[1:]:
        np.testing.assert_array_equal(both[s.name], two[s.name])


@pytest.mark.parametrize("given", list(variants(norm=NORMS, glu=("swiglu", "relu2"), head=("full", "ternary"),
                                                linear=("ternary", "full"))), ids=label)
def test_float32_in_float32_out(given):
    """Every op is watched, results and arguments: a float64 on the way would be rounded away at the end."""
    cfg, seen = small_config(**given), set()

    def watched(op):
        def run(*args, **kwargs):
            result = op(*args, **kwargs)
            parts = result if isinstance(result, tuple) else (result,)
            seen.update(a.dtype for a in (*args, *parts) if hasattr(a, "dtype") and a.dtype.kind == "f")
            return result
        return run

    ops = SimpleNamespace(**{name: watched(op) for name, op in vars(OPS).items()})
    ops.prepare = OPS.prepare
    model = Transformer(cfg, small_params(cfg, dtype=np.float32), ops)
    model.loss_and_grads([small_batch(cfg)], model.params.zeros_like())
    assert seen == {np.dtype(np.float32)}
    assert model(*small_batch(cfg))[0].dtype == np.float32


def test_float32_gradients_are_those_of_float64(tol):
    cfg = small_config(linear="full")
    batch = small_batch(cfg)
    exact = model_gradients(cfg, OPS, small_params(cfg), *batch)
    single = Params(exact.specs)
    single.flat[:] = small_params(cfg).flat
    assert array_error(model_gradients(cfg, OPS, single, *batch).flat, exact.flat) <= tol["float32_model"]


# --- the class ---------------------------------------------------------------------------------------------


def test_a_model_of_weights_alone_runs_and_has_no_parameters():
    model, batch = small_model(), small_batch(small_config())
    bare = Transformer(model.cfg, Weights(model.weights), OPS)
    assert bare.params is None
    np.testing.assert_array_equal(bare(*batch)[0], model(*batch)[0])


def test_requantise_takes_up_changed_parameters():
    model, batch = small_model(), small_batch(small_config())
    model.params["layers.0.ffn.w_up"][...] *= -1
    before, _ = model(*batch)
    model.requantise()
    after, _ = model(*batch)
    np.testing.assert_array_equal(after, Transformer(model.cfg, model.params, OPS)(*batch)[0])
    assert np.any(after != before)


def test_one_sequence_may_come_without_its_batch_dimension():
    model, (ids, targets) = small_model(), small_batch(small_config(), B=1)
    logits, loss = model(ids[0].tolist(), targets[0].tolist())
    want, want_loss = model(ids, targets)
    assert logits.shape == (1, 5, 13)
    np.testing.assert_array_equal(logits, want)
    assert loss == want_loss
    assert isinstance(loss, float)
    assert model(ids)[1] is None


@pytest.mark.parametrize(("ids", "targets", "message"), [
    ([[0, 13]], None, r"ids must lie in 0..12; got 0..13; use the tokenizer"),
    ([[-1, 3]], None, r"ids must lie in 0..12; got -1..3; use"),
    ([[0.0, 1.0]], None, r"ids must be integers of shape \(B, T\); got float64 \(1, 2\); pass token ids"),
    ([[True, False]], None, r"ids must be integers of shape \(B, T\); got bool"),
    (np.zeros((1, 2, 3), int), None, r"ids must be integers of shape \(B, T\); got int64 \(1, 2, 3\)"),
    (np.zeros((1, 0), int), None, r"ids must be integers of shape \(B, T\); got int64 \(1, 0\)"),
    ([[1, 2], [3]], None, r"ids must be integers of shape \(B, T\); got rows of different lengths; pass"),
    ([], None, r"ids must be integers of shape \(B, T\)"),
    ([0] * 13, None, r"a sequence must have at most 12 tokens; got 13; pass a shorter one"),
    ([[1, 2, 3]], [[1, 2]], r"targets must have shape \(B=1, T=3\); got \(1, 2\); pass an array"),
    ([[1, 2, 3]], [[1, 2, 13]], r"targets must lie in 0..12; got 1..13"),
    ([[1, 2, 3]], [[1, 2, -100]], r"targets must lie in 0..12; got -100..2"),
])
def test_bad_input_says_what_to_do(ids, targets, message):
    with pytest.raises(CheckError, match=message):
        small_model()(ids, targets)


def test_the_longest_sequence_and_the_last_token_are_allowed():
    assert small_model()([12] * 12)[0].shape == (1, 12, 13)


# --- naming what is not finite -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "bad"), [
    ("embedding", np.nan), ("layers.1.attn.wk", np.nan), ("layers.0.ffn.w_down", -np.inf),
    ("layers.1.ffn_sub_norm", np.inf), ("final_norm", np.nan), ("head", np.nan)])
@pytest.mark.parametrize("linear", ["ternary", "full"])
@pytest.mark.parametrize("glu", ["swiglu", "relu2"])
def test_a_bad_weight_makes_the_loss_nan_and_is_named(name, bad, linear, glu):
    model = small_model(linear=linear, glu=glu, tied_embeddings=False)
    ids, targets = small_batch(model.cfg)
    ids[0, 0] = 0                                       # the bad row of the embedding must be read
    model.params[name].flat[3] = bad
    model.requantise()
    with np.errstate(all="ignore"):
        assert np.isnan(model(ids, targets)[1])
        assert name_nonfinite(model, ids) == f"the weight {name}"


@pytest.mark.parametrize("glu", ["swiglu", "relu2"])
@pytest.mark.parametrize("matrix", ["ffn.w_gate", "ffn.w_up", "attn.wq", "attn.wv"])
def test_no_unit_hides_a_bad_matrix(glu, matrix):
    model, batch = small_model(glu=glu), small_batch(small_config())
    model.params[f"layers.0.{matrix}"][1, 2] = np.nan
    model.requantise()
    with np.errstate(all="ignore"):
        assert np.isnan(model(*batch)[1])


@pytest.mark.parametrize(("tensor", "size", "where"), [
    ("layers.1.attn_norm", 1e38, "the activation q of layer 1"),
    ("layers.0.ffn_norm", 1e30, "the activation u of layer 0"),
    ("final_norm", 1e38, "the logits or the gradient"),
])
def test_an_overflow_between_finite_weights_is_named_by_its_activation(tensor, size, where):
    model, (ids, _) = small_model(np.float32, linear="full", glu="relu2"), small_batch(small_config())
    model.params[tensor][...] = size
    model.requantise()
    with np.errstate(all="ignore"):
        assert name_nonfinite(model, ids) == where


def test_an_overflow_of_the_last_block_is_named_by_the_final_stream():
    model, (ids, _) = small_model(np.float32, linear="full", norm="pre"), small_batch(small_config())
    model.params["layers.1.ffn.w_down"][...] = 1e38
    with np.errstate(all="ignore"):
        assert name_nonfinite(model, ids) == "the final stream"


def test_scales_of_prepared_weights_are_looked_at():
    model, (ids, _) = small_model(), small_batch(small_config())
    trits = Trits(np.zeros((8, 16), np.int8), np.float64(np.nan))
    bad = Transformer(model.cfg, Weights({**model.weights, "layers.0.attn.wv": trits}), OPS)
    assert name_nonfinite(bad, ids) == "the weight layers.0.attn.wv"


def test_require_finite():
    model, (ids, _) = small_model(), small_batch(small_config())
    assert require_finite(1.0, "the loss", model, ids) is None
    model.params["final_norm"][0] = np.inf
    for value in (math.nan, math.inf):
        rule = rf"the loss must be finite; got {value}, first in the weight final_norm; lower the"
        with pytest.raises(NonFiniteError, match=rule):
            require_finite(value, "the loss", model, ids)


# --- twin --------------------------------------------------------------------------------------------------


@EACH_KIND
def test_twin(backends, tol, kind):
    """Loss, logits and gradients of every backend, float32."""
    cfg = small_config(**kind)
    params, batch = small_params(cfg, dtype=np.float32), small_batch(cfg)
    (loss, logits, grads), want = (
        (float(model_loss(cfg, ops, params, *batch)), Transformer(cfg, params, ops)(batch[0])[0],
         model_gradients(cfg, ops, params, *batch).flat) for ops in (backends, OPS))
    assert loss == pytest.approx(want[0], rel=tol["float32_model"])
    assert array_error(logits, want[1]) <= tol["float32_model"]
    assert array_error(grads, want[2]) <= tol["float32_model"]


def test_weights_of_the_twin_are_plain_arrays():
    cfg = small_config(linear="full")
    assert not ternarise(cfg, small_params(cfg), OPS).trits()
