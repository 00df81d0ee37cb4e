"""formats/hf_about: the small files beside the tensors, as published and as a stranger might make them."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from strategies import small_config, small_params
from tiny import refusal

from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.formats.hf import open_hf
from bitnet_ref.formats.hf_about import (
    GENERATION,
    LARGEST_TEMPLATE,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    records,
)
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.source import About, of_weights
from bitnet_ref.kernels import load
from bitnet_ref.model.weights import ternarise


@pytest.fixture
def folder(tmp_path):
    """A small model, without a tokenizer, ids 0..12."""
    cfg = small_config(norm="sub", glu="relu2")
    write_hf(tmp_path / "small", of_weights(cfg, ternarise(cfg, small_params(cfg, 0, np.float32), load())))
    return tmp_path / "small"


def put(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def about(folder):
    return open_hf(folder).about


# --- what is read ------------------------------------------------------------------------------------------


def test_a_folder_may_have_none_of_them(folder):
    (folder / GENERATION).unlink()
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert about(folder) == About("small")
    assert open_hf(folder).tokenizer is None


def test_who_ends_a_text_stands_in_two_files(folder):
    config = json.loads((folder / "config.json").read_text())
    put(folder, "config.json", config | {"bos_token_id": 1, "eos_token_id": 2})
    assert (about(folder).bos, about(folder).eos) == (1, (2,))
    put(folder, GENERATION, {"eos_token_id": [3, 4]})      # Llama 3 ends a turn and a text
    assert (about(folder).bos, about(folder).eos) == (1, (3, 4))
    put(folder, GENERATION, {"bos_token_id": 5, "eos_token_id": 6})
    assert (about(folder).bos, about(folder).eos) == (5, (6,))
    put(folder, GENERATION, {"eos_token_id": None})
    assert about(folder).eos == (2,)


def test_settings_are_those_that_sampling_knows(folder):
    put(folder, GENERATION, {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": None,
                             "repetition_penalty": 1, "num_beams": 7, "transformers_version": "5.0"})
    assert about(folder).settings == {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50,
                                      "repetition_penalty": 1}


@pytest.mark.parametrize(("config", "alone", "want"), [
    ({"chat_template": "text"}, None, "text"), ({"chat_template": "text"}, "file", "file"),
    (None, "file", "file"),
    ({"chat_template": None}, None, None), ({}, None, None),
    ({"chat_template": [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]}, None,
     "b"),
    ({"chat_template": [{"name": "tools", "template": "a"}]}, None, None)])
def test_a_chat_template_stands_in_one_of_three_places(config, alone, want, folder):
    if config is not None:
        put(folder, TOKENIZER_CONFIG, config)
    if alone is not None:
        put(folder, TEMPLATE, alone)
    assert about(folder).chat_template == want


def test_what_is_written_is_read(tmp_path):
    tokenizer = train_bpe(["a trit is a trit " * 9], 280)
    given = About("named", 0, (0, 3), "{{ messages }} ü", {"temperature": 0.7, "top_k": 3, "do_sample": True})
    cfg = small_config(vocab_size=tokenizer.vocab_size)
    source = of_weights(cfg, ternarise(cfg, small_params(cfg, 0, np.float32), load()))
    write_hf(tmp_path / "named", source._replace(about=given, tokenizer=tokenizer.json))
    read = open_hf(tmp_path / "named")
    assert read.about == given
    assert read.tokenizer == tokenizer.json
    config = json.loads((tmp_path / "named" / TOKENIZER_CONFIG).read_text())
    assert (config["bos_token"], config["chat_template"]) == ("<|endoftext|>", given.chat_template)


def test_a_tokenizer_that_is_none_is_not_written(tmp_path):
    cfg = small_config()
    source = of_weights(cfg, ternarise(cfg, small_params(cfg, 0, np.float32), load()))
    with refusal("tokenizer.json"):
        write_hf(tmp_path / "x", source._replace(tokenizer="{}"))
    assert list(tmp_path.iterdir()) == []


def test_settings_of_other_formats_are_checked_when_written():
    with refusal("temperature"):
        records(About(settings={"temperature": float("nan")}), None, 8)
    assert records(About(settings={"beams": 3}), None, 8).keys() == {GENERATION}


# --- strangers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("record", "words"), [
    ({"temperature": 1e300}, ["temperature", "[0, 100]"]), ({"temperature": -1}, ["temperature"]),
    ({"temperature": "hot"}, ["temperature", "float"]), ({"temperature": True}, ["temperature"]),
    ({"temperature": 10**400}, ["temperature"]), ({"top_k": 1 << 60}, ["top_k"]),
    ({"top_k": 2.5}, ["top_k", "int"]), ({"top_k": -1}, ["top_k"]), ({"top_p": 1.5}, ["top_p"]),
    ({"top_p": [0.9]}, ["top_p"]),
    ({"do_sample": 1}, ["do_sample", "bool"]), ({"repetition_penalty": 0}, ["repetition_penalty"]),
    ({"eos_token_id": 13}, ["eos_token_id", "below 13"]), ({"eos_token_id": [1, -1]}, ["eos_token_id"]),
    ({"eos_token_id": list(range(9)) * 9}, ["eos_token_id", "up to 64"]),
    ({"eos_token_id": [[1]]}, ["eos_token_id"]),
    ({"eos_token_id": "</s>"}, ["eos_token_id"]), ({"eos_token_id": True}, ["eos_token_id"]),
    ({"bos_token_id": 1 << 70}, ["bos_token_id"]), ({"bos_token_id": [0]}, ["bos_token_id"]),
    ([], ["generation_config.json", "table"]), ('{"temperature": NaN}', ["temperature", "nan"]),
    ("{", ["generation_config.json", "JSON"]), ("[" * 99_999, ["generation_config.json", "JSON"])],
    ids=lambda v: str(v)[:40])
def test_absurd_generation_settings(record, words, folder):
    put(folder, GENERATION, record)
    with refusal(*words):
        open_hf(folder)


@pytest.mark.parametrize("template", [7, {"a": 1}, ["text"], [{"name": 3, "template": "a"}], [None],
                                      [{"name": "default", "template": 5}]], ids=str)
def test_a_template_that_is_no_text(template, folder):
    put(folder, TOKENIZER_CONFIG, {"chat_template": template})
    with refusal("chat_template", TOKENIZER_CONFIG):
        open_hf(folder)


@pytest.mark.parametrize("name", [TEMPLATE, TOKENIZER_CONFIG, TOKENIZER, GENERATION])
def test_a_hundred_megabytes_are_not_read(name, folder):
    with open(folder / name, "wb") as f:
        f.write(b'{"chat_template": "')
        f.truncate(100 << 20)
    tracemalloc.start()
    with refusal(name, "at most", "104,857,600"):
        open_hf(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_template_too_long_for_one(folder):
    put(folder, TOKENIZER_CONFIG, {"chat_template": "x" * (LARGEST_TEMPLATE + 1)})
    with refusal("chat_template", f"at most {LARGEST_TEMPLATE} bytes"):
        open_hf(folder)


@pytest.mark.parametrize("name", [TEMPLATE, TOKENIZER])
def test_bytes_that_are_no_text(name, folder):
    (folder / name).write_bytes(b"ab\xff")
    with refusal(name, "UTF-8", "at 2"):
        open_hf(folder)


@pytest.mark.parametrize("name", [TEMPLATE, TOKENIZER_CONFIG, TOKENIZER, GENERATION])
def test_a_link_may_not_lead_elsewhere(name, folder, tmp_path):
    """A converter would carry another file of this disk into what it writes."""
    (tmp_path / "secret").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    os.symlink(tmp_path / "secret", folder / name)
    with refusal("must lie in its folder", name):
        open_hf(folder)


def test_a_folder_in_place_of_a_file(folder):
    (folder / TEMPLATE).mkdir()
    with refusal(TEMPLATE, "must be a file"):
        open_hf(folder)
