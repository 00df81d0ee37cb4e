"""bench/ladders: every rung against the reference, at odd sizes and at the largest sums; and the commands."""

import numpy as np
import pytest
from numba import njit

from bitnet_ref.bench import ladders, timing
from bitnet_ref.bench.ladders import attention_cpu, bitlinear_cpu, layouts
from bitnet_ref.bench.roofline import Machine
from bitnet_ref.bench.vectors import DOT, LANES, load_floats, store_floats
from bitnet_ref.checks import CheckError
from bitnet_ref.cli import run_command

PRODUCTS = [(kind, name) for kind in ("VECTOR", "MATRIX") for name in getattr(bitlinear_cpu, kind)]
MACHINE = Machine("a machine", ("none",), "none", 1, 1e10, 1e11, 1e11, 4e11, "3", "2", "0", "0")


def rung_of(kind, name):
    rung = getattr(bitlinear_cpu, kind)[name]
    if not bitlinear_cpu.runs_here(rung):
        pytest.skip(f"this machine has no instruction for {name}")
    return rung, (1,) if kind == "VECTOR" else (1, 7, 12)


@pytest.mark.parametrize(("kind", "name"), PRODUCTS)
def test_products_at_odd_sizes(kind, name, rng):
    rung, rows = rung_of(kind, name)
    for m in rows:
        for n, k in ((1, 1), (67, 301), (130, 1045)):
            w_q, x_q = rng.integers(-1, 2, (n, k), np.int8), rng.integers(-128, 128, (m, k), np.int8)
            w, x, y = bitlinear_cpu.operands(rung, w_q, x_q)
            rung.run(w, x, y)
            assert np.array_equal(y[:m, :n], x_q.astype(np.int32) @ w_q.T.astype(np.int32)), (n, k, m)


@pytest.mark.parametrize(("kind", "name"), PRODUCTS)
def test_products_at_the_largest_sums(kind, name):
    rung, rows = rung_of(kind, name)
    k = 8192
    for trit in (1, -1):
        for code in (127, -128):
            w_q, x_q = np.full((5, k), trit, np.int8), np.full((rows[-1], k), code, np.int8)
            w, x, y = bitlinear_cpu.operands(rung, w_q, x_q)
            rung.run(w, x, y)
            assert np.all(y[:rows[-1], :5] == trit * code * k)


def test_a_wrong_rung_is_not_timed(rng):
    w_q, x_q = rng.integers(-1, 2, (3, 5), np.int8), rng.integers(-128, 128, (1, 5), np.int8)
    wrong = bitlinear_cpu.Rung(lambda w, x, y: y.fill(1 << 20), layouts.ROWS)
    with pytest.raises(CheckError, match="wrong must be exact; got 3 of 3"):
        bitlinear_cpu.verified("wrong", wrong, w_q, x_q)


def test_fractions_give_all_their_digits():
    """Each of the 243 numbers of five digits: three times the fraction carries them out, the first first."""
    trits = np.stack(np.unravel_index(np.arange(243), (3,) * 5), axis=-1).astype(np.int8) - 1
    w_q = np.zeros((LANES, 20 * 243), np.int8)
    w_q[0].reshape(243, 5, 4)[:, :, 0] = trits
    q = layouts.packed(w_q, layouts.FRACTIONS)[0, :, 0, 0].astype(int)
    for digit in range(5):
        assert np.array_equal(3 * q // 256, trits[:, digit] + 1)
        q = 3 * q % 256


@pytest.mark.parametrize(("layout", "bits"), [
    (layouts.ROWS, 2), (layouts.COLUMNS, 2), (layouts.PLANES, 2), (layouts.BLOCKS, 2), (layouts.PANELS, 2),
    (layouts.FRACTIONS, 1.6), (layouts.CODES, 8)])
def test_layouts_have_their_size(layout, bits):
    assert layouts.packed(np.zeros((128, 1280), np.int8), layout).nbytes * 8 == bits * 128 * 1280


@pytest.mark.parametrize("name", attention_cpu.RUNGS)
@pytest.mark.parametrize(("T", "Dh"), [(1, 1), (23, 5), (97, 33), (130, 64)])
def test_attention(name, T, Dh, rng, tol):
    q, k, v = (rng.standard_normal((T, Dh), np.float32) for _ in range(3))
    assert attention_cpu.error(attention_cpu.RUNGS[name], q, k, v) <= tol["float32"]


@pytest.mark.parametrize("name", attention_cpu.RUNGS)
def test_attention_when_every_key_beats_those_before(name, rng, tol):
    """The largest score changes in every tile, so that all that was summed shrinks."""
    T = 200
    q, v = np.ones((T, 1), np.float32), rng.standard_normal((T, 1), np.float32)
    k = np.linspace(-4, 4, T, dtype=np.float32)[:, None]
    assert attention_cpu.error(attention_cpu.RUNGS[name], q, k, v) <= tol["float32"]


@njit
def exp_of(x, y):
    for i in range(0, x.size, LANES):
        store_floats(y, i, attention_cpu.exp(load_floats(x, i)))


def test_exp():
    x = np.linspace(-87.3, 0, 1 << 14, dtype=np.float32)
    y = np.empty_like(x)
    exp_of(x, y)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(y - exact) / exact) < 2.5e-7
    x[:] = -np.linspace(88, 1e4, x.size)
    x[-1] = -np.inf
    exp_of(x, y)
    assert not y.any()


@pytest.fixture
def quick(monkeypatch):
    """The commands without measuring the machine, and with small copies."""
    monkeypatch.setattr(ladders, "measure", lambda threads: MACHINE._replace(threads=threads))
    monkeypatch.setattr(timing, "OUT_OF_CACHE", 1 << 20)


def test_the_command_of_products(quick, capsys, tmp_path):
    page = tmp_path / ladders.PAGE
    page.parent.mkdir()
    page.write_text(f"a\n<!-- generated: python -m bitnet_ref.{bitlinear_cpu.COMMAND} -->\n<!-- end -->\nb\n")
    arguments = ["--n", "48", "--k", "80", "--m", "1", "7", "--quick", "--root", str(tmp_path)]
    assert run_command(bitlinear_cpu.main, arguments) == 0
    said = capsys.readouterr().out
    assert all(f"`{name}`" in said for name in (*bitlinear_cpu.VECTOR, *bitlinear_cpu.MATRIX))
    assert "N = 48, K = 80, M = 7" in said
    assert page.read_text().startswith("a\n<!--")
    assert said.strip() in page.read_text()


def test_a_machine_without_the_instruction_says_so(quick, capsys, monkeypatch):
    monkeypatch.setattr(bitlinear_cpu, "DOT", None)
    assert run_command(bitlinear_cpu.main, ["--n", "8", "--k", "8", "--m", "1", "--quick"]) == 0
    said = capsys.readouterr().out
    assert "Skipped: `outputs_in_lanes`, which needs an instruction for dot products" in said
    assert "| `outputs_in_lanes`" not in said
    assert "| `blocked`" in said


def test_the_command_of_attention(quick, capsys):
    assert run_command(attention_cpu.main, ["--t", "50", "--dh", "16", "--quick", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert all(f"| `{name}` |" in said for name in attention_cpu.RUNGS)


@pytest.mark.parametrize(("main", "arguments", "said"), [
    (bitlinear_cpu.main, ["--n", "0"], "--n and --m must be positive"),
    (bitlinear_cpu.main, ["--m", "1", "-2"], "--n and --m must be positive"),
    (bitlinear_cpu.main, ["--k", "40000"], "--k must lie in 1"),
    (bitlinear_cpu.main, ["--root", "nowhere"], "--root must be a clone"),
    (attention_cpu.main, ["--t", "0"], "--t and --dh must be positive"),
    (attention_cpu.main, ["--threads", "0"], "threads must lie in")])
def test_bad_arguments(main, arguments, said, capsys):
    assert run_command(main, arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "said"), [(2.5, "2500 ms"), (0.0123, "12.3 ms"), (4.5e-5, "45.0 us"),
                                               (1.234e-7, "123 ns")])
def test_durations(seconds, said):
    assert ladders.duration(seconds) == said


def test_dot_is_used_where_it_is_there():
    needing = [r for r in bitlinear_cpu.VECTOR.values() if r.needs]
    assert all(bitlinear_cpu.runs_here(r) for r in needing if r.needs == "dot") == (DOT is not None)
