"""What notebook 10 is fed with: records as the evaluation makes them, and questions by their rule."""

import math
from dataclasses import replace

import letters
import numpy as np
import pytest

from bitnet_ref.bench import contest, rivals
from bitnet_ref.config import TrainConfig
from bitnet_ref.evaluate import records
from bitnet_ref.evaluate.perplexity import score
from bitnet_ref.walk import evaluate, twin
from bitnet_ref.walk.pictures import deltas

WORDS = " ".join(str(n) for n in range(600))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return letters.corpus(tmp_path_factory.mktemp("text"), ["ab ", "cd\n"])


@pytest.fixture(scope="module")
def sides(data):
    text, task = evaluate.held_out(data, 600), evaluate.asked(data.val_text.read_text(), 6)
    return [evaluate.side(who, shape, data, text, task, 2) for who, shape in evaluate.shapes().items()]


def test_shapes_are_equal_in_what_they_claim():
    bitnet, full, small = evaluate.shapes().values()
    assert (bitnet.linear, full.linear, small.linear) == ("ternary", "full", "full")
    assert (full.d_model, full.d_ff) == (bitnet.d_model, bitnet.d_ff)
    assert rivals.stored_bytes(small) == pytest.approx(rivals.stored_bytes(bitnet), rel=0.1)


def test_held_out_text_is_whole_lines(data):
    text = evaluate.held_out(data, 500)
    assert data.val_text.read_text().startswith(text)
    assert text.endswith("\n")
    assert 0 < len(text.encode()) <= 500


def test_questions_follow_their_rule():
    task = evaluate.asked(WORDS, 20)
    assert len(task.questions) == 20
    assert task.chance == 1 / evaluate.CHOICES
    assert len({q.answer for q in task.questions}) > 1
    for q in task.questions:
        first = int(q.context.split()[-1]) + 1                       # numbers count up
        assert [c.split()[0] == str(first) for c in q.choices].count(True) == 1
        assert q.choices[q.answer].split()[0] == str(first)
        assert all(2 <= len(c.split()) <= 5 and c[0] == " " for c in q.choices)
    assert evaluate.asked(WORDS, 20) == task
    assert evaluate.asked(WORDS, 20, seed=1).sha256 != task.sha256


def test_records_are_such_as_files_hold(sides, tmp_path):
    for record in (*sides[0].texts, *sides[0].choices):
        records.save(tmp_path / "record.json", record)
        assert records.load(tmp_path / "record.json") == record


def test_a_record_of_a_text_has_its_score(data):
    model = twin.trained("full", data, TrainConfig(steps=1, batch=1, warmup=0))
    text = data.val_text.read_text()[:2000]
    record = evaluate.on_text("new", model, text, data)
    ids = np.concatenate([[data.tokenizer.eos], data.tokenizer.encode(text)])
    plain = score(model, ids, data.tokenizer.token_bytes)
    assert record.metrics["bits per byte"].value == pytest.approx(plain.nats / math.log(2) / len(text))


def test_seeds_differ_and_sides_can_be_held_against_each_other(sides):
    bitnet, full, small = sides
    assert len({r.model.weights for s in sides for r in s.texts}) == 9
    assert bitnet.seconds > 0
    for metric, held in (("bits per byte", "texts"), ("acc", "choices")):
        row = contest.contest("equal parameters", getattr(bitnet, held), getattr(full, held), metric,
                              ("BitNet", "twin"))
        assert row.verdict != contest.REFUSED
        assert "below the minimum" in evaluate.line(row)
    assert small.models[0].cfg.d_model < full.models[0].cfg.d_model


def test_a_line_of_what_was_refused_says_why(sides):
    row = contest.contest("short", [sides[0].texts[0]], [replace(sides[1].texts[0], task="another")],
                          "bits per byte", ("a", "b"))
    assert "refused" in evaluate.line(row)
    assert "another task" in evaluate.line(row)


def test_the_picture_shows_rows_with_an_interval(sides):
    rows = [contest.contest(f"row {i}", sides[0].texts, side.texts, "bits per byte", ("a", "b"))
            for i, side in enumerate(sides[1:])]
    both, one = deltas(rows), deltas(rows[:1])
    assert "row 0, bits per byte" in both.words
    assert "row 1" not in one.words
    assert len(both.png) < 64 * 1024
    assert both.png != one.png
