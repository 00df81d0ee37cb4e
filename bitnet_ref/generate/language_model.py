"""A model with its tokenizer: what `bitnet_ref.load(path)` returns.

Read after: generate/spoken. Read next: generate/prompt.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.chain.draft import Drafter, Lookup, Refreshed, chains
from bitnet_ref.chain.merge import ChainTokenizer
from bitnet_ref.chain.shipped import shipped
from bitnet_ref.chain.table import CHAINS, Table, read_table
from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.data.tokenizer import Tokenizer, from_json
from bitnet_ref.formats.checkpoint import latest, model_config, read_params, read_state
from bitnet_ref.formats.hub import folder_of
from bitnet_ref.formats.opened import kind_of, open_model
from bitnet_ref.formats.source import About, on_disk, run_tokenizer
from bitnet_ref.generate.continuation import Continuation
from bitnet_ref.generate.decode import check_tokens
from bitnet_ref.generate.sampling import Sampling, from_settings
from bitnet_ref.generate.speculative import Pace
from bitnet_ref.generate.spoken import SPOKEN
from bitnet_ref.generate.text import check_stop_ids, check_stops
from bitnet_ref.generate.together import together
from bitnet_ref.generate.window import Window
from bitnet_ref.model import Transformer

TOKENIZER = "tokenizer.json"     # beside the checkpoints, in the run folder
NOTHING = About()
DRAFTERS = ("auto", "off", "table", "lookup", "refreshed")
NO_TABLE = ("mine one with python -m bitnet_ref.chain mine and give its path, or use --chain lookup, "
            "which needs none")
OWN: Any = object()              # an option that is not given: the model's own settings decide


class LanguageModel:
    """`logits, loss = model(ids, targets)`, `model.generate("...")`. Holds a Transformer and a Tokenizer.

    `first`: the id that every text began with in training; of ours it is EOS. `ends`: the ids that end one.
    `sampling`: how to draw where nothing else is said, from the settings in `about`. `chain`: who guesses
    ahead (see `drafter`); the text is the same. `pace`: what is known of such guesses.
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, first: int | None = None,
                 about: About = NOTHING, chain: str = "auto", place: Path | None = None) -> None:
        self.transformer, self.tokenizer, self.cfg = transformer, tokenizer, transformer.cfg
        first = about.bos if first is None else first
        self.first, self.about = tokenizer.eos if first is None else first, about
        self.ends = tuple(dict.fromkeys([*tokenizer.ends, *about.eos]))
        self.sampling = from_settings(about.settings)
        self.chain, self.place, self.pace = chain, place, Pace()
        if chain not in ("auto", "off"):
            self.drafter(self.sampling)                    # what is wrong with a table is said at once

    def __call__(self, ids: Any, targets: Any = None) -> tuple[np.ndarray, float | None]:
        """ids, targets int (B, T) or (T,)  ->  logits (B, T, V), mean loss in nats per token.

        The loss is None without targets.
        """
        return self.transformer(ids, targets)

    def continuation(self, prompt: str, tokens: int = 100, how: Sampling | None = None,
                     stop: Sequence[str] = (), logprobs: bool = False, stop_ids: Sequence[int] = (),
                     own_ends: bool = True) -> Continuation:
        """The text that continues `prompt`, to iterate over; `how` None: the model's own settings.

        It ends at the ids of `ends_with`.
        """
        how = self.sampling if how is None else how
        return Continuation(Window(self.transformer), self.tokenizer, self._ids(prompt), tokens,
                            how, self.ends_with(stop_ids, own_ends), stop, logprobs, self.drafter(how),
                            self.pace)

    def drafter(self, how: Sampling) -> Drafter | None:
        """Who guesses ahead in a text so drawn: "table", "lookup", "refreshed" as in chain/draft, or the path
        of a table; "off": nobody. "auto": refreshed, with the `table` if there is one, where guesses pay: in
        a greedy text of a backend that keeps a cache. Raises CheckError for a table that cannot be used.
        """
        pays = how.temperature == 0 and hasattr(self.transformer.plan.ops, "prefill")
        if self.chain == "off" or (self.chain == "auto" and not pays):
            return None
        if self.chain == "lookup":
            return Lookup()
        table = self.table()
        if self.chain in ("auto", "refreshed"):
            return Refreshed(table)
        check(table is not None, "a model must have a table of chains beside it, or "
              "one that ships for its vocabulary", "none", NO_TABLE)
        assert table is not None
        return chains(table)

    def table(self) -> Table | None:
        """The table of chains at the path that `chain` is; or the one beside the model, of its own words or
        else of its corpus; or the one that ships for its vocabulary; or None. Of a model with super-tokens
        those of its corpus are tokens. Raises CheckError for what is no table, or of another vocabulary;
        "auto" passes over such a one beside the model."""
        _check_chain(self.chain)
        if self.chain not in DRAFTERS:
            return read_table(self.chain, self.tokenizer)
        names = (SPOKEN,) if isinstance(self.tokenizer, ChainTokenizer) else (SPOKEN, CHAINS)
        beside = [self.place / name for name in names] if self.place else []
        for path in filter(os.path.isfile, beside):
            try:
                return read_table(path, self.tokenizer)
            except CheckError:                             # nobody asked for it; perhaps another model's
                if self.chain != "auto":
                    raise
        return shipped(self.tokenizer)

    def ends_with(self, stop_ids: Sequence[int] = (), own_ends: bool = True) -> tuple[int, ...]:
        """The ids that end a text: `stop_ids`, and those of the model unless `own_ends` is false.

        Raises CheckError for what is no id of the model.
        """
        check_stop_ids(stop_ids, self.cfg.vocab_size)
        return tuple(dict.fromkeys([*(self.ends if own_ends else ()), *map(int, stop_ids)]))

    def stream(self, prompt: str, tokens: int = 100, temperature: float = OWN, top_k: int | None = OWN,
               seed: int = OWN, *, stop: Sequence[str] = (), stop_ids: Sequence[int] = (),
               own_ends: bool = True, **given: Any) -> Continuation:
        """Pieces of text that continue `prompt`, as they come; a piece ends between whole characters.

        What is not given (top_p, min_p, repetition_penalty, sequence as well) is as the model's settings have
        it. `stop_ids` end the text too; own_ends=False: and not those of the model. Raises CheckError for an
        option that is unknown or out of range.
        """
        given |= {"temperature": temperature, "top_k": top_k, "seed": seed}
        how = self.sampling_with(given)
        return self.continuation(prompt, tokens, how, stop, stop_ids=stop_ids, own_ends=own_ends)

    def sampling_with(self, given: dict[str, Any]) -> Sampling:
        """The model's own settings with the fields in `given` in their place, those that are OWN excepted."""
        for name in given:
            lookup([f.name for f in fields(Sampling)], name, "an option of generate")
        return replace(self.sampling, **{name: v for name, v in given.items() if v is not OWN})

    def generate(self, prompt: Any, *options: Any, **given: Any) -> Any:
        """The continuation of `prompt` (without it); of a list of prompts, a list. Options as in `stream`.

        A text is the same alone and in any list. Temperature 0 is greedy.
        """
        if isinstance(prompt, str):
            return "".join(self.stream(prompt, *options, **given))
        check(isinstance(prompt, Iterable), "a prompt must be a text, or a list of texts", repr(prompt)[:50],
              "give a str")
        return self.generate_all(list(prompt), *options, **given)

    def _ids(self, prompt: str) -> list[int]:
        check(isinstance(prompt, str), "a prompt must be a text", repr(prompt)[:50], "give a str")
        return [self.first, *self.tokenizer.encode(prompt).tolist()]

    def generate_all(self, prompts: list[str], tokens: int = 100, temperature: float = OWN,
                     top_k: int | None = OWN, seed: int = OWN, *, stop: Sequence[str] = (),
                     stop_ids: Sequence[int] = (), own_ends: bool = True, **given: Any) -> list[str]:
        """The continuation of each prompt, all at once: a step of the model has a token of each."""
        how = self.sampling_with(given | {"temperature": temperature, "top_k": top_k, "seed": seed})
        ids, ends = [self._ids(prompt) for prompt in prompts], self.ends_with(stop_ids, own_ends)
        return together(self.transformer, self.tokenizer, ids, tokens, how, ends, stop)


def _check_chain(chain: str) -> None:
    """Raise CheckError unless `chain` names a drafter or a file."""
    check(chain in DRAFTERS or os.path.isfile(chain), f"chain must be one of {', '.join(DRAFTERS)}, or the "
          "path of a table", ascii(chain)[:200], "correct it")


def check_options(tokens: int, stop: Sequence[str], stop_ids: Sequence[int], given: dict[str, Any],
                  chain: str = "auto") -> None:
    """Raise CheckError naming the option that is out of range: at once, before a model is loaded.

    >>> check_options(100, ["END"], [], {"top_p": 2.0})
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: top_p must lie in (0, 1]; got 2.0; use 1 to keep all tokens
    """
    _check_chain(chain)
    check_tokens(tokens)
    check_stops(stop)
    check_stop_ids(stop_ids)
    Sampling(**given)


def load(path: str | Path, backend: str = "numba", threads: int | None = None, int8_head: bool = False,
         half_cache: bool = False, i2s: str | None = None, chain: str = "auto") -> LanguageModel:
    """The model of a run, a Hugging Face folder, a name on a hub, a .bitnet or a .gguf file; with tokenizer.

    `int8_head`: a full-precision output projection as int8 rows, which decodes faster. `half_cache`: keys and
    values kept in float16. `i2s`: as formats.opened.open_model. `chain`: as LanguageModel.drafter.
    A run's model can be trained on; others hold what a backend needs to run them, and no more. Raises
    CheckError if it is missing, damaged or not supported.

    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet", vocab_size=257) as path:
    ...     load(path, "numpy").generate("A", tokens=3, temperature=0)
    'AAA'
    """
    ops, place = kernels.load(backend, threads), folder_of(path)
    if kind_of(place) == "run":
        return _load_run(place, ops, int8_head, half_cache, chain)
    source = open_model(place, i2s)
    check(source.tokenizer is not None, f"{path} must hold a tokenizer", "none",
          f"put its {TOKENIZER} into the folder, or convert the model from where it has one")
    tokenizer = from_json(str(source.tokenizer), f"the tokenizer of {path}")
    check(tokenizer.vocab_size <= source.cfg.vocab_size,             # others' are often padded
          f"the tokenizer must have at most the model's {source.cfg.vocab_size} entries",
          tokenizer.vocab_size, f"put back the {TOKENIZER} that belongs to the model")
    transformer = Transformer(source.cfg, on_disk(source), ops, int8_head, half_cache)
    folder = place if place.is_dir() else place.parent
    return LanguageModel(transformer, tokenizer, about=source.about, chain=chain, place=folder)


def _load_run(path: str | Path, ops: Any, int8_head: bool, half_cache: bool, chain: str) -> LanguageModel:
    checkpoint = latest(path)
    state = read_state(checkpoint)
    tokenizer, cfg = run_tokenizer(checkpoint, state), model_config(state)
    check(tokenizer is not None, f"{checkpoint.parent} must hold a readable {TOKENIZER}", "none",
          "put back the one that the run was trained with")
    assert tokenizer is not None
    params = read_params(checkpoint, state)
    return LanguageModel(Transformer(cfg, params, ops, int8_head, half_cache), tokenizer, chain=chain,
                         place=checkpoint.parent)
