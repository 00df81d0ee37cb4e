"""The homework as a graph: every tensor that a port may dump, in dataflow order, and what it is made from.

A node's `make` takes a table of slots and the values of its inputs. Run with the reference's slots it says
what is right; with a fault's, what a port with that fault would have got; and since inputs may be the port's
own tensors, each op can be judged by itself.
Read after: conform/training_slots. Read next: conform/faults.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.config import ModelConfig
from bitnet_ref.conform import slots as op
from bitnet_ref.conform import training_slots as train
from bitnet_ref.conform.homework import INVERSE, MODELS, Homework
from bitnet_ref.model.layout import shapes
from bitnet_ref.model.weights import Trits
from bitnet_ref.pack import rosetta

REFERENCE = SimpleNamespace(**op.REFERENCE, **train.TRAINING)


class Node(NamedTuple):
    """One tensor. `codes`: made by rounding, whole numbers. `about`: what it is, for ports to read.

    `inputs`: names of other nodes or of leaves (what the homework gives). `make(slots, *inputs, *hints)`;
    hints are tensors that only a faulty port reads here.
    """

    name: str
    about: str
    inputs: tuple[str, ...]
    make: Callable[..., Any]
    codes: bool = False
    hints: tuple[str, ...] = ()


def leaves(work: Homework, layout: str) -> dict[str, Any]:
    """name -> value of everything that is given: weights as the files of `layout` hold them, probes."""
    given: dict[str, Any] = dict(work.probes)
    for model in MODELS:
        given[f"{model}.ids"] = work.ids[model]
        for name, t in work.weights[model].items():
            if isinstance(t, Trits):
                given[f"{model}.{name}.stored"] = stored(t, layout)
                given[f"{model}.{name}.stored_scale"] = (1 / t.w_scale if _inverse(model, layout)
                                                         else t.w_scale)
            else:                                      # gains: the node of that name is the norm's result
                given[f"{model}.{name}" + (".gain" if t.ndim == 1 else "")] = t
    return given


def stored(t: Trits, layout: str) -> np.ndarray:
    """The trits as a file of `layout` holds them: bytes, or int8 for "plain"."""
    if layout == "plain":
        return t.w_q
    if layout == "hf":
        return rosetta.pack_hf(t.w_q)
    return rosetta.pack_i2s(t.w_q, t.w_scale, layout)[:t.w_q.size // 4]


def _inverse(model: str, layout: str) -> bool:
    return INVERSE[model] and layout == "hf"           # I2_S and plain files multiply


def graph(layout: str) -> list[Node]:
    """All nodes in dataflow order: probes of single ops first, so that the smallest evidence leads."""
    return [*_probes(), *(n for model, cfg in MODELS.items() for n in model_nodes(model, cfg, layout)),
            *_training()]


def quantised(x: str) -> list[Node]:
    """The int8 form of tensor `x`."""
    return [Node(f"{x}.x_q", f"int8 codes of {x}", (x,),
                 lambda s, x: s.to_codes(s, s.scaled(x, s.absmax(x))), codes=True),
            Node(f"{x}.x_scale", f"what multiplies {x}.x_q, one per token", (x,),
                 lambda s, x: s.x_scale(s.absmax(x)))]


def weight(name: str, shape: tuple[int, int], layout: str, inverse: bool) -> list[Node]:
    """A stored ternary matrix, decoded."""
    return [Node(f"{name}.w_q", "trits as decoded, (out, in)", (f"{name}.stored",),
                 lambda s, stored: op.decode(s, stored, shape, layout), codes=True),
            Node(f"{name}.w_scale", "what multiplies the trits", (f"{name}.stored_scale",),
                 lambda s, stored: s.stored_scale(stored, inverse))]


def product(y: str, x: str, w: str, about: str, hints: bool = True) -> Node:
    """y = the quantised x times weight w. A port that does not quantise reads x itself."""
    return Node(y, about, (f"{x}.x_q", f"{x}.x_scale", f"{w}.w_q", f"{w}.w_scale"), op.product,
                hints=(x,) if hints else ())


def model_nodes(model: str, cfg: ModelConfig, layout: str) -> Iterator[Node]:
    """One model, from its ids to its logits."""
    at = f"{model}."
    yield Node(at + "embedding_out", "the embedding's rows, the stream at entry",
               (at + "ids", at + "embedding"), lambda s, ids, table: s.embedding(ids, table))
    x = at + "embedding_out"
    for l in range(cfg.n_layers):
        layer = f"{at}layers.{l}."
        for name, shape in shapes(cfg).items():
            yield from weight(layer + name, shape, layout, _inverse(model, layout))
        yield from _attention(layer, x, cfg)
        yield from _gated(layer, cfg)
        x = layer + "out"
    yield _norm(at + "final_norm", x, at + "final_norm.gain", cfg)
    head = at + ("embedding" if cfg.tied_embeddings else "head")
    yield Node(at + "logits", "(T, V)", (at + "final_norm", head),
               lambda s, x, table: x @ s.head(table, cfg.tied_embeddings, s.got).T)


def _norm(name: str, x: str, gain: str, cfg: ModelConfig) -> Node:
    return Node(name, f"RMSNorm of {x}", (x, gain), lambda s, x, g: op.norm(s, x, g, cfg.norm_eps))


def _attention(at: str, x: str, cfg: ModelConfig) -> Iterator[Node]:
    H, KV, Dh, sub = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.norm == "sub"
    gains = (at + "attn_norm.gain", at + "attn_sub_norm.gain")[:1 + sub]
    yield Node(at + "attn_norm", f"RMSNorm of {x}", (x, gains[0]),
               lambda s, x, g, sub=None: s.entry_norm(s, x, g, sub, cfg.norm_eps), hints=gains[1:])
    yield from quantised(at + "attn_norm")
    for y in "qkv":
        yield product(at + y, at + "attn_norm", f"{at}attn.w{y}", f"{y} before RoPE, (T, heads Dh)")

    def table(s: Any, T: int) -> tuple[np.ndarray, np.ndarray]:
        return s.angles(s.positions(T), Dh, s.theta(cfg.rope_theta))

    yield Node(at + "q_rope", "q after RoPE", (at + "q",),
               lambda s, q: s.rotate(q.reshape(-1, H, Dh), *table(s, len(q))).reshape(q.shape))
    yield Node(at + "k_rope", "k after RoPE", (at + "k",),
               lambda s, k: s.turn_key(s, k.reshape(-1, KV, Dh), *table(s, len(k)), H // KV).reshape(k.shape))
    yield Node(at + "probs", "softmax of the masked scores, (H, T, T)", (at + "q_rope", at + "k_rope"),
               lambda s, q, k: op.probabilities(s, q.reshape(-1, H, Dh), k.reshape(-1, KV, Dh)))
    yield Node(at + "attn", "attention's result, heads side by side", (at + "probs", at + "v"),
               lambda s, p, v: op.mix(s, p, s.turn_value(s, v.reshape(-1, KV, Dh), *table(s, len(v)))))
    entering = at + "attn"
    if sub:
        entering = at + "attn_sub_norm"
        yield Node(entering, f"RMSNorm of {at}attn", (at + "attn", gains[-1]),
                   lambda s, x, g: s.attn_sub_norm(s, x, g, cfg.norm_eps))
    yield from quantised(entering)
    yield product(at + "o", entering, at + "attn.wo", "the output projection")
    yield Node(at + "h", f"{x} + o", (x, at + "o"), lambda s, x, o: s.add(x, o))


def _gated(at: str, cfg: ModelConfig) -> Iterator[Node]:
    yield _norm(at + "ffn_norm", at + "h", at + "ffn_norm.gain", cfg)
    yield from quantised(at + "ffn_norm")
    for y in ("gate", "up"):
        yield product(at + y, at + "ffn_norm", f"{at}ffn.w_{y}", f"the {y} projection")
    yield _unit(at + "act", at + "gate", at + "up", cfg.glu)
    entering = at + "act"
    if cfg.norm == "sub":
        entering = at + "ffn_sub_norm"
        yield Node(entering, f"RMSNorm of {at}act", (at + "act", at + "ffn_sub_norm.gain"),
                   lambda s, x, g: s.ffn_sub_norm(s, x, g, cfg.norm_eps))
    yield from quantised(entering)
    yield product(at + "down", entering, at + "ffn.w_down", "the down projection")
    yield Node(at + "out", "h + down: the stream after the block", (at + "h", at + "down"),
               lambda s, h, f: s.add(h, f))


def _unit(name: str, gate: str, up: str, glu: str) -> Node:
    about = "max(gate, 0)^2 * up" if glu == "relu2" else "silu(gate) * up"
    return Node(name, about, (gate, up), lambda s, g, u: getattr(s, glu)(*s.gate_and_up(g, u)))


def _probes() -> Iterator[Node]:
    for probe in ("ties", "small", "reciprocal", "wide"):
        yield from quantised(f"quant.{probe}.x")
    for probe in ("ties", "offset", "small"):
        yield from ternary(f"ternary.{probe}.w")
    yield product("product.worst.y", "product.worst", "product.worst", "the largest sums that int8 can make",
                  hints=False)
    for size in ("small", "large"):
        yield Node(f"rmsnorm.{size}.y", "RMSNorm, eps = 1e-5", (f"rmsnorm.{size}.x", "rmsnorm.g"),
                   lambda s, x, g: op.norm(s, x, g, 1e-5))
    for glu in ("relu2", "swiglu"):
        yield _unit(f"glu.large.{glu}", "glu.large.gate", "glu.large.up", glu)
    yield Node("residual.large.sum", "x + y", ("residual.large.x", "residual.large.y"),
               lambda s, x, y: s.add(x, y))
    yield Node("attention.single.o", "attention of one token, no RoPE, (1, 4 * 8)",
               tuple(f"attention.single.{t}" for t in "qkv"),
               lambda s, q, k, v: op.mix(s, op.probabilities(s, q, k), v))


def ternary(w: str) -> list[Node]:
    """A latent float matrix, ternarised."""
    return [Node(f"{w}.w_q", f"trits of {w}", (w,), lambda s, w: s.to_trits(s, w, s.absmean(w)), codes=True),
            Node(f"{w}.w_scale", "what multiplies them", (w,), lambda s, w: s.absmean(w))]


def _training() -> Iterator[Node]:
    yield from quantised("train.x")
    yield from ternary("train.w")
    yield Node("train.dx", "gradient of x", ("train.dy", "train.w.w_q", "train.w.w_scale"),
               train.input_gradient)
    yield Node("train.dw", "gradient of the latent w",
               ("train.dy", "train.x", "train.x.x_q", "train.x.x_scale", "train.w", "train.w.w_q",
                "train.w.w_scale"), train.weight_gradient)
    hyper = train.Hyper()
    for step in (1, 2):
        at = f"train.step{step}."
        both = (at + "grad.matrix", at + "grad.gain")
        for i, t in enumerate(("matrix", "gain")):
            yield Node(f"{at}clipped.{t}", "the gradient after clipping", both,
                       lambda s, *grads, i=i: s.clip(grads, hyper.max_norm)[i])
        for t in ("matrix", "gain"):
            yield from _adam(t, step, hyper)


def _adam(t: str, step: int, h: train.Hyper) -> Iterator[Node]:
    """One tensor's moments and value after a step. Before the first, the moments are zero."""
    at, before = f"train.step{step}.", f"train.step{step - 1}."
    p = f"{before}p.{t}" if step > 1 else f"train.p.{t}"

    def decay(s: Any) -> float:
        return h.decay if t == "matrix" else s.decay_of_gain(h.decay)

    for m, how in (("m", train.first_moment), ("v", train.second_moment)):
        old = (f"{before}{m}.{t}",) if step > 1 else ()
        yield Node(f"{at}{m}.{t}", f"AdamW's {m} after step {step}", (f"{at}clipped.{t}", p, *old),
                   lambda s, g, p, old=0.0, how=how: how(s, old, g, p, decay(s), h))
    yield Node(f"{at}p.{t}", f"the parameter after step {step}", (p, f"{at}m.{t}", f"{at}v.{t}"),
               lambda s, p, m, v: train.updated(s, p, m, v, decay(s), step, h))

