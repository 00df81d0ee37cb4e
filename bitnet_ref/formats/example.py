"""A model to try things with: random, of some hundred numbers, in memory or written to a temporary folder.

The examples in docstrings read these files; a port's first test can too. `written` gives back the space. With
vocab_size=257 its tokens are bytes, so that it reads and writes text. Nobody trained it: greedily it says the
last byte again, on every machine.
Read after: formats/opened. Read next: convert.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bitnet_ref import layers
from bitnet_ref.checks import lookup
from bitnet_ref.config import ModelConfig
from bitnet_ref.data.tokenizer import SMALLEST, train_bpe
from bitnet_ref.formats.bitnet import write_bitnet
from bitnet_ref.formats.checkpoint import PARAM, named, write_checkpoint
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.source import Source, of_weights
from bitnet_ref.model.params import Params, init_params
from bitnet_ref.model.weights import ternarise

SHAPE = {"vocab_size": 12, "d_model": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16,
         "context": 32}
LENGTH = 8                       # of each row of the embedding


def model(**changes: Any) -> Source:
    """One layer, random, the same each time; `changes`: of its ModelConfig. A vocabulary of 257 has the
    tokenizer of the 256 bytes and EOS.

    >>> model().cfg.d_model, len(model(linear="full").specs)
    (8, 13)
    >>> model().tokenizer is None, model(vocab_size=257).tokenizer is None
    (True, False)
    """
    cfg = ModelConfig(**SHAPE | changes)
    tokenizer = train_bpe([], SMALLEST).json if cfg.vocab_size == SMALLEST else None
    return of_weights(cfg, ternarise(cfg, _params(cfg), layers), "example", tokenizer)


def _params(cfg: ModelConfig) -> Params:
    """Random, but the embedding's rows are of one length, above all that the layer adds: each is most like
    itself, so that the model repeats by a margin that no rounding turns."""
    params = init_params(cfg, seed=0)
    rows = params["embedding"]
    rows *= LENGTH / np.linalg.norm(rows, axis=1, keepdims=True)
    return params


@contextmanager
def written(kind: str, **changes: Any) -> Iterator[Path]:
    """That model as a Hugging Face folder (hf), a .bitnet file or a run with one checkpoint; then it is gone.
    >>> with written("bitnet") as path:
    ...     path.name, path.is_file()
    ('model.bitnet', True)
    """
    name = lookup({"hf": "model", "bitnet": "model.bitnet", "run": "run"}, kind, "kind")
    source = model(**changes)
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        if kind == "hf":
            write_hf(path, source)
        elif kind == "bitnet":
            write_bitnet(path, source, "i2")
        else:
            write_checkpoint(path, 1, named(PARAM, _params(source.cfg)), {"model": asdict(source.cfg)})
        yield path
