"""One training step of the whole model on the device: the reference's train_step, over memory there.

What comes to the device is tokens, what goes back is a loss for each of them. The verbs and their order are
those of model/block; matrices that read one input are one product.
Read after: kernels/numba_cuda/workspace. Read next: model.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.kernels.numba_cuda import rope_backward, ternarise
from bitnet_ref.kernels.numba_cuda.attention import attention
from bitnet_ref.kernels.numba_cuda.attention_backward import attention_backward
from bitnet_ref.kernels.numba_cuda.bitlinear import Packed, empty, padded
from bitnet_ref.kernels.numba_cuda.bitlinear import product as ternary_product
from bitnet_ref.kernels.numba_cuda.cross_entropy import cross_entropy
from bitnet_ref.kernels.numba_cuda.decode_step import forward as forward_of_others
from bitnet_ref.kernels.numba_cuda.embedding import EMBEDDING
from bitnet_ref.kernels.numba_cuda.embedding_backward import embedding_dw, rows
from bitnet_ref.kernels.numba_cuda.glu import GLU
from bitnet_ref.kernels.numba_cuda.glu_backward import gated_backward
from bitnet_ref.kernels.numba_cuda.linear_backward import product, product_dw, product_dx
from bitnet_ref.kernels.numba_cuda.memory import Array, Device, device
from bitnet_ref.kernels.numba_cuda.program import Held, size
from bitnet_ref.kernels.numba_cuda.rmsnorm import BARE, FREE, GAINED, rmsnorm, rmsnorm_int8
from bitnet_ref.kernels.numba_cuda.rmsnorm_backward import norm_backward
from bitnet_ref.kernels.numba_cuda.rope_backward import blocks
from bitnet_ref.kernels.numba_cuda.threads import exclusive
from bitnet_ref.kernels.numba_cuda.workspace import (
    Codes,
    Column,
    Entered,
    Saved,
    Workspace,
    columns,
    workspace,
)

NO_GAIN = "free"             # a norm without one, as model/layout names it


class Stack(NamedTuple):
    """The matrices (N, K) that one entry reads, one below the other: trits in two forms, or floats."""

    N: int
    K: int
    w_q: Array | None            # int8 (N, K), for backward
    packed: Packed | None        # for forward, with the scale of each row
    floats: Array | None


class Step(NamedTuple):
    """What every part of a step needs. `held`: weights on the device, by name, and stacks by their first."""

    device: Device
    plan: Any
    ws: Workspace
    held: dict[str, Any]
    grads: Array | None          # the flat gradient
    starts: dict[str, int]       # of each tensor in it


def train_step(plan: Any, w: Any, batches: Iterable[tuple[np.ndarray, np.ndarray]], share: float,
               grads: Any) -> float:
    """As model.transformer.train_step. NotImplemented for float64: that precision is the reference's.

    `grads` may lie on the device, where it is added to, or with NumPy, to which it is then brought.
    """
    if grads.flat.dtype != np.float32:
        return NotImplemented
    resident = isinstance(grads.flat, Array)
    flat = grads.flat if resident else device().zeros((grads.flat.size,), np.float32)
    ends = np.cumsum([0] + [int(np.prod(s.shape)) for s in grads.specs]).tolist()
    total = 0.0
    with exclusive():
        for ids, targets in batches:
            step = _begun(plan, w, ids, flat, dict(zip((s.name for s in grads.specs), ends)))
            _forward(step)
            _loss(step, targets, share)
            _backward(step, ids)
            total += share * float(np.mean(device().read(step.ws.losses), dtype=np.float64))    # (TR.4)
    if not resident:
        grads.flat += device().read(flat)
    return total


def forward(plan: Any, w: Any, ids: np.ndarray) -> np.ndarray:
    """As decode_step.forward, of any model; of one in training over its workspace."""
    if not isinstance(w["embedding"], Array):
        return forward_of_others(plan, w, ids)
    with exclusive():
        return _logits(plan, w, ids)


def _logits(plan: Any, w: Any, ids: np.ndarray) -> np.ndarray:
    """ids int (B, T)  ->  logits (B, T, V)."""
    step = _begun(plan, w, ids, None, {})
    d, ws, V = step.device, step.ws, plan.cfg.vocab_size
    _forward(step)
    _enter(step, ws.x, plan.head_entry[0], "", ws.head, plan.cfg.d_model)
    parts = []
    for a in range(0, ids.size, ws.logits.shape[0]):
        n = min(ws.logits.shape[0], ids.size - a)
        _multiply(step, ws.x, ws.head, step.held["head"], ws.logits, a, n)
        parts.append(d.read(ws.logits.part(0, (n, V))))
    return np.concatenate(parts).reshape(*ids.shape, V)


def _begun(plan: Any, w: Any, ids: np.ndarray, flat: Array | None, starts: dict[str, int]) -> Step:
    """The step of one micro-batch, its workspace and weights ready, its tokens on the device."""
    d = device()
    ws = plan.kept.get("workspace")
    if ws is None or ids.shape != (ws.B, ws.T):
        ws = plan.kept["workspace"] = None                 # let go of the old one before the new one is made
        ws = plan.kept["workspace"] = workspace(d, plan, *ids.shape)
    if "training" not in w.kept:
        w.kept["training"] = _held(d, plan, w)
    d.write(ws.ids, ids.reshape(-1).astype(np.int32))
    return Step(d, plan, ws, w.kept["training"], flat, starts)


# ---- weights ----

def _held(d: Device, plan: Any, w: Any) -> dict[str, Any]:
    """Weights as the step reads them: stacks by the name of their first matrix, other arrays by their own."""
    cfg = plan.cfg
    d.require(sum(size(m) + m.w_q.size for m in w.values() if isinstance(m, Held)),
              "the trits of a training step, as numbers and packed")
    found: dict[str, Any] = {"head": _stack(d, [w["head"]])}
    for l in range(cfg.n_layers):
        for place in plan.layout:
            for entry in place:
                names = [f"layers.{l}.{name}" for name in entry.weights]
                found[names[0]] = _stack(d, [w[name] for name in names])
                found |= {f"layers.{l}.{entry.norm}": w[f"layers.{l}.{entry.norm}"]
                          for _ in (1,) if entry.norm not in (None, NO_GAIN)}
    found |= {name: w[name] for name in ("embedding", "final_norm")}
    return {name: d.upload(t) if isinstance(t, np.ndarray) else t for name, t in found.items()}


def _stack(d: Device, matrices: list[Any]) -> Stack:
    ternary = hasattr(matrices[0], "w_q")
    shapes = [(m.w_q if ternary else m).shape for m in matrices]
    N, K = sum(n for n, _ in shapes), shapes[0][1]
    if not ternary:
        if isinstance(matrices[0], Array):                 # neighbours in the table of parameters
            assert all(b.address == a.address + a.nbytes for a, b in pairwise(matrices))
            return Stack(N, K, None, None, matrices[0]._replace(shape=(N, K)))
        return Stack(N, K, None, None, d.upload(np.concatenate(matrices)))
    w_q, packed, row = d.empty((N, K), np.int8), empty(d, N, K), 0
    for m, (n, _) in zip(matrices, shapes):
        codes, scale = ((m.w_q, m.w_scale) if isinstance(m.w_q, Array) else
                        (d.upload(m.w_q), d.upload(np.asarray(m.w_scale, np.float32))))
        d.copy(w_q.part(row * K, (n, K)), codes)
        ternarise.pack_rows(d, codes, scale, packed, row)
        row += n
    return Stack(N, K, w_q, packed, None)


# ---- forward ----

def _forward(s: Step) -> None:
    """Fills the workspace up to the final stream."""
    d, ws, cfg, places = s.device, s.ws, s.plan.cfg, s.plan.layout
    D, F, M = cfg.d_model, cfg.d_ff, s.ws.B * s.ws.T
    qkv, gate_up = _columns(s, places.qkv), _columns(s, places.gate_up)
    first = ws.layers[0].x if ws.layers else ws.x
    d.launch(EMBEDDING["f32"], (M,), ws.ids, s.held["embedding"], first, D, D)             # (TR.1)
    for l, saved in enumerate(ws.layers):
        at, after = f"layers.{l}.", ws.layers[l + 1].x if l + 1 < len(ws.layers) else ws.x
        _project(s, saved.x, D, places.qkv, at, saved, ws.qkv)                              # (BK.1)
        d.launch(rope_backward.rope_split, *_heads(s, qkv, saved.q, saved.k, saved.v))      # (BK.2)
        attention(d, saved.q.reshape(M, cfg.n_heads, cfg.head_dim), saved.k, saved.v, ws.queries, saved.o,
                  saved.lse, None)                                                          # (BK.3)
        _project(s, saved.o, D, places.out, at, saved, saved.h, saved.x)                    # (BK.4), (BK.5)
        _project(s, saved.h, D, places.gate_up, at, saved, saved.gate_up)                   # (BK.6)
        gate, up = (_column(saved.gate_up, gate_up[name]) for name in ("ffn.w_gate", "ffn.w_up"))
        d.launch(GLU[cfg.glu], (M,), gate[0], up[0], gate[1], saved.u, F)                   # (BK.7)
        _project(s, saved.u, F, places.down, at, saved, after, saved.h)                     # (BK.8), (BK.9)


def _columns(s: Step, place: Any) -> dict[str, Column]:
    cfg = s.plan.cfg
    narrow, wide = cfg.n_kv_heads * cfg.head_dim, ("ffn.w_gate", "ffn.w_up")
    widths = {name: narrow if name in ("attn.wk", "attn.wv") else cfg.d_ff if name in wide else cfg.d_model
              for entry in place for name in entry.weights}
    return columns(place, widths, s.ws.B * s.ws.T)


def _column(of: Array, c: Column) -> tuple[Array, int]:
    return of.part(c.start, (1,)), c.apart


def _heads(s: Step, qkv: dict[str, Column], q: Array, k: Array, v: Array) -> tuple[Any, ...]:
    """What rope_split and rope_join are launched with, the grid first."""
    ws, cfg = s.ws, s.plan.cfg
    half, H, KV = cfg.head_dim // 2, cfg.n_heads, cfg.n_kv_heads
    n = ws.B * ws.T * (H + 2 * KV) * half
    rows_of = [part for name in ("attn.wq", "attn.wk", "attn.wv") for part in _column(ws.qkv, qkv[name])]
    return blocks(n), *rows_of, ws.cos, ws.sin, q, k, v, ws.T, H, KV, half, n


def _enter(s: Step, x: Array, entry: Any, at: str, into: Entered, K: int) -> None:
    """The input x (M, K) as the entry's weights read it."""
    gain, M, eps = _gain(s, at, entry), s.ws.B * s.ws.T, s.plan.cfg.norm_eps
    mode = BARE if entry.norm is None else FREE if gain is None else GAINED
    if isinstance(into, Codes):
        s.device.launch(rmsnorm_int8, (M,), x, x, K, gain or x, mode, eps, *into, K, padded(K))
    elif into.n is not None:
        s.device.launch(rmsnorm, (M,), x, gain or x, mode, eps, into.n, into.rstd, K, K)


def _gain(s: Step, at: str, entry: Any) -> Array | None:
    return None if entry.norm in (None, NO_GAIN) else s.held[at + entry.norm]


def _floats(entered: Entered, x: Array) -> Array:
    assert not isinstance(entered, Codes)
    return x if entered.n is None else entered.n


def _multiply(s: Step, x: Array, entered: Entered, stack: Stack, y: Array, a: int, n: int,
              add: Array | None = None) -> None:
    """y (n, N) = rows a to a + n of the entered input times the stack [+ add]."""
    N, K = stack.N, stack.K
    if stack.packed is not None:
        assert isinstance(entered, Codes)
        ternary_product(s.device, entered.x_q.part(a * padded(K), (n, padded(K))),
                        entered.x_scale.part(a, (n,)), entered.x_sum.part(a, (n,)), stack.packed, y, n, add)
    else:
        assert stack.floats is not None
        product(s.device, _floats(entered, x).part(a * K, (n, K)), stack.floats, y, n, N, K, add)


def _project(s: Step, x: Array, K: int, entries: Sequence[Any], at: str, saved: Saved, y: Array,
             add: Array | None = None) -> None:
    """All projections that read x (M, K), into the memory y of their place."""
    M, start = s.ws.B * s.ws.T, 0
    for entry in entries:
        entered, stack = saved.entered[entry.weights[0]], s.held[at + entry.weights[0]]
        _enter(s, x, entry, at, entered, K)
        _multiply(s, x, entered, stack, y.part(start, (M, stack.N)), 0, M, add)
        start += M * stack.N


# ---- loss ----

def _loss(s: Step, targets: np.ndarray, share: float) -> None:
    """Losses by token; ws.dx becomes the gradient of the final stream. Logits live chunk by chunk."""
    d, ws, cfg = s.device, s.ws, s.plan.cfg
    entry, stack, D, V, M = s.plan.head_entry[0], s.held["head"], cfg.d_model, cfg.vocab_size, ws.B * ws.T
    d.write(ws.targets, targets.reshape(-1).astype(np.int32))
    _enter(s, ws.x, entry, "", ws.head, D)
    name, chunk = "embedding" if cfg.tied_embeddings else "head", ws.logits.shape[0]
    for a in range(0, M, chunk):
        n = min(chunk, M - a)
        _multiply(s, ws.x, ws.head, stack, ws.logits, a, n)                                 # (TR.3)
        d.launch(cross_entropy, (n,), ws.logits, ws.targets.part(a, (n,)), share / M,
                 ws.losses.part(a, (n,)), V)                                                # (TR.4)
        _multiply_backward(s, ws.logits, ws.x, ws.head, stack, name, ws.dx.part(a * D, (n, D)), False, a, n)
    norm_backward(d, ws.dx, ws.x, s.held["final_norm"], ws.head.rstd, ws.dx, _grad(s, "final_norm", D),
                  False, M, D)


# ---- backward ----

def _backward(s: Step, ids: np.ndarray) -> None:
    """From ws.dx, the gradient of the final stream, back to the embedding."""
    d, ws, cfg, places = s.device, s.ws, s.plan.cfg, s.plan.layout
    D, F, M = cfg.d_model, cfg.d_ff, s.ws.B * s.ws.T
    qkv, gate_up = _columns(s, places.qkv), _columns(s, places.gate_up)
    for l in reversed(range(len(ws.layers))):
        saved, at = ws.layers[l], f"layers.{l}."
        _project_backward(s, ws.dx, saved.u, F, places.down, at, saved, ws.du, False)       # (BK.8)
        gate, up, dgate, dup = (_column(of, gate_up[name]) for of in (saved.gate_up, ws.dgate_up)
                                for name in ("ffn.w_gate", "ffn.w_up"))
        d.launch(gated_backward, blocks(M * F), ws.du, gate[0], up[0], gate[1], int(cfg.glu == "relu2"),
                 dgate[0], dup[0], F, M * F)                                                # (BK.7)
        _project_backward(s, ws.dgate_up, saved.h, D, places.gate_up, at, saved, ws.dx, True)  # (BK.6, BK.9)
        _project_backward(s, ws.dx, saved.o, D, places.out, at, saved, ws.do, False)        # (BK.4)
        attention_backward(d, ws.do, saved.q, saved.k, saved.v, saved.o, saved.lse, ws.delta, ws.dq, ws.dk,
                           ws.dv)                                                           # (BK.3)
        d.launch(rope_backward.rope_join, *_heads(s, qkv, ws.dq, ws.dk, ws.dv))             # (BK.2)
        _project_backward(s, ws.qkv, saved.x, D, places.qkv, at, saved, ws.dx, True)        # (BK.1), (BK.5)
    found = rows(ids.reshape(-1))
    for held, values in zip((ws.rows, ws.starts, ws.order), found):
        d.write(held.part(0, values.shape), values)
    d.launch(embedding_dw, (len(found.ids),), ws.dx, ws.rows, ws.starts, ws.order,
             _grad(s, "embedding", cfg.vocab_size * D), D)


def _grad(s: Step, name: str, size: int) -> Array:
    """`size` numbers of the gradient, from tensor `name` on."""
    assert s.grads is not None
    return s.grads.part(s.starts[name], (size,))


def _multiply_backward(s: Step, dy: Array, x: Array, entered: Entered, stack: Stack, name: str, dx: Array,
                       onto: bool, a: int, n: int) -> None:
    """dx (n, K) = (or +=) dy (n, N) times the stack; accumulates into the gradient from tensor `name` on."""
    N, K = stack.N, stack.K
    dw = _grad(s, name, N * K)
    if stack.packed is not None:
        assert isinstance(entered, Codes)
        assert stack.w_q is not None
        codes, scales = entered.x_q.part(a * padded(K), (n, padded(K))), entered.x_scale.part(a, (n,))
        product_dw(s.device, dy, codes, scales, padded(K), dw, n, N, K)
        product_dx(s.device, dy, stack.w_q, stack.packed.w_scale, dx, onto, n, N, K)
    else:
        assert stack.floats is not None
        product_dw(s.device, dy, _floats(entered, x).part(a * K, (n, K)), None, K, dw, n, N, K)
        product_dx(s.device, dy, stack.floats, None, dx, onto, n, N, K)


def _project_backward(s: Step, dy: Array, x: Array, K: int, entries: Sequence[Any], at: str, saved: Saved,
                      dx: Array, onto: bool) -> None:
    """dx (M, K) = (or +=) the sum over all projections, back through each entry's norm. dy: a place."""
    M, start = s.ws.B * s.ws.T, 0
    for entry in entries:
        name = at + entry.weights[0]
        entered, stack = saved.entered[entry.weights[0]], s.held[name]
        own, behind = dy.part(start, (M, stack.N)), s.ws.dn.part(0, (M, K))
        start += M * stack.N
        if entry.norm is None:
            _multiply_backward(s, own, x, entered, stack, name, dx, onto, 0, M)
        else:
            _multiply_backward(s, own, x, entered, stack, name, behind, False, 0, M)
            gain = _gain(s, at, entry)
            dg = None if gain is None else _grad(s, at + entry.norm, K)
            norm_backward(s.device, behind, x, gain, entered.rstd, dx, dg, onto, M, K)
        onto = True
