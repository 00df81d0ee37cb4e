"""Ports written apart from bitnet_ref, from docs/porting.md alone: in plain Python and in C.

A correct port conforms and nothing is blamed; every known fault, planted by hand in the Python port, is
found. The whole table (three seeds, fifty pairs) is marked slow; docs/benchmarks/conform.md has the same
trials.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitnet_ref.bench import conform as bench
from bitnet_ref.conform.__main__ import main
from bitnet_ref.conform.export import export
from bitnet_ref.conform.faults import catalogue

HERE = Path(__file__).resolve().parent
PORT, SECOND, C_PORT = HERE / "mini_port.py", HERE / "second_port.py", HERE / "mini_port.c"
NAMES = [f.name for f in catalogue()]
KINDS = {"hf": {}, "raw": {"kind": "raw"}, "128": {"kind": "i2s", "i2s": "128"},
         "64": {"kind": "i2s", "i2s": "64"}, "4row": {"kind": "i2s", "i2s": "4row"}}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def port():
    return bench.load_port(PORT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{seed: {"hf", "i2s": exported homework}}, made when asked for."""
    made = {}

    def of(seed):
        if seed not in made:
            made[seed] = bench.homeworks(tmp_path_factory.mktemp("homework"), seed)
        return made[seed]

    return of


@pytest.mark.parametrize("path", [PORT, SECOND], ids=lambda p: p.stem)
def test_the_ports_are_nobody_s_relatives(path):
    """Standard library only: nothing of bitnet_ref, no NumPy."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", [PORT, SECOND], ids=lambda p: p.stem)
def test_the_python_ports_conform(path, kind, seed, tmp_path):
    export(tmp_path, seed=seed, **KINDS[kind])
    found = bench.judged(bench.load_port(path), tmp_path, ())
    assert found.conforms
    assert found.causes == []
    assert found.count("ok") == len(found.verdicts)        # every tensor of the list, and every one right


def test_the_python_port_as_a_program(tmp_path, capsys):
    export(tmp_path)
    subprocess.run([sys.executable, str(PORT), str(tmp_path)], check=True)
    assert main([str(tmp_path), "--all"]) == 0
    assert "conforms" in capsys.readouterr().out


def first(t):
    return t.ranked[:1] == t.planted


@pytest.mark.parametrize("name", NAMES)
def test_each_planted_fault_is_found(port, folders, name):
    t = bench.trial(port, folders(0)["i2s" if name == bench.IN_I2S else "hf"], (name,))
    assert t.worst >= 100
    assert name in t.ranked[:3]
    assert t.seconds < 10


@pytest.mark.slow
@pytest.mark.parametrize("path", [pytest.param(PORT, marks=pytest.mark.nightly), SECOND],
                         ids=lambda p: p.stem)
def test_three_seeds_and_fifty_pairs(path, folders):
    """The floors of the project: 95 % first, all among three; both of a pair in 80 %."""
    port = bench.load_port(path)
    single = [t for seed in range(3) for t in bench.singles(port, folders(seed))]
    assert np.mean([first(t) for t in single]) >= 0.95
    assert all(t.planted[0] in t.ranked[:3] for t in single)
    paired = list(bench.pairs(port, folders(0)["hf"], 50, seed=0))
    assert np.mean([set(t.planted) <= t.found for t in paired]) >= 0.8


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) on the path")
@pytest.mark.parametrize("seed", range(3))
def test_the_c_port_conforms(seed, tmp_path, capsys):
    program = tmp_path / "mini_port"
    flags = ["-O2", "-std=c99", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", str(program), str(C_PORT), "-lm"], check=True)
    export(tmp_path / "homework", "raw", seed=seed)
    subprocess.run([str(program), str(tmp_path / "homework")], check=True)
    assert main([str(tmp_path / "homework"), "--all"]) == 0
    assert "conforms" in capsys.readouterr().out
