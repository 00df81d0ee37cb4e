"""Judging: each op on the port's own inputs, ties, tolerances, what is not there or not finite."""

import ml_dtypes
import numpy as np
import pytest
from planted import dumped, given, report

from bitnet_ref.conform.judge import ABSENT, BAD, OK, UNJUDGED, Judge, alike, compare


def verdict(found, name):
    return next(v for v in found.verdicts if v.name == name)


def bad(found):
    return [v.name for v in found.verdicts if v.status == BAD]


def test_one_wrong_op_spoils_one_line():
    """Everything behind it is consistent with it."""
    tensors = dumped()
    nodes, leaf = given()
    tensors["bitnet.layers.0.v"] = np.roll(tensors["bitnet.layers.0.v"], 1, axis=1)
    later = Judge(nodes, leaf, tensors)
    for name in [n.name for n in nodes]:                  # a port that goes on from there
        if name.startswith("bitnet.") and name != "bitnet.layers.0.v":
            tensors[name] = np.asarray(later.make(name)).astype(np.float32)
    assert bad(report(tensors)) == ["bitnet.layers.0.v"]


def test_a_wrong_dump_spoils_its_own_line_and_those_that_read_it():
    tensors = dumped()
    tensors["bitnet.layers.1.h"] = tensors["bitnet.layers.1.h"] + 1
    found = report(tensors)
    # ffn_norm and out were made from the right h: only the dump is wrong, and the report says so
    assert bad(found) == ["bitnet.layers.1.h"]
    assert "only its dump is wrong" in verdict(found, "bitnet.layers.1.ffn_norm").note


def test_a_reciprocal_scale_in_the_dump_is_told_from_a_wrong_product():
    tensors = {n: 1 / t if n.endswith(".x_scale") else t for n, t in dumped().items()}
    found = report(tensors)
    assert {n.rpartition(".")[2] for n in bad(found)} == {"x_scale"}
    assert [c.suspect.name for c in found.causes] == ["activation_scale_inverted"]


def test_what_is_absent_is_computed_from_what_is_there():
    tensors = dumped()
    kept = {n: tensors[n] for n in ("bitnet.layers.0.attn_norm", "bitnet.layers.0.q")}
    found = report(kept)
    assert found.conforms
    assert found.count(OK) == 2
    assert verdict(found, "bitnet.logits").status == ABSENT
    kept["bitnet.layers.0.q"] = kept["bitnet.layers.0.q"] * 1.1
    assert bad(report(kept)) == ["bitnet.layers.0.q"]


def test_nan_is_bad_where_it_arises_and_not_judged_behind():
    tensors = dumped()
    tensors["llama.layers.0.act"][2, 5] = np.nan
    found = report(tensors)
    first = verdict(found, "llama.layers.0.act")
    assert (first.status, first.first, first.wrong) == (BAD, (2, 5), 1)
    assert verdict(found, "llama.layers.0.act.x_q").status == UNJUDGED
    assert not found.conforms


def test_the_first_wrong_index_and_both_values_are_reported():
    tensors = dumped()
    tensors["llama.logits"][3, 4] += 5
    found = report(tensors)
    v = verdict(found, "llama.logits")
    assert (v.first, v.wrong, v.size) == ((3, 4), 1, 7 * 96)
    got, right = found.values["llama.logits"]
    assert got == pytest.approx(right + 5, rel=1e-5)


def test_one_wrong_code_is_a_hundred_tolerances():
    tensors = dumped()
    tensors["quant.wide.x.x_q"][1, 9] += 1
    v = verdict(report(tensors), "quant.wide.x.x_q")
    assert (v.share, v.wrong) == (100, 1)


def test_a_code_on_a_tie_may_go_either_way_in_a_model():
    """x is moved to within rounding of a tie; the next code is accepted there, and another is not."""
    tensors = dumped()
    name = "bitnet.layers.0.attn_norm"
    x = tensors[name].astype(np.float64)
    a = np.abs(x[2]).max()
    x[2, 7] = 12.5 * a / 127 * (1 + 1e-7)
    tensors[name] = x
    for code, status in ((12, OK), (13, OK), (14, BAD), (11, BAD)):
        tensors[f"{name}.x_q"] = tensors[f"{name}.x_q"].copy()
        tensors[f"{name}.x_q"][2, 7] = code
        v = verdict(report(tensors), f"{name}.x_q")
        assert v.status == status, code


def test_ties_of_a_probe_are_exact():
    tensors = dumped()
    x = given()[1]["quant.ties.x"]
    i = np.argwhere(x == 0.5)[0]
    tensors["quant.ties.x.x_q"][tuple(i)] += 1
    assert bad(report(tensors)) == ["quant.ties.x.x_q"]


@pytest.mark.parametrize(("dtype", "ok"),
                         [(np.float16, True), (ml_dtypes.bfloat16, True), (np.float32, False)])
def test_tolerance_follows_the_dtype_of_the_dump(dtype, ok):
    """An error of 1e-3 is rounding in a float16 dump, and wrong in float32."""
    tensors = dumped()
    tensors["llama.final_norm"] = (tensors["llama.final_norm"] * np.float32(1.001)).astype(dtype)
    del tensors["llama.logits"]
    assert report(tensors).conforms == ok


def test_rows_are_compared_by_their_own_largest_value():
    right = np.array([[1e6, 2e6], [1.0, 2.0]])
    assert compare("x", right, right + np.array([[1.0], [0.0]]), 1e-5).status == OK
    assert compare("x", right, right + np.array([[0.0], [1.0]]), 1e-5).first == (1, 0)


def test_infinities_and_nans_are_like_their_like():
    a = np.array([np.inf, -np.inf, np.nan, 1.0])
    assert alike(a, a).all()
    assert not alike(a, np.array([-np.inf, np.inf, 0.0, 2.0])).any()
    assert compare("x", a, a, 1e-5).status == OK
    assert compare("x", a, np.zeros(4), 1e-5).share == np.inf


def test_non_integer_codes_are_wrong_codes():
    tensors = dumped()
    tensors["quant.small.x.x_q"] = tensors["quant.small.x.x_q"] + np.float32(0.25)
    v = verdict(report(tensors), "quant.small.x.x_q")
    assert (v.status, v.share) == (BAD, 25)
