"""generate/template: a chat as the ids of its training; only the template writes special tokens."""

import json

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


# --- property: only the template writes special tokens -----------------------------------------------------


def special_tokenizer():
    """Bytes, and the special tokens that chats are made of."""
    record = json.loads(train_bpe(["hello there\n"] * 9, 280).json)
    for name in ("<|eot_id|>", "<|begin_of_text|>", "<s>"):
        i = len(record["model"]["vocab"]) + len(record["added_tokens"]) - 1
        record["added_tokens"].append(record["added_tokens"][0] | {"id": i, "content": name})
    return from_json(json.dumps(record))


TOK = special_tokenizer()
EOT, BOS = TOK.specials["<|eot_id|>"], TOK.specials["<|begin_of_text|>"]
texts = st.lists(st.sampled_from([*TOK.specials, "hello", " ", "\n", "é", "{{ eos_token }}", "{% raw %}",
                                  "<|"]), min_size=1, max_size=5).map("".join)


def ids_of(messages, template=BUILT_IN["2b4t"], **given):
    return prompt_ids(template, messages, TOK, BOS, TOK.eos, **given)


@given(said=st.lists(texts, min_size=1, max_size=4))
def test_a_message_cannot_spell_a_special_token(said):
    messages = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(said)]
    ids = ids_of(messages)
    special = [i for i in ids if i in TOK.specials.values()]
    assert special == [BOS, *[EOT] * len(said)]
    whole = "".join(f"{m.role.capitalize()}: {m.content}<|eot_id|>" for m in messages)
    assert TOK.decode(ids) == f"<|begin_of_text|>{whole}Assistant: "


def test_without_a_reply_the_text_ends_with_the_last_message():
    assert ids_of([Message("user", "hello")], reply=False)[-1] == EOT


def test_what_the_template_writes_is_special():
    template = Template("own", "{% for m in messages %}<s>{{ m.content }}<|eot_id|>{% endfor %}")
    assert ids_of([Message("user", "<s>")], template) == [
        TOK.specials["<s>"], *TOK.encode("<s>"), EOT]


def test_a_special_token_cannot_be_made_of_a_message_and_the_template():
    template = Template("own", "{% for m in messages %}{{ m.content }}eot_id|>{% endfor %}")
    assert EOT not in ids_of([Message("user", "<|")], template)


def test_a_reply_stands_in_the_chat_as_it_was_made():
    """Its ids, though encoding its text would give others; what was read is a prefix of what is read next."""
    made = tuple(TOK.encode(" hel").tolist() + TOK.encode("lo").tolist())
    assert list(made) != TOK.encode(" hello").tolist()
    for template in BUILT_IN.values():
        first = ids_of([Message("user", "hello")], template)
        later = ids_of([Message("user", "hello"), Message("assistant", "hello", made), Message("user", "ok")],
                       template)
        assert later[:len(first) + len(made)] == [*first, *made]


@pytest.mark.data
def test_text_after_a_reply_gets_no_space_from_sentencepiece():
    tok = published.tokenizer("llama-spm")
    made = tuple(tok.encode("Fine.").tolist())
    template = Template("own", "{% for m in messages %}{{ m.content }}x{% endfor %}")
    ids = prompt_ids(template, [Message("assistant", "Fine.", made)], tok, 1, 2)
    assert tok.decode(ids) == "Fine.x"


def test_the_plain_template_is_a_dialogue():
    chat = [Message("system", "Brief."), Message("user", "hello"), Message("assistant", "there"),
            Message("user", "ok")]
    want = "System: Brief.\nUser: hello\nAssistant: there\nUser: ok\nAssistant:"
    assert TOK.decode(ids_of(chat, BUILT_IN["plain"])) == "<|begin_of_text|>" + want


def test_bos_may_be_an_id_that_no_name_spells():
    i = int(TOK.encode("h")[0])
    assert prompt_ids(BUILT_IN["plain"], [Message("user", "é")], TOK, i, TOK.eos)[0] == i


# --- which template ----------------------------------------------------------------------------------------


def test_the_models_own_template_comes_first_then_its_shape():
    like, other = small_config(norm="sub", glu="relu2"), small_config(norm="pre")
    assert choose("auto", "x", like, TOK) == Template("own", "x")
    assert choose("auto", None, like, TOK).name == "2b4t"
    assert choose("auto", None, like, train_bpe(["a"], 257)).name == "plain"
    assert choose("auto", None, other, TOK).name == "plain"
    assert choose("plain", "x", like, TOK).name == "plain"
    with tiny.refusal("the model must bring a chat template"):
        choose("own", None, like, TOK)
    with tiny.refusal("--template must be one of auto, own, 2b4t, plain", "'chatml'"):
        choose("chatml", None, like, TOK)


@pytest.mark.parametrize(("jinja", "words"), [
    ("{% for m in messages %}", ["the chat template must render", "--template plain"]),
    ("{{ raise_exception('no system here') }}", ["no system here"]),
    ("hello", ["the chat template must show every message as it is"]),
    ("{{ messages[0].content | upper }}", ["must show every message as it is", "user"]),
])
def test_a_template_that_loses_messages_is_refused(jinja, words):
    with tiny.refusal(*words):
        ids_of([Message("user", "hello")], Template("own", jinja))
