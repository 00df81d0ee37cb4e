"""model/layout: which gain stands before which projections, for every public norm layout."""

import pytest
from strategies import NORMS, small_config

from bitnet_ref.model.layout import FREE, Entry, layout, shapes

QKV, OUT = ("attn.wq", "attn.wk", "attn.wv"), ("attn.wo",)
GATE_UP, DOWN = ("ffn.w_gate", "ffn.w_up"), ("ffn.w_down",)


@pytest.mark.parametrize(("norm", "gains"), [
    ("pre", ("attn_norm", None, "ffn_norm", None)),
    ("sub", ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm")),
    ("inner", (FREE, FREE, FREE, FREE)),
])
def test_one_entry_for_each_of_the_four_inputs(norm, gains):
    places = layout(small_config(norm=norm))
    assert places == tuple((Entry(gain, weights),) for gain, weights in zip(gains, (QKV, OUT, GATE_UP, DOWN)))
    assert places._fields == ("qkv", "out", "gate_up", "down")


def test_a_gain_per_projection_is_an_entry_per_projection():
    places = layout(small_config(norm="inner", inner_gain=True))
    assert places.qkv == (Entry("attn.wq_norm", QKV[:1]), Entry("attn.wk_norm", QKV[1:2]),
                          Entry("attn.wv_norm", QKV[2:]))
    assert places.down == (Entry("ffn.w_down_norm", DOWN),)
    assert [len(place) for place in places] == [3, 1, 2, 1]


@pytest.mark.parametrize("norm", NORMS)
def test_every_projection_is_read_once_and_in_order(norm):
    cfg = small_config(**NORMS[norm])
    assert [w for place in layout(cfg) for entry in place for w in entry.weights] == list(shapes(cfg))


def test_shapes_are_out_by_in():
    D, F, KV = 16, 20, 8
    assert shapes(small_config(d_model=D, d_ff=F, n_heads=4, n_kv_heads=2)) == {
        "attn.wq": (D, D), "attn.wk": (KV, D), "attn.wv": (KV, D), "attn.wo": (D, D),
        "ffn.w_gate": (F, D), "ffn.w_up": (F, D), "ffn.w_down": (D, F)}
