"""formats/hf: every family of Hugging Face folders is read; a damaged one is refused by what is wrong."""

import json
import os
import tracemalloc
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from hollow import hollow
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from strategies import small_config, small_params
from tiny import refusal

from bitnet_ref.checks import CheckError
from bitnet_ref.config import PRESETS
from bitnet_ref.formats import hf, safetensors_stream
from bitnet_ref.formats.hf_config import parse_config, read_config
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.safetensors_stream import LARGEST_HEADER, blocks, read_header, rows
from bitnet_ref.formats.source import of_weights
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits, ternarise
from bitnet_ref.pack.rosetta import unpack_hf

OPS = load("numpy")
BF16 = ml_dtypes.bfloat16
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
FAMILIES = [("sub", "relu2", True, False), ("pre", "swiglu", False, True), ("sub", "swiglu", False, True),
            ("pre", "relu2", True, False)]             # norm, glu, tied, inverse_scale
Q = "model.layers.0.self_attn.q_proj.weight"


def rounded(x):
    return np.asarray(x, np.float32).astype(BF16).astype(np.float32)


def packed(folder, norm="sub", glu="relu2", tied=True, inverse=False, seed=0):
    """(cfg, weights) of a small model, written to `folder`."""
    cfg = small_config(norm=norm, glu=glu, tied_embeddings=tied, init_std=0.02)
    weights = ternarise(cfg, small_params(cfg, seed, np.float32), OPS)
    write_hf(folder, of_weights(cfg, weights), "divide" if inverse else "multiply")
    return cfg, weights


def floats(folder, record, cfg, rename=lambda name: name, dtype=BF16, seed=0):
    """Float masters under other people's names, and their config.json. Returns the parameters."""
    params = small_params(cfg, seed, np.float32)
    params.flat[:] = rounded(params.flat)
    tensors = {rename(s.hf_name): params[s.name].astype(dtype) for s in params.specs}
    folder.mkdir(exist_ok=True)
    (folder / hf.SINGLE).write_bytes(save(tensors, {"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(record))
    return params


def record_of(cfg, architecture, **more):
    """A config.json as published ones are: no defaults left out that matter."""
    return {"architectures": [architecture], "model_type": "llama", "vocab_size": cfg.vocab_size,
            "hidden_size": cfg.d_model, "intermediate_size": cfg.d_ff, "num_hidden_layers": cfg.n_layers,
            "num_attention_heads": cfg.n_heads, "num_key_value_heads": cfg.n_kv_heads,
            "rms_norm_eps": cfg.norm_eps, "hidden_act": {"swiglu": "silu", "relu2": "relu2"}[cfg.glu],
            "rope_theta": cfg.rope_theta, "max_position_embeddings": cfg.context,
            "tie_word_embeddings": cfg.tied_embeddings,
            "initializer_range": cfg.init_std, **more}


def edit(folder, **values):
    """Other values in config.json; ... removes one."""
    record = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in record.items() if v is not ...}))


def tensors_of(folder):
    return {name: np.array(rows(t)) for name, t in read_header(folder / hf.SINGLE).items()}


def rewrite(folder, change):
    """The same file after `change(tensors)`."""
    tensors = tensors_of(folder)
    change(tensors)
    (folder / hf.SINGLE).write_bytes(save(tensors, {"format": "pt"}))


def raw(folder, table, data=b"", length=None):
    """A safetensors file with any header."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    length = len(text) if length is None else length
    (folder / hf.SINGLE).write_bytes(length.to_bytes(8, "little") + text + data)
    return folder / hf.SINGLE


def shard(folder, n=2):
    """The single file, split into n shards and an index."""
    held = tensors_of(folder)
    (folder / hf.SINGLE).unlink()
    names = sorted(held)
    where = {name: f"model-{i % n + 1:05d}-of-{n:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        (folder / file).write_bytes(save({t: held[t] for t in names if where[t] == file}, {"format": "pt"}))
    (folder / hf.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


# --- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "glu", "tied", "inverse"), FAMILIES)
def test_what_is_written_is_read(norm, glu, tied, inverse, tmp_path):
    """Trits exactly; scales and floats as bfloat16 holds them, the scale of a reciprocal likewise."""
    cfg, weights = packed(tmp_path, norm, glu, tied, inverse)
    assert read_config(tmp_path).storage == ("divide" if inverse else "multiply")
    got_cfg, got = hf.read(tmp_path)
    assert got_cfg == cfg
    assert got.keys() == weights.keys()
    for name, w in weights.items():
        if isinstance(w, Trits):
            np.testing.assert_array_equal(got[name].w_q, w.w_q)
            want = 1 / rounded(1 / w.w_scale) if inverse else rounded(w.w_scale)
            assert (got[name].w_scale, got[name].w_scale.dtype) == (want, np.float32)
        else:
            np.testing.assert_array_equal(got[name], rounded(w))
            assert got[name].dtype == np.float32
    assert (got["head"] is got["embedding"]) == tied
    assert np.isfinite(Transformer(got_cfg, got, OPS)(np.arange(5))[0]).all()


def test_the_layout_of_a_packed_file(tmp_path):
    """2B4T's names, dtypes and shapes (facts of the published header)."""
    _, weights = packed(tmp_path)
    held = read_header(tmp_path / hf.SINGLE)
    assert (held[Q].dtype, held[Q].shape) == ("U8", (4, 16))
    assert (held[Q + "_scale"].dtype, held[Q + "_scale"].shape) == ("BF16", (1,))
    assert held["model.layers.1.mlp.ffn_sub_norm.weight"].shape == (20,)
    assert "lm_head.weight" not in held
    np.testing.assert_array_equal(unpack_hf(rows(held[Q]), 16), weights["layers.0.attn.wq"].w_q)


@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32, np.float64])
def test_bf16_masters_are_ternarised_in_float32(dtype, tmp_path):
    """2B4T's bf16 repository: the config says online."""
    cfg = small_config(norm="sub", glu="relu2")
    record = record_of(cfg, "BitNetForCausalLM", quantization_config=ONLINE)
    params = floats(tmp_path, record, cfg, dtype=dtype)
    if dtype is np.float16:
        params.flat[:] = params.flat.astype(np.float16)
    assert hf.read(tmp_path)[0] == cfg
    for name, w in hf.read(tmp_path)[1].items():
        want = ternarise(cfg, params, OPS)[name]
        if isinstance(w, Trits):
            np.testing.assert_array_equal(w.w_q, want.w_q)
            assert w.w_scale == want.w_scale
        else:
            np.testing.assert_array_equal(w, want)


def test_1bitllm_has_other_names_for_the_sub_norms(tmp_path):
    cfg = small_config(norm="sub", glu="swiglu", n_kv_heads=4)
    record = record_of(cfg, "BitnetForCausalLM", weight_bits=1, input_bits=8, rope_scaling=None)

    def rename(name):
        return name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm")

    params = floats(tmp_path, record, cfg, rename, np.float16)
    got_cfg, got = hf.read(tmp_path)
    assert got_cfg == cfg
    np.testing.assert_array_equal(got["layers.1.ffn_sub_norm"],
                                  params["layers.1.ffn_sub_norm"].astype(np.float16).astype(np.float32))
    assert isinstance(got["layers.1.ffn.w_down"], Trits)


@pytest.mark.parametrize("tied", [True, False])
def test_a_plain_llama_is_read_as_it_is(tied, tmp_path):
    cfg = small_config(norm="pre", linear="full", tied_embeddings=tied)
    params = floats(tmp_path, record_of(cfg, "LlamaForCausalLM"), cfg)
    got_cfg, got = hf.read(tmp_path)
    assert got_cfg == cfg
    for spec in params.specs:
        np.testing.assert_array_equal(got[spec.name], params[spec.name])
    ids = np.arange(9)
    np.testing.assert_array_equal(Transformer(cfg, got, OPS)(ids)[0], Transformer(cfg, params, OPS)(ids)[0])


def test_shards_are_one_model(tmp_path):
    _, weights = packed(tmp_path)
    _, single = hf.read(tmp_path)
    shard(tmp_path, 3)
    _, sharded = hf.read(tmp_path)
    assert sharded.keys() == weights.keys()
    for name, w in single.items():
        np.testing.assert_array_equal(sharded[name].w_q if isinstance(w, Trits) else sharded[name],
                                      w.w_q if isinstance(w, Trits) else w)


def test_the_hub_keeps_files_as_links_into_its_blobs(tmp_path):
    home, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    home.mkdir(parents=True)
    blobs.mkdir()
    packed(home)
    os.rename(home / hf.SINGLE, blobs / "1234")
    os.symlink(blobs / "1234", home / hf.SINGLE)
    assert hf.read(home)[0].n_layers == 2


def test_tensors_come_one_by_one_and_rows_by_themselves(tmp_path):
    cfg, weights = packed(tmp_path)
    opened = hf.open_folder(tmp_path)
    assert list(opened.stored) == [s.name for s in param_specs(cfg)]
    assert hf.tensor(opened, "final_norm").dtype == BF16
    ids = np.array([3, 0, 3])
    np.testing.assert_array_equal(hf.embedding_rows(opened, ids), rounded(weights["embedding"])[ids])
    np.testing.assert_array_equal(np.concatenate(list(hf.head_rows(opened))), rounded(weights["embedding"]))


def test_blocks_are_all_rows_in_order(tmp_path):
    packed(tmp_path)
    for t in read_header(tmp_path / hf.SINGLE).values():
        whole = np.array(rows(t))
        for n_bytes in (1, 40, 1 << 20):
            np.testing.assert_array_equal(np.concatenate(list(blocks(t, n_bytes))), whole)


def test_opening_allocates_nothing_of_the_size_of_the_file(tmp_path):
    """A 2B4T of holes: 1.2 GB by its header, nothing on the disk."""
    cfg = PRESETS["2b4t"].model
    (tmp_path / "config.json").write_text(json.dumps(record_of(
        cfg, "BitNetForCausalLM", quantization_config=ONLINE | {"quantization_mode": "offline"})))
    hollow(tmp_path / hf.SINGLE, cfg, packed=True)
    assert (tmp_path / hf.SINGLE).stat().st_size > 1_178_000_000
    tracemalloc.start()
    opened = hf.open_folder(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened.config.model == cfg
    assert peak < 8 << 20
    assert not hf.embedding_rows(opened, np.array([128255])).any()


# --- config.json of strangers ------------------------------------------------------------------------------


PUBLISHED = {                        # config.json of microsoft/bitnet-b1.58-2B-4T
    "architectures": ["BitNetForCausalLM"], "auto_map": {}, "bos_token_id": 128000, "eos_token_id": 128001,
    "hidden_act": "relu2", "hidden_size": 2560, "initializer_range": 0.02, "intermediate_size": 6912,
    "max_position_embeddings": 4096, "model_type": "bitnet", "rms_norm_eps": 1e-05, "num_attention_heads": 20,
    "num_hidden_layers": 30, "num_key_value_heads": 5, "rope_theta": 500000.0, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256,
    "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear",
                            "quantization_mode": "offline"}}


def test_the_published_config_is_the_preset():
    config = parse_config(PUBLISHED)
    assert (config.model, config.storage, config.bos) == (PRESETS["2b4t"].model, "multiply", 128000)


@pytest.mark.parametrize(("quantization", "storage"), [
    ({"quant_method": "bitnet"}, "divide"), (ONLINE, "masters"),
    (ONLINE | {"quantization_mode": "offline"}, "multiply"),
    (ONLINE | {"linear_class": "bitlinear"}, "divide"),
    ({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}, "divide")])
def test_linear_class_says_how_the_weights_are_stored(quantization, storage):
    assert parse_config(PUBLISHED | {"quantization_config": quantization}).storage == storage


def test_absent_fields_have_the_defaults_of_transformers():
    needed = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
    config = parse_config({n: PUBLISHED[n] for n in needed} | {"architectures": ["LlamaForCausalLM"]})
    m = config.model
    assert (m.n_kv_heads, m.context, m.norm_eps, m.rope_theta) == (20, 2048, 1e-6, 10000.0)
    assert (m.glu, m.tied_embeddings, m.norm, config.storage) == ("swiglu", False, "pre", "full")


def test_newer_files_keep_theta_in_rope_parameters():
    rope = {"rope_type": "default", "rope_theta": 12345.0}
    assert parse_config(PUBLISHED | {"rope_parameters": rope}).model.rope_theta == 12345.0
    assert parse_config(PUBLISHED | {"head_dim": 128}).model.head_dim == 128


@pytest.mark.parametrize(("change", "words"), [
    ({"architectures": ["Qwen2ForCausalLM"]}, ["architectures", "Qwen2ForCausalLM", "Llama"]),
    ({"architectures": None}, ["one architecture"]), ({"architectures": [7]}, ["one architecture"]),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling", "linear"]),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["rope_scaling", "llama3"]),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
     ["partial_rotary_factor"]),
    ({"rope_scaling": 3}, ["rope_scaling must be a table"]), ({"rope_theta": "big"}, ["rope_theta", "float"]),
    ({"attention_bias": True}, ["attention_bias"]), ({"mlp_bias": True}, ["mlp_bias"]),
    ({"head_dim": 64}, ["head_dim", "64, not 128"]), ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
    ({"hidden_act": ["relu2"]}, ["hidden_act"]), ({"weight_bits": 2}, ["weight_bits"]),
    ({"sliding_window": 512}, ["sliding_window"]), ({"partial_rotary_factor": 0.5}, ["partial_rotary"]),
    ({"quantization_config": None}, ["must have a quantization_config", "online"]),
    ({"quantization_config": {"quant_method": "gptq"}}, ["quant_method bitnet"]),
    ({"quantization_config": []}, ["quant_method bitnet"]),
    ({"quantization_config": ONLINE | {"use_rms_norm": True}}, ["use_rms_norm"]),
    ({"quantization_config": ONLINE | {"linear_class": "other"}}, ["linear_class", "other"]),
    ({"quantization_config": ONLINE | {"quantization_mode": 3}}, ["quantization_mode"]),
    ({"quantization_config": ONLINE | {"modules_to_not_convert": []}}, ["modules_to_not_convert"]),
    ({"hidden_size": "2560"}, ["hidden_size must be int"]),
    ({"hidden_size": -2}, ["hidden_size"]),
    ({"hidden_size": True}, ["hidden_size must be int"]),
    ({"num_hidden_layers": 1e9}, ["num_hidden_layers must be int"]),
    ({"num_hidden_layers": 1 << 70}, ["num_hidden_layers", "2^64"]),
    ({"num_key_value_heads": 3}, ["must be a multiple of num_key_value_heads"]),
    ({"rms_norm_eps": float("nan")}, ["norm_eps"]), ({"bos_token_id": 128256}, ["bos_token_id"]),
    ({"bos_token_id": [1]}, ["bos_token_id"]), ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings"]),
], ids=str)
def test_what_a_config_may_not_say(change, words):
    with refusal(*words):
        parse_config(PUBLISHED | change)


def test_a_bitnet_whose_matrices_are_meant_as_they_are(tmp_path):
    """Ours alone say so; without the word it would be a BitNet that has lost its quantization_config."""
    plain = {"quantization_config": None, "full_precision": True}
    """Ours alone say so; without the word it is a BitNet that has lost its quantization_config."""
    for no in (False, 1, "yes", None):
        with refusal("must have a quantization_config"):
            parse_config(PUBLISHED | plain | {"full_precision": no})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\ufeff{}"])
def test_damaged_config_json(text, tmp_path):
    packed(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with refusal("config.json"):
        hf.read(tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    packed(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with refusal("config.json", "JSON"):
        hf.read(tmp_path)


def test_a_huge_json_is_not_read(tmp_path, monkeypatch):
    packed(tmp_path)
    monkeypatch.setattr(safetensors_stream, "LARGEST_JSON", 100)
    with refusal("config.json", "at most 100 bytes"):
        hf.read(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", hf.SINGLE])
def test_a_folder_without_a_part(missing, tmp_path):
    packed(tmp_path)
    (tmp_path / missing).unlink()
    with refusal(missing):
        hf.read(tmp_path)


def test_layouts_that_hugging_face_has_no_class_for(tmp_path):
    for changes, words in (({"norm": "inner"}, "no class"), ({"linear": "full"}, "storage must be full"),
                           ({"head": "ternary"}, "no class")):
        cfg = small_config(**changes)
        with refusal(words):
            weights = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
            write_hf(tmp_path, of_weights(cfg, weights), "multiply")
    cfg = small_config(d_ff=18)
    with refusal("w_gate", "multiple of 4"):
        write_hf(tmp_path, of_weights(cfg, ternarise(cfg, small_params(cfg, 0, np.float32), OPS)))


# --- damaged files -----------------------------------------------------------------------------------------


A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(("table", "data", "words"), [
    ({"a": A}, b"\0" * 23, ["must have", "bytes that its header declares"]),
    ({"a": A}, b"\0" * 25, ["bytes that its header declares"]),
    ({"a": A | {"data_offsets": [0, 20]}}, b"\0" * 20, ["a in", "must have 24 bytes"]),
    ({"a": A | {"data_offsets": [24, 0]}}, b"\0" * 24, ["must have 24 bytes"]),
    ({"a": A | {"data_offsets": [-24, 0]}}, b"\0" * 24, ["data_offsets"]),
    ({"a": A | {"data_offsets": [0, 24.0]}}, b"\0" * 24, ["data_offsets"]),
    ({"a": A | {"data_offsets": [0]}}, b"\0" * 24, ["data_offsets"]),
    ({"a": A, "b": A | {"data_offsets": [12, 36]}}, b"\0" * 36, ["without overlap or hole", "b at byte"]),
    ({"a": A, "b": A}, b"\0" * 24, ["without overlap or hole"]),
    ({"a": A | {"data_offsets": [8, 32]}}, b"\0" * 32, ["without overlap or hole"]),
    ({"a": A | {"shape": [1 << 40, 1 << 40]}}, b"\0" * 24, ["must have", str(4 << 80)]),
    ({"a": A | {"shape": [-2, -3]}}, b"", ["shape"]), ({"a": A | {"shape": "23"}}, b"", ["shape"]),
    ({"a": A | {"shape": [True, 6]}}, b"", ["shape"]), ({"a": A | {"shape": [1] * 9 + [6]}}, b"", ["shape"]),
    ({"a": A | {"dtype": "F4"}}, b"", ["dtype", "'F4'"]), ({"a": A | {"dtype": None}}, b"", ["dtype"]),
    ({"a": 5}, b"", ["dtype, shape and data_offsets"]), ([A], b"", ["must be a table"]),
    (b"{", b"", ["valid JSON"]), (b"\xff\xff", b"", ["valid JSON"]), (b'{"a":1,"a":2}', b"", ["twice"]),
], ids=str)
def test_a_damaged_safetensors_file(table, data, words, tmp_path):
    file = raw(tmp_path, table, data)
    with refusal(hf.SINGLE, *words):
        read_header(file)


@pytest.mark.parametrize(("content", "words"), [
    (b"", "8 bytes of header length"), (b"1234567", "8 bytes of header length"),
    ((50).to_bytes(8, "little") + b"{}", "must hold its header of 50 bytes"),
    ((LARGEST_HEADER + 1).to_bytes(8, "little") + b"{}", f"at most {LARGEST_HEADER} bytes"),
    (b"\xff" * 8 + b"{}", f"at most {LARGEST_HEADER} bytes")])
def test_a_header_that_is_not_there(content, words, tmp_path):
    (tmp_path / hf.SINGLE).write_bytes(content)
    with refusal(words):
        read_header(tmp_path / hf.SINGLE)


def test_every_cut_of_a_file_is_refused(tmp_path):
    packed(tmp_path)
    whole = (tmp_path / hf.SINGLE).read_bytes()
    for n in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / hf.SINGLE).write_bytes(whole[:n])
        with refusal(hf.SINGLE):
            hf.open_folder(tmp_path)


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.pop(Q), [Q, "U8", "got none"]),
    (lambda t: t.pop(Q + "_scale"), [Q + "_scale", "got none"]),
    (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[Q]}), ["layers.2", "must not be there"]),
    (lambda t: t.update({Q: t[Q].astype(np.float32)}), [Q, "must be U8", "got F32"]),
    (lambda t: t.update({Q: t[Q][:3]}), [Q, "(4, 16)", "(3, 16)"]),
    (lambda t: t.update({"model.norm.weight": np.ones(16, np.int16)}), ["model.norm.weight", "got I16"]),
    (lambda t: t.update({Q + "_scale": np.ones(2, np.float32)}), [Q + "_scale", "(1,)"]),
    (lambda t: t.update({Q.replace("weight", "bias"): np.ones(16, np.float32)}), ["bias", "must not be"]),
])
def test_tensors_that_disagree_with_the_config(change, words, tmp_path):
    packed(tmp_path)
    rewrite(tmp_path, change)
    with refusal(*words):
        hf.open_folder(tmp_path)


def test_more_layers_than_tensors_is_refused_before_a_list_is_made(tmp_path):
    packed(tmp_path)
    edit(tmp_path, num_hidden_layers=10**12)
    with refusal("must hold 1000000000000 layers", "38 tensors"):
        hf.open_folder(tmp_path)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 0.0])
@pytest.mark.parametrize("inverse", [False, True])
def test_a_bad_scale(scale, inverse, tmp_path):
    packed(tmp_path, inverse=inverse)
    rewrite(tmp_path, lambda t: t.update({Q + "_scale": np.array([scale], BF16)}))
    with refusal("layers.0.attn.wq", hf.SINGLE, "weight_scale must be positive and finite"):
        hf.read(tmp_path)


def test_a_code_3_names_its_tensor(tmp_path):
    packed(tmp_path)
    rewrite(tmp_path, lambda t: t[Q].__setitem__((1, 2), 0b00_11_00_00))
    with refusal("layers.0.attn.wq", hf.SINGLE, "code must be"):
        hf.read(tmp_path)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", [1, 40, 1 << 20])
def test_floats_that_are_not_finite(name, value, share, tmp_path, monkeypatch):
    """bfloat16, looked at in parts of any size; also at the end of the last one."""
    monkeypatch.setattr(hf, "SHARE", share)
    packed(tmp_path)
    hf.read(tmp_path)
    ours = {"model.norm.weight": "final_norm", "model.embed_tokens.weight": "embedding"}[name]
    for at in (3, -1):
        rewrite(tmp_path, lambda t: t[name].reshape(-1).__setitem__(at, value))             # noqa: B023
        with refusal(ours, hf.SINGLE, "must be finite"):
            hf.open_hf(tmp_path).read(ours)
        rewrite(tmp_path, lambda t: t[name].reshape(-1).__setitem__(at, 0))                 # noqa: B023


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_masters_that_are_not_finite(value, tmp_path):
    cfg = small_config(norm="sub", glu="relu2")
    floats(tmp_path, record_of(cfg, "BitNetForCausalLM", quantization_config=ONLINE), cfg)
    rewrite(tmp_path, lambda t: t[Q].__setitem__((2, 3), value))
    source = hf.open_hf(tmp_path)
    for get in (source.read, source.master):
        with refusal("layers.0.attn.wq", "must be finite"):
            get("layers.0.attn.wq")


def test_a_source_gives_floats_as_they_are_stored_and_keeps_no_map(tmp_path):
    cfg = small_config(norm="sub", glu="relu2")
    for dtype in (BF16, np.float16, np.float32, np.float64):
        floats(tmp_path, record_of(cfg, "BitNetForCausalLM", quantization_config=ONLINE), cfg, dtype=dtype)
        source = hf.open_hf(tmp_path)
        held = source.read("embedding")
        assert held.dtype == source.master("layers.0.attn.wq").dtype == dtype
        assert type(held) is np.ndarray
        assert held.base is None
        assert held.flags.writeable


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    packed(tmp_path)
    source = hf.open_hf(tmp_path)
    os.truncate(tmp_path / hf.SINGLE, 2000)
    with refusal(hf.SINGLE, "bytes that its header declares"):
        source.read("layers.1.ffn.w_down")


def test_superfluous_tensors_that_are_known_are_ignored(tmp_path):
    packed(tmp_path)
    rewrite(tmp_path, lambda t: t.update({
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
        "lm_head.weight": t["model.embed_tokens.weight"]}))
    assert hf.read(tmp_path)[0].tied_embeddings


# --- shards of strangers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "",
                                  "C:x", "a\\b", "a\0b"])
def test_a_shard_may_not_lie_elsewhere(name, tmp_path):
    folder = tmp_path / "model"
    packed(folder)
    where = shard(folder)
    (tmp_path / "out.safetensors").write_bytes(b"secret")
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(where, name)}))
    with refusal("plain file name"):
        hf.open_folder(folder)


def test_a_shard_may_not_lead_elsewhere(tmp_path):
    folder = tmp_path / "model"
    packed(folder)
    where = shard(folder)
    name = next(iter(where.values()))
    os.rename(folder / name, tmp_path / "outside")
    os.symlink(tmp_path / "outside", folder / name)
    with refusal("must lie in its folder", name):
        hf.open_folder(folder)


@pytest.mark.parametrize("name", ["config.json", hf.INDEX])
def test_no_small_file_may_lead_elsewhere(name, tmp_path):
    folder = tmp_path / "model"
    packed(folder)
    shard(folder)
    os.rename(folder / name, tmp_path / "outside")
    os.symlink(tmp_path / "outside", folder / name)
    with refusal("must lie in its folder", name):
        hf.open_folder(folder)


def test_what_a_config_may_not_say_names_the_file(tmp_path):
    packed(tmp_path)
    edit(tmp_path, num_attention_heads=3)
    with refusal(f"{tmp_path / 'config.json'}: hidden_size", "num_attention_heads", "another checkpoint"):
        hf.open_folder(tmp_path)


def test_a_missing_shard(tmp_path):
    packed(tmp_path)
    name = next(iter(shard(tmp_path).values()))
    (tmp_path / name).unlink()
    with refusal("every shard must be there", name):
        hf.open_folder(tmp_path)


@pytest.mark.parametrize("index", [b"{}", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": 3}}', b"{"])
def test_a_damaged_index(index, tmp_path):
    packed(tmp_path)
    shard(tmp_path)
    (tmp_path / hf.INDEX).write_bytes(index)
    with refusal(hf.INDEX):
        hf.open_folder(tmp_path)


def test_an_index_that_disagrees_with_its_shards(tmp_path):
    packed(tmp_path)
    where = shard(tmp_path)
    files = sorted(set(where.values()))
    where[Q] = next(f for f in files if f != where[Q])
    (tmp_path / hf.INDEX).write_text(json.dumps({"weight_map": where}))
    with refusal("must hold what the index says", Q):
        hf.open_folder(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    packed(tmp_path)
    where = shard(tmp_path)
    a, b = sorted(set(where.values()))
    (tmp_path / b).write_bytes((tmp_path / a).read_bytes())
    with refusal("must"):
        hf.open_folder(tmp_path)
    held = read_header(tmp_path / a)
    name = next(n for n in held if n.endswith("weight"))
    (tmp_path / b).write_bytes(save({name: np.array(rows(held[name]))}, {"format": "pt"}))
    with refusal("one shard", name):
        hf.open_folder(tmp_path)


# --- any damage -------------------------------------------------------------------------------------------


def whole(folder):
    """All that a conversion reads of a folder."""
    source = hf.open_hf(folder)
    for name in source.specs:
        source.read(name)


@given(st.data())
def test_damaged_bytes_are_refused_or_harmless(tmp_path_factory, data):
    """Any file of a folder cut, overwritten or with bytes put in: a CheckError, or a model; nothing else."""
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    packed(folder)
    if data.draw(st.booleans(), "in shards"):
        shard(folder)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ m }}"}')
    file = data.draw(st.sampled_from(sorted(folder.iterdir())), "file")
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        at = data.draw(st.integers(0, min(len(content), 6000)), "at")
        new = data.draw(st.binary(max_size=9) | st.sampled_from(
            [b"-1", b"9" * 30, b"null", b"1e999", b'"', b"]"]))
        kind = data.draw(st.sampled_from(["over", "in", "cut"]), "kind")
        content[at:{"over": at + len(new), "in": at, "cut": len(content)}[kind]] = new
    file.write_bytes(content)
    with suppress(CheckError):
        whole(folder)


ODD = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([1 << 60, -(1 << 60), 10**30]),
                st.floats(), st.text(max_size=3), st.just([]), st.just({}), st.just([1 << 60, 1]))


@given(st.data())
def test_odd_values_are_refused_or_harmless(tmp_path_factory, data):
    """Any value of any of the JSON texts replaced by another, the header of the weights among them."""
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    packed(folder)
    if data.draw(st.booleans(), "in the header"):
        content = (folder / hf.SINGLE).read_bytes()
        n = int.from_bytes(content[:8], "little")
        table = json.loads(content[8:8 + n])
        raw(folder, replaced(data, table), content[8 + n:])
    else:
        file = data.draw(st.sampled_from(["config.json", "generation_config.json"]))
        (folder / file).write_text(json.dumps(replaced(data, json.loads((folder / file).read_text()))))
    with suppress(CheckError):
        whole(folder)


def replaced(data, table):
    """The table with one value, at any depth, replaced."""
    at = table
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        key = data.draw(st.sampled_from(keys), "key")
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans(), "deeper"):
            at = at[key]
            continue
        at[key] = data.draw(ODD, "value")
        return table
