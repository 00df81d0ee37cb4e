"""formats/checkpoint: a checkpoint is whole or absent, and a damaged one is refused by what is wrong."""

import builtins
import errno
import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from strategies import seeds
from tiny import own_cache  # noqa: F401

from bitnet_ref.checks import CheckError
from bitnet_ref.formats.checkpoint import (
    MARK,
    PARAM,
    STATE,
    TENSORS,
    checkpoints,
    fill,
    latest,
    model_config,
    named,
    read_params,
    read_state,
    read_tensors,
    remove,
    write_checkpoint,
)
from bitnet_ref.generate.language_model import load
from bitnet_ref.model.params import Params, param_specs

MODEL, _ = tiny.configs()
A = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.array([-1, 0, 1], np.int8)}
CONFIG = {"model": MODEL.__dict__}
FINAL = "param.final_norm"


@pytest.fixture
def run(tmp_path):
    return tiny.copy(tiny.trained(), tmp_path / "run")


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def edit_state(checkpoint, **values):
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8")) | values
    tiny.put_state(checkpoint, {k: v for k, v in state.items() if v is not ...})


def edit_tensors(checkpoint, change):
    """Other tensors with their right checksum: what a foreign tool would write."""
    tensors = load_file(checkpoint / TENSORS)
    change(tensors)
    save_file(tensors, checkpoint / TENSORS)
    edit_state(checkpoint, sha256=hashlib.sha256((checkpoint / TENSORS).read_bytes()).hexdigest())


def read_all(checkpoint):
    return read_params(checkpoint, read_state(checkpoint))


# --- writing and reading -----------------------------------------------------------------------------------


@given(seed=seeds, shape=st.lists(st.integers(1, 5), max_size=3),
       dtype=st.sampled_from([np.float32, np.float64, np.int8]))
def test_what_is_written_is_read(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    tensors = {"x": rng.normal(0, 50, shape).astype(dtype), "y": rng.normal(size=(3, 4)).astype(dtype).T}
    path = write_checkpoint(tiny.folder() / "written", seed % 10**8, tensors, {**CONFIG, "step": seed})
    state = read_state(path)
    assert (state["step"], state["model"]) == (seed, MODEL.__dict__)
    for name, t in read_tensors(path, state, ["x", "y"]).items():
        assert t.dtype == dtype
        np.testing.assert_array_equal(t, tensors[name])


def test_a_checkpoint_is_a_folder_of_three_files(tmp_path):
    path = write_checkpoint(tmp_path, 7, A, CONFIG)
    assert path == tmp_path / "step-00000007"
    assert sorted(p.name for p in path.iterdir()) == [MARK, STATE, TENSORS]
    assert (path / MARK).read_text() == hashlib.sha256((path / STATE).read_bytes()).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007"]
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    assert state["sha256"] == hashlib.sha256((path / TENSORS).read_bytes()).hexdigest()


def test_the_tensors_can_be_read_without_this_library():
    tensors = load_file(latest(tiny.trained()) / TENSORS)
    assert tensors["param.embedding"].shape == (300, 32)
    assert tensors["moment2.final_norm"].dtype == np.float32
    assert set(np.unique(tensors["seen.layers.0.ffn.w_down"])) == {-1, 0, 1}


def test_reading_gives_the_parameters_by_name():
    path = latest(tiny.trained())
    params, raw = read_all(path), load_file(path / TENSORS)
    assert list(named(PARAM, params)) == [PARAM + s.name for s in param_specs(MODEL)]
    for name, view in params.view.items():
        np.testing.assert_array_equal(view, raw[PARAM + name])


def test_checkpoints_are_in_order_and_the_last_is_the_latest(tmp_path):
    for step in (100, 9, 20):
        write_checkpoint(tmp_path, step, A, CONFIG)
    assert [p.name for p in checkpoints(tmp_path)] == [f"step-{n:08d}" for n in (9, 20, 100)]
    assert latest(tmp_path) == latest(str(tmp_path)) == tmp_path / "step-00000100"
    assert latest(tmp_path / "step-00000020") == tmp_path / "step-00000020"


def test_the_same_step_again_replaces_the_checkpoint(tmp_path):
    write_checkpoint(tmp_path, 3, A, CONFIG)
    path = write_checkpoint(tmp_path, 3, {"a": A["a"] + 1}, CONFIG)
    np.testing.assert_array_equal(read_tensors(path, read_state(path), ["a"])["a"], A["a"] + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_what_a_crash_left_behind_is_cleared_by_the_next_write(tmp_path):
    for name in (".step-00000003.partial", ".step-00000003.removed"):
        (tmp_path / name / "deep").mkdir(parents=True)
    write_checkpoint(tmp_path, 3, A, CONFIG)
    write_checkpoint(tmp_path, 3, A, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


# --- whole or absent ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


INSTANTS = [("os.fsync", n) for n in range(1, 6)] + [("pathlib.Path.rename", n) for n in (1, 2)] + [
    ("shutil.rmtree", n) for n in (1, 2, 3)]


@pytest.mark.parametrize(("call", "n"), INSTANTS)
@pytest.mark.parametrize("step", [1, 2], ids=["the same step", "the next step"])
def test_killed_at_any_instant_a_whole_checkpoint_is_there_and_no_other(call, n, step, tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 0, A, CONFIG)
    write_checkpoint(tmp_path, 1, A, CONFIG)
    module, _, name = call.rpartition(".")
    owner = {"os": os, "pathlib.Path": Path, "shutil": shutil}[module]
    real, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == n:
            if name == "rmtree" and Path(args[0]).exists():   # dies when the tensors are gone, DONE is not
                (Path(args[0]) / TENSORS).unlink()
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, killed)
    with suppress(Killed):
        write_checkpoint(tmp_path, step, {"a": A["a"] + 1}, CONFIG)
    monkeypatch.undo()
    found = checkpoints(tmp_path)
    assert found[0].name == "step-00000000"
    for path in found:
        read_tensors(path, read_state(path), ["a"])
    write_checkpoint(tmp_path, step, A, CONFIG)
    assert latest(tmp_path).name == f"step-{step:08d}"


def test_the_mark_is_the_last_file_and_all_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """What a power cut leaves, on a file system that keeps the order of syncs and nothing more."""
    seen = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(
        sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())))
    write_checkpoint(tmp_path, 1, A, CONFIG)
    partial = ".step-00000001.partial/"
    whole = [partial + name for name in (MARK, STATE, TENSORS)]
    assert seen[:4] == [whole[2:], whole[1:], whole, whole]
    assert seen[4:] == [[f"step-00000001/{name}" for name in (MARK, STATE, TENSORS)]]


def test_removal_is_one_step_for_whoever_looks(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path, 1, A, CONFIG)
    looked = []
    def look(path, **_):
        looked.append((Path(path).exists(), checkpoints(tmp_path)))

    monkeypatch.setattr(shutil, "rmtree", look)
    remove(path)
    assert looked == [(False, [path]), (True, [])]


@pytest.mark.parametrize("without", [MARK, "all"])
def test_a_folder_without_its_mark_is_no_checkpoint(without, tmp_path):
    path = write_checkpoint(tmp_path, 1, A, CONFIG)
    (tmp_path / ".step-00000002.partial").mkdir()
    (tmp_path / ".step-00000002.partial" / MARK).touch()
    for name in [MARK] if without == MARK else [MARK, STATE, TENSORS]:
        (path / name).unlink()
    assert checkpoints(tmp_path) == []
    with tiny.refusal("must hold a complete checkpoint", str(tmp_path)):
        latest(tmp_path)


@pytest.mark.parametrize("owner", [os, builtins], ids=["fsync", "open"])
def test_a_full_disk_is_a_refusal_that_leaves_what_was_there(owner, tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path, 1, A, CONFIG)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(owner, "fsync" if owner is os else "open", no_space)
        for step in (1, 2):
            with tiny.refusal("room for a checkpoint", "No space left", "earlier checkpoints are untouched"):
                write_checkpoint(tmp_path, step, A, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_a_file_where_the_run_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with tiny.refusal("the run folder must be writable", "Not a directory"):
        write_checkpoint(tmp_path / "file", 1, A, CONFIG)
    assert (tmp_path / "file").read_text() == "mine"


# --- damaged and foreign files -----------------------------------------------------------------------------


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "tensors missing": (lambda c: (c / TENSORS).unlink(), ["readable file", "No such file"]),
    "tensors empty": (lambda c: (c / TENSORS).write_bytes(b""), ["must have the SHA-256"]),
    "tensors cut": (lambda c: os.truncate(c / TENSORS, 5000), ["must have the SHA-256"]),
    "a byte flipped": (lambda c: flip(c / TENSORS, 20_000), ["must have the SHA-256"]),
    "the last byte flipped": (lambda c: flip(c / TENSORS, -1), ["must have the SHA-256"]),
    "state missing": (lambda c: (c / STATE).unlink(), ["readable file", "No such file", "rights"]),
    "state cut": (lambda c: os.truncate(c / STATE, 100), ["must have the SHA-256 in DONE"]),
    "state empty": (lambda c: os.truncate(c / STATE, 0), ["must have the SHA-256 in DONE"]),
    "a digit of state flipped": (lambda c: flip(c / STATE, (c / STATE).read_bytes().index(b"0.01") + 3),
                                 ["must have the SHA-256 in DONE"]),
    "mark missing": (lambda c: (c / MARK).unlink(), ["DONE", "No such file"]),
    "mark empty": (lambda c: os.truncate(c / MARK, 0), ["must hold its SHA-256", "an empty file"]),
    "mark cut": (lambda c: os.truncate(c / MARK, 63), ["must have the SHA-256 in DONE"]),
    "mark longer": (lambda c: (c / MARK).write_text("0" * 65), ["must have the SHA-256 in DONE"]),
    "state no JSON": (lambda c: tiny.put_state(c, "{"), ["must be readable JSON"]),
    "state too deep": (lambda c: tiny.put_state(c, "[" * 100_000), ["must be readable JSON"]),
    "state binary": (lambda c: tiny.put_state(c, b"\xff\xfe\x00"), ["must be readable JSON"]),
    "state of others": (lambda c: tiny.put_state(c, '{"model_type": "bert"}'),
                        ["must say format", "got None"]),
    "state a list": (lambda c: tiny.put_state(c, "[1]"), ["must say format", "got list"]),
    "a newer version": (lambda c: edit_state(c, version=3), ["must have version 2", "got 3", "release"]),
    "no model": (lambda c: edit_state(c, model=...), ["must hold a model config"]),
    "no checksum": (lambda c: edit_state(c, sha256=...), ["must have the SHA-256"]),
    "an unknown field": (lambda c: edit_state(c, model={**MODEL.__dict__, "experts": 8}),
                         ["a name in [checkpoint.model]", "'experts'", "release"]),
    "a bad value": (lambda c: edit_state(c, model={**MODEL.__dict__, "n_heads": 5}),
                    ["n_heads", "got 32 and 5"]),
    "a value of another type": (lambda c: edit_state(c, model={**MODEL.__dict__, "n_heads": "4"}),
                                ["checkpoint.model.n_heads must be int", "got '4'"]),
    "a float for a size": (lambda c: edit_state(c, model={**MODEL.__dict__, "d_model": 32.0}),
                           ["checkpoint.model.d_model must be int", "got 32.0"]),
    "more layers than tensors": (lambda c: edit_state(c, model={**MODEL.__dict__, "n_layers": 10**9}),
                                 ["must hold every tensor", "n_layers = 1000000000"]),
    "a width of terabytes": (lambda c: edit_state(c, model={**MODEL.__dict__, "d_ff": 10**12}),
                             ["param.layers.0.ffn.w_gate must be float32 (1000000000000, 32)", "(48, 32)"]),
    "a tensor missing": (lambda c: edit_tensors(c, lambda t: t.pop("param.layers.1.attn.wq")),
                         ["must hold every tensor", "param.layers.1.attn.wq"]),
    "another shape": (lambda c: edit_tensors(c, lambda t: t.update({FINAL: np.ones(31, np.float32)})),
                      ["param.final_norm must be float32 (32,)", "got float32 (31,)"]),
    "another dtype": (lambda c: edit_tensors(c, lambda t: t.update({FINAL: np.ones(32)})),
                      ["param.final_norm must be float32 (32,)", "got float64 (32,)"]),
    "another config": (lambda c: edit_state(c, model={**MODEL.__dict__, "d_ff": 64}),
                       ["param.layers.0.ffn.w_gate must be float32 (64, 32)", "got float32 (48, 32)"]),
    "a folder for tensors": (lambda c: ((c / TENSORS).unlink(), (c / TENSORS).mkdir()),
                             ["readable file", "Is a directory"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_or_foreign_checkpoint_is_refused_by_what_is_wrong(name, run):
    damage, words = DAMAGE[name]
    newest = latest(run)
    damage(newest)
    with tiny.refusal(*words):
        read_all(newest)
    if (newest / MARK).exists():                               # or it is no checkpoint for whoever loads
        with tiny.refusal(*words):
            load(run)


def test_a_file_that_is_no_safetensors_is_refused_although_its_checksum_is_right(run):
    path = latest(run)
    (path / TENSORS).write_bytes(b"not tensors at all")
    edit_state(path, sha256=hashlib.sha256(b"not tensors at all").hexdigest())
    with tiny.refusal("readable safetensors file", str(path)):
        read_all(path)


@pytest.mark.parametrize("sizes", [{"vocab_size": 10**9}, {"n_layers": 10**9}, {"d_model": 8 * 10**9}],
                         ids=str)
def test_a_size_that_only_the_config_claims_is_refused_before_it_is_allocated(sizes, run, monkeypatch):
    edit_state(latest(run), model={**MODEL.__dict__, **sizes})
    monkeypatch.setattr(Params, "__init__", lambda *_: pytest.fail("allocated"))
    with tiny.refusal("must ", str(next(iter(sizes.values())))):
        read_all(latest(run))


def test_damage_to_the_only_checkpoint_has_another_remedy(tmp_path):
    path = write_checkpoint(tmp_path, 1, A, CONFIG)
    flip(path / TENSORS, -1)
    write_checkpoint(tmp_path, 2, A, CONFIG)                   # a later one is not "the one before it"
    with tiny.refusal("the run has no other checkpoint: restore it from a copy"):
        read_tensors(path, read_state(path), ["a"])
    tiny.put_state(path, "{")
    with tiny.refusal("the run has no other checkpoint: restore it from a copy"):
        read_state(path)


@pytest.mark.parametrize("name", [STATE, TENSORS])
def test_a_file_that_the_system_does_not_give_is_no_reason_to_delete_a_checkpoint(name, run):
    (latest(run) / name).unlink()
    with pytest.raises(CheckError, match="check its rights, or restore it from a copy") as error:
        read_all(latest(run))
    assert "delete" not in str(error.value)


@pytest.mark.parametrize("name", ["is_file", "is_dir"])
def test_a_folder_that_may_not_be_entered_is_refused(name, tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    write_checkpoint(tmp_path, 1, A, CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, denied)
        with tiny.refusal("Permission denied", str(tmp_path), "check the path and its rights"):
            latest(tmp_path)
        if name == "is_file":
            with tiny.refusal("Permission denied", str(tmp_path)):
                checkpoints(tmp_path)


def test_a_tensor_of_a_dtype_that_numpy_has_not_is_refused(run):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = latest(run)
    (path / TENSORS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    edit_state(path, sha256=hashlib.sha256((path / TENSORS).read_bytes()).hexdigest())
    with tiny.refusal("readable safetensors file", "float8"):
        read_tensors(path, read_state(path), ["a"])


def test_the_remedy_for_damage_works(run):
    """"delete ... to use the checkpoint before it"."""
    path = latest(run)
    flip(path / TENSORS, 1000)
    with tiny.refusal(f"delete {path} to use the checkpoint before it"):
        load(run)
    remove(path)
    assert latest(run).name == "step-00000015"
    load(run)


@given(at=st.integers(0), bit=st.integers(0, 7))
def test_no_flipped_bit_of_the_tensors_goes_unnoticed(at, bit):
    source = latest(tiny.trained())
    path = tiny.folder() / "flipped"
    path.mkdir(exist_ok=True)
    data = bytearray((source / TENSORS).read_bytes())
    data[at % len(data)] ^= 1 << bit
    (path / TENSORS).write_bytes(data)
    with pytest.raises(CheckError, match="SHA-256"):
        read_tensors(path, read_state(source), ["param.embedding"])


# --- paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["nowhere", "file"])
def test_a_path_that_is_no_run_is_refused(where, tmp_path):
    (tmp_path / "file").touch()
    with tiny.refusal("must be the folder of a training run", where):
        latest(tmp_path / where)


def test_a_tensor_in_the_right_place_fills_its_view():
    params = Params(param_specs(MODEL))
    threes = {f"x.{name}": np.full(view.shape, 3, np.float32) for name, view in params.view.items()}
    fill(params, threes, "x.")
    assert np.all(params.flat == 3)


def test_a_model_config_of_an_older_release_takes_the_defaults():
    assert model_config({"model": {"d_model": 64}}).d_model == 64


# --- the tokenizer beside it -------------------------------------------------------------------------------


def test_another_tokenizer_of_the_same_size_is_refused(run, tmp_path):
    other, _ = tiny.begin(tmp_path / "other", corpus=str(tiny.corpus(seed=3)))
    (run / "tokenizer.json").write_bytes((other.folder / "tokenizer.json").read_bytes())
    with tiny.refusal("must be the tokenizer that the model was trained with", "checksum"):
        load(run)


def test_a_tokenizer_of_another_size_is_refused(run, tmp_path):
    other, _ = tiny.begin(tmp_path / "other", vocab_size=280)
    (run / "tokenizer.json").write_bytes((other.folder / "tokenizer.json").read_bytes())
    with tiny.refusal("must have the model's 300 entries", "got 280"):
        load(run)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_tokenizer_is_refused(damage, run):
    path = run / "tokenizer.json"
    path.unlink() if damage == "missing" else os.truncate(path, 1000)
    with tiny.refusal("tokenizer.json"):
        load(run)
