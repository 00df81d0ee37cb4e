"""What a GGUF says beside tensors and vocabulary: name, first and last ids, chat template, how to sample.

The settings that all runtimes know hold one first id, two last ones, and whether a text is given them. What
they do not say of a model stands in two settings of ours, as JSON, and only then: nothing is lost on the way
back. Ours go before theirs. A stranger's are bounded and checked as those of a Hugging Face folder.
Read after: formats/gguf_header. Read next: formats/gguf_tokenizer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.tokenizer import canonical
from bitnet_ref.formats.safetensors_stream import parse_json
from bitnet_ref.formats.source import LARGEST_TEMPLATE, About, checked_settings

OWN, POST = "b158.about", "b158.post_processor"
NAME, TEMPLATE = "general.name", "tokenizer.chat_template"
ID = "tokenizer.ggml.{}_token_id"
ADD = "tokenizer.ggml.add_{}_token"
FIELDS = ("bos", "eos", "settings")
MOST_ENDS = 64                       # ids that end a text
AGAIN = "download the file again, or restore it from a copy"


def text_of(held: dict[str, Any], name: str, default: str | None = None) -> str | None:
    """A setting that must be a string of at most 1 MiB, where it is there. Raises CheckError.
    >>> text_of({"general.name": "mine"}, "general.name"), text_of({}, "general.name")
    ('mine', None)
    """
    found = held.get(name, default)
    check(found is None or isinstance(found, str), f"{name} must be text", type(found).__name__, AGAIN)
    size = len(found.encode("utf-8", "replace")) if found else 0
    check(size <= LARGEST_TEMPLATE, f"{name} must have at most {LARGEST_TEMPLATE} bytes", f"{size:,}", AGAIN)
    return found


def flag_of(held: dict[str, Any], name: str, default: bool) -> bool:
    """A setting that must be true or false. Raises CheckError.
    >>> flag_of({}, "tokenizer.ggml.add_bos_token", default=True)
    True
    """
    found = held.get(name, default)
    check(isinstance(found, bool), f"{name} must be true or false", repr(found)[:50], AGAIN)
    return bool(found)


def _id_of(held: dict[str, Any], key: str, n: int) -> int | None:
    """tokenizer.ggml.<key>_token_id, below `n`; None where there is none. Raises CheckError."""
    i = held.get(ID.format(key))
    check(i is None or (type(i) is int and 0 <= i < n), f"{ID.format(key)} must be an id below {n}",
          repr(i)[:50], AGAIN)
    return i


# ---- name, ids, chat template, how to sample ----


def settings(about: About, held: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """What belongs into a file beside `held`, which has the tokenizer's settings.

    Raises CheckError for what `read_about` would refuse.
    >>> settings(About("mine", bos=1, eos=(2,)), {ID.format("bos"): 1, ID.format("eos"): 2}, vocab_size=4)
    {'general.name': 'mine'}
    """
    made = {NAME: about.name} if about.name else {}
    if about.chat_template:
        made[TEMPLATE] = about.chat_template
    wanted = about._replace(settings=_kept(about), chat_template=about.chat_template or None)
    if read_about(held | made, vocab_size) != wanted:
        made[OWN] = canonical({"bos": about.bos, "eos": list(about.eos), "settings": wanted.settings})
        check(read_about(held | made, vocab_size) == wanted, "what a model says of itself must be what JSON "
              "holds", repr(about)[:100], "correct it")
    return made


def _kept(about: About) -> dict[str, Any]:
    """Of about.settings those that are known and in range."""
    kept: dict[str, Any] = {}
    for name, value in about.settings.items():
        try:
            kept |= checked_settings({name: value}, "a model")
        except CheckError:
            continue
    return kept


def notes(about: About, tokenizer: bool) -> Iterator[str]:
    """What other runtimes do not learn from the file, and what is lost: one note each.
    >>> list(notes(About(settings={"temperature": 0.7}), tokenizer=False))
    ['llama.cpp does not read the settings for sampling; they are kept in b158.about']
    """
    lost = sorted(set(about.settings) - set(_kept(about)))
    if lost:
        yield f"settings that are unknown or out of range are left out: {', '.join(map(str, lost))}"[:200]
    if len(lost) < len(about.settings):
        yield f"llama.cpp does not read the settings for sampling; they are kept in {OWN}"
    if about.chat_template == "":
        yield "the chat template, which is empty, is left out"
    if not tokenizer:
        return
    if about.bos is None:
        yield "the model names no first id: llama.cpp begins a text as its tokenizer does, or with EOS"
    if not about.eos:
        yield "the model names no last id: llama.cpp ends a text with the tokenizer's EOS"
    if len(about.eos) > 2:
        yield f"llama.cpp is told of two last ids; all {len(about.eos)} are kept in {OWN}"


def read_about(held: dict[str, Any], vocab_size: int, file: Path = Path("the file")) -> About:
    """What the settings of a file say. Raises CheckError: another type, too large, an id out of range.
    >>> read_about({"general.name": "mine", ID.format("eos"): 2}, vocab_size=4).eos
    (2,)
    """
    bos, eos, eot = (_id_of(held, key, vocab_size) for key in ("bos", "eos", "eot"))
    ends = tuple(dict.fromkeys(i for i in (eos, eot) if i is not None))
    about = About(text_of(held, NAME) or "", bos, ends, text_of(held, TEMPLATE))
    own = text_of(held, OWN)
    if own is None:
        return about
    where = f"{OWN} of {file.name}"
    record = parse_json(own.encode("utf-8", "replace"), where)
    check(isinstance(record, dict) and set(record) == set(FIELDS), f"{where} must be a table of "
          f"{', '.join(FIELDS)}", own[:100], AGAIN)
    first, last, how = (record[name] for name in FIELDS)
    check(isinstance(last, list) and len(last) <= MOST_ENDS, f"eos in {where} must be a list of at most "
          f"{MOST_ENDS} ids", repr(last)[:50], AGAIN)
    for i in last if first is None else [first, *last]:
        check(type(i) is int and 0 <= i < vocab_size,
              f"bos and eos in {where} must be ids below {vocab_size}", repr(i)[:50], AGAIN)
    check(isinstance(how, dict), f"settings in {where} must be a table", repr(how)[:50], AGAIN)
    return about._replace(bos=first, eos=tuple(last), settings=checked_settings(how, where))


# ---- what is put before and after a text ----


def added_ids(post: Any, about: About, eos: int) -> dict[str, Any]:
    """Ids, and whether a text is given them, as the post_processor `post` of a tokenizer.json has it.

    Without one, or with one that adds nothing of its own accord, a text begins with the first id: so ours
    were trained. `eos`: the tokenizer's. The whole of `post` goes along where `template` makes another.
    >>> added_ids(None, About(bos=1), eos=0)[ADD.format("bos")]
    True
    """
    before, after = _added(post)
    first = about.bos if about.bos is not None else before[0] if before else eos
    ends = about.eos or (eos,)
    made = {ID.format("bos"): first, ADD.format("bos"): before == [first] or not _found(post),
            ID.format("eos"): ends[0], ADD.format("eos"): after == [ends[0]]}
    return made | ({ID.format("eot"): ends[1]} if len(ends) > 1 else {})


def own_post(held: dict[str, Any], tokens: list[str], post: Any) -> dict[str, Any]:
    """The post_processor as it is, unless `template` makes it of the settings `held`.
    >>> own_post({}, [], {"type": "ByteLevel"})
    {'b158.post_processor': '{"type":"ByteLevel"}'}
    """
    return {} if template(held, tokens) == post else {POST: canonical(post)}


def _found(post: Any) -> dict[str, Any] | None:
    """The TemplateProcessing in a post_processor."""
    parts = post.get("processors", [post]) if post else []
    return next((p for p in parts if p.get("type") == "TemplateProcessing"), None)


def _added(post: Any) -> tuple[list[int], list[int]]:
    """The ids that it puts before a text, and after it."""
    sides: tuple[list[int], list[int]] = ([], [])
    found, side = _found(post) or {"single": []}, 0
    for part in found["single"]:
        if "Sequence" in part:
            side = 1
        else:
            named = found["special_tokens"].get(part["SpecialToken"]["id"], {"ids": ()})
            sides[side].extend(named["ids"])
    return sides


def template(held: dict[str, Any], tokens: list[str], begins: bool = False) -> dict[str, Any] | None:
    """The post_processor of a tokenizer.json: our own setting, or made of add_bos_token, add_eos_token.

    `begins`: what an absent add_bos_token means. Raises CheckError for settings of another type.
    >>> template({ADD.format("bos"): True, ID.format("bos"): 0}, ["<s>"])["special_tokens"]
    {'<s>': {'id': '<s>', 'ids': [0], 'tokens': ['<s>']}}
    """
    own = text_of(held, POST)
    if own is not None:
        post = parse_json(own.encode("utf-8", "replace"), POST)
        check(post is None or isinstance(post, dict), f"{POST} must be a table or null", own[:50], AGAIN)
        return post
    adds = {"bos": flag_of(held, ADD.format("bos"), begins), "eos": flag_of(held, ADD.format("eos"), False)}
    names, ids = {}, {}
    for key, yes in adds.items():
        i = _id_of(held, key, len(tokens))
        if yes and i is not None:
            names[key] = tokens[i]
            ids[tokens[i]] = i
    return _template(names, ids) if names else None


def _template(names: dict[str, str], ids: dict[str, int]) -> dict[str, Any]:
    """As the library writes one: of one text, and of two, whose second has the type 1."""
    def one(text: str, kind: int) -> list[dict[str, Any]]:
        parts = [("SpecialToken", names.get("bos")), ("Sequence", text), ("SpecialToken", names.get("eos"))]
        return [{what: {"id": name, "type_id": kind}} for what, name in parts if name is not None]

    return {"type": "TemplateProcessing", "single": one("A", 0), "pair": [*one("A", 0), *one("B", 1)],
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ids.items()}}
