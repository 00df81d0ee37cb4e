"""python -m bitnet_ref.bench.torch_peer --steps 500 --output peer.json
python -m bitnet_ref.bench.torch_peer --preset tiny --steps 50 --mode bf16

The same model trained in PyTorch: same initial parameters, batches, schedules and validation text; the layers
are the official pseudo-code with the detach trick, and autograd. Tells whether a hand-written backward trains
as well, and how fast each is. With --serve it answers bench, which times its steps. Needs torch (`oracle`).
Read after: bench/child. Read next: bench/cells.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from bitnet_ref.bench.child import serve
from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import DONE, Parser, add_args, configs, run_command
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.batches import sequential
from bitnet_ref.data.feed import micro_batch, open_feed
from bitnet_ref.data.prepare import Dataset, prepare
from bitnet_ref.model.params import init_params
from bitnet_ref.train.schedule import lr_at, wd_at

# Arithmetic, and whether torch.compile sees the whole of the forward pass first.
MODES = {"float32": ("float32", False), "bf16": ("bf16", False), "compile": ("float32", True),
         "bf16 compile": ("bf16", True)}


def torch() -> Any:
    """The torch module, or a CheckError that says how to get it."""
    try:
        import torch
    except ImportError:
        raise CheckError("torch must be installed to time it as a peer; got none; "
                         "in a clone, pip install '.[oracle]'") from None
    return torch


def rotary(cfg: ModelConfig, length: int) -> tuple[Any, Any]:
    """cos, sin (T, Dh/2), float32, as torch tensors."""
    t = torch()
    freq = cfg.rope_theta ** (-t.arange(0, cfg.head_dim, 2, dtype=t.float64) / cfg.head_dim)
    angle = t.arange(length)[:, None] * freq
    return angle.cos().float(), angle.sin().float()


def forward(cfg: ModelConfig, p: dict[str, Any], ids: Any) -> Any:
    """Logits (B, T, V) from torch parameters named as ours, by the official pseudo-code.

    Norm layouts pre and sub.
    """
    t = torch()
    F = t.nn.functional

    def bit(x: Any, w: Any) -> Any:
        if cfg.linear == "full":
            return F.linear(x, w)
        s = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        r = 1.0 / w.abs().mean().clamp(min=1e-5)
        return F.linear(x + ((x * s).round().clamp(-128, 127) / s - x).detach(),
                        w + ((w * r).round().clamp(-1, 1) / r - w).detach())

    def norm(x: Any, name: str) -> Any:
        return F.rms_norm(x, x.shape[-1:], p[name], cfg.norm_eps) if name in p else x

    def turn(x: Any) -> Any:
        a, b = x.chunk(2, -1)
        return t.cat([a * cos - b * sin, b * cos + a * sin], -1)

    (B, T), shared = ids.shape, cfg.n_kv_heads < cfg.n_heads
    cos, sin = rotary(cfg, T)
    x = F.embedding(ids, p["embedding"])
    for l in range(cfg.n_layers):
        at = f"layers.{l}."
        n = norm(x, at + "attn_norm")
        q, k, v = (bit(n, p[f"{at}attn.{w}"]).view(B, T, -1, cfg.head_dim).transpose(1, 2)
                   for w in ("wq", "wk", "wv"))
        o = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=shared)
        x = x + bit(norm(o.transpose(1, 2).reshape(B, T, -1), at + "attn_sub_norm"), p[at + "attn.wo"])
        n = norm(x, at + "ffn_norm")
        gate, up = bit(n, p[at + "ffn.w_gate"]), bit(n, p[at + "ffn.w_up"])
        u = (F.silu(gate) if cfg.glu == "swiglu" else F.relu(gate).square()) * up
        x = x + bit(norm(u, at + "ffn_sub_norm"), p[at + "ffn.w_down"])
    return F.linear(norm(x, "final_norm"), p["embedding" if cfg.tied_embeddings else "head"])


class Learner:
    """The model, torch's AdamW and a mode of MODES: `step` is an optimiser step."""

    def __init__(self, cfg: ModelConfig, how: TrainConfig, mode: str) -> None:
        t, ours = torch(), init_params(cfg, how.seed)
        p = {s.name: t.nn.Parameter(t.from_numpy(ours[s.name].copy())) for s in ours.specs}
        groups = [{"params": [p[s.name] for s in ours.specs if s.decay == decay]} for decay in (True, False)]
        self.cfg, self.how, self.p, (kind, compiled) = cfg, how, p, MODES[mode]
        self.half = kind == "bf16"
        self.adam = t.optim.AdamW(groups, betas=(how.beta1, how.beta2), eps=how.adam_eps, fused=True)
        self.loss = t.compile(self._loss) if compiled else self._loss

    def _loss(self, ids: Any, targets: Any) -> Any:
        t = torch()
        with t.autocast("cpu", dtype=t.bfloat16, enabled=self.half):
            logits = forward(self.cfg, self.p, ids)
        return t.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def loss_of(self, ids: np.ndarray, targets: np.ndarray) -> Any:
        """A torch scalar: nats per token."""
        t = torch()
        return self.loss(t.from_numpy(ids), t.from_numpy(np.ascontiguousarray(targets)))

    def step(self, step: int, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        """Optimiser step number `step` on the micro-batches; their mean loss."""
        t, how, total = torch(), self.how, 0.0
        for ids, targets in batches:
            loss = self.loss_of(ids, targets) / how.accumulate
            loss.backward()
            total += loss.item()
        t.nn.utils.clip_grad_norm_(list(self.p.values()), how.max_norm)
        for group, decay in zip(self.adam.param_groups, (wd_at(step, how), 0.0)):
            group["lr"], group["weight_decay"] = lr_at(step, how), decay
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return total


def train_peer(cfg: ModelConfig, how: TrainConfig, data: Dataset, mode: str = "float32") -> dict[str, Any]:
    """Train with autograd and torch's AdamW. Returns losses, final score, seconds a step.

    `mode`: one of MODES.
    """
    t, learner = torch(), Learner(cfg, how, mode)
    feed = open_feed(data.train, data.report, cfg.context, how.seed, how.packing)
    losses, seconds = [], []
    for step in tqdm(range(how.steps), unit="step", desc=f"torch {mode}"):
        began = time.perf_counter()
        numbers = range(step * how.accumulate, (step + 1) * how.accumulate)
        losses.append(learner.step(step, (micro_batch(feed, m, how.batch) for m in numbers)))
        seconds.append(time.perf_counter() - began)
    with t.no_grad():
        score = bits_per_byte(learner.loss_of, data, cfg.context)
    return {"mode": mode, "steps": how.steps, "losses": losses, "bits per byte": score,
            "median seconds per step": float(np.median(seconds)), "threads": t.get_num_threads()}


def bits_per_byte(loss_of: Callable[[np.ndarray, np.ndarray], Any], data: Dataset, context: int) -> float:
    """Score of all of the validation text; `loss_of(ids, targets)` is a torch scalar, nats per token."""
    assert data.val is not None
    nats, size = 0.0, 0
    for ids, targets in sequential(data.val.tokens, context):
        nats += loss_of(ids, targets).item() * targets.size
        size += int(data.tokenizer.token_bytes[targets].sum())
    return nats / math.log(2) / size


def answers(cfg: ModelConfig, how: TrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """For bench/child: step(mode, threads) is a step on random tokens; a mode begins when first asked for."""
    t = torch()
    learners: dict[str, Learner] = {}
    rows = np.random.default_rng(how.seed).integers(0, cfg.vocab_size, (how.batch, cfg.context + 1))

    def step(mode: str, threads: int) -> dict[str, Any]:
        t.set_num_threads(threads)
        try:
            learner = learners.get(mode) or learners.setdefault(mode, Learner(cfg, how, mode))
            began = time.perf_counter()
            loss = learner.step(0, [(rows[:, :-1], rows[:, 1:])])
            return {"seconds": time.perf_counter() - began, "loss": loss}
        except RuntimeError as e:                          # torch.compile without a C++ compiler, for one
            raise CheckError(f"torch must run in mode {mode}; got {str(e).splitlines()[0]}; "
                             "see whether torch.compile works by itself") from None

    return {"about": f"torch {t.__version__}"}, {"step": step}


def main(argv: list[str]) -> int:
    """Parse, prepare the data, train, print."""
    parser = Parser("python -m bitnet_ref.bench.torch_peer", __doc__)
    parser.add_argument("--preset", metavar="|".join(PRESETS),
                        help="a named model and its rates (default: nano)")
    parser.add_argument("--mode", choices=tuple(MODES), default="float32",
                        help="arithmetic (default: float32)")
    parser.add_argument("--serve", action="store_true", help="answer the requests of bench on stdin")
    parser.add_argument("--output", metavar="FILE",
                        help="write the figures, with the loss of every step, as JSON")
    add_args(parser, TrainConfig, "training")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)
    _, cfg, how = configs(args)
    check(cfg.norm in ("pre", "sub") and cfg.head == "full", "the peer knows norm = pre, sub and head = full",
          f"{cfg.norm} and {cfg.head}", "choose one of these")
    if args.serve:
        serve(lambda: answers(cfg, how))
        return DONE
    data = prepare(how.corpus, how.tokenizer, cfg.vocab_size, how.val_fraction, val=how.val)
    figures = train_peer(replace(cfg, vocab_size=data.tokenizer.vocab_size), how, data, args.mode)
    if args.output:
        with whole_file(args.output) as f:
            f.write(json.dumps(figures).encode())
    print(f"torch {args.mode}: {figures['bits per byte']:.4f} bits per byte after {figures['steps']} steps, "
          f"{figures['median seconds per step'] * 1e3:.0f} ms a step (median, {figures['threads']} threads)")
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
