"""formats/opened: what a path holds is found in it; whatever it is, the model that runs is the same."""

import json
import os

import numpy as np
import pytest
import tiny
from tiny import own_cache, refusal  # noqa: F401

import bitnet_ref as br
from bitnet_ref.convert import convert
from bitnet_ref.data.tokenizer import from_json
from bitnet_ref.formats.checkpoint import latest
from bitnet_ref.formats.opened import kind_of, open_model
from bitnet_ref.formats.safetensors_stream import array
from bitnet_ref.formats.source import on_disk, open_run, weights
from bitnet_ref.model.weights import Trits
from bitnet_ref.quant import absmean_ternary


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{kind: path} of one model."""
    folder, run = tmp_path_factory.mktemp("opened"), tiny.trained()
    found = {"run": run, "bitnet": folder / "a.bitnet", "hf": folder / "hf"}
    for kind in ("bitnet", "hf"):
        convert(open_model(run), str(found[kind]), {"dtype": "float32"} if kind == "hf" else {}, False)
    return found


@pytest.mark.parametrize("kind", ["run", "bitnet", "hf"])
def test_each_kind_is_known_by_what_it_holds(kind, files, tmp_path):
    assert kind_of(files[kind]) == kind
    assert open_model(files[kind]).kind == kind
    if kind == "bitnet":
        other = tmp_path / "any.name"
        other.write_bytes(files[kind].read_bytes())
        assert kind_of(other) == "bitnet"


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", ["bitnet", "hf"])
def test_a_model_runs_the_same_from_every_format(kind, backend, files):
    run, other = br.load(str(files["run"]), backend), br.load(str(files[kind]), backend)
    ids = np.arange(20) % run.cfg.vocab_size
    rtol = 0 if backend == "numpy" else 1e-4                # a run's scales are summed by its own backend
    np.testing.assert_allclose(other(ids)[0], run(ids)[0], rtol=rtol, atol=rtol / 100)
    assert other.generate("ba ce", 12, temperature=0) == run.generate("ba ce", 12, temperature=0)
    assert (other.first, other.ends) == (run.first, run.ends)


def test_weights_on_disk_are_those_in_memory(files):
    source = open_model(files["bitnet"])
    held, lazy = weights(source), on_disk(source)
    assert lazy.keys() == held.keys()
    for name in held:
        a, b = held[name], lazy[name]
        if isinstance(a, Trits):
            a, b = a.w_q, b.w_q
        np.testing.assert_array_equal(a, b)


def test_a_tied_ternary_head_comes_from_the_embedding(tmp_path):
    run = tiny.train(tmp_path / "run", steps=2, head="ternary")
    source = open_run(tmp_path / "run")
    for table in (weights(source), on_disk(source)):
        assert isinstance(table["head"], Trits)
        np.testing.assert_array_equal(table["head"].w_q, run.model.weights["head"].w_q)
    assert not on_disk(source).tied


def test_what_is_no_model_is_refused(files, tmp_path):
    with refusal("a model must be", "nothing at", "check the path"):
        open_model(tmp_path / "missing")
    (tmp_path / "x.txt").write_text("hello")
    with refusal("a model must be", "another kind of file", "ONNX"):
        open_model(tmp_path / "x.txt")
    with refusal("another kind of file", "give its folder"):
        open_model(files["hf"] / "model.safetensors")
    with refusal("must hold a complete checkpoint"):
        open_model(tmp_path)
    with refusal("a layout of I2_S is a GGUF's", "leave it out"):
        open_model(files["hf"], i2s="128")


def foreign(to):
    """A run whose tokenizer is of another make: its EOS is </s>, and not id 0."""
    record = json.loads(from_json(open_run(tiny.trained()).tokenizer).json)
    vocab = {k: v - 1 for k, v in record["model"]["vocab"].items() if v > 0} | {"</s>": 299}
    record["model"]["vocab"] = vocab
    record["added_tokens"] = [record["added_tokens"][0] | {"id": 299, "content": "</s>"}]
    file = to / "foreign.json"
    from_json(json.dumps(record)).save(file)
    tiny.train(to / "run", steps=2, tokenizer=str(file))
    return to / "run"


def test_a_run_with_a_tokenizer_of_another_make_begins_and_ends_as_it_was_trained(tmp_path):
    run = open_run(foreign(tmp_path))
    assert (run.about.bos, run.about.eos) == (299, (299,))
    convert(run, str(tmp_path / "a.bitnet"), {}, False)
    ours, theirs = br.load(str(tmp_path / "run"), "numpy"), br.load(str(tmp_path / "a.bitnet"), "numpy")
    assert ours.first == theirs.first == 299
    assert ours.ends == theirs.ends


@pytest.mark.parametrize(("damage", "words"), [
    (lambda data: data.replace(b'"trim_offsets":true', b'"trim_offsets":false'), ("trained", "checksum")),
    (lambda data: data[:100], ("must be a tokenizer.json",)),
    (lambda data: data[:100] + b"\xff" + data[100:], ("tokenizer.json", "no UTF-8"))])
def test_a_run_brings_the_tokenizer_that_it_was_trained_with(damage, words, tmp_path):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    file = run / "tokenizer.json"
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert file.read_bytes() != before
    with refusal(*words):
        open_run(run)


def test_a_huge_tokenizer_of_a_run_is_refused_unread(tmp_path):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    with open(run / "tokenizer.json", "r+b") as f:
        f.truncate(1 << 40)
    with refusal("at most 67108864 bytes"):
        open_run(run)


def test_a_run_without_tokenizer_does_not_say_who_ends_a_text(tmp_path):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    (run / "tokenizer.json").unlink()
    source = open_run(run)
    assert (source.tokenizer, source.about.bos, source.about.eos) == (None, None, ())


def test_the_masters_of_a_run_are_read_when_asked_for(monkeypatch):
    """Of the checkpoint, which has the moments too, no tensor is held."""
    asked = []
    monkeypatch.setattr("bitnet_ref.formats.source.array", lambda t: asked.append(t) or array(t))
    run = open_run(tiny.trained())
    assert asked == []
    w = run.master("layers.0.attn.wq")
    assert len(asked) == 1
    np.testing.assert_array_equal(run.read("layers.0.attn.wq").w_q, absmean_ternary(w)[0])
    assert run.read("embedding") is not run.read("embedding")


@pytest.mark.parametrize("field", ["n_layers", "d_ff"])
def test_a_run_whose_config_claims_another_shape_is_refused(field, tmp_path):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    state = json.loads((latest(run) / "state.json").read_text())
    state["model"][field] *= 2
    tiny.put_state(latest(run), state)
    with refusal("tensors.safetensors must be F32", "give another checkpoint"):
        open_run(run)
    tiny.put_state(latest(run), {**state, "sha256": "0" * 64})
    with refusal("SHA-256"):
        open_run(run)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.bitnet")
    with refusal("a model must be", "neither file nor folder"):
        kind_of(tmp_path / "m.bitnet")


def test_a_hugging_face_folder_without_safetensors_is_called_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with refusal("must hold model.safetensors", ".bin is not read", "config.json alone"):
        open_model(tmp_path)


def test_a_model_without_tokenizer_cannot_write(files, tmp_path):
    bare = tiny.copy(files["hf"], tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with refusal("must hold a tokenizer", "got none"):
        br.load(str(bare))
