"""bench: shares and ratios by hand, the page from records, and every part of the command on small shapes."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import __main__ as command
from bitnet_ref.bench import child, inference, limits, part, report, startup, training
from bitnet_ref.bench.llama_peer import FORMATS
from bitnet_ref.bench.part import Claim, Measure, Part, Setup
from bitnet_ref.bench.random_model import BLOCKS, NANO, SIX
from bitnet_ref.cli import run_command
from bitnet_ref.model.cost import count_params

MACHINE = {"cpu": "a processor", "tier": "avx2", "threads": 2, "bandwidth": 30e9, "float32": 4e11,
           "blas": 2e11, "int8": 16e11, "dot": "AVX2", "python": "3", "numpy": "2", "numba": "0",
           "llvmlite": "0"}
SETUP = Setup(MACHINE, 1, 1, True, {"llama": sys.executable, "torch": sys.executable}, (None,) * 3, print)
TIMES = {"ours": [1.0, 2.0, 8.0], "theirs": [3.0, 4.0, 8.0], limits.READ: [0.5, 1.0, 1.0],
         limits.INT8: [1.0, 1.0, 1.0]}


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    monkeypatch.setattr(limits.timing, "REST", 0.0)


# ---- figures ----

def test_a_ratio_is_the_middle_of_the_rounds():
    assert part.ratio(TIMES, "ours", "theirs") == 2.0
    assert part.ratio(TIMES, "ours", "absent") is None
    assert part.over(None, 2.0) is None
    assert part.over(6.0, 2.0) == 3.0


def test_a_share_adds_up_kinds_of_work():
    """10 bytes, at 20 in a turn of 0.5, and 3 operations, at 2 in a turn of 1: 0.25 + 1.5 over 1, ..."""
    found = {limits.READ: limits.Limit(print, 20.0), limits.INT8: limits.Limit(print, 2.0)}
    work = {limits.READ: 10.0, limits.INT8: 3.0}
    assert limits.share(TIMES, "ours", work, found) == 1.0                 # of 1.75, 2 / 2 and 2 / 8
    assert limits.share(TIMES, "ours", {limits.FLOAT32: 1.0}, found) is None
    assert limits.rates(TIMES, found) == {limits.READ: 20.0, limits.INT8: 2.0}
    machine = {"bandwidth": 30.0, "int8": 1.0, "float32": 1.0}
    said = limits.unrest(TIMES, found, machine)
    assert len(said) == 1                                                  # of READ alone
    assert "read bandwidth fell to 50 %" in said[0]
    assert limits.worst(["a", "its x fell to 9 % of it", "its x fell to 45 % of it", "a"]) == [
        "a", "its x fell to 9 % of it"]
    assert machine == {"bandwidth": 40.0, "int8": 2.0, "float32": 1.0}     # the best that was seen


@pytest.mark.parametrize(("value", "most", "verdict"), [
    (1.2, False, "aim met"), (1.0, False, "floor met"), (0.9, False, "missed"),
    (None, False, "not measured"), (0.9, True, "aim met"), (1.0, True, "floor met"),
    (1.1, True, "missed")])
def test_verdicts(value, most, verdict):
    floor, aim = (1.0, 0.95) if most else (1.0, 1.15)
    assert Claim("c", value, "x", floor, aim, most).verdict == verdict


def test_the_figures_of_the_issue_are_all_there():
    """The rows that a part must print, by what they are against."""
    times = {name: [1.0] for name in (*inference.OURS, *inference.TWINS, *FORMATS)}
    claims = inference.decode_claims(times, dict.fromkeys(times, 1.0))
    assert [(c.floor, c.aim) for c in claims] == [(1.0, 1.15), (1.2, 1.5), (3.5, None), (7.0, None),
                                                  (1.1, None), (0.85, None), (0.85, None)]
    times = {"numba": [1.0], "torch float32": [2.0], "torch bf16": [1.5]}
    claims = training.torch_claims("nano", times)
    assert [(c.value, c.floor, c.aim) for c in claims[:2]] == [(2.0, 1.6, 2.0), (1.5, 1.0, 1.3)]
    assert claims[2].value == 600.0
    assert list(startup.LIMITS.values()) == [0.15, 0.4, 1.5, 25.0]


def test_without_a_peer_a_claim_is_not_measured():
    times = {name: [1.0] for name in (*inference.OURS, *inference.TWINS)}
    assert inference.decode_claims(times, dict.fromkeys(times))[0].verdict == "not measured"
    assert [c.verdict for c in training.torch_claims("six", {"numba": [1.0]})] == ["not measured"] * 2


def test_bytes_of_a_token():
    """2.0 and 1.6 bits a trit, 2 and 4 bytes a float: matrices and a head."""
    n = count_params(BLOCKS)
    assert inference.token_bytes(BLOCKS, "float32 twin") == 4 * n.total
    assert inference.token_bytes(BLOCKS, "i2") == n.projections / 4 + 2 * (n.embedding + n.norms)
    b3 = n.projections / 5 + 2 * (n.embedding + n.norms)
    assert inference.token_bytes(BLOCKS, "b3") == pytest.approx(b3)


def test_no_timed_step_can_be_a_rollback(monkeypatch):
    """It would go back to checkpoints in the current folder, and remove what comes after them."""
    monkeypatch.setattr(training, "optimise", lambda run, data: run.guard.on)
    assert training.stepper(tiny.configs()[0], 1, "numpy")() is False


def test_the_models_are_those_of_the_issue():
    assert (BLOCKS.d_model, BLOCKS.d_ff, BLOCKS.n_layers, BLOCKS.vocab_size) == (2560, 6912, 8, 32000)
    assert (SIX.d_model, SIX.n_layers, SIX.d_ff, SIX.context) == (768, 6, 2048, 256)
    assert training.MODELS == {"nano": (NANO, 8), "6 layers, width 768": (SIX, 4)}
    assert training.torch_arguments(SIX, 4)[2:4] == ("--batch", "4")
    assert " ".join(training.torch_arguments(SIX, 4)[4:]) == (
        "--d-model 768 --n-layers 6 --n-heads 12 --n-kv-heads 12 --d-ff 2048")


# ---- records and pages ----

def a_record():
    measures = [Measure("i2 GEMV", 30.25, "GB/s", 0.97, "read bandwidth"), Measure("nano", 12345.6, "us"),
                Measure("BLAS", 0.012, "Gop/s", 1.2, "float32 peak", peer=True)]
    claims = [Claim("faster, against PyTorch", 4.2, "x", 3.5, 4.5),
              Claim("quick", None, "s", 25.0, most=True)]
    return report.record(Part("Products", measures, claims, ["a note"]), SETUP)


def test_a_record_survives_json():
    again = json.loads(json.dumps(a_record()))
    assert report.part_of(again) == report.part_of(a_record())
    with pytest.raises(report.CheckError) as refused:
        report.part_of({"title": "x"})
    tiny.assert_three_parts(str(refused.value), "measure again")


def test_words():
    said = report.text(a_record())
    assert re.search(r"i2 GEMV +30\.2 GB/s +97 % of read bandwidth\n", said)
    assert re.search(r"faster, against PyTorch +4\.20 x +>= 3\.50 x +>= 4\.50 x +floor met\n", said)
    assert re.search(r"quick +- +<= 25\.0 s +not measured\n", said)
    assert "instructions: avx2, threads: 2" in said
    assert "note: a note" in said
    assert "12,346 us" in said


def test_the_page_keeps_what_was_not_measured_anew(tmp_path):
    docs = tmp_path / "docs"
    (docs / "benchmarks").mkdir(parents=True)
    (docs / "pictures").mkdir()
    marks = "<!-- generated: python -m bitnet_ref.bench -->\n<!-- end -->\n"
    (docs / report.PAGE).write_text(f"before\n{marks}after\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("no markers\n", encoding="utf-8")
    report.write({"kernels": a_record()}, None, None, str(tmp_path))
    report.write({"decode": {**a_record(), "title": "Decode"}}, None, str(tmp_path / "x.png"), str(tmp_path))
    page = (docs / report.PAGE).read_text(encoding="utf-8")
    assert page.index("before") < page.index("## Products") < page.index("## Decode") < page.index("after")
    assert "| faster, against PyTorch | 4.20 x | >= 3.50 x | >= 4.50 x | floor met |" in page
    assert (docs / report.PICTURE).stat().st_size > 5000
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "no markers\n"
    (tmp_path / "README.md").write_text(marks, encoding="utf-8")
    report.write({}, None, None, str(tmp_path))
    shown = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert shown.count("| faster, against PyTorch | 4.20 x |\n") == 2


# ---- the command ----

@pytest.fixture
def fast(monkeypatch):
    """The machine's figures are given, not measured."""
    monkeypatch.setattr(limits, "set_up", lambda threads, rounds, quick, shape, pythons: SETUP._replace(
        rounds=rounds, shape=shape, pythons=pythons, say=lambda said: None))


@pytest.mark.slow
@pytest.mark.parametrize("name", command.PARTS)
def test_every_part_runs(name, fast, tmp_path, capsys):
    """In small, without peers that are not installed: a figure for each name, and one line for what lacks."""
    figures = tmp_path / "figures.json"
    assert run_command(command.main, [name, "--quick", "--rounds", "1", "--json", str(figures)]) == 0
    said, found = capsys.readouterr().out, json.loads(figures.read_text(encoding="utf-8"))[name]
    assert found["measures"]
    assert found["claims"]
    assert all(m["value"] > 0 and m["name"] in said for m in found["measures"])
    assert all("\n" not in note for note in found["notes"])


@pytest.mark.parametrize(("given", "words"), [
    (["nothing"], "invalid choice"), (["all", "--rounds", "0"], "--rounds must be greater than 0"),
    (["kernels", "--m", "-1"], "--m must be"), (["all", "--threads", "0"], "--threads must be"),
    (["all", "--quick", "--root", "."], "the docs need true figures"),
    (["all", "--root", "nowhere"], "--root must be a clone"), (["all", "--json", "no/x.json"], "a folder"),
    (["decode", "--m", "3"], "are of the part kernels"),
    (["kernels", "--threads", "100000"], "threads")])
def test_bad_arguments(given, words, capsys):
    assert run_command(command.main, given) == 2
    tiny.assert_three_parts(capsys.readouterr().err.splitlines()[-1], words)


@pytest.mark.slow                                          # compiles what nothing else here needs
def test_kernels_takes_a_shape(fast, capsys):
    given = ["kernels", "--m", "3", "--n", "32", "--k", "40"]
    assert run_command(command.main, [*given, "--quick", "--rounds", "1"]) == 0
    assert "b3 GEMM 32x40, M = 3" in capsys.readouterr().out


def test_a_peer_that_is_missing_is_a_line(tmp_path):
    notes = []
    with part.children({"llama": (str(tmp_path / "python"), "x")}, notes) as found:
        assert found == {}
    assert len(notes) == 1
    tiny.assert_three_parts(notes[0], "must be a Python interpreter")


PEER = """
import sys
from bitnet_ref.bench.child import serve
from bitnet_ref.checks import CheckError
def step(mode):
    if mode == "refused":
        raise CheckError("no compiler; got none; install one")
    if mode == "dies":
        sys.exit(3)
    return {"seconds": 1}
serve(lambda: ({"about": "a peer"}, {"step": step}))
"""


@pytest.fixture
def peer(tmp_path, monkeypatch):
    (tmp_path / "a_peer.py").write_text(PEER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with part.Child(sys.executable, "a_peer") as child:
        yield child


def test_a_peer_sees_this_package_and_not_what_stands_beside_it(tmp_path, monkeypatch):
    """Installed, its neighbours are our NumPy and all the rest; the peer has its own."""
    (tmp_path / "site" / "bitnet_ref").mkdir(parents=True)
    (tmp_path / "site" / "neighbour.py").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(child, "PACKAGE", tmp_path / "site" / "bitnet_ref")
    place = Path(child.alone_in(str(tmp_path / "here")))
    assert [p.name for p in place.iterdir()] == ["bitnet_ref"]
    assert (place / "bitnet_ref").samefile(child.PACKAGE)


def test_a_peer_that_refuses_one_thing_does_the_next(peer):
    assert peer.about == {"about": "a peer"}
    for _ in range(2):
        with pytest.raises(report.CheckError, match="no compiler"):
            peer.ask("step", mode="refused")
        assert peer.ask("step", mode="float32") == {"seconds": 1}


def test_a_mode_of_torch_that_is_refused_is_a_note(peer, monkeypatch):
    monkeypatch.setattr(training, "MODES", ("float32", "refused", "bf16"))
    notes, child = [], SimpleNamespace(ask=lambda what, mode, threads: peer.ask(what, mode=mode))
    assert list(training.modes(child, SETUP._replace(quick=False), notes)) == ["torch float32", "torch bf16"]
    assert notes == ["torch refused: no compiler; got none; install one"]


def test_a_peer_that_dies_is_one_line_and_is_gone(peer):
    with pytest.raises(report.CheckError, match="a peer must answer; got exit code 3"):
        peer.ask("step", mode="dies")
    with pytest.raises(report.CheckError, match="must be there to be asked"):
        peer.ask("step", mode="float32")


def test_a_silent_peer_is_ended(peer, monkeypatch):
    monkeypatch.setattr(sys.modules[part.Child.__module__], "PATIENCE", 0.05)
    with pytest.raises(report.CheckError, match="a peer must answer; got exit code -9"):
        part.Child(sys.executable, "timeit", "-n1", "-r1", "-s", "import time", "time.sleep(9)")


@pytest.mark.slow
def test_a_part_that_fails_does_not_take_the_others_along(fast, monkeypatch, tmp_path, capsys):
    def failing(setup):
        raise report.CheckError("a peer must answer; got nothing; see why")

    monkeypatch.setattr(inference, "decode", failing)
    monkeypatch.setattr(command, "PARTS", {n: command.PARTS[n] for n in ("decode", "startup")})
    figures = tmp_path / "figures.json"
    assert run_command(command.main, ["all", "--quick", "--rounds", "1", "--json", str(figures)]) == 1
    assert list(json.loads(figures.read_text(encoding="utf-8"))) == ["startup"]
    assert "decode: a peer must answer" in capsys.readouterr().err


def test_torch_answers():
    """Here, or in the interpreter that the variable names."""
    python = os.environ.get("BITNET_REF_TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode:
        pytest.skip("torch is not installed (extra `oracle`)")
    small = replace(NANO, vocab_size=64, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=48, context=8)
    with part.children({"torch": (python, *training.torch_arguments(small, 2))}, []) as found:
        child = found["torch"]
        assert child.about["about"].startswith("torch ")
        for mode in ("float32", "bf16"):
            first, second = (child.ask("step", mode=mode, threads=1) for _ in range(2))
            assert second["loss"] < first["loss"]
            assert second["seconds"] > 0


@pytest.mark.slow
def test_nano_decodes_no_slower_than_its_float16_twin():
    """The mission allows twice the time; we do not."""
    claims = inference.nano(SETUP._replace(threads=limits.timing.available(), rounds=15, quick=False)).claims
    slower = next(c for c in claims if "twin" in c.name)
    assert slower.value <= 1.0


def test_the_page_has_markers():
    page = Path(__file__).resolve().parents[2] / "docs" / report.PAGE
    assert "<!-- generated: python -m bitnet_ref.bench -->" in page.read_text(encoding="utf-8")
