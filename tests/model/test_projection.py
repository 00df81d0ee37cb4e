"""model/projection: inputs enter once, whoever reads them; gradients of all readers meet again."""

import numpy as np
import pytest
from derivative import gradient_errors

from bitnet_ref.kernels import load
from bitnet_ref.model.layout import FREE, Entry
from bitnet_ref.model.projection import PROJECTION, project, project_backward

OPS = load("numpy")
FULL, TERNARY = PROJECTION["full"](OPS), PROJECTION["ternary"](OPS)
ENTRIES = {
    "gain": (Entry("norm", ("w1", "w2")),),
    "free": (Entry(FREE, ("w1", "w2")),),
    "none": (Entry(None, ("w1", "w2")),),
    "each": (Entry("n1", ("w1",)), Entry("n2", ("w2",)), Entry(FREE, ("w3",)), Entry(None, ("w4",))),
}
EACH = pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)


def weights(entries, rng):
    """Matrices (3, 5), (4, 5), ... and the gains."""
    names = [name for entry in entries for name in entry.weights]
    gains = {e.norm: rng.normal(1, 0.5, 5) for e in entries if e.norm not in (None, FREE)}
    return {**{name: rng.normal(size=(3 + i, 5)) for i, name in enumerate(names)}, **gains}


def split(dy, entries, w):
    """dy (..., sum N) -> one gradient per projection, in order."""
    ends = np.cumsum([len(w[name]) for entry in entries for name in entry.weights])
    return np.split(dy, ends[:-1], axis=-1)


def at(prefix, table):
    return {prefix + name: t for name, t in table.items()}


# --- derivative --------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("seed", range(2))
def test_backward_is_the_derivative(entries, seed, tol):
    rng = np.random.default_rng(seed)
    given = {"x": rng.normal(size=(2, 3, 5)), **weights(entries, rng)}

    def forward(x, **w):
        return np.concatenate(project(x, entries, at("p.", w), "p.", FULL, 0.1)[0], axis=-1)

    def backward(dy, x, **w):
        grads = {name: np.zeros_like(t) for name, t in w.items()}
        _, entered = project(x, entries, at("p.", w), "p.", FULL, 0.1)
        dys = split(dy, entries, w)
        dx = project_backward(dys, x, entered, entries, at("p.", w), "p.", FULL, OPS, at("p.", grads))
        return {"x": dx, **grads}

    errors = gradient_errors(forward, backward, given, rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


# --- property ----------------------------------------------------------------------------------------------


@EACH
def test_ternary_enters_as_codes_and_multiplies_exactly(entries, rng):
    x, w = rng.normal(size=(2, 3, 5)), weights(entries, rng)
    trits = {name: OPS.prepare(*OPS.absmean_ternary(t)) if t.ndim == 2 else t for name, t in w.items()}
    ys, entered = project(x, entries, trits, "", TERNARY, 0.1)
    ys = iter(ys)
    assert len(entered) == len(entries)
    for entry, (operand, rstd) in zip(entries, entered):
        n, want_rstd = (x, None) if entry.norm is None else OPS.rmsnorm(x, w.get(entry.norm), 0.1)
        x_q, x_scale = OPS.absmax_int8(n)
        assert operand[0].dtype == np.int8
        np.testing.assert_array_equal(operand[0], x_q)
        np.testing.assert_array_equal(operand[1], x_scale)
        assert (rstd is None) == (entry.norm is None)
        assert rstd is None or np.array_equal(rstd, want_rstd)
        for name in entry.weights:
            np.testing.assert_array_equal(next(ys), OPS.ternary_linear(x_q, x_scale, trits[name]))


def test_an_input_is_normalised_and_quantised_once_for_all_its_readers(rng):
    calls = []
    kind = TERNARY._replace(normalise=lambda *a: calls.append(a) or OPS.rmsnorm_int8(*a))
    entries = (Entry("norm", ("w1", "w2", "w3")),)
    w = {name: OPS.prepare(*OPS.absmean_ternary(t)) if t.ndim == 2 else t
         for name, t in weights(entries, rng).items()}
    ys, _ = project(rng.normal(size=(1, 2, 5)), entries, w, "", kind, 1e-5)
    assert (len(calls), len(ys)) == (1, 3)


@EACH
def test_backward_leaves_the_gradients_it_was_given_alone(entries, rng):
    x, w = rng.normal(size=(2, 3, 5)), weights(entries, rng)
    _, entered = project(x, entries, w, "", FULL, 0.1)
    dys = [rng.normal(size=(2, 3, len(w[name]))) for entry in entries for name in entry.weights]
    before = [dy.copy() for dy in dys]
    grads = {name: np.zeros_like(t) for name, t in w.items()}
    project_backward(dys, x, entered, entries, w, "", FULL, OPS, grads)
    assert len(dys) == len(before)
    for now, then in zip(dys, before):
        np.testing.assert_array_equal(now, then)
