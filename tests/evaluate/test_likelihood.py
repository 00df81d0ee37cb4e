"""evaluate/likelihood: a sum of log-probabilities, the same however the requests are cut into calls."""

import math

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds, small_config, small_params
from tiny import own_cache  # noqa: F401

from bitnet_ref.checks import NonFiniteError
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.evaluate import likelihood
from bitnet_ref.evaluate.likelihood import Likelihood, Request, encode_pairs, fitted, likelihoods
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer

NUMPY, NUMBA = load("numpy"), load("numba", 1)
CONTEXT = 12


def small_model(seed=0, ops=NUMPY, **given):
    cfg = small_config(**given)
    return Transformer(cfg, small_params(cfg, seed, np.float32), ops)


def asked(seed, n, longest=9):
    """Requests of which some share a context, and some are longer than the model's context."""
    rng = np.random.default_rng(seed)
    contexts = [tuple(rng.integers(0, 13, rng.integers(1, longest)).tolist()) for _ in range(1 + n // 3)]
    return [Request(contexts[rng.integers(len(contexts))],
                    tuple(rng.integers(0, 13, rng.integers(1, 8)).tolist())) for _ in range(n)]


def scored(model, requests, **how):
    """The likelihoods in the order of the requests; each comes once."""
    found = list(likelihoods(model, requests, **how))
    assert sorted(i for i, _ in found) == list(range(len(requests)))
    return [value for _, value in sorted(found)]


def by_hand(model, request):
    """The whole text in one call, and each token's log p added up in Python."""
    context, continuation = fitted(request, CONTEXT)
    ids = [*context, *continuation]
    logits = model(np.array(ids[:-1]))[0][0].astype(np.float64)[-len(continuation):]
    nats = [row[t] - row.max() - math.log(sum(math.exp(x - row.max()) for x in row))
            for row, t in zip(logits, continuation)]
    return sum(nats), all(int(row.argmax()) == t for row, t in zip(logits, continuation))


# --- property ----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=seeds, n=st.integers(1, 20))
def test_it_is_a_plain_loop_over_whole_texts(seed, n):
    model, requests = small_model(seed, linear="full"), asked(seed, n)
    for got, request in zip(scored(model, requests), requests):
        logprob, greedy = by_hand(model, request)
        assert got.logprob == pytest.approx(logprob, rel=1e-5, abs=1e-5)
        assert got.greedy is greedy


@settings(max_examples=15)
@given(seed=seeds, n=st.integers(1, 24), batch=st.integers(1, 9), linear=st.sampled_from(["ternary", "full"]))
def test_shared_contexts_order_and_batches_change_no_bit(seed, n, batch, linear):
    """Of a backend whose cached decode equals the full forward (decision 17)."""
    model, requests = small_model(seed, NUMBA, linear=linear), asked(seed, n)
    alone = [scored(model, [r])[0] for r in requests]
    assert scored(model, requests, batch=batch) == alone
    assert scored(model, requests, batch=batch, shared=False) == alone
    order = np.random.default_rng(seed).permutation(n)
    assert scored(model, [requests[i] for i in order], batch=batch) == [alone[i] for i in order]


@pytest.mark.parametrize(("name", "value"), [("LOGITS", 1), ("LOGITS", 40), ("TOGETHER", 1),
                                             ("TOGETHER", 2), ("ROWS", 1)])
def test_the_sizes_of_calls_change_no_bit(name, value, monkeypatch):
    model, requests = small_model(0, NUMBA), asked(3, 30)
    want = scored(model, requests)
    monkeypatch.setattr(likelihood, name, value)
    assert scored(model, requests) == want


def test_all_continuations_of_one_token_sum_to_one():
    model = small_model()
    got = scored(model, [Request((1, 2, 3), (t,)) for t in range(13)])
    assert sum(math.exp(x.logprob) for x in got) == pytest.approx(1, rel=1e-12)
    assert [x.greedy for x in got].count(True) == 1
    assert max(got, key=lambda x: x.logprob).greedy


def test_a_chain_of_probabilities_is_a_product():
    model = small_model(0, NUMBA)
    whole, head, tail = scored(model, [Request((1,), (2, 3, 4)), Request((1,), (2,)),
                                       Request((1, 2), (3, 4))])
    assert whole.logprob == pytest.approx(head.logprob + tail.logprob, rel=1e-12)


class Counted:
    """A model that counts the tokens it is given."""

    def __init__(self, model):
        self.model, self.cfg, self.tokens = model, model.cfg, 0

    def prefill(self, ids, lengths):
        self.tokens += int(lengths.sum())
        return self.model.prefill(ids, lengths)

    def extend(self, ids, state, lengths):
        self.tokens += int(lengths.sum())
        return self.model.extend(ids, state, lengths)


def test_a_shared_context_is_read_once():
    requests = [Request((c, 2, 3, 4, 5, 6, 7), (k, 8)) for c in range(5) for k in range(4)]
    counts = []
    for shared in (True, False):
        model = Counted(small_model(0, NUMBA))
        scored(model, requests, shared=shared)
        counts.append(model.tokens)
    assert counts == [5 * 7 + 20, 20 * 7 + 20]


def test_logits_held_at_once_are_bounded(monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS", 3 * 13)
    model, longest = Counted(small_model(0, NUMBA)), []
    real = model.extend
    model.extend = lambda ids, state, lengths: (longest.append(ids.size), real(ids, state, lengths))[1]
    scored(model, [Request((1,), tuple(range(11)))])
    assert longest == [3, 3, 3, 1]


# --- twin --------------------------------------------------------------------------------------------------


def test_backends_agree(backends):
    requests = asked(1, 30)
    want = scored(small_model(0, NUMPY, linear="full"), requests)
    for a, b in zip(scored(small_model(0, backends, linear="full"), requests), want):
        assert a.logprob == pytest.approx(b.logprob, rel=1e-5, abs=1e-5)
        assert a.greedy is b.greedy


def encode_pair(tokenizer, context, continuation, first):
    got, = encode_pairs(tokenizer, [(context, continuation)], first)
    return got


# --- what is cut -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([tiny.text(400)], 300)


def test_a_pair_is_cut_as_the_harness_cuts_it(bpe):
    """The two are encoded together; spaces between them are the continuation's."""
    for context, continuation in [("Ba ce", " di fo"), ("Ba ce ", "di fo"), ("Ba ce\n", "di"),
                                  ("Ba ce", "di")]:
        got = encode_pair(bpe, context, continuation, 0)
        alone = bpe.encode(context.rstrip()).tolist()
        assert got.context == (0, *alone)
        assert got.continuation == tuple(bpe.encode(context + continuation).tolist()[len(alone):])
    assert encode_pair(bpe, "Ba", " ce", None).context == tuple(bpe.encode("Ba").tolist())
    several = [("Ba ", "ce"), ("Ba", " di"), ("", "fo")]
    assert encode_pairs(bpe, several, 0) == [encode_pair(bpe, *pair, 0) for pair in several]
    assert encode_pair(bpe, "", "Ba ce", 0) == Request((0,), tuple(bpe.encode("Ba ce").tolist()))


def test_a_context_too_long_loses_its_begin():
    request = Request(tuple(range(13)), (1, 2, 3))
    assert fitted(request, CONTEXT) == Request(tuple(range(3, 13)), (1, 2, 3))
    assert fitted(Request((5, 6), tuple(range(12))), CONTEXT).context == (6,)


# --- bad input ---------------------------------------------------------------------------------------------


def test_what_cannot_be_scored_is_refused(bpe):
    model = small_model()
    with tiny.refusal("a continuation must not be empty", "none after 'Ba'", "give every choice a text"):
        encode_pair(bpe, "Ba", "", 0)
    with tiny.refusal("a context must have a token", "--no-first"):
        encode_pair(bpe, "  ", "Ba", None)
    with tiny.refusal("at most the model's 12 tokens", "13", "a longer context"):
        scored(model, [Request((1,), tuple(range(13)))])
    with tiny.refusal("ids must lie in 0..12", "99"):
        scored(model, [Request((99,), (1,))])
    with tiny.refusal("--batch must be greater than 0"):
        scored(model, [Request((1,), (1,))], batch=0)


def test_a_continuation_that_the_tokenizer_joins_to_the_context_is_refused():
    """`ab` is one token: nothing of it is left for `b`."""
    bpe = train_bpe(["ab " * 500], 300)
    assert len(bpe.encode("ab")) == len(bpe.encode("a")) == 1
    with tiny.refusal("a continuation must have a token of its own", "'b'", "begin it with a space"):
        encode_pair(bpe, "a", "b", 0)


def test_a_model_that_is_broken_is_named():
    model = small_model()
    model.params.flat[:] = np.nan
    model.requantise()
    with pytest.raises(NonFiniteError, match="log-likelihood"):
        scored(model, [Request((1,), (2,))])


def test_nothing_is_scored_of_nothing():
    assert scored(small_model(), []) == []
    assert Likelihood(-1.0, False).logprob == -1
