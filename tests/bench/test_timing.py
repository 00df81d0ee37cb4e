"""bench/timing: turns that rotate, short calls repeated, copies that no cache holds."""

import itertools
import time

import numpy as np
import pytest

from bitnet_ref.bench import timing
from bitnet_ref.checks import CheckError


def counting(calls, name, seconds=0.0):
    def run():
        calls.append(name)
        time.sleep(seconds)

    return run


def test_each_round_begins_with_the_next():
    calls = []
    runs = {name: counting(calls, name, 2 * timing.ROUND_SECONDS) for name in "abc"}
    times = timing.alternate(runs, rounds=4)
    assert "".join(calls) == "aaabbbccc" + "abc" + "bca" + "cab" + "abc"   # one to warm up, two to measure
    assert {name: len(t) for name, t in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_short_call_is_repeated_until_the_clock_can_see_it():
    calls = []
    began = time.perf_counter()
    times = timing.alternate({"a": counting(calls, "a")}, rounds=5)
    assert len(calls) > 50
    assert sum(times["a"]) < (time.perf_counter() - began) / 10              # per call, not per turn


def test_medians():
    assert timing.median({"a": [3, 1, 100], "b": [1, 2]}) == {"a": 3, "b": 1.5}


def test_the_best():
    pauses = itertools.chain([0.05, 0.05, 0.002], itertools.repeat(0.004))
    assert 0.002 <= timing.best(lambda: time.sleep(next(pauses)), rounds=3) < 0.05


def test_copies_are_apart_and_enough():
    array = np.arange(1000, dtype=np.uint8)
    made = timing.copies(array, 10_001)
    assert len(made) == 11
    made[0][:] = 0
    assert all(np.array_equal(c, array) for c in made[1:])
    ring = timing.rotate(array, 2500)
    first = [next(ring) for _ in range(3)]
    assert [next(ring) is a for a in first] == [True] * 3
    assert len({id(a) for a in first}) == 3


def test_threads_are_set_and_put_back():
    import numba
    before = numba.get_num_threads()
    with timing.threads(1):
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == before


@pytest.mark.parametrize(("call", "said"), [
    (lambda: timing.alternate({}), "something to time"),
    (lambda: timing.alternate({"a": int}, rounds=0), "rounds must be positive"),
    (lambda: timing.copies(np.zeros(0)), "must have content"),
    (lambda: timing.threads(0).__enter__(), "threads must lie in 1"),
    (lambda: timing.threads(10_000).__enter__(), "threads must lie in 1")])
def test_what_cannot_be_timed(call, said):
    with pytest.raises(CheckError, match=said):
        call()
