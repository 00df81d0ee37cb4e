"""The second oracle: whole models in `transformers`, which others wrote.

BitNetForCausalLM is the layout `sub`. LlamaForCausalLM whose linear layers transformers' own
`replace_with_bitnet_linear` has replaced is `pre`; with its option use_rms_norm, and the block norms taken
out, it is `inner`. Either class as it stands, its linear layers not replaced, is a full-precision twin. The
quantisers compute in float32, so it is compared with the float32 cases.
"""

import numpy as np
import oracle
import torch
from transformers import BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitnet import replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

PROJECTIONS = {
    "attn.wq": "self_attn.q_proj",
    "attn.wk": "self_attn.k_proj",
    "attn.wv": "self_attn.v_proj",
    "attn.wo": "self_attn.o_proj",
    "ffn.w_gate": "mlp.gate_proj",
    "ffn.w_up": "mlp.up_proj",
    "ffn.w_down": "mlp.down_proj",
}
NORMS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}


def why_not(shape):
    """Why transformers cannot express this model; "" where it can."""
    return "transformers has no ternary head" if shape.head == "ternary" else ""


def build(shape):
    """The transformers model of `shape`, float32, untrained."""
    common = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": {"swiglu": "silu", "relu2": "relu2"}[shape.glu],
        "rms_norm_eps": shape.eps,
        "tie_word_embeddings": shape.tied,
        "attn_implementation": "eager",
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    sub = shape.norm == "sub"
    model = BitNetForCausalLM(BitNetConfig(**common)) if sub else LlamaForCausalLM(LlamaConfig(**common))
    if shape.linear == "ternary":
        how = BitNetQuantConfig(
            linear_class="autobitlinear",
            quantization_mode="online",
            use_rms_norm=shape.norm == "inner",
            rms_norm_eps=shape.eps,
        )
        replace_with_bitnet_linear(model, modules_to_not_convert=["lm_head"], quantization_config=how)
        for layer in model.model.layers:
            for path in PROJECTIONS.values():
                layer.get_submodule(path).to_empty(device="cpu")  # they were made without memory
    if shape.norm == "inner":
        for layer in model.model.layers:
            layer.input_layernorm = layer.post_attention_layernorm = torch.nn.Identity()
    return model.float().eval()


def parameter(model, name):
    """The module's parameter that we call `name`; (None for the gains that `inner` has not)."""
    inner = model.model
    if name in ("embedding", "head", "final_norm"):
        return {"embedding": inner.embed_tokens, "head": model.lm_head, "final_norm": inner.norm}[name].weight
    _, layer, rest = name.split(".", 2)
    if rest.endswith("_norm") and rest.removesuffix("_norm") in PROJECTIONS:
        path = PROJECTIONS[rest.removesuffix("_norm")] + ".rms_norm"
    else:
        path = PROJECTIONS.get(rest) or NORMS[rest]
    return inner.layers[int(layer)].get_submodule(path).weight


def filled(shape, params):
    """The transformers model of `shape` with these parameters."""
    model = build(shape)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)  # gains that the first oracle does not have
        for name, t in params.items():
            parameter(model, name).copy_(t)
    return model


def run(shape, params, ids, targets):
    """{"out.logits", "out.loss", "out.hidden0".., "grad.<name>"} as the first oracle names them."""
    model = filled(shape, params)
    out = model(ids, output_hidden_states=True)
    flat = out.logits.reshape(-1, shape.vocab)
    loss = torch.nn.functional.cross_entropy(flat, targets.reshape(-1))
    loss.backward()
    found = {"out.logits": out.logits, "out.loss": loss}
    streams = _streams(model, ids)
    found |= {f"out.hidden{i}": h for i, h in enumerate(streams)}
    found |= {f"grad.{name}": parameter(model, name).grad for name in params}
    return {n: t.detach().numpy() for n, t in found.items()}


def train(shape, params, t, steps):
    """({"final.<name>", moments}, {"loss", "gradient_norm"}) of torch.optim.AdamW and clip_grad_norm_ on the
    transformers model, float64 but for its quantisers. The rates are those of `steps`.
    """
    model = filled(shape, params).double()
    ours = {name: parameter(model, name) for name in params}
    with torch.no_grad():
        for name, p in params.items():
            ours[name].copy_(p)
    groups = [{"params": [p for p in ours.values() if p.ndim == n]} for n in (2, 1)]
    opt = torch.optim.AdamW(groups, betas=(t["beta1"], t["beta2"]), eps=t["adam_eps"])
    seen = {"loss": [], "gradient_norm": []}
    for step in steps:
        opt.param_groups[0] |= {"lr": step["lr"], "weight_decay": step["weight_decay"]}
        opt.param_groups[1] |= {"lr": step["lr"], "weight_decay": 0.0}
        logits = model(torch.tensor(step["ids"])).logits.reshape(-1, shape.vocab)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(step["targets"]).reshape(-1))
        opt.zero_grad()
        loss.backward()
        seen["gradient_norm"].append(float(torch.nn.utils.clip_grad_norm_(ours.values(), t["max_norm"])))
        seen["loss"].append(float(loss.detach()))
        opt.step()
    found = {f"final.{n}": p.detach() for n, p in ours.items()}
    found |= {f"first_moment.{n}": opt.state[p]["exp_avg"] for n, p in ours.items()}
    found |= {f"second_moment.{n}": opt.state[p]["exp_avg_sq"] for n, p in ours.items()}
    return {n: p.numpy() for n, p in found.items()}, {n: np.array(a) for n, a in seen.items()}


def _streams(model, ids):
    """The stream at entry, after each block, and after the final norm."""
    seen = []
    hooks = [
        layer.register_forward_hook(
            lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in model.model.layers
    ]
    hooks.append(model.model.norm.register_forward_hook(lambda _, args, out: seen.append(out)))
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return [model.model.embed_tokens(ids), *seen]


def packed(w_q):
    """uint8: transformers' own packing (it adds to its argument in place: a copy)."""
    from transformers.integrations.bitnet import pack_weights

    return pack_weights(torch.from_numpy(w_q.astype(np.int8).copy())).numpy()


def unpacked(data):
    """int8: transformers' own unpacking."""
    from transformers.integrations.bitnet import unpack_weights

    return unpack_weights(torch.from_numpy(data.copy()), torch.float32).to(torch.int8).numpy()


def in_blocks(w, kind):
    """uint8: the gguf package's own quantiser of TQ1_0 and TQ2_0."""
    import gguf

    return gguf.quantize(w.astype(np.float32), gguf.GGMLQuantizationType[kind.upper()]).reshape(-1)


def from_blocks(data, shape, kind):
    """float32: the gguf package's own reader of them."""
    import gguf

    rows = data.reshape(shape[0], -1)
    return gguf.dequantize(rows, gguf.GGMLQuantizationType[kind.upper()]).reshape(shape)


def offline_products(x, data, w_q, multiplier, divisor):
    """y of the two packed classes: AutoBitLinear multiplies by weight_scale, BitLinear divides by it."""
    from transformers.integrations.bitnet import AutoBitLinear, BitLinear

    auto = AutoBitLinear(w_q.shape[1], w_q.shape[0], bias=False, online_quant=False, dtype=torch.float32)
    auto.weight.data = torch.from_numpy(w_q.astype(np.float32))
    auto.weight_scale.fill_(float(multiplier))
    divides = BitLinear(w_q.shape[1], w_q.shape[0], bias=False, dtype=torch.float32)
    divides.weight.copy_(torch.from_numpy(data.copy()))
    divides.weight_scale.fill_(float(divisor))
    with torch.no_grad():
        given = torch.from_numpy(x)
        return auto(given).numpy(), divides(given).numpy()


def confirms(shape):
    """Which class stands for this model, for the manifest."""
    if shape.linear == "full":
        return "LlamaForCausalLM" if shape.norm == "pre" else "BitNetForCausalLM, its linear layers plain"
    return (
        "BitNetForCausalLM, online"
        if shape.norm == "sub"
        else "LlamaForCausalLM + replace_with_bitnet_linear"
    )


assert oracle.FLOOR == 1e-5
