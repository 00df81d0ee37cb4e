"""The homework on disk: complete, in the layouts it says, and what the judge reads back from it."""

import json

import numpy as np
import pytest
from planted import given
from safetensors.numpy import load_file

from bitnet_ref.checks import CheckError
from bitnet_ref.conform.export import FOR, LIST, export, read_list
from bitnet_ref.conform.homework import INVERSE, MODELS, homework
from bitnet_ref.formats import hf
from bitnet_ref.pack import rosetta


@pytest.mark.parametrize("kind", FOR)
def test_every_kind_has_its_list_its_pages_and_everything_that_is_given(kind, tmp_path):
    made = {p.relative_to(tmp_path).as_posix() for p in export(tmp_path, kind, seed=2)}
    assert {LIST, "porting.md", "faults.md"} <= made
    assert (tmp_path / "dump").is_dir()
    listed = json.loads((tmp_path / LIST).read_text(encoding="utf-8"))
    nodes, _ = given(2, listed["layout"])
    assert [t["name"] for t in listed["dump"]] == [n.name for n in nodes]
    assert listed["models"]["bitnet"]["ids"] == homework(2).ids["bitnet"].tolist()
    assert read_list(tmp_path) == (2, listed["layout"])


def test_the_page_names_every_tensor_of_the_list(tmp_path):
    """docs/porting.md must be enough: each last part of a name stands on it."""
    export(tmp_path, "raw")
    page = (tmp_path / "porting.md").read_text(encoding="utf-8")
    for t in json.loads((tmp_path / LIST).read_text(encoding="utf-8"))["dump"]:
        last = t["name"].split(".")[-1]
        assert f".{last}" in page or f"`{last}`" in page or last in page, t["name"]


@pytest.mark.parametrize("model", MODELS)
def test_hf_folders_hold_the_weights(model, tmp_path):
    export(tmp_path, "hf")
    cfg, weights = hf.read(tmp_path / model)
    ours = homework(0).weights[model]
    assert (cfg.norm, cfg.glu, cfg.tied_embeddings) == (MODELS[model].norm, MODELS[model].glu,
                                                        MODELS[model].tied_embeddings)
    for name, t in ours.items():
        if isinstance(t, tuple):
            assert np.array_equal(weights[name].w_q, t.w_q)
            assert weights[name].w_scale == t.w_scale      # to the last bit, also through the reciprocal
        else:
            assert np.array_equal(np.asarray(weights[name], np.float32), t)


@pytest.mark.parametrize("layout", rosetta.I2S)
def test_i2s_files_are_bytes_and_tail(layout, tmp_path):
    export(tmp_path, "i2s", layout)
    for model in MODELS:
        index = json.loads((tmp_path / model / "index.json").read_text(encoding="utf-8"))
        packed = {n: e for n, e in index.items() if e["dtype"] == "i2_s"}
        assert len(packed) == 7 * MODELS[model].n_layers
        for name, entry in packed.items():
            data = np.fromfile(tmp_path / model / entry["file"], np.uint8)
            w_q, w_scale = rosetta.unpack_i2s(data, tuple(entry["shape"]), layout)
            t = homework(0).weights[model][name]
            assert np.array_equal(w_q, t.w_q)
            assert w_scale == t.w_scale


def test_raw_and_npz_agree(tmp_path):
    export(tmp_path / "r", "raw")
    export(tmp_path / "n", "npz")
    for group in (*MODELS, "probes"):
        index = json.loads((tmp_path / "r" / group / "index.json").read_text(encoding="utf-8"))
        with np.load(tmp_path / "n" / f"{group}.npz") as archive:
            assert set(archive.files) == set(index)
            for name, e in index.items():
                data = np.fromfile(tmp_path / "r" / group / e["file"], e["dtype"]).reshape(e["shape"])
                assert np.array_equal(data, archive[name])


def test_probes_of_hf(tmp_path):
    export(tmp_path, "hf", seed=1)
    held = load_file(tmp_path / "probes.safetensors")
    for name, t in homework(1).probes.items():
        assert np.array_equal(held[name], t)
    assert INVERSE == {"bitnet": False, "llama": True}


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(CheckError, match="new or empty"):
        export(tmp_path, "npz")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("kind", "layout", "seed"),
                         [("gguf", "128", 0), ("i2s", "32", 0), ("hf", "128", -1)])
def test_bad_choices(kind, layout, seed, tmp_path):
    with pytest.raises(CheckError, match="must"):
        export(tmp_path / "x", kind, layout, seed)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("content", [
    "", "[]", "{}", '{"format": "bitnet_ref homework", "version": 2}',
    '{"format": "bitnet_ref homework", "version": 1, "seed": -1, "layout": "hf"}',
    '{"format": "bitnet_ref homework", "version": 1, "seed": true, "layout": "hf"}',
    '{"format": "bitnet_ref homework", "version": 1, "seed": 0, "layout": ["hf"]}',
    '{"format": "bitnet_ref homework", "version": 1, "seed": 0, "layout": "zip"}', "[" * 100_000,
    '{"format": "bitnet_ref homework", "version": 1, "seed": 0, "layout": "hf", "fingerprint": "0"}'])
def test_a_damaged_list_is_refused(content, tmp_path):
    (tmp_path / LIST).write_text(content)
    with pytest.raises(CheckError):
        read_list(tmp_path)
