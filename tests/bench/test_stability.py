"""bench/stability: figures come from runs, none is made twice, and the floors can fail."""

import json

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import stability
from bitnet_ref.cli import run_command
from bitnet_ref.train import log, loop

SHORT = {"steps": 14, "eval_every": 7, "save_every": 5, "threads": 1}


def figures(loss, skipped=0, rollbacks=0):
    return {"loss": loss, "step": 9, "skipped": skipped, "rollbacks": rollbacks, "loss_z": 2.5, "norm_z": 7.0}


def found(alone, guarded):
    """The figures of two seeds, of one kind of trouble."""
    calm = {(stability.UNDISTURBED, guard, seed): figures(4.0) for guard in (True, False) for seed in (0, 1)}
    return calm | {("lr", guard, seed): figures(losses[seed], 3, 1)
                   for guard, losses in ((False, alone), (True, guarded)) for seed in (0, 1)}


@pytest.mark.parametrize(("alone", "guarded", "alarms", "good"), [
    ((6.0, 5.0), (4.02, 4.0), 0, True), ((None, 5.0), (4.0, 4.0), 0, True),
    ((6.0, 5.0), (4.0, 4.1), 0, False),
    ((None, None), (4.0, None), 0, False), ((4.0, 4.0), (4.2, 4.2), 0, True),
    ((6.0, 5.0), (4.0, 4.0), 1, False),
], ids=str)
def test_the_floors_are_those_that_were_promised(alone, guarded, alarms, good):
    assert stability.holds(stability.summary(found(alone, guarded), 2), alarms) is good


def test_a_row_is_the_mean_and_the_worst_against_the_undisturbed_run_of_the_same_seed():
    row = stability.summary(found((5.0, None), (4.4, 4.0)), 2)["lr"]
    assert row["with the guard"]["worse"] == pytest.approx(0.05)
    assert row["with the guard"]["most"] == pytest.approx(0.1)
    assert (row["without"]["worse"], row["without"]["ended"]) == (None, 1)
    assert (row["with the guard"]["skipped"], row["with the guard"]["rollbacks"]) == (6, 2)


def test_each_cell_is_a_run_and_none_is_made_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stability, "quiet", lambda *args: {"batches of 2": figures(4.0)})
    arguments = ["--output", str(tmp_path), "--seeds", "1", *tiny.flags(**SHORT)]
    run_command(stability.main, arguments)
    table = capsys.readouterr().out
    kept = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    for name, asked in stability.troubles(SHORT["steps"]).items():
        for guard, title in ((True, "guarded"), (False, "alone")):
            folder = tmp_path / f"{name}-{title}-0"
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["train"]
            assert (config["inject"], config["guard"]) == (asked, guard)
    row = kept["rows"]["nan"]
    assert row["without"]["ended"] == 1
    assert row["with the guard"]["skipped"] == 1
    events = log.read(tmp_path / "nan-guarded-0", "event")
    assert [e["what"] for e in events] == ["skip"]
    assert "| `nan@7` | 1 of 1 runs ended |" in table
    assert kept["rows"]["undisturbed"]["with the guard"]["worse"] == 0
    assert (tmp_path / "stability.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    monkeypatch.setattr(loop, "train", None)
    run_command(stability.main, arguments)
    assert capsys.readouterr().out == table


def test_trouble_of_ones_own_is_refused(tmp_path, capsys):
    code = run_command(stability.main, ["--output", str(tmp_path), "--inject", "nan@3"])
    tiny.assert_three_parts(capsys.readouterr().err, "the laboratory chooses trouble and guard itself")
    assert code == 2
