"""bench/gate: what ships passes, planted faults do not; and every kernel has an example that it meets."""

import numpy as np
import pytest

from bitnet_ref.bench import examples, gate
from bitnet_ref.checks import CheckError
from bitnet_ref.cli import run_command

pytest.importorskip("numba_cuda", reason="CUDA kernels need the extra `cuda`")
needs_ptxas = pytest.mark.skipif(gate.ptxas() is None,
                                 reason="registers need ptxas: pip install nvidia-cuda-nvcc")
ALL = {**examples.kernels(), **examples.kernels(examples.RUNGS)}
# The same code as another kernel's, for other types or wider heads; interpreted for some seconds each.
TAKE_LONG = {"attend_many_f16", "attend_few_f16", "attention_dq_128", "attention_dkv_128"}


@pytest.fixture(scope="module")
def device():
    """A device that is the interpreter."""
    from bitnet_ref.kernels.numba_cuda.memory import Device
    from bitnet_ref.kernels.ptx.driver import Driver
    return Device(Driver())


def faults(name, **change):
    import cuda_faults
    return [v.faults for v in gate.gate([getattr(cuda_faults, name)._replace(**change)])]


@pytest.mark.nightly                                       # .ci/run has the command itself
@pytest.mark.parametrize("name", ALL)
def test_every_kernel_keeps_its_promises(name):
    verdicts = gate.gate([ALL[name]])
    assert verdicts
    assert not [v for v in verdicts if v.faults]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in TAKE_LONG else name
                                  for name in ALL])
def test_every_kernel_has_an_example_that_it_meets(name, device):
    launch = examples.launch_of(name)
    assert examples.wrong(launch, examples.run(device, ALL[name], launch)) == ""


@pytest.mark.parametrize("name", ["naive", "gemv_i2", "gemm_hopper"])
def test_kernels_that_keep_their_promises(name):
    verdicts = gate.gate([ALL[name]])
    assert [v.arch for v in verdicts] == (["90a"] if name == "gemm_hopper" else ["80", "90"])
    assert not [v for v in verdicts if v.faults]


def test_examples_and_expected_instructions_are_of_kernels():
    assert set(ALL) >= TAKE_LONG
    assert set(examples.examples()) == set(ALL)
    assert set(gate.MUST) | gate.DOUBLES <= set(ALL)


def test_a_wrong_result_is_told():
    right = np.array([1.0, 2.0, 4.0], np.float32)
    launch = examples.Launch((1,), {}, {"y": right, "i": np.arange(3)})
    assert examples.wrong(launch, {"y": right * (1 + 1e-6), "i": np.arange(3)}) == ""
    off = {"y": np.array([1, np.nan, 4.1], np.float32), "i": np.array([0, 1, 3])}
    assert examples.wrong(launch, off) == "y: 2 of 3 numbers differ, i: 1 of 3 numbers differ"


@needs_ptxas
@pytest.mark.parametrize(("name", "said"), [
    ("spilling", "PTX has .local"), ("spilling", "bytes of stack or spills"),
    ("over_cap", "registers, at most 4"), ("in_double", "PTX has .f64"),
    ("too_much_shared", "65536 bytes of static shared memory"),
    ("does_not_compile", "does not compile")])
def test_planted_faults_are_noticed(name, said):
    for found in faults(name):
        assert any(said in each for each in found), found


def test_an_expected_instruction_that_is_missing(monkeypatch):
    assert faults("good") == [[], []]
    monkeypatch.setitem(gate.MUST, "good", ("dp4a.u32.s32",))
    assert faults("good") == [["PTX lacks dp4a.u32.s32"]] * 2


def test_machine_code_is_read_where_it_can_be(tmp_path):
    """A disassembler that says what it is told to."""
    tool = tmp_path / "cuobjdump"
    tool.write_text("#!/bin/sh\necho 'LDG.E R0; STL [R1], R0; IDP.4A.U8.S8 R2;'\n", encoding="ascii")
    tool.chmod(0o755)
    found = gate.machine_code(tmp_path, "dp4a.u32.s32 a; mma.sync.aligned.m16n8k32.x", str(tool))
    assert found == [r"SASS lacks IMMA\.16832", "SASS has STL"]


def test_without_an_assembler_registers_are_not_known(monkeypatch, capsys):
    monkeypatch.setattr(gate, "ptxas", lambda: None)
    assert run_command(gate.main, ["--kernel", "naive"]) == 0
    said = capsys.readouterr().out
    assert "| `naive` | 80 | not known | 64 | not known | good |" in said
    assert "ptxas: not found" in said


def test_the_command_fails_with_a_kernel(monkeypatch, capsys):
    monkeypatch.setitem(gate.MUST, "naive", ("mma.sync",))
    assert run_command(gate.main, ["--kernel", "naive"]) == 1
    assert "PTX lacks mma.sync" in capsys.readouterr().out
    assert run_command(gate.main, ["--kernel", "nothing"]) == 2


def test_without_numba_cuda_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "numba_cuda", None)
    examples.kernels.cache_clear()
    with pytest.raises(CheckError, match=r"CUDA kernels need numba-cuda .* pip install"):
        examples.kernels()
    examples.kernels.cache_clear()


def test_two_kernels_of_one_name(monkeypatch):
    import cuda_faults
    other = cuda_faults.good._replace(registers=1)
    monkeypatch.setattr(examples, "_modules", lambda place: [cuda_faults])
    monkeypatch.setattr(cuda_faults, "table", {"again": [other]}, raising=False)
    examples.kernels.cache_clear()
    with pytest.raises(CheckError, match="different names; got good"):
        examples.kernels()
    examples.kernels.cache_clear()
