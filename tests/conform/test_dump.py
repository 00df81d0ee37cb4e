"""conform/dump: the tensors are those of the model's own forward, read layer by layer."""

import json
import tracemalloc

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from strategies import small_config, small_params
from tiny import own_cache, refusal  # noqa: F401

import bitnet_ref as br
from bitnet_ref import layers
from bitnet_ref.cli import BAD_ARGUMENTS, DONE, Parser, run_command
from bitnet_ref.config import ModelConfig
from bitnet_ref.conform import dump as module
from bitnet_ref.conform.dump import FILE, dump, norms, source, write
from bitnet_ref.formats import hf
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.safetensors_stream import blocks
from bitnet_ref.formats.source import of_weights
from bitnet_ref.kernels import load
from bitnet_ref.layers.rope import rope_table
from bitnet_ref.model import Transformer
from bitnet_ref.model.transformer import forward
from bitnet_ref.model.weights import Weights, ternarise

OPS = load("numpy")
IDS = [3, 1, 4, 1, 5, 9, 2]


@pytest.fixture(params=[("sub", "relu2", True), ("pre", "swiglu", False)], ids=lambda p: p[0])
def folder(request, tmp_path):
    norm, glu, tied = request.param
    cfg = small_config(norm=norm, glu=glu, tied_embeddings=tied, init_std=0.02)
    write_hf(tmp_path, of_weights(cfg, ternarise(cfg, small_params(cfg, 0, np.float32), OPS)),
             "divide" if norm == "pre" else "multiply")
    return tmp_path


# --- the numbers -------------------------------------------------------------------------------------------


def test_the_dump_is_what_the_model_computes(folder):
    """Every tensor that forward keeps, and the logits, bit for bit."""
    cfg, weights = hf.read(folder)
    model = Transformer(cfg, weights, OPS)
    logits, saved = forward(model.plan, model.ready, np.array([IDS]))
    held = dump(source(folder), IDS)
    for l, s in enumerate(saved.blocks):
        at = f"layers.{l}."
        for name, t in (("x", s.x), ("q_rope", s.q), ("k_rope", s.k), ("v", s.v), ("attn", s.o), ("h", s.h),
                        ("gate", s.gate), ("up", s.up), ("act", s.u),
                        ("attn_norm.x_q", s.in_qkv[0].operand[0]),
                        ("attn_norm.x_scale", s.in_qkv[0].operand[1])):
            np.testing.assert_array_equal(held[at + name], t[0].reshape(held[at + name].shape), err_msg=name)
    np.testing.assert_array_equal(held["layers.1.out"], saved.x[0])
    np.testing.assert_array_equal(held["logits"], logits[0])


def test_what_forward_does_not_keep_fits_to_what_it_keeps(folder):
    cfg, weights = hf.read(folder)
    held = dump(source(folder), IDS)
    table = rope_table(np.arange(len(IDS)), cfg.head_dim, cfg.rope_theta)
    for at in ("layers.0.", "layers.1."):
        q = held[at + "q"].reshape(1, len(IDS), cfg.n_heads, cfg.head_dim)
        np.testing.assert_array_equal(layers.rope(q, *table).reshape(len(IDS), -1), held[at + "q_rope"])
        np.testing.assert_array_equal(held[at + "x"] + held[at + "o"], held[at + "h"])
        np.testing.assert_array_equal(held[at + "h"] + held[at + "down"], held[at + "out"])
        entering = at + ("ffn_sub_norm" if cfg.norm == "sub" else "act")
        codes, scale = layers.absmax_int8(held[entering])
        np.testing.assert_array_equal(held[entering + ".x_q"], codes)
        np.testing.assert_array_equal(held[entering + ".x_scale"], scale)
        want = layers.ternary_linear(codes, scale, layers.prepare(*weights[at + "ffn.w_down"]))
        np.testing.assert_array_equal(held[at + "down"], want)
    np.testing.assert_array_equal(held["embedding_out"], weights["embedding"][IDS])
    np.testing.assert_array_equal(
        held["final_norm"], layers.rmsnorm(held["layers.1.out"], weights["final_norm"], cfg.norm_eps)[0])


def test_sub_norms_are_there_where_the_layout_has_them(folder):
    norm = hf.read_config(folder).model.norm
    held = dump(source(folder), IDS)
    assert ("layers.0.attn_sub_norm" in held) == ("layers.0.ffn_sub_norm" in held) == (norm == "sub")
    assert ("layers.0.attn.x_q" in held) == ("layers.0.act.x_q" in held) == (norm == "pre")
    assert {t.dtype for t in held.values()} == {np.dtype(np.float32), np.dtype(np.int8)}
    assert all(len(t) == len(IDS) for t in held.values())


def test_only_the_layers_asked_for_and_nothing_above_them_is_read(folder):
    cfg, read, opened = hf.read_config(folder).model, [], source(folder)
    spy = opened._replace(weights=lambda names: (read.extend(names), opened.weights(names))[1])
    held = dump(spy, IDS, [0])
    assert {name.partition(".")[0] for name in held} == {"embedding_out", "layers"}
    assert all(name.startswith("layers.0.") for name in read)
    everything = dump(source(folder), IDS)
    assert {n for n in everything if n.startswith("layers.0.")} == set(held) - {"embedding_out"}
    last = dump(source(folder), IDS, [cfg.n_layers - 1])
    assert "logits" in last
    assert not [n for n in last if n.startswith("layers.0.")]
    for name, t in (held | last).items():
        np.testing.assert_array_equal(t, everything[name])


def test_a_run_of_ours():
    run = tiny.trained()
    held = dump(source(run), IDS)
    np.testing.assert_array_equal(held["logits"], br.load(run, "numpy")(np.array(IDS))[0][0])


def whole(cfg, params):
    """A source of weights in memory."""
    held = ternarise(cfg, params, OPS)
    return module.Source(cfg, lambda ids: held["embedding"][ids],
                         lambda names: Weights({n: held[n] for n in names}), lambda: iter([held["head"]]))


def test_the_twin_has_no_codes():
    cfg = small_config(norm="pre", linear="full")
    params = small_params(cfg, 0, np.float32)
    held = dump(whole(cfg, params), IDS)
    assert not [n for n in held if "x_q" in n]
    np.testing.assert_array_equal(held["logits"], Transformer(cfg, params, OPS)(np.array(IDS))[0][0])


def test_the_head_by_blocks_is_the_head(folder, monkeypatch):
    want = dump(source(folder), IDS)["logits"]
    monkeypatch.setattr(hf, "blocks", lambda t, n_bytes: blocks(t, 100))
    np.testing.assert_allclose(dump(source(folder), IDS)["logits"], want, rtol=1e-5, atol=1e-7)


def test_one_layer_is_in_memory_at_a_time(tmp_path):
    cfg = ModelConfig(vocab_size=20000, n_layers=6, d_ff=1024, glu="relu2")
    write_hf(tmp_path, of_weights(cfg, ternarise(cfg, small_params(cfg, 0, np.float32), OPS)))
    tracemalloc.start()
    dump(source(tmp_path), [1, 2], [4])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    layer = sum(int(np.prod(s.shape)) for s in hf.open_folder(tmp_path).specs.values()
                if s.name.startswith("layers.0."))
    assert peak < 4 * layer < 4 * cfg.vocab_size * cfg.d_model     # int8; a matrix in float32 to multiply


# --- the table and the file --------------------------------------------------------------------------------


def test_norms_are_of_the_tensors():
    held = {"a": np.array([[3, -4]], np.float32), "b": np.array([[-128, 127]], np.int8)}
    a, b = norms(held)
    assert a == {"name": "a", "dtype": "float32", "shape": [1, 2], "l2": 5.0, "max": 4.0}
    assert (b["max"], b["l2"]) == (128.0, pytest.approx(np.hypot(128, 127)))


def test_what_is_written_can_be_read(folder, tmp_path):
    held = dump(source(folder), IDS, [0])
    path = write(held, IDS, tmp_path / "out")
    assert path == tmp_path / "out" / FILE
    got = load_file(path)
    assert got.pop("ids").tolist() == IDS
    assert got.keys() == held.keys()
    for name, t in held.items():
        np.testing.assert_array_equal(got[name], t)


# --- the command -------------------------------------------------------------------------------------------


def command(*arguments):
    parser = Parser("dump", None)
    module.add_arguments(parser)
    return run_command(lambda argv: module.run(parser.parse_args(argv)), [str(a) for a in arguments])


def test_the_command(folder, tmp_path, capsys):
    assert command("--model", folder, "--ids", "1,2,3", "--layers", "0", "--output", tmp_path / "o") == DONE
    out = capsys.readouterr().out
    assert "layers.0.q_rope" in out
    assert "3 x 16" in out
    assert (tmp_path / "o" / FILE).is_file()
    assert command("--model", folder, "--ids", "1,2,3", "--json") == DONE
    assert json.loads(capsys.readouterr().out)[-1]["name"] == "logits"


@pytest.mark.parametrize(("flags", "words"), [
    (["--ids", "1,x"], ["--ids must be integers", "'1,x'"]), (["--ids", "1,,2"], ["--ids must be integers"]),
    (["--ids", "13"], ["--ids must lie in 0..12"]), (["--ids=-1"], ["--ids must lie in"]),
    (["--ids", ",".join("1" * 13)], ["1 to 12 ids"]),
    (["--ids", "1", "--layers", "2"], ["--layers must lie in 0..1"]),
    (["--ids", "1", "--layers", "a"], ["--layers must be integers"]), (["--layers", "0"], ["--ids"]),
])
def test_bad_arguments(flags, words, folder, capsys):
    assert command("--model", folder, *flags) == BAD_ARGUMENTS
    error = capsys.readouterr().err
    tiny.assert_three_parts(error, *words)


def test_no_model(tmp_path):
    with refusal("a model must be", "training run"):
        source(tmp_path / "nothing")


def test_a_gain_per_projection_has_no_name_here():
    cfg = small_config(norm="inner", inner_gain=True)
    with refusal("one norm at each place"):
        dump(module.Source(cfg, None, None, None), IDS)


def test_free_inner_norms_have_the_names_of_their_places():
    cfg = small_config(norm="inner")
    params = small_params(cfg, 0, np.float32)
    held = dump(whole(cfg, params), IDS)
    want = layers.rmsnorm(held["layers.0.x"], None, cfg.norm_eps)[0]
    np.testing.assert_array_equal(held["layers.0.attn_norm"], want)
    np.testing.assert_array_equal(held["logits"], Transformer(cfg, params, OPS)(np.array(IDS))[0][0])
