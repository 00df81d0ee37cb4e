"""The device of these tests: the interpreter, by its name, whatever the environment says."""

import pytest


@pytest.fixture(scope="session")
def device():
    """A Device over the interpreter. Skips where numba-cuda, which compiles kernels, is not installed."""
    try:
        import numba_cuda  # noqa: F401
        from numba import cuda  # noqa: F401
    except Exception as e:
        pytest.skip(f"CUDA kernels need numba-cuda: {e}")
    from bitnet_ref.kernels.numba_cuda.memory import Device
    from bitnet_ref.kernels.ptx.driver import Driver
    return Device(Driver())


@pytest.fixture(scope="session")
def ops(device):
    """The backend's namespace over the interpreter."""
    from bitnet_ref.kernels import load
    from bitnet_ref.kernels.numba_cuda.driver import ENV
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV, "interpreter")
        return load("cuda")
