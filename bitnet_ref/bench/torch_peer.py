"""python -m bitnet_ref.bench.torch_peer --steps 500 --output peer.json
python -m bitnet_ref.bench.torch_peer --preset tiny --steps 50 --mode bf16

The same model trained in PyTorch: same initial parameters, batches, schedules and validation text; the layers
are the official pseudo-code with the detach trick, and autograd. Tells whether a hand-written backward trains
as well, and how fast each is. Needs the extra `oracle` (torch).
Read after: bench. Read next: bench/twins.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import DONE, Parser, add_args, configs, run_command
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.batches import batch, sequential
from bitnet_ref.data.prepare import Dataset, prepare
from bitnet_ref.model.params import init_params
from bitnet_ref.train.schedule import lr_at, wd_at


def torch() -> Any:
    """The torch module, or a CheckError that says how to get it."""
    try:
        import torch
    except ImportError:
        raise CheckError("torch must be installed to time it as a peer; got none; "
                         "pip install 'bitnet_ref[oracle]'") from None
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

    B, T = ids.shape
    cos, sin = rotary(cfg, T)
    x = p["embedding"][ids]
    for l in range(cfg.n_layers):
        at = f"layers.{l}."
        n = norm(x, at + "attn_norm")
        q, k, v = (bit(n, p[f"{at}attn.{w}"]).view(B, T, -1, cfg.head_dim).transpose(1, 2)
                   for w in ("wq", "wk", "wv"))
        o = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=True)
        x = x + bit(norm(o.transpose(1, 2).reshape(B, T, -1), at + "attn_sub_norm"), p[at + "attn.wo"])
        n = norm(x, at + "ffn_norm")
        gate, up = bit(n, p[at + "ffn.w_gate"]), bit(n, p[at + "ffn.w_up"])
        u = (F.silu(gate) if cfg.glu == "swiglu" else F.relu(gate).square()) * up
        x = x + bit(norm(u, at + "ffn_sub_norm"), p[at + "ffn.w_down"])
    return F.linear(norm(x, "final_norm"), p["embedding" if cfg.tied_embeddings else "head"])


def train_peer(cfg: ModelConfig, how: TrainConfig, data: Dataset, mode: str = "float32") -> dict[str, Any]:
    """Train with autograd and torch's AdamW. Returns losses, final score, seconds a step.

    `mode`: float32 or bf16 (autocast).
    """
    t = torch()
    ours = init_params(cfg, how.seed)
    p = {s.name: t.nn.Parameter(t.from_numpy(ours[s.name].copy())) for s in ours.specs}
    groups = [{"params": [p[s.name] for s in ours.specs if s.decay == decay]} for decay in (True, False)]
    adam = t.optim.AdamW(groups, betas=(how.beta1, how.beta2), eps=how.adam_eps, fused=True)

    def loss_of(ids: np.ndarray, targets: np.ndarray) -> Any:
        with t.autocast("cpu", dtype=t.bfloat16, enabled=mode == "bf16"):
            logits = forward(cfg, p, t.from_numpy(ids))
        return t.nn.functional.cross_entropy(logits.float().flatten(0, 1), t.from_numpy(targets).flatten())

    losses, seconds = [], []
    for step in tqdm(range(how.steps), unit="step", desc=f"torch {mode}"):
        began = time.perf_counter()
        total = 0.0
        for m in range(step * how.accumulate, (step + 1) * how.accumulate):
            ids, targets = batch(data.train.tokens, m, how.batch, cfg.context, how.seed)
            loss = loss_of(ids, np.ascontiguousarray(targets)) / how.accumulate
            loss.backward()
            total += loss.item()
        t.nn.utils.clip_grad_norm_(list(p.values()), how.max_norm)
        for group, decay in zip(adam.param_groups, (wd_at(step, how), 0.0)):
            group["lr"], group["weight_decay"] = lr_at(step, how), decay
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(total)
        seconds.append(time.perf_counter() - began)
    with t.no_grad():
        score = bits_per_byte(loss_of, data, cfg.context)
    return {"mode": mode, "steps": how.steps, "losses": losses, "bits per byte": score,
            "median seconds per step": float(np.median(seconds)), "threads": t.get_num_threads()}


def bits_per_byte(loss_of: Callable[[np.ndarray, np.ndarray], Any], data: Dataset, context: int) -> float:
    """Score of all of the validation text; `loss_of(ids, targets)` is a torch scalar, nats per token."""
    assert data.val is not None
    nats, size = 0.0, 0
    for ids, targets in sequential(data.val.tokens, context):
        nats += loss_of(ids, np.ascontiguousarray(targets)).item() * targets.size
        size += int(data.tokenizer.token_bytes[targets].sum())
    return nats / math.log(2) / size


def main(argv: list[str]) -> int:
    """Parse, prepare the data, train, print."""
    parser = Parser("python -m bitnet_ref.bench.torch_peer", __doc__)
    parser.add_argument("--preset", metavar="|".join(PRESETS),
                        help="a named model and its rates (default: nano)")
    parser.add_argument("--mode", choices=("float32", "bf16"), default="float32",
                        help="arithmetic (default: float32)")
    parser.add_argument("--output", metavar="FILE",
                        help="write the figures, with the loss of every step, as JSON")
    add_args(parser, TrainConfig, "training")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)
    _, cfg, how = configs(args)
    check(cfg.norm in ("pre", "sub") and cfg.head == "full", "the peer knows norm = pre, sub and head = full",
          f"{cfg.norm} and {cfg.head}", "choose one of these")
    data = prepare(how.corpus, how.tokenizer, cfg.vocab_size, how.val_fraction)
    figures = train_peer(replace(cfg, vocab_size=data.tokenizer.vocab_size), how, data, args.mode)
    if args.output:
        with whole_file(args.output) as f:
            f.write(json.dumps(figures).encode())
    print(f"torch {args.mode}: {figures['bits per byte']:.4f} bits per byte after {figures['steps']} steps, "
          f"{figures['median seconds per step'] * 1e3:.0f} ms a step (median, {figures['threads']} threads)")
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
