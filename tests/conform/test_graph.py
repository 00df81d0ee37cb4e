"""The graph with the reference's slots computes what the reference computes: its ops and whole models."""

import inspect

import numpy as np
import pytest
from planted import RIGHT_ORDER, dumped, given

from bitnet_ref.conform.graph import REFERENCE, Node
from bitnet_ref.conform.homework import MODELS, homework
from bitnet_ref.conform.training_slots import Hyper
from bitnet_ref.kernels import load
from bitnet_ref.layers import adamw_, attention, cross_entropy, rmsnorm_int8, ternary_linear_backward
from bitnet_ref.layers.bitlinear import Prepared
from bitnet_ref.model import Transformer
from bitnet_ref.model.transformer import forward
from bitnet_ref.pack import rosetta
from bitnet_ref.quant import absmax_int8, absmean_ternary
from bitnet_ref.train.optim import clip_

LAYOUTS = ["plain", *RIGHT_ORDER]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_node_names_are_unique_and_inputs_come_before(layout):
    nodes, leaf = given(layout=layout)
    known = set(leaf)
    for node in nodes:
        assert node.name not in known
        assert set(node.inputs) <= known, node.name
        known.add(node.name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_decoded_as_rosetta_decodes_them(layout):
    """The stored bytes are rosetta's; the slots must lead back to the trits and the multiplier."""
    made = dumped(layout=layout, dtype=np.float64)
    for model, cfg in MODELS.items():
        for name, t in homework(0).weights[model].trits().items():
            assert np.array_equal(made[f"{model}.{name}.w_q"], t.w_q)
            np.testing.assert_allclose(made[f"{model}.{name}.w_scale"], t.w_scale, rtol=1e-7)
        assert cfg.n_layers * 7 == sum(k.startswith(model) and k.endswith("w_q") for k in made)


def test_the_stored_bytes_are_read_by_rosetta_too():
    _, leaf = given(layout="hf")
    wq = homework(0).weights["bitnet"]["layers.0.attn.wq"].w_q
    assert np.array_equal(rosetta.unpack_hf(leaf["bitnet.layers.0.attn.wq.stored"], len(wq)), wq)


@pytest.mark.parametrize("model", MODELS)
def test_the_model_is_the_transformer(model, tol):
    """Every activation that the block saves, and the logits, in float64."""
    work, cfg = homework(0), MODELS[model]
    weights = {n: (Prepared(t.w_q, np.float64(t.w_scale)) if isinstance(t, tuple) else t.astype(np.float64))
               for n, t in work.weights[model].items()}
    plan = Transformer(cfg, work.weights[model], load("numpy")).plan
    logits, saved = forward(plan, weights, work.ids[model][None])
    made = dumped(dtype=np.float64)

    def same(name, theirs):
        ours = made[f"{model}.{name}"]
        assert np.max(np.abs(ours - theirs.reshape(ours.shape))) <= tol["float32"] * np.abs(ours).max(), name

    same("logits", logits[0])
    for l, s in enumerate(saved.blocks):
        for name, theirs in {"q_rope": s.q, "k_rope": s.k, "v": s.v, "attn": s.o, "h": s.h, "gate": s.gate,
                             "up": s.up, "act": s.u}.items():
            same(f"layers.{l}.{name}", theirs[0])
        codes = s.in_qkv[0].operand[0]
        assert np.array_equal(made[f"{model}.layers.{l}.attn_norm.x_q"], codes[0])


@pytest.mark.parametrize("probe", ["ties", "small", "reciprocal", "wide"])
def test_activation_slots_are_the_quantiser(probe):
    x = homework(0).probes[f"quant.{probe}.x"]
    x_q, x_scale = absmax_int8(x)
    made = dumped()
    assert np.array_equal(made[f"quant.{probe}.x.x_q"], x_q)
    np.testing.assert_allclose(made[f"quant.{probe}.x.x_scale"], x_scale, rtol=1e-6)


@pytest.mark.parametrize("probe", ["ties", "offset", "small"])
def test_weight_slots_are_the_quantiser(probe):
    w_q, w_scale = absmean_ternary(homework(0).probes[f"ternary.{probe}.w"])
    made = dumped()
    assert np.array_equal(made[f"ternary.{probe}.w.w_q"], w_q)
    np.testing.assert_allclose(made[f"ternary.{probe}.w.w_scale"], w_scale, rtol=1e-6)


def test_norm_and_quantiser_slots_are_the_fused_op():
    p, made = homework(0).probes, dumped()
    x_q, x_scale, rstd = rmsnorm_int8(p["rmsnorm.large.x"], p["rmsnorm.g"])
    np.testing.assert_allclose(made["rmsnorm.large.y"], x_q * x_scale, atol=x_scale.max())
    y = p["rmsnorm.large.x"] * rstd * p["rmsnorm.g"]
    np.testing.assert_allclose(made["rmsnorm.large.y"], y, rtol=1e-5)


def test_attention_slots_are_the_op():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(5, heads, 6)) for heads in (4, 2, 2))
    nodes, _ = given()
    node = next(n for n in nodes if n.name == "attention.single.o")
    ours = node.make(REFERENCE, q, k, v)
    theirs = attention(q[None], k[None], v[None])[0][0]
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=1e-12, atol=1e-14)


def test_gradients_are_the_reference_s():
    p, made = homework(0).probes, dumped(dtype=np.float64)
    x, w, dy = (p[f"train.{n}"].astype(np.float64) for n in ("x", "w", "dy"))
    dw = np.zeros_like(w)
    dx = ternary_linear_backward(dy, *absmax_int8(x), Prepared(*absmean_ternary(w)), dw)
    np.testing.assert_allclose(made["train.dx"], dx, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(made["train.dw"], dw, rtol=1e-12, atol=1e-14)


def test_the_optimiser_is_the_reference_s():
    p, h, made = homework(0).probes, Hyper(), dumped(dtype=np.float64)
    flat = {t: p[f"train.p.{t}"].astype(np.float64).reshape(-1) for t in ("matrix", "gain")}
    moments = {t: (np.zeros_like(a), np.zeros_like(a)) for t, a in flat.items()}
    for step in (1, 2):
        grads = [p[f"train.step{step}.grad.{t}"].astype(np.float64).reshape(-1) for t in flat]
        both = np.concatenate(grads)
        assert clip_(both, h.max_norm) > h.max_norm       # the homework does clip
        for (t, a), g in zip(flat.items(), np.split(both, [grads[0].size])):
            decay = h.decay if t == "matrix" else 0.0
            adamw_(a, g, *moments[t], step, h.lr, decay, h.beta1, h.beta2, h.eps)
            for name, ours in (("p", a), ("m", moments[t][0]), ("v", moments[t][1])):
                theirs = made[f"train.step{step}.{name}.{t}"].reshape(-1)
                np.testing.assert_allclose(theirs, ours, rtol=1e-12, err_msg=f"{step} {name} {t}")


def test_every_slot_is_used_and_none_is_missing():
    taken = set()

    class Watch:
        def __getattr__(self, slot):
            taken.add(slot)
            return getattr(REFERENCE, slot)

    for layout in ("hf", "128"):
        nodes, leaf = given(layout=layout)
        values = dict(leaf)
        for node in nodes:
            values[node.name] = node.make(Watch(), *[values[i] for i in node.inputs])
    assert taken == set(vars(REFERENCE))


def test_a_node_says_what_it_is():
    for node in given()[0]:
        assert isinstance(node, Node)
        assert len(node.about) > 3
        assert len(inspect.signature(node.make).parameters) > 1


def test_homework_is_the_same_for_the_same_seed_and_no_other():
    a, b, c = homework(3), homework(3), homework(4)
    assert all(np.array_equal(a.probes[n], b.probes[n]) for n in a.probes)
    assert not np.array_equal(a.probes["train.x"], c.probes["train.x"])
    wq = [h.weights["llama"]["layers.0.attn.wq"].w_q for h in (a, b, c)]
    assert np.array_equal(wq[0], wq[1])
    assert not np.array_equal(wq[0], wq[2])


@pytest.mark.parametrize("seed", range(6))
def test_probes_hold_what_they_promise(seed):
    p = homework(seed).probes
    half = np.abs(p["quant.ties.x"]) * 127 / np.abs(p["quant.ties.x"]).max(axis=1, keepdims=True)
    assert np.count_nonzero(half % 1 == 0.5) >= 12
    assert not p["quant.small.x"][0].any()
    many, one = p["quant.reciprocal.x"], np.abs(p["quant.reciprocal.x"]).max(axis=1, keepdims=True)
    for dtype in (np.float32, np.float64):
        x, a = many.astype(dtype), one.astype(dtype)
        assert (np.rint(x * (127 / a)) != np.rint(x / (a / 127))).any()
    assert np.mean(np.abs(p["ternary.ties.w"])) == 1
    assert p["product.worst.x_q"].shape[1] == 2560
    assert np.abs(p["glu.large.gate"]).max() ** 2 > 65504
    assert np.abs(p["residual.large.x"]).max() > 65504
    loss, _ = cross_entropy(dumped(seed=seed)["bitnet.logits"][:-1], homework(seed).ids["bitnet"][1:])
    assert 0 < loss < 100                                  # activations near one: a model, not an explosion
