"""Somebody else's BitNet as a port: transformers reads the exported folders, its tensors are judged.

It was written apart from this project, so agreement here says that the homework, its files and the judge are
right, and not only consistent with each other.
"""

import os

import numpy as np
import pytest
from planted import report

from bitnet_ref.conform.export import export
from bitnet_ref.conform.homework import homework

pytestmark = pytest.mark.oracle
os.environ["TORCHDYNAMO_DISABLE"] = "1"                   # its quantisers are compiled otherwise

# module of a layer -> (the tensor that its input is, the tensor that its output is)
TENSORS = {
    "input_layernorm": (None, "attn_norm"), "self_attn.q_proj": (None, "q"), "self_attn.k_proj": (None, "k"),
    "self_attn.v_proj": (None, "v"), "self_attn.attn_sub_norm": ("attn", "attn_sub_norm"),
    "self_attn.o_proj": (None, "o"), "post_attention_layernorm": ("h", "ffn_norm"),
    "mlp.gate_proj": (None, "gate"), "mlp.up_proj": (None, "up"), "mlp.ffn_sub_norm": ("act", "ffn_sub_norm"),
    "mlp.down_proj": (None, "down")}
LLAMA = {**TENSORS, "self_attn.o_proj": ("attn", "o"), "mlp.down_proj": ("act", "down")}


def run_transformers(folder, ids, names):
    """{name without the model: float32 array} of one forward pass."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.nn.Module.float(model.eval())                   # also what it had left in bfloat16
    for module in model.modules():
        if type(module).__name__ == "BitLinear":
            module.dtype = torch.float32
    seen = {}

    def keep(name):
        return lambda tensor: seen.__setitem__(name, tensor.detach().float().numpy()[0])

    for l, layer in enumerate(model.model.layers):
        for module, (before, after) in names.items():
            target = layer
            for part in module.split("."):
                target = getattr(target, part, None)
            if target is None:
                continue
            if before:
                put = keep(f"layers.{l}.{before}")
                target.register_forward_pre_hook(lambda _, args, put=put: put(args[0]))
            put = keep(f"layers.{l}.{after}")
            target.register_forward_hook(lambda _, args, out, put=put: put(out))
    with torch.no_grad():
        out = model(torch.tensor(ids[None]), output_hidden_states=True)
    keep("embedding_out")(out.hidden_states[0])
    keep("final_norm")(out.hidden_states[-1])              # theirs is after the norm
    for l in range(len(model.model.layers) - 1):
        keep(f"layers.{l}.out")(out.hidden_states[l + 1])
    keep("logits")(out.logits)
    return seen


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("model", "names", "count"), [("bitnet", TENSORS, 30), ("llama", LLAMA, 15)])
def test_transformers_conforms(model, names, count, seed, tmp_path):
    export(tmp_path, "hf", seed=seed)
    seen = run_transformers(tmp_path / model, homework(seed).ids[model], names)
    found = report({f"{model}.{n}": np.asarray(t) for n, t in seen.items()}, seed=seed)
    assert found.count("ok") >= count
    assert found.conforms, [v for v in found.verdicts if v.status == "BAD"]


def test_the_wrong_family_is_noticed(tmp_path):
    """The llama folder read as "autobitlinear": transformers itself then inverts every scale."""
    export(tmp_path, "hf")
    config = tmp_path / "llama" / "config.json"
    text = config.read_text(encoding="utf-8")
    assert '"bitlinear"' in text
    config.write_text(text.replace('"bitlinear"', '"autobitlinear"').replace(
        '"quant_method"', '"quantization_mode": "offline", "quant_method"'), encoding="utf-8")
    seen = run_transformers(tmp_path / "llama", homework(0).ids["llama"], LLAMA)
    found = report({f"llama.{n}": np.asarray(t) for n, t in seen.items()})
    assert [c.suspect.name for c in found.causes] == ["weight_scale_inverted"]
