"""bench/rivals: who is trained against BitNet, and that each is what its contest says."""

from dataclasses import replace

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import cells as runs
from bitnet_ref.bench import rivals
from bitnet_ref.config import PRESETS
from bitnet_ref.formats.checkpoint import latest
from bitnet_ref.model.cost import count_params
from bitnet_ref.train import loop

SHORT = {"steps": 4, "eval_every": 2, "save_every": 4, "threads": 1}


def plan(**given):
    model, how = tiny.configs(**{**SHORT, **given})
    return rivals.Plan("tiny", model, how, 2, 1)


@given(st.sampled_from(["nano", "tiny", "125m", "3b", "2b4t"]))
def test_the_narrower_twin_takes_as_many_bytes(preset):
    """Within half of what a step of its gated unit takes."""
    cfg = PRESETS[preset].model
    small = rivals.narrower(cfg)
    assert (small.linear, small.n_layers, small.n_heads) == ("full", cfg.n_layers, cfg.n_heads)
    assert small.d_model < cfg.d_model
    step = 2 * cfg.n_layers * 3 * small.d_model * rivals.GRAIN
    assert abs(rivals.stored_bytes(small) - rivals.stored_bytes(cfg)) <= step / 2


def test_a_model_of_heads_alone_has_no_narrower_one():
    with tiny.refusal("must fit into BitNet's bytes"):
        rivals.narrower(replace(PRESETS["tiny"].model, d_model=8, n_heads=4))


def test_the_nano_pair():
    nano = PRESETS["nano"].model
    twin = replace(nano, linear="full")
    assert count_params(nano) == count_params(twin)
    assert rivals.stored_bytes(twin) == 2 * count_params(twin).total
    assert rivals.stored_bytes(rivals.narrower(nano)) == pytest.approx(rivals.stored_bytes(nano), rel=0.005)


@pytest.mark.parametrize(("bitnet", "twin", "steps"), [(0.2, 0.1, 800), (0.1, 0.2, 200), (0.1, 0.1, 400)])
def test_the_same_seconds(bitnet, twin, steps):
    assert rivals.steps_in_time(400, {rivals.BITNET: bitnet, rivals.TWIN: twin}) == steps


def test_all_are_trained_and_none_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ProcessPoolExecutor", tiny.AtOnce)
    paces = dict.fromkeys((rivals.TWIN, rivals.SMALL), 1.0) | {rivals.BITNET: 1.5}
    monkeypatch.setattr(rivals, "pace", lambda plan, shapes: paces)
    found = rivals.train_all(plan(), tmp_path)
    assert list(found) == list(rivals.NAMES)
    for who, each in found.items():
        assert [run["seed"] for run in each] == [0, 1]
        assert {run["steps"] for run in each} == {6 if who == rivals.LONG else 4}
        for run in each:
            state = tiny.begin_at_end(tmp_path / run["name"])
            assert state.model.cfg.linear == ("ternary" if who == rivals.BITNET else "full")
            assert (state.cfg.seed, state.cfg.steps) == (run["seed"], run["steps"])
            assert latest(tmp_path / run["name"]).name == f"step-{run['steps']:08d}"
    monkeypatch.setattr(loop, "train", None)
    monkeypatch.setattr(rivals, "pace", None)
    assert rivals.train_all(plan(), tmp_path) == found


def test_another_shape_is_timed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "pace", lambda plan, shapes: {"twin": 2.0})
    file = tmp_path / "pace.json"
    first = plan()
    assert rivals.kept_pace(first, {"twin": first.model}, file) == {"twin": 2.0}
    monkeypatch.setattr(rivals, "pace", lambda plan, shapes: {"twin": 3.0})
    assert rivals.kept_pace(first, {"twin": first.model}, file) == {"twin": 2.0}
    other = plan(d_ff=64)
    assert rivals.kept_pace(other, {"twin": other.model}, file) == {"twin": 3.0}


def test_paces_of_other_threads_or_another_machine_are_measured_again(tmp_path, monkeypatch):
    paces = iter([{"twin": 1.0}, {"twin": 2.0}, {"twin": 3.0}])
    monkeypatch.setattr(rivals, "pace", lambda plan, shapes: next(paces))
    for n, p in enumerate((plan(threads=1), plan(threads=2), plan(threads=2)), 1):
        assert rivals.kept_pace(p, {"twin": p.model}, tmp_path / "pace.json") == {"twin": min(n, 2)}
    monkeypatch.setattr(rivals, "machine", lambda: {"cpu": "another"})
    assert rivals.kept_pace(p, {"twin": p.model}, tmp_path / "pace.json") == {"twin": 3.0}


@pytest.mark.slow
def test_steps_are_timed_by_turns():
    p = plan()
    found = rivals.pace(p, {rivals.BITNET: p.model, rivals.TWIN: replace(p.model, linear="full")}, 2)
    assert all(seconds > 0 for seconds in found.values())


def test_a_run_that_diverges_is_no_rival(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "run_cells", lambda *given: [{"loss": None}])
    with tiny.refusal("must train", "lower its rate"):
        rivals._trained(plan(), rivals._cells(plan(), rivals.TWIN, plan().model)[:1], tmp_path)
