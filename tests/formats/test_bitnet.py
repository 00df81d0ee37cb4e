"""formats/bitnet: what is written is read, by others too; what is damaged is refused by what is wrong."""

import json
import math
import re
import tracemalloc
import zlib
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file
from strategies import small_config, small_params
from tiny import own_cache, refusal  # noqa: F401

from bitnet_ref.bench import golden
from bitnet_ref.checks import CheckError
from bitnet_ref.config import PRESETS
from bitnet_ref.formats import bitnet, hf
from bitnet_ref.formats import bitnet_header as head
from bitnet_ref.formats.bitnet import is_bitnet, open_bitnet, read_opened, write_bitnet
from bitnet_ref.formats.bitnet_header import PACKINGS, file_bytes
from bitnet_ref.formats.safetensors_stream import rows
from bitnet_ref.formats.source import About, Source, open_run, tensors, weights
from bitnet_ref.generate.decode import decode
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.weights import Trits
from bitnet_ref.pack import rans
from bitnet_ref.quant import absmean_ternary

PAGE = Path(__file__).resolve().parents[2] / "docs/formats/bitnet.md"
OPS = load("numpy")
BF16 = ml_dtypes.bfloat16
ABOUT = About("small", 1, (2, 3), "{{ 'é' }}\n", {"temperature": 0.6, "top_k": 3})
TOKENIZER = '{"model": "日本"}'
WQ = "layers.0.attn.wq"
each_packing = pytest.mark.parametrize("bits", PACKINGS)


def source(cfg, dtype=np.float32, seed=0, about=ABOUT, tokenizer=TOKENIZER, **changed):
    """A model whose tensors come from nowhere; `changed`: other tensors, by name with _ for a dot."""
    params = small_params(cfg, seed, np.float32)
    other = {name.replace("__", "."): t for name, t in changed.items()}

    def read(name):
        if name in other:
            return other[name]
        w = params[name]
        return Trits(*absmean_ternary(w)) if specs[name].ternary else w.astype(dtype)

    made = Source(Path("nowhere"), "test", "", cfg, about, tokenizer, read)
    specs = made.specs
    return made


def written(folder, bits="rans", **given):
    """A small file."""
    path = folder / "a.bitnet"
    write_bitnet(path, source(small_config(**given)), bits)
    return path


def same(a, b):
    """Two sources hold the same, bit for bit and dtype by dtype."""
    assert (a.cfg, a.about, a.tokenizer) == (b.cfg, b.about, b.tokenizer)
    for (_, x), (_, y) in zip(tensors(a), tensors(b), strict=True):
        for u, v in zip(x, y) if isinstance(x, Trits) else [(x, y)]:
            assert (np.asarray(u).dtype, np.shape(u)) == (np.asarray(v).dtype, np.shape(v))
            assert np.asarray(u).tobytes() == np.asarray(v).tobytes()


def header_of(path):
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + n]), data[8 + n:]


def load_bytes(path):
    """{tensor: (dtype, shape, bytes)}, in no order."""
    table, data = header_of(path)
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])])
            for name, t in table.items() if name != "__metadata__"}


def sealed(path, table, data, raw=None):
    """Write it with a true header_crc32."""
    table["__metadata__"]["header_crc32"] = "0" * 8
    text = json.dumps(table, separators=(",", ":")).encode() if raw is None else raw
    digits = f"{zlib.crc32(text):08x}".encode()
    text = re.sub(rb'("header_crc32": ?")0{8}"', rb"\g<1>" + digits + b'"', text)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def changed(path, change):
    """The file with `change(table, metadata)` made to its header, whose checksum is right again."""
    table, data = header_of(path)
    change(table, table["__metadata__"])
    return sealed(path, table, data)


def field(name, /, **values):
    """A change to a table within the metadata."""
    def change(_, metadata):
        inner = json.loads(metadata[name])
        inner.update(values)
        metadata[name] = json.dumps(inner)
    return change


def with_bytes(path, name, edit):
    """The file with the bytes of a tensor changed and its checksum right again."""
    table, data = header_of(path)
    begin, end = table[name]["data_offsets"]
    new = edit(bytearray(data[begin:end]))
    assert len(new) == end - begin
    field("crc32", **{name: f"{zlib.crc32(new):08x}"})(table, table["__metadata__"])
    return sealed(path, table, data[:begin] + bytes(new) + data[end:])


def read_all(path):
    return [t for _, t in tensors(open_bitnet(path))]


# --- golden ------------------------------------------------------------------------------------------------


@cache
def golden_tiny():
    """The golden Hugging Face folder, floats in their stored dtype."""
    checkpoint = hf.open_folder(golden.folder() / "tiny")

    def read(name):
        t = hf.tensor(checkpoint, name)
        return t if isinstance(t, Trits) else np.array(rows(checkpoint.stored[name]))

    return Source(golden.folder() / "tiny", "hf", "", checkpoint.config.model, About("tiny"), None, read)


def test_the_golden_file_is_the_golden_folder():
    """golden/tiny.bitnet was made by other code than ours, from the page alone."""
    same(open_bitnet(golden.folder() / "tiny.bitnet"), golden_tiny())


def test_we_write_the_golden_file(tmp_path):
    """The same bytes of every tensor, and the same words; the order and the JSON are the writer's affair."""
    path, theirs = tmp_path / "tiny.bitnet", golden.folder() / "tiny.bitnet"
    write_bitnet(path, golden_tiny())
    ours, stored = load_bytes(path), load_bytes(theirs)
    assert ours == stored
    a, b = (header_of(p)[0]["__metadata__"] for p in (path, theirs))
    assert a.keys() == b.keys()
    for name in ("format", "version", "packing"):
        assert a[name] == b[name]
    for name in ("config", "about", "crc32", "histograms"):
        assert json.loads(a[name]) == json.loads(b[name])


def test_the_bytes_on_the_page():
    """Each line of the example, where it says that they lie, and what it says that they are."""
    data = (golden.folder() / "tiny.bitnet").read_bytes()
    block = re.search(r"<!-- example -->\n```\n.*?\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    lines = [re.split(r"  +", line) for line in block.splitlines()]
    assert len(lines) == 9
    for at, bytes_, _ in lines:
        assert data[int(at):int(at) + len(bytes_) // 2].hex() == bytes_, at
    said = {line[2].split(",")[0].split(":")[0]: line[2] for line in lines}
    opened = open_bitnet(golden.folder() / "tiny.bitnet")
    for name in ("embedding", "final_norm"):
        figures = [float(x) for x in said[name].rpartition(": ")[2].split(", ")]
        np.testing.assert_allclose(opened.read(name).reshape(-1)[:4].astype(float), figures, atol=1e-4)
    w_q, w_scale = opened.read(WQ)
    assert said[WQ + ".scale"].split()[1] == f"{w_scale:.8f},"
    assert w_q[0, :8].tolist() == [0, -1, 1, 1, 1, 0, 0, -1]
    assert rans.histogram(w_q) == (1399, 1350, 1347)


def test_the_golden_file_recites_its_text():
    text = (golden.folder() / "greedy.txt").read_text(encoding="utf-8")
    opened = open_bitnet(golden.folder() / "tiny.bitnet")
    model = Transformer(opened.cfg, weights(opened), OPS)
    ids = np.array([ord(c) for c in text[:7]])
    made = [step.token for step in decode(model, ids, 40)]
    assert "".join(map(chr, made)) == text[7:47]
    logits, _ = model(np.array([[ord(c) for c in text]]))
    assert "".join(map(chr, logits[0, 6:-1].argmax(axis=-1))) == text[7:]


def test_the_example_of_the_page(tmp_path):
    """The Python on the page reads a file of ours with the safetensors library alone."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    for bits in PACKINGS:
        path = written(tmp_path, bits)
        space = {}
        exec(code, space)
        metadata, got = space["read"](str(path))
        assert json.loads(metadata["config"]) == asdict(small_config())
        for spec, t in tensors(open_bitnet(path)):
            want = t.w_q * t.w_scale if isinstance(t, Trits) else t
            np.testing.assert_array_equal(got[spec.name], want)


# --- what is written is read -------------------------------------------------------------------------------


@each_packing
@pytest.mark.parametrize("given", [{}, {"norm": "inner"}, {"norm": "inner", "inner_gain": True},
                                   {"norm": "pre"}, {"tied_embeddings": False}, {"head": "ternary"},
                                   {"tied_embeddings": False, "head": "ternary"}, {"linear": "full"}],
                         ids=str)
def test_every_kind_of_model(bits, given, tmp_path):
    cfg = small_config(**given)
    told = []
    result = write_bitnet(tmp_path / "m.bitnet", source(cfg), bits, told.append)
    opened = open_bitnet(tmp_path / "m.bitnet")
    same(opened, source(cfg))
    assert (opened.kind, bits in opened.storage) == ("bitnet", True)
    assert sorted(told) == sorted(opened.specs)
    assert result.n_bytes == (tmp_path / "m.bitnet").stat().st_size
    assert result.n_tensors == len(load_file(tmp_path / "m.bitnet"))
    assert np.isfinite(Transformer(cfg, weights(opened), OPS)(np.arange(5))[0]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_floats_keep_their_dtype(dtype, tmp_path):
    made = source(small_config(), dtype)
    write_bitnet(tmp_path / "m.bitnet", made)
    same(open_bitnet(tmp_path / "m.bitnet"), made)


def test_doubles_become_float32(tmp_path):
    write_bitnet(tmp_path / "m.bitnet", source(small_config(), np.float64))
    same(open_bitnet(tmp_path / "m.bitnet"), source(small_config()))


@each_packing
def test_equal_models_give_equal_bytes(bits, tmp_path):
    for name in "ab":
        write_bitnet(tmp_path / name, source(small_config()), bits)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_bitnet(tmp_path / "c", open_bitnet(tmp_path / "a"), bits)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


@given(layers=st.integers(1, 3), heads=st.sampled_from([(1, 1), (2, 1), (6, 3)]), half=st.integers(1, 9),
       d_ff=st.integers(1, 40), bits=st.sampled_from(list(PACKINGS)), name=st.text(max_size=9),
       bos=st.none() | st.integers(0, 12),
       settings=st.dictionaries(st.sampled_from(["top_k", "min_p"]), st.integers(0, 1)))
def test_any_shape_and_any_words(tmp_path_factory, layers, heads, half, d_ff, bits, name, bos, settings):
    cfg = small_config(n_layers=layers, n_heads=heads[0], n_kv_heads=heads[1], d_model=2 * half * heads[0],
                       d_ff=d_ff, norm="pre")
    about = About(name, bos, (), None if len(name) < 3 else name, settings)
    path = tmp_path_factory.getbasetemp() / "any.bitnet"
    write_bitnet(path, source(cfg, about=about), bits)
    same(open_bitnet(path), source(cfg, about=about))


def test_without_a_tokenizer(tmp_path):
    write_bitnet(tmp_path / "m.bitnet", source(small_config(), tokenizer=None))
    assert open_bitnet(tmp_path / "m.bitnet").tokenizer is None


@each_packing
def test_the_safetensors_library_opens_it(bits, tmp_path):
    path = written(tmp_path, bits)
    held = load_file(path)
    with safe_open(path, "numpy") as f:
        assert f.metadata()["format"] == "bitnet"
    assert held["tokenizer"].tobytes().decode() == TOKENIZER
    assert held[WQ + ".scale"].shape == (1,)
    assert held[WQ + ".trits"].dtype == np.uint8
    assert all(t.flags.aligned for t in held.values())


def test_histograms_come_from_the_header(tmp_path):
    path = written(tmp_path)
    found = read_opened(path).record.histograms
    for spec, t in tensors(open_bitnet(path)):
        if spec.ternary:
            assert found[spec.name] == rans.histogram(t.w_q)
    assert found.keys() == {s.name for s in open_bitnet(path).specs.values() if s.ternary}


def test_what_is_one(tmp_path):
    path = written(tmp_path)
    (tmp_path / "broken.bitnet").write_bytes(b"")
    (tmp_path / "renamed").write_bytes(path.read_bytes())
    (tmp_path / "text").write_text("hello")
    yes = {p.name for p in tmp_path.iterdir() if is_bitnet(p)}
    assert yes == {"a.bitnet", "broken.bitnet", "renamed"}
    assert not is_bitnet(golden.folder() / "tiny" / "model.safetensors")
    assert not is_bitnet(tmp_path)
    assert not is_bitnet(tmp_path / "none")


def test_without_numba_the_reference_reads_it(tmp_path, monkeypatch):
    made = source(small_config())
    path = written(tmp_path)
    monkeypatch.setattr(bitnet, "_rans", lambda: rans)
    same(open_bitnet(path), made)
    write_bitnet(tmp_path / "b.bitnet", made)
    assert (tmp_path / "b.bitnet").read_bytes() == path.read_bytes()


# --- the size ----------------------------------------------------------------------------------------------


@each_packing
@pytest.mark.parametrize("given", [{}, {"tied_embeddings": False, "head": "ternary"}, {"linear": "full"}],
                         ids=str)
def test_the_formula_is_the_size(bits, given, tmp_path):
    """To the byte for i2 and b3; for rans the bits are those of each matrix, and small ones vary."""
    cfg = small_config(**given)
    made = source(cfg, BF16)
    n = write_bitnet(tmp_path / "m.bitnet", made, bits).n_bytes
    said = file_bytes(cfg, bits, floats="BF16", about=ABOUT, tokenizer_bytes=len(TOKENIZER.encode()))
    assert said == pytest.approx(n, rel=0.05) if bits == "rans" else said == n


def assert_size_is_the_formula(made, path):
    """Within 1 % with the default bits (the bound), and with those of the histogram; tokenizer and all."""
    n = write_bitnet(path, made).n_bytes
    found = read_opened(path).record.histograms
    bits = sum(rans.entropy(h) * sum(h) for h in found.values()) / sum(map(sum, found.values()))
    for density, near in ((None, 0.01), (bits, 0.005)):
        said = file_bytes(made.cfg, "rans", density, about=made.about,
                          tokenizer_bytes=len(made.tokenizer.encode()))
        assert said == pytest.approx(n, rel=near)


def test_nano_has_the_size_of_the_formula(tmp_path):
    assert_size_is_the_formula(source(PRESETS["nano"].model), tmp_path / "m.bitnet")


@pytest.mark.slow
def test_a_trained_model_has_the_size_of_the_formula(tmp_path):
    run = open_run(tiny.trained())
    assert_size_is_the_formula(run, tmp_path / "m.bitnet")
    same(open_bitnet(tmp_path / "m.bitnet"), run._replace(master=None))


def test_the_formula_of_2b4t():
    """Published figures: 2,084 M trits; a bf16 embedding of 657 MB; facts of the checkpoint's header."""
    cfg = PRESETS["2b4t"].model
    packed = file_bytes(cfg, "i2", floats="BF16")
    assert packed == pytest.approx(2_084_044_800 / 4 + 128256 * 2560 * 2, rel=0.001)
    assert file_bytes(cfg, "rans", 1.5615, floats="BF16") < file_bytes(cfg, "b3", floats="BF16") < packed
    with refusal("packing must be one of"):
        file_bytes(cfg, "i3")
    with refusal("floats must be one of"):
        file_bytes(cfg, floats="F64")


def test_memory_is_that_of_a_tensor(tmp_path):
    """Writing and reading hold the largest tensor a few times, not the model."""
    cfg = small_config(d_model=256, d_ff=512, n_layers=24, n_heads=4, vocab_size=300)
    made = source(cfg)
    params_held = {name: made.read(name) for name in made.specs}
    made = made._replace(read=params_held.__getitem__)
    write_bitnet(tmp_path / "m.bitnet", made)              # compiled by now
    opened = open_bitnet(tmp_path / "m.bitnet")
    for work in (lambda: write_bitnet(tmp_path / "m.bitnet", made), lambda: [None for _ in tensors(opened)]):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20 < sum(math.prod(s.shape) for s in made.specs.values())


# --- damage ------------------------------------------------------------------------------------------------


def assert_changes_are_found(path, bits, places):
    """One bit of each of these bytes of a small file, the bit in turns."""
    cfg = small_config(n_layers=1, d_model=4, n_heads=1, n_kv_heads=1, d_ff=6, vocab_size=5)
    write_bitnet(path, source(cfg, about=About()), bits)
    whole = path.read_bytes()
    for i in range(len(whole))[places]:
        damaged = bytearray(whole)
        damaged[i] ^= 1 << i % 8
        path.write_bytes(damaged)
        with refusal(path.name):
            read_all(path)


@each_packing
@pytest.mark.parametrize("places", [slice(12), slice(12, None, 29), slice(-60, None)], ids=str)
def test_changed_bytes_are_found(bits, places, tmp_path):
    assert_changes_are_found(tmp_path / "m.bitnet", bits, places)


@pytest.mark.slow
@each_packing
def test_every_changed_byte_is_found(bits, tmp_path):
    assert_changes_are_found(tmp_path / "m.bitnet", bits, slice(None))


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, 0.9, -1])
def test_truncated_files_are_refused(keep, tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * keep) if isinstance(keep, float) else keep])
    with refusal("a.bitnet must"):
        open_bitnet(path)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "chance.bitnet"
    path.write_bytes(data)
    with refusal("chance.bitnet"):
        open_bitnet(path)


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-9, 1 << 66) | st.text(max_size=4) | st.floats()
                      | st.sampled_from(["F32", "U8", "BF16", "{}", "[]", "i2", "b3", "\ud800", "0" * 8]),
                      lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.text(max_size=4), inner, max_size=2))


@given(data=st.data(), bits=st.sampled_from(list(PACKINGS)))
def test_any_field_of_any_value_is_refused_or_harmless(tmp_path_factory, data, bits):
    """One value anywhere in the header, nested JSON too, becomes another; all checksums are right."""
    folder = tmp_path_factory.getbasetemp()
    path = written(folder, bits)
    table, rest = header_of(path)
    meta_ = table["__metadata__"]
    nested = data.draw(st.sampled_from([None, "config", "about", "crc32", "histograms"]))
    place = holder = table if nested is None else json.loads(meta_[nested])
    for _ in range(data.draw(st.integers(0, 2))):
        values = place.values() if isinstance(place, dict) else place
        inner = [v for v in values if isinstance(v, dict | list) and v]
        place = data.draw(st.sampled_from(inner)) if inner else place
    key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(VALUES)
    if nested is not None:
        meta_[nested] = json.dumps(holder)
    if not isinstance(table.get("__metadata__"), dict):
        table["__metadata__"] = {}
    try:
        read_all(sealed(folder / "b.bitnet", table, rest))
    except CheckError as e:
        tiny.assert_three_parts(e)


def test_a_file_cut_after_it_was_opened(tmp_path):
    path = written(tmp_path)
    opened = open_bitnet(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with refusal("a.bitnet must hold the"):
        list(tensors(opened))
    path.unlink()
    with refusal("a.bitnet must be a readable file"):
        opened.read(WQ)


# --- hostile headers ---------------------------------------------------------------------------------------


def rename(old, new):
    def change(table, _):
        table[new] = table.pop(old)
    return change


def entry(name, /, **values):
    return lambda table, _: table[name].update(values)


def meta(name, value):
    return lambda _, m: m.update({name: value})


HOSTILE = {
    "format": (meta("format", "pt"), ('must say format = "bitnet"',)),
    "version": (meta("version", "2"), ("must have version 1", "'2'")),
    "no version": (lambda _, m: m.pop("version"), ("must have version 1", "None")),
    "packing": (meta("packing", "i3"), ("packing of", "i2, b3, rans", "'i3'")),
    "packing, another": (meta("packing", "i2"), (WQ + ".trits in", "U8 of shape (16, 4)")),
    "no config": (lambda _, m: m.pop("config"), ("the text config",)),
    "config, no JSON": (meta("config", "{"), ("config of", "valid JSON")),
    "config, a name twice": (meta("config", '{"norm": "sub", "norm": "sub"}'), ("a name twice",)),
    "config, a list": (meta("config", "[]"), ("[config] must be a table",)),
    "config, unknown": (field("config", width=3), ("a name in [config]", "'width'")),
    "config, of text": (field("config", d_ff="20"), ("config.d_ff must be int",)),
    "config, NaN": (field("config", norm_eps=math.nan), ("norm_eps",)),
    "layers": (field("config", n_layers=1 << 60), ("must hold every tensor of its config", "n_layers")),
    "width": (field("config", d_model=1 << 60), ("embedding in", f"of shape (13, {1 << 60})")),
    "vocabulary": (field("config", vocab_size=1 << 60), ("embedding in", "a.bitnet")),
    "scale missing": (lambda t, _: t.pop(WQ + ".scale"), ("without overlap or hole",)),
    "renamed": (rename("final_norm", "last_norm"), ("final_norm in", "a.bitnet must be F32", "got none")),
    "overlap": (entry("final_norm", data_offsets=[0, 64]), ("without overlap or hole",)),
    "dtype": (entry(WQ + ".scale", dtype="I32"), (WQ + ".scale", "must be F32", "I32")),
    "dtype of trits": (entry(WQ + ".trits", dtype="I8"), (WQ + ".trits", "must be U8", "I8")),
    "dtype unknown": (entry(WQ + ".trits", dtype="F4"), (WQ + ".trits", "must be of a dtype", "'F4'")),
    "shape": (entry("embedding", shape=[16, 13]), ("embedding in", "of shape (13, 16)", "(16, 13)")),
    "huge shape": (entry(WQ + ".trits", shape=[1 << 60]), (WQ + ".trits", "must have")),
    "huge shape and offsets": (entry("tokenizer", shape=[1 << 60], data_offsets=[0, 1 << 60]),
                               ("tokenizer",)),
    "about": (meta("about", "3"), ("about of", "must be a table")),
    "about, a field": (field("about", colour=1), ("about of", "must be a table of name, bos")),
    "name": (field("about", name=3), ("name in about of",)),
    "bos": (field("about", bos=13), ("bos and eos in about of", "below 13")),
    "bos, of text": (field("about", bos="1"), ("bos and eos in about of",)),
    "bos, true": (field("about", bos=True), ("bos and eos in about of",)),
    "eos": (field("about", eos=[1, -1]), ("bos and eos in about of", "-1")),
    "eos, one": (field("about", eos=1), ("eos in about of", "must be a list")),
    "eos, many": (field("about", eos=[1] * 65), ("eos in about of", "at most 64")),
    "template": (field("about", chat_template=[]), ("chat_template in about of",)),
    "settings": (field("about", settings=[]), ("settings in about of",)),
    "settings, of text": (field("about", settings={"top_k": "3"}), ("top_k in about of", "must be int")),
    "settings, absurd": (field("about", settings={"temperature": 1e9}), ("temperature in about of",)),
    "settings, NaN": (field("about", settings={"top_p": math.nan}), ("top_p in about of",)),
    "template, long": (field("about", chat_template="x" * (1 << 20) + "x"), ("at most 1048576 bytes",)),
    "config, of no model": (field("config", n_heads=3), ("config of", "a.bitnet", "n_heads")),
    "crc32": (field("crc32", **{WQ + ".trits": "nothing!"}), ("crc32 of", "8 hex digits")),
    "crc32, of none": (field("crc32", more="00000000"), ("crc32 of", "for every tensor")),
    "crc32, text": (meta("crc32", "7"), ("crc32 of",)),
    "histograms": (field("histograms", **{WQ: [1, 2, 3]}), ("histograms of", "three counts")),
    "histograms, negative": (field("histograms", **{WQ: [-1, 257, 0]}), ("histograms of",)),
    "histograms, missing": (meta("histograms", "{}"), ("histograms of",)),
    "deep": (meta("about", "[" * 100_000), ("about of", "valid JSON")),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers(what, tmp_path):
    """With true checksums: each is refused by name before anything of a claimed size is allocated."""
    change, words = HOSTILE[what]
    path = changed(written(tmp_path), change)
    tracemalloc.start()
    with refusal(*words):
        open_bitnet(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_tensor_twice(tmp_path):
    path = written(tmp_path)
    table, data = header_of(path)
    text = json.dumps(table, separators=(",", ":"))
    again = json.dumps({"final_norm": table["final_norm"]}, separators=(",", ":"))[1:-1]
    with refusal("a name twice"):
        open_bitnet(sealed(path, table, data, (text[:-1] + "," + again + "}").encode()))


def test_a_tensor_too_many(tmp_path):
    path = written(tmp_path)
    table, data = header_of(path)
    table["more"] = {"dtype": "U8", "shape": [3], "data_offsets": [len(data), len(data) + 3]}
    with refusal("must hold no tensor that its config has not", "more"):
        open_bitnet(sealed(path, table, data + b"abc"))


def test_metadata_must_be_a_table_of_texts(tmp_path):
    path = written(tmp_path)
    for bad in ([], None, {"format": "bitnet", "version": "1", "config": 3}):
        table, data = header_of(path)
        raw = json.dumps({**table, "__metadata__": bad}).encode()
        (tmp_path / "b.bitnet").write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        with refusal("b.bitnet must"):
            open_bitnet(tmp_path / "b.bitnet")


def test_a_bomb(tmp_path, monkeypatch):
    """A constant matrix of any size has 40 bytes of rans: more trits than the file justifies are refused."""
    zeros = Trits(np.zeros((512, 512), np.int8), np.float32(1))
    cfg = small_config(d_model=512, d_ff=512, n_heads=4, n_kv_heads=4, n_layers=1, vocab_size=2)
    held = {s: zeros for s, spec in source(cfg).specs.items() if spec.ternary}
    made = source(cfg, about=About(), **{n.replace(".", "__"): t for n, t in held.items()})
    write_bitnet(tmp_path / "m.bitnet", made)
    same(open_bitnet(tmp_path / "m.bitnet"), made)
    monkeypatch.setattr(head, "JUSTIFIED", 16)
    with refusal("m.bitnet must hold at most 16 trits for a byte"):
        open_bitnet(tmp_path / "m.bitnet")
    with refusal("must hold at most 16 trits for a byte", "b3"):
        write_bitnet(tmp_path / "n.bitnet", made)
    assert not (tmp_path / "n.bitnet").exists()


# --- hostile tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_a_scale_must_be_one(value, tmp_path):
    path = with_bytes(written(tmp_path), WQ + ".scale", lambda b: np.float32(value).tobytes())
    with refusal(f"the scale of {WQ} in", "a.bitnet must be finite and not negative"):
        read_all(path)


@pytest.mark.parametrize(("bits", "byte", "words"), [("i2", 0xFF, "every 2-bit code"),
                                                       ("b3", 250, "at most 242")])
def test_codes_that_are_no_trits(bits, byte, words, tmp_path):
    path = with_bytes(written(tmp_path, bits), WQ + ".trits", lambda b: bytes([byte]) + b[1:])
    with refusal(WQ + ".trits in", "a.bitnet", words):
        read_all(path)


def test_rans_that_is_none(tmp_path):
    path = with_bytes(written(tmp_path), WQ + ".trits", lambda b: bytes(len(b)))
    with refusal(WQ + ".trits in", "rans must have the CRC-32"):
        read_all(path)


def test_another_histogram(tmp_path):
    path = changed(written(tmp_path, "i2"), field("histograms", **{WQ: [0, 256, 0]}))
    with refusal(f"{WQ} in", "must have the histogram (0, 256, 0)"):
        read_all(path)


def test_floats_must_be_finite(tmp_path):
    path = with_bytes(written(tmp_path), "final_norm", lambda b: b[:-4] + np.float32(math.nan).tobytes())
    with refusal("final_norm in", "a.bitnet must be finite"):
        read_all(path)


def test_a_tokenizer_must_be_text(tmp_path):
    path = with_bytes(written(tmp_path), "tokenizer", lambda b: b"\xff" + b[1:])
    with refusal("tokenizer in", "must be UTF-8", "byte 0"):
        open_bitnet(path)


# --- what is not written -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "words"), [
    ({"final_norm": np.full(16, math.nan, np.float32)}, ("final_norm must be finite",)),
    ({"final_norm": np.ones(15, np.float32)}, ("final_norm must have shape (16,)",)),
    ({"layers__0__attn__wq": np.ones((16, 16), np.float32)}, ("layers.0.attn.wq must have shape",)),
    ({"layers__0__attn__wq": Trits(np.ones((4, 16), np.int8), 1.0)}, ("layers.0.attn.wq must have shape",)),
    ({"layers__0__attn__wq": Trits(np.full((16, 16), 2, np.int8), 1.0)}, ("w_q must hold",)),
    ({"layers__0__attn__wq": Trits(np.ones((16, 16), np.int8), math.nan)}, ("the scale of layers.0.attn",)),
    ({"layers__0__attn__wq": Trits(np.ones((16, 16), np.int8), -1.0)}, ("the scale of layers.0.attn.wq",)),
], ids=str)
def test_a_bad_model_leaves_no_file(changes, words, tmp_path):
    with refusal(*words):
        write_bitnet(tmp_path / "m.bitnet", source(small_config(), **changes))
    assert list(tmp_path.iterdir()) == []


def test_bad_words_leave_no_file(tmp_path):
    cfg = small_config()
    for about in (About(settings={"t": math.nan}), About(settings={"t": object()}),
                  About(chat_template="x" * (1 << 24))):
        with refusal("must"):
            write_bitnet(tmp_path / "m.bitnet", source(cfg, about=about))
    with refusal("a tokenizer must be Unicode"):
        write_bitnet(tmp_path / "m.bitnet", source(cfg, tokenizer="\ud800"))
    with refusal("packing must be one of i2, b3, rans", "'tq1'"):
        write_bitnet(tmp_path / "m.bitnet", source(cfg), "tq1")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_source_leaves_the_old_file(tmp_path):
    path = written(tmp_path)
    before = path.read_bytes()

    def fails(name):
        raise OSError("the network is down")

    with refusal("a.bitnet must be writable"):
        write_bitnet(path, replace_read(fails))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.bitnet"]


def replace_read(read):
    return source(replace(small_config(), context=9))._replace(read=read)
