"""bench/cuda: the rehearsal reaches its end, rows are on the disk at once, no stage takes others along."""

import json
import sys
from pathlib import Path

import pytest

from bitnet_ref.bench import cuda, cuda_report, cuda_stages, torch_products
from bitnet_ref.checks import CheckError
from bitnet_ref.cli import run_command
from bitnet_ref.kernels import BACKENDS

ROOT = Path(__file__).resolve().parent.parent.parent
needs_numba_cuda = pytest.mark.skipif("not __import__('importlib').util.find_spec('numba_cuda')",
                                      reason="CUDA kernels need the extra `cuda`")
RECORD = {"about": {"date": "2031-02-03", "card": "a card", "compute capability": "9.0", "numba-cuda": "1",
                    "nvidia-smi": {}, "torch": "none"},
          "rehearsed": False, "quick": False, "failed": {}, "rows": [
    {"kernel": "gemv_i2", "said": ""}, {"what": "copy", "rate": 4e12},
    {"what": "product", "kind": "i2", "N": 8192, "K": 28672, "M": 1, "bytes": 58720256, "seconds": 16e-6},
    {"what": "product", "kind": "i2", "N": 8192, "K": 28672, "M": 8, "bytes": 58720256, "seconds": 20e-6},
    {"what": "torch", "kind": "bf16", "N": 8192, "K": 28672, "M": 1, "seconds": 128e-6},
    {"what": "decode", "model": "2b4t", "seconds": 1 / 2500}]}


@pytest.fixture
def interpreter(monkeypatch):
    """BITNET_REF_CUDA=interpreter, with a device of its own."""
    pytest.importorskip("numba_cuda", reason="CUDA kernels need the extra `cuda`")
    from bitnet_ref.kernels.numba_cuda import driver, memory
    monkeypatch.setenv(driver.ENV, "interpreter")
    made = memory.Device(driver.load())
    monkeypatch.setattr(memory, "device", lambda: made)
    return made


@needs_numba_cuda
@pytest.mark.slow
def test_the_rehearsal(interpreter, capsys, tmp_path):
    place = tmp_path / "found.json"
    exit_code = run_command(cuda.main, ["--quick", "--json", str(place)])
    said, record = capsys.readouterr().out, json.loads(place.read_text())
    missing = set() if "cuda" in BACKENDS else {"decode"}
    assert set(record["failed"]) == missing, record["failed"]
    assert exit_code == bool(missing)
    assert "A rehearsal on the interpreter: what is right is right, but times mean nothing." in said
    assert "us |" not in said
    assert [r for r in record["rows"] if r.get("said")] == []
    stages = [r["stage"] for r in record["rows"]]
    assert stages == sorted(stages, key=list(cuda_stages.STAGES).index)
    assert set(stages) == set(cuda_stages.STAGES) - missing
    assert cuda_report.wrong_kernels(record) == []


@needs_numba_cuda
@pytest.mark.parametrize(("arguments", "said"), [
    ([], "is for --quick alone"), (["--quick", "--root", "."], "the docs need true figures"),
    (["--quick", "--stage", "nothing"], "stage must be one of right"),
    (["--root", "nowhere"], "must be a clone")])
def test_bad_arguments(arguments, said, capsys, interpreter):
    assert run_command(cuda.main, arguments) == 2
    assert said in capsys.readouterr().err


@needs_numba_cuda
def test_a_stage_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setenv("BITNET_REF_CUDA", "interpreter")
    rows = list(cuda.in_processes("copies", quick=True))
    assert [r["what"] for r in rows] == ["copy"]


def fake_process(monkeypatch, program, seconds=20.0):
    """The stage "right" as a text of Python, which finds the kernels that had their turn in `done`."""
    path = ("import json, os, sys, time\n"
            "done = sys.argv[sys.argv.index('--done') + 1:] if '--done' in sys.argv else []")
    popen = cuda.subprocess.Popen
    monkeypatch.setattr(cuda.subprocess, "Popen", lambda command, **how: popen(
        [sys.executable, "-c", f"{path}\n{program}", *command[1:]], **how))
    monkeypatch.setitem(cuda_stages.STAGES, "right", (cuda_stages.right, seconds))


DIES = """
for name in ("a", "b", "c"):
    if name not in done:
        print(json.dumps({"kernel": name, "said": "began, and did not end"}), flush=True)
        if name == "b": os._exit(7)
        print(json.dumps({"kernel": name, "said": ""}), flush=True)
"""


def test_a_kernel_that_kills_its_process_costs_its_own_turn(monkeypatch, tmp_path):
    fake_process(monkeypatch, DIES)
    record = {"rows": [], "failed": {}}
    cuda.gather(record, "right", cuda.in_processes("right", False), str(tmp_path / "r.json"))
    said = {r["kernel"]: r["said"] for r in record["rows"]}
    assert said == {"a": "", "b": "began, and did not end", "c": ""}
    assert record["failed"] == {}
    assert json.loads((tmp_path / "r.json").read_text()) == record


def test_a_stage_that_does_not_end_keeps_what_it_found(monkeypatch, tmp_path):
    fake_process(monkeypatch, "print(json.dumps({'what': 'x'}), flush=True)\ntime.sleep(60)", seconds=1.0)
    record = {"rows": [], "failed": {}}
    cuda.gather(record, "right", cuda.in_processes("right", False), str(tmp_path / "r.json"))
    assert record["rows"] == [{"stage": "right", "what": "x"}]
    assert "stage right must end within 1 seconds" in record["failed"]["right"]


def test_a_stage_that_fails_says_its_last_word(monkeypatch):
    fake_process(monkeypatch, "sys.exit('no card at all')")
    with pytest.raises(CheckError, match="stage right must succeed; got no card at all; run it alone"):
        list(cuda.in_processes("right", False))


def test_a_wrong_product_is_not_timed(interpreter, monkeypatch):
    monkeypatch.setattr(cuda_stages, "sums", lambda w_q, x_q: 1 + (x_q.astype(int) @ w_q.T.astype(int)))
    rows = list(cuda_stages.products(interpreter, cuda_stages.QUICK, 16, 128, 1, ("i2",)))
    assert rows[0]["said"] == "16 of 16 sums are wrong"
    assert not any("seconds" in r and r["what"] == "product" for r in rows)


def test_aims():
    said = cuda_report.text(RECORD)
    assert "1 of 1 kernels agree with NumPy." in said
    assert "| batch 1, 8192 x 28672: packed bytes/s, of copy bandwidth | 90% | 92% | met |" in said
    assert "| batch 1, 8192 x 28672: against torch bf16 | 7.50x | 8.00x | met |" in said
    assert "| batch 8 against batch 1, 8192 x 28672: time | at most 1.10x | 1.25x | missed |" in said
    assert "| 2B4T decode, batch 1, random weights | 2,000 tok/s | 2,500 tok/s | met |" in said
    assert "| batch 4096, 8192 x 8192: of torch._int_mm | 0.90x | not run | |" in said
    assert "| product i2, N = 8192, K = 28672, M = 1 | 16.0 us | 3670 GB/s | 92% |" in said


def test_a_wrong_kernel_is_told():
    bad = {**RECORD, "rows": [{"kernel": "naive", "said": "y: 3 of 9 numbers differ"}]}
    assert "WRONG: naive: y: 3 of 9 numbers differ." in cuda_report.text(bad)
    assert "0 of 1 kernels agree" in cuda_report.text(bad)


def test_a_record_is_kept_under_its_date(tmp_path):
    page = cuda_report.page(tmp_path)
    page.parent.mkdir(parents=True)
    page.write_text("<!-- generated: python -m bitnet_ref.bench cuda -->\n<!-- end -->\n")
    assert cuda_report.kept(tmp_path) == cuda_report.NOT_RUN
    cuda_report.keep(tmp_path, RECORD)
    assert cuda_report.kept(tmp_path) == RECORD
    assert "8.00x | met" in page.read_text()


def test_the_page_says_what_the_newest_record_says():
    """Nothing but a record can put a figure there."""
    said = cuda_report.text(cuda_report.kept(ROOT))
    assert said in cuda_report.page(ROOT).read_text(encoding="utf-8")


@pytest.mark.oracle
def test_torch_beside_it():
    pytest.importorskip("torch")
    assert set(torch_products.seconds(64, 128, 1, False, 1)) == {"bf16"}
    assert set(torch_products.seconds(64, 128, 64, False, 1)) == {"bf16", "int8"}
