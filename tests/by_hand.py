"""The whole model a second time, from the papers' formulas, without a line of bitnet_ref. Forward, float64.

Fake-quantised floats as in the BitNet FAQ's code, RoPE as multiplication by a complex number, one head and
one query at a time. Slow and short; the model must agree with it in every variant.
"""

import numpy as np


def logits(cfg, p, ids):
    """p: {name: float64 array} of the parameters; ids int (B, T)  ->  logits (B, T, V)."""
    x = p["embedding"][ids]
    for l in range(cfg.n_layers):
        w = {name.removeprefix(f"layers.{l}."): t for name, t in p.items()}
        q, k, v = (project(cfg, w, f"attn.{name}", x) for name in ("wq", "wk", "wv"))
        x = x + project(cfg, w, "attn.wo", attention(cfg, q, k, v))
        gate, up = project(cfg, w, "ffn.w_gate", x), project(cfg, w, "ffn.w_up", x)
        active = np.maximum(gate, 0) ** 2 if cfg.glu == "relu2" else gate / (1 + np.exp(-gate))
        x = x + project(cfg, w, "ffn.w_down", active * up)
    head = p["embedding" if cfg.tied_embeddings else "head"]
    return product(norm(cfg, x, p["final_norm"]), head, cfg.head)


def norm(cfg, x, gain):
    return gain * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + cfg.norm_eps)


def product(x, w, kind):
    """x @ w.T, of fake-quantised operands if ternary. np.round is half to even."""
    if kind == "ternary":
        s = 127 / np.maximum(abs(x).max(axis=-1, keepdims=True), 1e-5)
        mean = max(abs(w).mean(), 1e-5)
        x, w = np.round(x * s) / s, np.clip(np.round(w / mean), -1, 1) * mean
    return np.einsum("...k,nk->...n", x, w)


def project(cfg, w, name, x):
    """Projection `name` of x, normalised as the layout says."""
    if cfg.norm == "inner":
        x = norm(cfg, x, w[f"{name}_norm"] if cfg.inner_gain else 1.0)
    elif name in ("attn.wo", "ffn.w_down"):
        gain = {"attn.wo": "attn_sub_norm", "ffn.w_down": "ffn_sub_norm"}[name]
        x = norm(cfg, x, w[gain]) if cfg.norm == "sub" else x
    else:
        x = norm(cfg, x, w[name.split(".")[0] + "_norm"])
    return product(x, w[name], cfg.linear)


def attention(cfg, q, k, v):
    B, T, D = q.shape
    Dh = D // cfg.n_heads
    q, k, v = (y.reshape(B, T, -1, Dh) for y in (q, k, v))
    q, k, o = turn(cfg, q), turn(cfg, k), np.zeros_like(q)
    for b, t, h in np.ndindex(B, T, cfg.n_heads):
        kv = h * cfg.n_kv_heads // cfg.n_heads
        weight = np.exp(k[b, :t + 1, kv] @ q[b, t, h] / Dh**0.5)
        o[b, t, h] = weight / weight.sum() @ v[b, :t + 1, kv]
    return o.reshape(B, T, D)


def turn(cfg, x):
    """RoPE: components i and i + Dh/2 are one complex number, which turns by t * theta^(-2i/Dh)."""
    half = x.shape[-1] // 2
    angle = np.outer(np.arange(x.shape[1]), cfg.rope_theta ** (-np.arange(half) / half))
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)
