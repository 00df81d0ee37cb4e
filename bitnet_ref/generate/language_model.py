"""A model with its tokenizer: what `bitnet_ref.load(path)` returns.

Read after: generate/continuation. Read next: generate/prompt.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.checks import check, lookup
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.data.tokenizer import load as load_tokenizer
from bitnet_ref.formats import hf
from bitnet_ref.formats.checkpoint import latest, model_config, read_params, read_state
from bitnet_ref.formats.source import About
from bitnet_ref.generate.continuation import Continuation
from bitnet_ref.generate.decode import check_tokens
from bitnet_ref.generate.sampling import Sampling, from_settings
from bitnet_ref.generate.text import check_stops
from bitnet_ref.generate.window import Window
from bitnet_ref.model import Transformer

TOKENIZER = "tokenizer.json"     # beside the checkpoints, in the run folder
NOTHING = About()
OWN: Any = object()              # an option that is not given: the model's own settings decide


class LanguageModel:
    """`logits, loss = model(ids, targets)`, `model.generate("...")`. Holds a Transformer and a Tokenizer.

    `first`: the id that every text began with in training; of ours it is EOS. `ends`: the ids that end one.
    `sampling`: how to draw where nothing else is said, from the settings in `about`.
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, first: int | None = None,
                 about: About = NOTHING) -> None:
        self.transformer, self.tokenizer, self.cfg = transformer, tokenizer, transformer.cfg
        first = about.bos if first is None else first
        self.first, self.about = tokenizer.eos if first is None else first, about
        self.ends = tuple(dict.fromkeys([*tokenizer.ends, *about.eos]))
        self.sampling = from_settings(about.settings)

    def __call__(self, ids: Any, targets: Any = None) -> tuple[np.ndarray, float | None]:
        """ids, targets int (B, T) or (T,)  ->  logits (B, T, V), mean loss in nats per token.

        The loss is None without targets.
        """
        return self.transformer(ids, targets)

    def continuation(self, prompt: str, tokens: int = 100, how: Sampling | None = None,
                     stop: Sequence[str] = (), logprobs: bool = False) -> Continuation:
        """The text that continues `prompt`, to iterate over; `how` None: the model's own settings."""
        ids = [self.first, *self.tokenizer.encode(prompt).tolist()]
        return Continuation(Window(self.transformer), self.tokenizer, ids, tokens,
                            self.sampling if how is None else how, self.ends, stop, logprobs)

    def stream(self, prompt: str, tokens: int = 100, temperature: float = OWN, top_k: int | None = OWN,
               seed: int = OWN, *, stop: Sequence[str] = (), **given: Any) -> Continuation:
        """Pieces of text that continue `prompt`, as they come; a piece ends between whole characters.

        What is not given (top_p, min_p, repetition_penalty, sequence as well) is as the model's settings have
        it. Raises CheckError for an option that is unknown or out of range.
        """
        given |= {"temperature": temperature, "top_k": top_k, "seed": seed}
        return self.continuation(prompt, tokens, self.sampling_with(given), stop)

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
        return ["".join(self.stream(p, *options, **given)) for p in prompt]


def check_options(tokens: int, stop: Sequence[str], given: dict[str, Any]) -> None:
    """Raise CheckError naming the option that is out of range: at once, before a model is loaded."""
    check_tokens(tokens)
    check_stops(stop)
    Sampling(**given)


def load(path: str | Path, backend: str = "numba", threads: int | None = None,
         int8_head: bool = False) -> LanguageModel:
    """The model of a run folder, of one checkpoint in it, or of a Hugging Face folder with a tokenizer.json.

    `int8_head`: a full-precision output projection as int8 rows, which decodes faster. Raises CheckError if
    it is missing, damaged or not supported.
    """
    ops = kernels.load(backend, threads)
    if hf.is_folder(path):
        return _load_hf(Path(path), ops, int8_head)
    return _load_run(path, ops, int8_head)


def _load_run(path: str | Path, ops: Any, int8_head: bool) -> LanguageModel:
    checkpoint = latest(path)
    state = read_state(checkpoint)
    tokenizer = load_tokenizer(checkpoint.parent / TOKENIZER)
    cfg = model_config(state)
    check(tokenizer.vocab_size == cfg.vocab_size,
          f"the tokenizer must have the model's {cfg.vocab_size} entries", tokenizer.vocab_size,
          f"put back the {TOKENIZER} that the run was trained with")
    check(tokenizer.checksum == state.get("tokenizer"),
          "the tokenizer must be the one that the model was trained with",
          f"checksum {tokenizer.checksum[:12]}", f"put back the {TOKENIZER} of the run")
    return LanguageModel(Transformer(cfg, read_params(checkpoint, state), ops, int8_head), tokenizer)


def _load_hf(folder: Path, ops: Any, int8_head: bool) -> LanguageModel:
    """Others' vocabularies are often padded: the model may have more entries than the tokenizer."""
    config, tokenizer = hf.read_config(folder), load_tokenizer(folder / TOKENIZER)
    check(tokenizer.vocab_size <= config.model.vocab_size,
          f"the tokenizer must have at most the model's {config.model.vocab_size} entries",
          tokenizer.vocab_size, f"put back the {TOKENIZER} that belongs to the model")
    return LanguageModel(Transformer(*hf.read(folder), ops, int8_head), tokenizer, config.bos)
