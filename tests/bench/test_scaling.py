"""bench/scaling and bench/rank: the machine is found in times that it must explain, and a page is whole."""

import json
import subprocess
import sys

import pytest
import tiny

from bitnet_ref.bench import rank, scaling
from bitnet_ref.bench.random_model import NANO
from bitnet_ref.model.cost import count_params
from bitnet_ref.model.scaling import PIECE, Job, Node, micro_batch_seconds, step
from bitnet_ref.train.parallel import World

NODE = Node(products=8e10, activations=3e9, memory=6e9, network=5e9, latency=2e-6)


def times(node):
    """What the jobs would measure on such a machine."""
    P = count_params(rank.LARGE).total
    micro = {name: micro_batch_seconds(Job(cfg, rank.BATCH, 1, 1), node)
             for name, cfg in (("small", rank.SMALL), ("large", rank.LARGE))}
    return {**micro, "update": 69 * P / node.memory, "message": rank.MESSAGES * node.latency,
            "piece": rank.PIECES * PIECE / node.network}


def figures(off=1.0):
    """Figures whose measured steps are `off` times the predicted ones."""
    rows = []
    for ranks in (1, 2):
        predicted = step(Job(NANO, rank.BATCH, rank.ACCUMULATE, ranks), NODE)
        rows.append({"ranks": ranks, "measured": off * predicted.seconds, "node": NODE._asdict(),
                     "predicted": predicted._asdict()})
    return {"machine": {"processor": "a processor", "cores": 2}, "rounds": 9, "rows": rows}


def test_the_machine_is_found_in_its_times():
    assert scaling.node(times(NODE)) == pytest.approx(NODE, rel=1e-9)


def test_times_without_sense_are_refused():
    with tiny.refusal("times must grow", "while nothing else runs"):
        scaling.node({**times(NODE), "large": 1e-3})


def test_the_widths_lie_on_either_side_of_the_model_that_is_predicted():
    """And the step is one of several micro-batches that two and four ranks can share."""
    assert rank.SMALL.d_model < NANO.d_model < rank.LARGE.d_model
    assert rank.ACCUMULATE % 4 == 0


@pytest.mark.parametrize(("off", "word"),
                         [(1.0, "within"), (1.14, "within"), (0.86, "beyond"), (1.2, "beyond")])
def test_the_table_says_whether_the_floor_is_met(off, word):
    rows = [line for line in scaling.validation_block(figures(off)).splitlines() if "15%" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["1", "2"]
    assert all(f"{word} 15%" in row and f"{1 / off:.2f}" in row for row in rows)


def test_the_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "measured", lambda _: figures())
    (tmp_path / "docs/benchmarks").mkdir(parents=True)
    (tmp_path / "docs/pictures").mkdir()
    markers = (f"<!-- generated: python -m bitnet_ref.bench.scaling --rounds {n} --root . -->\n<!-- end -->\n"
               for n in (7, 0))
    (tmp_path / "docs/scaling.md").write_text("".join(markers))
    assert scaling.main(["--rounds", "3", "--root", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "docs/benchmarks/scaling.json").read_text()) == figures()
    page = (tmp_path / "docs/scaling.md").read_text()
    for name in scaling.MODELS:
        assert f"| {name} | 10 Gb/s, 30 us | 1,024 | more ranks than sequences |" in page
    assert page.count("| 700m | ") == 12
    assert page.count("within 15%") == 2
    assert scaling.main(["--rounds", "0", "--root", str(tmp_path)]) == 0
    assert (tmp_path / "docs/scaling.md").read_text() == page
    assert (tmp_path / "docs/pictures/scaling.png").read_bytes()[1:4] == b"PNG"


def test_without_mpiexec_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(scaling.shutil, "which", lambda *_, **__: None)
    with tiny.refusal("needs mpiexec", ".[mpi]"):
        scaling.job(2, 1)


def test_a_job_that_fails_is_quoted(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no slots")
    monkeypatch.setattr(scaling.shutil, "which", lambda *_, **__: sys.executable)
    monkeypatch.setattr(scaling.subprocess, "run", lambda *_, **__: failed)
    with tiny.refusal("a job of 2 ranks must run", "no slots"):
        scaling.job(2, 1)


def test_a_root_without_the_page_is_refused(tmp_path):
    with tiny.refusal("--root must be a clone", str(tmp_path)):
        scaling.main(["--rounds", "0", "--root", str(tmp_path)])


def test_no_timed_step_can_be_a_rollback():
    assert not rank.begun(rank.SMALL, World(), 1)[0].guard.on


@pytest.mark.slow
def test_a_rank_alone_measures_all_but_messages():
    found = rank.measure(World(), 1)
    assert set(found["seconds"]) == {"step", "small", "large", "update"}
    assert all(len(t) == 1 and t[0] > 0 for t in found["seconds"].values())
