"""formats/gguf: what is written is read, another reader agrees, a stranger's file is refused by its fault."""

import json
import os
import struct
import sys
import tracemalloc
from dataclasses import replace
from functools import partial

import gguf_by_hand as by_hand
import ml_dtypes
import numpy as np
import pytest
from gguf_by_hand import entry, head, held, make, source, text, value
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st
from strategies import small_config
from tiny import assert_three_parts, refusal

from bitnet_ref.checks import CheckError
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.formats import gguf_about, gguf_header, gguf_read, gguf_write, opened
from bitnet_ref.formats.gguf_about import read_about
from bitnet_ref.formats.gguf_header import is_gguf, raw, read_header
from bitnet_ref.formats.gguf_names import gguf_name
from bitnet_ref.formats.gguf_read import open_gguf
from bitnet_ref.formats.gguf_tokenizer import settings as tokenizer_settings
from bitnet_ref.formats.gguf_write import KINDS, write_gguf
from bitnet_ref.formats.source import About, weights
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits
from bitnet_ref.pack.rosetta import pack_i2s
from bitnet_ref.quant import absmean_ternary

gguf = pytest.importorskip("gguf")

BITNET = small_config(d_model=256, d_ff=512, n_heads=4, n_kv_heads=2)
LLAMA = small_config(norm="pre", linear="full", tied_embeddings=False)
Q = "layers.0.attn.wq"
TQ = {"tq1_0": "TQ1_0", "tq2_0": "TQ2_0"}


def without_std(cfg):
    """A GGUF does not say how weights were drawn."""
    return replace(cfg, init_std=0.02)


def settings(cfg, arch="bitnet", **more):
    """The settings of a model without a tokenizer; of `more`, ... removes one."""
    made = {"general.architecture": arch, f"{arch}.context_length": cfg.context,
            f"{arch}.embedding_length": cfg.d_model, f"{arch}.block_count": cfg.n_layers,
            f"{arch}.feed_forward_length": cfg.d_ff, f"{arch}.attention.head_count": cfg.n_heads,
            f"{arch}.attention.head_count_kv": cfg.n_kv_heads,
            f"{arch}.attention.layer_norm_rms_epsilon": cfg.norm_eps,
            f"{arch}.rope.freq_base": cfg.rope_theta}
    made |= {name.replace("_arch", arch): v for name, v in more.items()}
    return {name: v for name, v in made.items() if v is not ...}


def i2s(t, layout="128"):
    return "I2_S", t.w_q.shape, pack_i2s(t.w_q, t.w_scale, layout).tobytes()


def tq(t, kind="TQ2_0"):
    """As a converter does that knows floats only: the scale in every block, a float16."""
    blocks = gguf.quants.quantize(t.w_q * np.float32(t.w_scale), gguf.GGMLQuantizationType[kind])
    return kind, t.w_q.shape, blocks.tobytes()


def stored(table, matrices=i2s, dtype=np.float32):
    """{GGUF's name: (type, shape, bytes)}: Trits by `matrices`, floats in `dtype`."""
    return {gguf_name(n): matrices(t) if isinstance(t, Trits) else
            by_hand.floats(t, dtype if t.ndim == 2 else np.float32) for n, t in table.items()}


def assert_same(got, table, scale=np.float32, rtol=0.0):
    for name, t in table.items():
        back = got.read(name)
        if isinstance(t, Trits):
            np.testing.assert_array_equal(back.w_q, t.w_q, name)
            assert back.w_q.dtype == np.int8
            assert back.w_scale == np.float32(scale(t.w_scale)), name
        else:
            np.testing.assert_allclose(np.asarray(back, np.float32), t, rtol, rtol / 10, err_msg=name)


# --- what is written is read -------------------------------------------------------------------------------


@few(max_examples=15)
@given(kind=st.sampled_from(sorted(KINDS)), layers=st.integers(1, 2), wide=st.integers(1, 2),
       vocab=st.integers(5, 40), heads=st.sampled_from([(1, 1), (4, 1), (4, 4)]),
       zeros=st.sampled_from([0.0, 0.4, 0.995]), seed=st.integers(0, 99))
def test_what_is_written_is_read(tmp_path_factory, kind, layers, wide, vocab, heads, zeros, seed):
    """Trits exactly, scales too but in f16; blocks of zeros among them."""
    cfg = small_config(vocab_size=vocab, d_model=256, d_ff=256 * wide, n_layers=layers, n_heads=heads[0],
                       n_kv_heads=heads[1])
    table, done = held(cfg, seed, zeros), []
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    made = write_gguf(file, source(cfg, table), kind, told=done.append)
    got = open_gguf(file)
    assert (got.cfg, got.kind) == (without_std(cfg), "gguf")
    assert_same(got, table, np.float16 if kind == "f16" else np.float32, 0.0 if kind == "f32" else 1e-3)
    assert done == [s.name for s in param_specs(cfg)]
    assert made.n_bytes == file.stat().st_size
    assert made.n_tensors == len(read_header(file).tensors)
    assert is_gguf(file)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_a_llama(kind, tied, tmp_path):
    cfg = replace(LLAMA, tied_embeddings=tied)
    table = held(cfg)
    write_gguf(tmp_path / "m", source(cfg, table), kind)
    got = open_gguf(tmp_path / "m")
    assert got.cfg == without_std(cfg)
    assert_same(got, table, rtol=1e-3 if kind == "f16" else 0)
    assert got.read(Q).dtype == (np.float16 if kind == "f16" else np.float32)


def test_the_rows_of_q_and_k_of_a_llama(tmp_path):
    """Pairs of RoPE stand together there: of a head of 4, rows 0, 2, 1, 3 of ours. Others are as here."""
    table = held(LLAMA)
    write_gguf(tmp_path / "m", source(LLAMA, table), "f32")
    tensors = read_header(tmp_path / "m").tensors
    for name, n_heads in (("wq", 4), ("wk", 2), ("wv", 0)):
        ours = table[f"layers.1.attn.{name}"]
        theirs = raw(tensors[gguf_name(f"layers.1.attn.{name}")]).view(np.float32)
        order = [4 * h + i for h in range(n_heads) for i in (0, 2, 1, 3)] or range(len(ours))
        np.testing.assert_array_equal(theirs, ours[order])


def test_what_belongs_to_the_model_besides_tensors(tmp_path):
    about = About("Ein Name", 3, (5, 7), "{{ messages }} \U0001f642")
    write_gguf(tmp_path / "m", source(BITNET, about=about), "tq2_0")
    assert open_gguf(tmp_path / "m").about == about        # though there is no tokenizer
    assert open_gguf(tmp_path / "m").tokenizer is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_what_it_did(kind, tmp_path):
    cfg, ops = BITNET, load("numpy")
    original = source(cfg)
    write_gguf(tmp_path / "m", original, kind)
    ids = np.arange(9)
    a, b = (Transformer(cfg, weights(s), ops)(ids)[0] for s in (original, open_gguf(tmp_path / "m")))
    assert np.abs(a - b).max() <= (0 if kind == "f32" else 2e-2) * np.abs(a).max()


# --- another reader, another writer, bytes by hand ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["f32", "f16", "tq1_0", "tq2_0"])
def test_the_library_reads_it_too(kind, tmp_path):
    """The reader of the package gguf and its decoders: names, shapes, settings, weights to the last bit."""
    table = held(BITNET)
    write_gguf(tmp_path / "m", source(BITNET, table), kind)
    reader = gguf.GGUFReader(tmp_path / "m")
    tensors = {t.name: t for t in reader.tensors}
    assert len(tensors) == len(reader.tensors) == len(read_header(tmp_path / "m").tensors)
    for name, t in table.items():
        theirs = tensors[gguf_name(name)]
        w = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        if isinstance(t, Trits):
            if kind in TQ:
                np.testing.assert_array_equal(tensors[gguf_name(name, "scale")].data, [t.w_scale])
                assert {float(x) for x in np.unique(np.abs(w))} <= {0.0, 1.0}
                w *= t.w_scale
            t = t.w_q * (np.float16(t.w_scale) if kind == "f16" else t.w_scale)
        np.testing.assert_allclose(w, t, rtol=0 if kind == "f32" else 1e-3, atol=1e-4 * (kind != "f32"))
    ours = read_header(tmp_path / "m").settings
    for name, v in ours.items():
        assert reader.get_field(name).contents() == v


@pytest.mark.parametrize("kind", TQ)
def test_the_blocks_are_the_librarys(kind, tmp_path):
    table = held(BITNET)
    write_gguf(tmp_path / "m", source(BITNET, table), kind)
    t = read_header(tmp_path / "m").tensors[gguf_name(Q)]
    want = gguf.quants.quantize(table[Q].w_q.astype(np.float32), gguf.GGMLQuantizationType[TQ[kind]])
    np.testing.assert_array_equal(raw(t), want)


def test_a_tq2_0_block_by_hand(tmp_path):
    """Byte m of half h: values 128 h + m + 32 n at bits 2n, code = trit + 1; then the float16 1.0."""
    table = held(BITNET)
    row = np.zeros(256, np.int8)
    row[[0, 32, 64, 96, 128 + 31, 128 + 63]] = [1, -1, 0, 1, -1, 1]
    table[Q].w_q[0] = row
    write_gguf(tmp_path / "m", source(BITNET, table), "tq2_0")
    block = bytes(raw(read_header(tmp_path / "m").tensors[gguf_name(Q)])[0])
    zeros = 0b01010101
    assert block[0] == 0b10_01_00_10
    assert block[32 + 31] == 0b01_01_10_00
    assert set(block[1:32] + block[32:63]) == {zeros}
    assert block[64:] == b"\x00\x3c"
    assert len(block) == 66


def test_an_i2_s_file(tmp_path):
    """Type 36, the packed trits, the scale in the tail, no .scale; the architecture tells the activation."""
    for glu, arch in (("swiglu", "bitnet"), ("relu2", "bitnet-b1.58")):
        cfg = replace(BITNET, glu=glu)
        table = held(cfg)
        write_gguf(tmp_path / "m", source(cfg, table), "i2_s")
        header = read_header(tmp_path / "m")
        assert header.settings["general.architecture"] == arch
        assert header.settings["general.file_type"] == 40
        assert not [n for n in header.tensors if n.endswith(".scale")]
        t = header.tensors[gguf_name(Q)]
        assert (t.kind, t.end - t.begin) == ("I2_S", 256 * 256 // 4 + 32)
        np.testing.assert_array_equal(raw(t)[0], pack_i2s(*table[Q], "128"))
        assert open_gguf(tmp_path / "m").cfg.glu == glu


@pytest.mark.parametrize("arch", ["bitnet", "bitnet-25", "bitnet-b1.58"])
@pytest.mark.parametrize("layout", ["128", "64", "4row"])
def test_i2_s_of_others(arch, layout, tmp_path):
    """Told which layout it is, a file that does not say is read; the upload of 2B4T with a head as well."""
    cfg = replace(BITNET, glu="swiglu" if arch == "bitnet" else "relu2", tied_embeddings=arch != "bitnet-25")
    table = held(cfg)
    make(tmp_path / "m", settings(cfg, arch), stored(table, partial(i2s, layout=layout), np.float16))
    got = open_gguf(tmp_path / "m", i2s=layout)
    assert got.cfg == without_std(cfg)
    assert got.storage == f"I2_S {layout}"
    assert_same(got, table, rtol=1e-3)


def test_a_layout_is_never_guessed(tmp_path):
    table = held(BITNET)
    make(tmp_path / "m", settings(BITNET), stored(table))
    got = open_gguf(tmp_path / "m")                        # so that it can be described
    assert got.storage == "I2_S, layout not said"
    np.testing.assert_array_equal(got.read("embedding"), table["embedding"])
    with refusal("must be told", "m, whose shapes allow 128, 64, 4row", "i2s = 128"):
        got.read(Q)
    with refusal("i2s", "'5row'"):
        open_gguf(tmp_path / "m", i2s="5row")


def test_a_layout_that_is_known(tmp_path):
    """The only one that the shapes allow; and what our own files say."""
    cfg = small_config(d_model=20, d_ff=12, n_heads=5, n_kv_heads=5)
    table = held(cfg)
    make(tmp_path / "a", settings(cfg), stored(table, partial(i2s, layout="4row")))
    assert_same(open_gguf(tmp_path / "a"), table)
    make(tmp_path / "b", settings(BITNET, **{"i2_s.layout": "64"}),
         stored(held(BITNET), partial(i2s, layout="64")))
    assert_same(open_gguf(tmp_path / "b"), held(BITNET))
    with refusal("says of itself, 64", "128"):
        open_gguf(tmp_path / "b", i2s="128")


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_tq_of_others(kind, tmp_path):
    """The scale is in the blocks alone, a float16; zeros have none. Also with a .scale besides."""
    table = held(BITNET, zeros=0.99)
    made = stored(table, partial(tq, kind=kind), ml_dtypes.bfloat16)
    make(tmp_path / "m", settings(BITNET), made)
    assert_same(open_gguf(tmp_path / "m"), table, np.float16, rtol=1e-2)
    made |= {gguf_name(Q, "scale"): by_hand.floats(np.float32([3]))}
    make(tmp_path / "m", settings(BITNET), made)
    assert open_gguf(tmp_path / "m").read(Q).w_scale == np.float32(np.float16(table[Q].w_scale)) * 3


def test_a_block_of_scale_zero_is_zero(tmp_path):
    """Whatever its codes are: llama.cpp multiplies them by 0."""
    t = held(BITNET)[Q]
    made = stored(held(BITNET), tq)
    blocks = np.frombuffer(made[gguf_name(Q)][2], np.uint8).reshape(256, 66).copy()
    blocks[3, -2:] = 0
    make(tmp_path / "m", settings(BITNET), made | {gguf_name(Q): ("TQ2_0", (256, 256), blocks.tobytes())})
    got = open_gguf(tmp_path / "m").read(Q).w_q
    assert t.w_q[3].any()
    assert not got[3].any()
    np.testing.assert_array_equal(np.delete(got, 3, 0), np.delete(t.w_q, 3, 0))


def test_blocks_of_several_scales_are_no_b158(tmp_path):
    t = held(BITNET)[Q]
    w = t.w_q * np.float32(0.5)
    w[7] *= 3
    blocks = gguf.quants.quantize(w, gguf.GGMLQuantizationType.TQ2_0)
    make(tmp_path / "m", settings(BITNET),
         stored(held(BITNET), tq) | {gguf_name(Q): ("TQ2_0", w.shape, blocks.tobytes())})
    with refusal("blk.0.attn_q.weight", "one scale", "0.5, 1.5"):
        open_gguf(tmp_path / "m").read(Q)


def test_a_ternary_llama(tmp_path):
    """TQ matrices under the name of a LLaMA: ternary, block norms alone, q and k in its order of rows."""
    cfg = replace(BITNET, norm="pre")
    table = held(cfg)
    full = write_gguf(tmp_path / "f", source(replace(cfg, linear="full"), {
        n: t.w_q.astype(np.float32) if isinstance(t, Trits) else t for n, t in table.items()}), "f32")
    rows = raw(read_header(full.path).tensors[gguf_name(Q)]).view(np.float32)
    made = stored(table, tq)
    for name in [n for n in table if n.endswith(("wq", "wk"))]:
        there = raw(read_header(full.path).tensors[gguf_name(name)]).view(np.float32)
        made[gguf_name(name)] = tq(Trits(there, table[name].w_scale))
    assert not np.array_equal(rows, table[Q].w_q)
    make(tmp_path / "m", settings(cfg, "llama"), made)
    got = open_gguf(tmp_path / "m")
    assert got.cfg == without_std(cfg)
    assert_same(got, table, np.float16)


def test_floats_of_a_bitnet(tmp_path):
    """-s, 0 and +s are trits, with that s; masters are ternarised by absmean."""
    table = held(BITNET)
    masters = np.random.default_rng(1).normal(0, 0.1, table[Q].w_q.shape).astype(np.float32)
    made = stored(table, lambda t: by_hand.floats(t.w_q * t.w_scale))
    make(tmp_path / "m", settings(BITNET), made | {gguf_name(Q): by_hand.floats(masters)})
    want = Trits(*absmean_ternary(masters))
    assert_same(open_gguf(tmp_path / "m"), {**table, Q: want})


def test_a_coarse_embedding(tmp_path):
    """llama-quantize stores it in blocks; it comes as float32."""
    table = held(BITNET)
    e = gguf.quants.quantize(table["embedding"], gguf.GGMLQuantizationType.Q8_0)
    make(tmp_path / "m", settings(BITNET),
         stored(table, tq) | {"token_embd.weight": ("Q8_0", table["embedding"].shape, e.tobytes())})
    np.testing.assert_allclose(open_gguf(tmp_path / "m").read("embedding"), table["embedding"], atol=2e-3)


def test_relu2_for_mainline_is_an_opt_in(tmp_path):
    cfg = replace(BITNET, glu="relu2")
    with refusal("SiLU", "relu2"):
        write_gguf(tmp_path / "m", source(cfg), "tq2_0")
    made = write_gguf(tmp_path / "m", source(cfg), "tq2_0", relu2=True)
    assert any("wrong" in note for note in made.notes)
    assert read_header(tmp_path / "m").settings["bitnet.hidden_activation"] == "relu2"
    assert open_gguf(tmp_path / "m").cfg == without_std(cfg)


# --- what is not written -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cfg", "kind", "words"), [
    (replace(BITNET, tied_embeddings=False), "f32", ["tied embeddings", "output.weight"]),
    (replace(BITNET, norm="pre"), "tq2_0", ["norm = sub", "pre"]),
    (replace(BITNET, norm="inner"), "f16", ["norm = sub", "inner"]),
    (replace(BITNET, head="ternary"), "f32", ["head must be full"]),
    (replace(BITNET, d_model=128), "tq1_0", ["layers.0.attn.wq", "multiple of 256", "128"]),
    (replace(BITNET, d_ff=320), "tq2_0", ["layers.0.ffn.w_down", "320"]),
    (replace(BITNET, d_model=64), "i2_s", ["layers.0.attn.wq", "multiple of 128", "64"]),
    (LLAMA, "tq2_0", ["full-precision", "f32 or f16"]),
    (replace(LLAMA, norm="sub"), "f32", ["norm = pre", "sub"]),
    (replace(LLAMA, glu="relu2"), "f32", ["SwiGLU", "relu2"]),
    (BITNET, "q4_0", ["kind", "f32, f16, tq1_0, tq2_0, i2_s"])])
def test_what_llama_cpp_does_not_run(cfg, kind, words, tmp_path):
    with refusal(*words):
        write_gguf(tmp_path / "m", source(cfg), kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_values_out_of_range_leave_no_file(bad, tmp_path):
    table = held(BITNET)
    table["embedding"][3, 3] = bad
    with refusal("embedding", "finite in F16"):
        write_gguf(tmp_path / "m", source(BITNET, table), "tq2_0")
    table = held(BITNET)
    table[Q] = Trits(table[Q].w_q, np.float32(bad if bad != 1e6 else 0))
    with refusal(Q, "positive and finite"):
        write_gguf(tmp_path / "m", source(BITNET, table), "i2_s")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_can_hold(tmp_path):
    with refusal("settings"):
        write_gguf(tmp_path / "m", source(BITNET, about=About("\ud800")), "f32")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with refusal('pip install ".[export]"'):
        write_gguf(tmp_path / "m", source(BITNET), "f32")


def test_memory_is_that_of_a_tensor(tmp_path):
    """50 MiB of model; the largest tensor is its embedding, 32 MiB; 4 M values are converted at a time."""
    cfg = small_config(vocab_size=32768, d_model=256, d_ff=1024, n_heads=4, n_kv_heads=4, n_layers=4)
    table = held(cfg)
    write_gguf(tmp_path / "first", source(BITNET), "tq2_0")                   # the library is loaded by now
    for kind in ("f16", "tq2_0"):
        tracemalloc.start()
        write_gguf(tmp_path / "m", source(cfg, table), kind)
        got = open_gguf(tmp_path / "m")
        for name in got.specs:
            got.read(name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 80 << 20, f"{kind}: {peak >> 20} MiB"


# --- files of strangers ------------------------------------------------------------------------------------


def good(tmp_path, **change):
    """A file of which everything is right but `change`."""
    return make(tmp_path / "m", settings(BITNET, **change), stored(held(BITNET), tq))


@pytest.mark.parametrize(("change", "words"), [
    ({"general.architecture": "qwen2"}, ["general.architecture", "qwen2"]),
    ({"general.architecture": 5}, ["general.architecture", "5"]),
    ({"general.architecture": ...}, ["general.architecture"]),
    ({"_arch.embedding_length": ...}, ["bitnet.embedding_length"]),
    ({"_arch.embedding_length": 255}, ["d_model", "255"]),
    ({"_arch.embedding_length": (10, 1 << 60)}, ["token_embd.weight"]),
    ({"_arch.embedding_length": 256.0}, ["d_model", "256.0"]),
    ({"_arch.block_count": (10, 1 << 60)}, ["layers"]),
    ({"_arch.block_count": 3}, ["blk.2."]),
    ({"_arch.block_count": 1}, ["no tensor besides", "blk.1."]),
    ({"_arch.attention.head_count": ["4", "4"]}, ["head_count", "list"]),
    ({"_arch.attention.head_count": [(5, 4), (5, 4)]}, ["head_count", "ndarray"]),
    ({"_arch.attention.head_count": 0}, ["n_heads"]),
    ({"_arch.attention.layer_norm_rms_epsilon": float("nan")}, ["norm_eps"]),
    ({"_arch.rope.dimension_count": 32}, ["rope.dimension_count", "64"]),
    ({"_arch.attention.key_length": 32}, ["key_length"]),
    ({"_arch.rope.scaling.type": "yarn"}, ["rope.scaling", "yarn"]),
    ({"_arch.rope.scaling.type": "linear", "_arch.rope.scaling.factor": 4.0}, ["rope.scaling", "4.0"]),
    ({"_arch.expert_count": 8}, ["expert_count", "8"]),
    ({"_arch.attention.sliding_window": 128}, ["sliding_window"]),
    ({"_arch.hidden_activation": "gelu"}, ["hidden_activation", "gelu"]),
    ({"_arch.vocab_size": 14}, ["vocab_size", "14"]),
    ({"split.count": (2, 3)}, ["whole", "3"]),
    ({"general.alignment": 7}, ["general.alignment", "7"]),
    ({"general.alignment": 1 << 30}, ["general.alignment"]),
    ({"general.name": 4}, ["general.name", "text", "int"]),
    ({"tokenizer.ggml.bos_token_id": 13}, ["bos_token_id", "13"]),
    ({"tokenizer.ggml.model": "bert"}, ["tokenizer.ggml.model", "bert"]),
    ({"tokenizer.ggml.model": "gpt2"}, ["tokenizer.ggml.tokens"]),
    ({"i2_s.layout": "x"}, ["i2_s.layout", "x"])])
def test_settings_of_strangers(change, words, tmp_path):
    with refusal(*words):
        open_gguf(good(tmp_path, **change))


def test_harmless_settings(tmp_path):
    good(tmp_path, **{"_arch.rope.scaling.type": "linear", "_arch.rope.scaling.factor": 1.0, "x": [1.5, 2.5],
                      "z": (12, 0.5), "tokenizer.ggml.model": "no_vocab", "u": (7, True), "w": [(7, True)]})
    assert open_gguf(tmp_path / "m").cfg == without_std(BITNET)


@pytest.mark.parametrize(("name", "kind", "shape", "data", "words"), [
    (gguf_name(Q), "F32", (256, 255), bytes(4 * 256 * 255), ["blk.0.attn_q.weight", "(256, 255)"]),
    (gguf_name(Q), "Q8_0", (256, 256), bytes(34 * 8 * 256), ["blk.0.attn_q.weight", "Q8_0"]),
    ("output_norm.weight", "TQ2_0", (256,), bytes(66), ["output_norm.weight", "TQ2_0"]),
    ("rope_freqs.weight", "F32", (32,), bytes(128), ["no tensor besides", "rope_freqs.weight"]),
    ("output.weight", "F32", (13, 255), bytes(4 * 13 * 255), ["output.weight"]),
    (gguf_name(Q, "scale"), "F32", (2,), bytes(8), ["blk.0.attn_q.scale", "(2,)"]),
    ("token_embd.scale", "F32", (1,), bytes(4), ["token_embd.scale"])])
def test_tensors_that_do_not_belong(name, kind, shape, data, words, tmp_path):
    make(tmp_path / "m", settings(BITNET), stored(held(BITNET), tq) | {name: (kind, shape, data)})
    with refusal(*words):
        open_gguf(tmp_path / "m")


@pytest.mark.parametrize(("name", "matrices", "data", "words"), [
    ("final_norm", tq, np.full(256, np.nan, np.float32), ["output_norm.weight", "finite"]),
    (Q, i2s, np.r_[np.full(256 * 64, 255, np.uint8), np.zeros(32, np.uint8)], ["blk.0.attn_q.weight", "a 3"]),
    (Q, i2s, np.r_[np.full(256 * 64, 85, np.uint8), np.full(32, 255, np.uint8)], ["attn_q", "w_scale"]),
    (Q, tq, np.full((256, 66), 255, np.uint8), ["blk.0.attn_q.weight", "positive", "nan"]),
    (Q, tq, np.full((256, 66), 188, np.uint8), ["blk.0.attn_q.weight", "positive", "-"]),
    (Q, tq, np.full((256, 66), 60, np.uint8), ["blk.0.attn_q.weight", "0, 1 or 2"])])
def test_values_of_strangers(name, matrices, data, words, tmp_path):
    made = stored(held(BITNET), matrices)
    made[gguf_name(name)] = (*made[gguf_name(name)][:2], data.tobytes())
    make(tmp_path / "m", settings(BITNET), made)
    got = open_gguf(tmp_path / "m", i2s="128" if matrices is i2s else None)
    with refusal(*words):
        got.read(name)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scale_tensors_of_strangers(scale, tmp_path):
    made = stored(held(BITNET), tq) | {gguf_name(Q, "scale"): by_hand.floats(np.float32([scale]))}
    make(tmp_path / "m", settings(BITNET), made)
    with refusal("blk.0.attn_q.scale", "positive"):
        open_gguf(tmp_path / "m").read(Q)


def test_a_scale_that_overflows(tmp_path):
    """Each part is finite, their product is not; nor is the mean of the largest masters."""
    made = stored(held(BITNET), tq) | {gguf_name(Q, "scale"): by_hand.floats(np.float32([3e38]))}
    t = held(BITNET)[Q]
    masters = np.where(t.w_q == 0, 1, t.w_q * np.float32(3e38))
    for name, data in ((Q, tq(Trits(t.w_q, 9.0))), ("layers.0.attn.wo", by_hand.floats(np.float32(masters)))):
        make(tmp_path / "m", settings(BITNET), made | {gguf_name(name): data})
        with refusal(gguf_name(name), "must be finite"), np.errstate(over="ignore"):
            open_gguf(tmp_path / "m").read(name)


HUGE = 1 << 60
HEADERS = {
    "nothing": (b"", ["24 bytes"]),
    "another magic": (head(0, 0, magic=b"GGML"), ["begin with GGUF", "GGML"]),
    "version 1": (head(0, 0, 1), ["version 2 or 3", "1"]),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), ["little-endian"]),
    "tensors without end": (head(HUGE, 0), ["count of tensors", str(HUGE)]),
    "settings without end": (head(0, HUGE), ["count of settings", str(HUGE)]),
    "no settings": (head(0, 2), ["name 0"]),
    "a long name": (head(0, 1) + struct.pack("<Q", HUGE) + b"abc", ["length of name 0", str(HUGE)]),
    "a name past the end": (head(0, 1) + struct.pack("<Q", 99) + b"abc", ["name 0", "3 bytes instead of 99"]),
    "no UTF-8": (head(0, 1) + text(b"\xff"), ["UTF-8"]),
    "an unknown type": (head(0, 1) + text("a") + struct.pack("<I", 13), ["a in", "known type", "13"]),
    "a string past the end": (head(0, 1) + text("a") + struct.pack("<IQ", 8, 1 << 40), ["length of a"]),
    "strings without end": (head(0, 1) + text("a") + struct.pack("<IIQ", 9, 8, HUGE), ["count of a"]),
    "numbers without end": (head(0, 1) + text("a") + struct.pack("<IIQ", 9, 12, HUGE), ["count of a"]),
    "many numbers": (head(0, 1) + text("a") + struct.pack("<IIQ", 9, 12, 1 << 26), ["a", "0 bytes instead"]),
    "a word past the end": (head(0, 1) + text("a") + struct.pack("<IIQQ", 9, 8, 2, HUGE), ["a", str(HUGE)]),
    "words, no UTF-8": (head(0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1) + text(b"\xff"),
                        ["a in", "UTF-8"]),
    "arrays of arrays": (head(0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1), ["numbers or strings", "9"]),
    "a setting twice": (head(0, 2) + 2 * (text("a") + value(1)), ["once", "'a' twice"]),
    "no axes": (head(1, 0) + text("t") + struct.pack("<I", 0), ["axes", "0"]),
    "many axes": (head(1, 0) + text("t") + struct.pack("<I", 1 << 31), ["axes"]),
    "a huge shape": (head(1, 0) + entry("t", (HUGE, 4), 0, 0), ["sane shape", str(HUGE)]),
    "a shape of zero": (head(1, 0) + entry("t", (4, 0), 0, 0), ["sane shape", "0"]),
    "a large tensor": (head(1, 0) + entry("t", (1 << 40,), 0, 0), ["must hold t"]),
    "an unknown kind": (head(1, 0) + entry("t", (4,), 99, 0), ["t in", "type 99"]),
    "half a block": (head(1, 0) + entry("t", (255,), 35, 0), ["multiple of 256", "255"]),
    "a tensor twice": (head(2, 0) + entry("t", (1,), 0, 0) * 2, ["once", "'t' twice"]),
    "overlapping": (head(2, 0) + entry("t", (9,), 0, 0) + entry("u", (9,), 0, 32) + bytes(200),
                    ["overlap", "u at 32"]),
    "unaligned": (head(1, 0) + entry("t", (1,), 0, 4) + bytes(99), ["overlap", "t at 4"]),
    "a hole": (head(2, 0) + entry("t", (1,), 0, 0) + entry("u", (1,), 0, 64) + bytes(200),
               ["hole", "u at 64"]),
    "more than its tensors": (head(1, 0) + entry("t", (1,), 0, 0) + bytes(999), ["end with its last tensor"])}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_strangers(name, tmp_path):
    data, words = HEADERS[name]
    (tmp_path / "m").write_bytes(data)
    tracemalloc.start()
    with refusal(*words):
        read_header(tmp_path / "m")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


SMALL = small_config(d_model=16, d_ff=16, n_heads=2, n_kv_heads=1, n_layers=1, vocab_size=3)


@given(cut=st.floats(0, 1))
def test_a_truncated_file_is_refused(tmp_path_factory, cut):
    file = tmp_path_factory.mktemp("cut") / "m"
    make(file, settings(SMALL), stored(held(SMALL), partial(i2s, layout="4row")))
    data = file.read_bytes()
    file.write_bytes(data[:int(cut * (len(data) - 32))])
    with pytest.raises(CheckError, match="; got "):
        open_gguf(file, i2s="4row")


@given(at=st.integers(0, 2600), byte=st.integers(0, 255), more=st.integers(0, 7))
def test_damage_is_refused_or_harmless(tmp_path_factory, at, byte, more):
    """Whatever a byte of the header becomes: three parts, or a model."""
    file = tmp_path_factory.mktemp("damage") / "m"
    make(file, settings(SMALL), stored(held(SMALL), partial(i2s, layout="4row")))
    data = bytearray(file.read_bytes())
    data[at % len(data):at % len(data) + more] = bytes([byte]) * more
    file.write_bytes(data)
    try:
        got = open_gguf(file, i2s="4row")
        for name in got.specs:
            got.read(name)
    except CheckError as e:
        assert_three_parts(e)


# --- what a model says of itself ---------------------------------------------------------------------------


TOKENIZER = train_bpe(["ab ab abc abc"], 260)
WORDS = replace(BITNET, vocab_size=TOKENIZER.vocab_size)
KNOWN = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "do_sample": True}


@pytest.mark.parametrize("tokenizer", [None, TOKENIZER.json])
@pytest.mark.parametrize("about", [
    About(), About("a", 0, (0,)), About("a", None, (5,)), About("a", 3, ()), About("", 1, (9, 5, 7, 5)),
    About("x", 3, (5, 7), "{{ messages }} \U0001f642", KNOWN), About("x", 0, (0,), None, {"top_p": 1})])
def test_what_a_model_says_of_itself_comes_back(about, tokenizer, tmp_path):
    write_gguf(tmp_path / "m", source(WORDS, about=about, tokenizer=tokenizer), "f16")
    got = open_gguf(tmp_path / "m")
    assert (got.about, got.tokenizer) == (about, tokenizer)


@given(bos=st.none() | st.integers(0, 256), eos=st.lists(st.integers(0, 256), max_size=9),
       words=st.booleans(),
       template=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=9),
       how=st.fixed_dictionaries({}, optional={"temperature": st.floats(0, 100), "top_k": st.integers(0, 99),
                                               "do_sample": st.booleans()}))
def test_whatever_a_model_says_comes_back(bos, eos, words, template, how):
    """The settings alone: nothing is rounded, nothing is made up."""
    about = About("", bos, tuple(eos), template, how)
    held = tokenizer_settings(TOKENIZER.json, 260, about) if words else {}
    assert read_about(held | gguf_about.settings(about, held, 260), 260) == about


def test_usual_settings_say_it_alone(tmp_path):
    """Ours are there only where the usual ones do not do."""
    about = About("a", 3, (5, 7), "{{ x }}")
    for said, own in ((about, False), (about._replace(bos=None), True), (about._replace(eos=(5,)), False),
                      (about._replace(settings=KNOWN), True)):
        write_gguf(tmp_path / "m", source(WORDS, about=said, tokenizer=TOKENIZER.json), "f16")
        assert ("b158.about" in read_header(tmp_path / "m").settings) == own


@pytest.mark.parametrize(("change", "words"), [
    ({"bos": None}, "no first id"), ({"eos": ()}, "no last id"), ({"eos": (5, 7, 9)}, "all 3 are kept"),
    ({"settings": KNOWN}, "does not read the settings"), ({"chat_template": ""}, "empty"),
    ({"settings": {"seed": 3, "top_k": "x"}}, "left out: seed, top_k")])
def test_each_loss_is_a_note(change, words, tmp_path):
    about = About("a", 3, (5, 7))
    plain, notes = (write_gguf(tmp_path / "m", source(WORDS, about=a, tokenizer=TOKENIZER.json), "f16").notes
                    for a in (about, about._replace(**change)))
    new = [n for n in notes if n not in plain]
    assert len(new) == 1
    assert words in new[0]


LONG = "x" * ((1 << 20) + 1)


@pytest.mark.parametrize(("name", "v", "words"), [
    ("tokenizer.chat_template", LONG, ["chat_template", "1048576 bytes", "1,048,577"]),
    ("general.name", LONG, ["general.name", "1048576 bytes"]),
    ("tokenizer.chat_template", ["x"], ["chat_template", "text", "list"]),
    ("b158.about", LONG, ["b158.about", "1048576 bytes"]),
    ("b158.about", 3, ["b158.about", "text"]),
    ("b158.about", "{", ["b158.about of m", "JSON"]),
    ("b158.about", "[" * 99999, ["b158.about of m", "JSON"]),
    ("b158.about", "[]", ["b158.about of m", "bos, eos, settings"]),
    ("b158.about", '{"bos":0}', ["b158.about of m", "bos, eos, settings"]),
    ("b158.about", '{"bos":13,"eos":[],"settings":{}}', ["ids below 13", "13"]),
    ("b158.about", '{"bos":true,"eos":[],"settings":{}}', ["ids below 13", "True"]),
    ("b158.about", '{"bos":0,"eos":3,"settings":{}}', ["eos in", "list"]),
    ("b158.about", '{"bos":0,"eos":[%s0],"settings":{}}' % ("0," * 64), ["at most 64"]),
    ("b158.about", '{"bos":0,"eos":["a"],"settings":{}}', ["ids below 13", "'a'"]),
    ("b158.about", '{"bos":0,"eos":[],"settings":[]}', ["settings in", "table"]),
    ("b158.about", '{"bos":0,"eos":[],"settings":{"top_k":"x"}}', ["about of m", "top_k", "'x'"]),
    ("b158.about", '{"bos":0,"eos":[],"settings":{"temperature":NaN}}', ["temperature", "nan"])])
def test_what_strangers_say_of_a_model(name, v, words, tmp_path):
    with refusal(*words):
        open_gguf(good(tmp_path, **{name: v}))


def test_a_template_that_would_not_be_read_is_not_written(tmp_path):
    with refusal("chat_template", "1048576 bytes"):
        write_gguf(tmp_path / "m", source(BITNET, about=About("a", 0, (0,), LONG)), "f32")
    assert list(tmp_path.iterdir()) == []


def test_more_tokens_than_rows_of_the_embedding(tmp_path):
    words = [f"t{i}" for i in range(14)]
    for n in (13, 14):
        good(tmp_path, **{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": words[:n],
                          "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.pre": "gpt-2"})
        if n == 13:
            assert len(json.loads(open_gguf(tmp_path / "m").tokenizer)["model"]["vocab"]) == 13
        else:
            with refusal("tokenizer.ggml.tokens in m", "the embedding's 13", "14"):
                open_gguf(tmp_path / "m")


@pytest.mark.parametrize("v", [True, (5, -1), (10, 1 << 63), 1.5, float("nan"), "", "x", ["x"], [(4, 3)],
                               [(6, 0.5), (6, 0.5)], [(7, True)]], ids=repr)
def test_any_type_of_any_setting(v, tmp_path):
    """Three parts, or a model."""
    known = settings(SMALL, **{"general.name": "a", "tokenizer.chat_template": "b", "split.count": 1,
                               "general.alignment": 32, "b158.about": "c", "i2_s.layout": "4row"})
    more = ["vocab_size", "rope.dimension_count", "attention.key_length", "expert_count", "rope.scaling.type",
            "rope.scaling.factor", "attention.sliding_window", "hidden_activation"]
    known |= dict.fromkeys(f"bitnet.{name}" for name in more)
    known |= dict.fromkeys(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot"))
    tensors = stored(held(SMALL), partial(i2s, layout="4row"))
    for name in known:
        made = {n: x for n, x in known.items() if x is not None and n != "b158.about"}
        make(tmp_path / "m", made | {name: v}, tensors)
        try:
            open_gguf(tmp_path / "m").read(Q)
        except CheckError as e:
            assert_three_parts(e)


def test_what_a_path_holds_is_asked_in_one_place(tmp_path):
    """By its first bytes, whatever its name; a model whose layout nobody said can be described."""
    file = make(tmp_path / "a.bin", settings(BITNET), stored(held(BITNET)))
    assert opened.is_gguf is is_gguf
    assert opened.kind_of(file) == "gguf"
    assert opened.open_model(file).storage == "I2_S, layout not said"
    assert opened.open_model(file, "64").storage == "I2_S 64"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are not everywhere")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not is_gguf(tmp_path / "pipe")
    with refusal("neither file nor folder"):
        opened.kind_of(tmp_path / "pipe")


def test_no_file(tmp_path):
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "none")
    for path in (tmp_path, tmp_path / "none"):
        with refusal(path):
            open_gguf(path)


def test_the_bounds_hold_published_files():
    """280,147 merges and a header of 8 MB (2B4T's) fit."""
    assert gguf_header.LARGEST_STRINGS > 2 * 280147
    assert gguf_header.LARGEST_HEADER > 4 << 23
    assert gguf_read.BLOCK == gguf_write.BLOCK
