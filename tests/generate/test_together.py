"""generate/together: each text of a list is what it is alone, however long, whenever it ends."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import own_cache, refusal  # noqa: F401

import bitnet_ref as br
from bitnet_ref.checks import NonFiniteError
from bitnet_ref.generate import together as module

PROMPTS = ["", "Ba ce", "Kimu. Ne", "dí " * 40, "lo mu ki je fo gu ha"]


@pytest.fixture(scope="module")
def models():
    return {backend: br.load(str(tiny.trained()), backend) for backend in ("numpy", "numba")}


@given(st.lists(st.sampled_from(PROMPTS), max_size=4), st.integers(0, 70), st.sampled_from([0, 0.8, 1.5]),
       st.integers(0, 3), st.sampled_from([(), (" ",), (".", "ce ba")]))
@settings(max_examples=25)
def test_a_text_is_the_same_alone_and_in_any_list(prompts, tokens, temperature, seed, stop):
    """Also where it outgrows the context of 32, which is read anew."""
    model = br.load(str(tiny.trained()))
    how = {"temperature": temperature, "seed": seed, "stop": stop, "repetition_penalty": 1.2}
    assert model.generate(prompts, tokens, **how) == [model.generate(p, tokens, **how) for p in prompts]


def test_the_reference_makes_the_same_texts(models):
    texts = [m.generate(PROMPTS, 24, temperature=0) for m in models.values()]
    assert texts[0] == texts[1]


def test_one_call_of_the_model_for_all(models, monkeypatch):
    """A step reads the weights once: prefill, then a call for each further token."""
    model, calls = models["numba"], []
    extend = type(model.transformer).extend
    monkeypatch.setattr(type(model.transformer), "extend",
                        lambda self, *a, **k: calls.append(a[0].shape) or extend(self, *a, **k))
    model.generate(["ba", "ce di", "fo"], 9, temperature=1.0)
    assert calls == [(3, 1)] * 8


def test_no_prompts_and_wrong_ones(models):
    assert models["numba"].generate([], 5) == []
    with refusal("tokens must not be negative"):
        models["numba"].generate(["a"], -1)
    with refusal("top_k must"):
        models["numba"].generate(["a"], 1, top_k=0)


def test_logits_that_are_not_finite_name_the_text(models, monkeypatch):
    model = models["numba"].transformer
    nothing = np.full((1, model.cfg.vocab_size), np.nan)
    monkeypatch.setattr(type(model), "prefill", lambda self, *a: (nothing, None))
    with pytest.raises(ValueError, match="the largest logit of text 0 must be finite"):
        models["numba"].generate(["a"], 1)


def test_what_is_not_finite_later_is_looked_for_in_the_whole_text(models, monkeypatch):
    """Not in the last token alone: the tensor is named by a run over the text as it stands."""
    model, looked = models["numba"], []
    nothing = np.full((2, model.cfg.vocab_size), np.nan)

    def require(value, what, transformer, ids):
        looked.append(ids.tolist())
        if not np.isfinite(value):
            raise NonFiniteError(what)

    real = type(model.transformer).extend
    monkeypatch.setattr(type(model.transformer), "extend",
                        lambda self, *a, **k: (nothing, real(self, *a, **k)[1]))
    monkeypatch.setattr(module, "require_finite", require)
    with pytest.raises(NonFiniteError, match="text 0"):
        model.generate(["Ba ce", "di"], 2, temperature=0)
    first, second = ([model.first, *model.tokenizer.encode(p)] for p in ("Ba ce", "di"))
    assert looked[:2] == [[first], [second]]
    assert looked[2][0][:-1] == first


def test_a_logit_of_minus_infinity_is_never_drawn(models, monkeypatch):
    model = models["numba"]
    logits = np.full((1, model.cfg.vocab_size), -np.inf)
    logits[0, 40] = -3
    monkeypatch.setattr(type(model.transformer), "prefill", lambda self, *a: (logits, None))
    assert model.generate(["a"], 1) == [model.tokenizer.decode([40])]
