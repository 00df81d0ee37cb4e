"""train/log: what stands in log.jsonl is what happened, and a crash costs at most the line being written."""

import builtins
import errno
import json
import os

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.data.batches import batch
from bitnet_ref.train import log, loop
from bitnet_ref.train.schedule import lr_at, wd_at


def step_line(run, step, **values):
    """A line such as the pictures need."""
    log.append(run, "step", step, step, **{"loss": 1.0, "decay": 0.1, **values})


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- the content -------------------------------------------------------------------------------------------


def test_each_step_has_its_line_with_the_rates_of_the_schedule():
    steps = log.read(tiny.trained(), "step")
    _, cfg = tiny.configs()
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert [line["lr"] for line in steps] == [lr_at(s, cfg) for s in range(20)]
    assert [line["decay"] for line in steps] == [wd_at(s, cfg) for s in range(20)] == [0.1] * 10 + [0.0] * 10
    assert {line["tokens"] for line in steps} == {4 * 32}
    assert all(line["seconds"] > 0 for line in steps)
    assert sorted({line["step"] for line in log.read(tiny.trained(), "eval")}) == [0, 5, 10, 15, 20]


def test_the_first_loss_and_norm_are_those_of_the_first_batch(tmp_path):
    run, data = tiny.begin(tmp_path / "run", accumulate=2)
    halves = [run.grads, run.grads.zeros_like()]
    loss = sum(run.model.loss_and_grads([batch(data.train.tokens, m, 4, 32, 0)], half, 1 / 2)
               for m, half in enumerate(halves))
    norm = np.linalg.norm((halves[0].flat + halves[1].flat).astype(np.float64))
    loop.train(run, data)
    first = log.read(run.folder, "step")[0]
    assert first["loss"] == loss
    assert first["norm"] == pytest.approx(norm, rel=1e-12)
    assert first["tokens"] == 2 * 4 * 32


def test_the_loss_falls():
    losses = [line["loss"] for line in log.read(tiny.trained(), "step")]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 1


def test_layers_have_a_line_every_log_every_steps():
    lines = log.read(tiny.trained(), "layers")
    assert [line["step"] for line in lines] == list(range(2, 21, 2))
    run = tiny.begin_at_end(tiny.trained())
    for line in lines:
        assert set(line["layers"]) == set(run.model.params.view)
        for name, measures in line["layers"].items():
            spec = next(s for s in run.model.params.specs if s.name == name)
            assert (set(measures) == {"grad_norm", "grad_to_weight"}) == (not spec.ternary)
            assert measures["grad_norm"] >= 0
            if spec.ternary:
                assert 0 <= measures["near"] <= 1
                assert measures["minus"] + measures["zero"] + measures["plus"] == pytest.approx(1)
                assert 0 <= measures["flipped"] <= 1


def test_the_last_line_describes_the_last_weights():
    run = tiny.begin_at_end(tiny.trained())
    last = log.read(tiny.trained(), "layers")[-1]["layers"]
    for name, (w_q, w_scale) in run.model.weights.trits().items():
        assert last[name]["plus"] == np.mean(w_q == 1)
        assert last[name]["scale"] == float(w_scale)
        distance = np.abs(np.abs(run.model.params[name].astype(np.float64)) / w_scale - 0.5)
        assert last[name]["distance"] == pytest.approx(np.mean(distance), rel=1e-5)
    for name, w in run.model.params.view.items():
        ratio = last[name]["grad_norm"] / np.linalg.norm(w.astype(np.float64))
        assert last[name]["grad_to_weight"] == pytest.approx(ratio, rel=1e-12)


def test_the_gradient_norms_by_tensor_add_up_to_the_norm_after_clipping(tmp_path):
    run = tiny.train(tmp_path / "run", max_norm=0.5, log_every=1)
    for step, layers in zip(log.read(run.folder, "step"), log.read(run.folder, "layers")):
        norms = [m["grad_norm"] for m in layers["layers"].values()]
        assert np.linalg.norm(norms) == pytest.approx(min(0.5, step["norm"]), rel=1e-5)


def test_the_twin_has_the_measures_of_gradients_only(tmp_path):
    run = tiny.train(tmp_path / "run", linear="full", steps=4)
    assert {key for line in log.read(run.folder, "layers") for m in line["layers"].values() for key in m} == {
        "grad_norm", "grad_to_weight"}


def test_flips_are_counted_from_the_line_before(tmp_path):
    """By hand: the trits of two lines, from a run stopped at each."""
    run, data = tiny.begin(tmp_path / "run", log_every=1)
    trits = []
    real = loop.tell

    def tell(run, *args):
        trits.append({name: t.w_q.copy() for name, t in run.model.weights.trits().items()})
        real(run, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "tell", tell)
        loop.train(run, data)
    lines = log.read(run.folder, "layers")
    for n, line in enumerate(lines):
        for name in trits[0]:
            want = np.mean(trits[n][name] != trits[n - 1][name]) if n else 0.0
            assert line["layers"][name]["flipped"] == want
    assert sum(m.get("flipped", 0) for m in lines[5]["layers"].values()) > 0


# --- the file ----------------------------------------------------------------------------------------------


def test_appending_and_reading_are_inverse(tmp_path):
    assert log.read(tmp_path) == []
    step_line(tmp_path, 1, loss=0.1, note="é")
    log.append(tmp_path, "eval", 1, 1, loss=1 / 3)
    assert log.read(tmp_path) == [{"kind": "step", "step": 1, "cursor": 1, "loss": 0.1, "decay": 0.1,
                                   "note": "é"},
                                  {"kind": "eval", "step": 1, "cursor": 1, "loss": 1 / 3}]
    assert log.read(tmp_path, "eval") == [{"kind": "eval", "step": 1, "cursor": 1, "loss": 1 / 3}]
    assert (tmp_path / log.LOG).read_bytes().count(b"\n") == 2


def test_a_line_cut_short_by_a_crash_is_left_out_and_cut_off(tmp_path):
    for step in (1, 2, 3):
        step_line(tmp_path, step)
    whole = (tmp_path / log.LOG).read_bytes()
    for size in range(len(whole) * 2 // 3 + 1, len(whole) - 1):
        (tmp_path / log.LOG).write_bytes(whole[:size])
        assert [line["step"] for line in log.read(tmp_path)] == [1, 2]
    log.cut_after(tmp_path, 9, 9)
    step_line(tmp_path, 3)
    assert (tmp_path / log.LOG).read_bytes() == whole


WHOLE = b'{"kind": "eval", "step": 1, "cursor": 1, "loss": 1.0}'
DAMAGE = {
    "no JSON": b'{"kind": "eval", "st',
    "empty": b"",
    "zeros": b"\0\0\0",
    "no UTF-8": b'{"kind": "eval\xff", "step": 1, "loss": 1.0}',
    "too deep": b"[" * 100_000,
    "a number": b"5",
    "null": b"null",
    "no kind": b'{"step": 1, "loss": 1.0}',
    "no step": b'{"kind": "eval", "loss": 1.0}',
    "a kind that is no name": b'{"kind": 1, "step": 1}',
    "a step that is true": b'{"kind": "eval", "step": true, "loss": 1.0}',
    "a step with a fraction": b'{"kind": "eval", "step": 1.5, "loss": 1.0}',
    "no loss": b'{"kind": "step", "step": 1, "decay": 0.0}',
    "no decay": b'{"kind": "step", "step": 1, "loss": 0.0}',
    "text for a loss": b'{"kind": "final", "step": 1, "loss": "1.0"}',
    "an infinite loss": b'{"kind": "eval", "step": 1, "loss": Infinity}',
    "an immense loss": b'{"kind": "eval", "step": 1, "loss": 1' + b"0" * 400 + b"}",
    "text for a rate": b'{"kind": "step", "step": 1, "loss": 0.0, "decay": 0.0, "lr": "high"}',
    "no layers": b'{"kind": "layers", "step": 1}',
    "layers without measures": b'{"kind": "layers", "step": 1, "layers": {"a": 1.0}}',
    "a measure that is text": b'{"kind": "layers", "step": 1, "layers": {"a": {"zero": "1"}}}',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_is_refused_by_its_number_and_nothing_is_cut(name, tmp_path):
    text = b"\n".join([WHOLE, DAMAGE[name], WHOLE, b""])
    (tmp_path / log.LOG).write_bytes(text)
    for use in (log.read, lambda run: log.cut_after(run, 0, 0)):
        with tiny.refusal("line 2 of", str(tmp_path / log.LOG), "correct or delete that line"):
            use(tmp_path)
    assert (tmp_path / log.LOG).read_bytes() == text
    assert [p.name for p in tmp_path.iterdir()] == [log.LOG]


@pytest.mark.parametrize("name", sorted(DAMAGE.keys() - {"no JSON", "empty", "zeros"}))
def test_a_last_line_that_no_crash_leaves_is_refused(name, tmp_path):
    (tmp_path / log.LOG).write_bytes(WHOLE + b"\n" + DAMAGE[name])
    with tiny.refusal("line 2 of"):
        log.read(tmp_path)


@pytest.mark.parametrize("name", ["no JSON", "empty", "zeros"])
def test_what_a_crash_leaves_is_left_out(name, tmp_path):
    (tmp_path / log.LOG).write_bytes(WHOLE + b"\n" + DAMAGE[name])
    assert log.read(tmp_path) == [json.loads(WHOLE)]


def test_a_last_line_that_lacks_only_its_end_is_read(tmp_path):
    (tmp_path / log.LOG).write_bytes(WHOLE)
    assert log.read(tmp_path) == [json.loads(WHOLE)]


def test_an_event_may_tell_of_what_is_not_finite(tmp_path):
    log.append(tmp_path, "event", 1, 2, what="skip", loss=float("inf"), norm=float("inf"))
    assert log.read(tmp_path, "event")[0]["norm"] == float("inf")


def test_a_loss_may_be_nan(tmp_path):
    step_line(tmp_path, 1, loss=float("nan"))
    assert np.isnan(log.read(tmp_path)[0]["loss"])


def test_a_folder_for_a_log_is_refused(tmp_path):
    (tmp_path / log.LOG).mkdir()
    with tiny.refusal("must be a readable file", str(tmp_path / log.LOG)):
        log.read(tmp_path)


def test_cutting_leaves_what_a_resumed_run_does_not_write_again(tmp_path):
    """A run resumed at step 2 validates step 2 again, for the checkpoint was written before."""
    for kind, step in (("eval", 0), ("step", 1), ("step", 2), ("layers", 2), ("eval", 2), ("step", 3)):
        log.append(tmp_path, kind, step, step, loss=1.0, decay=0.1, layers={})
    log.cut_after(tmp_path, 2, 0)
    assert [(line["kind"], line["step"]) for line in log.read(tmp_path)] == [
        ("eval", 0), ("step", 1), ("step", 2), ("layers", 2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [log.LOG]


def test_floats_keep_every_bit(tmp_path):
    value = float(np.nextafter(0.1, 1))
    step_line(tmp_path, 1, loss=value)
    log.cut_after(tmp_path, 1, 1)
    assert log.read(tmp_path)[0]["loss"] == value
    assert json.loads((tmp_path / log.LOG).read_text(encoding="utf-8"))["loss"] == value


# --- a full disk -------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_refusal_that_loses_no_line(tmp_path, monkeypatch):
    step_line(tmp_path, 1)
    before = (tmp_path / log.LOG).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", no_space)
        with tiny.refusal("the log must be writable", "No space left", str(tmp_path)):
            log.append(tmp_path, "step", 2, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)
        with tiny.refusal("the log must be writable", "No space left", str(tmp_path)):
            log.cut_after(tmp_path, 1, 1)
    assert (tmp_path / log.LOG).read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_device_without_room_is_refused(tmp_path):
    os.symlink("/dev/full", tmp_path / log.LOG)
    with tiny.refusal("the log must be writable", "No space left"):
        log.append(tmp_path, "step", 1, 1)
