"""bench/twins: a grid of runs, none twice, and an honest word on whether the best rate was bracketed."""

import json

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import twins
from bitnet_ref.cli import run_command
from bitnet_ref.formats.checkpoint import checkpoints, remove
from bitnet_ref.train import log, loop

SHORT = {"steps": 4, "eval_every": 2, "save_every": 4}
RATES = {"ternary": [1e-3, 1e-2, 1e-1], "full": [1e-4, 1e-3, 1e-2]}


class AtOnce:
    """A pool of no processes."""

    def __init__(self, jobs, mp_context=None):
        self.jobs = jobs

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *args):
        result = function(*args)
        return type("Future", (), {"result": lambda self: result})()


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(twins, "ProcessPoolExecutor", AtOnce)

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
        folder = tmp_path / f"{cell['kind']}-{cell['lr']:g}"
        state = tiny.begin_at_end(folder)
        assert (state.model.cfg.linear, state.cfg.lr, state.step) == (cell["kind"], cell["lr"], 4)
        evaluated = [e for e in log.read(folder) if e["kind"] in ("eval", "final")]
        assert cell["curve"] == [[e["step"], e["loss"]] for e in evaluated]
        assert cell["curve"][-1] == [4, cell["loss"]]
        assert state.cfg.seed == 0
    for kind, lrs in RATES.items():
        top = figures["best"][kind]
        assert top["loss"] == min(c["loss"] for c in figures["cells"] if c["kind"] == kind)
        assert top["inside"] == (top["lr"] == lrs[1])
        assert f"lr {top['lr']:<8g} {top['loss']:.4f} nats per token" in out
    assert code == (0 if all(top["inside"] for top in figures["best"].values()) else 1)
    assert (tmp_path / "twins.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_cell_that_is_done_is_not_run_again(run, tmp_path, monkeypatch):
    arguments = ("--output", tmp_path, "--ternary-lrs", "0.001,0.01", "--full-lrs", "0.01")
    code, out, _ = run(*arguments)
    (tmp_path / "ternary-0.01" / "final.json").unlink()
    for path in checkpoints(tmp_path / "ternary-0.01"):
        remove(path)
    trained = []
    real = loop.train
    monkeypatch.setattr(loop, "train", lambda run, data: (trained.append(run.folder.name), real(run, data)))
    assert run(*arguments)[:2] == (code, out)
    assert trained == ["ternary-0.01"]


def cells(kind, losses):
    return [{"kind": kind, "lr": lr, "loss": loss} for lr, loss in zip((1e-3, 2e-3, 4e-3), losses)]


@pytest.mark.parametrize(("losses", "inside"), [((3, 2, 3), True), ((1, 2, 3), False), ((3, 2, 1), False),
                                                ((2, 2, 3), False)])
def test_a_best_rate_on_the_edge_of_its_grid_is_seen(losses, inside):
    top = twins.best(cells("full", (9, 9, 0)) + cells("ternary", losses)[::-1], "ternary")
    assert (top["loss"], top["inside"]) == (min(losses), inside)


def test_a_grid_of_one_rate_is_all_edge():
    assert not twins.best(cells("full", (1,)), "full")["inside"]


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--ternary-lrs", "1e-3,fast"], ["--full-lrs", ""],
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
