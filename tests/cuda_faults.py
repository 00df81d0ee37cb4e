"""Kernels with planted faults, each for one promise of the gate."""

from numba import cuda, float32, float64, int32

from bitnet_ref.kernels.numba_cuda.launch import kernel


@kernel("f32* x, i32* at, f32* y", 32)
def spilling(x, at, y):
    """An array that a running index reaches cannot lie in registers."""
    own = cuda.local.array(64, float32)
    for i in range(64):
        own[at[i]] = x[i]
    y[cuda.threadIdx.x] = own[at[cuda.threadIdx.x]]


@kernel("f32* x, f32* y", 32, registers=4)
def over_cap(x, y):
    """No kernel does with four registers."""
    y[cuda.threadIdx.x] = x[cuda.threadIdx.x] + x[cuda.threadIdx.x + 32]


@kernel("f32* x, f32* y", 32)
def in_double(x, y):
    """A constant of Python widens the product."""
    y[cuda.threadIdx.x] = float32(float64(x[cuda.threadIdx.x]) * 0.1)


@kernel("f32* x, f32* y", 32, needs="90a")
def too_much_shared(x, y):
    """ptxas does not mind for sm_90a; a launch would."""
    kept = cuda.shared.array(16384, float32)
    kept[cuda.threadIdx.x] = x[cuda.threadIdx.x]
    cuda.syncthreads()
    y[cuda.threadIdx.x] = kept[31 - cuda.threadIdx.x]


@kernel("f32* x, f32* y", 32)
def does_not_compile(x, y):
    """A name that is not there."""
    y[0] = nothing_of_this_name(x)  # noqa: F821


@kernel("i32* x, i32* y", 32)
def good(x, y):
    """Keeps all promises, unless more is asked of it."""
    y[cuda.threadIdx.x] = int32(x[cuda.threadIdx.x] + 1)
