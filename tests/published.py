"""Published tokenizers and their vectors, from the data folder: what tests marked `data` compare with."""

import os
from functools import cache
from pathlib import Path

import pytest

from bitnet_ref.data.tokenizer_files import load

FILES = {"gpt-2": "gpt2.encoder.json", "llama-spm": "llama2-32k.tokenizer.model",
         "llama-bpe": "llama3-128k.tiktoken.model", "tinyllama": "llama2-32k.tinyllama.tokenizer.json"}
AS_JSON = {"gpt-2": "gpt-2", "llama-bpe": "llama-bpe", "llama-spm": "tinyllama"}     # vectors -> whose
REAL = os.environ.get("BITNET_REF_DATA")             # as it was before a fixture of tests/data took it away
SEPARATOR = "\n__ggml_vocab_test__\n"


def folder():
    """The folder of tokenizers, or a skip that says what is missing."""
    if not REAL:
        pytest.skip("set BITNET_REF_DATA to a folder of corpora (docs/data.md)")
    return Path(REAL) / "tokenizers"


@cache
def tokenizer(name):
    return load(folder() / FILES[name])


def vectors(name):
    """[(text, ids)]: 46 texts of every kind of trouble, each ended by the separator."""
    text = (folder() / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode()
    texts = text.split(SEPARATOR)[:-1]
    lines = (folder() / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")[:len(texts)]
    return list(zip(texts, [[int(i) for i in line.split()] for line in lines]))
