"""train: one seed gives one run, and a run that stopped and went on equals one that did not, with ==

Compared are parameters, both moments, the trits in use, the counters, the early-stopping state and every
logged value but the seconds. Each case stops where its state is hardest to restore.
"""

import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.config import TrainConfig
from bitnet_ref.data.batches import windows
from bitnet_ref.formats.checkpoint import checkpoints, latest, read_state
from bitnet_ref.kernels.numba_cpu import bf16
from bitnet_ref.train import log, loop, start

# name -> (fields of the configs, step of Ctrl-C). With log_every = 4, steps 9 and 10 are no multiple of it,
# so the flips of the next line compare with trits that only the checkpoint knows.
CASES = {
    "ternary": ({"log_every": 4}, 10),
    "full": ({"linear": "full"}, 10),
    "between two requantisations": ({"requantize_every": 3, "log_every": 4}, 10),
    "accumulated": ({"accumulate": 2}, 10),
    "before the switch": ({"schedule": "two-stage", "log_every": 4}, 9),
    "in the warm-up": ({"warmup": 15}, 3),
    "documents packed": ({"packing": "documents"}, 10),
    "chains as first tokens": ({"compress": "first"}, 10),
    "super-tokens": ({"compress": "super", "packing": "documents", "log_every": 4}, 9),
    "cosine": ({"schedule": "cosine"}, 11),
    "linear, decay for a while": ({"schedule": "linear", "decay_until": 0.6}, 11),
    "an average": ({"ema": 0.8}, 7),
    "gains and a ternary head": ({"norm": "inner", "inner_gain": True, "head": "ternary",
                                  "requantize_every": 2, "tied_embeddings": False}, 7),
    "first step": ({}, 1),
    "last step but one": ({}, 19),
    "a logged step": ({"log_every": 5}, 10),
}
each_case = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("given", [{}, {"linear": "full"}, {"norm": "pre", "glu": "relu2", "accumulate": 2}],
                         ids=str)
def test_the_same_seed_gives_the_same_run(given, tmp_path):
    a, b = (tiny.train(tmp_path / name, **given) for name in "ab")
    tiny.assert_same_runs(a, b)
    assert len(tiny.lines(tmp_path / "a")) == 20 + 10 + 5       # steps, layers, validations


def test_another_seed_gives_another_run(tmp_path):
    a, b = (tiny.train(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert np.mean(a.model.params.flat == b.model.params.flat) < 0.01
    losses = [[line["loss"] for line in tiny.lines(run.folder, "step")] for run in (a, b)]
    assert all(x != y for x, y in zip(*losses))


@each_case
def test_a_run_in_two_parts_equals_one_in_one_part(name, tmp_path, monkeypatch):
    given, stop = CASES[name]
    whole = tiny.train(tmp_path / "whole", **given)
    interrupted = tiny.interrupt(tmp_path / "parts", stop, monkeypatch, **given)
    assert (interrupted.step, latest(tmp_path / "parts").name) == (stop, f"step-{stop:08d}")
    tiny.assert_same_runs(tiny.resume(tmp_path / "parts"), whole)


@pytest.mark.parametrize("stop", [5, 6])
def test_a_run_stopped_at_every_turn_equals_one_in_one_part(stop, tmp_path, monkeypatch):
    """At 5 a validation is due, which the resumed run makes once, not twice."""
    tiny.interrupt(tmp_path / "parts", 2, monkeypatch)
    for step in (stop, 10, 13):
        update = loop.update_

        def interrupted(*args, step=step, update=update):
            update(*args)
            if args[3] == step:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "update_", interrupted)
            with pytest.raises(loop.Interrupted):
                tiny.resume(tmp_path / "parts")
    tiny.assert_same_runs(tiny.resume(tmp_path / "parts"), tiny.train(tmp_path / "whole"))


def test_the_order_of_batches_goes_on_across_an_epoch(tmp_path, monkeypatch):
    """A short text: 20 steps of 2 micro-batches are more than two epochs, step 9 ends inside the second."""
    given = {"corpus": str(tiny.corpus(600)), "batch": 10, "accumulate": 2, "context": 48, "log_every": 4}
    whole, data = tiny.begin(tmp_path / "whole", **given)
    per_epoch = windows(len(data.train.tokens), 48) / (10 * 2)
    assert 9 / 2 < per_epoch < 9 - 1
    assert per_epoch % 1
    loop.train(whole, data)
    tiny.interrupt(tmp_path / "parts", 9, monkeypatch, **given)
    tiny.assert_same_runs(tiny.resume(tmp_path / "parts"), whole)


def test_epochs_become_steps(tmp_path):
    run, data = tiny.begin(tmp_path / "run", epochs=1.5, corpus=str(tiny.corpus(600)))
    n = windows(len(data.train.tokens), 32)
    assert run.cfg.steps == -(-3 * n // (2 * 4))


def test_the_cursor_alone_drives_the_data_and_the_step_the_schedule(tmp_path):
    """They count apart: a run whose cursor is ahead sees later batches at the same rate."""
    run, data = tiny.begin(tmp_path / "ahead", steps=3)
    run.cursor = 7
    loop.train(run, data)
    ahead = tiny.lines(tmp_path / "ahead", "step")
    plain = tiny.lines(tiny.train(tmp_path / "plain", steps=3).folder, "step")
    assert [line["lr"] for line in ahead] == [line["lr"] for line in plain]
    assert all(a["loss"] != b["loss"] for a, b in zip(ahead, plain))
    assert run.cursor == 10


# --- early stopping ----------------------------------------------------------------------------------------

HOPELESS = {"lr": 1e-12, "weight_decay": 0.0, "patience": 3, "eval_every": 2, "log_every": 4}


def test_the_run_ends_after_so_many_validations_without_improvement(tmp_path, monkeypatch):
    """Losses by script: the best at step 2, then three that are no better."""
    losses = iter([5.0, 4.0, 4.5, 4.0, 4.1, 1.0])
    real = loop.score
    monkeypatch.setattr(loop, "score", lambda *args, **more: real(*args, **more)._replace(
        nats=next(losses), tokens=1))
    run = tiny.train(tmp_path / "run", **HOPELESS)
    assert (run.step, run.stale, run.best) == (8, 3, 4.0)
    state = read_state(latest(run.folder))
    assert (state["step"], state["stale"], state["best"]) == (8, 3, 4.0)
    assert [line["loss"] for line in tiny.lines(run.folder, "eval")] == [5.0, 4.0, 4.5, 4.0, 4.1]


def test_the_patience_spent_is_restored(tmp_path, monkeypatch):
    """Stopped after one validation without improvement, it waits for the rest, not for all again."""
    whole = tiny.train(tmp_path / "whole", **HOPELESS)
    assert 0 < whole.step < 20
    for stop in range(1, whole.step):
        path = tmp_path / str(stop)
        tiny.interrupt(path, stop, monkeypatch, **HOPELESS)
        tiny.assert_same_runs(tiny.resume(path), whole)


def test_resuming_a_run_that_stopped_early_stops_again(tmp_path):
    whole = tiny.train(tmp_path / "whole", **HOPELESS)
    before = tiny.lines(whole.folder)
    again = tiny.resume(whole.folder)
    assert again.step == whole.step
    assert tiny.lines(whole.folder) == before


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    whole = tiny.train(tmp_path / "whole")
    before = tiny.state(whole), tiny.lines(whole.folder)
    again = tiny.resume(whole.folder)
    assert (tiny.state(again), tiny.lines(whole.folder)) == before


# --- what may be given anew --------------------------------------------------------------------------------

OTHER = {"corpus": None, "val": None, "save_every": 7, "keep": 1, "log_every": 3, "threads": 1}


def test_free_fields_are_those_that_cannot_change_a_parameter():
    """But for how it is computed, which changes digits: that is free so that a run can go on elsewhere."""
    free = {name for name, f in TrainConfig.__dataclass_fields__.items() if f.metadata["free"]}
    assert free == {*OTHER, "backend", "backward", "tensorboard", "baseline"}


@pytest.mark.skipif(not bf16.available(), reason=f"this processor has no {bf16.FEATURE}")
def test_a_run_in_bf16_may_go_on_in_float32(tmp_path, monkeypatch):
    tiny.interrupt(tmp_path / "run", 10, monkeypatch, backward="bf16")
    run = tiny.resume(tmp_path / "run", backward="float32")
    assert run.step == tiny.begin_at_end(tiny.trained()).step


def test_a_run_may_go_on_with_another_backend(tmp_path, monkeypatch):
    tiny.interrupt(tmp_path / "run", 10, monkeypatch)
    run = tiny.resume(tmp_path / "run", backend="numpy")
    assert run.step == tiny.begin_at_end(tiny.trained()).step


@pytest.mark.parametrize("name", OTHER)
def test_a_free_field_changes_no_parameter(name, tmp_path, monkeypatch):
    value = OTHER[name]
    if name == "corpus":                     # the same text elsewhere
        value = str(tmp_path / "moved.txt")
        (tmp_path / "moved.txt").write_bytes(tiny.corpus().read_bytes())
    tiny.interrupt(tmp_path / "run", 10, monkeypatch)
    run = tiny.resume(tmp_path / "run", **{name: value})
    assert getattr(run.cfg, name) == value
    whole = tiny.trained()
    np.testing.assert_array_equal(run.model.params.flat, tiny.begin_at_end(whole).model.params.flat)
    assert tiny.lines(run.folder, "step") == tiny.lines(whole, "step")


@pytest.mark.parametrize(("typed", "words"), [
    ({"d_model": 128}, ["d_model: 32 -> 128"]), ({"lr": 1.0}, ["lr: 0.01 -> 1.0"]),
    ({"seed": 1, "norm": "pre", "keep": 9}, ["seed: 0 -> 1", "norm: sub -> pre"]),
    ({"steps": 40}, ["steps: 20 -> 40"]), ({"patience": 3}, ["patience: None -> 3"]),
])
def test_any_other_field_is_refused_by_name_with_both_values(typed, words):
    with tiny.refusal("a resumed run must keep its config", *words) as error:
        start.resume(str(tiny.trained()), typed)
    assert "keep:" not in str(error.value)


def test_the_same_value_typed_again_is_accepted(tmp_path):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    assert start.resume(str(run), {"d_model": 32, "lr": 1e-2, "linear": "ternary"})[0].step == 20


@pytest.mark.parametrize("change", ["other text", "one letter more", "gone"])
def test_another_corpus_is_refused(change, tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_bytes(tiny.corpus().read_bytes())
    tiny.train(tmp_path / "run", corpus=str(corpus), steps=2)
    if change == "gone":
        corpus.unlink()
        with tiny.refusal("corpus", "text.txt"):
            start.resume(str(tmp_path / "run"), {})
        return
    corpus.write_text(tiny.text(seed=9) if change == "other text" else tiny.text() + "Z", encoding="utf-8")
    with tiny.refusal("a resumed run must see the same data", "got other", "text.txt changed since the run"):
        start.resume(str(tmp_path / "run"), {})


def test_a_run_goes_on_from_its_newest_checkpoint_only(tmp_path):
    """From an older one, the log and the newer checkpoints would tell of two runs."""
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    first, *_, last = checkpoints(run)
    with tiny.refusal("newest checkpoint", first.name, last.name):
        start.resume(str(first), {})
    assert start.resume(str(last), {})[0].step == 20


# --- a real Ctrl-C -----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send Ctrl-C to another alone there")
def test_control_c_saves_says_how_to_go_on_and_loses_nothing(tmp_path):
    given = {"steps": 200, "batch": 2, "eval_every": 50, "save_every": 60, "log_every": 7}
    process = subprocess.Popen(
        [sys.executable, "-m", "bitnet_ref.train", "--output", "run", *tiny.flags(**given)],
        cwd=tmp_path, env=tiny.environment(), encoding="utf-8", stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    tiny.wait_for(lambda: len(log.read(tmp_path / "run", "step")) >= 3, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    step = read_state(latest(tmp_path / "run"))["step"]
    assert 3 <= step < 200
    assert f"interrupted at step {step}; saved; go on with:" in stderr
    again = stderr.split("python -m bitnet_ref.")[1].split()
    assert again == ["train", "--resume", "run"]
    result = tiny.command(*again, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    whole = tiny.train(tmp_path / "whole", **given)
    tiny.assert_same_runs(tiny.resume(tmp_path / "run"), whole)
