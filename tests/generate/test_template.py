"""generate/template: a chat as the ids that the model was trained on; only the template writes special tokens."""

import published
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from strategies import small_config

from bitnet_ref.data.tokenizer import from_json, train_bpe
from bitnet_ref.generate.template import BUILT_IN, Message, Template, choose, prompt_ids

HOW_ARE_YOU = [Message("user", "How are you?")]
PUBLISHED_IDS = [128000, 128000, 1502, 25, 2650, 527, 499, 30, 128009, 72803, 25, 220]
TINYLLAMA = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""


# --- golden ------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_2b4t_asks_with_the_published_ids():
    """transformers' own test of 2B4T feeds these. The template writes one BOS; the first of the two was put
    before the rendered text by the tokenizer, which knew of no template. One is what the model was trained
    with, and what is fed here."""
    ids = prompt_ids(BUILT_IN["2b4t"], HOW_ARE_YOU, published.tokenizer("llama-bpe"), 128000, 128001)
    assert [128000, *ids] == PUBLISHED_IDS


@pytest.mark.data
def test_tinyllama_asks_with_the_ids_of_the_text_as_a_whole():
    tok = published.tokenizer("tinyllama")
    said = [*HOW_ARE_YOU, Message("assistant", "Fine."), Message("user", "Good")]
    ids = prompt_ids(Template("own", TINYLLAMA), said, tok, 1, 2)
    tok._bpe.encode_special_tokens = False
    text = "<|user|>\nHow are you?</s>\n<|assistant|>\nFine.</s>\n<|user|>\nGood</s>\n<|assistant|>\n"
    try:
        assert ids == tok._bpe.encode(text, add_special_tokens=False).ids
    finally:
        tok._bpe.encode_special_tokens = True
