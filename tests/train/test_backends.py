"""train on either backend: the same loss curve, as near as rounding and the codes that it flips allow."""

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.train import loop


def curve(path, steps, noise=None, **given):
    """The loss of each step of a run; its initial weights are off by `noise`, relative, of that seed."""
    run, data = tiny.begin(path, steps=steps, **given)
    if noise is not None:
        flat = run.model.params.flat
        flat *= 1 + 1e-7 * np.random.default_rng(noise).standard_normal(flat.size).astype(np.float32)
        run.model.requantise()
    return np.array([loop.optimise(run, data).values["loss"] for _ in range(steps)])


@pytest.mark.parametrize("given", [{}, {"linear": "full"}, {"norm": "pre", "glu": "relu2", "n_kv_heads": 1},
                                   {"linear": "full", "tied_embeddings": False, "accumulate": 2}], ids=str)
def test_five_steps_agree_to_a_ten_thousandth(given, tmp_path):
    """As long as no code flips; in other runs one does, by noise alone as by the other backend."""
    numpy, numba = (curve(tmp_path / name, 5, backend=name, **given) for name in ("numpy", "numba"))
    np.testing.assert_allclose(numba, numpy, rtol=1e-4)


def apart(tmp_path, steps, **given):
    """How far the backends' curves are apart at most, in spreads of three runs with noise. Shown with -s."""
    numpy, numba = (curve(tmp_path / name, steps, backend=name, **given) for name in ("numpy", "numba"))
    noisy = [curve(tmp_path / f"noise-{n}", steps, noise=n, backend="numpy", **given) for n in range(3)]
    spread, between = max(np.abs(c - numpy).max() for c in noisy), np.abs(numba - numpy).max()
    print(f"from {numpy[0]:.3f} to {numpy[-1]:.3f} nats: backends {between:.1e} apart, noise {spread:.1e}")
    return between / spread


@pytest.mark.slow
def test_two_hundred_steps_are_within_twice_the_spread_of_noise(tmp_path):
    """Curves part when a code flips; noise in the last digit of the weights flips as many."""
    assert apart(tmp_path, 200, d_model=64, n_layers=3, d_ff=128, lr=1e-2, warmup=20) <= 2
