"""data/tokenizer_files: published files of other kinds than tokenizer.json give the published ids."""

import base64
import json
import struct

import published
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.data import tokenizer_files
from bitnet_ref.data.tokenizer import byte_letters
from bitnet_ref.data.tokenizer_files import gpt2, llama3_specials, load, sentencepiece, tiktoken

# --- golden: the published vectors -------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "llama-bpe"])
def test_the_published_vectors(name):
    """All 46, as llama.cpp has them."""
    tokenizer, vectors = published.tokenizer(name), published.vectors(name)
    assert len(vectors) == 46
    assert [(text, ids, got) for text, ids in vectors if (got := tokenizer.encode(text).tolist()) != ids] == []
