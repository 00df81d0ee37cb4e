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
    """Directional derivative of f at x along v.
    >>> float(complex_step(np.exp, 0.0, 1.0)), complex_step(lambda x: x ** 3, 2.0, 1.0)
    (1.0, 12.0)
    """
    return np.imag(f(x + 1j * h * v)) / h


def array_error(got: Any, want: Any) -> float:
    """Largest difference, relative to the largest entry of `want`.
    >>> array_error([1.0, 2.0], [1.0, 4.0])
    0.5
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{got.shape} is not {want.shape}"
    return float(np.max(np.abs(got - want)) / max(np.max(np.abs(want)), np.finfo(float).tiny))


def backward_error(f: Callable[[Any], Any], dx: np.ndarray, dy: Any, x: np.ndarray,
                   rng: np.random.Generator, directions: int = 4) -> float:
    """How far <dx, v> is from <dy, f'(x) v> for random v, relative to the largest of the latter.

    Several directions at once: along a single one the terms may happen to cancel, and leave rounding alone.
    >>> x, dy, rng = np.array([1.0, 2.0]), np.ones(2), np.random.default_rng(0)
    >>> f = lambda x: x * x
    >>> backward_error(f, 2 * x, dy, x, rng) < 1e-14, backward_error(f, 3 * x, dy, x, rng) > 0.4
    (True, True)
    """
    vs = [rng.normal(size=x.shape) for _ in range(directions)]
    return array_error([np.vdot(dx, v) for v in vs], [np.vdot(dy, complex_step(f, x, v)) for v in vs])


def gradient_errors(forward: Callable[..., Any], backward: Callable[..., Any], args: dict[str, np.ndarray],
                    rng: np.random.Generator) -> dict[str, float]:
    """Relative error of the gradient of every argument: {name: error}.

    args: {name: float64 array}; forward(**args) -> y; backward(dy, **args) -> {name: gradient}.
    >>> args, rng = {"x": np.array([1.0, 2.0]), "w": np.array([3.0, 5.0])}, np.random.default_rng(0)
    >>> back = lambda dy, x, w: {"x": dy * w, "w": dy * w}           # dw should be dy * x
    >>> errors = gradient_errors(lambda x, w: x * w, back, args, rng)
    >>> {name: error < 1e-12 for name, error in errors.items()}
    {'x': True, 'w': False}
    """
    dy = rng.normal(size=np.shape(forward(**args)))
    grads = backward(dy, **args)
    assert grads.keys() == args.keys()
    complex_args = {name: a + 0j for name, a in args.items()}      # ops may work in place: one dtype for all

    def along(name: str) -> Callable[[Any], Any]:
        return lambda x: forward(**{**complex_args, name: x})
    return {name: backward_error(along(name), grads[name], dy, x, rng) for name, x in args.items()}


def model_loss(cfg: ModelConfig, ops: Any, params: Params, ids: np.ndarray, targets: np.ndarray) -> Any:
    """The loss of the model, by forward alone; complex where params are complex.
    >>> from bitnet_ref import layers; from bitnet_ref.model.params import param_specs
    >>> cfg, ids = ModelConfig(vocab_size=9, n_layers=1), np.array([[1, 2, 3]])
    >>> zeros = Params(param_specs(cfg), np.float64)                 # which makes every token equally likely
    >>> abs(float(model_loss(cfg, layers, zeros, ids, ids)) - float(np.log(9))) < 1e-12
    True
    """
    logits, _ = forward(build(cfg, ops), ternarise(cfg, params, ops).ready(ops), ids, keep=False)
    return ops.cross_entropy(logits.reshape(-1, cfg.vocab_size), targets.reshape(-1))[0]


def model_gradients(cfg: ModelConfig, ops: Any, params: Params, ids: np.ndarray,
                    targets: np.ndarray) -> Params:
    """The gradient of the same loss, by the hand-written backward.
    >>> from bitnet_ref import layers; from bitnet_ref.model.params import init_params
    >>> cfg, ids = ModelConfig(vocab_size=9, n_layers=1), np.array([[1, 2, 3]])
    >>> g = model_gradients(cfg, layers, init_params(cfg, 0, np.float64), ids, ids)
    >>> all(np.any(grad) for grad in g.view.values())
    True
    """
    grads = params.zeros_like()
    train_step(build(cfg, ops), ternarise(cfg, params, ops).ready(ops), [(ids, targets)], 1.0, grads)
    return grads


def parameter_errors(loss: Callable[[Params], Any], params: Params, grads: Params, rng: np.random.Generator,
                     directions: int = 3) -> dict[str, float]:
    """The same for loss(params) of a whole model: {name: relative error}, every tensor moved on its own.
    >>> from bitnet_ref.model.params import Spec
    >>> params = Params([Spec("w", (2,), 1.0, True, False, "")], np.float64); params.flat[:] = 1, 2
    >>> grads, rng = params.zeros_like(), np.random.default_rng(0); grads.flat[:] = 2, 4
    >>> parameter_errors(lambda p: np.sum(p["w"] ** 2), params, grads, rng)["w"] < 1e-14
    True
    """
    def moving(name: str) -> Callable[[Any], Any]:
        def f(x: Any) -> Any:
            moved = Params(params.specs, np.complex128)
            moved.flat[:] = params.flat
            moved[name][...] = x
            return loss(moved)
        return f
    return {s.name: backward_error(moving(s.name), grads[s.name], 1.0, params[s.name], rng, directions)
            for s in params.specs}
