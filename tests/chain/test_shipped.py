"""chain/shipped: the tables that come with the library are found by what ids stand for, and fit."""

import subprocess
import sys

import numpy as np
import published
import pytest
import tiny
from strategies import small_config, small_params
from tiny import own_cache  # noqa: F401

import bitnet_ref as br
from bitnet_ref.chain import shipped as module
from bitnet_ref.chain.mine import mine_for
from bitnet_ref.chain.shipped import FOLDER, SHIPPED, shipped
from bitnet_ref.chain.table import CHAINS, LARGEST, MOST, Chain, Table, read_table, write_table
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.tokenizer import Tokenizer, train_bpe
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.generate.sampling import GREEDY
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer

FILES = {"gpt2": "gpt-2", "llama2": "tinyllama", "llama3": "llama-bpe"}


def test_there_is_a_file_for_each_and_no_other():
    assert {p.name for p in FOLDER.iterdir()} == {f"{name}.json" for name in SHIPPED.values()}
    assert set(SHIPPED.values()) == {"gpt2", "llama2", "llama3"}


@pytest.mark.parametrize(("vocabulary", "name"), SHIPPED.items())
def test_a_table_that_ships_is_whole(vocabulary, name, tmp_path):
    path = FOLDER / f"{name}.json"
    assert path.stat().st_size < LARGEST
    table = read_table(path)
    assert table.vocabulary == vocabulary
    assert len(table.chains) == MOST
    assert all(licence in table.corpus for licence in ("CC BY-SA 3.0", "PSF-2.0", "CDLA-Sharing-1.0"))
    assert 0.1 < sum(c.covers for c in table.chains) / table.tokens < 0.5
    write_table(tmp_path / "t.json", table)
    assert (tmp_path / "t.json").read_bytes() == path.read_bytes()


def test_another_vocabulary_has_none(monkeypatch):
    monkeypatch.setattr(module, "_read", lambda name: pytest.fail(f"{name} is read"))
    assert shipped(train_bpe(["some words"], 300)) is None


@pytest.mark.data
@pytest.mark.parametrize("name", FILES)
def test_a_published_vocabulary_has_its_table(name):
    own = published.tokenizer(FILES[name])
    table = shipped(own)
    assert table == read_table(FOLDER / f"{name}.json", own)
    assert shipped(own) is table
    texts = ["".join(own.piece(i).decode("utf-8", "replace") for i in chain.ids) for chain in table.chains]
    assert {" of the", " in the"} <= set(texts)
    assert any("self" in text for text in texts)


# --- wiring -------------------------------------------------------------------------------------------------


@pytest.fixture
def ours(monkeypatch, tmp_path):
    """A model without a table beside it, of a vocabulary for which one ships."""
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    (run / CHAINS).unlink(missing_ok=True)
    model = br.load(run)
    ids = tuple(model.tokenizer.encode("Ba").tolist())
    chain = Chain((*ids, 1, 2), 3, 2, (0.9,) * (len(ids) + 1))
    table = Table(model.tokenizer.vocabulary, 300, "shipped", 9, (chain,))
    write_table(tmp_path / "ours.json", table)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setitem(SHIPPED, model.tokenizer.vocabulary, "ours")
    module._read.cache_clear()
    yield model
    module._read.cache_clear()


def test_a_model_has_the_table_of_its_vocabulary(ours):
    assert ours.table().corpus == "shipped"
    for chain in ("auto", "refreshed", "table"):
        model = br.load(ours.place, chain=chain)
        assert model.table().corpus == "shipped"
        assert model.drafter(GREEDY)(model.tokenizer.encode("Ba").tolist()).tokens == (1, 2)
        assert model.generate("Ba", 20, 0.0) == br.load(ours.place, chain="off").generate("Ba", 20, 0.0)


def test_the_runs_own_comes_first(ours):
    data = prepare(str(tiny.corpus()), str(ours.place / "tokenizer.json"), progress=False)
    write_table(ours.place / CHAINS, mine_for(data, 9))
    assert br.load(ours.place).table().corpus == str(tiny.corpus())
    assert len(br.load(ours.place, chain="table").table().chains) == 9


@pytest.mark.data
def test_a_model_of_a_published_vocabulary_guesses_with_its_table(tmp_path):
    """Llama 2's, in a folder without a table: the text is the plain one."""
    own = published.tokenizer("tinyllama")
    cfg = small_config(vocab_size=own.vocab_size, context=48)
    transformer = Transformer(cfg, small_params(cfg, 0, np.float32), load("numba"))
    made = {chain: LanguageModel(transformer, own, chain=chain, place=tmp_path).stream("One of", 40, 0.0)
            for chain in ("off", "auto", "table")}
    texts = {chain: "".join(stream) for chain, stream in made.items()}
    assert texts["auto"] == texts["table"] == texts["off"]
    guess = LanguageModel(transformer, own, chain="table").drafter(GREEDY)
    end = own.encode("one of").tolist()
    assert own.decode([*end, *guess(end).tokens]).startswith("one of the")


def test_nothing_is_read_before_it_is_needed():
    """To import the library reads no table and parses no JSON of one."""
    code = ("import sys, bitnet_ref; "
            "assert not [m for m in sys.modules if m.startswith('bitnet_ref.chain')], sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.data
def test_a_vocabulary_of_128_thousand_costs_little():
    """A part of a second, once; a model is asked for it when it first guesses."""
    import time

    own = Tokenizer(published.tokenizer("llama-bpe").json)
    assert own.specials                                    # parsed when a model is loaded
    began = time.process_time()
    assert SHIPPED[own.vocabulary] == "llama3"
    assert time.process_time() - began < 10
    assert own.vocabulary is own.vocabulary


@pytest.mark.data
def test_chains_of_a_table_are_of_ordinary_ids():
    for name, file in FILES.items():
        own = published.tokenizer(file)
        ids = np.concatenate([chain.ids for chain in read_table(FOLDER / f"{name}.json").chains])
        assert own.token_bytes[ids].min() > 0
