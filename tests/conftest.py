"""Fixtures of the whole suite: the backends under test, and the one table of tolerances.

A tolerance is never scaled by size and never loosened without a line here that says why. Integers have none:
they agree.
"""

import os
import signal
import sys

import numpy as np
import pytest
from hypothesis import settings

from bitnet_ref.kernels import BACKENDS, load

# Largest accepted error, relative to the value itself (inner products) or to max|reference| (arrays).
TOLERANCE = {
    "op_derivative": 1e-12,      # float64, one op: backward against the complex step
    "model_derivative": 1e-11,   # float64, all of the full-precision twin: some twenty ops in a row
    "ste": 1e-11,                # float64, all of the ternary model, residuals frozen (the promise is 1e-8)
    "float64": 1e-12,            # two orders of summation of the same numbers
    "float32": 2e-6,             # an op, two orders of summation
    "float32_model": 1e-5,       # gradients of a whole model
    # ten training steps in float32 beside float64: no code of them is near a tie (starts moved by 1e-7 agree
    # to 3e-6), so it is below the 5e-5 by which a single code that flips moves a loss
    "float32_train10": 1e-5,
}

# The same examples on every run: a red test is red for everyone. .ci/run asks for more of them.
EXAMPLES = int(os.environ.get("BITNET_REF_EXAMPLES", "15"))
settings.register_profile("repeatable", max_examples=EXAMPLES, deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Ctrl-C works here and in child processes, also where the suite itself runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _all_threads():
    """What a test says of threads ends with it: workers take tests in any order."""
    yield
    threads = sys.modules.get("bitnet_ref.kernels.numba_cpu.threads")
    if threads is not None and threads._most:
        threads.use(threads.numba.config.NUMBA_NUM_THREADS)


@pytest.fixture(scope="session")
def tol():
    return TOLERANCE


@pytest.fixture(scope="session", params=[name for name in BACKENDS if name != "cuda"])
def backends(request):
    """The ops of every backend in turn; the twin sections compare them with `layers`.

    CUDA has whole models only: tests/kernels/numba_cuda.
    """
    return load(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(20240227)
