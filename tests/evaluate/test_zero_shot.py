"""evaluate/zero_shot, kept and choice: accuracies by their definitions; what is scored is never lost."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from questions import REQUESTS, questions, request, written
from tiny import own_cache  # noqa: F401

from bitnet_ref.data.download import DATA
from bitnet_ref.evaluate import __main__ as command
from bitnet_ref.evaluate import choice, kept
from bitnet_ref.evaluate.kept import keeping, kept_file, read_kept
from bitnet_ref.evaluate.likelihood import Likelihood
from bitnet_ref.evaluate.records import load as load_record
from bitnet_ref.evaluate.tasks import Question, Task, read_task
from bitnet_ref.evaluate.zero_shot import correct, figure, metrics, score_task
from bitnet_ref.generate.language_model import load


@pytest.fixture
def task(tmp_path):
    return written(tmp_path / "q.jsonl", questions())


@pytest.fixture
def run(capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    return tiny.commanded(command.main, capsys)


# --- the figures -------------------------------------------------------------------------------------------


def test_the_answer_wins_by_sum_by_characters_and_by_what_the_question_adds():
    q = Question("?", (" a", " bbbb"), 1)
    assert correct(q, [-1.0, -2.0]) == [0, 1]              # -1 and -0.5 a character
    assert correct(q, [-2.0, -1.0]) == [1, 1]
    assert correct(q, [-1.0, -5.0]) == [0, 0]
    asked = q._replace(without="!")
    assert correct(asked, [-1.0, -2.0, -1.0, -9.0]) == [0, 1, 1]
    assert correct(asked, [-1.0, -2.0, -9.0, -1.0]) == [0, 1, 0]
    assert correct(q._replace(answer=0), [-1.0, -1.0]) == [1, 0]       # a tie by sum: the first


@given(values=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=50))
def test_the_standard_error_is_that_of_a_mean(values):
    got, p, n = figure(values, 0.25), sum(values) / len(values), len(values)
    assert got.value == pytest.approx(p)
    assert got.stderr == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert (got.n, got.chance, got.better) == (n, 0.25, "higher")
    assert figure([1.0], None).stderr is None


def test_each_score_is_that_of_the_whole_text(task):
    """Against a loop that encodes and scores each choice by itself."""
    model = load(tiny.trained(), "numpy")
    read = read_task(task)
    scored = score_task(model, read)
    for q, found in zip(read.questions, scored.found):
        for c, got in zip(q.choices, found):
            whole = [model.first, *model.tokenizer.encode(q.context + c).tolist()]
            n = len(whole) - 1 - len(model.tokenizer.encode(q.context))
            logits = model(np.array(whole[:-1][-model.cfg.context:]))[0][0].astype(np.float64)[-n:]
            lse = np.log(np.exp(logits).sum(axis=-1))
            want = float((logits[np.arange(n), whole[-n:]] - lse).sum())
            assert got == pytest.approx(want, abs=1e-4)
    assert scored.changed == 0


@pytest.mark.parametrize("first", [True, False])
def test_scores_do_not_depend_on_batches_or_sharing(task, first):
    model, read = load(tiny.trained()), read_task(task)
    want = score_task(model, read, 16, first)
    assert score_task(model, read, 1, first, shared=False) == want
    back = read._replace(questions=read.questions[::-1])
    assert score_task(model, back, 5, first).found == want.found[::-1]
    assert (score_task(model, read, 16, not first) == want) is False


def test_backends_agree(task, backends):
    read, model = read_task(task), load(tiny.trained(linear="full"), "numpy")
    other = load(tiny.trained(linear="full"), "numpy")
    other.transformer = type(model.transformer)(model.cfg, model.transformer.params, backends)
    got, want = score_task(other, read), score_task(model, read)
    for a, b in zip(got.found, want.found):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_what_does_not_fit_or_come_back_is_counted():
    class Forgetful:
        vocab_size, eos = 300, 0

        def __init__(self, real):
            self.encode_batch, self.real = real.encode_batch, real

        def decode(self, ids):
            return self.real.decode(ids).lower()

    model = load(tiny.trained())
    long = "Ba " * 60                                      # the model reads 32 tokens
    task = Task("t", "t.jsonl", "", [Question("Ba", (" ce", " di"), 0), Question(long, (" ce", " di"), 0)])
    plain = score_task(model, task)
    assert (plain.cut, plain.changed) == (2, 0)
    model.tokenizer = Forgetful(model.tokenizer)
    forgot = score_task(model, task)
    assert (forgot.cut, forgot.changed) == (2, 4)
    figures, _, _ = metrics(task, forgot)
    assert figures["contexts cut"].value == 2
    assert figures["texts changed by the tokenizer"].value == 4
    assert figures["texts changed by the tokenizer"].n == 4
    assert set(metrics(task, forgot._replace(cut=0, changed=0))[0]) == {"acc", "acc_norm"}


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_prints_and_keeps_a_record(task, run, tmp_path):
    code, out, err = run("--tasks", task, "--output", tmp_path / "r.json", "--json")
    assert code == 0, err
    record = load_record(tmp_path / "r.json")
    figures, items, _ = metrics(read_task(task), score_task(load(tiny.trained()), read_task(task)))
    assert record.metrics == figures
    assert record.data.how == {"first": True}
    assert record.items == items
    assert record.item_fields == ["correct", "correct_norm"]
    assert json.loads(out)["q"]["acc"]["value"] == figures["acc"].value
    assert (record.kind, record.task, record.data.name, record.data.items) == ("choice", "q", "q.jsonl", 12)
    assert record.made.command == (f"python -m bitnet_ref.evaluate --model {tiny.trained().name} --tasks "
                                   "q.jsonl --output r.json --json")
    assert record.metrics["acc"].chance == read_task(task).chance
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.jsonl", "r.json"]


def test_several_tasks_have_a_record_each(task, run, tmp_path):
    other = written(tmp_path / "r.requests.jsonl", REQUESTS)
    code, out, _ = run("--tasks", f"{task},{other}", "--output", tmp_path / "o.json", "--limit", 2)
    assert code == 0
    rows = [line.split()[:2] for line in out.splitlines()[1:]]
    assert [row for row in rows if row[1].startswith("acc")] == [
        ["q", "acc"], ["q", "acc_norm"], ["r.requests", "acc"], ["r.requests", "acc_norm"]]
    assert ["q", "contexts"] in rows                       # some are longer than 32 tokens
    assert load_record(tmp_path / "o.q.json").data.items == 2
    record = load_record(tmp_path / "o.r.requests.json")
    assert record.item_fields == ["correct", "correct_norm"]       # one question has no twin without question


def test_choices_without_their_question_make_a_third_figure(run, tmp_path):
    rows = [r for r in REQUESTS if r["doc_id"] != 7]
    code, out, _ = run("--tasks", written(tmp_path / "r.jsonl", rows), "--json")
    assert code == 0
    assert list(json.loads(out)["r"]) == ["acc", "acc_norm", "acc_uncond"]


class Broken(Exception):
    """The power goes."""


@pytest.mark.parametrize("after", [0, 1, 17])
def test_what_is_scored_survives(after, task, run, tmp_path, monkeypatch):
    """The second command scores what is left, and finds what one alone finds."""
    model = load(tiny.trained())
    want = score_task(model, read_task(task))
    real, asked = kept.likelihoods, []

    def breaking(transformer, requests, batch, shared):
        asked.append(len(requests))
        for n, pair in enumerate(real(transformer, requests, batch, shared)):
            if len(asked) == 1 and n == after:
                raise Broken
            yield pair

    monkeypatch.setattr(kept, "likelihoods", breaking)
    with pytest.raises(Broken):
        run("--tasks", task, "--output", tmp_path / "r.json", "--batch", 1)
    assert len(list(tmp_path.glob(".r.json.*.part"))) == 1
    code, _, _ = run("--tasks", task, "--output", tmp_path / "r.json")
    assert code == 0
    assert asked[1] == asked[0] - after
    figures, items, _ = metrics(read_task(task), want)
    assert load_record(tmp_path / "r.json").items == items
    assert load_record(tmp_path / "r.json").metrics == figures
    assert list(tmp_path.glob(".r.json.*")) == []


def test_two_interruptions_lose_nothing_either(task, tmp_path, monkeypatch):
    """What the second command keeps stands at its own place among all."""
    model, read, real = load(tiny.trained()), read_task(task), kept.likelihoods
    want = score_task(model, read)

    def breaking(*args):
        for n, pair in enumerate(real(*args)):
            if n == 9:
                raise Broken
            yield pair

    for way in (breaking, breaking, real):
        monkeypatch.setattr(kept, "likelihoods", way)
        if way is real:
            assert score_task(model, read, kept=tmp_path / "part") == want
        else:
            with pytest.raises(Broken):
                score_task(model, read, kept=tmp_path / "part")


def test_a_score_is_on_the_disk_at_once_and_of_this_vocabulary(task, run, tmp_path, monkeypatch):
    with keeping(tmp_path / "x.part") as keep:
        keep(3, Likelihood(-1.5, True))
        assert read_kept(tmp_path / "x.part", 5) == {3: Likelihood(-1.5, True)}
    named = []
    monkeypatch.setattr(choice, "kept_file", lambda *args: named.append(args) or kept_file(*args))
    assert run("--tasks", task, "--output", tmp_path / "r.json")[0] == 0
    model = load_record(tmp_path / "r.json").model
    assert {model.weights, model.vocabulary, read_task(task).sha256} <= set(named[0])


def test_a_file_of_kept_scores_is_believed_only_where_it_is_whole(tmp_path):
    path = tmp_path / "x.part"
    with keeping(path) as keep:
        keep(0, Likelihood(-1.5, True))
        keep(2, Likelihood(-2.5, False))
    lines = ["[1, -3.0", '[9, -1.0, true]', "[1, 1.0, true]", "[1, NaN, true]", "[true, -1.0, true]", "{}",
             '[1, -1.0, 1]', "[" * 5000, "[1, -Infinity, true]"]
    with open(path, "a", encoding="ascii") as f:
        f.write("\n".join(lines))
    want = {0: Likelihood(-1.5, True), 2: Likelihood(-2.5, False)}
    assert read_kept(path, 5) == want
    with keeping(path) as keep:                            # behind a line that is half there
        keep(1, Likelihood(-1.0, False))
    assert read_kept(path, 5) == {**want, 1: Likelihood(-1.0, False)}
    assert read_kept(tmp_path / "none", 5) == read_kept(None, 5) == {}
    path.write_bytes(b"\xff")
    assert read_kept(path, 5) == {}


def test_scores_of_another_model_or_task_are_not_taken(tmp_path):
    names = {kept_file(tmp_path / "r.json", *identity).name
             for identity in [("a", "b"), ("a", "c"), ("ab",), ("a",)]}
    assert len(names) == 4
    assert all(name.startswith(".r.json.") for name in names)


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "words"), [
    (["--tasks", "none.jsonl"], ["none.jsonl"]), (["--tasks", ","], ["--tasks must name tasks"]),
    (["--tasks", "{task}", "--limit", "0"], ["--limit must be greater than 0"]),
    (["--tasks", "{task}", "--batch", "0"], ["--batch must be greater than 0"]),
    (["--tasks", "{task},{task}"], ["--tasks must have names of their own"]),
    (["--tasks", "{task}", "--output", "{task}/x.json"], ["writable"]),
    (["--output", "x.json"], ["--output must be of an evaluation that keeps a record"]),
])
def test_a_wrong_command_line_is_refused(arguments, words, run, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*(a.format(task=task) for a in arguments))
    assert (code, out) == (2, "")
    tiny.assert_three_parts(err.splitlines()[-1], *words)


def test_a_bad_task_is_refused_before_a_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "load", lambda *args: pytest.fail("loaded"))
    rows = questions(2)
    rows[1]["answerKey"] = "Z"
    code, _, err = run("--tasks", written(tmp_path / "q.jsonl", rows))
    assert code == 2
    tiny.assert_three_parts(err, "answerKey of line 2 of q.jsonl", "'Z'")


def test_a_choice_longer_than_the_context_is_refused(run, tmp_path):
    rows = [request(0, 0, " a"), request(0, 1, " b" * 40)]
    code, _, err = run("--tasks", written(tmp_path / "r.jsonl", rows))
    assert code == 2
    tiny.assert_three_parts(err.splitlines()[-1], "a continuation must have at most the model's 32 tokens")


# --- speed -------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_a_shared_context_saves_half_the_tokens_of_arc():
    model = load(tiny.trained())
    task = read_task(Path(os.environ[DATA], "arc", "arc_easy.validation.jsonl"))
    encode = model.tokenizer.encode
    contexts = [len(encode(q.context)) for q in task.questions]
    choices = [[len(encode(q.context + c)) - n for c in q.choices] for n, q in zip(contexts, task.questions)]
    shared = sum(n + sum(cs) for n, cs in zip(contexts, choices))
    alone = sum(n + c for n, cs in zip(contexts, choices) for c in cs)
    assert alone > 2 * shared
