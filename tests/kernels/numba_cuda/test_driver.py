"""What is missing or too small for CUDA: an error in three parts with what was found."""

import enum
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from strategies import small_config, small_params

from bitnet_ref import kernels
from bitnet_ref.bench import golden
from bitnet_ref.model import Transformer

pytest.importorskip("numba_cuda", reason="CUDA kernels need numba-cuda")
from bitnet_ref.kernels.numba_cuda import driver
from bitnet_ref.kernels.numba_cuda.embedding import EMBEDDING
from bitnet_ref.kernels.numba_cuda.launch import target
from bitnet_ref.kernels.numba_cuda.memory import Device
from bitnet_ref.kernels.numba_cuda.program import build, cache_size, size
from bitnet_ref.kernels.ptx.driver import Driver


class Status(enum.IntEnum):
    """Some of CUresult."""

    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
    CUDA_ERROR_LAUNCH_FAILED = 719


def failing(name, status):
    """A driver one of whose functions returns that status, or raises that error."""
    def fails(self, *args):
        if isinstance(status, Exception):
            raise status
        return status, None
    return type("Failing", (Driver,), {name: fails})()


def gather(device):
    device.launch(EMBEDDING["f32"], (1,), device.zeros((1,), "i4"), device.zeros((4,), "f4"),
                  device.zeros((4,), "f4"), 4, 4)


def test_without_numba_cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba_cuda", None)
    with tiny.refusal("needs numba-cuda", "ModuleNotFoundError", ".[cuda]"):
        driver.require_compiler()


def test_without_cuda_bindings(monkeypatch):
    monkeypatch.delenv(driver.ENV, raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with tiny.refusal("needs NVIDIA's Python package cuda-bindings", ".[cuda]"):
        driver.load()


def test_a_wrong_wish(monkeypatch):
    monkeypatch.setenv(driver.ENV, "emulator")
    with tiny.refusal("BITNET_REF_CUDA must be card or interpreter", "emulator", "unset it"):
        driver.load()


@pytest.mark.parametrize("error", [RuntimeError, OSError, ImportError])
def test_without_a_driver(error):
    with tiny.refusal("needs NVIDIA's driver", "no libcuda.so", "install the driver"):
        Device(failing("cuInit", error("no libcuda.so")))


@pytest.mark.parametrize("made", [Driver(devices=0), failing("cuInit", Status.CUDA_ERROR_NO_DEVICE)])
def test_without_a_card(made):
    with tiny.refusal("--backend numba"):
        Device(made)


def test_an_old_card():
    with tiny.refusal("compute capability 8.0 or newer", "7.5", "--backend numba"):
        Device(Driver(capability=(7, 5)))


def test_a_kernel_for_another_architecture():
    hopper = EMBEDDING["f32"]._replace(needs="90a")
    with tiny.refusal("needs compute capability 9.0", "10.0", "another card"):
        target(hopper, (10, 0))
    with tiny.refusal("needs compute capability 9.0 or newer", "8.6", "another card"):
        target(hopper._replace(needs="90"), (8, 6))


@pytest.mark.parametrize(("status", "words"), [
    (Status.CUDA_ERROR_NO_BINARY_FOR_GPU, "architecture must match"),
    (Status.CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "driver of version 580 or newer")])
def test_ptx_that_the_driver_does_not_take(status, words):
    with tiny.refusal("cuModuleLoadData", status.name, words):
        gather(Device(failing("cuModuleLoadData", status)))


def test_an_error_of_a_launch():
    with tiny.refusal("cuLaunchKernel", "CUDA_ERROR_LAUNCH_FAILED", "see NVIDIA's documentation"):
        gather(Device(failing("cuLaunchKernel", Status.CUDA_ERROR_LAUNCH_FAILED)))


def test_out_of_memory():
    device = Device(Driver(total=1 << 20))
    with tiny.refusal("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY", "smaller model, batch or context"):
        device.empty((1 << 20,), np.float32)


def test_a_model_that_the_card_cannot_hold_is_refused_before_anything_is_sent(ops):
    cfg = small_config(vocab_size=4000, n_kv_heads=4, d_ff=32)       # whole tiles, stacked or not
    model = Transformer(cfg, small_params(cfg, 0, np.float32), ops)
    weights = sum(size(matrix) for name, matrix in model.ready.items() if name != "head")
    least = weights + cache_size(cfg, 3, 12, False)
    device = Device(Driver(total=least - 1))
    with tiny.refusal("GB of weights and", "GB of cache for 3 texts of 12 positions", "GB free of"):
        build(device, model.plan, model.ready, 3, 12)
    assert device.free()[0] == least - 1
    program = build(Device(Driver(total=2 * least)), model.plan, model.ready, 3, 12)
    assert program.n_bytes == weights
    assert program.device.free()[0] == 2 * least - weights - program.none.nbytes


def test_a_cache_that_the_card_cannot_hold_is_refused_before_it_is_made(ops, monkeypatch):
    cfg = small_config(context=4096)
    model = Transformer(cfg, small_params(cfg, 0, np.float32), ops)
    _, state = model.prefill(np.array([[1, 2]]))
    device, room = state.texts.program.device, state.texts.room
    monkeypatch.setattr(device, "free", lambda: (1000, 2000))
    with tiny.refusal("0 GB of weights and", "GB of cache for 1 texts of 512 positions"):
        state.texts.grow(room + 1)
    assert state.texts.room == room


@pytest.mark.parametrize("command", ["generate", pytest.param("chat", marks=pytest.mark.slow),
                                     pytest.param("evaluate", marks=pytest.mark.slow), "train"])
def test_each_command_says_it_in_one_line(command, tmp_path):
    model, corpus = ["--model", golden.folder() / "tiny.bitnet"], ["--corpus", tiny.ROOT / "README.md"]
    given = {"train": ["--preset", "tiny", *corpus], "evaluate": [*model, *corpus]}.get(command, model)
    env = {k: v for k, v in {**tiny.environment(), "CUDA_VISIBLE_DEVICES": "-1"}.items() if k != driver.ENV}
    typed = [sys.executable, "-m", f"bitnet_ref.{command}", "--backend", "cuda", *map(str, given)]
    done = subprocess.run(typed, env=env, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=100,
                          stdin=subprocess.DEVNULL, check=False)
    tiny.assert_refused(done, "NVIDIA", "--backend numba")
    assert done.stdout == ""
    assert os.listdir(tmp_path) == []


def test_nothing_of_cuda_is_imported_before_it_is_asked_for():
    code = ("import sys, bitnet_ref; from bitnet_ref import kernels; kernels.load('numpy'); "
            "print(*[m for m in sys.modules if m.startswith(('cuda', 'numba', 'llvmlite'))])")
    typed = [sys.executable, "-c", code]
    done = subprocess.run(typed, env=tiny.environment(), stdout=subprocess.PIPE, check=True)
    assert done.stdout.strip() == b""


def test_what_it_computes_with(ops, monkeypatch):
    monkeypatch.setenv(driver.ENV, "interpreter")
    about = kernels.about("cuda")
    assert about["backend"] == "cuda"
    assert about["device"] == "PTX interpreter (no GPU)"
    assert about["interpreter"] is True
    assert about["compute capability"] == "9.0"
    with tiny.refusal("threads must be at least 1"):
        kernels.load("cuda", 0)
