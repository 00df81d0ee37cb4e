"""generate/spoken: the table of what a model itself says."""

import numpy as np
import pytest
import tiny
from strategies import small_config, small_params
from tiny import own_cache  # noqa: F401

import bitnet_ref as br
from bitnet_ref.chain.draft import chains
from bitnet_ref.chain.mine import mine_for
from bitnet_ref.chain.table import CHAINS, read_table, write_table
from bitnet_ref.data.prepare import prepare
from bitnet_ref.generate.decode import decode
from bitnet_ref.generate.speculative import Pace, speculate
from bitnet_ref.generate.spoken import SPOKEN, continued, spoken
from bitnet_ref.generate.window import Window
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_it_is_what_plain_decoding_says(backend):
    cfg = small_config(context=24, init_std=0.8)
    model = Transformer(cfg, small_params(cfg, 0, np.float32), load(backend))
    prompts = np.array([[1, 2, 3], [4, 0, 7], [5, 5, 5]])
    for prompt, found in zip(prompts, continued(model, prompts, 12)):
        assert found.tolist() == [step.token for step in decode(model, prompt.tolist(), 12)]


def test_its_chains_meet_the_model_s_words_better_than_those_of_the_corpus():
    """A model that has learnt nothing says nothing of its corpus."""
    data = prepare(str(tiny.corpus()), str(tiny.trained() / "tokenizer.json"), progress=False)
    cfg = small_config(context=64, vocab_size=data.tokenizer.vocab_size, init_std=0.8)
    model, made = Transformer(cfg, small_params(cfg, 0, np.float32), load("numba")), {}
    for name, table in (("corpus", mine_for(data)), ("spoken", spoken(model, data))):
        pace = Pace(3)
        for start in range(0, 200, 10):
            prompt = data.val.tokens[start:start + 9].tolist()
            list(speculate(Window(model), prompt, 50, chains(table), pace=pace))
        made[name] = pace.counts.calls / pace.counts.made
    assert made["spoken"] < 0.9 * made["corpus"]


def test_it_is_the_same_each_time_and_of_the_run_s_tokenizer():
    model = br.load(tiny.trained())
    data = prepare(str(tiny.corpus()), str(tiny.trained() / "tokenizer.json"), progress=False)
    table = spoken(model.transformer, data)
    assert table == spoken(model.transformer, data)
    assert 0 < len(table.chains) <= 256
    assert all(0 < i < model.cfg.vocab_size for chain in table.chains for i in chain.ids)      # never EOS


@pytest.mark.parametrize("context", [1, 2, 5])
def test_a_short_context_has_its_words_too(context):
    data = prepare(str(tiny.corpus()), str(tiny.trained() / "tokenizer.json"), progress=False)
    cfg = small_config(context=context, vocab_size=data.tokenizer.vocab_size)
    spoken(Transformer(cfg, small_params(cfg, 0, np.float32), load("numba")), data)


def test_a_run_guesses_with_its_own_words_rather_than_those_of_its_corpus(tmp_path):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    model = br.load(run)
    assert model.table() == read_table(run / CHAINS)
    data = prepare(str(tiny.corpus()), str(run / "tokenizer.json"), progress=False)
    write_table(run / SPOKEN, spoken(model.transformer, data))
    assert model.table() == br.load(run, chain="table").table() == read_table(run / SPOKEN)
