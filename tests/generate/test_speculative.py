"""generate/speculative: guesses change the time that a text takes, and nothing of the text."""

import os
from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NORMS, seeds, small_config, small_params
from tiny import own_cache, refusal  # noqa: F401

import bitnet_ref as br
from bitnet_ref.chain.draft import REACH, Draft, Lookup, Refreshed, chains, oracle
from bitnet_ref.chain.mine import mine_for
from bitnet_ref.chain.table import CHAINS, Chain, Table, read_table, write_table
from bitnet_ref.checks import CheckError, NonFiniteError
from bitnet_ref.data.prepare import prepare
from bitnet_ref.generate.decode import decode
from bitnet_ref.generate.sampling import GREEDY, Sampling, candidates
from bitnet_ref.generate.speculative import Counts, Pace, speculate
from bitnet_ref.generate.spoken import SPOKEN
from bitnet_ref.generate.window import Window
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer

V = 13
rows = st.lists(st.integers(0, V + 3), min_size=2, max_size=8).map(tuple)
tables = st.lists(rows, max_size=12, unique=True).map(lambda found: Table(
    "", V, "", 0, tuple(Chain(ids, 1, 0, (0.9,) * (len(ids) - 1)) for ids in found)))
ways = st.builds(Sampling, st.sampled_from([0.0, 0.7, 2.0]), st.sampled_from([None, 3]),
                 st.sampled_from([1.0, 0.8]), repetition_penalty=st.sampled_from([1.0, 1.5]),
                 seed=st.integers(0, 9))
paces = st.sampled_from([None, 1, 2, 7])


def small_model(backend="numba", seed=0, options=(), **given):
    cfg = small_config(**given)
    return Transformer(cfg, small_params(cfg, seed, np.float32), load(backend), *options)


def tokens_of(steps):
    return [step.token for step in steps]


def guess_of(text, wrong):
    """A drafter that knows the text but for each `wrong`-th token."""
    known = oracle([(t + 1) % V if wrong and n % wrong == 0 else t for n, t in enumerate(text)])
    return lambda so_far: known(so_far)


# --- the text is the same --------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=seeds, table=tables, how=ways, fixed=paces, context=st.integers(1, 24), data=st.data())
def test_any_table_any_prompt_any_window_gives_the_plain_text(seed, table, how, fixed, context, data):
    """Ids beyond the vocabulary, chains longer than the context left, a window that has read other texts."""
    model = small_model(seed=seed % 3, context=context, n_layers=1)
    window, texts = Window(model), st.lists(st.integers(0, V - 1), min_size=1, max_size=30)
    for _ in range(data.draw(st.integers(1, 3))):
        prompt, tokens = data.draw(texts), data.draw(st.integers(0, 30))
        stop = data.draw(st.sets(st.integers(0, V - 1), max_size=1))
        for make in (lambda: chains(table), Lookup, lambda: Refreshed(table)):
            made = list(speculate(window, prompt, tokens, make(), how, stop, True, Pace(fixed)))
            assert made == list(decode(model, prompt, tokens, how, stop, True))


@pytest.mark.parametrize("variant", [
    *NORMS.values(), {"linear": "full"}, {"head": "ternary"}, {"tied_embeddings": False}, {"glu": "relu2"}],
    ids=str)
@pytest.mark.parametrize("options", [(), (True,), (False, True)], ids=["plain", "int8 head", "half cache"])
def test_every_kind_of_model_and_every_length_of_draft(variant, options):
    model = small_model(options=options, context=40, **variant)
    plain = list(decode(model, [1, 2, 3], 60, GREEDY, logprobs=True))
    text = [1, 2, 3, *tokens_of(plain)]
    for wrong in (0, 2, 3, 5):
        for fixed in (1, 2, 3, REACH):
            guess, window = guess_of(text, wrong), Window(model)
            assert list(speculate(window, [1, 2, 3], 60, guess, GREEDY, (), True, Pace(fixed))) == plain


@settings(max_examples=15)
@given(seed=seeds, start=st.integers(1, 30), k=st.integers(2, 8),
       options=st.sampled_from([(), (False, True)]))
def test_tokens_at_once_are_tokens_one_by_one_bit_for_bit(seed, start, k, options):
    """What all of this rests on (docs/decisions/020)."""
    model, rng = small_model(seed=seed % 5, context=40, options=options), np.random.default_rng(seed)
    ids = rng.integers(0, V, start + k).tolist()
    once, singly = Window(model), Window(model)
    for window in (once, singly):
        window.read(ids[:start])
    at_once = once.push_all(ids[start:])
    for row, token in zip(at_once, ids[start:]):
        np.testing.assert_array_equal(row, singly.push(token))
    once.back(start + 1, at_once[0])
    assert once.ids == ids[:start + 1]
    singly.read(ids[:start + 1])
    np.testing.assert_array_equal(once.push(3), singly.push(3))


def test_a_text_that_runs_over_the_context_many_times():
    model = small_model(context=16)
    for how in (GREEDY, Sampling(1.0)):
        plain = tokens_of(decode(model, [1], 300, how))
        pace = Pace(REACH)
        made = speculate(Window(model), [1], 300, guess_of([1, *plain], 4), how, pace=pace)
        assert tokens_of(made) == plain
        assert pace.counts.calls < 150                            # and it did guess
        assert pace.counts.made == 299


@pytest.mark.slow
def test_ten_thousand_tokens_of_a_trained_model():
    """Every drafter, greedy and sampled, on the backend whose bits do not depend on how rows are grouped."""
    model, drafts = br.load(tiny.trained()), 0
    data = prepare(str(tiny.corpus()), str(tiny.trained() / "tokenizer.json"), progress=False)
    table = mine_for(data)
    for how in (GREEDY, Sampling(0.8)):
        prompt = data.val.tokens[:9].tolist()
        plain = tokens_of(decode(model.transformer, prompt, 10_000, how))
        for drafter in (chains(table), Lookup(), Refreshed(table),
                        oracle([*prompt, *plain])):
            for pace in (Pace(), Pace(4)):
                window = Window(model.transformer)
                got = tokens_of(speculate(window, prompt, 10_000, drafter, how, pace=pace))
                assert got == plain
                drafts += pace.counts.drafted
    assert drafts > 50_000


def test_numpy_300_tokens_where_the_best_is_clear():
    """The reference's products may round otherwise in another shape; so only where two logits differ."""
    model, checked = small_model("numpy", context=64, init_std=0.8), 0
    for first in range(V):
        made, text = list(decode(model, [first, 1], 40)), [first, 1]
        for n, (token, _) in enumerate(made):
            logits = np.sort(model(np.array(text[-64:]))[0][0, -1])
            if logits[-1] - logits[-2] < 1e-3:
                made = made[:n]
                break
            text.append(token)
        got = speculate(Window(model), [first, 1], len(made), guess_of(text, 3), pace=Pace(3))
        assert tokens_of(got) == tokens_of(made)
        checked += len(made)
    assert checked >= 300


# --- the distribution is the same ------------------------------------------------------------------------


@pytest.mark.parametrize("likely", [True, False])
@pytest.mark.parametrize("way", [Sampling(1.0, None), Sampling(0.8, 5)], ids=["plain", "top-k"])
def test_what_is_drawn_under_guesses_has_the_model_s_distribution(way, likely):
    """Over 3,000 texts of four tokens: the frequencies of the second and third, of which guesses are verified
    in one call, and of the fourth, which may come of it too, against their probabilities summed over all
    texts before: chi-square (at most 12 degrees) below what chance exceeds once in 10,000 times. A guess x is
    accepted with p(x), as under the rejection rule."""
    model, texts = small_model(context=8, n_layers=1), 3000
    before = np.array([[1, 2, a, b, c] for a in range(V) for b in range(V) for c in range(V)])
    p = np.zeros((len(before), 4, V))
    for n, text in enumerate(model(before)[0]):
        for t, row in enumerate(text[1:]):
            ids, share = candidates(row, way)
            p[n, t, ids] = share
    p = p.reshape(V, V, V, 4, V)
    first, two, three = p[0, 0, 0, 0], p[:, 0, 0, 1], p[:, :, 0, 2]
    second = first @ two
    third = np.einsum("a,ab,abc->c", first, two, three)
    fourth = np.einsum("a,ab,abc,abcd->d", first, two, three, p[:, :, :, 3])
    guess = int(np.argmax(second) if likely else np.argmin(np.where(second > 0, second, 1)))
    seen, window, right = np.zeros((4, V)), Window(model), 0
    for n in range(texts):
        counts = Counts()
        made = tokens_of(speculate(window, [1, 2], 4, lambda t: Draft((guess,) * 2, (0.9, 0.9)),
                                   replace(way, seed=7, sequence=n), pace=Pace(2), counts=counts))
        seen[range(4), made] += 1
        right += counts.made - counts.calls > 0 and made[1] == guess
        assert counts.drafted == 2 + (made[1] != guess)    # a guess that failed is followed by one of one
    for found, want in zip(seen, (first, second, third, fourth)):
        assert not found[want == 0].any()
        assert np.sum((found - texts * want)[want > 0] ** 2 / (texts * want[want > 0])) < 39.1
    rate = second[guess]
    assert abs(right / texts - rate) < 4 * np.sqrt(rate * (1 - rate) / texts)


# --- how much is guessed ---------------------------------------------------------------------------------


@given(chances=st.lists(st.floats(0.01, 1), min_size=1, max_size=REACH), room=st.integers(-1, 9),
       costs=st.lists(st.floats(0.1, 10), min_size=REACH + 1, max_size=REACH + 1))
def test_the_length_is_the_one_that_makes_the_most_of_time(chances, room, costs):
    pace = Pace()
    pace.costs[1:] = costs
    length = pace.length(Draft((1,) * len(chances), tuple(chances)), room)
    rates = {k: (1 + sum(np.prod(chances[:i]) for i in range(1, k + 1))) / costs[k]
             for k in range(max(0, min(len(chances), room)) + 1)}
    assert length in rates
    assert rates[length] == pytest.approx(max(rates.values()), rel=1e-9)


def timed(model, seconds_of, monkeypatch):
    """The clock of a world in which a call of n tokens takes seconds_of(n)."""
    now = [0.0]
    for name in ("extend", "decode_step"):
        real = getattr(model, name)

        def call(ids, *rest, real=real, **how):
            now[0] += seconds_of(np.size(ids))
            return real(ids, *rest, **how)

        monkeypatch.setattr(model, name, call)
    return lambda: now[0]


@pytest.mark.parametrize(("seconds_of", "low", "high"), [
    (lambda n: 1.0, 6.5, 7.0), (lambda n: n ** 1.2, 0.0, 0.2), (lambda n: 1.0 if n < 4 else 9.0, 1.6, 2.3)])
def test_drafts_are_as_long_as_calls_are_cheap(seconds_of, low, high, monkeypatch):
    """An oracle's guesses: all of them where a call costs what it costs, none where each token does."""
    model, pace = small_model(context=2048, n_layers=1), Pace()
    plain = tokens_of(decode(model, [1, 2], 1500))
    clock = timed(model, seconds_of, monkeypatch)
    got = speculate(Window(model), [1, 2], 1500, oracle([1, 2, *plain]), pace=pace, clock=clock)
    assert tokens_of(got) == plain
    assert low <= pace.counts.drafted / pace.counts.calls <= high


def test_guesses_that_are_wrong_are_soon_no_longer_made(monkeypatch):
    model, pace = small_model(context=2048, n_layers=1), Pace()
    plain = tokens_of(decode(model, [1, 2], 600))
    clock = timed(model, lambda n: 1 + 0.2 * (n - 1), monkeypatch)
    wrong = guess_of([1, 2, *plain], 1)
    assert tokens_of(speculate(Window(model), [1, 2], 600, wrong, pace=pace, clock=clock)) == plain
    assert pace.counts.accepted == 0
    assert pace.counts.drafted < 60
    assert pace.chance(1.0) < 0.2


def test_counts_add_up():
    model, pace = small_model(context=64), Pace(3)
    plain = tokens_of(decode(model, [1, 2], 50))
    own = [Counts(), Counts()]
    streams = [speculate(Window(model), [1, 2], 50, guess_of([1, 2, *plain], 5), pace=pace, counts=counts)
               for counts in own]
    list(zip(*streams))                                    # by turns: each text has its own
    assert own[0] == own[1]
    assert pace.counts.made == 98
    pace.counts = own[0]
    assert pace.counts.made == 49 == pace.counts.accepted + pace.counts.calls
    assert pace.counts.accepted < pace.counts.drafted


# --- wiring ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_table(tmp_path_factory):
    """A run that has a table beside its tokenizer."""
    run = tiny.copy(tiny.trained(), tmp_path_factory.mktemp("runs") / "run")
    data = prepare(str(tiny.corpus()), str(run / "tokenizer.json"), progress=False)
    write_table(run / CHAINS, mine_for(data))
    return run


@pytest.mark.parametrize("chain", ["auto", "table", "lookup", "refreshed", "FILE"])
def test_a_run_generates_the_same_with_any_drafter(chain, with_table):
    plain = br.load(with_table, chain="off")
    model = br.load(with_table, chain=str(with_table / CHAINS) if chain == "FILE" else chain)
    for temperature in (0.0, 0.9):
        made = model.stream("Ba", 90, temperature)
        assert "".join(made) == plain.generate("Ba", 90, temperature)
        guessed = made.record()["speculation"] is not None
        assert guessed == (chain != "auto" or temperature == 0)
    assert plain.stream("Ba", 5, 0.0).record()["speculation"] is None


def test_guesses_pay_where_there_is_a_cache(with_table):
    assert br.load(with_table, "numpy").drafter(GREEDY) is None
    assert br.load(with_table).drafter(GREEDY) is not None
    assert br.load(with_table).drafter(Sampling()) is None


@pytest.mark.parametrize("what", ["of another vocabulary", "no table"])
def test_a_table_that_nobody_asked_for_stops_no_text(what, with_table, tmp_path):
    """A file of the same name in a folder of models, or what a full disk left."""
    run = tiny.copy(with_table, tmp_path / "run")
    table = read_table(run / CHAINS)
    for name in (SPOKEN, CHAINS):
        write_table(run / name, table._replace(vocabulary="0" * 64))
        if what == "no table":
            (run / name).write_text('{"chains": []}')
    model = br.load(run)
    assert model.table() is None
    assert model.generate("Ba", 30, 0.0) == br.load(run, chain="off").generate("Ba", 30, 0.0)
    for chain in ("table", "refreshed"):
        with refusal(SPOKEN, "mine"):
            br.load(run, chain=chain)


def test_tables_that_are_none(with_table, tmp_path):
    run = tiny.copy(with_table, tmp_path / "run")
    (run / CHAINS).write_text("{")
    assert br.load(run, chain="off").generate("Ba", 3, 0.0)
    with refusal(run / CHAINS, "table of chains"):
        br.load(run, chain="refreshed").generate("Ba", 3, 0.0)
    write_table(run / CHAINS, Table("ab" * 32, 300, "", 0, ()))
    with refusal("must be of the model's vocabulary"):
        br.load(run, chain="table")
    (run / CHAINS).unlink()
    assert br.load(run).generate("Ba", 3, 0.0)
    with refusal("must have a table of chains beside it"):
        br.load(run, chain="table")
    with refusal("one of auto, off, table, lookup, refreshed, or the path of a table", "nowhere.json"):
        br.load(run, chain="nowhere.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_paths_that_are_no_table(with_table, tmp_path):
    """None is waited for: a pipe, a device that does not end, a link to itself."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for chain in (tmp_path, tmp_path / "pipe", "/dev/zero", "/dev/null", tmp_path / "loop", "x" * 5000, "",
                  "\0", "Table", tmp_path / "none.json"):
        with refusal("chain must be one of auto, off, table"):
            br.load(with_table, chain=str(chain))
    run = tiny.copy(with_table, tmp_path / "run")
    (run / CHAINS).unlink()
    os.mkfifo(run / CHAINS)                                # beside a model it is no table, as none is
    assert br.load(run).table() is None


def test_a_table_without_chains_guesses_nothing(with_table, tmp_path):
    run = tiny.copy(with_table, tmp_path / "run")
    tokenizer = br.load(run).tokenizer
    write_table(run / CHAINS, Table(tokenizer.vocabulary, tokenizer.vocab_size, "", 0, ()))
    made = br.load(run, chain="table").stream("Ba", 30, 0.0)
    assert "".join(made) == br.load(run, chain="off").generate("Ba", 30, 0.0)
    assert made.record()["speculation"]["drafted"] == 0
    assert br.load(run).generate("Ba", 30, 0.0) == br.load(run, chain="off").generate("Ba", 30, 0.0)


def test_bad_options_are_refused_as_in_decode():
    model = small_model()
    for prompt, tokens in (([], 3), ([V], 3), ([1], -1)):
        with pytest.raises(CheckError) as ours:
            speculate(Window(model), prompt, tokens, Lookup())
        with pytest.raises(CheckError) as theirs:
            decode(model, prompt, tokens)
        assert str(ours.value) == str(theirs.value)


def until_error(stream):
    """What comes, and what is said then."""
    made = []
    try:
        for step in stream:
            made.append(step)
    except NonFiniteError as e:
        return made, str(e)
    raise AssertionError("no error")


def test_a_damaged_model_says_what_it_can_and_then_the_same():
    """NaN comes after a token that is guessed: what was drawn before goes out, the error is decode's."""
    model, options = small_model(context=40, tied_embeddings=False), (GREEDY, (), True)
    text = [1, 2, *tokens_of(decode(model, [1, 2], 30))]
    bad = next(n for n, t in enumerate(text) if n > 4 and t not in text[:n])
    model.params["embedding"][text[bad]] = np.nan
    model.requantise()
    said = [until_error(decode(model, [1, 2], 30, *options)),
            until_error(speculate(Window(model), [1, 2], 30, oracle(text), *options, Pace(6)))]
    assert said[0] == said[1]
    assert [step.token for step in said[0][0]] == text[2:bad + 1]


def test_a_text_that_is_left_early_leaves_a_window_that_can_be_used():
    """After each number of tokens taken from the stream, the window reads on as a new one would."""
    model = small_model(context=40)
    text = [1, 2, *tokens_of(decode(model, [1, 2], 30))]
    for n in range(12):
        window = Window(model)
        stream = speculate(window, [1, 2], 30, guess_of(text, 5), pace=Pace(4))
        made = [step.token for step, _ in zip(stream, range(n))]
        assert made == text[2:2 + n]
        ids = [1, 2, *made, 4]
        np.testing.assert_array_equal(window.read(ids), Window(model).read(ids))
