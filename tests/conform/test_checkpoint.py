"""conform/checkpoint: what can be wrong with a download has its line, and the rest is still judged."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hollow import hollow
from safetensors.numpy import save
from strategies import small_config, small_params
from tiny import environment, refusal

from bitnet_ref.cli import BAD_ARGUMENTS, CHECK_FAILED, DONE, Parser, run_command
from bitnet_ref.config import PRESETS, ModelConfig
from bitnet_ref.conform import checkpoint
from bitnet_ref.conform.checkpoint import BAD, ODD, OK, check_checkpoint, judge_scales, table
from bitnet_ref.formats import hf
from bitnet_ref.formats.census import of_floats, of_packed, shares_of_masters
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.safetensors_stream import read_header, rows
from bitnet_ref.formats.source import of_weights
from bitnet_ref.kernels import load
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits, ternarise
from bitnet_ref.pack.rosetta import unpack_hf
from bitnet_ref.quant import absmean_ternary

BF16 = ml_dtypes.bfloat16
NORM = "model.norm.weight"
WIDE = {"norm": "sub", "glu": "relu2", "d_model": 64, "d_ff": 96, "vocab_size": 40, "init_std": 0.02}
EMBEDDING, GATE, UP, DOWN = ("model.embed_tokens.weight", *(
    f"model.layers.1.mlp.{x}_proj.weight" for x in ("gate", "up", "down")))


@pytest.fixture
def folder(tmp_path):
    """A sound packed model, wide enough that its histograms are smooth."""
    write(tmp_path)
    return tmp_path


def write(folder, **given):
    cfg = small_config(**{**WIDE, **given})
    write_hf(folder, of_weights(cfg, ternarise(cfg, small_params(cfg, 0, np.float32), load())))
    return cfg


def change(folder, edit):
    held = {name: np.array(rows(t)) for name, t in read_header(folder / hf.SINGLE).items()}
    edit(held)
    (folder / hf.SINGLE).write_bytes(save(held, {"format": "pt"}))


def found(folder, level, *words):
    """The lines of `level` in which each of `words` stands."""
    lines = [line for line in check_checkpoint(folder).lines if line.level == level]
    return [line for line in lines if all(str(w) in f"{line.what} {line.detail}" for w in words)]


# --- what one pass finds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [1, 300, 1 << 22])
def test_the_census_of_packed_trits(folder, n_bytes, monkeypatch):
    """Against the unpacked matrix, whatever the blocks."""
    monkeypatch.setattr("bitnet_ref.formats.safetensors_stream.blocks.__defaults__", (n_bytes,))
    def edit(t):
        t[GATE][3], t[GATE][:, 5] = 0b01010101, 0b01010101

    change(folder, edit)
    t, read = read_header(folder / hf.SINGLE)[GATE], []
    census, w_q = of_packed(t, read.append), unpack_hf(np.array(rows(t)), 96)
    assert sum(read) == t.end - t.begin
    assert (census.bad, census.size) == (0, w_q.size)
    assert census.shares == pytest.approx([np.mean(w_q == v) for v in (-1, 0, 1)], abs=1e-15)
    np.testing.assert_array_equal(census.dead_rows, ~w_q.any(axis=1))
    np.testing.assert_array_equal(census.dead_columns, ~w_q.any(axis=0))
    assert (census.dead_rows.sum(), census.dead_columns.sum()) == (4, 1)


@pytest.mark.parametrize("n_bytes", [1, 200, 1 << 22])
@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32, np.float64])
def test_the_census_of_floats(dtype, n_bytes, tmp_path, rng, monkeypatch):
    monkeypatch.setattr("bitnet_ref.formats.safetensors_stream.blocks.__defaults__", (n_bytes,))
    w = rng.normal(size=(11, 7)).astype(dtype)
    w[4], w[:, 2] = 0, 0
    if dtype is not np.float16:
        w[7] = 1e-32
    (tmp_path / "a").write_bytes(save({"w": w}))
    t = read_header(tmp_path / "a")["w"]
    census, x = of_floats(t, lambda n: None), w.astype(np.float64)
    assert (census.bad, census.size, census.largest) == (0, 77, np.abs(x).max())
    assert census.mean == pytest.approx(np.abs(x).mean(), rel=1e-6)
    assert census.dead_rows.sum() == (1 if dtype is np.float16 else 2)
    np.testing.assert_array_equal(np.flatnonzero(census.dead_columns), [2])
    w_q, w_scale = absmean_ternary(w.astype(np.float32))
    shares = shares_of_masters(t, float(w_scale), lambda n: None)
    assert shares == pytest.approx([np.mean(w_q == v) for v in (-1, 0, 1)])


def test_the_census_of_a_vector_counts_entries(tmp_path):
    (tmp_path / "a").write_bytes(save({"g": np.array([1, 0, np.nan, np.inf, -3], np.float32)}))
    census = of_floats(read_header(tmp_path / "a")["g"], lambda n: None)
    assert (census.bad, census.size, census.mean) == (2, 5, pytest.approx(4 / 3))
    np.testing.assert_array_equal(census.dead_rows, [False, True, False, False, False])


# --- sound checkpoints -------------------------------------------------------------------------------------


def test_a_sound_folder_is_all_ok(folder):
    report = check_checkpoint(folder)
    assert report.sound
    assert {line.level for line in report.lines} == {OK}
    assert {"config.json", "names", "codes", "weight_scale", "dead neurons", EMBEDDING} <= {
        line.what for line in report.lines}
    digest = hashlib.sha256((folder / hf.SINGLE).read_bytes()).hexdigest()
    assert found(folder, OK, digest, "no SHA256SUMS")
    assert report.tensors[EMBEDDING]["shape"] == [40, 64]
    assert "0 BAD: nothing is BAD" in table(report)


def test_masters_are_judged_by_the_trits_that_they_become(tmp_path):
    masters(tmp_path)
    report = check_checkpoint(tmp_path)
    assert report.sound
    assert found(tmp_path, OK, "codes", "14 ternary matrices")
    shares = report.tensors[GATE]["-1, 0, +1"]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.06)


def masters(folder):
    cfg = write(folder)
    record = json.loads((folder / "config.json").read_text())
    record["quantization_config"] |= {"quantization_mode": "online"}
    (folder / "config.json").write_text(json.dumps(record))
    params = small_params(cfg, 0, np.float32)
    (folder / hf.SINGLE).write_bytes(save({s.hf_name: params[s.name].astype(BF16) for s in params.specs}))


def test_a_plain_llama_has_no_codes(tmp_path):
    cfg = small_config(norm="pre", linear="full", tied_embeddings=False)
    params = small_params(cfg, 0, np.float32)
    record = {"architectures": ["LlamaForCausalLM"], "vocab_size": 13, "hidden_size": 16,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 20}
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / hf.SINGLE).write_bytes(save({s.hf_name: params[s.name].astype(BF16) for s in params.specs}))
    report = check_checkpoint(tmp_path)
    assert report.sound
    assert not found(tmp_path, OK, "codes")
    assert found(tmp_path, OK, "lm_head.weight")


# --- files -------------------------------------------------------------------------------------------------


def test_recorded_checksums_are_compared(folder):
    digest = hashlib.sha256((folder / hf.SINGLE).read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  {hf.SINGLE}\n")
    assert found(folder, OK, "sha256", "as recorded")
    (folder / "SHA256SUMS").write_text(f"{'0' * 64} *./{hf.SINGLE}\nnonsense\n")
    assert found(folder, BAD, "sha256", digest, f"not {'0' * 64}")


def test_a_truncated_file_is_judged_as_far_as_it_goes(folder):
    size = (folder / hf.SINGLE).stat().st_size
    os.truncate(folder / hf.SINGLE, size - 2000)
    report = check_checkpoint(folder)
    assert not report.sound
    assert found(folder, BAD, f"{size - 2000:,} bytes where the header declares {size:,}", "cut off")
    assert 0 < len(report.tensors) < len(param_specs(hf.read_config(folder).model))


def test_a_damaged_header_leaves_config_and_checksum(folder):
    (folder / hf.SINGLE).write_bytes(b"\xff" * 100)
    assert found(folder, BAD, "header")
    assert found(folder, OK, "config.json")
    assert found(folder, OK, "sha256")
    assert found(folder, BAD, "must hold 2 layers", "0 tensors")


def test_many_faults_of_one_kind_are_summed_up(folder):
    change(folder, lambda t: [t.pop(name) for name in list(t) if "_scale" in name])
    assert len(found(folder, BAD, "weight_scale", "got none")) == checkpoint.SHOWN
    assert found(folder, BAD, "2 more disagreements")


def test_a_damaged_config_leaves_the_files(folder):
    (folder / "config.json").write_text("{")
    assert found(folder, BAD, "config.json", "valid JSON")
    assert found(folder, OK, hf.SINGLE, "tensors")


def test_shards_and_a_missing_one(folder):
    held = {name: np.array(rows(t)) for name, t in read_header(folder / hf.SINGLE).items()}
    where = {n: f"model-{1 + ('layers.1' in n)}.safetensors" for n in held}
    for file in set(where.values()):
        (folder / file).write_bytes(save({n: t for n, t in held.items() if where[n] == file}))
    (folder / hf.SINGLE).unlink()
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": where}))
    assert check_checkpoint(folder).sound
    where[GATE] = "model-1.safetensors"
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": where}))
    assert found(folder, BAD, "not where the index says", GATE)
    (folder / "model-2.safetensors").unlink()
    assert found(folder, BAD, "every shard must be there", "model-2.safetensors")
    assert found(folder, OK, EMBEDDING)                    # the other shard is judged all the same


# --- names and contents ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("edit", "words"), [
    (lambda t: t.pop(GATE), [GATE, "got none"]),
    (lambda t: t.update({GATE: t[GATE].view(np.int8)}), [GATE, "I8"]),
    (lambda t: t.update({GATE: t[GATE][1:]}), [GATE, "(23, 64)"]),
    (lambda t: t.update({"x": t[GATE]}), ["x", "must not be there"]),
    (lambda t: t[GATE].__setitem__((0, 0), 0b11_00_01_10), [GATE, "code 3", "1 times"]),
    (lambda t: t[GATE].__iadd__(0b01010101), [GATE, "code 0 is not used", "value + 2"]),
    (lambda t: t[GATE].fill(0), [GATE, "one value only", "a hole"]),
    (lambda t: t[GATE].fill(0b01010101), [GATE, "one value only"]),
    (lambda t: t[NORM].__setitem__(1, np.nan), [NORM, "1 of 64 values are NaN"]),
    (lambda t: t[EMBEDDING].__setitem__((3, 4), np.inf), [EMBEDDING, "1 of 2,560 values are NaN"]),
    (lambda t: t[NORM].fill(0), [NORM, "all values are 0"]),
    (lambda t: t[EMBEDDING][1:].fill(0), [EMBEDDING, "39 of 40 rows are zero, all from row 1 on", "broke"]),
    (lambda t: t[GATE + "_scale"].fill(np.nan), [GATE + "_scale", "positive and finite"]),
    (lambda t: t[GATE + "_scale"].fill(-1), [GATE + "_scale", "positive and finite"]),
])
def test_what_cannot_be_right(edit, words, folder):
    change(folder, edit)
    assert found(folder, BAD, *words)
    assert not check_checkpoint(folder).sound


@pytest.mark.parametrize(("edit", "words"), [
    (lambda t: t[GATE].__setitem__(slice(0, 20), 0b01010101), [GATE, "balanced"]),
    (lambda t: t[EMBEDDING][39:].fill(0), [EMBEDDING, "1 of 40 rows are zero, all from row 39 on"]),
    (lambda t: [t[n].fill(1) for n in t if n.endswith("_scale")], ["weight_scale", "never filled"]),
    (lambda t: t.update({"lm_head.weight": t[EMBEDDING]}), ["lm_head.weight", "ignored"]),
    (lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}),
     ["rotary_emb", "1 tables"]),
])
def test_what_is_odd(edit, words, folder):
    change(folder, edit)
    assert found(folder, ODD, *words)


def test_dead_neurons_are_counted_and_are_no_fault(tmp_path):
    """As in layers 1 to 3 of 2B4T: rows of gate and up, columns of down, entries of the sub-norm at 1e-33."""
    masters(tmp_path)

    def edit(t):
        t[GATE][[3, 5]], t[UP][[3, 5]], t[DOWN][:, [3, 5]] = 1e-33, 1e-33, 1e-33
        t["model.layers.1.mlp.ffn_sub_norm.weight"][[3, 5, 7]] = 1e-33

    change(tmp_path, edit)
    assert found(tmp_path, ODD, "layer 1", "3 of 96 neurons are dead (gate 2, up 2, down 2, sub-norm 3)")
    assert check_checkpoint(tmp_path).sound


@pytest.mark.parametrize(("stored", "storage", "level", "word"), [
    ([2.2, 2.4], "multiply", OK, "cannot tell"), ([1 / 2.2], "divide", OK, "cannot tell"),
    ([0.016, 0.02], "multiply", OK, "would not be"), ([60.0], "divide", OK, "would not be"),
    ([60.0], "multiply", ODD, "is linear_class right?"), ([0.016], "divide", ODD, "is linear_class right?"),
    ([1.0, 1.0], "multiply", ODD, "never filled"), ([1e-9], "multiply", ODD, "so is its reciprocal")])
def test_scales_are_judged_as_far_as_values_can_tell(stored, storage, level, word):
    got, detail = judge_scales(stored, storage)
    assert (got, word in detail) == (level, True), detail


def test_a_wrong_linear_class_shows_where_it_can(folder):
    record = json.loads((folder / "config.json").read_text())
    record["quantization_config"]["linear_class"] = "bitlinear"
    (folder / "config.json").write_text(json.dumps(record))
    assert found(folder, ODD, "weight_scale", "is linear_class right?")


# --- the command -------------------------------------------------------------------------------------------


def command(*arguments):
    parser = Parser("hf", None)
    checkpoint.add_arguments(parser)
    return run_command(lambda argv: checkpoint.run(parser.parse_args(argv)), [str(a) for a in arguments])


def test_exit_codes_and_json(folder, tmp_path, capsys):
    assert command(folder) == DONE
    assert "ok  names" in capsys.readouterr().out
    assert command(folder, "--json") == DONE
    report = json.loads(capsys.readouterr().out)
    assert report["sound"]
    assert len(report["tensors"][GATE]["-1, 0, +1"]) == 3
    change(folder, lambda t: t.pop(GATE))
    assert command(folder) == CHECK_FAILED
    assert "explain the BAD lines" in capsys.readouterr().out
    assert command(tmp_path / "nowhere") == BAD_ARGUMENTS
    assert "PATH must be a folder" in capsys.readouterr().err


def test_no_folder():
    with refusal("PATH must be a folder"):
        check_checkpoint("/dev/null")


PEAK = """
import sys
from pathlib import Path
from bitnet_ref.conform.checkpoint import check_checkpoint
report = check_checkpoint(sys.argv[1])
status = Path("/proc/self/status").read_text()         # its own; ru_maxrss begins with its parent
print(len(report.lines), int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


def peak_of(cfg, folder, packed):
    """(bytes of the file, peak bytes of a process that checks it). The file is of holes: nothing on disk."""
    write(folder)
    record = json.loads((folder / "config.json").read_text())
    record |= {"vocab_size": cfg.vocab_size, "hidden_size": cfg.d_model, "intermediate_size": cfg.d_ff,
               "num_hidden_layers": cfg.n_layers, "num_attention_heads": cfg.n_heads,
               "num_key_value_heads": cfg.n_kv_heads}
    record["quantization_config"]["quantization_mode"] = "offline" if packed else "online"
    (folder / "config.json").write_text(json.dumps(record))
    hollow(folder / hf.SINGLE, cfg, packed)
    done = subprocess.run([sys.executable, "-c", PEAK, folder], env=environment(), capture_output=True,
                          text=True, check=True)
    size = (folder / hf.SINGLE).stat().st_size
    shutil.rmtree(folder)
    lines, peak = map(int, done.stdout.split())
    assert lines > 5
    return size, peak


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
def test_memory_does_not_grow_with_the_file(tmp_path):
    cfg = ModelConfig(vocab_size=32000, d_model=1024, n_layers=2, d_ff=4096, norm="sub")
    size, peak = peak_of(cfg, tmp_path / "model", packed=False)
    assert size > 120 << 20
    assert peak < 300 << 20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
@pytest.mark.parametrize(("packed", "published"), [(True, 1_178_623_988), (False, 4_825_679_400)])
def test_a_file_of_the_size_of_2b4t_takes_less_than_1_gib(packed, published, tmp_path):
    size, peak = peak_of(PRESETS["2b4t"].model, tmp_path / "model", packed)
    print(f"{size:,} bytes, peak {peak:,}")
    assert abs(size - published) < 1 << 16                 # the headers are spelt differently
    assert peak < 1 << 30


def test_trits_of_the_report_are_those_of_the_reader(folder):
    shares = check_checkpoint(folder).tensors
    names = {s.name: s.hf_name for s in param_specs(hf.read_config(folder).model)}
    for name, w in hf.read(folder)[1].items():
        if isinstance(w, Trits):
            want = [float(np.mean(w.w_q == v)) for v in (-1, 0, 1)]
            assert shares[names[name]]["-1, 0, +1"] == pytest.approx(want)
