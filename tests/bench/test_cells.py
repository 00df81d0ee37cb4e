"""bench/cells: what a cell keeps, when it is run again, when it is refused; and what a few seeds may say."""

import json
import statistics

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import cells
from bitnet_ref.checks import NonFiniteError
from bitnet_ref.train import log, loop

SHORT = {"steps": 4, "eval_every": 2, "save_every": 4}


def cell(name="a", **given):
    return cells.Cell(name, *tiny.configs(**{**SHORT, **given}))


def test_figures_are_those_of_the_run(tmp_path):
    found = cells.run_cell("tiny", cell(), tmp_path, 1)
    final, = log.read(tmp_path / "a", "final")
    assert (found["name"], found["loss"]) == ("a", final["loss"])
    assert found["bits per byte"] == final["bits_per_byte"]
    assert [step for step, _ in found["curve"]] == [0, 2, 4]
    assert found["cpu seconds"] > 0
    assert "raw" not in found


def test_with_an_average_the_loss_is_of_it(tmp_path):
    found, plain = (cells.run_cell("tiny", cell(name, **given), tmp_path, 1)
                    for name, given in (("a", {"ema": 0.9}), ("b", {})))
    averaged, = log.read(tmp_path / "a", "final ema")
    assert found["loss"] == averaged["loss"] != plain["loss"]
    assert found["raw"] == plain["loss"]


def test_a_cell_has_the_threads_that_it_is_given_unless_it_names_its_own(tmp_path, monkeypatch):
    """All of them, not BLAS's alone: cells that share a processor would wait for each other."""
    monkeypatch.setattr(cells.start, "start", lambda *args: pytest.fail(f"{args[2].threads} threads"))
    for given, threads in (({}, 2), ({"threads": 1}, 1)):
        with pytest.raises(pytest.fail.Exception, match=f"{threads} threads"):
            cells.run_cell("tiny", cell(**given), tmp_path, 2)


def test_a_cell_is_made_once_and_refused_with_other_options(tmp_path, monkeypatch):
    first = cells.run_cell("tiny", cell(), tmp_path, 1)
    monkeypatch.setattr(loop, "train", None)
    assert cells.run_cell("tiny", cell(), tmp_path, 1) == first
    with tiny.refusal("must have these options", tmp_path / "a"):
        cells.run_cell("tiny", cell(lr=0.5), tmp_path, 1)


def test_a_cell_of_before_an_option_was_there_has_its_default(tmp_path):
    first = cells.run_cell("tiny", cell(), tmp_path, 1)
    file = tmp_path / "a" / cells.FIGURES
    figures = json.loads(file.read_text())
    del figures["asked"]["train"]["ema"]
    file.write_text(json.dumps(figures))
    assert cells.run_cell("tiny", cell(), tmp_path, 1)["loss"] == first["loss"]
    with tiny.refusal("must have these options"):
        cells.run_cell("tiny", cell(ema=0.5), tmp_path, 1)


def test_a_cell_of_before_there_was_a_guard_had_none(tmp_path):
    first = cells.run_cell("tiny", cell(guard=False), tmp_path, 1)
    file = tmp_path / "a" / cells.FIGURES
    figures = json.loads(file.read_text())
    del figures["asked"]["train"]["guard"]
    file.write_text(json.dumps(figures))
    assert cells.run_cell("tiny", cell(guard=False), tmp_path, 1)["loss"] == first["loss"]
    with tiny.refusal("must have these options"):
        cells.run_cell("tiny", cell(), tmp_path, 1)


def test_what_is_no_run_is_not_removed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "letter.txt").write_text("mine")
    with tiny.refusal("must be new or a run's"):
        cells.run_cell("tiny", cell(), tmp_path, 1)
    assert (tmp_path / "a" / "letter.txt").exists()


def test_a_run_that_diverges_has_no_loss(tmp_path, monkeypatch):
    def diverge(run, data):
        raise NonFiniteError("a must be finite; got nan; lower it")

    monkeypatch.setattr(loop, "train", diverge)
    assert cells.run_cell("tiny", cell(), tmp_path, 1)["loss"] is None


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.7062), (3, 4.3027), (4, 3.1824), (5, 2.7764)])
def test_the_interval_is_students(n, quantile):
    """Quantiles as printed in any table of t."""
    values = [1.0, 2.0, 4.0, 8.0, 16.0][:n]
    found = cells.spread(values)
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.half == pytest.approx(quantile * statistics.stdev(values) / n ** 0.5, rel=1e-3)


def test_the_interval_covers_as_often_as_it_says(rng):
    """Of 4000 samples of three whose mean is zero, 5 % have an interval without it."""
    missed = sum(cells.spread(list(sample)).decided for sample in rng.normal(size=(4000, 3)))
    assert missed / 4000 == pytest.approx(0.05, abs=0.015)
