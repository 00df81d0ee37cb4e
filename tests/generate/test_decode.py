"""generate/decode: each token comes from the full forward, also when the text outgrows the context."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NORMS, seeds, small_config, small_params

from bitnet_ref.checks import CheckError, NonFiniteError
from bitnet_ref.generate.decode import decode
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer

OPS = load("numpy")


def small_model(seed=0, **given):
    cfg = small_config(**given)
    return Transformer(cfg, small_params(cfg, seed, np.float32), OPS)


def prompt_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 13, n)


def greedy_by_hand(model, prompt, tokens):
    """The rule written out: all of the window through the model, its last row's best, oldest half dropped."""
    context, window, out = model.cfg.context, list(prompt)[-model.cfg.context:], []
    for _ in range(tokens):
        if len(window) > context:
            window = window[context // 2 + 1:]
        logits, _ = model(np.array(window))
        out.append(int(np.argmax(logits[0, -1])))
        window.append(out[-1])
    return out


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("linear", ["ternary", "full"])
def test_greedy_is_argmax_of_the_full_forward_step_by_step(norm, linear):
    model = small_model(**NORMS[norm], linear=linear)
    ids = list(prompt_of(3))
    for token in decode(model, prompt_of(3), 9):
        logits, _ = model(np.array(ids))
        assert token == np.argmax(logits[0, -1])
        ids.append(token)
    assert len(ids) == 12


@settings(max_examples=15)
@given(seed=seeds, n=st.integers(1, 30), tokens=st.integers(0, 40), context=st.integers(1, 12))
def test_beyond_the_context_the_oldest_half_is_dropped(seed, n, tokens, context):
    model = small_model(seed, context=context, n_layers=1)
    prompt = prompt_of(n, seed)
    assert list(decode(model, prompt, tokens)) == greedy_by_hand(model, prompt, tokens)


@pytest.mark.parametrize("context", [1, 2, 7, 8])
def test_at_least_half_a_context_of_history_is_kept(context, monkeypatch):
    seen = []
    model = small_model(context=context)

    for name in ("prefill", "decode_step"):
        real = getattr(model, name)

        def watch(ids, *state, real=real):
            logits, after = real(ids, *state)
            seen.append(after.shape[1])
            return logits, after

        monkeypatch.setattr(model, name, watch)
    list(decode(model, prompt_of(1), 40))
    assert max(seen) == context
    assert min(seen[context:]) >= (context + 1) // 2
    assert len(seen) == 40


def test_the_tokens_are_integers_and_as_many_as_asked():
    model = small_model()
    for tokens in (0, 1, 5):
        out = list(decode(model, prompt_of(3), tokens, temperature=1.0))
        assert len(out) == tokens
        assert all(type(t) is int and 0 <= t < 13 for t in out)


def test_it_streams():
    """The first token is there before the second is computed."""
    model = small_model()
    stream = decode(model, prompt_of(3), 10**9)
    assert [next(stream) for _ in range(3)] == list(decode(model, prompt_of(3), 3))


def test_it_ends_after_the_stop_token():
    model = small_model()
    tokens = list(decode(model, prompt_of(3), 30, temperature=2.0))
    stop = tokens[4]
    assert list(decode(model, prompt_of(3), 30, 2.0, stop=stop)) == tokens[:tokens.index(stop) + 1]


def test_a_seed_is_a_text():
    model = small_model()
    texts = [tuple(decode(model, prompt_of(3), 20, 1.0, None, seed)) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


def test_what_was_generated_before_does_not_matter():
    """A draw belongs to its place in the text: prompt and continuation, or all as a prompt, are the same."""
    model = small_model()
    first = list(decode(model, prompt_of(3), 8, 1.0, seed=4))
    rest = list(decode(model, [*prompt_of(3), *first[:5]], 3, 1.0, seed=4))
    assert rest == first[5:]


def test_the_best_alone_is_greedy():
    model = small_model()
    greedy = list(decode(model, prompt_of(3), 20))
    assert list(decode(model, prompt_of(3), 20, 0.7, top_k=1, seed=9)) == greedy


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "message"), [
    ({"prompt": []}, "a prompt must have at least one token; got 0; give some text"),
    ({"prompt": [0, 13]}, r"ids must lie in 0\.\.12; got 0\.\.13; use the model's own tokenizer"),
    ({"prompt": [-1]}, r"ids must lie in 0\.\.12; got -1\.\.-1"),
    ({"tokens": -1}, "^tokens must not be negative; got -1; use 0 or more$"),
    ({"temperature": -0.5}, r"^temperature must not be negative; got -0.5; use 0 \(greedy\) or more$"),
    ({"temperature": float("nan")}, "^temperature must not be negative; got nan"),
    ({"top_k": 0}, r"^top_k must be greater than 0; got 0; use 1 \(greedy\) or more$"),
    ({"seed": -1}, r"^seed must lie in \[0, 2\^64\); got -1; choose another$"),
    ({"seed": 1 << 64}, r"^seed must lie in \[0, 2\^64\); got 18446744073709551616"),
])
def test_bad_options_are_refused_at_once(given, message):
    with pytest.raises(CheckError, match=message):
        decode(small_model(), **{"prompt": [1], "tokens": 3, **given})


def test_a_damaged_model_is_named_not_sampled():
    model = small_model()
    model.params["final_norm"][3] = np.nan
    model.requantise()
    said = r"logit at token 3 must be finite; got nan, first in the weight final_norm"
    with pytest.raises(NonFiniteError, match=said):
        list(decode(model, prompt_of(3), 5))
