"""bench/efficiency: figures of a process of its own, energy counted where there is a counter."""

import os

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref import kernels
from bitnet_ref.bench import efficiency
from bitnet_ref.bench.random_model import QUICK, random_weights
from bitnet_ref.model import Transformer


def counter(place, value, most=1000):
    package = place / "intel-rapl:0"
    package.mkdir(exist_ok=True)
    (place / "intel-rapl:0:0").mkdir(exist_ok=True)        # a part of the package: not counted twice
    (package / "energy_uj").write_text(f"{value}\n")
    (package / "max_energy_range_uj").write_text(f"{most}\n")
    return package


# ---- energy ----

def test_energy_is_the_difference_in_joules(tmp_path):
    counter(tmp_path, 100, 10**9)
    spent = efficiency.energy(tmp_path)
    counter(tmp_path, 100 + 2_500_000, 10**9)
    assert spent() == 2.5


def test_a_counter_that_has_turned(tmp_path):
    """From 900 of 0..1000 over the end to 50: 151 microjoules."""
    counter(tmp_path, 900)
    spent = efficiency.energy(tmp_path)
    counter(tmp_path, 50)
    assert spent() == pytest.approx(151e-6)


def test_without_a_counter_there_is_a_reason(tmp_path):
    assert efficiency.energy(tmp_path / "none")() == "no counter in /sys/class/powercap"


@pytest.mark.parametrize("damage", [lambda p: (p / "energy_uj").write_text("much"),
                                    lambda p: (p / "energy_uj").unlink()])
def test_a_counter_that_cannot_be_read_is_a_reason(damage, tmp_path):
    damage(counter(tmp_path, 5))
    assert "intel-rapl:0" in efficiency.energy(tmp_path)()


# ---- a model ----

def test_figures_of_a_model():
    found = efficiency.measure(Transformer(QUICK, random_weights(QUICK), kernels.load("numba", 1)))
    for name in ("prefill tokens/s", "decode tokens/s", "first token ms"):
        assert found[name] > 0
    assert found["prefill tokens/s"] > found["decode tokens/s"]      # 64 rows at once
    assert (found["joules per token"] is None) == bool(found["why no energy"])
    assert found["peak MiB"] is None or found["peak MiB"] > 10


def test_the_first_token_is_there_when_the_prompt_is_read(monkeypatch):
    """It is what the prompt's last logits say: 0.1 s; the whole takes 64 steps and 0.64 s more."""
    seconds = iter([(0.1, 3), (0.74, 3)])
    monkeypatch.setattr(efficiency, "per_call", lambda run: next(seconds))
    model = Transformer(QUICK, random_weights(QUICK), kernels.load("numpy"))
    prompt = min(efficiency.PROMPT, QUICK.context // 2)
    tokens = min(efficiency.TOKENS, QUICK.context // 2)
    found = efficiency.measure(model)
    assert found["first token ms"] == pytest.approx(100)
    assert found["prefill tokens/s"] == pytest.approx(prompt / 0.1)
    assert found["decode tokens/s"] == pytest.approx(tokens / 0.64)


def test_a_call_is_timed_at_least_three_times(monkeypatch):
    monkeypatch.setattr(efficiency, "TURN", 0)
    calls = []
    seconds, n = efficiency.per_call(lambda: calls.append(1))
    assert n == len(calls) == 3
    assert seconds >= 0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not say")
def test_peak_memory_holds_what_was_touched():
    before = efficiency.peak() / 2**20
    block = bytearray(64 << 20)
    assert efficiency.peak() / 2**20 >= max(before, 64)
    del block


@pytest.mark.slow
def test_each_round_is_a_process_and_they_take_turns():
    run = str(tiny.trained())
    said = []
    found, notes, computed, _ = efficiency.measured({"a": run, "b": run}, 2, 1, said.append)
    assert (computed["backend"], computed["threads"]) == ("numba", 1)
    assert {name: len(rows) for name, rows in found.items()} == {"a": 2, "b": 2}
    assert all(set(row) == set(efficiency.METRICS) for rows in found.values() for row in rows)
    assert len(said) == 2
    assert all(note.startswith("energy: unknown: ") for note in notes)


@pytest.mark.slow
def test_a_model_that_is_not_there_is_said_by_the_child(tmp_path):
    with tiny.refusal():
        efficiency.measured({"a": str(tmp_path / "none")}, 2, 1)


@pytest.mark.parametrize(("ours", "theirs", "away"), [
    ([1.0, -4.0], [1.0, -3.0], 0.25), ([0.0, 0.0], [0.0, 0.0], np.inf), ([0.0, 0.0], [1.0, 0.0], np.inf),
    ([np.nan, 1.0], [1.0, 1.0], np.inf), ([1.0, 1.0], [np.inf, 1.0], np.inf), ([1.0], [1.0, 1.0], np.inf)])
def test_logits_that_say_nothing_are_infinitely_apart(ours, theirs, away):
    assert efficiency.apart(np.array(ours), np.array(theirs)) == away


def test_one_round_has_no_spread():
    with tiny.refusal("--rounds must be 2 or more"):
        efficiency.measured({}, 1, 1)
