"""bench/compression: plans, figures of real runs, none made twice, and words that follow from figures."""

import json

import numpy as np
import pytest
import tiny
from tiny import own_cache, refusal  # noqa: F401

from bitnet_ref.bench import cells, compression
from bitnet_ref.bench.compression import EPOCHS, TIME, against_plain, plan, verdict
from bitnet_ref.chain.mine import mine_for
from bitnet_ref.cli import run_command
from bitnet_ref.data.prepare import prepare
from bitnet_ref.train import loop


def test_steps_follow_from_windows_and_seconds():
    """A fifth fewer windows; a step of super takes a quarter longer."""
    steps = plan({"off": 100, "first": 80, "super": 80}, {"off": 1.0, "first": 1.0, "super": 0.8}, 50)
    assert steps == {("off", EPOCHS): 50, ("first", EPOCHS): 40, ("first", TIME): 50, ("super", EPOCHS): 40,
                     ("super", TIME): 40}


def figures(saved, perplexity):
    row = {"kind": "off", "equal": EPOCHS, "perplexity": [10.0, 20.0]}
    return {"saved": {"super": saved}, "rows": [row, {"kind": "super", "equal": EPOCHS, "perplexity": [1, 1]},
                                                {"kind": "super", "equal": TIME, "perplexity": perplexity}]}


@pytest.mark.parametrize(("saved", "perplexity", "met", "shown"), [
    (0.3, [9.0, 20.0], True, "-5.0 %"), (0.3, [11.0, 20.0], False, "+5.0 %"),
    (0.2, [9.0, 19.0], False, "20.0%"),
], ids=str)
def test_the_aim_is_both_fewer_tokens_and_no_worse_perplexity(saved, perplexity, met, shown):
    """Seed by seed against the plain run."""
    said = verdict(figures(saved, perplexity), "super")
    assert ("is met" in said, "is not met" in said) == (met, not met)
    assert shown in said


def test_perplexities_are_compared_seed_by_seed():
    f = figures(0.3, [12.0, 20.0])
    assert against_plain(f, f["rows"][2]) == pytest.approx([20.0, 0.0])


def test_what_tables_of_quarters_save():
    data = prepare(str(tiny.corpus(800)), None, 300, 0.1, progress=False)
    rows = compression.again(data)
    assert len(rows) == 3
    quarters = np.array_split(data.train.tokens, 4)
    own = mine_for(compression.part(data, quarters[3]))
    assert rows[2]["itself"] == compression.share(quarters[3], own, data.tokenizer.eos)
    assert all(0 < row["before"] < row["itself"] < 1 for row in rows)


def test_a_table_for_length_alone_asks_for_no_likelihood(rng, monkeypatch):
    """2 follows 1 often but in one case of five, 4 follows 3 half as often and always."""
    data = prepare(str(tiny.corpus(800)), None, 300, 0.1, progress=False)
    pairs = [(1, 2)] * 100 + [(3, 4)] * 50 + [(1, i) for i in rng.integers(10, 300, 400)]
    words = [(*pairs[i], *rng.integers(10, 300, 3)) for i in rng.permutation(len(pairs))]
    data = compression.part(data, np.array([0, *np.concatenate(words), 0], np.uint16))
    monkeypatch.setattr(compression, "MOST", 1)
    assert mine_for(data, size=1).chains[0].ids == (3, 4)
    assert compression.for_length(data).chains[0].ids == (1, 2)


def test_what_is_saved_by_tables_and_by_a_larger_tokenizer():
    found = compression.savings(str(tiny.corpus()), 300)
    assert found["vocabulary"] == 300
    assert all(0 < found[name] < 1 for name in ("table", "for length", "tokenizer"))


@pytest.mark.slow
def test_runs_are_made_measured_and_not_made_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cells, "ProcessPoolExecutor", tiny.AtOnce)
    monkeypatch.setattr(compression, "VOCABULARIES", (280,))
    docs = tmp_path / "docs"
    docs.mkdir()
    marker = "<!-- generated: python -m bitnet_ref.bench.compression -->\n"
    (docs / "compression.md").write_text(f"before\n{marker}old\n<!-- end -->\nafter\n")
    arguments = ["--output", str(tmp_path / "out"), "--seeds", "2", "--rounds", "2", "--root", str(tmp_path),
                 *tiny.flags(steps=4, threads=1)]
    assert run_command(compression.main, arguments) == 0
    shown = capsys.readouterr().out
    assert (docs / "compression.md").read_text() == f"before\n{marker}{shown}<!-- end -->\nafter\n"
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [(r["kind"], r["equal"]) for r in found["rows"]] == [
        ("off", EPOCHS), ("first", EPOCHS), ("first", TIME), ("super", EPOCHS), ("super", TIME)]
    for row in found["rows"]:
        assert all(len(row[name]) == 2 for name in ("bits per byte", "perplexity", "as plain tokens"))
        run = tmp_path / "out" / f"{row['kind']}-{row['equal'].replace(' ', '-')}-seed-1"
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))["train"]
        assert (config["compress"], config["steps"], config["seed"]) == (row["kind"], row["steps"], 1)
    plain = json.loads((tmp_path / "out" / "off-equal-epochs-seed-0" / "final.json").read_text())
    assert found["rows"][0]["perplexity"][0] == pytest.approx(np.exp(plain["loss"]))
    assert found["rows"][3]["as plain tokens"] != found["rows"][3]["bits per byte"]
    monkeypatch.setattr(loop, "train", None)
    monkeypatch.setattr(compression, "step_seconds", None)
    assert run_command(compression.main, arguments) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(("words", "said"), [
    (["--seeds", "6"], "--seeds must be 1 to 5"), (["--rounds", "0"], "--rounds and --jobs"),
    (["--compress", "first"], "the bench chooses --compress"), (["--epochs", "1"], "the bench chooses"),
])
def test_what_makes_no_sense_is_refused(words, said, tmp_path):
    with refusal(said):
        compression.main(["--output", str(tmp_path), *words])
