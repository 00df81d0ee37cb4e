"""train/measures: each measure against its definition, on matrices small enough to check by hand."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import own_cache  # noqa: F401

from bitnet_ref import layers
from bitnet_ref.config import ModelConfig
from bitnet_ref.layers.adamw import BLOCK
from bitnet_ref.model.cost import train_ops_per_token
from bitnet_ref.model.params import Params, Spec
from bitnet_ref.model.weights import Trits, Weights
from bitnet_ref.train import measures
from bitnet_ref.train.measures import drift, layer_measures, speed, to_threshold, tokens_per_second

SPECS = [Spec("layers.0.attn.wq", (2, 2), 0.1, True, True, ""),
         Spec("final_norm", (2,), 0.0, False, False, "")]


@pytest.fixture
def by_hand():
    """(params, weights, gradients): a matrix of mean magnitude 1, so its scale is 1, and a gain."""
    params, grads = Params(SPECS), Params(SPECS)
    params["layers.0.attn.wq"][:] = [[0.25, -0.5], [2.25, -1.0]]
    grads["layers.0.attn.wq"][:] = [[0.0, 3.0], [4.0, 0.0]]
    params["final_norm"][:], grads["final_norm"][:] = (0, 2), (0, 1)
    w_q, w_scale = layers.ALL_OPS["absmean_ternary"](params["layers.0.attn.wq"])
    table = {"layers.0.attn.wq": Trits(w_q, w_scale), "final_norm": params["final_norm"]}
    return params, Weights(table), grads


def test_a_matrix_by_hand(by_hand):
    """Its trits are 0 0 +1 -1; its distances 0.25 0 1.75 0.5; the norms: root of 6.375, and 5."""
    params, weights, grads = by_hand
    before = {"layers.0.attn.wq": np.array([[0, 1], [1, 1]], np.int8)}
    found = layer_measures(params, weights, before, grads, layers)
    assert found == {
        "layers.0.attn.wq": {
            "minus": 0.25, "zero": 0.5, "plus": 0.25, "scale": 1.0, "entropy": 1.5, "flipped": 0.5,
            "distance": 0.625, "near": 0.25, "grad_norm": 5.0,
            "grad_to_weight": pytest.approx(5 / np.sqrt(6.375), rel=1e-15)},
        "final_norm": {"grad_norm": 1.0, "grad_to_weight": 0.5}}


def test_nothing_has_flipped_before_there_was_a_line(by_hand):
    params, weights, grads = by_hand
    assert layer_measures(params, weights, {}, grads, layers)["layers.0.attn.wq"]["flipped"] == 0


def test_a_tensor_of_zeros_has_a_finite_ratio(by_hand):
    params, weights, grads = by_hand
    params["final_norm"][:] = 0
    assert layer_measures(params, weights, {}, grads, layers)["final_norm"]["grad_to_weight"] == 0


def test_a_tied_ternary_head_is_measured_against_the_embedding(tmp_path):
    run, _ = tiny.begin(tmp_path / "run", head="ternary")
    found = layer_measures(run.model.params, run.model.weights, {}, run.grads, run.model.plan.ops)["head"]
    table = run.model.params["embedding"]
    assert found["distance"] == pytest.approx(np.mean(np.abs(np.abs(table) / found["scale"] - 0.5)), rel=1e-5)


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)),
              elements=st.floats(-8, 8, width=32)), st.floats(0.125, 4, width=32))
def test_distances_are_to_the_nearer_threshold(w, scale):
    """Written out with both thresholds, in float64; a weight within rounding of NEAR may count or not."""
    both = np.abs(w.astype(np.float64)[..., None] / scale - np.array([-0.5, 0.5]))
    want = both.min(axis=-1)
    found = to_threshold(w, np.float32(scale))
    assert found.distance == pytest.approx(want.mean(), rel=1e-5, abs=1e-6)
    sure, open_ = want < measures.NEAR - 1e-5, want < measures.NEAR + 1e-5
    assert sure.mean() <= found.near <= open_.mean()


def test_blocks_change_nothing_but_the_order_of_the_sum():
    w = np.random.default_rng(1).normal(size=(3, BLOCK // 2 + 7)).astype(np.float32)
    found = to_threshold(w, np.float32(0.8))
    d = np.abs(np.abs(w) * (1 / np.float32(0.8)) - np.float32(0.5))
    assert found.distance == pytest.approx(np.mean(d, dtype=np.float64), rel=1e-14)
    assert found.near == np.mean(d <= 0.05)


def test_weights_on_a_threshold_are_near_and_those_far_from_it_are_not():
    assert to_threshold(np.array([[0.5, -0.5]], np.float32), np.float32(1)) == (0, 1)
    assert to_threshold(np.array([[0.0, -1.0]], np.float32), np.float32(1)) == (0.5, 0)


def test_drift_is_from_the_first_line():
    lines = [{"layers": {"a": {"scale": s}}} for s in (2.0, 3.0, 1.0)] + [{"layers": {}}]
    assert drift(lines, "a") == [0, 0.5, -0.5, pytest.approx(np.nan, nan_ok=True)]
    assert np.isnan(drift(lines, "b")).all()


def test_speed_is_the_median_step():
    lines = [{"tokens": 100, "seconds": s} for s in (50.0, 1.0, 2.0)] + [{"tokens": 9, "seconds": 0}, {}]
    assert tokens_per_second(lines) == 50
    cfg = ModelConfig()
    work = 50 * train_ops_per_token(cfg, 256)
    assert speed(lines, cfg, 4.0 * work) == (50, work, 4.0 * work, 0.25)
    assert speed(lines, cfg, None) == (50, work, None, None)
    assert speed([], cfg, 1e9) is None
