"""formats/opened: what a path holds is found in it; whatever it is, the model that runs is the same."""

import numpy as np
import pytest
import tiny
from tiny import own_cache, refusal  # noqa: F401

import bitnet_ref as br
from bitnet_ref.convert import convert
from bitnet_ref.formats.opened import kind_of, open_model
from bitnet_ref.formats.source import on_disk, open_run, weights
from bitnet_ref.model.weights import Trits


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


def test_a_model_without_tokenizer_cannot_write(files, tmp_path):
    bare = tiny.copy(files["hf"], tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with refusal("must hold a tokenizer", "got none"):
        br.load(str(bare))
