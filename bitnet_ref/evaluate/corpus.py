"""Score a trained run on a corpus: its own validation text, or any other.

Read after: evaluate/compressors. Read next: evaluate/confine.
"""

from typing import Any

import numpy as np

from bitnet_ref.chain.merge import plain_of, segmented
from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.corpus import documents, validation_documents
from bitnet_ref.data.dataset import is_dataset
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.evaluate.perplexity import Score, score
from bitnet_ref.formats.checkpoint import latest, read_state
from bitnet_ref.formats.hub import folder_of
from bitnet_ref.formats.opened import kind_of
from bitnet_ref.generate.language_model import TOKENIZER, load


def score_corpus(run: str, corpus: str | None, windows: int | None = None, backend: str = "numba",
                 threads: int | None = None, int8_head: bool = False) -> Score:
    """Score of the run's model on `corpus`, or on the run's own validation side if None.

    Of a corpus the whole is scored, or its validation part where it has one (an official part, or the folder
    of a dataset). Raises CheckError for whatever is wrong with model or text.

    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet", vocab_size=257) as path:
    ...     _ = (path.parent / "a.txt").write_bytes(b"AAAAAAAA")
    ...     score_corpus(str(path), f"{path.parent}/a.txt", backend="numpy").bytes
    8
    """
    check(windows is None or windows > 0, "--windows must be greater than 0", windows,
          "leave it out to score all")
    place = folder_of(run)
    check(corpus is not None or kind_of(place) == "run", "a model alone has no validation text", run,
          "name a text with --corpus PATH")
    model = load(place, backend, threads, int8_head)
    tokens = (segmented(_own_validation(run, plain_of(model.tokenizer)), model.tokenizer) if corpus is None
              else _tokens(corpus, model.tokenizer))
    return score(model.transformer, tokens, model.tokenizer.token_bytes, windows)


def _tokens(corpus: str, tokenizer: Tokenizer) -> np.ndarray:
    """EOS doc EOS doc ... EOS, int32 (n,)."""
    if is_dataset(corpus):
        data = prepare(corpus)
        check(data.val is not None and data.tokenizer.checksum == plain_of(tokenizer).checksum,
              "a dataset must have a validation side made with the model's tokenizer", corpus,
              "make it again with --tokenizer RUN/tokenizer.json, or name the texts themselves")
        assert data.val is not None
        return segmented(data.val.tokens, tokenizer)
    parts = [np.array([tokenizer.eos], np.int32)]
    for text in validation_documents(corpus) or documents(corpus):
        parts += [tokenizer.encode(text), parts[0]]
    return np.concatenate(parts)


def _own_validation(run: str, tokenizer: Tokenizer) -> np.ndarray:
    """The validation tokens that the run was trained beside, as its plain `tokenizer` cuts them, found again
    from its config."""
    checkpoint = latest(run)
    state = read_state(checkpoint)
    cfg: Any = state.get("train")
    seen = state.get("validation tokens")
    check(isinstance(cfg, dict) and {"corpus", "val_fraction"} <= cfg.keys(),
          f"{checkpoint} must say what the run was trained on", cfg, "name a text with --corpus PATH")
    try:
        data = prepare(cfg["corpus"], str(checkpoint.parent / TOKENIZER), tokenizer.vocab_size,
                       cfg["val_fraction"], val=cfg.get("val"))
    except CheckError as e:
        raise type(e)(f"{e}, or name a text with --corpus PATH") from e
    check(data.val is not None and data.val.header.payload_sha256 == seen,
          "the validation text must be the one that the run was trained beside",
          f"other text in {cfg['corpus']}", "restore that corpus, or name a text with --corpus PATH")
    assert data.val is not None
    return data.val.tokens
