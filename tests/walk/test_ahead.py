"""What is counted of guesses, and that counting them changes no text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import small_config, small_params

from bitnet_ref.chain.draft import Lookup, oracle
from bitnet_ref.generate.decode import decode
from bitnet_ref.generate.sampling import GREEDY, Sampling
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.walk.ahead import Call, acceptance, chances, expected, guessed, per_call

PROMPT, TOKENS = [1, 2, 3], 13


@pytest.fixture(scope="module")
def model():
    cfg = small_config(context=24)
    return Transformer(cfg, small_params(cfg, 0, np.float32), load("numpy"))


# ---- property ----

@pytest.mark.parametrize("how", [GREEDY, Sampling(0.8, None, seed=3)])
def test_the_diary_has_all_of_the_plain_text_but_its_first_token(model, how):
    plain = [step.token for step in decode(model, PROMPT, TOKENS, how)]
    wrong = [(t + 1) % model.cfg.vocab_size for t in plain]
    for drafter in (oracle(PROMPT + plain), oracle(PROMPT + wrong), Lookup()):
        text, calls = guessed(model, PROMPT, TOKENS, drafter, how=how)
        assert text == plain
        assert [token for call in calls for token in call.made] == plain[1:]


def test_who_knows_the_text_makes_all_there_is_room_for(model):
    plain = [step.token for step in decode(model, PROMPT, TOKENS)]
    for k in (0, 1, 2, 3):
        calls = guessed(model, PROMPT, TOKENS, oracle(PROMPT + plain), k)[1]
        assert {len(call.made) for call in calls} == {k + 1}           # twelve tokens, by 1, 2, 3 or 4
        assert per_call(calls) == expected(chances(calls, k))[k] == k + 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_what_is_counted_is_what_the_formula_says_of_the_same_calls(pairs):
    """(SP.2) is an identity of the calls that the chances were counted in."""
    calls = [Call((7,) * max(said, right), (7,) * (right + 1)) for said, right in pairs]
    assert expected(chances(calls, 4))[-1] == pytest.approx(per_call(calls), rel=1e-12)
    said, right = (sum(len(p) - minus for p in part) for part, minus in
                   (([c.guess for c in calls], 0), ([c.made for c in calls], 1)))
    assert np.isnan(acceptance(calls)) if said == 0 else acceptance(calls) == right / said


def test_with_one_chance_everywhere_it_is_the_sum_of_a_series():
    a, k = 0.7, 6
    assert expected(np.full(k, a))[-1] == pytest.approx((1 - a ** (k + 1)) / (1 - a), rel=1e-12)
