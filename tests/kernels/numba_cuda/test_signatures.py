"""What the driver's functions are called with: their types, their handles, the context of the thread.

NVIDIA's Python package converts arguments before it looks for the driver. So each call goes to the real
function first, which must take the arguments and then miss the driver; the interpreter does the work, and
what it returns is wrapped in the package's own types.
"""

import gc
import sys
import threading

import numpy as np
import pytest
from strategies import NORMS, small_batch, small_config, small_params

from bitnet_ref.kernels.ptx.driver import Driver
from bitnet_ref.model import Params, Transformer

pytest.importorskip("numba_cuda", reason="CUDA kernels need numba-cuda")
pytest.importorskip("cuda.bindings.driver", reason="needs NVIDIA's package cuda-bindings")
from cuda.bindings import driver as real

from bitnet_ref.kernels.numba_cuda import bitlinear, memory
from bitnet_ref.kernels.numba_cuda.decode_step import greedy
from bitnet_ref.kernels.numba_cuda.driver import call
from bitnet_ref.kernels.numba_cuda.memory import Device

try:
    real.cuDriverGetVersion()
    pytest.skip("there is a driver: it would be called with handles that are not its own",
                allow_module_level=True)
except RuntimeError as e:
    MISSING = type(e)

GIVEN = {"cuDeviceGet": "CUdevice", "cuDevicePrimaryCtxRetain": "CUcontext", "cuStreamCreate": "CUstream",
         "cuMemAlloc": "CUdeviceptr", "cuModuleLoadData": "CUmodule", "cuModuleGetFunction": "CUfunction",
         "cuStreamEndCapture": "CUgraph", "cuGraphInstantiate": "CUgraphExec", "cuEventCreate": "CUevent"}
NUMBERS = ("CUdevice", "CUdeviceptr")
WITHOUT_CONTEXT = ("cuInit", "cuDevice", "cuDriverGetVersion", "cuCtxSetCurrent")


class Typed:
    """The interpreter behind the signatures of NVIDIA's package. `called`: the names of functions."""

    def __init__(self):
        self.inner, self.things, self.called, self.mine = Driver(), [], set(), threading.local()

    def __getattr__(self, name):
        if name.startswith("CU"):
            return getattr(real, name)

        def function(*args):
            self.called.add(name)
            with pytest.raises(MISSING):
                getattr(real, name)(*args)
            if name == "cuCtxSetCurrent":
                self.mine.context = True
            if not name.startswith(WITHOUT_CONTEXT) and not hasattr(self.mine, "context"):
                return (real.CUresult.CUDA_ERROR_INVALID_CONTEXT,)
            status, *found = getattr(self.inner, name)(*map(self.inside, args))
            return real.CUresult(int(status)), *(self.outside(name, thing) for thing in found)
        return function

    def outside(self, name, thing):
        if name not in GIVEN or thing is None:
            return thing
        kind = getattr(real, GIVEN[name])
        if GIVEN[name] in NUMBERS:
            return kind(int(thing))
        self.things.append(thing)
        return kind(len(self.things))

    def inside(self, thing):
        kind = type(thing).__name__
        if kind in NUMBERS or not kind.startswith("CU"):
            return int(thing) if kind in NUMBERS else thing
        return self.things[int(thing) - 1] if kind in GIVEN.values() else int(thing)


@pytest.fixture
def typed(ops, monkeypatch):
    """A device over it, which the backend takes for that of the process."""
    made = Device(Typed())
    usual = memory.device
    for name, module in list(sys.modules.items()):
        if name.startswith("bitnet_ref.kernels.numba_cuda.") and getattr(module, "device", None) is usual:
            monkeypatch.setattr(module, "device", lambda: made)
    return made


def model_of(ops, **given):
    cfg = small_config(**{"n_layers": 1, **given})
    return Transformer(cfg, small_params(cfg, 0, np.float32), ops)


def test_a_prompt_and_tokens(ops, typed):
    model = model_of(ops, **NORMS["sub"], context=600)
    ids, _ = small_batch(model.cfg, B=2, T=11)
    want = model(ids)[0]
    logits, state = model.prefill(ids[:, :8])
    for t in (8, 9, 10):                                   # launch by launch, then graphs
        logits, state = model.decode_step(ids[:, t], state)
    np.testing.assert_array_equal(logits, want[:, 10])
    state.texts.grow(state.texts.room + 1)
    found, _ = greedy(model.plan, model.ready, logits.argmax(-1), state, 3)
    assert found.shape == (2, 3)
    assert typed.seconds(lambda: None) >= 0
    assert {"cuLaunchKernel", "cuGraphLaunch", "cuEventElapsedTime", "cuMemcpyDtoHAsync"} \
        <= typed.driver.called


def test_memory_beyond_what_a_kernel_has_unasked(typed):
    w = bitlinear.pack(typed, [(np.ones((16, 128), np.int8), 1.0)])
    x_q, ones = typed.upload(np.ones((65, 128), np.int8)), typed.upload(np.ones(65, np.float32))
    y = typed.empty((65, 16), np.float32)
    scratch = typed.empty((bitlinear.scratch_size(65, 128),), np.int8)
    bitlinear.product(typed, x_q, ones, typed.upload(np.full(65, 128, np.int32)), w, y, 65, scratch=scratch)
    np.testing.assert_array_equal(typed.read(y), np.full((65, 16), 128))
    assert "cuFuncSetAttribute" in typed.driver.called


def test_another_thread_generates_and_the_last_reference_goes_there(ops, typed):
    model = model_of(ops)
    ids, _ = small_batch(model.cfg, B=1, T=5)
    held, said = [model.prefill(ids)], []
    free = typed.free()[0]

    def work():
        logits, state = held.pop()
        for _ in range(3):
            logits, state = model.decode_step(logits.argmax(-1), state)
        said.append(logits)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(said) == 1
    model.ready.kept.clear()
    gc.collect()
    assert typed.free()[0] > free

    block = [typed.empty((1 << 20,), np.int8)]
    free = typed.free()[0]
    thread = threading.Thread(target=block.clear)          # a thread that never used the device
    thread.start()
    thread.join()
    assert typed.free()[0] == free + (1 << 20)


def test_training(ops, typed):
    model = model_of(ops)
    params = Params(model.params.specs, ops=ops)
    params.store(model.params)
    grads, moments = params.zeros_like(), (params.zeros_like(), params.zeros_like())
    resident = Transformer(model.cfg, params, ops)
    losses = []
    for step in (1, 2, 3):
        losses.append(resident.loss_and_grads([small_batch(model.cfg, B=2, T=7)], grads))
        ops.scale_(grads.flat, 1 / ops.square_sum(grads.flat) ** 0.5)
        ops.adamw_(params.flat, grads.flat, *(m.flat for m in moments), step, 1e-2, 0.1, 0.9, 0.95, 1e-8)
        resident.requantise()
    assert losses[2] < losses[0]


def test_a_status_has_its_name(typed):
    assert call(typed.driver, "cuDriverGetVersion") == 13000
    with pytest.raises(ValueError, match="cuMemAlloc; got CUDA_ERROR_OUT_OF_MEMORY; use a smaller model"):
        typed.empty((1 << 40,), np.int8)


def test_a_recording_that_fails_leaves_the_device_usable(typed):
    with pytest.raises(ZeroDivisionError), typed.recording():
        raise ZeroDivisionError
    assert typed.recorded is None
    assert typed.read(typed.zeros((3,), np.int8)).tolist() == [0, 0, 0]
