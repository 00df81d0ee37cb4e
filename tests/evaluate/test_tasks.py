"""evaluate/tasks: questions of every kind of file, with the texts of the harness; a bad line is named."""

import gzip
import json
import os
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from questions import REQUESTS, request, written

from bitnet_ref.checks import CheckError
from bitnet_ref.data.download import DATA
from bitnet_ref.evaluate import tasks
from bitnet_ref.evaluate.tasks import Question, local, read_task

ARC = {"id": "1", "question": "Why?", "choices": {"text": ["so", "no", "yes"], "label": ["A", "B", "C"]},
       "answerKey": "B"}
PIQA = {"goal": "Open it", "sol1": "push", "sol2": "pull", "label": 1}
HELLASWAG = {"activity_label": "Cooking", "ctx_a": "She cuts [step] it.", "ctx_b": "then she",
             "endings": [" eats [title] it", "[x] runs", "sleeps", "sings"], "label": "2"}
PACKED = gzip.compress(json.dumps(ARC).encode() * 9, mtime=0)       # the same bytes in every process


def changed(row, **given):
    return {k: v for k, v in {**row, **given}.items() if v is not None}


# --- what is read ------------------------------------------------------------------------------------------


def test_the_texts_are_those_of_the_harness(tmp_path):
    arc = read_task(written(tmp_path / "a.jsonl", [ARC, "", ARC]))
    assert arc.questions == [Question("Question: Why?\nAnswer:", (" so", " no", " yes"), 1)] * 2
    assert arc.questions[0].sizes == [2, 2, 3]
    assert (arc.name, arc.file, len(arc.sha256)) == ("a", "a.jsonl", 64)
    piqa = read_task(written(tmp_path / "p.jsonl", [PIQA]))
    assert piqa.questions == [Question("Question: Open it\nAnswer:", (" push", " pull"), 1)]
    swag = read_task(written(tmp_path / "h.jsonl", [HELLASWAG]))
    assert swag.questions == [Question("Cooking: She cuts it. Then she",
                                       (" eats. it", "  runs", " sleeps", " sings"), 2)]


def test_requests_of_one_question_come_together(tmp_path):
    task = read_task(written(tmp_path / "r.requests.jsonl", REQUESTS))
    assert task.questions == [Question("Question: Why?\nAnswer:", (" so", " no"), 1, "Answer:"),
                              Question("Where?", (" up", " down"), 0, None)]
    assert task.name == "r.requests"


def test_a_packed_file_is_the_same(tmp_path):
    plain = read_task(written(tmp_path / "a.jsonl", [ARC]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    packed = read_task(tmp_path / "a.jsonl.gz")
    assert (packed.name, packed.questions) == (plain.name, plain.questions)


def test_chance_is_that_of_each_question(tmp_path):
    five = changed(ARC, choices={"text": list("vwxyz"), "label": list("12345")}, answerKey="5")
    task = read_task(written(tmp_path / "a.jsonl", [ARC, five]))
    assert task.chance == pytest.approx((1 / 3 + 1 / 5) / 2)


@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=26), data=st.data())
def test_any_texts_are_kept_as_they_are(texts, data):
    answer = data.draw(st.integers(0, len(texts) - 1))
    labels = [str(i) for i in range(len(texts))]
    row = changed(ARC, choices={"text": texts, "label": labels}, answerKey=labels[answer])
    task = read_task(written(tiny.folder() / "q.jsonl", [row]))
    assert task.questions[0] == Question("Question: Why?\nAnswer:", tuple(" " + t for t in texts), answer)


def test_a_name_is_a_file_or_the_harnesss(tmp_path, monkeypatch):
    file = written(tmp_path / "arc" / "own.jsonl", [ARC]) if (tmp_path / "arc").mkdir() is None else None
    monkeypatch.setenv(DATA, str(tmp_path))
    assert local("own") == file
    assert local(str(file)) == file
    assert local("none.jsonl") == Path("none.jsonl")       # meant as a file: its absence is said
    assert local("arc_easy") is None
    assert local("../arc/own") is None
    monkeypatch.delenv(DATA)
    assert local("own") is None


@pytest.mark.data
def test_the_published_files_are_read():
    folder = Path(os.environ[DATA], "arc")
    sizes = {p.name: len(read_task(p).questions) for p in sorted(folder.glob("*.jsonl*"))}
    assert sizes == {"arc_challenge.test.jsonl": 1172, "arc_challenge.validation.jsonl": 299,
                     "arc_easy.test.jsonl": 2376, "arc_easy.validation.jsonl": 570,
                     "arc_easy.val.rc_0shot.requests.jsonl.gz": 570}
    asked = read_task(folder / "arc_easy.val.rc_0shot.requests.jsonl.gz").questions
    plain = read_task(folder / "arc_easy.validation.jsonl").questions
    assert [q._replace(without=None) for q in asked] == plain
    assert {q.without for q in asked} == {"Answer:"}


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "words"), [
    (changed(ARC, answerKey="D"), ["answerKey", "one of A B C", "'D'"]),
    (changed(ARC, answerKey=None), ["answerKey", "must be a text", "nothing"]),
    (changed(ARC, answerKey=""), ["answerKey"]),
    (changed(ARC, choices={"text": ["so", " ", "x"], "label": list("ABC")}), ["choice 2", "not be empty"]),
    (changed(ARC, choices={"text": ["so", ""], "label": list("AB")}), ["choice 2", "not be empty"]),
    (changed(ARC, choices={"text": ["so"], "label": ["B"]}), ["2 to 26 choices", "got 1"]),
    (changed(ARC, choices={"text": ["x"] * 27, "label": [*map(str, range(27))]}, answerKey="3"),
     ["2 to 26 choices", "got 27"]),
    (changed(ARC, choices={"text": ["a", "b"], "label": ["A"]}), ["label of its own"]),
    (changed(ARC, choices={"text": ["a", "b"], "label": ["A", "A"]}, answerKey="A"), ["label of its own"]),
    (changed(ARC, choices=["a", "b"]), ["text of", "list of texts"]),
    (changed(ARC, choices={"text": ["a", 3], "label": ["A", "B"]}), ["text of", "list of texts"]),
    (changed(ARC, question="\n"), ["question", "must be a text"]),
    (changed(PIQA, label=2), ["the answer", "one of its 2 choices"]),
    (changed(PIQA, label=-1), ["the answer"]), (changed(PIQA, label="x"), ["label", "number of the answer"]),
    (changed(PIQA, label=True), ["label"]), (changed(PIQA, sol2=""), ["sol2"]),
    (changed(HELLASWAG, endings="abc"), ["endings", "list of texts"]),
    (changed(HELLASWAG, endings=["a", "[b]"], label=0), ["choice 2", "not be empty"]),
    (changed(HELLASWAG, ctx_b=3), ["ctx_b"]), (changed(HELLASWAG, label=""), ["label"]),
    ("{", ["must be JSON"]), ("[1]", ["must be a JSON object"]), ("[" * 9999, ["must be JSON"]),
])
def test_a_line_that_is_no_question_is_named(row, words, tmp_path):
    good = ARC if isinstance(row, str) or "question" in row else PIQA if "goal" in row else HELLASWAG
    with tiny.refusal(*words, "line 2 of q.jsonl"):
        read_task(written(tmp_path / "q.jsonl", [good, row]))


@pytest.mark.parametrize(("rows", "words"), [
    ([request(0, 1, " a")], ["idx of line 1", "count the choices"]),
    ([request(0, 0, " a"), request(0, 0, " b")], ["idx of line 2"]),
    ([request(0, 0, " a"), request(0, 1, " b", 0)], ["doc_id 0", "one label"]),
    ([request(0, 0, " a"), request(0, 1, " b", context="Else?")], ["doc_id 0", "one context"]),
    ([request(0, 0, " a"), request(0, 1, " b", 2), ], ["doc_id 0"]),
    ([request(0, 0, " a", 2), request(0, 1, " b", 2)], ["the answer of line 1", "2 choices"]),
    ([request(0, 0, "")], ["continuation of line 1"]),
    ([{**request(0, 0, " a"), "request_type": "generate_until"}], ["must be a request for a loglikelihood"]),
    ([{**request(0, 0, " a"), "doc_id": None}], ["doc_id of line 1"]),
    ([{**request(0, 0, " a"), "request": 3}], ["must be a request"]),
])
def test_requests_that_are_no_questions_are_named(rows, words, tmp_path):
    with tiny.refusal(*words, "r.jsonl"):
        read_task(written(tmp_path / "r.jsonl", rows))


@pytest.mark.parametrize(("name", "content", "words"), [
    ("q.jsonl", b"", ["must hold questions"]), ("q.jsonl", b"\n \n", ["must hold questions"]),
    ("q.jsonl", b"\xff\xfe", ["line 1 of q.jsonl", "JSON"]),
    ("q.jsonl", b'{"a": 1}', ["line 1", "known task", "goal label sol1 sol2", "--task-folder"]),
    ("q.jsonl.gz", b"no gzip", ["whole gzip file"]),
    ("q.jsonl.gz", PACKED[:-9], ["whole gzip file"]),
    ("q.jsonl.gz", PACKED[:20] + b"damaged", ["whole gzip file"]),
])
def test_a_file_that_is_no_task_is_refused(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with tiny.refusal(*words, name):
        read_task(tmp_path / name)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "LARGEST", 1000)
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(bytes(10_000)))
    with tiny.refusal("at most 1000 bytes", "unpacked"):
        read_task(tmp_path / "q.jsonl.gz")
    (tmp_path / "q.jsonl").write_bytes(bytes(1001))
    with tiny.refusal("at most 1000 bytes"):
        read_task(tmp_path / "q.jsonl")
    with tiny.refusal("none.jsonl"):
        read_task(tmp_path / "none.jsonl")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with a name here")
    os.mkfifo(tmp_path / "q.jsonl")
    with tiny.refusal("q.jsonl must be a readable file", "pipe"):
        read_task(local(str(tmp_path / "q.jsonl")))


@given(noise=st.binary(max_size=200), at=st.integers(0, 200))
def test_damage_is_an_error_of_ours_or_none(noise, at):
    line = json.dumps(HELLASWAG).encode()
    path = tiny.folder() / "damaged.jsonl"
    path.write_bytes(line[:at] + noise + line[at + len(noise):])
    try:
        assert read_task(path).questions
    except CheckError as e:
        tiny.assert_three_parts(e)
