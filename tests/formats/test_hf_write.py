"""formats/hf_write: what a folder holds in each storage, how it is laid out; that it is whole or absent."""

import json
import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from strategies import seeds, small_config, small_params
from tiny import environment, refusal

from bitnet_ref.formats.hf import open_hf
from bitnet_ref.formats.hf_config import STORAGES
from bitnet_ref.formats.hf_write import from_trits, write_hf
from bitnet_ref.formats.safetensors_stream import INDEX, SINGLE, array, read_header
from bitnet_ref.formats.source import Source, of_weights
from bitnet_ref.kernels import load
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits, Weights, ternarise
from bitnet_ref.quant import absmean_ternary

OPS = load("numpy")
TYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float16": np.float16}
UP = "model.layers.1.mlp.up_proj.weight"


def source_of(seed=0, masters=True, **changes):
    """(Source in memory, its parameters). The masters are bfloat16 already, so no rounding moves a trit."""
    cfg = small_config(**{"norm": "sub", "glu": "relu2", **changes})
    params = small_params(cfg, seed, np.float32)
    params.flat[:] = params.flat.astype(ml_dtypes.bfloat16)
    source = of_weights(cfg, ternarise(cfg, params, OPS))
    return source._replace(master=params.__getitem__ if masters else None), params


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


# --- property ----------------------------------------------------------------------------------------------


@given(seeds, st.floats(2e-5, 1e3), st.floats(0, 1), st.sampled_from(list(TYPES)))
def test_trits_return_from_floats(seed, scale, zeros, dtype):
    """w_q * w_scale / p: the trits exactly, the scale to one rounding of the dtype."""
    rng = np.random.default_rng(seed)
    w_q = np.where(rng.random((8, 33)) < zeros, 0, rng.choice([-1, 1], (8, 33))).astype(np.int8)
    with np.errstate(over="ignore"):
        w = from_trits(Trits(w_q, np.float32(scale))).astype(TYPES[dtype]).astype(np.float32)
    if not np.isfinite(w).all():                           # float16, few trits that are not 0
        return
    got, w_scale = absmean_ternary(w)
    np.testing.assert_array_equal(got, w_q)
    if w_q.any():
        half = 2**-10 + 2**-25 / scale                     # the smallest step of float16 is 2^-24
        assert abs(w_scale / scale - 1) <= {"bfloat16": 2**-8, "float16": half, "float32": 1e-6}[dtype]


# --- what is written is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("storage", ["multiply", "divide", "masters"])
def test_each_storage_comes_back(storage, dtype, tmp_path):
    source, params = source_of()
    written = write_hf(tmp_path / "a", source, storage, dtype=dtype)
    read = open_hf(tmp_path / "a")
    assert (read.cfg, read.storage) == (source.cfg, STORAGES[storage])
    for name, spec in read.specs.items():
        got, want = read.read(name), source.read(name)
        if spec.ternary:
            np.testing.assert_array_equal(got.w_q, want.w_q)
            assert got.w_scale == pytest.approx(want.w_scale, rel=2**-8)
        else:
            assert got.dtype == TYPES[dtype]
            same(got, want.astype(TYPES[dtype]))
    if storage == "masters":
        same(read.master("layers.0.attn.wq"), params["layers.0.attn.wq"].astype(TYPES[dtype]))
        assert "masters in" in written.notes[-1]
        assert dtype == "float16" or " 0 of" in written.notes[-1]
    else:
        assert read.master is None
        with refusal("wq", "floats", "U8"):
            from bitnet_ref.formats.hf import floats, open_folder

            floats(open_folder(tmp_path / "a"), "layers.0.attn.wq")


def test_scales_are_rounded_once(tmp_path):
    source, _ = source_of()
    w_scale = source.read("layers.1.ffn.w_up").w_scale
    for storage, want in (("multiply", w_scale), ("divide", 1 / w_scale)):
        write_hf(tmp_path / storage, source, storage)
        held = read_header(tmp_path / storage / SINGLE)
        assert array(held[UP + "_scale"])[0] == ml_dtypes.bfloat16(want)


@pytest.mark.parametrize(("norm", "tied"), [("pre", True), ("pre", False), ("sub", True)])
def test_full_precision_comes_back(norm, tied, tmp_path):
    source, params = source_of(norm=norm, tied_embeddings=tied, linear="full")
    write_hf(tmp_path / "a", source)
    read = open_hf(tmp_path / "a")
    assert read.cfg == source.cfg
    assert read.master is None
    for spec in params.specs:
        same(read.read(spec.name), params[spec.name])


def test_a_model_without_masters_gets_such_as_return_its_trits(tmp_path):
    source, _ = source_of(masters=False)
    write_hf(tmp_path / "a", source, "masters")
    read = open_hf(tmp_path / "a")
    for name, w in source.specs.items():
        if w.ternary:
            np.testing.assert_array_equal(read.read(name).w_q, source.read(name).w_q)
            assert read.read(name).w_scale == pytest.approx(source.read(name).w_scale, rel=2**-8)


def test_trits_that_rounding_moves_are_counted(tmp_path):
    """bfloat16 has 8 bits: masters next to a threshold cross it."""
    source, params = source_of()
    params["layers.0.attn.wq"][::2] = 1                    # the mean is 2/3, half of it 1/3
    params["layers.0.attn.wq"][1::2] = np.linspace(0.3332, 0.3334, 16, dtype=np.float32)
    source = source._replace(read=ternarise(source.cfg, params, OPS).__getitem__)
    written = write_hf(tmp_path / "a", source, "masters")
    read = open_hf(tmp_path / "a")
    moved = sum(int(np.count_nonzero(read.read(n).w_q != source.read(n).w_q))
                for n, s in source.specs.items() if s.ternary)
    assert moved > 0
    assert f"{moved:,} of" in written.notes[-1]


def test_of_a_folder_another_folder(tmp_path):
    """bf16 masters to packed and back to packed: the second step changes nothing."""
    source, _ = source_of()
    write_hf(tmp_path / "masters", source, "masters")
    write_hf(tmp_path / "packed", open_hf(tmp_path / "masters"))
    write_hf(tmp_path / "again", open_hf(tmp_path / "packed"))
    assert (tmp_path / "packed" / SINGLE).read_bytes() == (tmp_path / "again" / SINGLE).read_bytes()


# --- the layout of the file --------------------------------------------------------------------------------


def test_any_safetensors_library_reads_the_file(tmp_path):
    source, _ = source_of()
    written = write_hf(tmp_path / "a", source)
    file = tmp_path / "a" / SINGLE
    with safe_open(file, framework="numpy") as f:
        assert f.metadata() == {"format": "pt"}
        assert len(f.keys()) == written.n_tensors
        np.testing.assert_array_equal(f.get_tensor(UP), array(read_header(file)[UP]))
    held = read_header(file)
    ours = {s.hf_name for s in param_specs(source.cfg)}
    assert held.keys() == ours | {s.hf_name + "_scale" for s in param_specs(source.cfg) if s.ternary}
    assert all(t.begin % 2 == 0 for t in held.values())
    assert min(t.begin for t in held.values()) % 8 == 0


@pytest.mark.parametrize("shard_bytes", [1, 500, 2000, 10**9])
def test_shards_hold_at_most_so_much_or_one_tensor(shard_bytes, tmp_path):
    source, _ = source_of()
    told = []
    written = write_hf(tmp_path / "a", source, shard_bytes=shard_bytes, told=told.append)
    assert told == list(source.specs)
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    held = {file.name: read_header(file) for file in files}
    assert sum(map(len, held.values())) == written.n_tensors
    assert written.n_bytes == sum(p.stat().st_size for p in (tmp_path / "a").iterdir())
    if len(files) == 1:
        assert files[0].name == SINGLE
        assert not (tmp_path / "a" / INDEX).exists()
        return
    index = json.loads((tmp_path / "a" / INDEX).read_text())
    assert index["weight_map"] == {t: name for name, table in held.items() for t in table}
    assert index["metadata"]["total_size"] == sum(t.end - t.begin for h in held.values() for t in h.values())
    assert [f.name for f in files] == [f"model-{i:05d}-of-{len(files):05d}.safetensors"
                                       for i in range(1, len(files) + 1)]
    for table in held.values():
        size = sum(t.end - t.begin for t in table.values())
        assert size <= shard_bytes or len({t.removesuffix("_scale") for t in table}) == 1
    for name, spec in source.specs.items():
        if not spec.ternary:
            same(open_hf(tmp_path / "a").read(name), source.read(name).astype(ml_dtypes.bfloat16))


# --- what is refused, and that nothing is left -------------------------------------------------------------


def refused(tmp_path, source, *words, **options):
    with refusal(*words):
        write_hf(tmp_path / "a", source, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_class_there(tmp_path):
    refused(tmp_path, source_of(norm="inner")[0], "no class")
    refused(tmp_path, source_of(head="ternary")[0], "no class")
    refused(tmp_path, source_of()[0], "storage must be full for linear = full", "another", storage="full")
    refused(tmp_path, source_of(linear="full")[0], "storage must be full", "use full", storage="multiply")
    refused(tmp_path, source_of(d_ff=18)[0], "w_gate", "multiple of 4")
    refused(tmp_path, source_of()[0], "storage must be one of", "multiply", storage="packed")
    refused(tmp_path, source_of()[0], "dtype must be one of", "bfloat16", dtype="int8")
    refused(tmp_path, source_of()[0], "shard_bytes", shard_bytes=0)


def test_masters_need_no_multiple_of_four(tmp_path):
    source, _ = source_of(d_ff=18)
    write_hf(tmp_path / "a", source, "masters")
    assert open_hf(tmp_path / "a").cfg == source.cfg


def changed(source, name, t):
    """The source with another tensor."""
    return source._replace(read=lambda n: t if n == name else source.read(n), master=None)


@pytest.mark.parametrize(("value", "dtype"), [(1e5, "float16"), (3.4e38, "bfloat16"), (np.nan, "float32"),
                                              (np.inf, "bfloat16")])
def test_floats_that_the_dtype_cannot_hold(value, dtype, tmp_path):
    source, _ = source_of()
    w = source.read("final_norm").copy()
    w[3] = value
    refused(tmp_path, changed(source, "final_norm", w), "final_norm", "finite in", dtype=dtype)


@pytest.mark.parametrize(("w_scale", "storage", "dtype"), [
    (np.nan, "multiply", "bfloat16"), (0, "multiply", "float32"), (-1, "divide", "float32"),
    (1e-5, "divide", "float16"), (1e-9, "multiply", "float16"), (np.inf, "divide", "bfloat16")])
def test_scales_that_are_none(w_scale, storage, dtype, tmp_path):
    source, _ = source_of()
    held = Trits(source.read("layers.1.attn.wo").w_q, np.float32(w_scale))
    refused(tmp_path, changed(source, "layers.1.attn.wo", held), "layers.1.attn.wo", "positive and finite",
            storage=storage, dtype=dtype)


def test_a_scale_below_the_floor_has_no_masters(tmp_path):
    """absmean never goes below 1e-5, so no floats give these trits and this scale."""
    source, _ = source_of()
    held = Trits(source.read("layers.1.attn.wo").w_q, np.float32(2e-6))
    refused(tmp_path, changed(source, "layers.1.attn.wo", held), "layers.1.attn.wo", "come back",
            "use storage multiply", storage="masters")


def test_a_matrix_of_zeros_stays_one(tmp_path):
    source, _ = source_of()
    held = Trits(np.zeros((16, 16), np.int8), np.float32(0.5))
    for storage in ("masters", "multiply"):
        write_hf(tmp_path / storage, changed(source, "layers.1.attn.wo", held), storage)
        assert not open_hf(tmp_path / storage).read("layers.1.attn.wo").w_q.any()


def test_a_source_that_breaks_leaves_nothing(tmp_path):
    source, _ = source_of()

    def read(name):
        if name == "layers.1.ffn.w_up":
            raise KeyboardInterrupt
        return source.read(name)

    with pytest.raises(KeyboardInterrupt):
        write_hf(tmp_path / "a", source._replace(read=read), shard_bytes=900)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_not_touched(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with refusal("new or empty"):
        write_hf(tmp_path, source_of()[0])
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


# --- memory ------------------------------------------------------------------------------------------------

CHILD = """
import sys
from bitnet_ref.formats.hf import open_hf
from bitnet_ref.formats.hf_write import write_hf
write_hf(sys.argv[2], open_hf(sys.argv[1]), shard_bytes=300_000_000)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) << 10)               # ru_maxrss would count what the parent held when it forked
"""


def of_chance(cfg):
    """A Source whose tensors are drawn when they are asked for."""
    def read(name):
        rng = np.random.default_rng(len(name))
        spec = specs[name]
        if spec.ternary:
            return Trits(rng.integers(-1, 2, spec.shape, np.int8), np.float32(1.5))
        return rng.standard_normal(spec.shape, np.float32).astype(ml_dtypes.bfloat16)

    specs = {s.name: s for s in param_specs(cfg)}
    return Source("chance", "memory", "", cfg, of_weights(cfg, Weights()).about, None, read)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize(("storage", "changes"), [("multiply", {"vocab_size": 128256, "n_layers": 18}),
                                                  ("masters", {"vocab_size": 40000, "n_layers": 6})])
def test_a_conversion_holds_one_tensor(storage, changes, tmp_path):
    """About 1 GB in shards, of 2B4T's widths: peak of the process at most the largest tensor + 200 MiB."""
    cfg = small_config(norm="sub", glu="relu2", d_model=2560, d_ff=6912, n_heads=20, n_kv_heads=5, **changes)
    written = write_hf(tmp_path / "from", of_chance(cfg), storage, shard_bytes=200_000_000)
    assert written.n_bytes > 0.9e9
    child = subprocess.run([sys.executable, "-c", CHILD, tmp_path / "from", tmp_path / "to"],
                           env=environment(), capture_output=True, encoding="utf-8")
    assert child.returncode == 0, child.stderr
    peak, largest = int(child.stdout), 2 * max(math.prod(s.shape) for s in param_specs(cfg))
    print(f"{storage}: peak {peak / 2**20:.0f} MiB, largest tensor {largest / 2**20:.0f} MiB")
    assert peak <= largest + (200 << 20)
