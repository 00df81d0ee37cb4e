"""Training with --backend cuda, over the interpreter: what NumPy is shown of a run is what the device has."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.formats import checkpoint as files
from bitnet_ref.kernels import load
from bitnet_ref.quant import absmean_ternary
from bitnet_ref.train import checkpoint, inject, log, loop, start
from bitnet_ref.train.ema import ema_score
from bitnet_ref.train.rollback import roll_back
from bitnet_ref.train.summary import finish

pytest.importorskip("numba_cuda")
from bitnet_ref.kernels.numba_cuda import memory

GIVEN = {"steps": 3, "batch": 1, "ema": 0.9, "eval_every": 3, "eval_windows": 1, "save_every": 1,
         "log_every": 1, "keep": 3, "warmup": 1, "val_fraction": 0.01, "d_model": 8, "n_layers": 1,
         "n_heads": 2, "n_kv_heads": 1, "d_ff": 12, "context": 8}


@pytest.fixture(autouse=True, scope="module")
def _interpreter():
    patch = pytest.MonkeyPatch()
    patch.setenv("BITNET_REF_CUDA", "interpreter")
    yield
    patch.undo()


@cache
def whole(backend):
    """A finished run and the folder of its data."""
    return tiny.train(tiny.folder() / f"device-{backend}", backend=backend, **GIVEN)


def test_a_run_is_that_of_the_reference(tol):
    """Losses, norms, rates, validation and the measures of every layer; parameters, moments and average."""
    ours, want = whole("cuda"), whole("numpy")
    assert type(ours.model.params.flat) is memory.Array
    kinds = ("step", "eval", "layers")
    for kind in kinds:
        for a, b in zip(tiny.lines(ours.folder, kind), tiny.lines(want.folder, kind), strict=True):
            assert_near(a, b)
    for a, b in zip(checkpoint._parts(ours), checkpoint._parts(want), strict=True):
        got, held = a.fetched().flat, b.flat
        assert np.abs(got - held).max() <= 1e-5 * np.abs(held).max()


def assert_near(a, b):
    """Dictionaries of numbers, of dictionaries."""
    assert a.keys() == b.keys()
    for name, value in b.items():
        if isinstance(value, dict):
            assert_near(a[name], value)
        elif isinstance(value, float):
            assert a[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        else:
            assert a[name] == value


def test_a_checkpoint_holds_what_the_device_has():
    run = whole("cuda")
    newest = files.latest(run.folder)
    state = files.read_state(newest)
    assert state["step"] == run.step == 3
    tensors = files.read_tensors(newest, state, [], checkpoint._prefixes(run.cfg))
    for prefix, part in zip(checkpoint._prefixes(run.cfg), checkpoint._parts(run), strict=True):
        held = memory.device().read(part.flat)
        assert held.any()
        stored = np.concatenate([tensors[prefix + s.name].reshape(-1) for s in part.specs])
        np.testing.assert_array_equal(stored, held, err_msg=prefix)


def test_a_resumed_run_is_the_same_run_bit_for_bit(tmp_path):
    run = whole("cuda")
    again = tiny.copy(run.folder, tmp_path / "run")
    shutil.rmtree(files.latest(again))
    resumed = tiny.resume(again)
    assert resumed.step == 3
    tiny.assert_same_runs(resumed, run)


def test_a_run_may_go_on_elsewhere(tmp_path):
    """Begun on the device, ended by the reference: the checkpoint is no different."""
    again = tiny.copy(whole("cuda").folder, tmp_path / "run")
    shutil.rmtree(files.latest(again))
    resumed = tiny.resume(again, backend="numpy")
    want = whole("cuda").model.params.fetched().flat
    assert np.abs(resumed.model.params.flat - want).max() <= 1e-5 * np.abs(want).max()


def test_scores_are_of_what_the_device_has_now(tmp_path):
    """After a change of the parameters there: the model's, the average's, and that of what is fetched."""
    run, _ = tiny.begin(tmp_path / "run", backend="cuda", **{**GIVEN, "ema": 0.5})
    ops, params, tokens = run.model.plan.ops, run.model.params, np.arange(8)[None]
    for factor in (1.0, 3.0):
        ops.scale_(ops.part(params.flat, 0, (300 * 8,)), factor)           # the embedding, which is the head
        run.model.requantise()
        _, loss = run.model(tokens, tokens)
        host = load("numpy")
        want = type(run.model)(run.model.cfg, run.model.weights.fetched(ops), host)(tokens, tokens)[1]
        assert loss == pytest.approx(want, rel=1e-5)
        assert run.model.fetched()(tokens, tokens)[1] == pytest.approx(want, rel=1e-5)
    loop.average_(run.ema, params, 1, 0.5)                 # the first average is the parameters
    np.testing.assert_allclose(run.ema.fetched().flat, params.fetched().flat, rtol=1e-6)
    run.lock.release()


def test_a_rollback_changes_what_the_device_has(tmp_path):
    """A weight turns into another there, and goes with the rest back to what the checkpoint holds."""
    run, _ = start.resume(str(tiny.copy(whole("cuda").folder, tmp_path / "run")), {})
    before = run.model.params.fetched().flat
    inject.flip_(replace(run, cfg=replace(run.cfg, inject=f"flip@{run.cursor - 1}")))
    changed = before.view(np.uint32) ^ run.model.params.fetched().flat.view(np.uint32)
    assert changed[changed != 0].tolist() == [inject.EXPONENT]
    run.guard.since = 3
    assert roll_back(run) == 2
    newest = files.latest(run.folder)
    tensors = files.read_tensors(newest, files.read_state(newest), [], checkpoint._prefixes(run.cfg))
    for prefix, part in zip(checkpoint._prefixes(run.cfg), checkpoint._parts(run), strict=True):
        for name, held in part.fetched().view.items():
            np.testing.assert_array_equal(held, tensors[prefix + name])
    name = "layers.0.attn.wq"
    w_q, _ = map(run.model.plan.ops.fetch, run.model.weights[name])
    np.testing.assert_array_equal(w_q, absmean_ternary(tensors[files.PARAM + name])[0])
    run.lock.release()


@pytest.mark.slow
def test_a_batch_without_a_number_is_skipped_as_elsewhere(tmp_path):
    runs = [tiny.train(tmp_path / backend, backend=backend, **{**GIVEN, "inject": "nan@1"})
            for backend in ("cuda", "numpy")]
    events = [[(line["what"], line["why"]) for line in log.read(run.folder, "event")] for run in runs]
    assert events[0] == events[1]
    assert [what for what, _ in events[0]] == ["skip"]
    ours, want = (run.model.params.fetched().flat for run in runs)
    assert np.abs(ours - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.slow
def test_the_summary_is_of_the_model_that_was_trained(tmp_path):
    """The final score, the average's, and a sample; as the reference has them."""
    summaries = []
    for backend in ("cuda", "numpy"):
        run, data = tiny.begin(tmp_path / backend, backend=backend, **{**GIVEN, "steps": 1})
        loop.train(run, data)
        summaries.append(finish(run, data))
        assert ema_score(run, data).loss == summaries[-1]["averaged weights"]["validation loss"]
    ours, want = summaries
    for name in ("validation loss", "averaged weights"):
        assert_near({name: ours[name]}, {name: want[name]})
    assert Path(ours["pictures"][0]).is_file()
    assert "interpreter" in ours["machine"]["device"]


@pytest.mark.slow
def test_working_trits_that_lag_behind_survive_a_resume(tmp_path):
    given = {**GIVEN, "steps": 4, "requantize_every": 3, "accumulate": 3}
    run = tiny.train(tmp_path / "whole", backend="cuda", **given)
    again = tiny.copy(run.folder, tmp_path / "again")
    shutil.rmtree(files.latest(again))
    tiny.assert_same_runs(tiny.resume(again), run)
