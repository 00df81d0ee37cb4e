"""Derivatives exact to rounding: the complex step, and inner products with one random direction.

f(x + ihv) = f(x) + ih f'(x)v + O(h^2): with h = 1e-30 the imaginary part is the derivative and nothing is subtracted.
"""

import numpy as np

H = 1e-30


def complex_step(f, x, v, h=H):
    """Directional derivative of f at x along v."""
    return np.imag(f(x + 1j * h * v)) / h


def relative_error(got, want):
    return abs(got - want) / max(abs(want), np.finfo(float).tiny)


def backward_error(f, dx, dy, x, rng):
    """How far <dx, v> is from <dy, f'(x) v>, relative, for one random direction v."""
    v = rng.normal(size=x.shape)
    return relative_error(np.vdot(dx, v), np.vdot(dy, complex_step(f, x, v)))
