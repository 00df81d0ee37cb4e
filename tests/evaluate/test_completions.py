"""evaluate/completions: what a model writes, kept and gone on with; the command; nothing runs unasked."""

import json
import sys

import pytest
import tiny
from problems import PROBLEMS, put, walls  # noqa: F401
from tiny import own_cache  # noqa: F401

from bitnet_ref.cli import run_command
from bitnet_ref.evaluate import __main__ as command
from bitnet_ref.evaluate import completions as module
from bitnet_ref.evaluate.completions import STOPS, completions
from bitnet_ref.evaluate.records import load as load_record
from bitnet_ref.generate.language_model import load
from bitnet_ref.generate.sampling import Sampling

GREEDY = Sampling(temperature=0.0, top_k=None)
DRAWN = Sampling(temperature=0.9, top_k=None, seed=3)


@pytest.fixture
def problems(tmp_path):
    return put(tmp_path / "problems.jsonl", [p._asdict() for p in PROBLEMS.values()])


@pytest.fixture
def run(capsys):
    tiny.trained()
    capsys.readouterr()

    def run(*arguments):
        code = run_command(command.main, [str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return run


class Canned:
    """A model that solves the first problem and not the second, and counts what it is asked."""

    def __init__(self):
        self.asked = []

    def generate_all(self, prompts, tokens, temperature, top_k, seed, *, stop, sequence, **given):
        self.asked += [(p, sequence) for p in prompts]
        assert stop == STOPS
        return [f"    return x + y + {sequence % 2}" if "add" in p else "    return 1" for p in prompts]


def test_completions_are_what_the_model_says_of_each_prompt():
    model = load(tiny.trained())
    got = completions(model, PROBLEMS, 2, 12, DRAWN, progress=False)
    assert [s.task_id for s in got] == ["t/0", "t/1", "t/0", "t/1"]
    for i, sample in enumerate(got):
        prompt = PROBLEMS[sample.task_id].prompt
        assert sample.completion == model.generate(prompt, 12, 0.9, None, 3, stop=STOPS, sequence=i // 2)
    assert got[0] != got[2]


def test_samples_are_kept_and_only_the_rest_is_made(tmp_path):
    path, model = tmp_path / "s.jsonl", Canned()
    completions(model, {"t/0": PROBLEMS["t/0"]}, 1, 9, DRAWN, path, "facts", False)
    got = completions(model, PROBLEMS, 3, 9, DRAWN, path, "facts", False)
    assert len(model.asked) == len(set(model.asked)) == len(got) == 6
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(r["task_id"], r["sequence"]) for r in rows} == {(t, n) for t in PROBLEMS for n in range(3)}
    cooler = Sampling(temperature=0.8, top_k=None, seed=3)
    for other in ({"facts": "others"}, {"tokens": 10}, {"how": cooler}):
        asked = {"tokens": 9, "how": DRAWN, "facts": "facts", **other}
        with tiny.refusal("same model, data and options"):
            completions(model, PROBLEMS, 3, asked["tokens"], asked["how"], path, asked["facts"], False)


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of Linux")
@pytest.mark.usefixtures("walls")
def test_the_command_judges_what_the_model_writes(run, problems, tmp_path, monkeypatch):
    model = load(tiny.trained())
    monkeypatch.setattr(type(model), "generate_all", Canned().generate_all.__func__)
    monkeypatch.setattr(type(model), "asked", [], raising=False)
    asked = ["--model", tiny.trained(), "--humaneval", problems, "--run-programs", "--per-problem", 3,
             "--temperature", 0.5, "--pass-at", 1, "--pass-at", 3, "--samples", tmp_path / "s.jsonl"]
    code, out, _ = run(*asked, "--json", "--output", tmp_path / "r.json")
    assert code == 0
    figures = json.loads(out)
    assert figures["pass@1"] == pytest.approx((2 / 3 + 0) / 2)
    assert figures["pass@3"] == 0.5
    assert (figures["samples"], figures["passed"], figures["failed"]) == (6, 2, 4)
    record = load_record(tmp_path / "r.json")
    assert (record.kind, record.task, record.data.items) == ("code", "humaneval", 2)
    assert record.items == [[2 / 3, 3.0], [0.0, 3.0]]
    assert (record.data.how["temperature"], record.data.how["top_p"]) == (0.5, 1.0)
    assert record.metrics["pass@1"].stderr == pytest.approx(figures["pass@1 standard error"])
    assert (tmp_path / "s.jsonl_results.jsonl").read_text().count("\n") == 6
    monkeypatch.setattr(type(model), "generate_all", None)     # all is there: neither made nor run again
    monkeypatch.setattr("bitnet_ref.evaluate.humaneval.run", None)
    code, out, _ = run(*asked)
    assert "pass@1          0.3333 (standard error 0." in out
    assert "counted         2 problems, 6 samples: 4 failed, 2 passed\ncontained by    Landlock, secc" in out


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of Linux")
@pytest.mark.usefixtures("walls")
def test_samples_of_others_and_the_reference_need_no_model(run, problems, tmp_path):
    samples = put(tmp_path / "theirs.jsonl", [{"task_id": "t/0", "completion": "    return y + x"},
                                              {"task_id": "t/1", "completion": "    pass"}])
    code, out, _ = run("--humaneval", problems, "--judge", samples, "--run-programs", "--json")
    assert (code, json.loads(out)["pass@1"]) == (0, 0.5)
    _, out, _ = run("--humaneval", problems, "--judge", "reference", "--run-programs", "--json")
    assert json.loads(out)["pass@1"] == 1
    code, out, _ = run("--humaneval", problems, "--judge", samples, "--run-programs", "--json",
                       "--problems", 1)
    assert (code, json.loads(out)["pass@1"], json.loads(out)["samples"]) == (0, 1, 1)


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["only where --run-programs says so", "docs/sandbox.md"]),
    (["--run-programs", "--per-problem", 2], ["several samples of one problem must be drawn"]),
    (["--run-programs", "--pass-at", 2], ["pass@k must be of 1 to --per-problem samples", "[2] of 1"]),
    (["--run-programs", "--pass-at", 0], ["pass@k must be of 1 to --per-problem"]),
    (["--run-programs", "--per-problem", 0], ["--per-problem must be greater than 0", "got 0"]),
    (["--run-programs", "--workers", 0], ["--workers must be greater than 0"]),
    (["--run-programs", "--problems", -1], ["--problems must be greater than 0"]),
    (["--run-programs", "--temperature", -1.0], ["temperature must not be negative"]),
    (["--run-programs", "--judge", "x"], ["--judge must stand without --model", "leave one out"]),
    (["--run-programs", "--judge", "reference"], ["--judge must stand without --model"]),
    (["--run-programs", "--limit", 3], ["--limit must be of the evaluation asked for", "add --tasks"]),
    (["--run-programs", "--no-first"], ["--no-first must be of the evaluation asked for"]),
    (["--run-programs", "--corpus", "x"], ["--corpus must be of the evaluation", "code; leave it out"]),
])
def test_what_is_wrong_is_refused_and_nothing_runs(arguments, words, run, problems, monkeypatch):
    monkeypatch.setattr(module, "proved", lambda: ("walls",))
    monkeypatch.setattr(module, "judged", lambda problems, samples, *more, **given: [
        module.Verdict("failed", "", 0.0) for _ in samples])
    monkeypatch.setattr("bitnet_ref.evaluate.humaneval.run", None)
    code, out, err = run("--model", tiny.trained(), "--humaneval", problems, *arguments)
    assert (code, out) == (2, "")
    tiny.assert_three_parts(err.splitlines()[-1], *words)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--judge", "x", "--samples", "y"], ["--samples must stand without --judge"]),
    (["--judge", "nowhere"], ["nowhere must be"]),
    (["--judge", "reference", "--pass-at", 2], ["pass@k must be of k samples or more"]),
    (["--judge", "reference", "--output", "r.json"], ["--output must be of an evaluation that keeps"]),
])
def test_of_samples_of_others_what_is_wrong_is_refused(arguments, words, run, problems, monkeypatch):
    monkeypatch.setattr(module, "proved", lambda: ("walls",))
    monkeypatch.setattr(module, "judged", lambda problems, samples, *more, **given: [
        module.Verdict("failed", "", 0.0) for _ in samples])
    code, out, err = run("--humaneval", problems, "--run-programs", *arguments)
    assert (code, out) == (2, "")
    tiny.assert_three_parts(err.splitlines()[-1], *words)


def test_no_bar_where_nobody_looks(run, problems, monkeypatch, tmp_path):
    """Of a log or a pipe each step of a bar would be a line."""
    monkeypatch.setattr(module, "proved", lambda: ("walls",))
    monkeypatch.setattr("bitnet_ref.evaluate.humaneval.proved", lambda: ("walls",))
    monkeypatch.setattr("bitnet_ref.evaluate.humaneval.run", lambda *asked: module.Verdict("failed", "", 0.0))
    code, _, err = run("--model", tiny.trained(), "--humaneval", problems, "--run-programs",
                       "--completion-tokens", 2)
    assert (code, err) == (0, "")


def test_two_kinds_at_once_are_refused(run, problems):
    code, _, err = run("--model", tiny.trained(), "--humaneval", problems, "--stride", 4)
    assert code == 2
    tiny.assert_three_parts(err, "an evaluation must be of one kind", "code and sliding", "one after")


def test_a_model_must_be_given_unless_others_samples_are_judged(run, problems):
    for arguments in ([], ["--humaneval", problems, "--run-programs"], ["--stride", 3]):
        code, _, err = run(*arguments)
        assert code == 2
        tiny.assert_three_parts(err, "--model must be given", "got nothing", "--help")
