"""bench/twins: a grid of runs, none twice, and an honest word on whether the best rate was bracketed."""

import json
import math

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import cells as runs
from bitnet_ref.bench import page, twins
from bitnet_ref.cli import run_command
from bitnet_ref.formats.checkpoint import checkpoints, remove
from bitnet_ref.train import log, loop

SHORT = {"steps": 4, "eval_every": 2, "save_every": 4, "threads": 1}
RATES = {"ternary": [1e-3, 1e-2, 1e-1], "full": [1e-4, 1e-3, 1e-2]}


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(runs, "ProcessPoolExecutor", tiny.AtOnce)
    monkeypatch.setattr(twins, "RECIPES", {"ternary": {"as given": {}}, "full": {"as given": {}}})

    def run(*arguments, **given):
        flags = tiny.flags(**{**SHORT, **given})
        code = run_command(twins.main, [*map(str, arguments), *flags])
        return (code, *capsys.readouterr())

    return run


def rates(kind):
    return ",".join(f"{lr:g}" for lr in RATES[kind])


def test_each_cell_is_a_run_and_the_figures_are_its_own(run, tmp_path):
    code, out, _ = run("--output", tmp_path, "--ternary-lrs", rates("ternary"), "--full-lrs", rates("full"))
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    grid = [(kind, lr) for kind, lrs in RATES.items() for lr in lrs]
    assert [(c["kind"], c["lr"]) for c in figures["cells"]] == grid
    for cell in figures["cells"]:
        folder = tmp_path / f"{cell['kind']}-as-given-{cell['lr']:g}-seed-0"
        assert folder.name == cell["name"]
        state = tiny.begin_at_end(folder)
        assert (state.model.cfg.linear, state.cfg.lr, state.step) == (cell["kind"], cell["lr"], 4)
        evaluated = [e for e in log.read(folder) if e["kind"] in ("eval", "final")]
        assert cell["curve"] == [[*at] for at in {e["step"]: e["loss"] for e in evaluated}.items()]
        assert cell["curve"][-1] == [4, cell["loss"]]
        assert state.cfg.seed == 0
        assert not state.cfg.guard                         # which would halve a rate under its own label
    for kind, lrs in RATES.items():
        top = figures["best"][kind]
        assert top["loss"] == min(c["loss"] for c in figures["cells"] if c["kind"] == kind)
        assert top["inside"] == (top["lr"] == lrs[1])
        assert f"as given          lr {top['lr']:<8g} {top['loss']:.4f} nats per token" in out
    assert code == (0 if all(top["inside"] for top in figures["best"].values()) else 1)
    assert (tmp_path / "twins.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_cell_that_is_done_is_not_run_again(run, tmp_path, monkeypatch):
    arguments = ("--output", tmp_path, "--ternary-lrs", "0.001,0.01", "--full-lrs", "0.01")
    code, out, _ = run(*arguments)
    (tmp_path / "ternary-as-given-0.01-seed-0" / "final.json").unlink()
    for path in checkpoints(tmp_path / "ternary-as-given-0.01-seed-0"):
        remove(path)
    trained = []
    real = loop.train
    monkeypatch.setattr(loop, "train", lambda run, data: (trained.append(run.folder.name), real(run, data)))
    assert run(*arguments)[:2] == (code, out)
    assert trained == ["ternary-as-given-0.01-seed-0"]


def test_the_best_of_each_side_runs_with_every_seed_and_the_gap_is_of_those(run, tmp_path, monkeypatch):
    """The twin has recipes of its own; the rates are chosen with the first seed alone."""
    narrow = {"init_std": 0.02, "schedule": "linear"}
    monkeypatch.setitem(twins.RECIPES, "full", {"as given": {}, "narrow": narrow})
    _, out, _ = run("--output", tmp_path, "--ternary-lrs", "0.01", "--full-lrs", "0.01", "--seeds", 2)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert [c["seed"] for c in figures["cells"]] == [0, 0, 0, 1, 1]
    perplexity = {}
    for kind, top in figures["best"].items():
        of_seed = [c for c in figures["cells"]
                   if (c["kind"], c["recipe"], c["lr"]) == (kind, top["recipe"], top["lr"])]
        assert [c["seed"] for c in of_seed] == [0, 1]
        assert len({c["loss"] for c in of_seed}) == 2
        perplexity[kind] = [math.exp(c["loss"]) for c in of_seed]
        for c in of_seed:
            state = tiny.begin_at_end(tmp_path / c["name"])
            assert (state.cfg.seed, state.cfg.lr) == (c["seed"], top["lr"])
    narrow = tiny.begin_at_end(tmp_path / "full-narrow-0.01-seed-0")
    assert (narrow.model.cfg.init_std, narrow.cfg.schedule) == (0.02, "linear")
    percent = [100 * (b - f) / f for b, f in zip(perplexity["ternary"], perplexity["full"])]
    assert figures["gap"]["percent"] == pytest.approx(percent)
    away = figures["gap"]["spread"]["percent"]
    assert f"gap in perplexity: {away['mean']:+.2f} % ± {away['half']:.2f}" in out
    block = page.twins_block(page.twin_figures(tmp_path))
    assert f"perplexity is {away['mean']:+.1f} % ± {away['half']:.1f} from its twin's" in block
    assert block.count("| best |") == 2


def test_the_page_takes_figures_of_before_there_were_recipes_and_seeds():
    cell = {"kind": "ternary", "lr": 0.01, "loss": 5.0, "bits per byte": 2.0, "perplexity": 148.4}
    other = {**cell, "lr": 0.02, "loss": 5.5}
    block = page.twins_block({"steps": 4, "cells": [cell, other], "best": {"ternary": cell}})
    assert "| ternary | as given | 0.01 | 0 | 5.0000 | 2.0000 | best |" in block
    assert block.count("best |") == 1


def test_with_one_seed_there_is_no_gap():
    one = [{"kind": kind, "recipe": "as given", "lr": 1e-2, "seed": 0, "loss": 2.0} for kind in RATES]
    tops = {c["kind"]: c for c in one}
    assert twins.gap(one, tops) is None
    two = one + [{**c, "seed": 1, "loss": None if c["kind"] == "ternary" else 2.0} for c in one]
    with tiny.refusal("every seed of ternary must train"):
        twins.gap(two, tops)


def cells(kind, losses):
    return [{"kind": kind, "recipe": "as given", "lr": lr, "loss": loss}
            for lr, loss in zip((1e-3, 2e-3, 4e-3), losses)]


@pytest.mark.parametrize(("losses", "inside"), [((3, 2, 3), True), ((1, 2, 3), False), ((3, 2, 1), False),
                                                ((2, 2, 3), False)])
def test_a_best_rate_on_the_edge_of_its_grid_is_seen(losses, inside):
    top = twins.best(cells("full", (9, 9, 0)) + cells("ternary", losses)[::-1], "ternary")
    assert (top["loss"], top["inside"]) == (min(losses), inside)


def test_the_edge_is_that_of_the_recipe_with_the_best_rate():
    """Other recipes' rates do not bracket it."""
    narrow = [{"kind": "full", "recipe": "narrow", "lr": lr, "loss": 1.0 + lr} for lr in (2e-3, 4e-3)]
    assert not twins.best(cells("full", (3, 3, 3)) + narrow, "full")["inside"]


def test_a_grid_of_one_rate_is_all_edge():
    assert not twins.best(cells("full", (1,)), "full")["inside"]


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--seeds", "0"], ["--seeds", "6"],
                                       ["--ternary-lrs", "1e-3,fast"], ["--full-lrs", ""],
                                       ["--ternary-lrs", "0"], ["--preset", "huge"]])
def test_what_is_wrong_is_refused(arguments, run, tmp_path):
    code, _, err = run("--output", tmp_path / "grid", *arguments)
    assert code == 2
    tiny.assert_three_parts(err.splitlines()[-1])
    assert not (tmp_path / "grid").exists()


@pytest.mark.slow
def test_with_processes_the_figures_are_the_same(run, tmp_path):
    arguments = ("--ternary-lrs", "0.01", "--full-lrs", "0.01")
    run("--output", tmp_path / "here", *arguments)
    result = tiny.command("bench.twins", "--output", tmp_path / "there", "--jobs", 2, *arguments,
                          *tiny.flags(**SHORT))
    assert result.returncode == 1, result.stderr
    here, there = (json.loads((tmp_path / p / "figures.json").read_text()) for p in ("here", "there"))
    for a, b in zip(here["cells"], there["cells"]):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)
