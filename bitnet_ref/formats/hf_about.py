"""What a Hugging Face folder says beside its tensors: who begins and ends a text, how to sample, how to chat.

Four small files, any of which may be missing: generation_config.json, tokenizer_config.json,
chat_template.jinja, tokenizer.json. All are a stranger's: sizes are bounded before they are read, and a value
that would only fail, or loop, at the first token is refused here.
Read after: formats/hf_config. Read next: formats/hf.
"""

import json
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.formats.hf_config import HfConfig, bos_id, eos_ids
from bitnet_ref.formats.safetensors_stream import AGAIN, LARGEST_JSON, read_bytes, read_json, there
from bitnet_ref.formats.source import LARGEST_TEMPLATE, About, checked_about, checked_settings

GENERATION, TOKENIZER = "generation_config.json", "tokenizer.json"
TOKENIZER_CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
LARGEST_GENERATION, LARGEST_TOKENIZER_CONFIG = 1 << 20, 1 << 24


def read_about(folder: Path, config: HfConfig) -> About:
    """What the small files say; bos and eos of generation_config.json go before those of config.json.

    Raises CheckError: too large, damaged, a value of another type or outside of its range.
    >>> from bitnet_ref.formats.example import written
    >>> from bitnet_ref.formats.hf_config import read_config
    >>> with written("hf") as folder:
    ...     read_about(folder, read_config(folder)).name
    'model'
    """
    record = _table(folder, GENERATION, LARGEST_GENERATION)
    bos = bos_id(record, config.model)
    about = About(folder.resolve().name, config.bos if bos is None else bos,
                  eos_ids(record, config.model) or config.eos, chat_template(folder),
                  checked_settings(record, GENERATION))
    return checked_about(about, config.model, str(folder))


def _table(folder: Path, name: str, largest: int) -> dict[str, Any]:
    """The table in a JSON file; of a file that is not there, an empty one."""
    file = there(folder, name)
    record = read_json(file, largest) if file else {}
    check(isinstance(record, dict), f"{file} must hold a table", type(record).__name__, AGAIN)
    return record


def chat_template(folder: Path) -> str | None:
    """The Jinja text: chat_template.jinja, else that of tokenizer_config.json, or of several the default.

    Raises CheckError: a file too large, not text, not one of the two forms.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, TEMPLATE).write_text("{{ messages[0].content }}")
    ...     chat_template(Path(d))
    '{{ messages[0].content }}'
    """
    if alone := there(folder, TEMPLATE):
        return _text(alone, LARGEST_TEMPLATE)
    file = folder / TOKENIZER_CONFIG
    found = _table(folder, TOKENIZER_CONFIG, LARGEST_TOKENIZER_CONFIG).get("chat_template")
    if isinstance(found, list):
        check(all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in found),
              f"chat_template in {file} must be text or a list of name and template", repr(found)[:100],
              AGAIN)
        found = next((t.get("template") for t in found if t["name"] == "default"), None)
    check(found is None or isinstance(found, str), f"chat_template in {file} must be text",
          type(found).__name__, AGAIN)
    return found


def tokenizer_text(folder: Path) -> str | None:
    """tokenizer.json as it stands, if there. Raises CheckError: more than 64 MiB, not UTF-8.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     n = Path(folder, TOKENIZER).write_text("{}")
    ...     tokenizer_text(Path(folder))
    '{}'
    """
    file = there(folder, TOKENIZER)
    return _text(file, LARGEST_JSON) if file else None


def _text(file: Path, largest: int) -> str:
    try:
        return read_bytes(file, largest).decode("utf-8")
    except UnicodeDecodeError as e:
        raise CheckError(f"{file} must be UTF-8; got another byte at {e.start}; {AGAIN}") from None


# ---- the same files, written -----------------------------------------------------------------------------


def records(about: About, tokenizer: str | None, context: int) -> dict[str, bytes]:
    """File name -> bytes: all of the small files but config.json.
    >>> json.loads(records(About(bos=1, settings={"top_k": 40}), tokenizer=None, context=16)[GENERATION])
    {'bos_token_id': 1, 'eos_token_id': None, 'top_k': 40}
    """
    eos = about.eos[0] if len(about.eos) == 1 else list(about.eos) or None
    known = checked_settings(about.settings, GENERATION)
    files = {GENERATION: _json({"bos_token_id": about.bos, "eos_token_id": eos, **known})}
    if tokenizer is not None:
        files |= {TOKENIZER: tokenizer.encode("utf-8"),
                  TOKENIZER_CONFIG: _json(_tokenizer_config(about, tokenizer, context))}
    if about.chat_template is not None:
        files[TEMPLATE] = about.chat_template.encode("utf-8")
    return files


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode()


def _tokenizer_config(about: About, tokenizer: str, context: int) -> dict[str, Any]:
    """With the names of bos and eos: transformers knows them by name, not by id."""
    import tokenizers

    try:
        name_of = tokenizers.Tokenizer.from_str(tokenizer).id_to_token
    except Exception as e:                      # the library raises nothing more specific
        raise CheckError(f"the tokenizer must be a tokenizer.json; got {str(e)[:200]}; give one that "
                         "the library `tokenizers` reads") from None
    names = {"bos_token": None if about.bos is None else name_of(about.bos),
             "eos_token": name_of(about.eos[0]) if about.eos else None}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            **{key: name for key, name in names.items() if name is not None},
            **({} if about.chat_template is None else {"chat_template": about.chat_template})}
