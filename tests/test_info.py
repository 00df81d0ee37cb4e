"""python -m bitnet_ref.info: a model described from formulas, at once, whatever its size."""

import json
import time
import tracemalloc

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref import info
from bitnet_ref.cli import run_command
from bitnet_ref.config import PRESETS
from bitnet_ref.formats import hf
from bitnet_ref.formats.bitnet import write_bitnet
from bitnet_ref.formats.checkpoint import TENSORS, latest
from bitnet_ref.formats.hf_config import config_record
from bitnet_ref.formats.source import open_run
from bitnet_ref.model import cost

MEBIBYTE = 1 << 20


@pytest.fixture
def run(capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    tiny.trained()
    capsys.readouterr()

    def run(*arguments):
        code = run_command(info.main, [str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_described_by_its_formulas(preset, run):
    code, out, err = run("--preset", preset, "--json", "--batch", 3)
    figures, cfg = json.loads(out), PRESETS[preset].model
    assert (code, err) == (0, "")
    assert figures["config"] == cfg.__dict__
    n = figures["parameters"]
    assert n.pop("total") == n["embedding"] + n["projections"] + n["head"] + n["norms"] == (
        cost.count_params(cfg).total)
    assert n["stored as trits"] == cost.ternary_params(cfg)
    for name, bits in cost.BITS_PER_TRIT.items():
        whole = round(cost.inference_bytes(cfg, bits))
        assert figures["model bytes (other parameters bfloat16)"][name] == whole
        assert figures["trit bytes"][name] == round(cost.ternary_params(cfg) * bits / 8)
    assert figures["KV cache bytes per token"] == {"float32": cost.kv_bytes_per_token(cfg, 4),
                                                   "float16": cost.kv_bytes_per_token(cfg, 2)}
    memory = list(figures["training memory, bytes"].values())
    assert memory == [cost.state_bytes(cfg), 3 * cfg.context * cost.saved_bytes_per_token(cfg)]
    work = figures[f"operations per token, context {cfg.context}"]
    assert list(work.values()) == [cost.forward_ops_per_token(cfg, cfg.context),
                                   cost.train_ops_per_token(cfg, cfg.context)]


def test_2b4t_is_described_in_under_a_second_and_allocates_nothing(run):
    """The published figures: 2,412,820,480 parameters, and the 0.4 GB of its trits without the embedding."""
    tracemalloc.start()
    _, out, _ = run("--preset", "2b4t")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "2,412,820,480" in out
    assert "(2.41 G)" in out
    figures = info.describe(PRESETS["2b4t"].model, 1)
    assert figures["trit bytes"]["log2(3) = 1.585 bits (the bound)"] == pytest.approx(0.41e9, rel=0.01)
    assert figures["KV cache bytes per token"]["float16"] == 2 * 30 * 5 * 128 * 2
    assert peak < 2 * MEBIBYTE


def test_as_a_process_it_answers_at_once():
    best = min(seconds_of("info", "--preset", "2b4t") for _ in range(3))
    assert best < 1


def seconds_of(*arguments):
    began = time.perf_counter()
    assert tiny.command(*arguments).returncode == 0
    return time.perf_counter() - began


def test_the_table_says_what_the_json_says(run):
    figures = json.loads(run("--preset", "nano", "--json")[1])
    lines = run("--preset", "nano")[1].splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(figures)
    for group in figures.values():
        for name, value in group.items():
            shown = f"{value:,}" if type(value) is int else str(value)
            assert any(line.strip().removeprefix(name).split()[:1] == [shown] for line in lines)


@pytest.mark.parametrize(("value", "short"), [
    (0, "0 "), (999, "999 "), (1000, "1 k"), (12_345, "12.3 k"), (4.2e6, "4.2 M"), (2.41e9, "2.41 G"),
    (7e12, "7 T"),
    (999_499, "999 k"), (999_950, "1 M"), (2.5e15, "2.5 P"), (1e18, "1 E"),
])
def test_numbers_are_shortened_for_a_person(value, short):
    assert info._short(value) == short


def test_typed_fields_change_the_model(run):
    figures = json.loads(run("--preset", "nano", "--n-layers", 8, "--linear", "full", "--json")[1])
    assert (figures["config"]["n_layers"], figures["config"]["linear"]) == (8, "full")
    assert figures["parameters"]["stored as trits"] == 0
    assert json.loads(run("--json")[1])["config"] == PRESETS["nano"].model.__dict__


def test_a_run_is_described_from_its_state_alone(run, tmp_path):
    """No tensor is read: the file may even be missing."""
    path = tiny.copy(tiny.trained(), tmp_path / "run")
    (latest(path) / TENSORS).unlink()
    for where in (path, latest(path)):
        figures = json.loads(run("--model", where, "--json")[1])
        assert figures["config"] == tiny.configs()[0].__dict__
        assert figures["parameters"]["total"] == tiny.begin_at_end(tiny.trained()).model.params.flat.size


@pytest.mark.parametrize(("arguments", "words"), [
    (["--preset", "huge"], ["preset must be one of tiny, nano", "'huge'"]),
    (["--n-heads", 7], ["d_model must be a multiple"]),
    (["--batch", 0], ["--batch must be greater than 0", "got 0"]),
    (["--batch", -8], ["--batch must be greater than 0", "got -8"]),
    (["--preset", "nano", "--model", "runs/x"], ["--model must stand without --preset; got both"]),
    (["--model", ""], ["--model must not be empty"]),
    (["--preset", ""], ["--preset must not be empty"]),
    (["--batch", "many"], ["--batch must be an int; got 'many'", "see python -m bitnet_ref.info --help"]),
    (["--model", "nowhere"], ["a model must be a run's folder", "nowhere"]),
])
def test_what_is_wrong_is_refused_by_name(arguments, words, run):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    tiny.assert_three_parts(err, *words)


def test_the_state_of_others_is_refused(run, tmp_path):
    path = tiny.copy(tiny.trained(), tmp_path / "run")
    tiny.put_state(latest(path), '{"architectures": ["LlamaForCausalLM"]}')
    code, _, err = run("--model", path)
    assert code == 2
    tiny.assert_three_parts(err, "must say format", "state.json")


def test_a_hugging_face_folder_is_described_by_its_config(run, tmp_path):
    cfg = PRESETS["2b4t"].model
    (tmp_path / "config.json").write_text(json.dumps(config_record(cfg)))
    (tmp_path / hf.SINGLE).touch()                         # not even its header is read
    _, out, _ = run("--model", tmp_path, "--json")
    assert json.loads(out)["config"] == cfg.__dict__


def test_a_file_says_what_it_is(run, tmp_path):
    path = tmp_path / "a.bitnet"
    write_bitnet(path, open_run(tiny.trained()))
    code, out, _ = run(path, "--json")
    said = json.loads(out)["file"]
    assert code == 0
    assert (said["kind"], said["storage"], said["bytes"]) == ("bitnet", "trits as rans", path.stat().st_size)
    shares = [float(x.rstrip("%")) for x in said["trits -1, 0, +1"].split()]
    assert sum(shares) == pytest.approx(100, abs=0.02)
    assert 0 < said["entropy, bits a trit"] <= 1.585
    assert said["bytes by the formula"] == pytest.approx(said["bytes"], rel=0.01)
    assert run("--model", path, "--json")[1] == out
    code, out, _ = run(tiny.trained(), "--json")
    assert (code, json.loads(out)["file"]) == (0, {"kind": "run", "step": 20})


def test_one_model_at_a_time(run, tmp_path):
    code, _, err = run(tiny.trained(), "--preset", "nano")
    assert code == 2
    tiny.assert_three_parts(err, "one model is described")
