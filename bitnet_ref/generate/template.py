"""From the messages of a chat to token ids, by the model's own template or one of ours.

Only the template may write special tokens. A message is text, whatever it spells: the template is rendered
with a placeholder for each message that nobody can guess, special tokens are looked for between the
placeholders alone, and the messages are put in afterwards. So `<|eot_id|>` typed by a user ends nothing.
Read after: generate/render. Read next: generate/conversation.
"""

import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.config import ModelConfig
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.generate.render import TemplateError, render, render_apart

ROLES = ("system", "user", "assistant")

# As the published model was trained: "Role: text<|eot_id|>" for each message, nothing between them, the text
# stripped; BOS once, at the beginning (microsoft/BitNet, gpu/tokenizer.py).
BITNET_2B4T = """{{ bos_token }}
{%- for m in messages %}{{ m.role | capitalize }}: {{ m.content }}<|eot_id|>{% endfor %}
{%- if add_generation_prompt %}Assistant: {% endif %}"""

# For a model that was never trained to chat: a dialogue as a text of the web would have it.
PLAIN = """{{ bos_token }}
{%- for m in messages %}{{ m.role | capitalize }}:{{ " " if m.role != "assistant" }}{{ m.content }}{{ "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}"""


class Message(NamedTuple):
    """One message. `ids`: of a reply, as the model made them, so that they need not be read again."""

    role: str
    content: str
    ids: tuple[int, ...] | None = None


class Template(NamedTuple):
    """A chat template. `stop`: strings that end a reply; `ours`: it runs in this process, and a reply of the
    past stands in it as the reply was asked for. `lead`: what the model begins a reply with."""

    name: str
    jinja: str
    stop: tuple[str, ...] = ()
    ours: bool = False
    lead: str = ""


BUILT_IN = {
    "2b4t": Template("2b4t", BITNET_2B4T, ours=True),
    "plain": Template("plain", PLAIN, ("\nUser:", "\nSystem:"), ours=True, lead=" "),
}


def check_name(name: str) -> None:
    """Raise CheckError for an unknown name: at once, before a model is loaded.

    >>> check_name("plain")
    >>> check_name("plane")
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: --template must be one of auto, own, 2b4t, plain; got 'plane'; choose one
    of these
    """
    lookup(("auto", "own", *BUILT_IN), name, "--template")


def choose(name: str, own: str | None, cfg: ModelConfig, tokenizer: Tokenizer) -> Template:
    """The template called `name`: own, 2b4t, plain; auto is `own` where the model has one, else by its shape.

    Raises CheckError for an unknown name, and for own where there is none.

    >>> from bitnet_ref.generate.example import speaker
    >>> model = speaker()
    >>> choose("auto", None, model.cfg, model.tokenizer).name   # it brings none, and was not trained to chat
    'plain'
    """
    check_name(name)
    if name in BUILT_IN:
        return BUILT_IN[name]
    check(name == "auto" or own is not None, "the model must bring a chat template", "none",
          "use --template plain")
    if own is not None:
        return Template("own", own)
    like_2b4t = cfg.norm == "sub" and cfg.glu == "relu2" and "<|eot_id|>" in tokenizer.specials
    return BUILT_IN["2b4t" if like_2b4t else "plain"]


def prompt_ids(template: Template, messages: Sequence[Message], tokenizer: Tokenizer, bos: int,
               eos: int, reply: bool = True) -> list[int]:
    """The ids of the rendered chat; with `reply` it ends where the assistant's answer begins.

    `bos` and `eos` are what the template calls so; BOS stands in it as often as the template writes it.
    Raises CheckError for a template that fails, or that leaves a message out.

    >>> from bitnet_ref.generate.example import speaker
    >>> said, tokenizer = [Message("user", "Hi")], speaker().tokenizer
    >>> tokenizer.decode(prompt_ids(BUILT_IN["plain"], said, tokenizer, 0, 0)[1:])     # without BOS
    'User: Hi\\nAssistant:'
    """
    marks = [secrets.token_hex(16) for _ in messages]
    special = dict(tokenizer.specials)
    values = {
        "messages": [{"role": m.role, "content": mark} for m, mark in zip(messages, marks)],
        "bos_token": _name(bos, special), "eos_token": _name(eos, special),
        "add_generation_prompt": reply, "tools": None, "documents": None,
    }
    try:
        text = (render if template.ours else render_apart)(template.jinja, values)
    except TemplateError as e:
        raise CheckError(f"the chat template must render; got {e}; use --template plain") from None
    for m, mark in zip(messages, marks):
        check(mark in text, "the chat template must show every message as it is",
              f"none of a message of the {m.role}", "leave such messages out, or use --template plain")
    lead = {m: template.lead if m.role == "assistant" else "" for m in messages}
    said = {mark: m.ids or lead[m] + m.content for m, mark in zip(messages, marks)}
    return _encoded(text, said, special, tokenizer)


def _name(i: int, special: dict[str, int]) -> str:
    """What stands for id `i` in the template: its name, or one that is given to it here."""
    name = next((name for name, at in special.items() if at == i), None) or secrets.token_hex(16)
    special[name] = i
    return name


def _encoded(text: str, said: dict[str, Any], special: dict[str, int], tokenizer: Tokenizer) -> list[int]:
    """`said`: text or ids by placeholder. Runs of text between special tokens and ids are encoded each as
    one, so that the ids are those that the whole text would have."""
    names = sorted(special, key=len, reverse=True)
    apart = re.compile("|".join(map(re.escape, [*said, *names])))
    ids: list[int] = []
    run, at, follows = "", 0, False
    for found in apart.finditer(text):
        run += text[at:found.start()]
        at = found.end()
        what = said.get(found.group())
        if isinstance(what, str):
            run += what
            continue
        ids += _run(run, follows, tokenizer)
        follows = what is not None
        ids += [special[found.group()]] if what is None else what
        run = ""
    return ids + _run(run + text[at:], follows, tokenizer)


def _run(text: str, follows: bool, tokenizer: Tokenizer) -> list[int]:
    """The ids of a run. SentencePiece puts a space before a text: not so where it `follows` a reply."""
    ids = tokenizer.encode(text).tolist() if text else []
    if not follows or not ids:
        return ids
    edge = tokenizer.encode("\n").tolist()
    whole = tokenizer.encode("\n" + text).tolist()
    return whole[len(edge):] if whole[:len(edge)] == edge else ids
