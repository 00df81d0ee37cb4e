"""Derivatives exact to rounding: the complex step, and inner products with random directions.

f(x + ihv) = f(x) + ih f'(x)v + O(h^2): with h = 1e-30 the imaginary part is the derivative, and nothing is
subtracted (docs/decisions/010-derivatives-by-complex-step.md). Each argument is checked on its own, so that a
wrong gradient cannot hide behind a large right one. The tests of every op, and notebook 02, call this.
Read after: walk/puzzle. Read next: walk/frozen.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref.config import ModelConfig
from bitnet_ref.model.block import build
from bitnet_ref.model.params import Params
from bitnet_ref.model.transformer import forward, train_step
from bitnet_ref.model.weights import ternarise

H = 1e-30


def complex_step(f: Callable[[Any], Any], x: Any, v: Any, h: float = H) -> np.ndarray:
    """Directional derivative of f at x along v."""
    return np.imag(f(x + 1j * h * v)) / h


def array_error(got: Any, want: Any) -> float:
    """Largest difference, relative to the largest entry of `want`."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{got.shape} is not {want.shape}"
    return float(np.max(np.abs(got - want)) / max(np.max(np.abs(want)), np.finfo(float).tiny))


def backward_error(f: Callable[[Any], Any], dx: np.ndarray, dy: Any, x: np.ndarray,
                   rng: np.random.Generator, directions: int = 4) -> float:
    """How far <dx, v> is from <dy, f'(x) v> for random v, relative to the largest of the latter.

    Several directions at once: along a single one the terms may happen to cancel, and leave rounding alone.
    """
    vs = [rng.normal(size=x.shape) for _ in range(directions)]
    return array_error([np.vdot(dx, v) for v in vs], [np.vdot(dy, complex_step(f, x, v)) for v in vs])


def gradient_errors(forward: Callable[..., Any], backward: Callable[..., Any], args: dict[str, np.ndarray],
                    rng: np.random.Generator) -> dict[str, float]:
    """Relative error of the gradient of every argument: {name: error}.

    args: {name: float64 array}; forward(**args) -> y; backward(dy, **args) -> {name: gradient}.
    """
    dy = rng.normal(size=np.shape(forward(**args)))
    grads = backward(dy, **args)
    assert grads.keys() == args.keys()
    complex_args = {name: a + 0j for name, a in args.items()}      # ops may work in place: one dtype for all

    def along(name: str) -> Callable[[Any], Any]:
        return lambda x: forward(**{**complex_args, name: x})
    return {name: backward_error(along(name), grads[name], dy, x, rng) for name, x in args.items()}


def model_loss(cfg: ModelConfig, ops: Any, params: Params, ids: np.ndarray, targets: np.ndarray) -> Any:
    """The loss of the model, by forward alone; complex where params are complex."""
    logits, _ = forward(build(cfg, ops), ternarise(cfg, params, ops).ready(ops), ids, keep=False)
    return ops.cross_entropy(logits.reshape(-1, cfg.vocab_size), targets.reshape(-1))[0]


def model_gradients(cfg: ModelConfig, ops: Any, params: Params, ids: np.ndarray,
                    targets: np.ndarray) -> Params:
    """The gradient of the same loss, by the hand-written backward."""
    grads = params.zeros_like()
    train_step(build(cfg, ops), ternarise(cfg, params, ops).ready(ops), [(ids, targets)], 1.0, grads)
    return grads


def parameter_errors(loss: Callable[[Params], Any], params: Params, grads: Params, rng: np.random.Generator,
                     directions: int = 3) -> dict[str, float]:
    """The same for loss(params) of a whole model: {name: relative error}, every tensor moved on its own."""
    def moving(name: str) -> Callable[[Any], Any]:
        def f(x: Any) -> Any:
            moved = Params(params.specs, np.complex128)
            moved.flat[:] = params.flat
            moved[name][...] = x
            return loss(moved)
        return f
    return {s.name: backward_error(moving(s.name), grads[s.name], 1.0, params[s.name], rng, directions)
            for s in params.specs}
