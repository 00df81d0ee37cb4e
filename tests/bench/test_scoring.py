"""bench/scoring: both ways of reading are timed on the same task, and the page is written from that."""

import pytest
import tiny
from questions import questions, written
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import scoring
from bitnet_ref.bench.scoring import Times
from bitnet_ref.cli import run_command
from bitnet_ref.config import ModelConfig

SMALL = ModelConfig(vocab_size=300, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, context=64)


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "NANO", SMALL)
    return written(tmp_path / "q.jsonl", questions(6))


def test_it_prints_and_writes_the_page(task, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "evaluation.md"
    page.write_text("a\n<!-- generated: python -m bitnet_ref.bench.scoring -->\n<!-- end -->\nb\n")
    arguments = ["--task", str(task), "--rounds", "2", "--threads", "1", "--root", str(tmp_path)]
    assert run_command(scoring.main, arguments) == 0
    out = capsys.readouterr().out
    assert "q.jsonl, 6 questions with" in out
    assert "medians of 2 rounds" in out
    assert out.strip() in page.read_text()
    assert page.read_text().startswith("a\n")


def test_the_figures_are_medians_and_their_ratios_of_rounds(task):
    read = scoring.read_task(task)
    times = {"shared": Times([1.0, 2.0, 9.0], [1.0, 2.0, 4.0]),
             "each for itself": Times([5.0, 6.0, 7.0], [3.0, 4.0, 4.0])}
    text = scoring.block(read, scoring.model_for(read, "numpy", 1), times, 1)
    assert "| shared | 2.0 | 2.0 |" in text
    assert "| each for itself | 6.0 | 4.0 |" in text
    assert "2.00 times less of the processor (from 1.00 to 3.00" in text


def test_scores_that_differ_are_no_measurement(task, monkeypatch):
    read, real = scoring.read_task(task), scoring.score_task

    def other(model, task, shared):
        found = real(model, task, shared=shared)
        return found if shared else found._replace(found=found.found[::-1])

    monkeypatch.setattr(scoring, "score_task", other)
    with tiny.refusal("both ways must find the same scores"):
        scoring.measure(read, scoring.model_for(read, "numpy", 1), 1)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--task", "nothing"], ["--task must be a file of questions"]),
    (["--rounds", "0"], ["--rounds must be greater than 0"]),
])
def test_a_wrong_command_line_is_refused(arguments, words, capsys):
    assert run_command(scoring.main, arguments) == 2
    tiny.assert_three_parts(capsys.readouterr().err, *words)
