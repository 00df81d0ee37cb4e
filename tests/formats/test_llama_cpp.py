"""llama.cpp runs what formats/gguf writes: a model trained here, its tokenizer, and a LLaMA.

Needs llama-cpp-python. Its activations are floats for F32 and F16 files; for TQ they are int8 by blocks of
256 of a row where ours are by whole rows, so logits are near and perplexity is what is compared.
"""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import gguf_by_hand as by_hand
import numpy as np
import published
import pytest
import tiny
from strategies import small_config
from tiny import own_cache  # noqa: F401  (a fixture)

from bitnet_ref.config import PRESETS
from bitnet_ref.data.tokenizer import from_json
from bitnet_ref.formats.gguf_write import write_gguf
from bitnet_ref.formats.source import About, open_run, weights
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.weights import Trits, Weights
from bitnet_ref.train import loop, start

llama_cpp = pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

OPS = load("numpy")
# Trained to about three nats below a uniform guess, so that greedy text has margins.
TRAINED = {"d_model": 256, "d_ff": 512, "n_heads": 4, "n_kv_heads": 2, "context": 128, "vocab_size": 400,
           "steps": 150, "batch": 4}
LOGITS, PERPLEXITY = 1e-3, 0.01                            # largest accepted, relative
TEXTS = ["", " ", "Né ba  ce.\n\n\nDi", "\t日本 🙂\u0301 x", "<|endoftext|> isn't 12345 text", "\r\n  \x00 ü"]


@cache
def run():
    """A model trained here, SiLU, of widths that TQ can store."""
    return open_run(tiny.trained(**TRAINED))


def full_precision(source):
    """The same weights without quantised activations: the twin with w_q w_scale as its matrices."""
    table = {n: t.w_q * np.float32(t.w_scale) if isinstance(t, Trits) else t
             for n, t in weights(source).items()}
    return Transformer(replace(source.cfg, linear="full"), Weights(table), OPS)


class Theirs:
    """llama.cpp with one file; float32 cache, one thread."""

    def __init__(self, path, context):
        self.llama = llama_cpp.Llama(str(path), n_ctx=context, n_batch=context, n_ubatch=context, n_threads=1,
                                     logits_all=True, verbose=False, type_k=0, type_v=0)

    def logits(self, ids):
        """(T, V) of ids (T,)."""
        self.llama.reset()
        self.llama.eval([int(i) for i in ids])
        return np.array(self.llama.scores[:len(ids)])

    def ids(self, text):
        """Of a text, with what begins one."""
        return self.llama.tokenize(text.encode(), add_bos=True, special=False)


def exported(tmp_path, source, kind):
    write_gguf(tmp_path / "m.gguf", source, kind)
    return Theirs(tmp_path / "m.gguf", source.cfg.context)


def greedy(logits, ids, n):
    ids = list(ids)
    for _ in range(n):
        ids.append(int(np.argmax(logits(np.array(ids))[-1])))
    return ids


def perplexity(logits, tokens, first, context):
    """Of a text in windows of the context, each begun with `first`."""
    loss = 0.0
    for begin in range(0, len(tokens), context - 1):
        window = np.array([first, *tokens[begin:begin + context - 1]])
        rows = logits(window)[:-1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        loss += np.sum(np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), window[1:]])
    return np.exp(loss / len(tokens))


def held_out(source):
    return from_json(source.tokenizer).encode(tiny.text(300, seed=1))[:2000]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "limit"), [("f32", LOGITS), ("f16", 5 * LOGITS)])
def test_floats(kind, limit, tmp_path):
    """F32: logits within 1e-3 of our forward without activation quantisation, the same 64 tokens."""
    ours, theirs = full_precision(run()), exported(tmp_path, run(), kind)
    ids = np.array([0, *held_out(run())[:100]])
    want = ours(ids)[0][0]
    assert np.abs(theirs.logits(ids) - want).max() <= limit * np.abs(want).max()
    if kind == "f32":
        prompt = ids[:9]
        assert greedy(theirs.logits, prompt, 64) == greedy(lambda x: ours(x)[0][0], prompt, 64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0"])
def test_ternary(kind, tmp_path):
    """Perplexity on text that was not trained on."""
    source = run()
    ours, theirs = Transformer(source.cfg, weights(source), OPS), exported(tmp_path, source, kind)
    a = perplexity(lambda x: ours(x)[0][0], held_out(source), 0, source.cfg.context)
    b = perplexity(theirs.logits, held_out(source), 0, source.cfg.context)
    assert a < 0.5 * source.cfg.vocab_size
    assert abs(b / a - 1) <= PERPLEXITY


@pytest.mark.slow
def test_our_tokenizer(tmp_path):
    source = run()
    theirs, tok = exported(tmp_path, source, "tq2_0"), from_json(source.tokenizer)
    for text in [*TEXTS, tiny.text(50, seed=2)]:
        assert theirs.ids(text) == [0, *tok.encode(text).tolist()]
    assert theirs.llama.token_eos() == 0


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_llama(tied, tmp_path):
    """Rows of q and k in its order; grouped heads; with and without a head of its own."""
    cfg = small_config(norm="pre", linear="full", tied_embeddings=tied, d_model=64, d_ff=96, context=64,
                       vocab_size=400)
    source = by_hand.source(cfg, tokenizer=run().tokenizer)
    ids = np.arange(3, 40)
    want = Transformer(cfg, weights(source), OPS)(ids)[0][0]
    got = exported(tmp_path, source, "f32").logits(ids)
    assert np.abs(got - want).max() <= LOGITS * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", published.AS_JSON)
def test_published_tokenizers(name, tmp_path):
    """llama.cpp has its own vectors right with the vocabulary and merges that we write."""
    tok = published.tokenizer(published.AS_JSON[name])
    cfg = small_config(norm="pre", linear="full", d_model=32, context=64, vocab_size=tok.vocab_size)
    theirs = exported(tmp_path, by_hand.source(cfg, about=About("x", 1, (2,)), tokenizer=tok.json), "f16")
    for text, ids in published.vectors(name):
        assert theirs.ids(text) == [1, *ids]


@pytest.mark.nightly
@pytest.mark.data
def test_wikitext_by_the_preset_nano(tmp_path):
    """Trained as the README does, for half as long; TQ on the first 20,000 characters within 1 %."""
    if "BITNET_REF_DATA" not in os.environ:
        pytest.skip("BITNET_REF_DATA is not set: the folder of corpora that docs/data.md describes")
    nano = PRESETS["nano"]
    trained, data = start.start("nano", nano.model, replace(nano.train, steps=300), str(tmp_path / "nano"))
    loop.train(trained, data)
    source = open_run(tmp_path / "nano")
    path = Path(os.environ["BITNET_REF_DATA"], "wikitext-2", "wiki.valid.raw")
    tokens = from_json(source.tokenizer).encode(path.read_text(encoding="utf-8")[:20_000])
    ours, floats = Transformer(source.cfg, weights(source), OPS), full_precision(source)
    a = perplexity(lambda x: ours(x)[0][0], tokens, 0, source.cfg.context)
    for kind in ("tq1_0", "tq2_0"):
        b = perplexity(exported(tmp_path, source, kind).logits, tokens, 0, source.cfg.context)
        assert abs(b / a - 1) <= PERPLEXITY, (kind, a, b)
    ids = np.array([0, *tokens[:200]])
    want = floats(ids)[0][0]
    theirs = exported(tmp_path, source, "f32")
    assert np.abs(theirs.logits(ids) - want).max() <= LOGITS * np.abs(want).max()
    assert greedy(theirs.logits, ids[:9], 64) == greedy(lambda x: floats(x)[0][0], ids[:9], 64)
