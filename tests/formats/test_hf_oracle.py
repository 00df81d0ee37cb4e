"""formats/hf and hf_write against transformers, both ways: its folders are read here, ours are loaded there.

Numbers in float32. Prompts are chosen so (docs/numerics.md, NU.14) that no value before a rounding is within
MARGIN of a tie, and that at every step the likeliest token leads by LEAD of the largest logit; then logits
must agree to 1e-5 of the largest, and 64 greedy tokens must be the same ones.
"""

import gc
import json
import os
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from strategies import small_config, small_params

from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.formats.hf import open_hf
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.safetensors_stream import INDEX
from bitnet_ref.formats.source import About, Source, weights
from bitnet_ref.generate.decode import decode
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.weights import Trits, ternarise
from bitnet_ref.quant import absmean_ternary

pytestmark = pytest.mark.oracle
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"                   # its quantisers are compiled otherwise

OPS = load("numpy")
BF16 = ml_dtypes.bfloat16
MARGIN, LEAD, CLOSE = 1e-3, 2e-3, 1e-5
PROMPT, TEXT = 6, 64
OUR_SHAPE = {"vocab_size": 96, "d_model": 32, "n_heads": 4, "n_kv_heads": 1, "d_ff": 88, "context": 80,
             "init_std": 0.5}


@pytest.fixture
def torch(monkeypatch):
    """torch, with transformers' demand for a library that places models on devices lifted."""
    found = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.quantizers import quantizer_bitnet

    monkeypatch.setattr(quantizer_bitnet, "is_accelerate_available", lambda *args: True)
    return found


# --- the comparison ----------------------------------------------------------------------------------------


def with_margin(seen):
    """The reference's ops; how near each quantised input comes to a tie goes to the list `seen`."""
    def absmax_int8(x):
        z = x * (127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5))
        seen.append(float(np.abs(z - np.floor(z) - 0.5).min()))
        return OPS.absmax_int8(x)

    def rmsnorm_int8(x, g, eps=1e-5):
        y, rstd = OPS.rmsnorm(x, g, eps)
        return *absmax_int8(y), rstd

    return SimpleNamespace(**{**vars(OPS), "absmax_int8": absmax_int8, "rmsnorm_int8": rmsnorm_int8})


def clear_prompt(model):
    """The first prompt with the margin and the leads, and its 64 greedy tokens."""
    seen = []
    watched = Transformer(model.cfg, model.weights, with_margin(seen))
    for seed in range(5000):
        ids = np.random.default_rng(seed).integers(0, model.cfg.vocab_size, PROMPT)
        seen.clear()
        watched(ids)
        if min(seen, default=1) < MARGIN:
            continue
        text = [step.token for step in decode(model, ids, TEXT)]
        logits = np.sort(model(np.array([*ids, *text[:-1]]))[0][0, PROMPT - 1:])
        if (logits[:, -1] - logits[:, -2]).min() > LEAD * np.abs(logits).max() and len(set(text)) > 8:
            return ids, text
    raise AssertionError("no prompt is clear of ties")


def in_transformers(torch, folder):
    """The folder, loaded by transformers in float32."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.nn.Module.float(model.eval())                   # norms and embedding stay bfloat16 otherwise
    for module in model.modules():
        if type(module).__name__ == "BitLinear":
            module.dtype = torch.float32
    return model


def greedy(torch, theirs, ids):
    """64 tokens after ids (T,), which no id ends."""
    theirs.generation_config.eos_token_id = None
    given = torch.tensor(ids[None])
    return theirs.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=TEXT,
                           pad_token_id=0)[0, len(ids):].tolist()


def assert_agree(torch, folder):
    """Logits and greedy text of the folder, here and there. Returns (our Source, their model)."""
    source = open_hf(folder)
    model = Transformer(source.cfg, weights(source), OPS)
    ids, text = clear_prompt(model)
    theirs = in_transformers(torch, folder)
    with torch.no_grad():
        want = theirs(torch.tensor(ids[None])).logits[0].numpy()
        said = greedy(torch, theirs, ids)
    error = np.abs(model(ids)[0][0] - want).max() / np.abs(want).max()
    print(f"{type(theirs).__name__} {source.storage}: {error:.1e} of the largest logit")
    assert error <= CLOSE
    assert said == text
    return source, theirs


# --- what transformers writes ------------------------------------------------------------------------------


def off_the_threshold(torch, model):
    """bfloat16 masters with every |w| / mean|w| at least 2 MARGIN from 1/2, and gains away from one."""
    for name, w in model.named_parameters():
        if w.ndim == 1:
            w.data = torch.exp(0.3 * torch.randn(w.shape)).bfloat16()
            continue
        w.data = w.data.bfloat16()
        for _ in range(100 if "_proj" in name else 0):
            wide = w.data.double().abs()
            near = (wide / wide.mean() - 0.5).abs() < 2 * MARGIN
            if not near.any():
                break
            w.data = torch.where(near, (w.data * 1.05).bfloat16(), w.data)


def bitnet_by_transformers(torch, folder, storage):
    """A random 2B4T in small, saved by transformers; packed by its own pack_weights."""
    import transformers
    from safetensors.torch import save_file
    from transformers.integrations.bitnet import pack_weights

    torch.manual_seed(0)
    model = transformers.BitNetForCausalLM(transformers.BitNetConfig(
        vocab_size=96, hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, hidden_act="relu2", initializer_range=0.5, rope_theta=500000.0,
        rms_norm_eps=1e-5, max_position_embeddings=80,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2))
    off_the_threshold(torch, model)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                     "quantization_mode": "online" if storage == "masters" else "offline"}
    if storage == "divide":
        config["quantization_config"]["linear_class"] = "bitlinear"
    (folder / "config.json").write_text(json.dumps(config))
    if storage == "masters":
        return
    state = {}
    for name, w in model.state_dict().items():
        if "_proj" in name:
            mean = w.float().abs().mean()
            state[name] = pack_weights((w.float() / mean).round().clamp(-1, 1))
            state[name + "_scale"] = (1 / mean if storage == "divide" else mean).bfloat16().reshape(1)
        elif name != "lm_head.weight":
            state[name] = w
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("storage", ["multiply", "divide", "masters"])
def test_a_2b4t_of_transformers(torch, storage, tmp_path):
    bitnet_by_transformers(torch, tmp_path, storage)
    source, _ = assert_agree(torch, tmp_path)
    assert (source.cfg.glu, source.cfg.norm, source.cfg.tied_embeddings) == ("relu2", "sub", True)
    assert (source.about.bos, source.about.eos) == (1, (2,))
    assert (source.master is not None) == (storage == "masters")
    assert source.read("embedding").dtype == BF16


@pytest.mark.parametrize("given", [{}, {"max_shard_size": "40KB"}], ids=["single", "sharded"])
def test_a_llama_of_transformers(torch, given, tmp_path):
    """TinyLlama's ratios: 8 query heads to a KV head, d_ff 2.75 D, untied."""
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=176, num_hidden_layers=4, num_attention_heads=16,
        num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=80, rms_norm_eps=1e-5))
    off_the_threshold(torch, model)
    model.save_pretrained(tmp_path, **given)
    assert (tmp_path / INDEX).exists() == bool(given)
    source, _ = assert_agree(torch, tmp_path)
    assert (source.cfg.linear, source.cfg.n_kv_heads) == ("full", 2)


@pytest.mark.nightly
def test_a_llama_of_the_shape_of_tinyllama(torch, tmp_path):
    """1.1 billion weights. No codes, so nothing flips: any prompt will do. Ours runs on the fast backend."""
    import transformers

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
            num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5))
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="500MB")
    del model
    ids = np.random.default_rng(0).integers(0, 32000, 8)
    theirs = in_transformers(torch, tmp_path)
    with torch.no_grad():
        want = theirs(torch.tensor(ids[None])).logits[0].numpy()
        said = greedy(torch, theirs, ids)
    del theirs
    gc.collect()
    source = open_hf(tmp_path)
    ours = Transformer(source.cfg, weights(source), load("numba"))
    assert np.abs(ours(ids)[0][0] - want).max() <= CLOSE * np.abs(want).max()
    assert [step.token for step in decode(ours, ids, TEXT)] == said


# --- what we write -----------------------------------------------------------------------------------------


def model_in_memory(masters=True, **given):
    """A Source with masters that are off the threshold, also after rounding to bfloat16 and float16."""
    cfg = small_config(**OUR_SHAPE | given)
    params = small_params(cfg, 3, np.float32)
    for spec in params.specs:
        for _ in range(100 if spec.ternary else 0):
            w = np.abs(params[spec.name])
            near = np.abs(w / w.mean() - 0.5) < 0.01
            params[spec.name][near] *= np.float32(1.1)
    params.flat[:] = params.flat.astype(BF16)
    held = ternarise(cfg, params, OPS)
    return Source("memory", "memory", "", cfg, About(bos=1, eos=(2, 3)), None, held.__getitem__,
                  params.__getitem__ if masters and cfg.linear == "ternary" else None)


BITNET, LLAMA = {"norm": "sub", "glu": "relu2"}, {"norm": "pre", "tied_embeddings": False, "n_kv_heads": 2}


@pytest.mark.parametrize(("storage", "given", "options", "linear"), [
    ("multiply", BITNET, {}, "AutoBitLinear"),
    ("multiply", LLAMA, {"dtype": "float32", "shard_bytes": 9000}, "AutoBitLinear"),
    ("divide", LLAMA, {}, "BitLinear"),
    ("divide", BITNET, {"dtype": "float16", "shard_bytes": 5000}, "BitLinear"),
    ("masters", BITNET, {}, "AutoBitLinear"),
    ("masters", LLAMA, {"dtype": "float32", "shard_bytes": 9000}, "AutoBitLinear"),
    ("masters", {**BITNET, "masters": False, "glu": "swiglu"}, {}, "AutoBitLinear"),
    ("full", {**LLAMA, "linear": "full"}, {"shard_bytes": 9000}, "Linear"),
    ("full", {**LLAMA, "linear": "full", "tied_embeddings": True}, {"dtype": "float32"}, "Linear"),
    ("full", {**BITNET, "linear": "full"}, {}, "Linear")],
    ids=[f"{storage}-{i}" for storage in ("multiply", "divide", "masters", "full") for i in range(
        2 + (storage in ("masters", "full")))])
def test_what_we_write_is_loaded_there(torch, storage, given, options, linear, tmp_path):
    source = model_in_memory(**given)
    written = write_hf(tmp_path / "model", source, storage, **options)
    assert (tmp_path / "model" / INDEX).exists() == ("shard_bytes" in options)
    read, theirs = assert_agree(torch, tmp_path / "model")
    assert read.cfg == source.cfg
    layer = theirs.model.layers[0]
    assert type(layer.self_attn.q_proj).__name__ == type(layer.mlp.down_proj).__name__ == linear
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, [2, 3])
    assert written.n_bytes == sum(f.stat().st_size for f in (tmp_path / "model").iterdir())
    for name, w in weights(source).items():                # and the trits are the source's
        if isinstance(w, Trits):
            np.testing.assert_array_equal(read.read(name).w_q, w.w_q)


def test_masters_there_are_ternarised_there_as_here(torch, tmp_path):
    """WeightQuant of transformers on the file's masters: the same trits as ours, entry by entry."""
    source = model_in_memory(**BITNET)
    write_hf(tmp_path / "model", source, "masters")
    theirs = in_transformers(torch, tmp_path / "model")
    w = theirs.model.layers[1].mlp.up_proj.weight.detach()
    from transformers.integrations.bitnet import WeightQuant

    w_q, _ = absmean_ternary(w.numpy())
    np.testing.assert_array_equal(np.sign(WeightQuant.apply(w).numpy()), w_q)


def test_the_tokenizer_and_its_template_are_loaded_there(torch, tmp_path):
    import transformers

    tokenizer = train_bpe(["Ternary weights are trits; a trit is minus one, zero or one. " * 20], 300)
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}"
    cfg = small_config(**OUR_SHAPE | {"vocab_size": tokenizer.vocab_size, "norm": "sub"})
    about = About("named", 0, (0,), template, {"temperature": 0.6, "top_p": 0.9, "do_sample": True})
    held = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
    source = Source("memory", "memory", "", cfg, about, tokenizer.json, held.__getitem__)
    write_hf(tmp_path / "named", source)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "named")
    for text in ("Ternary weights", "  ünï\n🙂"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.encode(text).tolist()
        assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.eos_token) == (0, 0, "<|endoftext|>")
    said = theirs.apply_chat_template([{"role": "user", "content": "a trit"}], tokenize=False)
    assert said == "user: a trit\n"
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "named")
    assert (generation.temperature, generation.top_p, generation.do_sample) == (0.6, 0.9, True)
    read = open_hf(tmp_path / "named")
    assert read.about == about
    assert read.tokenizer == tokenizer.json
