"""The ladder of notebook 06: what is counted is what ran, also where instructions are lacking."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitnet_ref.bench.ladders import bitlinear_cpu
from bitnet_ref.bench.roofline import Machine
from bitnet_ref.checks import CheckError
from bitnet_ref.walk import cpu_kernels, kernel_pictures
from bitnet_ref.walk.cpu_kernels import DISTURBED, Rate, Rates, climb, interpreted, limits

ROOT = Path(__file__).resolve().parents[2]
ONE = Machine("a machine", ("none",), "none", 1, 1e10, 1e11, 1e11, 4e11, "3", "2", "0", "0")
N, K = 64, 320


@pytest.fixture
def operands(rng, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "COPIES", 1)
    monkeypatch.setattr(cpu_kernels, "ROUNDS", 1)
    return rng.integers(-1, 2, (N, K), np.int8), rng.integers(-128, 128, (1, K), np.int8)


def test_what_moves_and_what_is_done_is_counted(operands):
    rates = {r.name: r for r in climb(["naive", "float32_blas"], *operands, ONE).rates}
    assert [r.operations for r in rates.values()] == [2 * N * K] * 2
    assert rates["naive"].n_bytes == N * K / 4 + K + 4 * N
    assert rates["float32_blas"].n_bytes == 4 * N * K + K + 4 * N
    assert (rates["naive"].peak, rates["float32_blas"].peak) == (ONE.int8, ONE.float32)
    assert all(r.seconds > 0 for r in rates.values())


def test_the_limit_is_that_of_the_threads_in_use(operands):
    every = ONE._replace(threads=2, bandwidth=2e10)
    threaded, alone = climb(["float32_blas", "blocked"], *operands, ONE, every).rates
    assert (threaded.threads, threaded.bandwidth) == (2, 2e10)
    assert (alone.threads, alone.bandwidth) == (1, 1e10)


def test_a_share_is_of_the_nearer_limit():
    rate = Rate("", seconds=2.0, n_bytes=1e10, operations=1e11, threads=1, bandwidth=1e10, peak=4e11)
    assert rate.share == 0.5
    assert rate._replace(operations=4e11).share == 0.5
    assert rate._replace(operations=6e11).share == 0.75


def test_python_runs_the_same_lines(operands):
    w_q, x_q = operands
    [rate] = interpreted(w_q[:2], x_q, ONE).rates
    assert rate.name == cpu_kernels.PYTHON
    assert rate.operations == 4 * K


def test_a_wrong_rung_is_not_timed(operands, monkeypatch):
    wrong = bitlinear_cpu.VECTOR["naive"]._replace(run=lambda w, x, y: y.fill(1 << 20))
    monkeypatch.setitem(cpu_kernels.VECTOR, "naive", wrong)
    with pytest.raises(CheckError, match="naive must be exact"):
        climb(["naive"], *operands, ONE)


@pytest.mark.parametrize(("threads", "kind", "factor", "told"), [
    (2, "bandwidth", 0.5, True), (2, "float32", 0.9, True), (2, "int8", 0.9, True),
    (2, "bandwidth", 1.5, False), (2, "bandwidth", 0.98, False), (1, "bandwidth", 0.5, False)])
def test_limits_that_cannot_be_are_told(threads, kind, factor, told):
    every = ONE._replace(threads=threads, **{kind: factor * getattr(ONE, kind)})
    said = limits(ONE, every)
    assert (DISTURBED in said) == told
    assert "reads 10.0 GB/s" in said
    assert all(len(line) <= 100 for line in said.splitlines())


@pytest.mark.parametrize(("every", "count"), [(None, 1), (ONE._replace(threads=2), 2)])
def test_blas_is_held_to_the_threads_of_its_limits(operands, monkeypatch, every, count):
    seen, threads = [], cpu_kernels.timing.threads
    monkeypatch.setattr(cpu_kernels.timing, "available", lambda: 2)
    monkeypatch.setattr(cpu_kernels.timing, "threads", lambda n: seen.append(n) or threads(1))
    [rate] = climb(["float32_blas"], *operands, ONE, every).rates
    assert (seen, rate.threads) == ([count], count)


def test_a_rung_of_many_rows_says_how_many(operands):
    w_q, x_q = operands
    names = [climb(["float32_blas"], w_q, np.repeat(x_q, m, axis=0), ONE).rates[0].name for m in (1, 6)]
    assert names == ["float32_blas", "float32_blas, 6 rows"]


def test_what_is_far_below_the_limit_is_not_zero():
    slow = Rate("slow", seconds=100.0, n_bytes=2e8, operations=3e8, threads=1, bandwidth=1e10, peak=4e11)
    assert " ".join(repr(Rates((slow,))).splitlines()[1].split()) == "slow 100000 ms 0.002 0.003 0.02 %"


def test_an_unknown_rung_is_named(operands):
    with pytest.raises(CheckError, match="rung must be one of naive"):
        climb(["fastest"], *operands, ONE)


def test_what_a_machine_lacks_is_told_and_left_out(operands, monkeypatch):
    monkeypatch.setattr(bitlinear_cpu, "DOT", None)
    climbed = climb(["intrinsic", "blocked"], *operands, ONE)
    assert [r.name for r in climbed.rates] == ["blocked"]
    assert "intrinsic" in climbed.missing[0]
    assert "not here" in repr(climbed)
    assert repr(Rates((), climbed.missing)) == climbed.missing[0]


def rate(name, threads=1):
    return Rate(name, 1e-3, 2e6, 1e7, threads, 1e10, 4e11)


def test_numbers_in_the_picture_do_not_overlap():
    heights = kernel_pictures._apart([rate(str(i)) for i in range(5)])
    assert all(b >= a * kernel_pictures.APART for a, b in zip(sorted(heights), sorted(heights)[1:]))


@pytest.mark.parametrize("int8", [0.0, 4e11])
def test_a_roofline_is_drawn_also_without_dot_products(int8):
    one = ONE._replace(int8=int8)
    drawn = kernel_pictures.roofline(one, one._replace(threads=2), [Rates((rate("a"), rate("b", 2)))])
    assert drawn.png[:4] == b"\x89PNG"
    assert len(drawn.png) < 64 * 1024


NARROW = """
from llvmlite import binding
found = binding.get_host_cpu_features()
binding.get_host_cpu_features = lambda: type(found)({{k: v for k, v in found.items() if k in {keep}}})
import numpy as np
from bitnet_ref.bench.ladders.bitlinear_cpu import DOT, MATRIX, VECTOR, runs_here, verified
print(DOT.name if DOT else "none")
rng = np.random.default_rng(0)
w_q = rng.integers(-1, 2, (70, 400), np.int8)
for table, m in ((VECTOR, 1), (MATRIX, 7)):
    for name, rung in table.items():
        if runs_here(rung):
            verified(name, rung, w_q, rng.integers(-128, 128, (m, 400), np.int8))
            print(name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "dot", "vnni"), [(("avx2", "avxvnni"), "AVX-VNNI", True),
                                                   (("avx2",), "AVX2", False), ((), "none", False)])
def test_the_ladder_climbs_on_narrower_machines(keep, dot, vnni):
    """Those of other tiers, as far as this processor can stand in for them."""
    from bitnet_ref.bench.vectors import features
    if not features().issuperset(keep):
        pytest.skip(f"this machine has no {', '.join(keep)}")
    done = subprocess.run([sys.executable, "-c", NARROW.format(keep=keep)], capture_output=True, text=True,
                          cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert said[0] == dot
    assert ("base_3_undivided" in said) == vnni
    assert ("outputs_in_lanes" in said) == (dot != "none")
    assert "blocked" in said
