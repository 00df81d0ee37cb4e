"""evaluate/perplexity: a sum over every token, once, and figures that mean what their names say."""

import math

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds, small_config, small_params
from tiny import own_cache  # noqa: F401

from bitnet_ref.data.prepare import prepare
from bitnet_ref.evaluate.perplexity import Score, score
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import Params, param_specs

OPS = load("numpy")
BYTES = np.arange(13)                        # token t stands for t bytes; 0 is the end of a text


def small_model(seed=0, **given):
    cfg = small_config(**given)
    return Transformer(cfg, small_params(cfg, seed), OPS)


def stream(n, seed=0):
    return np.random.default_rng(seed).integers(0, 13, n).astype(np.uint16)


def by_hand(model, tokens, windows=None):
    """One window of the context after another, each token's -log p added up in Python."""
    T, nats, n, size = model.cfg.context, 0.0, 0, 0
    starts = list(range(0, len(tokens) - 1, T))
    if windows is not None and windows < len(starts) - ((len(tokens) - 1) % T > 0):
        whole = (len(tokens) - 1) // T
        starts = [i * whole // windows * T for i in range(windows)]
    for a in starts:
        ids, targets = tokens[a:a + T][:len(tokens) - 1 - a], tokens[a + 1:a + T + 1]
        logits, _ = model(np.asarray(ids, np.int64))
        for row, target in zip(logits[0].astype(np.float64), targets):
            nats -= row[target] - math.log(sum(math.exp(x - row.max()) for x in row)) - row.max()
            n += 1
            size += int(BYTES[target])
    return nats, n, size


@settings(max_examples=15)
@given(seed=seeds, n=st.integers(2, 80), batch=st.integers(1, 9))
def test_the_score_is_a_plain_loop_over_windows(seed, n, batch):
    model, tokens = small_model(seed, n_layers=1), stream(n, seed)
    got = score(model, tokens, BYTES, batch=batch)
    nats, tokens, size = by_hand(model, tokens)
    assert got.nats == pytest.approx(nats, rel=1e-9)
    assert (got.tokens, got.bytes, got.vocab_size) == (tokens, size, 13)


@pytest.mark.parametrize("n", [2, 12, 13, 14, 24, 25, 26, 60])
def test_every_token_but_the_first_is_counted_once(n):
    """The context is 12: whole windows, a tail of one token, a tail alone."""
    got = score(small_model(), np.full(n, 3, np.uint16), BYTES)
    assert (got.tokens, got.bytes) == (n - 1, 3 * (n - 1))


@settings(max_examples=15)
@given(seed=seeds, n=st.integers(20, 90), windows=st.integers(1, 9))
def test_a_limit_takes_windows_from_all_over_the_text(seed, n, windows):
    model, tokens = small_model(seed, n_layers=1), stream(n, seed)
    got = score(model, tokens, BYTES, windows)
    nats, tokens, size = by_hand(model, tokens, windows)
    assert got.nats == pytest.approx(nats, rel=1e-9)
    assert (got.tokens, got.bytes) == (tokens, size)


def uniform_model(vocab_size=13, context=12):
    """All parameters zero: every logit is zero."""
    cfg = small_config(vocab_size=vocab_size, context=context)
    return Transformer(cfg, Params(param_specs(cfg)), OPS)


@pytest.mark.parametrize("vocab_size", [2, 13, 300])
def test_a_uniform_model_has_the_loss_log_v_and_the_perplexity_v(vocab_size):
    tokens = np.random.default_rng(0).integers(0, vocab_size, 50)
    got = score(uniform_model(vocab_size), tokens, np.ones(vocab_size, np.int64))
    assert got.loss == pytest.approx(math.log(vocab_size), rel=1e-6)
    assert got.bits_per_byte == pytest.approx(math.log2(vocab_size), rel=1e-6)


def test_the_bytes_are_those_of_the_validation_text():
    data = prepare(str(tiny.corpus()), None, 300, 0.1, 0, progress=False)
    model = tiny.begin_at_end(tiny.trained()).model
    got = score(model, data.val.tokens, data.tokenizer.token_bytes)
    text = data.val_text.read_bytes()
    assert got.bytes == len(text)
    assert len(text) > len(text.decode("utf-8"))             # some characters are several bytes
    assert got.tokens == len(data.val.tokens) - 1
    assert got.loss < math.log(300) - 1
    nats = 0.0
    for a in range(0, got.tokens, 32):
        ids, targets = data.val.tokens[a:a + 32], data.val.tokens[a + 1:a + 33]
        logits = model(ids[:len(targets)].astype(np.int64))[0][0].astype(np.float64)
        nats += float(np.sum(np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(targets)), targets]))
    assert got.nats == pytest.approx(nats, rel=1e-6)


# --- the figures -------------------------------------------------------------------------------------------


@given(nats=st.floats(0.1, 1e6), tokens=st.integers(1, 10**6), size=st.integers(1, 10**6))
def test_the_three_figures_are_functions_of_the_sums(nats, tokens, size):
    got = Score(nats, tokens, size, 10**9)
    assert got.loss == nats / tokens
    assert got.bits_per_byte == pytest.approx(nats / math.log(2) / size)
    if got.perplexity is not None:
        assert got.perplexity == pytest.approx(2 ** (got.bits_per_byte * size / tokens), rel=1e-9)


@pytest.mark.parametrize("V", [2, 300, 128_256])
def test_a_perplexity_above_the_vocabulary_is_refused(V):
    def at(loss):
        return Score(loss * 1000, 1000, 3000, V).perplexity

    assert at(math.log(V)) == pytest.approx(V)
    assert at(math.log(V) * 0.999) < V
    assert at(math.log(V) * 1.001) is None
    assert at(1e9) is None
    assert at(float("nan")) is None


def test_a_text_of_one_token_cannot_be_scored():
    with tiny.refusal("at least two tokens", "got 1", "give more text"):
        score(small_model(), stream(1), BYTES)
