"""formats/onnx: onnxruntime gives the reference's logits in every variant, on trits of int8 or two bits."""

import json
import os
import re
import sys
import tracemalloc
from functools import cache
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NORMS, label, rows, seeds, small_batch, small_config, small_params, variants
from tiny import ROOT, refusal

from bitnet_ref.bench.golden import folder as golden_folder
from bitnet_ref.bench.random_model import NANO, random_weights
from bitnet_ref.config import ModelConfig, from_dict
from bitnet_ref.formats import hf, onnx_graph
from bitnet_ref.formats import onnx as writer
from bitnet_ref.formats.onnx import proto, tensor_bytes, write_onnx
from bitnet_ref.formats.source import About, Source
from bitnet_ref.generate.decode import decode
from bitnet_ref.kernels import load
from bitnet_ref.layers.bitlinear import prepare, ternary_linear
from bitnet_ref.model import Transformer
from bitnet_ref.model.layout import Entry
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits, Weights, ternarise
from bitnet_ref.pack.rosetta import unpack_hf
from bitnet_ref.quant import absmax_int8

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OPS = load("numpy")
MARGIN = 1e-3                        # of golden/models.py: so far from a tie, no rounding error moves a code
ALL = list(variants(norm=NORMS, glu=["swiglu", "relu2"], tied_embeddings=[True, False],
                    head=["full", "ternary"], linear=["ternary", "full"], n_kv_heads=[2, 4]))
FORMS = [("int8", False), ("2bit", False), ("int8", True), ("2bit", True)]
TOKENIZER = '{"model": {}}'


class Watched:
    """The reference's ops; the smallest distance of a value before rounding from a tie, and all codes."""

    def __init__(self):
        self.margin, self.codes = np.inf, []

    def __getattr__(self, name):
        return getattr(OPS, name)

    def absmax_int8(self, x):
        scaled = x.astype(np.float64) * (127 / np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5))
        self.margin = min(self.margin, np.abs(np.abs(scaled - np.floor(scaled)) - 0.5).min())
        codes = absmax_int8(x)
        self.codes.append(codes[0])
        return codes

    def rmsnorm_int8(self, x, g, eps):
        n, rstd = OPS.rmsnorm(x, g, eps)
        return *self.absmax_int8(n), rstd


def source(cfg, weights, **given):
    about = About("test", 0, (0,))
    return Source(Path("test"), "run", "test", cfg, given.get("about", about),
                  given.get("tokenizer", TOKENIZER), given.get("read", lambda name: weights[name]))


def clear(cfg, B=1, T=4):
    """(weights, ids, logits) of the first seed at which no code is near a tie."""
    for seed in range(1000):
        weights = ternarise(cfg, small_params(cfg, seed, np.float32), OPS)
        ids, ops = small_batch(cfg, seed, B, T)[0], Watched()
        logits, _ = Transformer(cfg, weights, ops)(ids)
        if ops.margin > MARGIN:
            return weights, ids, logits
    raise AssertionError("no seed is clear")


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def empty_past(opened, B=1):
    return {i.name: np.zeros((B, i.shape[1], 0, i.shape[3]), np.float32) for i in opened.get_inputs()[1:]}


def run(opened, ids, past=None):
    """ids int (B, T)  ->  logits, the past of the next call."""
    past = empty_past(opened, len(ids)) if past is None else past
    logits, *present = opened.run(None, {"ids": np.asarray(ids, np.int64), **past})
    return logits, dict(zip(past, present))


def assert_near(got, want, within=1e-5):
    assert got.dtype == np.float32
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= within * np.abs(want).max()


def small(tmp_path, weights="int8", cache=False, **given):
    """(path, cfg, weights) of one small model, written."""
    cfg = small_config(**given)
    table = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
    write_onnx(tmp_path / "m.onnx", source(cfg, table), weights, cache=cache)
    return tmp_path / "m.onnx", cfg, table


# --- the same numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(len(ALL)), ids=lambda n: label(ALL[n]))
def test_every_variant_has_the_reference_s_logits(n, tmp_path):
    """Each variant in one of the four forms, which take turns; the promise is 1e-4."""
    cfg = small_config(**ALL[n])
    weights, ids, want = clear(cfg)
    kind, cached = FORMS[(n + n // 4) % 4]
    write_onnx(tmp_path / "m.onnx", source(cfg, weights), kind, cache=cached)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    assert_near(run(session(tmp_path / "m.onnx"), ids)[0], want)


@pytest.mark.nightly
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("given", ALL, ids=label)
def test_every_variant_in_every_form(given, form, tmp_path):
    cfg = small_config(**given)
    weights, ids, want = clear(cfg, 2, 5)
    write_onnx(tmp_path / "m.onnx", source(cfg, weights), form[0], cache=form[1])
    assert_near(run(session(tmp_path / "m.onnx"), ids)[0], want)


@cache
def recital():
    """(cfg, weights, text) of the committed model that recites a text."""
    cfg, weights = hf.read(golden_folder() / "tiny")
    return cfg, weights, (golden_folder() / "greedy.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_greedy_text_is_the_reference_s(form, tmp_path):
    """64 tokens, by the whole text again for each, or by the cache."""
    cfg, weights, text = recital()
    write_onnx(tmp_path / "m.onnx", source(cfg, weights), form[0], cache=form[1])
    opened, ids = session(tmp_path / "m.onnx"), [[ord(c) for c in text[:7]]]
    made, past, new = [], None, ids
    for _ in range(64):
        logits, past = run(opened, new, past)
        made.append(int(logits[0, -1].argmax()))
        new = [[made[-1]]] if form[1] else [ids[0] + made]
    assert "".join(map(chr, made)) == text[7:71]
    assert made == [step.token for step in decode(Transformer(cfg, weights, load("numba")), ids[0], 64)]


@given(x=rows(np.float32), n=st.integers(1, 9), seed=seeds)
@settings(max_examples=40)
def test_a_bitlinear_is_equal_bit_for_bit(x, n, seed):
    """The same input: codes, ties among them, sums and scaled results, on both forms of the trits."""
    x = np.round(x * 2) / 2                                # halves: with an absmax of 127, ties
    x[0, 0] = 127
    K = x.shape[1]
    w_q = np.random.default_rng(seed).integers(-1, 2, (n, K)).astype(np.int8)
    codes, x_scale = absmax_int8(x)
    want = ternary_linear(codes, x_scale, prepare(w_q, np.float32(0.37)))
    cfg = ModelConfig(vocab_size=n, d_model=2 * K, n_heads=1, n_kv_heads=1)
    for kind in ("int8", "2bit"):
        y, x_q = one_projection(cfg, x, Trits(w_q, np.float32(0.37)), kind)
        np.testing.assert_array_equal(x_q[0].astype(np.int16) - 128, codes)
        np.testing.assert_array_equal(y[0], want)


def one_projection(cfg, x, trits, kind):
    """The nodes of one ternary projection without a norm, alone in a graph: y and the codes."""
    held = {}
    writer._hold_trits(lambda name, a: held.setdefault(name, writer._initialiser(name, a, None, "")),
                       "head", trits, kind)
    graph = onnx_graph.Graph(cfg, {n: writer._dtype(t) for n, t in held.items()},
                             [onnx_graph.Port("x", "float32", ("batch", "tokens", x.shape[1]))], [], [], {})
    (y,) = onnx_graph._project(graph, "x", (Entry(None, ("head",)),), "", "ternary", x.shape[1])
    graph.outputs.extend([onnx_graph.Port(y, "float32", ("batch", "tokens", len(trits.w_q))),
                          onnx_graph.Port("head.in.x_q", "uint8", ("batch", "tokens", x.shape[1]))])
    made = proto(graph, list(held.values()))
    return session_of(made).run(None, {"x": x[None]})


def session_of(made):
    return onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


def test_batch_and_length_are_free(tmp_path):
    path, cfg, table = small(tmp_path)
    opened, model = session(path), Transformer(cfg, table, OPS)
    for B, T in ((1, 1), (3, 2), (2, cfg.context)):
        weights, ids, want = clear(cfg, B, T) if B * T < 8 else (table, small_batch(cfg, 3, B, T)[0], None)
        if want is None:                                   # too long to be clear of ties: row by row, itself
            alone = np.concatenate([run(opened, row[None])[0] for row in ids])
            assert_near(run(opened, ids)[0], alone)
            assert_near(run(opened, ids)[0], model(ids)[0], 5e-2)
        else:
            write_onnx(path, source(cfg, weights))
            assert_near(run(session(path), ids)[0], want)


@given(seed=seeds, cuts=st.sets(st.integers(1, 11)))
@settings(max_examples=10)
def test_a_cache_may_be_cut_anywhere(seed, cuts, both):
    """Any number of tokens at a time: the logits of all at once, but for a code at a tie (NU.14)."""
    whole, cached, cfg = both
    ids = np.random.default_rng(seed).integers(0, cfg.vocab_size, (2, 12))
    past, parts = empty_past(cached, 2), []
    for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 12]):
        logits, past = run(cached, ids[:, a:b], past)
        parts.append(logits)
    assert_near(np.concatenate(parts, axis=1), run(whole, ids)[0], 5e-2)
    assert past["past_key.1"].shape == (2, cfg.n_kv_heads, 12, cfg.head_dim)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Sessions of one ternary model without and with cache, and its config."""
    home = tmp_path_factory.mktemp("both")
    (home / "a").mkdir()
    (home / "b").mkdir()
    path, cfg, _ = small(home / "a")
    return session(path), session(small(home / "b", cache=True)[0]), cfg


def test_nano_flips_few_codes(tmp_path):
    """At a real size some value is near a tie: 1e-4 of the codes may differ, logits by 1e-2 (NU.14)."""
    weights, ops = random_weights(NANO, np.float32), Watched()
    written = write_onnx(tmp_path / "m.onnx", source(NANO, weights))
    assert written.n_bytes == pytest.approx(tensor_bytes(NANO, "int8"), rel=0.02)
    ids = np.random.default_rng(0).integers(0, NANO.vocab_size, (1, 16))
    want, _ = Transformer(NANO, weights, ops)(ids)
    made = onnx.load(tmp_path / "m.onnx")
    names = [n.output[0] for n in made.graph.node if n.output[0].endswith(".x_q")]
    made.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names)
    logits, *codes = session_of(made).run(None, {"ids": ids})
    assert len(codes) == len(ops.codes) == 4 * NANO.n_layers
    differ = sum(np.count_nonzero(a.astype(np.int16) - 128 != b) for a, b in zip(codes, ops.codes))
    assert differ <= 1e-4 * sum(a.size for a in codes)
    assert_near(logits, want, 1e-2)


# --- what the file holds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["full", "ternary"])
@pytest.mark.parametrize("kind", ["int8", "2bit"])
def test_trits_are_trits(kind, head, tmp_path):
    """Their dtype, their bytes, and no float of their size anywhere."""
    path, _, table = small(tmp_path, kind, d_ff=19, head=head, tied_embeddings=False)
    held = {t.name: t for t in onnx.load(path).graph.initializer}
    for name, t in table.trits().items():
        N, K = t.w_q.shape
        stored = held[name if kind == "int8" else name + ".packed"]
        a = onnx.numpy_helper.to_array(stored)
        assert a.dtype == (np.int8 if kind == "int8" else np.uint8)
        assert len(stored.raw_data) == (N * K if kind == "int8" else K * -(-N // 4))
        np.testing.assert_array_equal(a.T if kind == "int8" else unpack_hf(a[:, 0].T, N), t.w_q)
        assert onnx.numpy_helper.to_array(held[name + ".scale"]) == t.w_scale
    floats = {n for n, t in held.items() if t.data_type == onnx.TensorProto.FLOAT and len(t.raw_data) > 200}
    assert floats == {"embedding"} | ({"head"} if head == "full" else set())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_floats_keep_their_bits(dtype, tmp_path):
    """16 bits stay 16 bits and are widened in the graph; 64 become 32."""
    cfg = small_config(linear="full", tied_embeddings=False)
    params = small_params(cfg, 0, np.float32)
    stored = {s.name: params[s.name].astype(dtype) for s in params.specs}
    write_onnx(tmp_path / "m.onnx", source(cfg, stored))
    held = {t.name: t for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    n_bytes = {2: 2, 8: 4}[np.dtype(dtype).itemsize]
    assert [n for n, w in stored.items() if len(held[n].raw_data) != w.size * n_bytes] == []
    wide = Weights({n: w.astype(np.float32) for n, w in stored.items()})
    ids, _ = small_batch(cfg)
    assert_near(run(session(tmp_path / "m.onnx"), ids)[0], Transformer(cfg, wide, OPS)(ids)[0])


def test_the_metadata_describes_the_model(tmp_path):
    cfg = small_config()
    table = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
    write_onnx(tmp_path / "m.onnx", source(cfg, table, about=About("é", 1, (2, 3), "{{x}}", {"top_k": 5})))
    found = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert (found["format"], found["version"], found["tokenizer"]) == ("bitnet_ref.onnx", "1", TOKENIZER)
    assert from_dict(ModelConfig, json.loads(found["config"]), "config") == cfg
    assert json.loads(found["about"]) == {"name": "é", "bos": 1, "eos": [2, 3], "chat_template": "{{x}}",
                                          "settings": {"top_k": 5}}
    assert session(tmp_path / "m.onnx").get_modelmeta().custom_metadata_map == found


def test_a_tokenizer_that_is_too_large_is_left_out_and_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LARGEST_TOKENIZER", len(TOKENIZER))
    cfg = small_config()
    table = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
    written = write_onnx(tmp_path / "m.onnx", source(cfg, table))
    assert [n for n in written.notes if "tokenizer" in n] == []
    written = write_onnx(tmp_path / "m.onnx", source(cfg, table, tokenizer=TOKENIZER + " "))
    assert [n for n in written.notes if "tokenizer" in n] != []
    assert "tokenizer" not in {p.key for p in onnx.load(tmp_path / "m.onnx").metadata_props}


def test_the_operators_are_those_of_opset_18(tmp_path):
    for kind, cached in FORMS:
        made = onnx.load(small(tmp_path, kind, cached)[0])
        assert [(o.domain, o.version) for o in made.opset_import] == [("", 18)]
        assert made.ir_version == 8
        assert {n.domain for n in made.graph.node} == {""}


def test_the_same_model_has_the_same_bytes(tmp_path):
    for kind, cached in FORMS:
        first = small(tmp_path, kind, cached)[0].read_bytes()
        assert small(tmp_path, kind, cached)[0].read_bytes() == first


def test_each_tensor_is_told_and_counted(tmp_path):
    cfg, told = small_config(), []
    table = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
    written = write_onnx(tmp_path / "m.onnx", source(cfg, table), told=told.append)
    assert told == [s.name for s in param_specs(cfg)]
    assert (written.path, written.n_tensors) == (tmp_path / "m.onnx", len(told))
    assert written.n_bytes == (tmp_path / "m.onnx").stat().st_size


# --- two files ---------------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    """Every model is a large one, and every tensor of 64 bytes has a page of its own."""
    monkeypatch.setattr(writer, "SINGLE", 0)
    monkeypatch.setattr(writer, "PAGE", 64)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", ["int8", "2bit"])
def test_a_large_model_is_two_files(kind, tmp_path):
    path, cfg, _ = small(tmp_path, kind, head="ternary")
    data = tmp_path / "m.onnx.data"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    onnx.checker.check_model(str(path), full_check=True)
    weights, ids, want = clear(cfg)
    written = write_onnx(path, source(cfg, weights), kind)
    assert_near(run(session(path), ids)[0], want)
    assert written.n_bytes == path.stat().st_size + data.stat().st_size
    assert any(".data" in note for note in written.notes)
    spans = []
    for t in onnx.load(path, load_external_data=False).graph.initializer:
        place = {e.key: e.value for e in t.external_data}
        if place:
            assert place["location"] == "m.onnx.data"
            spans.append((int(place["offset"]), int(place["length"])))
    assert len(spans) > 2 * 7
    assert [a for a, _ in spans if a % 64] == []
    assert all(a + n <= b for (a, n), (b, _) in pairwise(spans))
    assert sum(spans[-1]) == data.stat().st_size


@pytest.mark.usefixtures("large")
def test_two_files_move_together(tmp_path):
    path, cfg, _ = small(tmp_path)
    ids, _ = small_batch(cfg)
    want = run(session(path), ids)[0]
    (tmp_path / "there").mkdir()
    for file in (path, tmp_path / "m.onnx.data"):
        file.rename(tmp_path / "there" / file.name)
    np.testing.assert_array_equal(run(session(tmp_path / "there" / "m.onnx"), ids)[0], want)


@pytest.mark.usefixtures("large")
def test_tensors_are_written_as_they_come(tmp_path):
    """What is held at once is a few times the largest tensor, not the model, which is 40 times it."""
    cfg = ModelConfig(vocab_size=64, d_model=512, n_layers=10, n_heads=8, d_ff=2048, norm="pre")
    rng = np.random.default_rng(0)

    def read(name):
        spec = table[name]
        trits = rng.integers(-1, 2, spec.shape, np.int8) if spec.ternary else None
        return np.ones(spec.shape, np.float32) if trits is None else Trits(trits, np.float32(1))

    table = {s.name: s for s in param_specs(cfg)}
    largest = 512 * 2048
    tracemalloc.start()
    written = write_onnx(tmp_path / "m.onnx", source(cfg, {}, read=read))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert written.n_bytes > 40 * largest
    assert peak < 5 * largest + (2 << 20)


# --- what is refused, and what is left then ----------------------------------------------------------------


def trits(shape, value=0, scale=1.0):
    return Trits(np.full(shape, value, np.int8), np.float32(scale))


@pytest.mark.parametrize(("name", "value", "words"), [
    ("layers.1.ffn.w_up", trits((20, 16), scale=np.nan), ["layers.1.ffn.w_up", "nan"]),
    ("layers.1.ffn.w_up", trits((20, 16), scale=np.inf), ["layers.1.ffn.w_up", "inf"]),
    ("layers.1.ffn.w_up", trits((20, 16), scale=-1), ["layers.1.ffn.w_up", "positive", "-1"]),
    ("layers.1.attn.wk", trits((8, 16), 2), ["layers.1.attn.wk", "-1, 0 and +1"]),
    ("layers.1.attn.wk", trits((9, 16)), ["layers.1.attn.wk", "(8, 16)"]),
    ("layers.1.attn.wk", np.zeros((8, 16), np.float32), ["layers.1.attn.wk", "trits"]),
    ("embedding", trits((13, 16)), ["embedding", "floats"]),
    ("layers.1.ffn_norm", np.full(16, np.nan, np.float32), ["layers.1.ffn_norm", "finite"]),
    ("final_norm", np.full(16, np.inf, ml_dtypes.bfloat16), ["final_norm", "finite"]),
], ids=lambda v: "" if isinstance(v, np.ndarray | Trits) else str(v))
@pytest.mark.parametrize("external", [False, True])
def test_bad_tensors_are_refused_and_leave_nothing(external, name, value, words, tmp_path, monkeypatch):
    if external:
        monkeypatch.setattr(writer, "SINGLE", 0)
    cfg = small_config()
    table = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
    for kind in ("int8", "2bit"):
        with refusal(*words):
            write_onnx(tmp_path / "m.onnx", source(cfg, {**table, name: value}), kind)
        assert list(tmp_path.iterdir()) == []


def test_unknown_weights_are_refused(tmp_path):
    cfg = small_config()
    with refusal("weights must be one of int8, 2bit", "float"):
        write_onnx(tmp_path / "m.onnx", source(cfg, {}), "float")


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with refusal("onnx", 'pip install ".[export]"'):
        write_onnx(tmp_path / "m.onnx", source(small_config(), {}))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "m.onnx").mkdir()
    cfg = small_config()
    table = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
    with refusal("m.onnx must be writable"):
        write_onnx(tmp_path / "m.onnx", source(cfg, table))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_interrupted_anywhere_it_leaves_what_was_there(stop, external, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SINGLE", 0 if external else 1 << 30)
    path, cfg, table = small(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(before) == 1 + external
    for at in [s.name for s in param_specs(cfg)]:
        def read(name, at=at):
            if name == at:
                raise stop
            return table[name]

        with pytest.raises(stop):
            write_onnx(path, source(cfg, table, read=read), "2bit")
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("large")
def test_an_old_graph_never_meets_new_tensors(tmp_path, monkeypatch):
    """Between the two renames there is no graph, rather than one with another's numbers."""
    path, cfg, table = small(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(writer, "build", raise_memory_error)
        with pytest.raises(MemoryError):
            write_onnx(path, source(cfg, table), "2bit")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    seen, rename = [], os.replace

    def watched(a, b):
        seen.append((Path(b).name, path.exists()))
        rename(a, b)

    monkeypatch.setattr(os, "replace", watched)
    write_onnx(path, source(cfg, table), "2bit")
    assert seen == [("m.onnx.data", False), ("m.onnx", False)]


@pytest.mark.usefixtures("large")
def test_somebody_s_data_beside_the_graph_is_left_alone(tmp_path):
    cfg = small_config()
    (tmp_path / "m.onnx.data").write_bytes(b"mine")
    for before in (None, b"no graph"):
        if before:
            (tmp_path / "m.onnx").write_bytes(before)
        with refusal("must be new", "m.onnx.data"):
            write_onnx(tmp_path / "m.onnx", source(cfg, random_weights(cfg, np.float32)))
    assert (tmp_path / "m.onnx.data").read_bytes() == b"mine"


@pytest.mark.usefixtures("large")
def test_tensors_without_their_graph_are_removed(tmp_path, monkeypatch):
    """The second rename fails."""
    rename = os.replace

    def refused(a, b):
        if Path(b).name == "m.onnx":
            raise PermissionError(13, "no")
        rename(a, b)

    monkeypatch.setattr(os, "replace", refused)
    cfg = small_config()
    with refusal("must be writable"):
        write_onnx(tmp_path / "m.onnx", source(cfg, random_weights(cfg, np.float32)))
    assert list(tmp_path.iterdir()) == []


def test_a_context_whose_angles_would_fill_the_disk_is_refused(tmp_path):
    cfg = small_config(context=1 << 40)
    with refusal("context must be so that its angles", "lower the model's context"):
        write_onnx(tmp_path / "m.onnx", source(cfg, random_weights(cfg, np.float32)))
    assert list(tmp_path.iterdir()) == []


def test_angles_count_as_tensors():
    small, large = small_config(), small_config(context=1000)
    more = (1000 - small.context) * small.head_dim * 4
    assert tensor_bytes(large, "int8") == tensor_bytes(small, "int8") + more


def raise_memory_error(*_):
    raise MemoryError


def test_the_page_s_program_continues_a_text(tmp_path, monkeypatch, capsys):
    """docs/formats/onnx.md, as it stands but for the prompt: the tokenizer of this model is its letters."""
    cfg, weights, text = recital()
    letters = tokenizers.Tokenizer(tokenizers.models.BPE({chr(i): i for i in range(cfg.vocab_size)}, []))
    letters.decoder = tokenizers.decoders.Fuse()
    about = About("tiny", ord(text[0]), (ord("\0"),))
    told = source(cfg, weights, about=about, tokenizer=letters.to_str())
    write_onnx(tmp_path / "model.onnx", told, cache=True)
    page = (ROOT / "docs/formats/onnx.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program.replace('"Once"', repr(text[1:7])), {})
    assert capsys.readouterr().out == text[7:71] + "\n"


# --- what a user may trip over -----------------------------------------------------------------------------


def test_beyond_the_context_is_an_error_not_nonsense(tmp_path):
    path, cfg, _ = small(tmp_path)
    with pytest.raises(Exception, match="bounds"):
        run(session(path), np.zeros((1, cfg.context + 1), np.int64))
    with pytest.raises(Exception, match="bounds"):
        run(session(path), np.full((1, 2), cfg.vocab_size))


def test_later_tokens_cannot_move_earlier_logits(tmp_path):
    """So a shorter text of a batch may be padded behind, with any id."""
    path, cfg, _ = small(tmp_path)
    opened, (ids, other) = session(path), small_batch(cfg, 5, 2, 8)
    other[:, :5] = ids[:, :5]
    np.testing.assert_allclose(run(opened, other)[0][:, :5], run(opened, ids)[0][:, :5], rtol=0, atol=1e-6)
