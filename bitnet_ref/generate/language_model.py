"""A model with its tokenizer: what `bitnet_ref.load(path)` returns.

Read after: generate/decode. Read next: generate/__main__.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.checks import check
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.data.tokenizer import load as load_tokenizer
from bitnet_ref.formats import hf
from bitnet_ref.formats.checkpoint import latest, model_config, read_params, read_state
from bitnet_ref.generate.decode import decode
from bitnet_ref.model import Transformer

TOKENIZER = "tokenizer.json"     # beside the checkpoints, in the run folder


class LanguageModel:
    """`logits, loss = model(ids, targets)`, `model.generate("...")`. Holds a Transformer and a Tokenizer.

    `first`: the id that every text began with in training; of ours it is EOS.
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, first: int | None = None) -> None:
        self.transformer, self.tokenizer, self.cfg = transformer, tokenizer, transformer.cfg
        self.first = tokenizer.eos if first is None else first

    def __call__(self, ids: Any, targets: Any = None) -> tuple[np.ndarray, float | None]:
        """ids, targets int (B, T) or (T,)  ->  logits (B, T, V), mean loss in nats per token.

        The loss is None without targets.
        """
        return self.transformer(ids, targets)

    def stream(self, prompt: str, tokens: int = 100, temperature: float = 0.8, top_k: int | None = 40,
               seed: int = 0) -> Iterator[str]:
        """Pieces of text that continue `prompt`, as they come; a piece ends between whole characters."""
        tok = self.tokenizer
        ids = [self.first, *tok.encode(prompt).tolist()]
        made: list[int] = []
        shown = ""
        for token in decode(self.transformer, np.array(ids), tokens, temperature, top_k, seed, stop=tok.eos):
            if token == tok.eos:
                break
            made.append(token)
            text = tok.decode(made)
            if not text.endswith("�"):                 # U+FFFD: the last bytes are a part of a character
                yield text[len(shown):]
                shown = text
        yield tok.decode(made)[len(shown):]

    def generate(self, prompt: str, tokens: int = 100, temperature: float = 0.8, top_k: int | None = 40,
                 seed: int = 0) -> str:
        """The continuation of `prompt` (without it). Temperature 0 is greedy."""
        return "".join(self.stream(prompt, tokens, temperature, top_k, seed))


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
