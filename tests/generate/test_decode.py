"""generate/decode and generate/window: each token comes from the full forward, also beyond the context."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NORMS, seeds, small_config, small_params

from bitnet_ref.checks import CheckError, NonFiniteError
from bitnet_ref.generate.decode import Step
from bitnet_ref.generate.decode import decode as steps
from bitnet_ref.generate.sampling import Sampling, logprob, sample
from bitnet_ref.generate.window import Window, fitted
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer

OPS = load("numpy")


def decode(*given, **options):
    return (step.token for step in steps(*given, **options))


def small_model(seed=0, **given):
    cfg = small_config(**given)
    return Transformer(cfg, small_params(cfg, seed, np.float32), OPS)


def prompt_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 13, n)


def greedy_by_hand(model, prompt, tokens):
    """The rule written out: all of the window through the model, its last row's best; the first token and the
    newest of the others are kept, half a context of them when it is full."""
    context, window, out = model.cfg.context, list(prompt), []
    while len(window) > context:
        del window[1 if context > 1 else 0]
    for _ in range(tokens):
        if len(window) > context:
            while len(window) > context - context // 2:
                del window[1 if context - context // 2 > 1 else 0]
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

    for name in ("prefill", "extend", "decode_step"):
        real = getattr(model, name)

        def watch(ids, *state, real=real, **how):
            logits, after = real(ids, *state, **how)
            seen.append(int(after.lengths[0]))
            assert after.ids[0, 0] == prompt_of(1)[0] or context < 3
            return logits, after

        monkeypatch.setattr(model, name, watch)
    list(decode(model, prompt_of(1), 40))
    assert max(seen) == context
    assert min(seen[context:]) >= (context + 1) // 2
    assert len(seen) == 40


def test_the_tokens_are_integers_and_as_many_as_asked():
    model = small_model()
    for tokens in (0, 1, 5):
        out = list(decode(model, prompt_of(3), tokens, Sampling(1.0)))
        assert len(out) == tokens
        assert all(type(t) is int and 0 <= t < 13 for t in out)


def test_it_streams():
    """The first token is there before the second is computed."""
    model = small_model()
    stream = decode(model, prompt_of(3), 10**9)
    assert [next(stream) for _ in range(3)] == list(decode(model, prompt_of(3), 3))


def test_it_ends_after_the_stop_token():
    model = small_model()
    tokens = list(decode(model, prompt_of(3), 30, Sampling(2.0)))
    for stop in ([tokens[4]], {tokens[4], tokens[9]}, ()):
        end = min((tokens.index(t) + 1 for t in stop), default=30)
        assert list(decode(model, prompt_of(3), 30, Sampling(2.0), stop)) == tokens[:end]


def test_a_seed_is_a_text():
    model = small_model()
    texts = [tuple(decode(model, prompt_of(3), 20, Sampling(1.0, seed=seed))) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


def test_what_was_generated_before_does_not_matter():
    """A draw belongs to its place in the text: prompt and continuation, or all as a prompt, are the same."""
    model = small_model()
    first = list(decode(model, prompt_of(3), 8, Sampling(seed=4)))
    rest = list(decode(model, [*prompt_of(3), *first[:5]], 3, Sampling(seed=4)))
    assert rest == first[5:]


def test_the_best_alone_is_greedy():
    model = small_model()
    greedy = list(decode(model, prompt_of(3), 20))
    assert list(decode(model, prompt_of(3), 20, Sampling(0.7, 1, seed=9))) == greedy


def test_log_probabilities_are_those_of_the_model_whatever_is_drawn():
    model = small_model()
    how = Sampling(3.0, 4, 0.9, repetition_penalty=1.7, seed=2)
    made = list(steps(model, prompt_of(3), 6, how, logprobs=True))
    ids = list(prompt_of(3))
    for token, said in made:
        assert said == logprob(model(np.array(ids))[0][0, -1], token)
        ids.append(token)
    assert [Step(t, None) for t, _ in made] == list(steps(model, prompt_of(3), 6, how))


def test_a_penalty_is_for_what_stands_in_the_window():
    model, how = small_model(context=8), Sampling(0.0, repetition_penalty=3.0)
    window = Window(model)
    for token in decode(model, prompt_of(3), 30, how, window=window):
        assert token == sample(window.logits, how, 0, window.ids)
    assert list(decode(model, prompt_of(3), 30, how)) != list(decode(model, prompt_of(3), 30))


# --- the window --------------------------------------------------------------------------------------------


@given(ids=st.lists(st.integers(), min_size=1, max_size=20), room=st.integers(1, 20))
def test_what_does_not_fit_leaves_the_first_and_the_newest(ids, room):
    got = fitted(ids, room)
    assert len(got) == min(len(ids), room)
    assert got[-1] == ids[-1]
    if room > 1:
        assert got == [ids[0], *ids[1:][-(len(got) - 1):]] if len(got) > 1 else ids[:1]


@settings(max_examples=15)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@given(seed=seeds, data=st.data())
def test_a_window_that_was_used_gives_the_logits_of_a_new_one(backend, seed, data):
    """Whatever was read and pushed before: extended, gone back in, or another text altogether."""
    cfg = small_config(n_layers=1)
    model = Transformer(cfg, small_params(cfg, seed, np.float32), load(backend))
    window, texts = Window(model), st.lists(st.integers(0, 2), min_size=1, max_size=14)
    for _ in range(5):
        before = list(window.ids)
        cut = data.draw(st.integers(0, len(before)))
        ids = [*before[:cut], *data.draw(texts)]
        anew, _ = model.prefill(np.array([fitted(ids, 12)]))
        np.testing.assert_allclose(window.read(ids), anew[0], atol=1e-5)
        assert window.ids == fitted(ids, 12)
        for token in data.draw(st.lists(st.integers(0, 2), max_size=4)):
            window.push(token)


def test_only_what_is_new_is_read():
    model = small_model(context=40)
    window = Window(model)
    made = list(decode(model, prompt_of(5), 6, window=window))
    assert window.prefilled == 5
    window.read([*prompt_of(5), *made, 1, 2])              # the last token made was not pushed
    assert window.prefilled == 5 + 1 + 2
    window.read([*prompt_of(5), *made, 1, 2])
    assert window.prefilled == 8
    window.read([*prompt_of(5), *made[:3], 9])
    assert window.prefilled == 9
    window.read([7, *prompt_of(5)])
    assert window.prefilled == 9 + 6


@pytest.mark.parametrize("call", ["prefill", "extend", "decode_step"])
@pytest.mark.parametrize("done", [False, True])
def test_a_window_that_was_interrupted_reads_anew(call, done, monkeypatch):
    """Ctrl-C comes before or behind a call of the model; what is held then is not relied upon."""
    model = small_model(context=40)
    window, whole, real = Window(model), Window(model), getattr(model, call)

    def interrupted(*args, **how):
        if done:
            real(*args, **how)
        raise KeyboardInterrupt

    texts = {"prefill": [[1, 2, 3]], "extend": [[1, 2], [1, 2, 3, 4]],
             "decode_step": [[1, 2], [1, 2, 3]]}[call]
    for ids in texts[:-1]:
        window.read(ids)
    with monkeypatch.context() as patch:
        patch.setattr(model, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            window.read(texts[-1])
    for ids in (texts[-1], [1, 2, 3, 4, 5]):
        np.testing.assert_array_equal(window.read(ids), whole.read(ids))


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "message"), [
    ({"prompt": []}, "a prompt must have at least one token; got 0; give some text"),
    ({"prompt": [0, 13]}, r"ids must lie in 0\.\.12; got 0\.\.13; use the model's own tokenizer"),
    ({"prompt": [-1]}, r"ids must lie in 0\.\.12; got -1\.\.-1"),
    ({"tokens": -1}, "^tokens must not be negative; got -1; use 0 or more$"),
])
def test_bad_options_are_refused_at_once(given, message):
    with pytest.raises(CheckError, match=message):
        steps(small_model(), **{"prompt": [1], "tokens": 3, **given})


@pytest.mark.parametrize("how", [Sampling(0.0), Sampling(1.0)])
def test_a_logit_of_minus_infinity_is_never_drawn(how, monkeypatch):
    """But where nothing else is left, or one is +inf, nothing is drawn at all."""
    model, drawn = small_model(), []
    real = model.prefill
    masked = np.arange(13) % 3 != 1

    def masking(ids):
        logits, state = real(ids)
        return np.where(masked, -np.inf, logits), state

    monkeypatch.setattr(model, "prefill", masking)
    for n in range(20):
        drawn += decode(model, prompt_of(3, n), 1, how)
    assert {t % 3 for t in drawn} == {1}
    masked = np.ones(13, bool)
    with pytest.raises(NonFiniteError, match="the largest logit at token 3 must be finite; got -inf"):
        list(decode(model, prompt_of(3), 1, how))
    monkeypatch.setattr(model, "prefill", lambda ids: (np.full((1, 13), np.inf), None))
    with pytest.raises(NonFiniteError, match="must be finite; got inf"):
        list(decode(model, prompt_of(3), 1, how))


def test_a_damaged_model_is_named_not_sampled():
    model = small_model()
    model.params["final_norm"][3] = np.nan
    model.requantise()
    said = r"logit at token 3 must be finite; got nan, first in the weight final_norm"
    with pytest.raises(NonFiniteError, match=said):
        list(decode(model, prompt_of(3), 5))
