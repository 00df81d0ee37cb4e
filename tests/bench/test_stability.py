"""bench/stability: figures come from runs, none is made twice, and the floors can fail."""

import json

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import stability
from bitnet_ref.checks import CheckError, GaveUp
from bitnet_ref.cli import run_command
from bitnet_ref.train import log, loop

SHORT = {"steps": 14, "eval_every": 7, "save_every": 5, "threads": 1}


def figures(loss, skipped=0, rollbacks=0):
    return {"loss": loss, "skipped": skipped, "rollbacks": rollbacks, "loss_z": 2.5, "norm_z": 7.0}


def found(alone, guarded):
    """The figures of two seeds, of one kind of trouble."""
    calm = {(stability.UNDISTURBED, guard, seed): figures(4.0) for guard in (True, False) for seed in (0, 1)}
    return calm | {("lr", guard, seed): figures(losses[seed], 3, 1)
                   for guard, losses in ((False, alone), (True, guarded)) for seed in (0, 1)}


@pytest.mark.parametrize(("alone", "guarded", "alarms", "good"), [
    ((6.0, 5.0), (4.02, 4.0), 0, True), ((None, 5.0), (4.0, 4.0), 0, True),
    ((6.0, 5.0), (4.0, 4.1), 0, False),
    ((None, None), (4.0, None), 0, False), ((4.0, 4.0), (4.2, 4.2), 0, False),
    ((4.032, 4.032), (4.0, None), 0, False), ((4.032, 4.032), (5.6, 5.6), 0, False),
    ((4.032, 4.032), (4.0, 4.0), 0, True),
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


def test_what_is_no_verdict_ends_the_bench_and_is_not_kept(tmp_path, monkeypatch):
    """A full disk says nothing about the guard. That it gave up does."""
    how = "tiny", *tiny.configs(**SHORT)

    def full(run, data):
        raise CheckError("the disk must have room; got none; free some")

    def gives_up(run, data):
        raise GaveUp("a run must get past step 9; got nan; look at the data")

    monkeypatch.setattr(loop, "train", full)
    with tiny.refusal("the disk must have room"):
        stability.trained(*how, tmp_path / "a")
    assert not (tmp_path / "a" / "final.json").exists()
    monkeypatch.setattr(loop, "train", gives_up)
    for _ in range(2):
        assert stability.trained(*how, tmp_path / "a")["loss"] is None


def test_a_run_that_is_there_must_have_the_same_options(tmp_path):
    stability.trained("tiny", *tiny.configs(**SHORT), tmp_path / "a")
    with tiny.refusal("must have these options", tmp_path / "a"):
        stability.trained("tiny", *tiny.configs(**SHORT, lr=0.5), tmp_path / "a")
    done = tmp_path / "a" / "final.json"
    done.write_text(json.dumps({"loss": 1.0, "step": 14}))           # of a release that kept no options
    with tiny.refusal("must have these options"):
        stability.trained("tiny", *tiny.configs(**SHORT), tmp_path / "a")


def test_the_page_says_the_command_and_of_what_the_floor_is():
    arguments = ["--output", "/some/where", "--steps", "400", "--root=/x", "--threads=1"]
    assert stability.asked_with(arguments) == (
        "python -m bitnet_ref.bench.stability --steps 400 --threads=1 --output runs/stability")
    rows = stability.summary(found((6.0, 5.0), (4.0, 4.06)), 2)
    f = {"command": "the command", "preset": "tiny", "steps": 400, "seeds": 2, "rows": rows, "quiet": {},
         "alarms": 0, "troubles": {stability.UNDISTURBED: None, "lr": "lr@200"}}
    text = stability.block(f)
    assert text.startswith("`the command`\n")
    assert "at most +1%, is of the mean over the seeds; the worst seed of `lr@200` lies above it." in text
    assert "| batches skipped, all seeds | rollbacks, all seeds |" in text


def test_trouble_of_ones_own_is_refused(tmp_path, capsys):
    code = run_command(stability.main, ["--output", str(tmp_path), "--inject", "nan@3"])
    tiny.assert_three_parts(capsys.readouterr().err, "the laboratory chooses trouble and guard itself")
    assert code == 2
