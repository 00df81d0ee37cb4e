"""kernels/numba_cpu, all that is not a product: bits that no thread and no neighbour changes, NaN, edges.

That an op agrees with the reference on small examples is the twin section of tests/layers/test_<stem>.py.
"""

import numpy as np
import pytest
from derivative import array_error
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.kernels import load
from bitnet_ref.kernels.numba_cpu import threads as pool
from bitnet_ref.layers.rope import rope_table

OPS = load("numba")
ROWS, D, V = 150, 37, 11         # more rows than a strip of the gain's gradient; odd widths


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def calls(rng, rows=ROWS, dtype=np.float32):
    """{name: call(ops) -> arrays} on the first `rows` (a multiple of 5) of one draw; sums start at 1."""
    x, dy, gate = floats(rng, 3, ROWS, D)[:, :rows].astype(dtype)
    rstd = np.abs(floats(rng, ROWS, 1))[:rows].astype(dtype)
    heads = floats(rng, ROWS // 5, 5, 3, 6)[:rows // 5].astype(dtype)
    ids, targets = rng.integers(0, V, ROWS)[:rows], rng.integers(0, D, ROWS)[:rows]
    g, moments = floats(rng, D).astype(dtype), np.abs(floats(rng, 3, ROWS, D)).astype(dtype)
    table, lse = rope_table(np.arange(5), 6, 100.0, dtype), layers.cross_entropy(x, targets)[1]

    def gained(ops):
        dg = np.ones(D, dtype)
        return ops.rmsnorm_backward(dy, x, g, rstd, dg), dg

    def scattered(ops):
        dw = np.ones((V, D), dtype)
        ops.embedding_backward(dy, ids, dw)
        return (dw,)

    def updated(ops):
        p, m, v = (a[:rows].reshape(-1).copy() for a in moments)
        ops.adamw_(p, x.reshape(-1), m, v, 3, 0.01, 0.1)
        return p, m, v

    return {
        "rmsnorm": lambda ops: ops.rmsnorm(x, g),
        "rmsnorm without gain": lambda ops: ops.rmsnorm(x, None),
        "rmsnorm_backward": gained,
        "rmsnorm_backward without gain": lambda ops: (ops.rmsnorm_backward(dy, x, None, rstd, None),),
        "rope": lambda ops: (ops.rope(heads, *table),),
        "rope_backward": lambda ops: (ops.rope_backward(heads, *table),),
        "swiglu": lambda ops: (ops.swiglu(gate, x),),
        "swiglu_backward": lambda ops: ops.swiglu_backward(dy, gate, x),
        "relu2": lambda ops: (ops.relu2(gate, x),),
        "relu2_backward": lambda ops: ops.relu2_backward(dy, gate, x),
        "embedding_backward": scattered,
        "cross_entropy": lambda ops: ops.cross_entropy(x, targets),
        "cross_entropy_backward": lambda ops: (ops.cross_entropy_backward(rows, x, targets, lse),),
        "adamw_": updated,
    }


NAMES = list(calls(np.random.default_rng(0)))
EACH = pytest.mark.parametrize("name", NAMES)
OVER_ROWS = {"rmsnorm_backward", "embedding_backward", "cross_entropy"}        # their results are sums
BY_ROWS = pytest.mark.parametrize("name", [n for n in NAMES if n not in OVER_ROWS])


@EACH
def test_twin(name, rng, tol):
    call = calls(rng)[name]
    for got, want in zip(call(OPS), call(layers), strict=True):
        assert np.asarray(got).dtype == np.float32
        assert array_error(got, want) <= tol["float32"]


@EACH
def test_the_number_of_threads_changes_no_bit(name, rng):
    call, before, results = calls(rng)[name], pool.pool_size(), []
    try:
        for threads in (before, 1):
            pool.use(threads)
            results.append(call(OPS))
    finally:
        pool.use(before)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@BY_ROWS
@given(seed=seeds, few=st.integers(1, ROWS // 5 - 1))
def test_a_row_does_not_see_the_others(name, seed, few):
    alone, among = (calls(np.random.default_rng(seed), rows)[name](OPS) for rows in (5 * few, ROWS))
    for a, b in zip(alone, among, strict=True):
        np.testing.assert_array_equal(a, b[:len(a)])


@EACH
def test_other_precisions_are_the_reference_to_the_bit(name, rng):
    call = calls(rng, dtype=np.float64)[name]
    for got, want in zip(call(OPS), call(layers), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_reference_gradient_is_summed_in_token_order(rng):
    """Float additions in another order would differ in the last digit; these are equal."""
    call = calls(rng)["embedding_backward"]
    np.testing.assert_array_equal(call(OPS)[0], call(layers)[0])


@pytest.mark.parametrize("forward", ["swiglu", "relu2"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e4, 0.0, -0.0, 1e4])
def test_extremes_of_a_gated_unit(forward, value, tol):
    gate, up, dy = np.array([[1, value, 2], [1, 1, 1], [1, 1, 1]], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        got = [getattr(OPS, forward)(gate, up), *getattr(OPS, f"{forward}_backward")(dy, gate, up)]
        want = [getattr(layers, forward)(gate, up), *getattr(layers, f"{forward}_backward")(dy, gate, up)]
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 1023, 1024, 1025, 2065])
def test_cross_entropy_around_the_edges_of_its_chunks(n, rng, tol):
    logits, targets = 5 * floats(rng, 3, n), np.array([0, n // 2, n - 1])
    (loss, lse), (loss_wanted, lse_wanted) = (ops.cross_entropy(logits, targets) for ops in (OPS, layers))
    assert loss == pytest.approx(loss_wanted, rel=1e-6, abs=1e-6)
    assert array_error(lse, lse_wanted) <= tol["float32"]
    d, d_wanted = (ops.cross_entropy_backward(1.0, logits, targets, lse_wanted) for ops in (OPS, layers))
    assert np.abs(d - d_wanted).max() <= tol["float32"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 7, 16, 39])
def test_a_logit_that_is_not_finite_shows_in_the_loss(value, at):
    logits = np.zeros((2, 40), np.float32)
    logits[1, at] = value
    loss, lse = OPS.cross_entropy(logits, np.array([3, 3]))
    assert not np.isfinite(loss)
    assert np.isfinite(lse[0]).all()
    assert not np.isfinite(lse[1]).any()


def test_a_logit_of_minus_infinity_is_a_probability_of_zero():
    logits = np.array([[0, -np.inf, 0, 0, -np.inf] * 8], np.float32)
    loss, lse = OPS.cross_entropy(logits, np.array([0]))
    assert loss == pytest.approx(np.log(24), rel=1e-6)
    d = OPS.cross_entropy_backward(1.0, logits, np.array([0]), lse)
    np.testing.assert_array_equal(d[0, 1::5], 0)


def test_what_does_not_lie_row_by_row(rng, tol):
    """Transposed and strided inputs give what their copies give."""
    wide, g = floats(rng, 2 * D, 2 * ROWS), floats(rng, D)
    x, dy = wide[:D, ::2].T, wide[D:, 1::2].T
    copies = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    np.testing.assert_array_equal(OPS.rmsnorm(x, g)[0], OPS.rmsnorm(copies[0], g)[0])
    for name in ("swiglu", "relu2"):
        np.testing.assert_array_equal(getattr(OPS, name)(x, dy), getattr(OPS, name)(*copies))
    dw, want = np.zeros((2, V, D), np.float32)
    ids = rng.integers(0, V, ROWS)
    OPS.embedding_backward(dy, ids, dw)
    OPS.embedding_backward(copies[1], ids, want)
    np.testing.assert_array_equal(dw, want)
    slices = np.zeros((V, 2 * D), np.float32)
    OPS.embedding_backward(dy, ids, slices[:, ::2])
    assert array_error(slices[:, ::2], want) <= tol["float32"]
    np.testing.assert_array_equal(slices[:, 1::2], 0)


def test_rmsnorm_and_rope_write_where_they_are_told(rng):
    x, heads, table = floats(rng, 4, 5, D), floats(rng, 2, 5, 3, 6), rope_table(np.arange(5), 6, 100.0)
    y = np.empty_like(x)
    assert OPS.rmsnorm(x, None, out=y)[0] is y
    np.testing.assert_array_equal(y, OPS.rmsnorm(x, None)[0])
    want = OPS.rope(heads, *table)
    assert OPS.rope(heads, *table, out=heads) is heads
    np.testing.assert_array_equal(heads, want)


def test_a_row_of_zeros(rng):
    x = np.zeros((3, D), np.float32)
    y, rstd = OPS.rmsnorm(x, floats(rng, D))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(rstd, 1e-5 ** -0.5, rtol=1e-6)


def test_adamw_agrees_with_the_reference_nearly_to_the_last_digit(rng):
    """Over many steps: the same operations on each element, in the same order."""
    n, states = 5000, []
    start, grads = floats(rng, n), floats(rng, 30, n)
    for ops in (OPS, layers):
        p, m, v = start.copy(), np.zeros(n, np.float32), np.zeros(n, np.float32)
        for t, g in enumerate(grads, 1):
            ops.adamw_(p, g, m, v, t, 3e-3, 0.1)
        states.append((p, m, v))
    for a, b in zip(*states):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())


# --- what does not fit ------------------------------------------------------------------------------------


def operands(rng):
    """{name: (op's arguments, shape of its result)} of the ops that write into `out`."""
    x, w, q = floats(rng, 4, 5, 8), floats(rng, 64, 8), rng.integers(-1, 2, (64, 8)).astype(np.int8)
    codes, scale = layers.absmax_int8(x)
    cos, sin = rope_table(np.arange(5), 8, 1e4)
    heads = floats(rng, 4, 5, 3, 8)
    return {"linear": ((x, w), (4, 5, 64)), "swiglu": ((x, x), x.shape), "relu2": ((x, x), x.shape),
            "ternary_linear": ((codes, scale, OPS.prepare(q, np.float32(0.5))), (4, 5, 64)),
            "rmsnorm": ((x, None), x.shape), "rope": ((heads, cos, sin), heads.shape)}


OUTS = {"of float64": lambda shape: np.zeros(shape),
        "backwards": lambda shape: np.zeros(shape, np.float32)[::-1],
        "a part of a wider one": lambda s: np.zeros((*s[:-1], s[-1] + 3), np.float32)[..., :s[-1]]}


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("name", operands(np.random.default_rng(0)))
def test_a_result_goes_into_any_array_of_its_shape_and_nowhere_else(name, out, rng):
    given, shape = operands(rng)[name]
    want = getattr(OPS, name)(*given)
    into = OUTS[out](shape)
    got = getattr(OPS, name)(*given, out=into)
    for result, wanted in ((got, want),) if name != "rmsnorm" else zip(got, want):
        np.testing.assert_array_equal(result, wanted)
    np.testing.assert_array_equal(into, want if name != "rmsnorm" else want[0])
    if into.base is not None:
        assert np.count_nonzero(into.base) == np.count_nonzero(into)


@pytest.mark.parametrize(("name", "given"), [
    ("linear", [(1, 8), (2, 4)]), ("linear_backward", [(3, 2), (3, 4), (2, 4), (2, 5)]),
    ("swiglu", [(3, 4), (3, 5)]), ("swiglu_backward", [(3, 4), (3, 4), (2, 4)]), ("rmsnorm", [(3, 4), (3,)]),
    ("rmsnorm_int8", [(3, 4), (3,)]), ("rope", [(2, 5, 3, 8), (4, 1, 4), (4, 1, 4)]),
    ("attention", [(2, 5, 4, 8), (2, 5, 2, 8), (2, 4, 2, 8)])])
def test_shapes_that_do_not_fit_are_refused(name, given, rng):
    with pytest.raises((ValueError, IndexError)):
        getattr(OPS, name)(*(floats(rng, *shape) for shape in given))


@pytest.mark.parametrize("targets", [[0, 1], [0, 1, V], [0, 1, 10**9]])
def test_targets_that_do_not_fit_are_refused(targets, rng):
    targets, logits = np.array(targets), floats(rng, 3, V)
    with pytest.raises((ValueError, IndexError)):
        OPS.cross_entropy(logits, targets)
    if len(targets) < 3:                     # the rest of the rows count as they are: the reference's reading
        return
    with pytest.raises((ValueError, IndexError)):
        OPS.cross_entropy_backward(1.0, logits, targets, floats(rng, 3, 1))
    with pytest.raises((ValueError, IndexError)):
        OPS.linear_cross_entropy(floats(rng, 3, D), floats(rng, V, D), targets, 1.0, floats(rng, V, D))


def test_ids_that_do_not_fit_are_refused(rng):
    with pytest.raises((ValueError, IndexError)):
        OPS.embedding_backward(floats(rng, 1, 2, D), np.array([[0, V]]), floats(rng, V, D))


def test_parameters_may_have_any_shape(rng):
    got, want = ([a.reshape(6, 7).copy() for a in floats(np.random.default_rng(1), 4, 42)] for _ in range(2))
    got[3], want[3] = np.abs(got[3]), np.abs(want[3])
    OPS.adamw_(*got, 1, 0.01, 0.1)
    layers.adamw_(*want, 1, 0.01, 0.1)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert OPS.square_sum(got[0]) == pytest.approx(layers.square_sum(got[0]))
