"""bench/ladders/bitlinear_cuda: what the counters must show for each idea, the command, the simulator."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitnet_ref.bench import card, examples
from bitnet_ref.bench.ladders import bitlinear_cuda
from bitnet_ref.checks import CheckError
from bitnet_ref.cli import run_command

pytest.importorskip("numba_cuda", reason="CUDA kernels need the extra `cuda`")
TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def device():
    """A device that is the interpreter."""
    from bitnet_ref.kernels.numba_cuda.memory import Device
    from bitnet_ref.kernels.ptx.driver import Driver
    return Device(Driver())


@pytest.fixture(scope="module")
def counts(device):
    """{rung: its cells} of the ladder for one row."""
    lines = bitlinear_cuda.ladder(device, 128, 1280, 1).splitlines()
    return {cells[1].strip("` "): cells[2:] for line in lines if len(cells := line.split("|")) > 8}


def number(counts, rung, column):
    return float(counts[rung][column].split()[0])


INSTRUCTIONS, SECTORS, FETCHED, WAVEFRONTS = 1, 2, 3, 4


def test_every_rung_is_in_the_table(counts):
    assert set(bitlinear_cuda.VECTOR) <= set(counts)


def test_the_counters_show_the_ideas(counts):
    assert number(counts, "naive", FETCHED) > 10                   # of each sector one byte is used
    assert number(counts, "coalesced", SECTORS) < number(counts, "naive", SECTORS) / 2
    assert number(counts, "shared", SECTORS) == 1.0                # 32 neighbours are one sector
    assert number(counts, "shared", FETCHED) < number(counts, "coalesced", FETCHED) / 4
    assert number(counts, "vector_dp4a", INSTRUCTIONS) < number(counts, "shared", INSTRUCTIONS) / 4
    assert number(counts, "tensor_core", WAVEFRONTS) == 4.0        # the fault that is there to be found
    assert number(counts, "gemv_i2", WAVEFRONTS) == 1.0            # and is no longer there
    assert number(counts, "gemv_b3", INSTRUCTIONS) > number(counts, "gemv_i2", INSTRUCTIONS)


def test_eight_rows_cost_a_tensor_core_little_more_than_one(device):
    def executed(rung, m):
        line = bitlinear_cuda.counted(device, rung, bitlinear_cuda.VECTOR[rung], 32, 1280, m)
        return float(line.split("|")[3])
    assert executed("tensor_core", 8) < 1.2 * executed("tensor_core", 1)
    assert executed("vector_dp4a", 8) > 6 * executed("vector_dp4a", 1)


def test_a_wrong_rung_is_not_counted(device):
    kernel = examples.kernels(examples.RUNGS)["naive"]
    launch = examples.launch_of("naive")
    off = launch._replace(expected={"y": launch.expected["y"] + 1})
    with pytest.raises(CheckError, match=r"naive must agree with the reference; got y: 140 of 140"):
        bitlinear_cuda.verified(device, "naive", kernel, off)


@pytest.mark.parametrize("name", bitlinear_cuda.VECTOR)
def test_the_largest_sums(name, device, monkeypatch):
    """All codes -128, all trits the same, and all sums as large as they get."""
    from bitnet_ref.bench.examples import products
    for trit in (1, -1):
        monkeypatch.setattr(products, "trits", lambda rng, n, k, trit=trit: np.full((n, k), trit, np.int8))
        monkeypatch.setattr(products, "codes", lambda rng, m, k: np.full((m, k), -128, np.int8))
        kernel, launch = bitlinear_cuda.operands(name, bitlinear_cuda.VECTOR[name], 17, 640, 2)
        bitlinear_cuda.verified(device, name, kernel, launch)


def test_a_card_is_timed(device, monkeypatch):
    """The table of a card, with the interpreter in its place: every rung runs from a graph, twice."""
    monkeypatch.setattr(card, "is_interpreter", lambda device: False)
    monkeypatch.setattr(card, "copy_rate", lambda device: 1e12)
    monkeypatch.setattr(card, "ROUNDS", 1)
    monkeypatch.setattr(card, "LAUNCHES", 1)
    line = bitlinear_cuda.timed(device, "gemv_i2", bitlinear_cuda.VECTOR["gemv_i2"], 32, 640, 1, 1e12)
    assert "GB/s" in line
    many = bitlinear_cuda.MATRIX["gemm_i2"]
    assert "Top/s" in bitlinear_cuda.timed(device, "gemm_i2", many, 16, 640, 9, 1e12)


def test_the_command(monkeypatch, device, capsys, tmp_path):
    from bitnet_ref.kernels.numba_cuda import memory
    monkeypatch.setattr(memory, "device", lambda: device)
    page = tmp_path / bitlinear_cuda.PAGE
    page.parent.mkdir()
    page.write_text(f"<!-- generated: python -m bitnet_ref.{bitlinear_cuda.COMMAND} -->\n<!-- end -->\n")
    arguments = ["--n", "16", "--k", "100", "--m", "1", "9", "--root", str(tmp_path)]
    assert run_command(bitlinear_cuda.main, arguments) == 0
    said = capsys.readouterr().out
    assert "counted, not timed" in said
    assert "| `gemm_i2` |" in said
    assert said.strip() in page.read_text()


@pytest.mark.parametrize(("arguments", "said"), [
    (["--n", "0"], "--n, --k and --m must be positive"), (["--m", "1", "-2"], "must be positive; got"),
    (["--n", "99999999", "--k", "99999999"], "--n times --k must be at most"),
    (["--root", "nowhere"], "--root must be a clone")])
def test_bad_arguments(arguments, said, capsys):
    assert run_command(bitlinear_cuda.main, arguments) == 2
    assert said in capsys.readouterr().err


def test_without_a_card_there_is_an_error_and_no_interpreter(monkeypatch, capsys):
    """Nothing falls back: without the wish in the environment a card is asked for."""
    from bitnet_ref.kernels.numba_cuda import driver, memory
    monkeypatch.delenv(driver.ENV, raising=False)
    monkeypatch.setattr(memory, "device", memory.device.__wrapped__)
    monkeypatch.setattr(memory, "load", lambda: NoCard())
    assert run_command(bitlinear_cuda.main, ["--m", "1"]) == 2
    assert "--backend cuda needs an NVIDIA GPU; got none" in capsys.readouterr().err


class NoCard:
    """A driver that finds no device."""

    def cuInit(self, flags):
        return (0,)

    def cuDeviceGetCount(self):
        return 0, 0


def test_the_first_rungs_in_the_simulator():
    done = subprocess.run([sys.executable, str(TESTS / "cuda_simulator.py")], capture_output=True, text=True,
                          env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(TESTS.parent)},
                          timeout=120, check=False)
    assert done.stdout.splitlines() == ["naive right", "coalesced right", "shared right"], done.stderr[-2000:]
