"""kernels/numba_cuda/vectors: the ops on whole vectors, on the device as in NumPy."""

import numpy as np
import pytest

from bitnet_ref import layers

pytest.importorskip("numba_cuda")

F32 = np.float32


def both(ops, x):
    """x on the device, and a copy here."""
    there = ops.zeros(x.size)
    ops.store_(there, x)
    return there, x.copy()


@pytest.mark.parametrize("n", [1, 255, 5001])
def test_as_layers(ops, n, rng):
    (x, x_here), (y, y_here) = (both(ops, rng.standard_normal(n).astype(F32)) for _ in range(2))
    assert ops.square_sum(x) == pytest.approx(layers.square_sum(x_here), rel=1e-12)
    assert ops.total(x) == pytest.approx(x_here.sum(dtype=np.float64), abs=1e-9)
    for op, *others in (("scale_", 0.3), ("add_", y), ("approach_", y, 0.25), ("store_", 2.5),
                        ("store_", 0.0)):
        getattr(ops, op)(x, *others)
        getattr(layers, op)(x_here, *(y_here if o is y else o for o in others))
        np.testing.assert_allclose(ops.fetch(x), x_here, rtol=1e-6, atol=1e-7, err_msg=op)


def test_adamw(ops, tol, rng):
    """Three updates of a part of a vector; the rest of it stays."""
    n = 700
    pairs = [both(ops, rng.standard_normal(n).astype(F32)) for _ in range(3)]
    pairs.append(both(ops, rng.random(n, F32)))
    before = pairs[0][1].copy()
    for step in (1, 2, 3):
        ops.adamw_(*(ops.part(x, 5, (600,)) for x, _ in pairs), step, 1e-2, 0.1)
        layers.adamw_(*(x[5:605] for _, x in pairs), step, 1e-2, 0.1)
    for x, want in pairs:
        np.testing.assert_allclose(ops.fetch(x), want, rtol=5e-6, atol=1e-6)
    np.testing.assert_array_equal(ops.fetch(pairs[0][0])[605:], before[605:])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_the_sums(ops, bad):
    x = np.zeros(3000, F32)
    x[2999] = bad
    there, _ = both(ops, x)
    assert not np.isfinite(ops.total(there))
    assert not np.isfinite(ops.square_sum(there))


def test_sums_beyond_float32_are_not_infinite(ops):
    there, _ = both(ops, np.full(10, 1e30, F32))
    assert ops.square_sum(there) == pytest.approx(1e61)


def test_what_lies_on_the_device_takes_part_in_no_expression_here(ops):
    """There is one copy of a vector, and no way to it but fetch and store_."""
    x = ops.zeros(3)
    for expression in (lambda: x + np.ones(3), lambda: np.ones(3) * x, lambda: np.sum(x), lambda: x * 0.5,
                       lambda: np.isfinite(x), lambda: np.asarray(x), lambda: np.add(x, x)):
        with pytest.raises((TypeError, ValueError)):
            expression()
    copy = ops.fetch(x)
    copy[:] = 1
    assert not ops.fetch(x).any()


def test_arrays_of_numpy_are_left_to_the_reference(ops):
    x = ops.zeros(4, np.float64)
    assert type(x) is np.ndarray
    assert ops.fetch(x) is x
    ops.store_(ops.part(x, 1, (2,)), np.array([1.0, 2.0]))
    ops.scale_(x, 2.0)
    ops.add_(x, x)
    assert x.tolist() == [0, 4, 8, 0]
    assert ops.square_sum(x) == 80
    w_q, w_scale = ops.absmean_ternary(x.reshape(2, 2))
    assert type(w_q) is np.ndarray
    assert w_scale == 3
