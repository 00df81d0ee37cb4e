"""python -m bitnet_ref.convert: any format into any other, read back, and nothing half done left behind."""

import numpy as np
import pytest
import tiny
from tiny import own_cache, refusal  # noqa: F401

from bitnet_ref import convert
from bitnet_ref.cli import run_command
from bitnet_ref.formats.opened import open_model
from bitnet_ref.formats.source import open_run
from bitnet_ref.model.weights import Trits

ROUTES = [("a.bitnet", ["--packing", "i2"]), ("b", []), ("c.bitnet", []), ("d", ["--storage", "divide"]),
          ("e", ["--storage", "masters", "--dtype", "float32"]), ("f.bitnet", ["--packing", "b3"]),
          ("g", ["--dtype", "float32", "--shard", "0.00002"])]


@pytest.fixture
def run(capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = run_command(convert.main, [str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return run


def test_a_chain_of_formats_ends_in_the_same_trits(run, tmp_path):
    """Each is read by the next; scales and floats are rounded to bfloat16 on the way."""
    before = tiny.trained()
    first = open_run(before)
    for name, options in ROUTES:
        code, out, err = run(before, tmp_path / name, *options)
        assert code == 0, err
        assert "read back     trits equal" in out
        assert f"-> {tmp_path / name} (" in out
        before = tmp_path / name
    last = open_model(before)
    for name, spec in first.specs.items():
        a, b = first.read(name), last.read(name)
        if spec.ternary:
            np.testing.assert_array_equal(a.w_q, b.w_q)
            a, b = a.w_scale, b.w_scale
        np.testing.assert_allclose(np.asarray(b, np.float32), np.asarray(a), rtol=2**-7)
    assert last.tokenizer == first.tokenizer
    assert len(list(before.glob("model-*.safetensors"))) > 1


def test_gguf_and_back(run, tmp_path):
    pytest.importorskip("gguf")
    source = tiny.trained()
    for kind in ("f32", "f16"):
        code, out, err = run(source, tmp_path / f"{kind}.gguf", "--type", kind)
        assert (code, "trits equal" in out) == (0, True), err
        code, out, err = run(tmp_path / f"{kind}.gguf", tmp_path / f"{kind}.bitnet")
        assert code == 0, err


def test_onnx(run, tmp_path):
    pytest.importorskip("onnx")
    code, out, err = run(tiny.trained(), tmp_path / "a.onnx", "--weights", "2bit", "--cache")
    assert code == 0, err
    assert "read back" not in out
    assert (tmp_path / "a.onnx").stat().st_size > 0


@pytest.mark.parametrize(("to", "options", "words"), [
    ("a.bitnet", ["--type", "f32"], "--type must fit the destination"),
    ("a.gguf", ["--storage", "full"], "--storage must fit the destination"),
    ("a.bitnet", ["--packing", "3bit"], "packing"), ("a.safetensors", [], "a destination must end in"),
    ("a", ["--shard", "0"], "--shard must be gigabytes"), ("a", ["--storage", "full"], "full"),
    ("a.bitnet", ["--i2s", "64"], "a layout of I2_S is a GGUF's")])
def test_what_makes_no_sense_is_one_line_and_no_file(to, options, words, run, tmp_path):
    source = tiny.trained()
    code, _, err = run(source, tmp_path / to, *options)
    assert code == 2
    tiny.assert_three_parts(err, words)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_written_over(run, tmp_path):
    (tmp_path / "a.bitnet").write_text("mine")
    code, _, err = run(tiny.trained(), tmp_path / "a.bitnet")
    assert code == 2
    tiny.assert_three_parts(err, "the destination must be new")
    assert (tmp_path / "a.bitnet").read_text() == "mine"


@pytest.mark.parametrize("what", ["trit", "float", "nan"])
def test_another_model_read_back_is_refused_and_removed(what, tmp_path, monkeypatch):
    source = open_run(tiny.trained())

    def other(path, i2s=None):
        again = open_model(path)

        def read(name):
            t = again.read(name)
            if isinstance(t, Trits):
                return Trits(t.w_q * (what != "trit"), t.w_scale)
            return t * (1 if what == "trit" else 1.01 if what == "float" else np.nan)

        return again._replace(read=read)

    monkeypatch.setattr("bitnet_ref.formats.opened.open_model", other)
    with refusal(str(tmp_path / "a.bitnet"), "report this"):
        convert.convert(source, str(tmp_path / "a.bitnet"), {}, False)
    assert list(tmp_path.iterdir()) == []
