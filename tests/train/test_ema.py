"""train/ema: an average of what the parameters were; it changes no step and is scored with its own trits."""

import hashlib
import json

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from strategies import small_config, small_params
from tiny import own_cache  # noqa: F401

from bitnet_ref.evaluate.perplexity import score
from bitnet_ref.formats.checkpoint import STATE, TENSORS, latest
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import init_params
from bitnet_ref.train import log, loop, start, summary
from bitnet_ref.train.ema import average_, ema_score


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_average_is_the_weighted_sum_of_all_that_came(decay, rng):
    """Weights from the definition: each step keeps a share of what was, and none of the initial zeros."""
    ema, params = small_params(small_config()).zeros_like(), small_params(small_config()).zeros_like()
    seen, weights = [], np.zeros(0)
    for step in range(1, 31):
        params.flat[:] = rng.normal(size=params.flat.size)
        seen.append(params.flat.astype(np.float64))
        average_(ema, params, step, decay)
        new = max(1 - decay, 1 / step)
        weights = np.append(weights * (1 - new), new)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(ema.flat, weights @ np.array(seen), atol=1e-5)
    if decay == 0.999:
        np.testing.assert_allclose(ema.flat, np.mean(seen, axis=0), atol=1e-5)


def test_a_run_with_an_average_is_the_run_without(tmp_path):
    averaged, plain = tiny.train(tmp_path / "averaged", ema=0.8, threads=1), tiny.begin_at_end(tiny.trained())
    np.testing.assert_array_equal(averaged.model.params.flat, plain.model.params.flat)
    assert tiny.lines(tmp_path / "averaged") == tiny.lines(tiny.trained())
    assert plain.ema is None


def test_the_average_is_of_the_parameters_after_each_update(tmp_path, monkeypatch):
    run, data = tiny.begin(tmp_path / "run", ema=0.99, threads=1, steps=4)
    seen, real = [], loop.average_
    monkeypatch.setattr(loop, "average_",
                        lambda *args: (seen.append(run.model.params.flat.copy()), real(*args)))
    loop.train(run, data)
    assert not np.array_equal(seen[0], init_params(run.model.cfg, 0).flat)
    np.testing.assert_allclose(run.ema.flat, np.mean(seen, axis=0), atol=1e-6)


def test_the_score_is_that_of_a_model_of_the_average(tmp_path):
    run, data = tiny.begin(tmp_path / "run", ema=0.8, threads=1)
    loop.train(run, data)
    before, trits = loop.final_score(run, data), run.model.weights
    got = ema_score(run, data)
    model = Transformer(run.model.cfg, run.ema, run.model.plan.ops)
    assert got == score(model, data.val.tokens, data.tokenizer.token_bytes) != before
    assert run.model.weights is trits
    assert [line["loss"] for line in log.read(run.folder, "final ema")] == [got.loss]
    again, data = start.resume(str(run.folder), {})
    assert log.read(run.folder, "final ema") == []
    assert ema_score(again, data) == got


def test_without_an_average_there_is_no_score(tmp_path):
    run, data = tiny.begin(tmp_path / "run", steps=1)
    assert ema_score(run, data) is None


def test_the_summary_says_which_weights(tmp_path):
    run, data = tiny.begin(tmp_path / "run", ema=0.8, threads=1, steps=4)
    loop.train(run, data)
    found = summary.finish(run, data)
    ema, = log.read(run.folder, "final ema")
    assert json.loads((run.folder / "summary.json").read_text())["averaged weights"] == {
        "validation loss": ema["loss"], "bits per byte": ema["bits_per_byte"]}
    assert f"this model (with its averaged weights {ema['bits_per_byte']:.3f})" in summary.page(run, found)
    del found["averaged weights"]
    assert "averaged" not in summary.page(run, found)


def test_a_checkpoint_without_the_average_is_refused(tmp_path):
    run = tiny.train(tmp_path / "run", ema=0.8, threads=1, steps=2)
    path = latest(run.folder)
    tensors = load_file(path / TENSORS)
    assert np.array_equal(tensors.pop("ema.final_norm"), run.ema["final_norm"])
    save_file(tensors, path / TENSORS)
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    state["sha256"] = hashlib.sha256((path / TENSORS).read_bytes()).hexdigest()
    tiny.put_state(path, state)
    with tiny.refusal("must hold every tensor", "no ema.final_norm"):
        start.resume(str(run.folder), {})
