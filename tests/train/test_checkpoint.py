"""train/checkpoint: what a restored run holds, and what is refused because it would not be the same run."""

import hashlib
import json

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from tiny import own_cache  # noqa: F401

from bitnet_ref.formats.checkpoint import STATE, TENSORS, checkpoints, latest, read_state
from bitnet_ref.model.params import Params
from bitnet_ref.train import start
from bitnet_ref.train.checkpoint import refuse_changes, save, train_config


@pytest.fixture
def run(tmp_path):
    return tiny.copy(tiny.trained(), tmp_path / "run")


def edit(run, **values):
    """Change the state of the newest checkpoint; None removes a key. The checksum of the tensors stays."""
    path = latest(run)
    state = json.loads((path / STATE).read_text(encoding="utf-8")) | values
    tiny.put_state(path, {k: v for k, v in state.items() if v is not ...})


def retouch(run, **tensors):
    """Other tensors in the newest checkpoint, with their right checksum."""
    path = latest(run)
    save_file({**load_file(path / TENSORS), **tensors}, path / TENSORS)
    edit(run, sha256=hashlib.sha256((path / TENSORS).read_bytes()).hexdigest())


# --- what is stored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"linear": "full"}, {"requantize_every": 7, "head": "ternary"}],
                         ids=str)
def test_a_restored_run_is_the_run_that_was_saved(given, tmp_path):
    saved = tiny.train(tmp_path / "run", steps=6, **given)
    save(saved)                              # with its last validation
    restored, _ = start.resume(str(tmp_path / "run"), {})
    assert tiny.state(restored) == tiny.state(saved)
    assert restored.data == saved.data
    assert (restored.cfg, restored.model.cfg) == (saved.cfg, saved.model.cfg)


def test_moments_are_neither_swapped_nor_shared(run):
    restored, _ = start.resume(str(run), {})
    first, second = restored.adam
    assert np.any(first.flat < 0)
    assert np.all(second.flat >= 0)
    assert np.any(second.flat > 0)
    arrays = [restored.model.params.flat, first.flat, second.flat, restored.grads.flat]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


def test_the_state_is_json_that_a_person_reads(run):
    state = read_state(latest(run))
    model, how = tiny.configs()
    assert state["model"] == {**model.__dict__}
    assert state["train"] == {**how.__dict__}
    assert (state["step"], state["cursor"], state["stale"]) == (20, 20, 0)
    assert state["best"] == pytest.approx(
        min(line["loss"] for line in tiny.lines(run, "eval") if line["step"] < 20))
    assert {k: len(state[k]) for k in ("tokenizer", "training tokens", "validation tokens", "sha256")} == {
        "tokenizer": 64, "training tokens": 64, "validation tokens": 64, "sha256": 64}


def test_a_run_without_a_validation_yet_has_no_best(tmp_path):
    run, _ = tiny.begin(tmp_path / "run")
    save(run)
    assert read_state(latest(run.folder))["best"] is None
    assert start.resume(str(run.folder), {})[0].best == float("inf")


def test_what_cannot_be_removed_is_no_reason_to_stop(tmp_path, monkeypatch):
    run, _ = tiny.begin(tmp_path / "run", keep=1)
    save(run)
    run.step = 1

    def refuse(checkpoint):
        raise PermissionError("in use")

    monkeypatch.setattr("bitnet_ref.formats.checkpoint.remove", refuse)
    save(run)
    assert len(checkpoints(run.folder)) == 2


# --- what is refused ---------------------------------------------------------------------------------------


def test_typed_fields_are_compared_by_name():
    model, how = tiny.configs()
    state = {"model": model.__dict__, "train": how.__dict__}
    assert refuse_changes(state, {}) is None
    assert refuse_changes(state, {"d_model": 32, "keep": 77, "backend": "other"}) is None
    with tiny.refusal("a resumed run must keep its config", "d_model: 32 -> 64", "lr: 0.01 -> 1"):
        refuse_changes(state, {"d_model": 64, "lr": 1, "keep": 77})


@pytest.mark.parametrize("name", ["step", "cursor", "stale", "seen"])
@pytest.mark.parametrize("value", [..., "7", 1.5])
def test_a_state_without_its_counters_is_refused(name, value, run):
    edit(run, **{name: value})
    with tiny.refusal(f"must hold the {name}", str(latest(run) / STATE)):
        start.resume(str(run), {})


@pytest.mark.parametrize("name", ["step", "cursor", "stale"])
@pytest.mark.parametrize("value", [-5, 10**30, True, None])
def test_a_counter_out_of_range_is_refused(name, value, run):
    edit(run, **{name: value})
    with tiny.refusal(f"must hold the {name} of a run, an integer of 0..", repr(value)):
        start.resume(str(run), {})


def test_a_step_after_the_last_is_refused(run):
    edit(run, step=21)
    with tiny.refusal("must hold the step of a run, an integer of 0..20", "got 21"):
        start.resume(str(run), {})


@pytest.mark.parametrize(("name", "value"), [
    ("best", "x"), ("best", True), ("best", [1]), ("best", float("nan")), ("best", float("inf")),
    ("best", 10**400), ("seen", [1]), ("seen", [["a"]]), ("seen", {}), ("seen", None)])
def test_a_best_loss_or_seen_matrices_of_another_kind_are_refused(name, value, run):
    edit(run, **{name: value})
    with tiny.refusal(f"must hold the {name}", str(latest(run) / STATE)):
        start.resume(str(run), {})


@pytest.mark.parametrize("value", [np.ones((2, 2), np.int8), np.ones((32, 32), np.float32)])
def test_seen_trits_of_another_shape_or_dtype_are_refused(value, run):
    retouch(run, **{"seen.layers.0.attn.wq": value})
    with tiny.refusal("seen.layers.0.attn.wq must be int8 (32, 32)", f"{value.dtype} {value.shape}"):
        start.resume(str(run), {})


def test_seen_trits_of_a_tensor_that_has_none_are_refused(run):
    retouch(run, **{"seen.final_norm": np.ones(32, np.int8)})
    edit(run, seen=["final_norm"])
    with tiny.refusal("seen.final_norm must be int8"):
        start.resume(str(run), {})


@pytest.mark.parametrize(("name", "value"), [("working.head", np.ones(3, np.int8)),
                                             ("working_scale.head", np.ones(3, np.float32))])
def test_kept_trits_of_another_shape_are_refused(name, value, tmp_path):
    tiny.train(tmp_path / "run", steps=6, requantize_every=7, head="ternary")
    retouch(tmp_path / "run", **{name: value})
    with tiny.refusal(f"{name} must be", "(3,)"):
        start.resume(str(tmp_path / "run"), {})


@pytest.mark.parametrize("sizes", [{"n_layers": 10**9}, {"d_ff": 10**9}, {"d_model": 8 * 10**9}], ids=str)
def test_sizes_that_only_the_config_claims_are_refused_before_a_run_is_made(sizes, run, monkeypatch):
    edit(run, model={**read_state(latest(run))["model"], **sizes})
    monkeypatch.setattr(Params, "__init__", lambda *_: pytest.fail("allocated"))
    with tiny.refusal("must "):
        start.resume(str(run), {})


@pytest.mark.parametrize(("train", "words"), [
    (..., ["[checkpoint.train] must be a table", "None"]), (None, ["[checkpoint.train] must be a table"]),
    ([], ["[checkpoint.train] must be a table", "got []"]),
    ({"lr": 1.0, "learning_rate": 2.0}, ["a name in [checkpoint.train]", "learning_rate", "release"]),
    ({"steps": None}, ["checkpoint.train.steps must be int", "got None"]),
    ({"steps": True}, ["checkpoint.train.steps must be int", "got True"]),
    ({"steps": 10**30}, ["checkpoint.train.steps must be below 2^64"]),
    ({"lr": 10**400}, ["checkpoint.train.lr must be below 2^64"]),
    ({"corpus": 5}, ["checkpoint.train.corpus must be str", "got 5"]),
    ({"lr": "1"}, ["checkpoint.train.lr must be float", "got '1'"])], ids=str)
def test_a_train_config_with_other_fields_or_types_is_refused_by_name(train, words, run):
    edit(run, train=train)
    with tiny.refusal(*words):
        start.resume(str(run), {"lr": 1e-2})


def test_a_train_config_with_a_bad_value_is_refused(run):
    edit(run, train={**read_state(latest(run))["train"], "steps": -1})
    with tiny.refusal("steps must be greater than 0", "-1"):
        start.resume(str(run), {})


def test_a_train_config_with_fewer_fields_takes_the_defaults():
    """A run of an older release, before a field was added."""
    assert train_config({"train": {"lr": 0.5}}).lr == 0.5


@pytest.mark.parametrize("name", ["tokenizer", "training tokens", "validation tokens"])
def test_other_data_are_refused_by_name(name, run):
    edit(run, **{name: "0" * 64})
    with tiny.refusal("a resumed run must see the same data", f"got other {name}", "put "):
        start.resume(str(run), {})


def test_trits_missing_from_the_file_are_refused(run):
    edit(run, seen=["layers.0.attn.wq", "layers.7.attn.wq"])
    with tiny.refusal("must hold every tensor", "seen.layers.7.attn.wq"):
        start.resume(str(run), {})
