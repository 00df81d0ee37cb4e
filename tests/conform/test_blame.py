"""Naming causes: shares, equals, faults in some places only, differences that no fault explains."""

import numpy as np
import pytest
from planted import FAULTS, dumped, report

from bitnet_ref.conform.blame import explained

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def test_explained_is_the_share_of_the_squared_difference():
    right, got = np.zeros((1, 2)), np.array([[3.0, 4.0]])
    assert explained(right, got, got) == 1
    assert explained(right, got, right) == 0
    assert explained(right, got, np.array([[3.0, 0.0]])) == pytest.approx(9 / 25)
    assert explained(right, got, -got) == -3              # worse than nothing
    assert explained(right, got, np.zeros(3)) == 0        # of another shape


def test_explained_counts_entries_where_not_all_are_finite():
    right, got = np.array([1.0, 2.0, 3.0]), np.array([np.inf, 2.0, np.nan])
    assert explained(right, got, got) == 1
    assert explained(right, got, np.array([np.inf, 2.0, 3.0])) == 0.5
    assert explained(right, got, np.array([np.nan, 2.0, 3.0])) == 0


def test_small_rows_count_as_much_as_large_ones():
    right = np.array([[1e6], [1.0]])
    got = right * 1.1
    assert explained(right, got, np.array([[1.1e6], [1.0]])) == pytest.approx(0.5)


def test_noise_is_no_cause():
    """A difference that nothing in the catalogue makes is reported as unexplained, whatever is near."""
    tensors = dumped()
    rng = np.random.default_rng(5)
    name = "bitnet.layers.0.gate"
    tensors[name] = tensors[name] + rng.normal(size=tensors[name].shape).astype(np.float32)
    found = report(tensors)
    assert found.causes == []
    assert list(found.unexplained) == [name]


@quiet
def test_a_fault_in_some_places_only_is_named_with_the_places_it_spared():
    good, faulty = dumped(), dumped(FAULTS["silu_for_relu2"].variants[0])
    mixed = {**good, "glu.large.relu2": faulty["glu.large.relu2"]}
    found = report(mixed)
    assert [c.suspect.name for c in found.causes] == ["silu_for_relu2"]
    assert set(found.causes[0].spared) == {"bitnet.layers.0.act", "bitnet.layers.1.act"}


@quiet
def test_the_cause_that_spoils_nothing_else_wins_between_equals():
    """A missing attn_sub_norm alone; `sub_norm_before_projections` would also have spoilt attn_norm."""
    found = report(dumped(FAULTS["sub_norm_missing"].variants[0]))
    assert found.causes[0].suspect.name == "sub_norm_missing"
    assert found.causes[0].next[0][0] == "sub_norm_before_projections"


@quiet
def test_a_single_tensor_is_enough_for_what_it_shows():
    """From one matrix of the probe whose entries are all at the thresholds or far from them, say."""
    tensors = dumped(FAULTS["round_half_away"].variants[0])
    name = "ternary.ties.w.w_q"
    positive = np.where(tensors[name] > 0, tensors[name], dumped()[name])
    found = report({name: positive})                       # as if only positive halves had been rounded away
    assert [(c.suspect.name, c.like) for c in found.causes] == [("round_half_up", ())]
    scale = {n: t for n, t in dumped(FAULTS["weight_scale_dropped"].variants[0], layout="plain").items()
             if n == "bitnet.layers.0.attn.wq.w_scale"}
    assert [c.suspect.name for c in report(scale, layout="plain").causes] == ["weight_scale_dropped"]


@quiet
def test_causes_come_in_the_order_of_the_data():
    planted = ["clip_per_tensor", "rope_interleaved", "round_half_away"]
    found = report(dumped(*(FAULTS[n].variants[0] for n in planted)))
    assert [c.suspect.name for c in found.causes] == planted[::-1]


@quiet
def test_three_at_once():
    planted = {"transposed_weight", "weight_scale_dropped", "gate_and_up_exchanged"}
    found = report(dumped(*(FAULTS[n].variants[0] for n in planted)))
    assert {c.suspect.name for c in found.causes} == planted


def test_a_constant_ratio_is_pointed_out():
    """A scale of a / 128: no entry of the catalogue, but 127/128 everywhere."""
    tensors = dumped()
    name = "bitnet.layers.0.attn_norm.x_scale"
    tensors[name] = tensors[name] * np.float32(127 / 128)
    found = report(tensors)
    assert "0.992188 times the right one" in found.unexplained[name]
    assert "what multiplies bitnet.layers.0.attn_norm.x_q" in found.unexplained[name]


def test_a_tensor_far_too_small_is_not_explained_by_a_fault_that_makes_zeros():
    tensors = dumped()
    tensors["bitnet.logits"] = tensors["bitnet.logits"] * np.float32(0.1)
    found = report(tensors)
    assert not found.causes
    assert "0.1 times the right one" in found.unexplained["bitnet.logits"]


def test_two_faults_that_spoil_as_many_tensors_are_not_alike():
    """Alike is what explains the same tensors equally well."""
    planted = ("code_map_plus_two", "weight_scale_inverted")
    found = report(dumped(*(FAULTS[n].variants[0] for n in planted)))
    assert {c.suspect.name for c in found.causes} == set(planted)
    assert all(c.like == () for c in found.causes)
