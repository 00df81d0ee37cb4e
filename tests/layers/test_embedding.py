"""layers/embedding: rows out, scatter-add back."""

import numpy as np
import pytest
from against_golden import golden_test
from derivative import array_error, gradient_errors
from hypothesis import given
from strategies import seeds

from bitnet_ref import layers
from bitnet_ref.layers import embedding, embedding_backward

IDS = np.array([[3, 1, 3], [0, 3, 6]])              # 3 occurs thrice, 2, 4 and 5 never

# --- golden ---------------------------------------------------------------------------------------------


test_golden = golden_test("embedding")


# --- derivative ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_backward_is_the_derivative(seed, tol):
    rng = np.random.default_rng(seed)

    def backward(dy, w):
        dw = np.zeros_like(w)
        embedding_backward(dy, IDS, dw)
        return {"w": dw}

    errors = gradient_errors(lambda w: embedding(IDS, w), backward, {"w": rng.normal(size=(7, 5))}, rng)
    assert max(errors.values()) <= tol["op_derivative"], errors


# --- property -----------------------------------------------------------------------------------------------


def test_rows_of_the_table():
    y = embedding(IDS, np.arange(14.0).reshape(7, 2))
    assert y.tolist() == [[[6, 7], [2, 3], [6, 7]], [[0, 1], [6, 7], [12, 13]]]


def test_a_repeated_token_gathers_all_its_gradients_and_an_absent_one_none():
    dw = np.zeros((7, 2))
    embedding_backward(np.ones((2, 3, 2)), IDS, dw)
    assert dw[:, 0].tolist() == [1, 1, 0, 3, 0, 0, 1]


def test_gradients_accumulate(rng):
    dy, once, twice = rng.normal(size=(2, 3, 5)), np.zeros((7, 5)), np.ones((7, 5))
    embedding_backward(dy, IDS, once)
    assert embedding_backward(dy, IDS, twice) is None
    np.testing.assert_allclose(twice, 1 + once, rtol=1e-15)


@given(seed=seeds)
def test_renaming_the_tokens_changes_nothing(seed):
    """Row order is only a name: permute ids and table alike; the output stays, the gradient moves along."""
    rng = np.random.default_rng(seed)
    w, rename, dy = rng.normal(size=(7, 5)), rng.permutation(7), rng.normal(size=(2, 3, 5))
    renamed = np.empty_like(w)
    renamed[rename] = w
    np.testing.assert_array_equal(embedding(rename[IDS], renamed), embedding(IDS, w))
    dw, dw_renamed = np.zeros_like(w), np.zeros_like(w)
    embedding_backward(dy, IDS, dw)
    embedding_backward(dy, rename[IDS], dw_renamed)
    np.testing.assert_array_equal(dw_renamed[rename], dw)


def test_float32_in_float32_out(rng):
    assert embedding(IDS, rng.normal(size=(7, 5)).astype(np.float32)).dtype == np.float32


# --- twin ---------------------------------------------------------------------------------------------------


def test_twin(backends, tol, rng):
    w, dy = (rng.normal(size=s).astype(np.float32) for s in ((7, 5), (2, 3, 5)))
    np.testing.assert_array_equal(backends.embedding(IDS, w), layers.embedding(IDS, w))
    got, want = np.zeros_like(w), np.zeros_like(w)
    backends.embedding_backward(dy, IDS, got)
    layers.embedding_backward(dy, IDS, want)
    assert array_error(got, want) <= tol["float32"]
