"""bench/evaluation: each part once, in a form that can be typed, and the whole from one command."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import made_up
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import (
    chains,
    efficiency,
    evaluation,
    evaluation_page,
    evaluation_report,
    rivals,
)
from bitnet_ref.bench.cells import FIGURES
from bitnet_ref.bench.random_model import QUICK, random_weights
from bitnet_ref.cli import run_command
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.evaluate import harness, records
from bitnet_ref.evaluate.provenance import made
from bitnet_ref.evaluate.tasks import read_task
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.opened import open_model
from bitnet_ref.formats.source import About, Source

DATA = os.environ.get("BITNET_REF_DATA")


def job(place, **given):
    return evaluation.Job(**{"place": place, "argv": ["--output", str(place)], "threads": 1, "rounds": 2,
                             "prompts": 2, "context": 16, **given})


def contestant(weights="weights"):
    record = made_up.perplexity(weights=weights)
    return evaluation_report.Contestant("BitNet", "", [record], Path("model"))


# ---- parts ----

def test_a_model_is_stored_as_one_would_ship_it(tmp_path):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    (run / FIGURES).write_text("{}")
    place = evaluation.stored(run, tmp_path / "model")
    source = open_model(place)
    assert source.cfg.linear == "ternary"
    assert str(source.read("embedding").dtype) == "float16"
    assert evaluation.stored(run, place) == place
    later = time.time() + 100
    os.utime(run / FIGURES, (later, later))
    with tiny.refusal("must be of the run as it is", "delete it"):
        evaluation.stored(run, place)


@pytest.mark.slow
def test_an_evaluation_is_a_command_and_is_made_once(tmp_path, monkeypatch):
    corpus, run = str(tiny.corpus()), tiny.trained()
    how = ("--corpus", corpus, "--context", "16", "--stride", "16")
    found = evaluation.evaluated(job(tmp_path), "name", run, "text", *how)
    assert found.model.linear == "ternary"
    assert found.made.command.startswith("python -m bitnet_ref.evaluate --model")
    assert str(tmp_path) not in json.dumps(found.made.command)
    kept = records.load(tmp_path / "records" / "name.text.json")
    assert kept == found
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "subprocess", None)
        assert evaluation.evaluated(job(tmp_path), "name", run, "text", *how) == found
    other = tiny.trained(seed=1)
    assert evaluation.evaluated(job(tmp_path), "name", other, "text", *how) != found


@pytest.mark.slow
def test_what_an_evaluation_refuses_is_said(tmp_path):
    with tiny.refusal("must be evaluated on text", "--stride must be from 1"):
        evaluation.evaluated(job(tmp_path), "name", tiny.trained(), "text", "--corpus", str(tiny.corpus()),
                             "--stride", "1000")


def test_timings_are_kept_with_the_weights_that_they_are_of(tmp_path, monkeypatch):
    calls = []

    def measured(models, rounds, threads, say, peers):
        calls.append(models)
        row = dict.fromkeys(efficiency.METRICS, 2.0) | {"joules per token": None}
        return efficiency.Measured({name: [row, {**row, "peak MiB": 4.0}] for name in models},
                                   ["energy: unknown: none"], {"backend": "numba", "threads": 7}, {})

    monkeypatch.setattr(efficiency, "measured", measured)
    found, notes = evaluation.timed(job(tmp_path), {"bitnet": contestant()})
    assert notes == ["energy: unknown: none"]
    assert found["bitnet"].metrics["peak MiB"].value == 3
    assert "joules per token" not in found["bitnet"].metrics
    assert found["bitnet"].made.machine["threads"] == 7    # the children's, not this process's
    assert found["bitnet"].metrics["model bytes"].value == found["bitnet"].model.bytes
    assert evaluation.timed(job(tmp_path), {"bitnet": contestant()}) == (found, notes)
    assert len(calls) == 1
    evaluation.timed(job(tmp_path), {"bitnet": contestant("others")})
    assert len(calls) == 2
    for n, other in enumerate(({"rounds": 3}, {"threads": 2}), 3):
        evaluation.timed(job(tmp_path, **other), {"bitnet": contestant("others")})
        assert len(calls) == n


@pytest.mark.parametrize("damaged", [b"[]", b'"x"', b"null", b'{"engines":5}', b"{", b"\xff", None])
def test_notes_that_are_damaged_are_not_kept(damaged, tmp_path, monkeypatch):
    """And chain buckets likewise; `None`: the right wishes, and nothing of what was found."""
    asked = job(tmp_path)
    calls, rows = [], [dict.fromkeys(efficiency.METRICS, 2.0)] * 2
    monkeypatch.setattr(efficiency, "measured", lambda models, *given: calls.append("timed") or (
        efficiency.Measured(dict.fromkeys(models, rows), [], {}, {})))
    monkeypatch.setattr(chains, "measure", lambda *given: calls.append("spoken") or {"ways": {}})
    wishes = {"weights": "a", "prompts": 2, **asked.timing()}
    for file, right in ((evaluation.NOTES, asked.wanted()), (evaluation.CHAINS, wishes)):
        (tmp_path / file).write_bytes(damaged or json.dumps({"asked": right}).encode())
    evaluation.timed(asked, {"bitnet": contestant()})
    evaluation.spoken(asked, tmp_path, "a")
    assert calls == ["timed", "spoken"]
    (tmp_path / "records" / "bitnet.efficiency.json").write_bytes(damaged or b"{}")
    evaluation.timed(asked, {"bitnet": contestant()})
    assert calls == ["timed", "spoken", "timed"]


def test_chain_buckets_are_measured_again_for_other_wishes(tmp_path, monkeypatch):
    calls, found = [], {"ways": {}, "compression": {}}
    monkeypatch.setattr(chains, "measure", lambda *given: calls.append(given) or found)
    for n, (given, weights) in enumerate((({}, "a"), ({"prompts": 3}, "a"), ({"prompts": 3}, "b"),
                                          ({"prompts": 3, "threads": 2}, "b")), 1):
        first = evaluation.spoken(job(tmp_path, **given), tmp_path, weights)
        assert evaluation.spoken(job(tmp_path, **given), tmp_path, weights) == first
        assert len(calls) == n


def question(path, answer):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"goal": "Boil", "sol1": "a kettle", "sol2": "a hat", "label": answer}) + "\n")
    return path


def test_questions_that_have_changed_are_asked_again(tmp_path, monkeypatch):
    """Another file of the same name, or the same with other questions in it."""
    asked = []

    def run(words, **given):
        name, argv = words[words.index("--tasks") + 1], words[3:]
        asked.append(name)
        found = made_up.choice(0.5, weights="weights")
        records.save(words[-1], replace(found, made=made("evaluate", argv, 0.0, "numba"), data=replace(
            found.data, sha256=read_task(name).sha256)))
        return SimpleNamespace(stderr="", returncode=0)

    monkeypatch.setattr(evaluation, "subprocess", SimpleNamespace(run=run, DEVNULL=None, PIPE=None))
    monkeypatch.setattr(evaluation, "weights_sha256", lambda *given: "weights")
    monkeypatch.setattr(evaluation, "kind_of", lambda path: "hf")
    first, second = tmp_path / "a" / "q.jsonl", tmp_path / "b" / "q.jsonl"
    for path, answer, n in ((first, 0, 1), (first, 0, 1), (second, 1, 2), (first, 0, 3), (first, 1, 4)):
        evaluation.asked(job(tmp_path), "base", contestant(), [str(question(path, answer))])
        assert len(asked) == n
    evaluation.asked(job(tmp_path, threads=2), "base", contestant(), [str(first)])
    assert len(asked) == 5                                 # another command


def test_everybody_is_scored_and_asked_but_for_twins_that_would_say_it_again(tmp_path, monkeypatch):
    scored = []

    def evaluated(job, name, path, task, *flags, sha=None):
        scored.append((name, Path(path).name, task))
        return made_up.perplexity()

    monkeypatch.setattr(evaluation, "evaluated", evaluated)
    monkeypatch.setattr(evaluation, "stored", lambda run, folder: folder)
    monkeypatch.setattr(evaluation, "texts_of", lambda corpus: ([], "sha"))
    monkeypatch.setattr(evaluation, "_questions", lambda task: None)
    trained = {who: [{"name": f"{who}-{n}"} for n in range(2)] for who in (rivals.BITNET, rivals.SMALL)}
    found = evaluation.contestants(job(tmp_path), trained, tmp_path, [Path("else/llama")])
    assert {who: (c.name, c.contest, len(c.records)) for who, c in found.items()} == {
        "bitnet": ("BitNet b1.58", "", 2), "small-twin": ("narrower twin", "equal bytes", 2),
        "llama": ("llama", "baseline llama", 1)}
    assert scored[0] == ("bitnet-0", "bitnet-0", "wikitext-2")
    assert scored[-1] == ("baseline-llama", "llama", "wikitext-2")
    del scored[:]
    asked = {who: evaluation.asked(job(tmp_path), who, c, ["q/arc.jsonl"]) for who, c in found.items()}
    assert asked["small-twin"] == {}
    assert [len(asked[who]["q/arc.jsonl"]) for who in ("bitnet", "llama")] == [2, 1]
    assert {task for _, _, task in scored} == {"arc.jsonl"}


# ---- the command ----

def test_the_command_puts_its_parts_together(tmp_path, monkeypatch, capsys):
    """From the command line to the page, with parts that are each tested by themselves; in its order."""
    written, runs = {}, {rivals.BITNET: [{"name": "bitnet-seed-0"}]}
    models = {rivals.BITNET: evaluation_report.Contestant("BitNet", "", [made_up.perplexity()], Path("m"),
                                                          runs[rivals.BITNET])}
    speed = {rivals.BITNET: made_up.efficiency([1, 2, 3])}
    (tmp_path / "records").mkdir()
    records.save(tmp_path / "records" / "a.json", made_up.choice(0.5))
    plans = []
    monkeypatch.setattr(rivals, "train_all", lambda plan, folder: plans.append((plan, folder)) or runs)
    monkeypatch.setattr(evaluation, "contestants", lambda job, trained, folder, baselines: models)
    monkeypatch.setattr(evaluation, "timed", lambda job, given: (speed, ["note"]))
    monkeypatch.setattr(evaluation, "spoken", lambda job, run, weights: {"of": run.name})
    monkeypatch.setattr(evaluation_report, "assembled", lambda *given: given)
    monkeypatch.setattr(evaluation_page, "write", lambda place, report: written.update({place: report}))
    monkeypatch.setattr(evaluation_page, "summary", lambda report: "0 wins")
    arguments = ["--output", str(tmp_path / "out"), "--preset", "tiny", "--steps", "7", "--seeds", "2",
                 "--threads", "1", "--records", str(tmp_path / "records"), "--data", str(tmp_path)]
    monkeypatch.setenv(evaluation.DATA, "before")
    assert run_command(evaluation.main, arguments) == 0
    assert capsys.readouterr().out == "0 wins\n"
    assert os.environ[evaluation.DATA] == str(tmp_path)
    (plan, folder), = plans
    assert (plan.preset, plan.seeds, plan.train.steps, plan.train.corpus) == ("tiny", 2, 7, "wikitext-2")
    assert folder == tmp_path / "out" / "runs"
    given = written[tmp_path / "out"]
    assert given[1:5] == (speed, [made_up.choice(0.5)], {"of": "bitnet-seed-0"}, ["note"])
    assert given[5].command.startswith("python -m bitnet_ref.evaluate report")

@pytest.mark.parametrize("arguments", [
    ["--steps", "0"], ["--seeds", "6"], ["--rounds", "1"], ["--preset", "huge"], ["--baseline", "nowhere"],
    ["--records", "nowhere"], ["--prompts", "-1"], ["--output", ""]])
def test_what_is_wrong_is_refused(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rivals, "train_all", None)
    assert run_command(evaluation.main, ["--output", str(tmp_path / "out"), *arguments]) == 2
    tiny.assert_three_parts(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "words"), [
    (["--task", "a/q.jsonl", "--task", "b/q.jsonl"], "tasks must have names of their own"),
    (["--task", "none.jsonl"], "none.jsonl"), (["--task", "bad.jsonl"], "line 1 of bad.jsonl"),
    (["--task", "x,y"], "--task must be one task"), (["--records", "records"], "record.json"),
    (["--records", "bad.jsonl"], "--records must be a folder"),
    (["--baseline", "bad.jsonl"], "a model must be")])
def test_what_would_fail_after_the_training_is_refused_before(given, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rivals, "train_all", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("[", encoding="utf-8")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "record.json").write_text("{}", encoding="utf-8")
    for place in ("a", "b"):
        question(tmp_path / place / "q.jsonl", 0)
    assert run_command(evaluation.main, ["--output", str(tmp_path / "out"), *given]) == 2
    tiny.assert_three_parts(capsys.readouterr().err, words)
    assert not (tmp_path / "out").exists()


def test_a_task_that_the_library_does_not_know_is_refused_before_the_training(tmp_path, monkeypatch):
    known = SimpleNamespace(all_tasks=["piqa"])
    library = SimpleNamespace(tasks=SimpleNamespace(TaskManager=lambda **how: known))
    monkeypatch.setattr(harness, "library", lambda: library)
    given = ["--output", str(tmp_path / "out"), "--task"]
    assert evaluation.parsed([*given, "piqa"]).task == ["piqa"]
    with tiny.refusal("tasks that lm-evaluation-harness knows", "got pika"):
        evaluation.parsed([*given, "pika"])


def test_a_baseline_must_read_the_windows_of_the_others(tmp_path):
    """Known from its header: 32 tokens, for nano's 256."""
    with tiny.refusal("must read 256 tokens at once"):
        evaluation.parsed(["--output", str(tmp_path / "out"), "--baseline", str(tiny.trained())])


@pytest.mark.parametrize("names", [("a/x", "b/x"), ("bitnet",), ("a b", "a-b"), ("twin in llama.cpp",)])
def test_baselines_have_names_of_their_own(names, tmp_path):
    given = []
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        given += ["--baseline", str(tmp_path / name)]
    with tiny.refusal("names of their own"):
        evaluation.parsed(["--output", str(tmp_path / "out"), *given])


def llama(place):
    """A LLaMA of random weights with a tokenizer of its own."""
    tokenizer = train_bpe([tiny.text(400)], 300)
    cfg = replace(QUICK, vocab_size=tokenizer.vocab_size, linear="full", norm="pre", context=256)
    held = random_weights(cfg)
    write_hf(place, Source(place, "memory", "", cfg, About(), tokenizer.json, held.__getitem__))
    return place


@pytest.mark.nightly
@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="needs BITNET_REF_DATA")
def test_the_whole_report(tmp_path):
    """With a LLaMA of another vocabulary as a baseline, and records of HumanEval made elsewhere."""
    (tmp_path / "others").mkdir()
    for linear in ("ternary", "full"):
        records.save(tmp_path / "others" / f"{linear}.json", made_up.code(linear))
    how = ("report", "--output", tmp_path, "--preset", "tiny", "--steps", 8, "--seeds", 2, "--rounds", 2,
           "--prompts", 3, "--threads", 1, "--baseline", llama(tmp_path / "llama"),
           "--records", tmp_path / "others")
    first = tiny.command("evaluate", *how)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(tuple("0123456789"))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    assert len(files) == 2 * 4 + 4 + 2
    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["rows"]
    against = {r["metric"]: r for r in rows if r["contest"] == "baseline llama"}
    assert {"bits per byte", "decode tokens/s", "model bytes"} <= against.keys()
    assert against["perplexity"]["verdict"] == "refused"   # per token of two vocabularies
    assert [r["metric"] for r in rows if r["contest"] == "code"] == ["pass@1"]
    again = tiny.command("evaluate", *how)
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert "step/s" not in again.stderr
    report = tmp_path / "report.json"
    assert str(tmp_path) not in report.read_text(encoding="utf-8")
    assert tiny.command("evaluate", "compare", report, report).returncode == 0
