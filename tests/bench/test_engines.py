"""bench/engines: others take turns with ours on the same model, and what is not the same is left out."""

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import made_up
import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref import kernels
from bitnet_ref.bench import efficiency, engines, evaluation, evaluation_page, evaluation_report, llama_peer
from bitnet_ref.bench.child import Child
from bitnet_ref.bench.efficiency import Measured, Ran
from bitnet_ref.bench.random_model import QUICK, random_weights
from bitnet_ref.checks import CheckError
from bitnet_ref.cli import run_command
from bitnet_ref.evaluate.records import Metric
from bitnet_ref.formats import gguf_write
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.source import About, Source
from bitnet_ref.model import Transformer

ROW = dict.fromkeys(efficiency.METRICS, 2.0)


# ---- which models an engine runs ----

def folder(place, **given):
    """A model of QUICK's shape and random weights, as the report stores it."""
    cfg = replace(QUICK, **given)
    held = random_weights(cfg)
    write_hf(place, Source(place, "memory", "", cfg, About(), None, held.__getitem__), dtype="float16")
    return str(place)


def test_what_an_engine_does_not_run_is_left_out_with_the_reason(tmp_path, monkeypatch):
    """llama.cpp has no graph for a twin with sub-norms, and no trits in rows that are not of 256."""
    written = []
    monkeypatch.setattr(gguf_write, "write_gguf", lambda path, source, kind: (
        gguf_write.architecture(source.cfg, kind), written.append((path.name, kind))))
    models = {"bitnet": folder(tmp_path / "bitnet"), "twin": folder(tmp_path / "twin", linear="full"),
              "llama": folder(tmp_path / "llama", linear="full", norm="pre"), "run": str(tiny.trained())}
    pythons = {"transformers": "torch-python", "llama.cpp": "llama-python"}
    found, notes = engines.peers(pythons, models, 3, tmp_path / "files")
    assert list(found) == ["bitnet in transformers", "twin in transformers", "llama in transformers",
                           "bitnet in llama.cpp", "llama in llama.cpp", "run in llama.cpp"]
    assert written == [("bitnet.gguf", "tq2_0"), ("llama.gguf", "f16"), ("run.gguf", "tq2_0")]
    assert found["twin in transformers"] == Ran("torch-python", engines.MODULE, (
        "transformers", models["twin"], "3", "128", "512"), "twin")
    assert found["llama in llama.cpp"].arguments[1] == str(tmp_path / "files" / "llama.gguf")
    assert [note.partition(":")[0] for note in notes] == ["run in transformers", "twin in llama.cpp"]
    for note, words in zip(notes, ("must be given a Hugging Face folder", "must have norm = pre")):
        tiny.assert_three_parts(note, words)


# ---- the child ----

def lacking(library):
    raise PackageNotFoundError


def test_what_this_interpreter_needs_is_looked_for_too(monkeypatch):
    about = {"about": "it, 1.0"}
    monkeypatch.setattr(engines, "Child", lambda *given: nullcontext(SimpleNamespace(about=about)))
    monkeypatch.setattr(engines, "version", lambda library: "0.1")
    assert engines.greeted("llama.cpp", "python") == "it, 1.0, gguf 0.1"
    assert engines.greeted("transformers", "python") == "it, 1.0"
    monkeypatch.setattr(engines, "version", lacking)
    with tiny.refusal("llama.cpp of python: gguf must be installed", "pip install gguf"):
        engines.greeted("llama.cpp", "python")
    about.clear()
    with tiny.refusal("llama.cpp of python: a peer must greet"):
        engines.greeted("llama.cpp", "python")


def test_without_the_libraries_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with tiny.refusal("transformers must be installed", "--torch-python"):
        engines._transformers_about()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="1"))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__="1"))
    monkeypatch.setattr(engines, "version", lacking)
    with tiny.refusal("accelerate must be installed", sys.executable):
        engines._transformers_about()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with tiny.refusal("llama.cpp must be installed"):
        engines._llama_about()


def test_the_child_greets_and_only_measures_a_model_that_it_is_given(monkeypatch):
    made = []
    monkeypatch.setattr(engines, "measure", lambda model: {"of": model})
    monkeypatch.setitem(engines.ENGINES, "llama.cpp", (lambda *given: made.append(given) or "model",
                                                       lambda: "it, 1.0"))
    monkeypatch.setattr(sys, "argv", ["", "llama.cpp"])
    assert engines.start() == ({"about": "it, 1.0", "kernels": None}, {})
    monkeypatch.setattr(sys, "argv", ["", "llama.cpp", "a.gguf", "2", "64", "100"])
    _, able = engines.start()
    assert able["measure"]() == {"of": "model"}
    assert made == [("a.gguf", 2, SimpleNamespace(context=64, vocab_size=100))]


class Pretended:
    """Of llama_peer.Engine what is used: its logits are the number of tokens that it holds."""

    def __init__(self, path, threads, context):
        self.held, self.parts = [], []

    def rewind(self, length):
        self.held = self.held[:length]

    def advance(self, ids, vocab):
        self.held += ids
        self.parts.append(len(ids))
        return np.full(vocab, float(len(self.held)))


def test_llama_cpp_reads_a_prompt_in_its_batches_and_anew_each_time(monkeypatch):
    monkeypatch.setattr(llama_peer, "Engine", Pretended)
    monkeypatch.setattr(llama_peer, "BATCH", 4)
    model = engines.LlamaCpp("a.gguf", 1, SimpleNamespace(context=64, vocab_size=3))
    for _ in range(2):
        logits, state = model.prefill(np.arange(10)[None])
        assert logits.tolist() == [[10.0] * 3]
        logits, state = model.decode_step(np.array([7]), state)
        assert logits.tolist() == [[11.0] * 3]
        assert model.engine.held == [*range(10), 7]
    assert model.engine.parts == [4, 4, 2, 1] * 2


@pytest.mark.oracle
@pytest.mark.parametrize("given", [{}, {"linear": "full"}, {"linear": "full", "norm": "pre"},
                                   {"glu": "relu2"}])
def test_transformers_computes_what_we_do(given, tmp_path):
    """The very folder; float16 weights, computed in float32 by both. Codes of a ternary model may flip."""
    pytest.importorskip("transformers")
    path, cfg = folder(tmp_path / "m", **given), replace(QUICK, **given)
    theirs = engines.Transformers(path, 1, cfg)
    ours = Transformer(cfg, random_weights(cfg), kernels.load("numpy"))
    ids = np.arange(16, dtype=np.int64)[None]
    both = [model.prefill(ids) for model in (ours, theirs)]
    limit = 1e-4 if cfg.linear == "full" else 1e-2
    for _ in range(3):
        a, b = (logits.reshape(-1, cfg.vocab_size)[-1] for logits, _ in both)
        assert efficiency.apart(a, b) < limit
        token = np.array([int(a.argmax())])
        both = [model.decode_step(token, state) for model, (_, state) in zip((ours, theirs), both)]


@pytest.mark.oracle
def test_what_transformers_cannot_load_is_said(tmp_path):
    pytest.importorskip("transformers")
    with tiny.refusal("transformers must load none"):
        engines.Transformers(str(tmp_path / "none"), 1, None)


@pytest.mark.slow
def test_llama_cpp_computes_what_we_do(tmp_path):
    """Activations of TQ2_0 are quantised by blocks: near, and much nearer than another model."""
    python = os.environ.get("BITNET_REF_LLAMA_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import llama_cpp, gguf"], capture_output=True).returncode:
        pytest.skip("llama-cpp-python and gguf are not installed")
    pytest.importorskip("gguf")
    assert engines.greeted("llama.cpp", python).startswith("llama-cpp-python")
    for given, limit in (({}, 0.05), ({"linear": "full", "norm": "pre"}, 5e-3)):
        path = folder(tmp_path / f"m{len(given)}", **given)
        peers, notes = engines.peers({"llama.cpp": python}, {"m": path}, 1, tmp_path)
        assert notes == []
        cfg = replace(QUICK, **given)
        ours = efficiency.measure(Transformer(cfg, random_weights(cfg), kernels.load("numpy")))
        with Child(python, engines.MODULE, *peers["m in llama.cpp"].arguments) as child:
            said = child.ask("measure")
        assert efficiency.apart(np.array(ours["logits"]), np.array(said["logits"])) < limit


# ---- turns ----

class Answering:
    """A child of whom `says` knows by its arguments what it answers: figures, or what it refuses."""

    says, turns = {}, []

    def __init__(self, python, module, *arguments, ours=False):
        self.name = arguments[0]
        self.about = {"about": "it, 1.0", "kernels": {"threads": 1} if ours else None}
        assert ours == (python == sys.executable)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.turns.append(self.name)

    def ask(self, what):
        if isinstance(self.says[self.name], str):
            raise CheckError(self.says[self.name])
        return {**ROW, "logits": self.says[self.name], "why no energy": ""}


def test_peers_take_turns_and_those_that_fail_or_differ_are_left_out(monkeypatch):
    says = {"a": [1.0, -4.0], "near": [1.1, -4.0], "far": [2.0, -4.0], "short": [1.0], "dead": "no; got; do",
            "nan": [float("nan"), -4.0]}
    monkeypatch.setattr(Answering, "says", says)
    monkeypatch.setattr(Answering, "turns", [])
    monkeypatch.setattr(efficiency, "Child", Answering)
    peers = {name: Ran("other", "m", (name,), "a") for name in says if name != "a"}
    found, notes, computed, others = efficiency.measured({"a": "a"}, 2, None, peers=peers)
    assert set(found) == {"a", "near"}
    assert [len(rows) for rows in found.values()] == [2, 2]
    assert computed == {"threads": 1}
    assert others["near"] == {"engine": "it, 1.0", "logits apart": pytest.approx(0.025)}
    assert {note.partition(": ")[0] for note in notes} == {"far", "short", "dead", "nan"}
    assert "dead: left out: no; got; do" in notes
    assert set(others) == set(peers) - {"dead"}            # which did not run to the end
    assert Answering.turns[:6] == list(says)
    assert Answering.turns[6] != "a"                       # another begins the second round
    monkeypatch.setitem(says, "a", "no; got; do")
    with pytest.raises(CheckError):
        efficiency.measured({"a": "a"}, 2, None)


# ---- in the report ----

def job(place, **given):
    return evaluation.Job(**{"place": place, "argv": [], "threads": 1, "rounds": 2, "prompts": 2,
                             "context": 16, **given})


def contestant():
    return evaluation_report.Contestant("BitNet", "", [made_up.perplexity(weights="weights")], Path("model"))


def test_timings_in_engines_are_kept_and_made_when_asked_for(tmp_path, monkeypatch):
    asked = []

    def measured(models, rounds, threads, say, peers):
        asked.append(list(peers))
        return Measured({name: [ROW, ROW] for name in (*models, *peers)}, [], {"threads": 1}, {
            name: {"engine": "it, 1.0", "logits apart": 0.5} for name in peers if name not in failing})

    failing, given = [], []
    monkeypatch.setattr(efficiency, "measured", measured)
    monkeypatch.setattr(efficiency, "threads_of", lambda path, threads: 3)
    monkeypatch.setattr(engines, "peers", lambda pythons, models, threads, place: given.append(threads) or (
        {f"{who}{engines.IN}{e}": Ran("", "", (), who) for who in models for e in pythons}, ["left: out"]))
    models = {"bitnet": contestant(), "long-twin": contestant()}
    peer = {"peers": {"transformers": "python"}}
    found, _ = evaluation.timed(job(tmp_path), models)
    assert set(found) == set(models)
    found, notes = evaluation.timed(job(tmp_path, **peer), models)
    assert set(found) == {*models, "bitnet in transformers"}          # the twin of other steps is as fast
    record = found["bitnet in transformers"]
    assert record.model == found["bitnet"].model
    assert (record.made.versions["engine"], record.metrics["logits apart"].value) == ("it, 1.0", 0.5)
    assert given == [3]                                    # as many as ours have, wherever they may run
    assert "engine" not in found["bitnet"].made.versions
    assert evaluation.timed(job(tmp_path, **peer), models) == (found, notes)
    assert notes == ["left: out"]
    assert asked == [[], ["bitnet in transformers"]]
    for other in ({"said": {"transformers": "2.0"}}, {"peers": {"transformers": "other"}}):
        evaluation.timed(job(tmp_path, **{**peer, **other}), models)
    assert len(asked) == 4                                 # what was left out of one need not be of the other
    failing += ["bitnet in transformers"]
    for n in (5, 6):                                       # what failed is tried again
        evaluation.timed(job(tmp_path, **peer, said={"transformers": "3.0"}), models)
        assert len(asked) == n


@pytest.mark.slow
def test_peers_get_the_threads_that_ours_find():
    found = kernels.about("numba")["threads"]
    assert efficiency.threads_of(str(tiny.trained()), None) == found
    assert efficiency.threads_of(str(tiny.trained()), 1) == 1


def test_engines_have_rows_that_are_not_counted_against_full_precision():
    speed = {"bitnet": made_up.efficiency([200, 201, 199]),
             "bitnet in transformers": made_up.efficiency([100, 101, 99])}
    rows = evaluation_report.in_engines({"bitnet": contestant()}, speed)
    assert {(r.contest, r.ours, r.theirs) for r in rows} == {
        ("engines", "BitNet, bitnet_ref", "BitNet, transformers")}
    assert "model bytes" not in {r.metric for r in rows}
    row = next(r for r in rows if r.metric == "decode tokens/s")
    assert (row.verdict, row.delta) == ("win", pytest.approx(100, abs=2))
    summary = evaluation_report.tally(rows)
    assert sum(summary["all"].values()) == 0 < sum(summary["by contest"]["engines"].values())


def test_the_table_of_engines_says_which_they_are_and_for_whom_a_win_is_one():
    theirs = made_up.efficiency([100, 101, 99])
    theirs = replace(theirs, made=replace(theirs.made, versions={"engine": "it, 1.0"}),
                     metrics={**theirs.metrics, "logits apart": Metric(0.0123, 1, None, "lower")})
    ran = evaluation_report.ran_in({"bitnet": contestant()}, {"bitnet": theirs, "bitnet in it": theirs})
    assert ran == [{"name": "BitNet, it", "engine": "it, 1.0", "apart": 0.0123}]
    words = evaluation_page.about(engines.CONTEST, {"engines": ran})
    assert words.endswith("; BitNet, it: it, 1.0, logits 1.2% of the largest from ours")
    assert "positive is better for bitnet_ref" in words
    assert evaluation_page.about("equal time", {"engines": ran}) == evaluation_page.MEANING["equal time"]


def test_a_peer_that_is_not_there_is_refused_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation.rivals, "train_all", None)
    given = ["--output", str(tmp_path / "out"), "--peer", "llama.cpp", "--llama-python"]
    assert run_command(evaluation.main, [*given, str(tmp_path / "python")]) == 2
    tiny.assert_three_parts(capsys.readouterr().err.splitlines()[-1], "must be a Python interpreter")
    assert run_command(evaluation.main, [*given, "/bin/true"]) == 2
    tiny.assert_three_parts(capsys.readouterr().err.splitlines()[-1], "llama.cpp of /bin/true")
    monkeypatch.setattr(engines, "greeted", lambda engine, python: f"{engine} of {python}")
    args = evaluation.parsed([*given, "python", "--peer", "llama.cpp"])
    assert evaluation.pythons_of(args) == {"llama.cpp": "python"}
    assert args.said == {"llama.cpp": "llama.cpp of python"}
    assert "peer: llama.cpp of python" in capsys.readouterr().err
    assert evaluation.pythons_of(evaluation.parsed(given[:2])) == {}
