"""train/loop: the step is the specification written out; what is not finite ends a run before it harms it."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.checks import NonFiniteError
from bitnet_ref.data.batches import batch
from bitnet_ref.evaluate.perplexity import score
from bitnet_ref.formats.checkpoint import checkpoints
from bitnet_ref.layers import adamw_
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import Params, Spec, init_params
from bitnet_ref.train import gradient, log, loop
from bitnet_ref.train.schedule import lr_at, wd_at

# --- the step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"linear": "full"}, {"requantize_every": 2}], ids=str)
def test_training_is_its_definition(given, tmp_path):
    """Five steps, written out: batches by number, their gradients' mean, its norm, AdamW, trits."""
    run, data = tiny.begin(tmp_path / "run", accumulate=2, steps=5, max_norm=0.5, **given)
    cfg, model_cfg = run.cfg, run.model.cfg
    loop.train(run, data)

    params = init_params(model_cfg, cfg.seed)
    model = Transformer(model_cfg, params, run.model.plan.ops)
    grads, other, m, v = (params.zeros_like() for _ in range(4))
    for step in range(5):
        for i, half in enumerate((grads, other)):
            model.loss_and_grads([batch(data.train.tokens, 2 * step + i, 4, 32, 0)], half, 1 / 2)
        grads.flat += other.flat
        norm = math.sqrt(np.sum(grads.flat.astype(np.float64) ** 2))
        grads.flat *= min(1.0, 0.5 / norm)
        for spec in params.specs:
            tensors = (t[spec.name].reshape(-1) for t in (params, grads, m, v))
            adamw_(*tensors, step + 1, lr_at(step, cfg), wd_at(step, cfg) if spec.decay else 0.0,
                   cfg.beta1, cfg.beta2, cfg.adam_eps)
        if (step + 1) % cfg.requantize_every == 0:
            model.requantise()
    np.testing.assert_array_equal(run.model.params.flat, params.flat)
    for name, (w_q, w_scale) in model.weights.trits().items():
        np.testing.assert_array_equal(run.model.weights[name].w_q, w_q)
        assert run.model.weights[name].w_scale == w_scale


@pytest.mark.parametrize(("side", "when"), [("train", "gradient"), ("val", "validation"), ("val", "final")])
def test_a_shard_that_changes_meanwhile_ends_the_run_before_anything_comes_of_it(side, when, tmp_path,
                                                                                monkeypatch):
    """Also while a step is computed, and before the validation text is read. Its times are put back."""
    data_folder = tiny.begin(tmp_path / "first", steps=2)[1].folder
    folder = tiny.copy(data_folder, tmp_path / "data")
    run, data = tiny.begin(tmp_path / "run", corpus=str(folder), steps=2, eval_every=1)
    before, scored = run.model.params.flat.copy(), []
    monkeypatch.setattr(loop, "score", lambda *_, **__: scored.append(1))

    def change():
        path = folder / f"{side}.bin"
        time = path.stat().st_mtime_ns
        with open(path, "r+b") as f:
            f.seek(2048)
            f.write(b"\1\0\1\0")
        os.utime(path, ns=(time, time))

    real = gradient.tree_sum
    if when == "gradient":
        monkeypatch.setattr(gradient, "tree_sum", lambda *args: (real(*args), change()))
    else:
        change()
    with tiny.refusal(f"{side}.bin must stay as it is while a run reads it"):
        {"gradient": lambda: loop.optimise(run, data), "final": lambda: loop.final_score(run, data),
         "validation": lambda: loop.validate(run, data, None)}[when]()
    np.testing.assert_array_equal(run.model.params.flat, before)
    assert not scored


def test_validation_scores_evenly_spaced_windows_and_the_final_score_all(tmp_path):
    run, data = tiny.begin(tmp_path / "run", steps=1)
    first = score(run.model, data.val.tokens, data.tokenizer.token_bytes, 4)
    loop.train(run, data)
    assert log.read(run.folder, "eval")[0]["loss"] == first.loss
    assert log.read(run.folder, "eval")[0]["bits_per_byte"] == first.bits_per_byte
    final = loop.final_score(run, data)
    assert final == score(run.model, data.val.tokens, data.tokenizer.token_bytes)
    assert final.tokens == len(data.val.tokens) - 1


@pytest.mark.parametrize(("save_every", "saved"),
                         [(5, [0, 5, 10, 15, 20]), (7, [0, 7, 14, 20]), (100, [0, 20])])
def test_checkpoints_come_at_the_start_when_due_and_at_the_end(save_every, saved, tmp_path):
    run = tiny.train(tmp_path / "run", save_every=save_every, keep=9)
    assert [p.name for p in checkpoints(run.folder)] == [f"step-{s:08d}" for s in saved]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_last_checkpoints_are_kept(keep, tmp_path):
    run = tiny.train(tmp_path / "run", save_every=3, keep=keep, guard=False)
    assert [p.name for p in checkpoints(run.folder)] == [f"step-{s:08d}" for s in (15, 18, 20)[-keep:]]
    hidden = [p.name for p in run.folder.iterdir() if p.name.startswith(".") and p.name != ".lock"]
    assert hidden == []


def test_the_guard_keeps_two_at_least(tmp_path):
    run = tiny.train(tmp_path / "run", save_every=3, keep=1)
    assert [p.name for p in checkpoints(run.folder)] == ["step-00000018", "step-00000020"]


# --- what is not finite, without the guard ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["embedding", "layers.1.ffn.w_up", "layers.0.attn_norm", "final_norm"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_weight_is_named_with_the_step_and_nothing_is_updated(name, bad, tmp_path):
    run, data = tiny.begin(tmp_path / "run", eval_every=100, guard=False)
    loop_until(run, data, 3)
    run.model.params[name].reshape(-1)[5] = bad
    run.model.requantise()
    before = tiny.state(run)
    with pytest.raises(NonFiniteError) as error:
        loop.train(run, data)
    # infinity in the embedding of a rare token may leave the loss finite, and is found in the gradient then
    what = "of step 3" if (name, bad) == ("embedding", np.inf) else "the loss of step 3"
    tiny.assert_three_parts(error.value, what, "first in ", name)
    assert tiny.state(run) == before
    assert log.read(run.folder, "step")[-1]["step"] == 3


def loop_until(run, data, step):
    """Train `run` to `step` by the definition of the loop, whose end is cfg.steps."""
    run.cfg, cfg = replace(run.cfg, steps=step), run.cfg
    loop.train(run, data)
    run.cfg = cfg


@pytest.mark.parametrize("linear", ["ternary", "full"])
def test_an_exploding_run_ends_in_an_error_that_names_step_and_tensor(linear, tmp_path):
    """Gradients are clipped and norms divide, so it takes a rate as absurd as this."""
    absurd = {"lr": 1e30, "max_norm": 1e30, "warmup": 0, "guard": False}
    run, data = tiny.begin(tmp_path / "run", eval_every=100, linear=linear, **absurd)
    with pytest.raises(NonFiniteError) as error:
        loop.train(run, data)
    tiny.assert_three_parts(error.value, f"of step {run.step}", "first in")
    assert 0 < run.step < 20


def test_a_gradient_that_is_not_finite_is_named_before_it_is_applied(tmp_path, monkeypatch):
    run, data = tiny.begin(tmp_path / "run", guard=False)
    real = Transformer.loss_and_grads

    def poisoned(model, batches, grads, share):
        loss = real(model, batches, grads, share)
        if run.step == 2:
            grads["layers.1.attn.wk"][0, 0] = np.inf
        return loss

    monkeypatch.setattr(Transformer, "loss_and_grads", poisoned)
    with pytest.raises(NonFiniteError) as error:
        loop.train(run, data)
    tiny.assert_three_parts(error.value, "the gradient of step 2", "layers.1.attn.wk", "lower --lr")
    assert run.step == run.cursor == 2
    assert np.all(np.isfinite(run.model.params.flat))


def test_an_activation_that_is_not_finite_is_named_where_the_weights_are():
    """Finite weights, too large for a product of them: the first activation in dataflow order."""
    run, data = tiny.begin(tiny.folder() / "overflow", linear="full", guard=False)
    run.model.params["layers.1.attn.wv"][...] = 1e38
    run.model.requantise()
    with pytest.raises(NonFiniteError) as error:
        loop.train(run, data)
    tiny.assert_three_parts(error.value, "the activation v of layer 1")


def test_a_norm_that_overflows_although_no_gradient_does_is_named():
    """Squares beyond float64: only possible for float64 gradients, and named as what it is."""
    class Sum:
        step, folder = 4, "here"
        grads = Params([Spec("a", (2,), 0.0, False, False, "a")], np.float64)

    bad = gradient.first_bad(Sum, np.ones(1), np.inf, None)
    assert bad == "the gradient of step 4 must be finite; got inf, first in their sum of squares"


# --- Ctrl-C ------------------------------------------------------------------------------------------------


def test_control_c_before_a_validation_skips_none_of_it(tmp_path, monkeypatch):
    """At step 5 a checkpoint and a validation are due: the first happens, the second is the resumed run's."""
    run = tiny.interrupt(tmp_path / "run", 5, monkeypatch)
    assert [line["step"] for line in log.read(run.folder, "eval")] == [0]
    tiny.resume(run.folder)
    assert [line["step"] for line in log.read(run.folder, "eval")] == [0, 5, 10, 15, 20]


def test_control_c_in_the_last_step_still_ends_as_interrupted(tmp_path, monkeypatch):
    run = tiny.interrupt(tmp_path / "run", 20, monkeypatch)
    tiny.assert_same_runs(tiny.resume(run.folder), tiny.begin_again(tiny.trained()))
