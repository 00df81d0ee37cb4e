"""bench/compare: what became worse is found, what is noise is not, what cannot be compared is refused."""

import json
import os
from dataclasses import replace

import made_up
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.bench import compare
from bitnet_ref.bench.cells import T95
from bitnet_ref.bench.contest import LOSS, REFUSED, UNKNOWN, WIN, contest
from bitnet_ref.bench.interval import Interval, around
from bitnet_ref.cli import run_command
from bitnet_ref.evaluate import records
from bitnet_ref.evaluate.records import Metric


def run(*paths):
    return run_command(compare.main, [str(path) for path in paths])


def record(path, found):
    records.save(path, found)
    return path


def report(path, *rows):
    path.write_text(json.dumps({"kind": "report", "schema": 1, "rows": list(rows)}), encoding="utf-8")
    return path


def row(values, metric="bits per byte", better="lower", theirs="twin", unit="bytes"):
    own = around(values) if len(values) in T95 else Interval(0, None, None)
    return {"contest": "equal", "task": "text", "metric": metric, "ours": "BitNet", "theirs": theirs,
            "better": better, "values": values, "own_low": own.low, "own_high": own.high, "unit": unit}


# ---- records ----

def test_the_same_is_no_regression(tmp_path, capsys):
    old = record(tmp_path / "old.json", made_up.perplexity(2.0))
    assert run(old, old) == 0
    out = capsys.readouterr().out
    assert out.endswith("2 figures compared, 0 worse beyond uncertainty\n")
    assert "+0.00 % [+0.00, +0.00]" in out


@pytest.mark.parametrize(("nats", "code"), [(2.2, 1), (1.8, 0), (2.0, 0)])
def test_worse_beyond_uncertainty_is_exit_code_1(nats, code, tmp_path, capsys):
    old = record(tmp_path / "old.json", made_up.perplexity(2.0))
    new = record(tmp_path / "new.json", made_up.perplexity(nats, seed=1))
    assert run(old, new) == code
    assert ("WORSE" in capsys.readouterr().out) == bool(code)


def test_counts_beside_the_figures_are_not_judged(tmp_path):
    """Of contexts that did not fit there are no values by question."""
    old, new = made_up.choice(0.6), made_up.choice(0.6)
    for found in (old, new):
        found.metrics["contexts cut"] = Metric(3, 400, better="lower")
    paths = record(tmp_path / "old.json", old), record(tmp_path / "new.json", new)
    assert [what for what, _, _ in compare.compared(*paths)] == ["arc_easy acc", "arc_easy acc_norm"]


def test_a_strangers_words_are_shown_not_acted_on(tmp_path, capsys):
    path = record(tmp_path / "old.json", made_up.choice(0.6, task="\x1b[2J\nall is well"))
    assert run(path, path) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 3


def test_accuracy_falls(tmp_path):
    old = record(tmp_path / "old.json", made_up.choice(0.6))
    assert run(old, record(tmp_path / "new.json", made_up.choice(0.5))) == 1


# ---- reports ----

@pytest.mark.parametrize(("new", "verdict"), [([2.0, 2.01, 2.02], UNKNOWN), ([2.5, 2.51, 2.52], LOSS),
                                              ([1.5, 1.51, 1.52], WIN), ([2.0, 2.3, 2.6], UNKNOWN)])
def test_rows_of_three_seeds(new, verdict, tmp_path):
    old = report(tmp_path / "old.json", row([2.0, 2.01, 2.03]))
    [(what, said, _)] = compare.compared(old, report(tmp_path / "new.json", row(new)))
    assert (what, said) == ("BitNet, text bits per byte", verdict)


def test_a_figure_of_several_contests_counts_once(tmp_path):
    rows = [row([2.0, 2.0]), row([2.0, 2.0], theirs="another"), row([3.0], "decode tokens/s", "higher")]
    worse = [row([3.0, 3.0]), row([3.0, 3.0], theirs="another"), row([2.0], "decode tokens/s", "higher")]
    found = compare.compared(report(tmp_path / "old.json", *rows), report(tmp_path / "new.json", *worse))
    assert [verdict for _, verdict, _ in found] == [LOSS, LOSS]


@given(st.lists(st.floats(1, 2), min_size=1, max_size=9))
def test_equal_values_have_not_changed(values):
    assert compare._change(row(values), row(values)) == (0, 0, 0)


def test_timings_of_another_machine_are_not_compared(tmp_path):
    rows = row([1.0, 1.1], "speed", "higher", unit="rounds"), row([2.0, 2.1])
    slower = row([0.1, 0.1], "speed", "higher", unit="rounds"), row([2.0, 2.1])
    old, new = (report(tmp_path / name, *given) for name, given in (("old", rows), ("new", slower)))
    assert [verdict for _, verdict, _ in compare.compared(old, new)] == [LOSS, UNKNOWN]
    table = json.loads(new.read_text()) | {"made": {"machine": {"cpu": "another"}}}
    new.write_text(json.dumps(table))
    assert [verdict for _, verdict, _ in compare.compared(old, new)] == [REFUSED, UNKNOWN]


def test_timings_and_single_scores_bring_their_own_spread(tmp_path):
    """Twice the same model: other rounds, other questions right; neither is a regression."""
    fast, slow = ([100, 104, 96], [97, 103, 94])
    pairs = [(made_up.efficiency(rates), made_up.choice(0.5, seed=rates[0])) for rates in (fast, slow)]
    for n, (rates, score) in enumerate(pairs):
        rows = [contest("equal", [found], [found], metric, ("a", "b")).table()
                for found, metric in ((rates, "decode tokens/s"), (score, "acc"))]
        rows[1]["values"] = [0.5 - 0.02 * n]
        report(tmp_path / f"{n}.json", *rows)
    found = compare.compared(tmp_path / "0.json", tmp_path / "1.json")
    assert [verdict for _, verdict, _ in found] == [UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("other", [{"data": "another"}, {"how": {"stride": 16}}])
def test_rows_of_other_data_are_not_compared(other, tmp_path, capsys):
    same = row([1.0, 1.1], "acc", "higher")
    first = {**row([2.0, 2.1]), "data": "text", "how": {"stride": 128}}
    old = report(tmp_path / "old.json", first, same)
    new = report(tmp_path / "new.json", {**first, "values": [9.0, 9.1], **other}, same)
    assert [verdict for _, verdict, _ in compare.compared(old, new)] == [REFUSED, UNKNOWN]
    assert run(old, new) == 0
    capsys.readouterr()
    alone = [report(tmp_path / f"{n}.json", made) for n, made in enumerate((first, {**first, **other}))]
    assert run(*alone) == 2                                # nothing was compared: that is not all well
    tiny.assert_three_parts(capsys.readouterr().err, "other data")


def test_bytes_are_the_same_on_every_machine(tmp_path):
    rows = [row([400], "model bytes", "lower", unit="rounds"), row([1.0, 1.1], "speed", unit="rounds")]
    old, new = (report(tmp_path / f"{n}.json", *rows) for n in range(2))
    new.write_text(json.dumps(json.loads(new.read_text()) | {"made": {"machine": {"cpu": "another"}}}))
    assert [verdict for _, verdict, _ in compare.compared(old, new)] == [UNKNOWN, REFUSED]


def test_a_report_of_ours_can_be_read(tmp_path):
    ours, theirs = [made_up.perplexity(1.9)], [made_up.perplexity(2.0)]
    found = contest("equal", ours, theirs, "bits per byte", ("a", "b"))
    path = report(tmp_path / "report.json", found.table())
    assert run(path, path) == 0


# ---- refused ----

NAN = json.dumps({"kind": "report", "rows": [row([float("nan")])]})


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", '{"kind": "report"}', "[" * 10_000, '{"schema": 1}',
                                     '{"kind": "report", "rows": [1]}', '{"kind": "report", "rows": []}',
                                     NAN])
def test_what_is_neither_record_nor_report(content, tmp_path, capsys):
    bad, good = tmp_path / "bad.json", report(tmp_path / "good.json", row([1.0, 2.0]))
    bad.write_text(content, encoding="utf-8")
    for pair in ((bad, good), (good, bad)):
        assert run(*pair) == 2
        tiny.assert_three_parts(capsys.readouterr().err)


def test_one_of_each_other_data_nothing_there(tmp_path, capsys):
    text = record(tmp_path / "a.json", made_up.perplexity())
    other = record(tmp_path / "b.json", made_up.perplexity(sha256="another"))
    tasks = record(tmp_path / "c.json", made_up.choice(0.5))
    both = report(tmp_path / "report.json", row([1.0]))
    elsewhere = report(tmp_path / "other.json", row([1.0], "another metric"))
    zero = report(tmp_path / "zero.json", row([0.0]))
    for pair, words in (((text, both), "one of each"), ((text, other), "other data"),
                        ((text, tasks), "metric in common"), ((both, elsewhere), "rows in common"),
                        ((zero, both), "must not be 0"), ((text, tmp_path / "none.json"), "readable")):
        assert run(*pair) == 2
        said = capsys.readouterr().err
        tiny.assert_three_parts(said, words)
        assert said.count("; ") == 2                       # one thing to do


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert run(tmp_path / "pipe", tmp_path / "pipe") == 2
    tiny.assert_three_parts(capsys.readouterr().err, "readable file")


def test_a_record_without_items_is_not_judged(tmp_path):
    bare = record(tmp_path / "a.json", replace(made_up.choice(0.9), items=None, item_fields=None))
    new = record(tmp_path / "b.json", replace(made_up.choice(0.5), items=None, item_fields=None))
    assert [verdict for _, verdict, _ in compare.compared(bare, new)] == [UNKNOWN, UNKNOWN]
