"""One training step of the whole model over a workspace: the reference's train_step, with nothing allocated.

The verbs and their order are those of model/block; what differs is where results go. Residual gradients are
added where they are made, and the head is fused with the loss so that a chunk of the logits is all that is
ever held.
Read after: kernels/numba_cpu/workspace. Read next: kernels/numba_cpu/program.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bitnet_ref.kernels.numba_cpu import bf16
from bitnet_ref.kernels.numba_cpu.attention import backward as attention_backward
from bitnet_ref.kernels.numba_cpu.attention import forward as attention
from bitnet_ref.kernels.numba_cpu.bitlinear import norm_int8, ternary_dw, ternary_dx, ternary_product
from bitnet_ref.kernels.numba_cpu.cross_entropy import chunk_by_chunk
from bitnet_ref.kernels.numba_cpu.embedding import embedding_backward
from bitnet_ref.kernels.numba_cpu.glu import backward as gated_backward
from bitnet_ref.kernels.numba_cpu.glu import forward as gated
from bitnet_ref.kernels.numba_cpu.linear import product, product_dw, product_dx
from bitnet_ref.kernels.numba_cpu.rmsnorm import NO_GAIN
from bitnet_ref.kernels.numba_cpu.rmsnorm import backward as norm_backward
from bitnet_ref.kernels.numba_cpu.rmsnorm import forward as norm
from bitnet_ref.kernels.numba_cpu.rope import rope, rope_backward
from bitnet_ref.kernels.numba_cpu.workspace import Entered, Saved, Workspace, workspace
from bitnet_ref.layers.rope import rope_table

FREE = "free"                # a norm without gain, as model/layout names it


def train_step(plan: Any, w: dict[str, Any], batches: Iterable[tuple[np.ndarray, np.ndarray]], share: float,
               grads: Any, half: bool = False) -> float:
    """As model.transformer.train_step. NotImplemented for float64: that precision is the reference's.

    `half`: the backward products in bfloat16.
    """
    if grads.flat.dtype != np.float32:
        return NotImplemented
    total = 0.0
    for ids, targets in batches:
        ws = plan.kept.get("workspace")
        if ws is None or ids.shape != (ws.B, ws.T) or half != bool(ws.pairs.size):
            ws = plan.kept["workspace"] = None             # let go of the old one before the new one is made
            B, T = ids.shape
            ws = plan.kept["workspace"] = workspace(plan, B, T, half)
            plan.kept["angles"] = rope_table(np.arange(ws.T), plan.cfg.head_dim, plan.cfg.rope_theta)
        table = plan.kept["angles"]
        _forward(plan, w, ids, ws, table)
        total += share * _loss(plan, w, np.ascontiguousarray(targets, np.int64).reshape(-1), share, ws, grads)
        _backward(plan, w, ids, ws, table, grads)
    return total


def _forward(plan: Any, w: Any, ids: np.ndarray, ws: Workspace, table: tuple[np.ndarray, np.ndarray]) -> None:
    """Fills the workspace up to the final stream."""
    cfg, places = plan.cfg, plan.layout
    first = ws.layers[0].x if ws.layers else ws.x
    np.take(w["embedding"], ids.reshape(-1), axis=0, out=first, mode="clip")    # Transformer checked the ids
    for l, s in enumerate(ws.layers):
        at, after = f"layers.{l}.", ws.layers[l + 1].x if l + 1 < len(ws.layers) else ws.x
        _project(s.x, (s.q, s.k, s.v), places.qkv, w, at, s, cfg)                           # (BK.1)
        q, k, v, o = (_heads(x, ws, cfg) for x in (s.q, s.k, s.v, s.o))
        rope(q, *table, out=q)                                                              # (BK.2)
        rope(k, *table, out=k)
        attention(q, k, v, o, s.lse)                                                        # (BK.3)
        _project(s.o, (ws.a,), places.out, w, at, s, cfg)                                   # (BK.4)
        np.add(s.x, ws.a, out=s.h)                                                          # (BK.5)
        _project(s.h, (s.gate, s.up), places.gate_up, w, at, s, cfg)                        # (BK.6)
        gated(s.gate, s.up, cfg.glu == "relu2", s.u)                                        # (BK.7)
        _project(s.u, (ws.a,), places.down, w, at, s, cfg)                                  # (BK.8)
        np.add(s.h, ws.a, out=after)                                                        # (BK.9)


def _loss(plan: Any, w: Any, targets: np.ndarray, share: float, ws: Workspace, grads: Any) -> float:
    """Mean loss; ws.dx becomes the gradient of the final stream. Logits are made and used chunk by chunk."""
    cfg = plan.cfg
    entry, ternary = plan.head_entry[0], plan.cfg.head == "ternary"
    _enter(ws.x, entry, w, "", ws.head, ternary, cfg.norm_eps)
    dhead = grads["embedding" if cfg.tied_embeddings else "head"]

    def multiply(a: int, b: int, y: np.ndarray) -> None:                                    # (TR.3)
        _multiply(ws.x[a:b], Entered(*(x[a:b] for x in ws.head)), w["head"], y, ternary)

    def multiply_backward(a: int, b: int, dy: np.ndarray) -> None:
        entered = Entered(*(x[a:b] for x in ws.head))
        _multiply_backward(dy, ws.x[a:b], entered, w["head"], dhead, ws.dx[a:b], False, ternary, ws)

    loss = chunk_by_chunk(multiply, multiply_backward, targets, share, ws.logits, ws.lse, ws.losses)  # (TR.4)
    norm_backward(ws.dx, ws.x, w[entry.norm], ws.head.rstd, ws.dx, grads[entry.norm])
    return loss


def _backward(plan: Any, w: Any, ids: np.ndarray, ws: Workspace, table: tuple[np.ndarray, np.ndarray],
              grads: Any) -> None:
    """From ws.dx, the gradient of the final stream, back to the embedding."""
    cfg, places = plan.cfg, plan.layout
    for l in reversed(range(len(ws.layers))):
        s, at = ws.layers[l], f"layers.{l}."
        rest = (w, at, s, ws, cfg, grads)
        _project_backward((ws.dx,), s.u, places.down, ws.du, False, *rest)                  # (BK.8)
        gated_backward(ws.du, s.gate, s.up, cfg.glu == "relu2", ws.dgate, ws.dup)           # (BK.7)
        _project_backward((ws.dgate, ws.dup), s.h, places.gate_up, ws.dx, True, *rest)      # (BK.6), (BK.9)
        _project_backward((ws.dx,), s.o, places.out, ws.do, False, *rest)                   # (BK.4)
        q, k, v, o, do, dq, dk, dv = (_heads(x, ws, cfg)
                                      for x in (s.q, s.k, s.v, s.o, ws.do, ws.dq, ws.dk, ws.dv))
        attention_backward(do, q, k, v, o, s.lse, dq, dk, dv)                               # (BK.3)
        rope_backward(dq, *table, out=dq)                                                   # (BK.2)
        rope_backward(dk, *table, out=dk)
        _project_backward((ws.dq, ws.dk, ws.dv), s.x, places.qkv, ws.dx, True, *rest)       # (BK.1), (BK.5)
    embedding_backward(ws.dx, ids, grads["embedding"])


def _heads(x: np.ndarray, ws: Workspace, cfg: Any) -> np.ndarray:
    """(M, H Dh)  ->  (B, T, H, Dh), a view."""
    return x.reshape(ws.B, ws.T, -1, cfg.head_dim)


def _gain(table: Any, at: str, entry: Any) -> np.ndarray | None:
    return None if entry.norm == FREE else table[at + entry.norm]


def _enter(x: np.ndarray, entry: Any, w: Any, at: str, into: Entered, ternary: bool, eps: float) -> None:
    """The input x (M, K) as the entry's weights read it."""
    if ternary:
        gain = None if entry.norm is None else _gain(w, at, entry)
        norm_int8(x, NO_GAIN if gain is None else gain, eps, entry.norm is not None, into.x_q, into.x_scale,
                  into.rstd)
    elif entry.norm is not None:
        norm(x, _gain(w, at, entry), eps, into.floats, into.rstd)


def _multiply(x: np.ndarray, entered: Entered, w: Any, y: np.ndarray, ternary: bool) -> None:
    """y (M, N) = the entered input times w (N, K)."""
    if ternary:
        ternary_product(entered.x_q, entered.x_scale, w.w_q, w.w_scale, y)
    else:
        product(entered.floats if len(entered.floats) else x, w, y)


def _multiply_backward(dy: np.ndarray, x: np.ndarray, entered: Entered, w: Any, dw: np.ndarray,
                       dx: np.ndarray, onto: bool, ternary: bool, ws: Workspace) -> None:
    """dx (M, K) = (or +=) dy (M, N) times w; accumulates into dw (N, K)."""
    if ws.pairs.size:
        floats = entered.floats if len(entered.floats) else x
        operand, scales = (entered.x_q, entered.x_scale) if ternary else (floats, ws.ones[:len(dy)])
        weights, w_scale = (w.w_q, w.w_scale) if ternary else (w, 1)
        bf16.product_dw(dy, operand, scales, dw, ws.pairs)
        bf16.product_dx(dy, weights, w_scale, dx, onto, ws.pairs)
    elif ternary:
        ternary_dw(dy, entered.x_q, entered.x_scale, dw)
        ternary_dx(dy, w.w_q, w.w_scale, dx, onto)
    else:
        product_dw(dy, entered.floats if len(entered.floats) else x, dw)
        product_dx(dy, w, dx, onto)


def _project(x: np.ndarray, ys: Sequence[np.ndarray], entries: Sequence[Any], w: Any, at: str, s: Saved,
             cfg: Any) -> None:
    """All projections that read x, into ys, in order."""
    ternary, left = cfg.linear == "ternary", list(ys)
    for entry in entries:
        entered = s.entered[entry.weights[0]]
        _enter(x, entry, w, at, entered, ternary, cfg.norm_eps)
        for name in entry.weights:
            _multiply(x, entered, w[at + name], left.pop(0), ternary)


def _project_backward(dys: Sequence[np.ndarray], x: np.ndarray, entries: Sequence[Any], dx: np.ndarray,
                      onto: bool, w: Any, at: str, s: Saved, ws: Workspace, cfg: Any, grads: Any) -> None:
    """dx (M, K) = (or +=) the sum over all projections, back through each entry's norm."""
    ternary, left = cfg.linear == "ternary", list(dys)
    behind = ws.dn.reshape(-1)[:dx.size].reshape(dx.shape)
    for entry in entries:
        entered, first = s.entered[entry.weights[0]], True
        for name in entry.weights:
            target, add = (dx, onto) if entry.norm is None else (behind, False)
            _multiply_backward(left.pop(0), x, entered, w[at + name], grads[at + name], target,
                               add or not first, ternary, ws)
            first = False
        if entry.norm is not None:
            norm_backward(behind, x, _gain(w, at, entry), entered.rstd, dx, _gain(grads, at, entry), onto)
        onto = True


def bf16_train_step() -> Callable[..., float]:
    """train_step with its backward products in bfloat16. Raises CheckError where the processor lacks them."""
    bf16.require()
    return partial(train_step, half=True)
