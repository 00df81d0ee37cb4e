"""python -m bitnet_ref.convert: any format into any other, read back, and nothing half done left behind."""

import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import own_cache, refusal  # noqa: F401

from bitnet_ref import convert
from bitnet_ref.cli import run_command
from bitnet_ref.config import ModelConfig
from bitnet_ref.formats.opened import open_model
from bitnet_ref.formats.source import About, Source, open_run
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits

ROOT = Path(__file__).resolve().parent.parent

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
    assert "read back     no: ONNX is not read; onnx.checker has no complaint" in out
    assert (tmp_path / "a.onnx").stat().st_size > 0


@pytest.mark.parametrize(("to", "options", "words"), [
    ("a.bitnet", ["--type", "f32"], "--type must fit the destination"),
    ("a.gguf", ["--storage", "full"], "--storage must fit the destination"),
    ("a.bitnet", ["--packing", "3bit"], "--packing must be one of rans, i2, b3"),
    ("a.gguf", ["--type", "q4"], "--type must be one of"),
    ("a", ["--dtype", "f16"], "--dtype must be one of"),
    ("a.onnx", ["--weights", "4bit"], "--weights must be"), ("a", ["--storage", "x"], "--storage must be"),
    ("/", [], "what is written must have a name"), (".", [], "must be new or empty"),
    ("a.safetensors", [], "a destination must end in"),
    ("a", ["--shard", "0"], "--shard must be gigabytes"), ("a", ["--storage", "full"], "full"),
    ("a.bitnet", ["--i2s", "64"], "a layout of I2_S is a GGUF's")])
def test_what_makes_no_sense_is_one_line_and_no_file(to, options, words, run, tmp_path, monkeypatch):
    source = tiny.trained()
    monkeypatch.chdir(ROOT)
    code, _, err = run(source, to if to in ("/", ".") else tmp_path / to, *options)
    assert code == 2
    tiny.assert_three_parts(err, words)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_written_over(run, tmp_path):
    (tmp_path / "a.bitnet").write_text("mine")
    code, _, err = run(tiny.trained(), tmp_path / "a.bitnet")
    assert code == 2
    tiny.assert_three_parts(err, "the destination must be new")
    assert (tmp_path / "a.bitnet").read_text() == "mine"


def other(path, change):
    """open_model, of which each tensor is what `change` makes of it."""
    again = open_model(path)
    master = again.master and (lambda name: change(name, again.master(name)))
    return again._replace(read=lambda name: change(name, again.read(name)), master=master)


CHANGES = {
    "trit": lambda _, t: Trits(-t.w_q, t.w_scale) if isinstance(t, Trits) else t,
    "one trit": lambda name, t: turned(t) if name == "layers.0.attn.wq" and isinstance(t, Trits) else t,
    "scale": lambda _, t: Trits(t.w_q, np.float32(t.w_scale * 1.0001)) if isinstance(t, Trits) else t,
    "float": lambda _, t: t if isinstance(t, Trits) else (t * 1.01).astype(t.dtype),
    "a small float": lambda name, t: zeroed(t) if name == "embedding" else t,
    "a master": lambda name, t: t if isinstance(t, Trits) or "wq" not in name else zeroed(t),
    "nan": lambda _, t: t if isinstance(t, Trits) else t * np.float32(np.nan)}


def turned(t):
    w_q = t.w_q.copy()
    w_q[0, 0] = 1 - abs(w_q[0, 0])
    return Trits(w_q, t.w_scale)


def zeroed(t):
    """The smallest entry gone: next to the largest it is nothing."""
    made = t.copy()
    made.reshape(-1)[np.abs(made.astype(np.float32)).argmin()] = 0
    return made


@pytest.mark.parametrize("to", ["a.bitnet", "a"])
@pytest.mark.parametrize("what", [what for what in CHANGES if what != "a master"])
def test_another_model_read_back_is_refused_and_removed(what, to, tmp_path, monkeypatch):
    monkeypatch.setattr("bitnet_ref.formats.opened.open_model", lambda path, i2s: other(path, CHANGES[what]))
    with refusal(str(tmp_path / to), "report this"):
        convert.convert(open_run(tiny.trained()), str(tmp_path / to), {}, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["one trit", "a master", "float"])
def test_other_masters_read_back_are_refused(what, dtype, tmp_path, monkeypatch):
    """Rounding may move trits: as many as the writer has counted, and from the masters' own rounding."""
    change = CHANGES[what]
    monkeypatch.setattr("bitnet_ref.formats.opened.open_model", lambda path, i2s: other(path, change))
    with refusal(str(tmp_path / "a"), "report this"):
        convert.convert(open_run(tiny.trained()), str(tmp_path / "a"),
                        {"storage": "masters", "dtype": dtype}, False)
    assert list(tmp_path.iterdir()) == []


def test_masters_are_counted(run, tmp_path):
    code, out, err = run(tiny.trained(), tmp_path / "a", "--storage", "masters")
    assert code == 0, err
    n = int(re.search(r"read back     ([\d,]+) trits moved", out)[1].replace(",", ""))
    assert f"masters in BF16: {n} of" in out


@pytest.mark.parametrize("to", ["a.bitnet", "a"])
@pytest.mark.parametrize(("name", "value"), [("eos", (1, 2)), ("bos", 5), ("chat_template", "{{ x }}"),
                                             ("settings", {"top_k": 3})])
def test_what_is_said_beside_the_tensors_is_carried_and_compared(name, value, to, tmp_path, monkeypatch):
    source = open_run(tiny.trained())
    source = source._replace(about=source.about._replace(**{name: value}))
    convert.convert(source, str(tmp_path / to), {}, False)
    assert getattr(open_model(tmp_path / to).about, name) == value
    nothing = open_run(tiny.trained()).about
    monkeypatch.setattr("bitnet_ref.formats.opened.open_model",
                        lambda path, i2s: open_model(path)._replace(about=nothing))
    with refusal("must say what the model's source says", name):
        convert.convert(source, str(tmp_path / ("b" + to)), {}, False)
    monkeypatch.setattr("bitnet_ref.formats.opened.open_model",
                        lambda path, i2s: open_model(path)._replace(tokenizer="{}"))
    with refusal("must say what the model's source says", "tokenizer"):
        convert.convert(open_run(tiny.trained()), str(tmp_path / ("c" + to)), {}, False)


def test_what_a_gguf_cannot_carry_is_a_note(tmp_path):
    pytest.importorskip("gguf")
    source = open_run(tiny.trained())
    said = convert.convert(source, str(tmp_path / "a.gguf"), {"type": "f32"}, False)
    assert not any("these are others" in line for line in said)
    source = source._replace(about=source.about._replace(eos=(1, 2, 3)))
    said = convert.convert(source, str(tmp_path / "b.gguf"), {"type": "f32"}, False)
    kept = open_model(tmp_path / "b.gguf").about.eos == (1, 2, 3)
    assert any("these are others: eos" in line for line in said) != kept


@pytest.mark.parametrize("to", ["a.bitnet", "a.onnx", "a.gguf", "a"])
def test_no_tokenizer_is_a_note_of_every_format(to, run, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("gguf")
    model = tiny.copy(tiny.trained(), tmp_path / "run")
    (model / "tokenizer.json").unlink()
    code, out, err = run(model, tmp_path / to, *(["--type", "f32"] if to == "a.gguf" else []))
    assert code == 0, err
    assert out.count("note          no tokenizer") == 1


@pytest.mark.parametrize("to", ["a.bitnet", "a.onnx", "a.gguf", "a"])
def test_a_tokenizer_larger_than_the_vocabulary_is_refused_for_every_format(to, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("gguf")
    source = open_run(tiny.trained())
    record = json.loads(source.tokenizer)
    record["added_tokens"].append(record["added_tokens"][0] | {"id": 300, "content": "<|more|>"})
    for text, words in ((json.dumps(record), "at most the model's 300 entries; got 301"),
                        ("{", "must be a tokenizer.json")):
        with refusal(words):
            convert.convert(source._replace(tokenizer=text), str(tmp_path / to), {}, False)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_trits_has_defaults_that_fit(run, tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("onnx")
    model = tiny.trained(linear="full", norm="pre", steps=2)
    for to in ("a.gguf", "a.bitnet", "a.onnx", "a"):
        code, _, err = run(model, tmp_path / to)
        assert code == 0, err
    assert open_model(tmp_path / "a.gguf").read("layers.0.attn.wq").dtype == np.float16


@pytest.mark.parametrize("kind", ["tq2_0", "tq1_0", "i2_s"])
def test_trits_of_a_gguf_become_a_folder_and_a_file_again(kind, run, tmp_path):
    pytest.importorskip("gguf")
    source = tiny.trained(d_model=256, d_ff=256, n_layers=1, steps=2)
    before, route = source, (("a.gguf", ["--type", kind]), ("b", ["--dtype", "float32"]), ("c.bitnet", []))
    for to, options in route:
        code, out, err = run(before, tmp_path / to, *options)
        assert code == 0, err
        assert "trits equal, floats equal" in out or (to == "a.gguf" and "but for the rounding" in out)
        before = tmp_path / to
    first, last = open_run(source), open_model(before)
    for name, spec in first.specs.items():
        if spec.ternary:
            np.testing.assert_array_equal(last.read(name).w_q, first.read(name).w_q)
            assert last.read(name).w_scale == first.read(name).w_scale
    assert last.tokenizer == first.tokenizer
    assert (last.about.bos, last.about.eos) == (first.about.bos, first.about.eos)


def test_onnx_leaves_somebody_s_data_alone(run, tmp_path):
    pytest.importorskip("onnx")
    (tmp_path / "a.onnx.data").write_text("mine")
    code, _, err = run(tiny.trained(), tmp_path / "a.onnx")
    assert code == 2
    tiny.assert_three_parts(err, "the destination must be new", "a.onnx.data")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.onnx.data", "mine")]


ENDED = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)               # these tests may run under nohup themselves
from bitnet_ref import cli, convert
from bitnet_ref.formats import bitnet
room = bitnet.check_justified
def end(*args):
    os.kill(os.getpid(), getattr(signal, sys.argv.pop()))
    room(*args)
bitnet.check_justified = end
sys.exit(cli.run_command(convert.main, sys.argv[1:3]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_nothing_half_written(name, code, tmp_path):
    done = subprocess.run([sys.executable, "-c", ENDED, tiny.trained(), tmp_path / "a.bitnet", name],
                          env=tiny.environment(), stderr=subprocess.PIPE, check=False)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_conversion_and_its_comparison_hold_some_tensors_and_not_the_model(tmp_path):
    """Read back, the largest tensor is there twice, in the dtype it is stored in; blocks beside it."""
    cfg = ModelConfig(vocab_size=60_000, d_model=1024, n_layers=4, n_heads=8, n_kv_heads=8, d_ff=4096)
    embedding = np.random.default_rng(0).standard_normal((60_000, 1024), np.float32)
    trits = {s.name: np.ones(s.shape, np.int8) for s in param_specs(cfg) if s.ternary}

    shapes = {s.name: s.shape for s in param_specs(cfg)}

    def read(name):
        if name in trits:
            return Trits(trits[name], np.float32(0.5))
        return embedding.copy() if name == "embedding" else np.ones(shapes[name], np.float32)

    source = Source(Path("m"), "memory", "", cfg, About("m"), None, read)
    tracemalloc.start()
    convert.convert(source, str(tmp_path / "a.bitnet"), {"packing": "i2"}, False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"peak {peak / embedding.nbytes:.2f} times the largest tensor")
    assert peak < 2 * embedding.nbytes + (64 << 20)
