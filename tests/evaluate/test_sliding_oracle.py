"""evaluate/sliding against a loop over the logits of transformers, for folders that it wrote itself.

The loop is the one of Hugging Face's page on perplexity, with tokens counted as they are: its max_length is
our context + 1, since it drops the prediction after a window's last token.
"""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.evaluate.sliding import slide, tokenised
from bitnet_ref.generate.language_model import load
from bitnet_ref.kernels import load as load_ops
from bitnet_ref.model import Transformer

pytestmark = pytest.mark.oracle
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"                   # its quantisers are compiled otherwise

CONTEXT, VOCABULARY = 48, 300
MARGIN = 1e-4                                             # of a code


@pytest.fixture
def torch(monkeypatch):
    """torch, with transformers' demand for a library that places models on devices lifted."""
    found = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.quantizers import quantizer_bitnet

    monkeypatch.setattr(quantizer_bitnet, "is_accelerate_available", lambda *args: True)
    return found


def written(torch, kind, folder):
    """A random model of transformers, saved by it with a tokenizer; and loaded there again, in float32."""
    import transformers

    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
             "rms_norm_eps": 1e-5, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
    model = (transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)) if kind == "llama" else
             transformers.BitNetForCausalLM(transformers.BitNetConfig(**shape, hidden_act="relu2")))
    model.save_pretrained(folder)
    if kind == "bitnet":
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                         "quantization_mode": "online"}
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(train_bpe([tiny.text(400)], VOCABULARY).json)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return torch.nn.Module.float(loaded.eval())


def perplexity_there(torch, model, ids, max_length, stride):
    """The loop of the page: nats and tokens of ids (n,)."""
    nats, tokens, end_before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        if end == end_before:
            break
        with torch.no_grad():
            logits = model(torch.tensor(ids[None, begin:end])).logits[0].double()
        logprobs = torch.log_softmax(logits[:-1], dim=-1)
        for t in range(max(begin + 1, end_before), end):
            nats -= float(logprobs[t - 1 - begin, ids[t]])
            tokens += 1
        end_before = end
        if end == len(ids):
            break
    return nats, tokens


def nearest_tie(model, text, context, stride):
    """How near a value before a rounding to int8 comes to a tie: what decides whether codes flip."""
    nearest, ops = [1.0], load_ops("numpy")

    def absmax_int8(x):
        z = x * (127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5))
        nearest.append(float(np.abs(z - np.floor(z) - 0.5).min()))
        return ops.absmax_int8(x)

    def rmsnorm_int8(x, g, eps=1e-5):
        y, rstd = ops.rmsnorm(x, g, eps)
        return *absmax_int8(y), rstd

    watched = SimpleNamespace(**{**vars(ops), "absmax_int8": absmax_int8, "rmsnorm_int8": rmsnorm_int8})
    slide(Transformer(model.cfg, model.transformer.weights, watched), [text], context, stride)
    return min(nearest)


def clear_text(model, context, stride):
    """A text for which no code is near a tie (docs/numerics.md, NU.14); for a full model any will do."""
    for seed in range(500):
        full = model.cfg.linear == "full"
        text = tokenised(tiny.text(8 if full else 2, seed), model.tokenizer, model.first)
        if full or (len(text.tokens) > context + 1 and nearest_tie(model, text, context, stride) > MARGIN):
            return text
    raise AssertionError("no text is clear of ties")


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", ["llama", "bitnet"])
def test_perplexity_is_that_of_a_loop_over_their_logits(torch, kind, backend, tmp_path):
    theirs = written(torch, kind, tmp_path)
    ours = load(tmp_path, backend)
    assert ours.cfg.linear == ("full" if kind == "llama" else "ternary")
    for context, stride in ((24, 12), (24, 24), (20, 13)):
        text = clear_text(ours, context, stride)
        assert len(text.tokens) > context + 1             # more windows than one
        got = slide(ours.transformer, [text], context, stride)
        nats, tokens = perplexity_there(torch, theirs, np.asarray(text.tokens), context + 1, stride)
        assert got.score.tokens == tokens == len(text.tokens) - 1
        error = math.exp(abs(got.score.nats - nats) / tokens) - 1
        print(f"{kind} {backend} context {context} stride {stride}: perplexity differs by {error:.1e}")
        assert error < 1e-5
