"""The first oracle: BitNet b1.58 in PyTorch, from the papers and the official pseudo-code, by autograd.

Nothing here comes from bitnet_ref, and nothing there from here: they agree because both are right. The
straight-through estimator is the detach trick of the FAQ, x + (quantised(x) - x).detach(); every gradient is
autograd's. Sources: arXiv 2402.17764 (ERA), its follow-up "Training Tips, Code and FAQ" (FAQ), arXiv
2504.12285 (2B4T). Everything runs in the dtype of its inputs.
"""

import math
from typing import NamedTuple

import torch

FLOOR = 1e-5


class Shape(NamedTuple):
    """What kind of model: norm pre | sub | inner, glu swiglu | relu2, linear and head ternary | full."""

    vocab: int = 19
    width: int = 16
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 20
    norm: str = "sub"
    inner_gain: bool = False
    glu: str = "swiglu"
    linear: str = "ternary"
    head: str = "full"
    tied: bool = True
    theta: float = 10000.0
    eps: float = 1e-5


# ---- quantisers (FAQ, reference code) --------------------------------------------------------------------


def activation_codes(x):
    """Integers and the official scale 127 / absmax of each token."""
    s = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=FLOOR)
    return (x * s).round().clamp(-128, 127), s


def weight_codes(w, rule="official"):
    """Integers and the multiplier. "paper": ERA eq. 1-3, W / (gamma + eps)."""
    mean = w.abs().mean()
    if rule == "paper":
        scale = mean + FLOOR
        return (w / scale).round().clamp(-1, 1), scale
    scale = mean.clamp(min=FLOOR)
    return (w * (1 / scale)).round().clamp(-1, 1), scale


def straight_through(x, quantised):
    """Forward sees the quantised value, backward the identity."""
    return x + (quantised - x).detach()


def bit_linear(x, w):
    """The product of FAQ's training BitLinear, without its norm: both operands fake-quantised."""
    x_q, s = activation_codes(x)
    w_q, scale = weight_codes(w)
    return straight_through(x, x_q / s) @ straight_through(w, w_q * scale).T


# ---- the other ops ---------------------------------------------------------------------------------------


def rmsnorm(x, g=None, eps=1e-5):
    """arXiv 1910.07467."""
    n = x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)
    return n if g is None else n * g


def rope(x, positions, theta):
    """arXiv 2104.09864: components i and i + Dh/2 are a complex number that turns.   x (B, T, H, Dh)"""
    half = x.shape[-1] // 2
    freq = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (positions.to(torch.float64)[:, None] * freq)[:, None, :]
    cos, sin = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
    real, imag = x[..., :half], x[..., half:]
    return torch.cat([real * cos - imag * sin, imag * cos + real * sin], dim=-1)


def attention(q, k, v):
    """Causal, one query head at a time.   q (B, T, H, Dh)  k, v (B, S, KV, Dh)  ->  o, lse (B, H, T)"""
    T, H, Dh = q.shape[1:]
    S, KV = k.shape[1:3]
    outs, sums = [], []
    for h in range(H):
        shared = h * KV // H
        scores = q[:, :, h] @ k[:, :, shared].transpose(1, 2) / math.sqrt(Dh)
        late = torch.arange(S) > torch.arange(S - T, S)[:, None]
        scores = scores.masked_fill(late, -math.inf)
        outs.append(torch.softmax(scores, dim=-1) @ v[:, :, shared])
        sums.append(torch.logsumexp(scores, dim=-1))
    return torch.stack(outs, dim=2), torch.stack(sums, dim=1)


def swiglu(gate, up):
    """arXiv 2002.05202."""
    return gate * torch.sigmoid(gate) * up


def relu2(gate, up):
    """arXiv 2504.12285, 2109.08668."""
    return torch.relu(gate) ** 2 * up


def cross_entropy(logits, targets):
    """Mean over the tokens, in nats; and the log-sum-exp of each row."""
    lse = torch.logsumexp(logits, dim=-1)
    return (lse - logits.gather(1, targets[:, None])[:, 0]).mean(), lse


def adamw(p, g, m, v, step, lr, decay, beta1, beta2, eps):
    """arXiv 1711.05101, algorithm 2, with the decay times the learning rate. Returns p, m, v."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * decay * p - lr * m_hat / (v_hat.sqrt() + eps), m, v


# ---- whole models ----------------------------------------------------------------------------------------

MATRICES = {
    "attn.wq": "qkv",
    "attn.wk": "qkv",
    "attn.wv": "qkv",
    "attn.wo": "out",
    "ffn.w_gate": "gate_up",
    "ffn.w_up": "gate_up",
    "ffn.w_down": "down",
}
GAINS = {
    "pre": {"qkv": "attn_norm", "gate_up": "ffn_norm"},
    "sub": {"qkv": "attn_norm", "out": "attn_sub_norm", "gate_up": "ffn_norm", "down": "ffn_sub_norm"},
    "inner": {},
}


def tensor_shapes(s):
    """{name: shape} of every parameter, by the names of docs/model.md."""
    D, F, KV = s.width, s.ffn, s.kv_heads * (s.width // s.heads)
    sizes = {
        "attn.wq": (D, D),
        "attn.wk": (KV, D),
        "attn.wv": (KV, D),
        "attn.wo": (D, D),
        "ffn.w_gate": (F, D),
        "ffn.w_up": (F, D),
        "ffn.w_down": (D, F),
    }
    shapes = {"embedding": (s.vocab, D)}
    for l in range(s.layers):
        for name, place in MATRICES.items():
            shapes[f"layers.{l}.{name}"] = sizes[name]
            if s.inner_gain:
                shapes[f"layers.{l}.{name}_norm"] = (sizes[name][1],)
            elif place in GAINS[s.norm]:
                shapes[f"layers.{l}.{GAINS[s.norm][place]}"] = (sizes[name][1],)
    if not s.tied:
        shapes["head"] = (s.vocab, D)
    return {**shapes, "final_norm": (D,)}


class Model:
    """One forward pass. `hidden`: stream at entry, after each block, after the final norm. `margin`: the
    smallest distance of any value before rounding from a tie.
    """

    def __init__(self, shape, params):
        self.s, self.p, self.hidden, self.margin = shape, params, [], math.inf

    def logits(self, ids):
        """ids (B, T)  ->  (B, T, V)"""
        s = self.s
        x = self.p["embedding"][ids]
        self.hidden = [x]
        for l in range(s.layers):
            x = self._block(x, f"layers.{l}.")
            self.hidden.append(x)
        x = rmsnorm(x, self.p["final_norm"], s.eps)
        self.hidden.append(x)
        return self._product(x, self.p["embedding" if s.tied else "head"], s.head)

    def _block(self, x, at):
        s, (B, T, D) = self.s, x.shape
        q, k, v = (self._project(x, at, f"attn.{n}").view(B, T, -1, D // s.heads) for n in ("wq", "wk", "wv"))
        positions = torch.arange(T)
        o, _ = attention(rope(q, positions, s.theta), rope(k, positions, s.theta), v)
        x = x + self._project(o.reshape(B, T, D), at, "attn.wo")
        gate, up = self._project(x, at, "ffn.w_gate"), self._project(x, at, "ffn.w_up")
        unit = {"swiglu": swiglu, "relu2": relu2}[s.glu](gate, up)
        return x + self._project(unit, at, "ffn.w_down")

    def _project(self, x, at, name):
        s = self.s
        if s.norm == "inner":
            x = rmsnorm(x, self.p[f"{at}{name}_norm"] if s.inner_gain else None, s.eps)
        elif MATRICES[name] in GAINS[s.norm]:
            x = rmsnorm(x, self.p[at + GAINS[s.norm][MATRICES[name]]], s.eps)
        return self._product(x, self.p[at + name], s.linear)

    def _product(self, x, w, kind):
        if kind == "full":
            return x @ w.T
        self.margin = min(self.margin, activation_margin(x), weight_margin(w))
        return bit_linear(x, w)


def activation_margin(x):
    """Smallest distance from a tie, in codes."""
    _, s = activation_codes(x.detach())
    z = x.detach() * s
    return float((z - z.floor() - 0.5).abs().min())


def weight_margin(w):
    """Smallest distance of |w| / scale from 1/2, where a trit flips (beyond 1 all is clamped)."""
    _, scale = weight_codes(w.detach())
    return float((w.detach().abs() / scale - 0.5).abs().min())


def two_stage(step, steps, warmup, peak, second, end, decay):
    """Learning rate and weight decay of update `step`, from 0 (FAQ, Fig. 1c and 1d; docs/training.md).

    Two straight lines to `end` * peak at `steps`, from peak and from `second` * peak; at half-way the rate
    jumps from the first to the second, and the decay to 0.
    """
    first_half = 2 * step < steps
    wd = decay if first_half else 0.0
    if step < warmup:
        return peak * (step + 1) / warmup, wd
    top = peak if first_half else peak * second
    return top + (peak * end - top) * (step - warmup) / (steps - warmup), wd
