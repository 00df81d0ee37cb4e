"""The cases of single ops: inputs, the oracle's outputs and gradients, and what a second implementation says.

Inputs are exact in float32, so both dtypes see the same numbers. A case is a function of its inputs; autograd
gives the gradients for the upstream gradient in `in.d<output>`. The second opinion at this level is PyTorch's
own functions and transformers' modules, where they have the op; `by` names them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import oracle
import torch
import torch.nn.functional as F

# A single feature divided by its own root mean square is 1 but for eps: with x near the root of eps the
# gradient is not lost to cancellation.
SMALL = np.float32(3e-3)


class Case(NamedTuple):
    """`run(**inputs)` -> {name: tensor}. `wrt`: inputs whose gradients are kept. `codes`: integer outputs."""

    stem: str
    name: str
    about: str
    tags: str
    inputs: dict[str, np.ndarray]
    run: Callable[..., dict[str, torch.Tensor]]
    wrt: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    second: Callable[..., dict[str, torch.Tensor]] | None = None
    by: str = ""  # whose code `second` calls
    why_no_second: str = ""
    second_is_float32: bool = False  # it casts inside
    constants: dict[str, Any] = {}  # noqa: RUF012  (never changed)


def evaluate(run, case, dtype):
    """{"out.y": array, "grad.dx": array} of one implementation, in `dtype`."""
    given = {
        n: _tensor(a, dtype).requires_grad_(n in case.wrt)
        for n, a in case.inputs.items()
        if not n.startswith("d")
    }
    outs = run(**given)
    found = {f"out.{n}": t for n, t in outs.items()}
    upstream = [
        (outs[n[1:]], _tensor(a, dtype))
        for n, a in case.inputs.items()
        if n.startswith("d") and n[1:] in outs
    ]
    if case.wrt and upstream:
        grads = torch.autograd.grad(
            [y for y, _ in upstream],
            [given[n] for n in case.wrt],
            [dy for _, dy in upstream],
            allow_unused=True,
        )
        found |= {f"grad.d{n}": g for n, g in zip(case.wrt, grads) if g is not None}
    return {
        n: t.detach().numpy().astype(np.int8 if n[4:] in case.codes else t.detach().numpy().dtype)
        for n, t in found.items()
    }


def _tensor(a, dtype):
    t = torch.from_numpy(np.array(a))
    return t.to(dtype) if t.is_floating_point() else t.long()


def op_cases():
    """All of them."""
    return [
        *_embedding(),
        *_rmsnorm(),
        *_rope(),
        *_attention(),
        *_glu(),
        *_linear(),
        *_quant(),
        *_bitlinear(),
        *_cross_entropy(),
        *_adamw(),
    ]


def normal(seed, *shape):
    """float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def hard(x):
    """The same with a row of zeros, an outlier of 1e4 and a dead row of 1e-35."""
    x = x.copy()
    rows = x.reshape(-1, x.shape[-1])
    rows[0] = 0
    rows[1, 0] = 1e4
    rows[2] = 1e-35
    return x


def _embedding():
    for name, ids in (("odd", [[3, 0, 6], [3, 3, 1]]), ("single_token", [[2]])):
        ids = np.array(ids)
        yield Case(
            "embedding",
            name,
            "rows of a table; ids that occur several times add up",
            "EM.1 EM.2",
            {"ids": ids, "w": normal(1, 7, 5), "dy": normal(2, *ids.shape, 5)},
            lambda ids, w: {"y": w[ids]},
            ("w",),
            second=lambda ids, w: {"y": F.embedding(ids, w)},
            by="torch.nn.functional.embedding",
        )


def _rmsnorm():
    def run(x, g=None):
        return {"y": oracle.rmsnorm(x, g), "rstd": 1 / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)}

    def second(x, g=None):
        return {"y": F.rms_norm(x, x.shape[-1:], g, 1e-5)}

    shapes = {"odd": (2, 3, 7), "single_token": (1, 5), "single_feature": (4, 1), "wide": (3, 257)}
    for i, (name, shape) in enumerate(shapes.items()):
        for gain in (True, False):
            x = hard(normal(10 + i, *shape)) if name in ("odd", "wide") else normal(10 + i, *shape)
            x = x * SMALL if name == "single_feature" else x
            inputs = {"x": x, "g": normal(20 + i, shape[-1]), "dy": normal(30 + i, *shape)}
            if not gain:
                del inputs["g"]
            yield Case(
                "rmsnorm",
                name + ("" if gain else "_no_gain"),
                "eps 1e-5; odd and wide hold a row of zeros, one with 1e4, one of 1e-35",
                "RN.1 RN.2 RN.3 RN.4",
                inputs,
                run,
                ("x", "g") if gain else ("x",),
                second=second,
                by="torch.nn.functional.rms_norm",
            )


def _rope():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    for name, shape, positions, theta in (
        ("odd", (2, 5, 3, 6), np.arange(5), 1e4),
        ("far", (1, 3, 2, 8), np.array([4000, 4001, 4095]), 5e5),
        ("single_token", (1, 1, 1, 2), np.arange(1), 1e4),
    ):
        half = shape[-1] // 2

        def second(x, positions, theta=theta, half=half):
            freq = 1.0 / theta ** (torch.arange(0, 2 * half, 2).double() / (2 * half))
            angle = torch.cat([positions.double()[:, None] * freq] * 2, dim=-1)
            turned, _ = apply_rotary_pos_emb(
                x.transpose(1, 2),
                x.transpose(1, 2),
                angle.cos().to(x.dtype)[None],
                angle.sin().to(x.dtype)[None],
            )
            return {"y": turned.transpose(1, 2)}

        yield Case(
            "rope",
            name,
            f"theta {theta:g}; half-split pairs",
            "RO.1 RO.2 RO.3 RO.4",
            {"x": normal(40, *shape), "positions": positions, "dy": normal(41, *shape)},
            lambda x, positions, theta=theta: {"y": oracle.rope(x, positions, theta)},
            ("x",),
            second=second,
            by="transformers apply_rotary_pos_emb, given the angles",
            constants={"theta": theta},
        )


def _attention():
    def run(q, k, v):
        o, lse = oracle.attention(q, k, v)
        return {"o": o, "lse": lse}

    def second(q, k, v):
        T, S = q.shape[1], k.shape[1]
        mask = torch.arange(S) <= torch.arange(S - T, S)[:, None]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return {"o": o.transpose(1, 2)}

    sizes = {
        "odd": (2, 5, 5, 3, 3, 4),
        "gqa_2": (1, 4, 4, 4, 2, 6),
        "gqa_4": (2, 3, 3, 4, 1, 2),
        "cached": (1, 2, 7, 4, 2, 4),
        "single_token": (1, 1, 1, 2, 1, 2),
        "sharp": (1, 6, 6, 2, 1, 8),
    }
    for name, (B, T, S, H, KV, Dh) in sizes.items():
        scale = np.float32(5 if name == "sharp" else 1)
        yield Case(
            "attention",
            name,
            "causal; cached: 2 queries at the end of 7 keys; sharp: scores of a hundred",
            " ".join(f"AT.{i}" for i in range(1, 11)),
            {
                "q": normal(50, B, T, H, Dh) * scale,
                "k": normal(51, B, S, KV, Dh) * scale,
                "v": normal(52, B, S, KV, Dh),
                "do": normal(53, B, T, H, Dh),
            },
            run,
            ("q", "k", "v"),
            second=second,
            by="torch.nn.functional.scaled_dot_product_attention",
        )


def _glu():
    units = {
        "swiglu": (oracle.swiglu, lambda gate, up: {"y": F.silu(gate) * up}, "GL.1 GL.2"),
        "relu2": (oracle.relu2, lambda gate, up: {"y": F.relu(gate).square() * up}, "GL.3 GL.4"),
    }
    for unit, (ours, second, tags) in units.items():
        for name in ("odd", "zero", "large", "single_feature"):
            shape = (3, 1) if name == "single_feature" else (3, 7)
            gate = normal(60, *shape) * np.float32(300 if name == "large" else 1)
            gate = np.zeros_like(gate) if name == "zero" else gate
            yield Case(
                "glu",
                f"{unit}_{name}",
                "zero: the gate is 0 throughout; large: squares beyond float16",
                tags,
                {"gate": gate, "up": normal(61, *shape), "dy": normal(62, *shape)},
                lambda gate, up, ours=ours: {"y": ours(gate, up)},
                ("gate", "up"),
                second=second,
                by=f"torch.nn.functional.{'silu' if unit == 'swiglu' else 'relu'}",
                constants={"unit": unit},
            )


def _linear():
    for name, (M, N, K) in {"odd": (3, 5, 7), "single_token": (1, 4, 3), "single_feature": (3, 2, 1)}.items():
        yield Case(
            "linear",
            name,
            "y = x w^T",
            "LI.1 LI.2 LI.3",
            {"x": normal(70, M, K), "w": normal(71, N, K), "dy": normal(72, M, N)},
            lambda x, w: {"y": x @ w.T},
            ("x", "w"),
            second=lambda x, w: {"y": F.linear(x, w)},
            by="torch.nn.functional.linear",
        )


def _quant():
    half = np.arange(-8, 8, dtype=np.float32) + np.float32(0.5)
    activations = {
        "ties": np.stack([np.append(half, 127), np.append(half / 4, 31.75), np.append(half * 2, -254)]),
        "hard": hard(normal(80, 5, 9)),
        "single_token": normal(81, 1, 6),
        "single_feature": normal(82, 4, 1),
        "small": np.linspace(-1e-5, 1e-5, 11, dtype=np.float32)[None],
    }
    for name, x in activations.items():
        yield Case(
            "quant",
            f"absmax_{name}",
            "ties: scales are powers of two and values lie on halves, exactly",
            "QU.5 QU.6 QU.7",
            {"x": x.astype(np.float32)},
            _absmax,
            codes=("x_q",),
            second=_activation_quant,
            by="transformers BitLinear.activation_quant",
        )
    weights = {
        "ties": np.array([[0.5, -0.5, 1.5, -1.5], [0.25, -2.0, 1.75, -0.25], [1.0, -1.0, 0.5, 1.25]]),
        "odd": normal(83, 5, 7),
        "offset": normal(84, 3, 5) + 1,
        "single": normal(85, 1, 1),
        "zeros": np.zeros((2, 3)),
        "small": normal(86, 3, 3) * np.float32(3e-6),
        "dead_rows": np.concatenate([normal(87, 3, 6), np.full((2, 6), 1e-35, np.float32)]),
    }
    assert np.abs(weights["ties"]).mean() == 1
    for name, w in weights.items():
        for rule in ("official", "paper"):

            def run(w, rule=rule):
                w_q, scale = oracle.weight_codes(w, rule)
                return {"w_q": w_q, "w_scale": scale}

            yield Case(
                "quant",
                f"absmean_{name}_{rule}",
                "ties: the mean magnitude is exactly 1",
                "QU.1 QU.2 QU.3" if rule == "official" else "QU.1 QU.3 QU.4",
                {"w": w.astype(np.float32)},
                run,
                codes=("w_q",),
                second=_weight_quant if rule == "official" else None,
                by="transformers WeightQuant",
                second_is_float32=True,
                why_no_second="" if rule == "official" else "only the official rule is implemented elsewhere",
                constants={"rule": rule},
            )


def _absmax(x):
    x_q, s = oracle.activation_codes(x)
    return {"x_q": x_q, "x_scale": 1 / s}


def _activation_quant(x):
    """The one place where transformers shows codes and scale."""
    from transformers.integrations.bitnet import BitLinear

    x_q, s = BitLinear(x.shape[-1], 4, bias=False).activation_quant(x)
    return {"x_q": x_q, "x_scale": 1 / s}


def _weight_quant(w):
    """WeightQuant gives trits times their scale: the scale shows unless all trits are 0."""
    from transformers.integrations.bitnet import WeightQuant

    product = WeightQuant.apply(w)
    found = {"w_q": product.sign()}
    return {**found, "w_scale": product.abs().max()} if product.any() else found


def _bitlinear():
    def run(x, w, g=None):
        n = oracle.rmsnorm(x, g)
        x_q, s = oracle.activation_codes(n)
        w_q, scale = oracle.weight_codes(w)
        return {"y": oracle.bit_linear(n, w), "x_q": x_q, "x_scale": 1 / s, "w_q": w_q, "w_scale": scale}

    def second(x, w, g=None):
        from transformers.integrations.bitnet import AutoBitLinear

        layer = AutoBitLinear(
            x.shape[-1], w.shape[0], bias=False, online_quant=True, use_rms_norm=True, rms_norm_eps=1e-5
        )
        del layer.weight, layer.rms_norm.weight
        layer.weight, layer.rms_norm.weight = w, torch.ones_like(x[0]) if g is None else g
        codes = _activation_quant(layer.rms_norm(x).detach()) | _weight_quant(w.detach())
        return {"y": layer(x), **codes}

    sizes = {"odd": (5, 7, 9), "single_token": (1, 4, 6), "single_feature": (3, 2, 1), "hard": (5, 6, 8)}
    for name, (M, N, K) in sizes.items():
        for gain in (True, False):
            seed = next(s for s in range(100, 9999) if _clear(s, name, M, N, K, gain))
            inputs = _bitlinear_inputs(seed, name, M, N, K, gain)
            yield Case(
                "bitlinear",
                name + ("" if gain else "_no_gain"),
                "RMSNorm, int8, trits; all values before rounding at least 1e-3 from a tie",
                "BL.1 BL.2 BL.3 BL.4 BL.5 BL.6",
                inputs,
                run,
                ("x", "w", "g") if gain else ("x", "w"),
                ("x_q", "w_q"),
                second,
                by="transformers AutoBitLinear, online, with its norm",
                second_is_float32=True,
                constants={"seed": seed},
            )
    rng = np.random.default_rng(7)
    signs = rng.choice(np.array([-1, 1], np.int8), (2, 2560))
    yield Case(
        "bitlinear",
        "worst",
        "ternary_linear: 2,560 products of +-127, all of one sign in the diagonal",
        "BL.3",
        {
            "x_q": signs * np.int8(127),
            "x_scale": np.array([[0.5], [2.0]], np.float32),
            "w_q": signs,
            "w_scale": np.array(0.25, np.float32),
        },
        _integer_product,
        second=_packed_product,
        by="transformers BitLinear, packed",
    )


def _bitlinear_inputs(seed, name, M, N, K, gain):
    x = normal(seed, M, K)
    x = x * SMALL if name == "single_feature" else x
    inputs = {
        "x": hard(x) if name == "hard" else x,
        "w": normal(seed + 1, N, K),
        "dy": normal(seed + 2, M, N),
    }
    if name == "hard":
        inputs["w"][0] = 1e-35
    if gain:
        inputs["g"] = np.exp(normal(seed + 3, K))
    return inputs


def _clear(seed, name, M, N, K, gain):
    """Whether every value before rounding is at least 1e-3 from a tie."""
    i = {n: torch.from_numpy(a).double() for n, a in _bitlinear_inputs(seed, name, M, N, K, gain).items()}
    return (
        min(oracle.activation_margin(oracle.rmsnorm(i["x"], i.get("g"))), oracle.weight_margin(i["w"])) > 1e-3
    )


def _integer_product(x_q, x_scale, w_q, w_scale):
    acc = torch.tensor([[sum(a * b for a, b in zip(x, w)) for w in w_q.tolist()] for x in x_q.tolist()])
    return {"y": acc.to(x_scale.dtype) * x_scale * w_scale}


def _packed_product(x_q, x_scale, w_q, w_scale):
    """Two rows pack into four. The scales are powers of two: it finds the same codes, and rounds nothing."""
    from transformers.integrations.bitnet import BitLinear, pack_weights

    layer = BitLinear(w_q.shape[1], 4, bias=False, dtype=x_scale.dtype)
    layer.weight.copy_(pack_weights(w_q.to(torch.int8)))
    layer.weight_scale.fill_(1 / w_scale)
    return {"y": layer(x_q * x_scale)[:, : len(w_q)]}


def _cross_entropy():
    sizes = {"odd": (5, 7), "single_token": (1, 3), "single_class": (3, 1), "large": (4, 9)}
    for name, (M, V) in sizes.items():
        logits = normal(90, M, V) * np.float32(1e4 if name == "large" else 1)
        targets = np.arange(M) * 3 % V

        def run(logits, targets):
            loss, lse = oracle.cross_entropy(logits, targets)
            return {"loss": loss, "lse": lse}

        yield Case(
            "cross_entropy",
            name,
            "mean over tokens, nats; large: logits of 1e4",
            "CE.1 CE.2 CE.3 CE.4",
            {"logits": logits, "targets": targets, "dloss": np.array(0.7, np.float32)},
            run,
            ("logits",),
            second=lambda logits, targets: {"loss": F.cross_entropy(logits, targets)},
            by="torch.nn.functional.cross_entropy",
        )


def _adamw():
    for name, decay in (("decay", 0.1), ("no_decay", 0.0)):
        constants = {"lr": 0.01, "decay": decay, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
        rest = tuple(constants.values())

        def run(p, rest=rest, **grads):
            m, v, found = torch.zeros_like(p), torch.zeros_like(p), {}
            for step, g in enumerate(grads.values(), 1):
                p, m, v = oracle.adamw(p, g, m, v, step, *rest)
                found |= {f"p{step}": p, f"m{step}": m, f"v{step}": v}
            return found

        def second(p, rest=rest, **grads):
            p, found = torch.nn.Parameter(p.detach().clone()), {}
            opt = torch.optim.AdamW([p], lr=rest[0], betas=rest[2:4], eps=rest[4], weight_decay=rest[1])
            for step, g in enumerate(grads.values(), 1):
                p.grad = g.clone()
                opt.step()
                found |= {
                    f"p{step}": p.detach().clone(),
                    f"m{step}": opt.state[p]["exp_avg"].clone(),
                    f"v{step}": opt.state[p]["exp_avg_sq"].clone(),
                }
            return found

        grads = {f"g{step}": normal(95 + step, 11) * np.float32(10.0 ** (step - 2)) for step in (1, 2, 3)}
        yield Case(
            "adamw",
            name,
            "three steps from zero moments",
            "AW.1 AW.2 AW.3 AW.4",
            {"p": normal(94, 11), **grads},
            run,
            second=second,
            by="torch.optim.AdamW",
            constants=constants,
        )
