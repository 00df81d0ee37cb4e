"""One block: attention and gated unit, each added to the stream. Backward is the same verbs upside down.

Everything that a config decides (norm layout, gated unit, kind of projection) is resolved once in `build`;
the block itself has no branches. The stream and the gated unit's result stay float32 whatever the weights.
Read after: model/saved. Read next: model/transformer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.config import ModelConfig
from bitnet_ref.model.layout import Entry, Layout, layout
from bitnet_ref.model.projection import PROJECTION, Projection, project, project_backward
from bitnet_ref.model.saved import SavedBlock


class Plan(NamedTuple):
    """A config and a backend, resolved into functions."""

    cfg: ModelConfig
    ops: Any
    layout: Layout
    linear: Projection
    head: Projection
    head_entry: tuple[Entry, ...]
    glu: Callable[[np.ndarray, np.ndarray], np.ndarray]
    glu_backward: Callable[..., tuple[np.ndarray, np.ndarray]]
    kept: dict[str, Any]         # what a backend keeps from call to call, such as its workspace


def build(cfg: ModelConfig, ops: Any) -> Plan:
    """Resolve every variant of `cfg` into functions of the backend `ops`.
    >>> from bitnet_ref import layers
    >>> build(ModelConfig(glu="relu2"), layers).glu is layers.relu2
    True
    """
    return Plan(cfg, ops, layout(cfg), PROJECTION[cfg.linear](ops), PROJECTION[cfg.head](ops),
                (Entry("final_norm", ("head",)),), getattr(ops, cfg.glu), getattr(ops, f"{cfg.glu}_backward"),
                {})


def block(x: np.ndarray, w: dict[str, Any], at: str, table: tuple[np.ndarray, np.ndarray],
          plan: Plan) -> tuple[np.ndarray, SavedBlock]:
    """x (B, T, D)  ->  x (B, T, D), saved.

    `at`: prefix of the block's names in w; `table`: cos, sin of the positions.
    >>> from bitnet_ref import layers; from bitnet_ref.model.layout import WEIGHTS
    >>> cfg = ModelConfig(d_model=2, n_heads=1, n_kv_heads=1, d_ff=2, norm="inner", linear="full")
    >>> w = {name: np.zeros((2, 2)) for names in WEIGHTS for name in names}
    >>> y, saved = block(np.array([[[1.0, 2.0]]]), w, "", (1.0, 0.0), build(cfg, layers))
    >>> y                                # matrices of zeros add nothing: the stream goes through
    array([[[1., 2.]]])
    """
    cfg, ops, places = plan.cfg, plan.ops, plan.layout
    qkv, in_qkv = project(x, places.qkv, w, at, plan.linear, cfg.norm_eps)                    # (BK.1)
    q, k, v = (y.reshape(*x.shape[:2], -1, cfg.head_dim) for y in qkv)
    q, k = ops.rope(q, *table), ops.rope(k, *table)                                           # (BK.2)
    o, lse = ops.attention(q, k, v)                                                           # (BK.3)
    (a,), in_out = project(o.reshape(x.shape), places.out, w, at, plan.linear, cfg.norm_eps)  # (BK.4)
    h = x + a                                                                                 # (BK.5)
    (gate, up), in_gate_up = project(h, places.gate_up, w, at, plan.linear, cfg.norm_eps)     # (BK.6)
    u = plan.glu(gate, up)                                                                    # (BK.7)
    (f,), in_down = project(u, places.down, w, at, plan.linear, cfg.norm_eps)                 # (BK.8)
    saved = SavedBlock(x, in_qkv, q, k, v, o, lse, in_out, h, in_gate_up, gate, up, u, in_down)
    return h + f, saved                                                                       # (BK.9)


def block_backward(dy: np.ndarray, s: SavedBlock, w: dict[str, Any], at: str,
                   table: tuple[np.ndarray, np.ndarray], plan: Plan, grads: Any) -> np.ndarray:
    """Returns dx (B, T, D). Accumulates into grads. The tags name the forward lines that are taken back.
    >>> from bitnet_ref import layers; from bitnet_ref.model.layout import WEIGHTS
    >>> cfg = ModelConfig(d_model=2, n_heads=1, n_kv_heads=1, d_ff=2, norm="inner", linear="full")
    >>> w, grads = ({name: np.zeros((2, 2)) for names in WEIGHTS for name in names} for _ in range(2))
    >>> y, saved = block(np.array([[[1.0, 2.0]]]), w, "", (1.0, 0.0), plan := build(cfg, layers))
    >>> block_backward(np.array([[[5.0, 6.0]]]), saved, w, "", (1.0, 0.0), plan, grads)
    array([[[5., 6.]]])
    """
    ops, places, rest = plan.ops, plan.layout, (w, at, plan.linear, plan.ops, grads)
    du = project_backward([dy], s.u, s.in_down, places.down, *rest)                           # (BK.8)
    dgate, dup = plan.glu_backward(du, s.gate, s.up)                                          # (BK.7)
    dh = dy + project_backward([dgate, dup], s.h, s.in_gate_up, places.gate_up, *rest)        # (BK.6), (BK.9)
    do = project_backward([dh], s.o.reshape(dh.shape), s.in_out, places.out, *rest)           # (BK.4)
    dq, dk, dv = ops.attention_backward(do.reshape(s.o.shape), s.q, s.k, s.v, s.o, s.lse)     # (BK.3)
    dq, dk = ops.rope_backward(dq, *table), ops.rope_backward(dk, *table)                     # (BK.2)
    flat = [d.reshape(*dh.shape[:2], -1) for d in (dq, dk, dv)]
    return dh + project_backward(flat, s.x, s.in_qkv, places.qkv, *rest)                      # (BK.1), (BK.5)
