"""The interpreter as a driver: NVIDIA's statuses, and the three-part errors the backend makes of them."""

import numpy as np
import pytest
from small_ptx import kernel

from bitnet_ref.checks import CheckError
from bitnet_ref.kernels.ptx.driver import Driver, Status
from bitnet_ref.kernels.ptx.faults import PtxError

TEXT = kernel("""add.s64 %d0, %a0, %at0;
ld.global.u32 %r0, [%d0];
add.u32 %r0, %r0, 1;
st.global.u32 [%d0], %r0;
""")


def loaded(driver, text=TEXT):
    return driver.cuModuleGetFunction(driver.cuModuleLoadData(text.encode() + b"\0")[1], b"small")[1]


def launch(driver, function, address, threads=8, grid=(1, 1, 1), shared=0):
    """A launch with one pointer."""
    value = np.array([address], np.uint64)
    pointers = np.array([value.ctypes.data], np.uint64)
    return driver.cuLaunchKernel(function, *grid, threads, 1, 1, shared, None, pointers.ctypes.data, 0)


def ints(driver, values):
    values = np.array(values, np.uint32)
    address = driver.cuMemAlloc(values.nbytes)[1]
    assert driver.cuMemcpyHtoDAsync(address, values.ctypes.data, values.nbytes, None) == (0,)
    return address


def read(driver, address, n):
    out = np.zeros(n, np.uint32)
    assert driver.cuMemcpyDtoHAsync(out.ctypes.data, address, out.nbytes, None) == (0,)
    return out.tolist()


def test_launches_now_and_in_graphs():
    driver = Driver()
    address, function = ints(driver, range(8)), loaded(driver)
    assert launch(driver, function, address) == (Status.CUDA_SUCCESS,)
    assert read(driver, address, 8) == list(range(1, 9))
    driver.cuStreamBeginCapture(None, 1)
    launch(driver, function, address)
    graph = driver.cuGraphInstantiate(driver.cuStreamEndCapture(None)[1], 0)[1]
    assert read(driver, address, 8) == list(range(1, 9))   # recorded, not run
    for _ in range(3):
        driver.cuGraphLaunch(graph, None)
    assert read(driver, address, 8) == list(range(4, 12))


def test_memory_ends():
    driver = Driver(total=1 << 20)
    free, total = driver.cuMemGetInfo()[1:]
    assert free == total == 1 << 20
    assert driver.cuMemAlloc((1 << 20) + 1) == (Status.CUDA_ERROR_OUT_OF_MEMORY, None)
    address = driver.cuMemAlloc(1 << 19)[1]
    assert driver.cuMemAlloc(1 << 20)[0] == Status.CUDA_ERROR_OUT_OF_MEMORY
    driver.cuMemFree(address)
    assert driver.cuMemAlloc(1 << 20)[0] == Status.CUDA_SUCCESS


def test_the_backend_says_what_a_status_means():
    pytest.importorskip("numba_cuda", reason="the backend needs numba-cuda")
    from bitnet_ref.kernels.numba_cuda.driver import call
    with pytest.raises(CheckError, match="cuMemAlloc; got CUDA_ERROR_OUT_OF_MEMORY; use a smaller model"):
        call(Driver(total=1 << 20), "cuMemAlloc", (1 << 20) + 1)


@pytest.mark.parametrize(("capability", "target", "fits"),
                         [((9, 0), "80", True), ((8, 0), "90", False), ((9, 0), "90a", True),
                                                    ((10, 0), "90a", False), ((10, 0), "90", True)])
def test_a_kernel_for_another_architecture_is_refused(capability, target, fits):
    status = Driver(capability).cuModuleLoadData(TEXT.replace("sm_90", f"sm_{target}").encode())[0]
    assert status == (Status.CUDA_SUCCESS if fits else Status.CUDA_ERROR_NO_BINARY_FOR_GPU)


def test_no_device_no_function_no_ptx():
    assert Driver(devices=0).cuDeviceGetCount() == (0, 0)
    assert Driver(devices=0).cuDeviceGet(0)[0] == Status.CUDA_ERROR_NO_DEVICE
    driver = Driver()
    module = driver.cuModuleLoadData(TEXT.encode())[1]
    assert driver.cuModuleGetFunction(module, b"large")[0] == Status.CUDA_ERROR_NOT_FOUND
    for text in ("", "hello", TEXT.replace(".entry", ".func"), TEXT[:-5], TEXT.replace("add.u32", "?!")):
        assert driver.cuModuleLoadData(text.encode())[0] == Status.CUDA_ERROR_INVALID_PTX, text[:30]
    assert driver.cuFuncSetAttribute(module, 8, 300_000)[0] == Status.CUDA_ERROR_INVALID_VALUE


def test_too_many_threads_and_copies_out_of_bounds():
    driver = Driver()
    with pytest.raises(PtxError, match="1 to 1024 threads a block; got 2000; launch it"):
        launch(driver, loaded(driver), ints(driver, range(8)), 2000)
    address = driver.cuMemAlloc(16)[1]
    out = np.zeros(64, np.uint8)
    with pytest.raises(PtxError, match="lie in one array of the device; got 64 bytes"):
        driver.cuMemcpyDtoHAsync(out.ctypes.data, address, 64, None)
    with pytest.raises(PtxError, match="lie in one array"):
        driver.cuMemcpyDtoHAsync(out.ctypes.data, 4096, 8, None)


def test_a_launch_that_a_card_would_not_take():
    driver = Driver()
    function, address = loaded(driver), ints(driver, range(8))
    for grid in ((0, 1, 1), (1, 65536, 1), (1, 1, 65536), (1 << 31, 1, 1)):
        assert launch(driver, function, address, grid=grid) == (Status.CUDA_ERROR_INVALID_VALUE,), grid
    assert launch(driver, function, address, shared=49153) == (Status.CUDA_ERROR_INVALID_VALUE,)
    assert driver.cuFuncSetAttribute(function, 8, 49153) == (Status.CUDA_SUCCESS,)
    assert launch(driver, function, address, shared=49153) == (Status.CUDA_SUCCESS,)
    assert read(driver, address, 8) == list(range(1, 9))   # by the last alone


def test_a_copy_that_cannot_be_recorded_is_refused():
    driver = Driver()
    address = ints(driver, range(8))
    driver.cuStreamBeginCapture(None, 1)
    out = np.zeros(8, np.uint32)
    refused = (Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
    assert driver.cuMemcpyDtoHAsync(out.ctypes.data, address, 32, None) == refused
    assert driver.cuStreamSynchronize(None) == refused


def test_what_was_never_written_stays_so_through_copies():
    driver = Driver()
    a, b = driver.cuMemAlloc(32)[1], driver.cuMemAlloc(32)[1]
    driver.cuMemcpyDtoDAsync(b, a, 32, None)
    with pytest.raises(PtxError, match="never written"):
        launch(driver, loaded(driver), b)
    driver.cuMemsetD8Async(a, 0, 32, None)
    driver.cuMemcpyDtoDAsync(b, a, 32, None)
    launch(driver, loaded(driver), b)
    assert read(driver, b, 8) == [1] * 8
