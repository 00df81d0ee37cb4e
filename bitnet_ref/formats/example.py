"""A model to try a format with: random, of some hundred numbers, in memory or written to a temporary folder.

The examples in docstrings read these files; a port's first test can too. `written` gives back the space.
Read after: formats/opened. Read next: convert.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bitnet_ref import layers
from bitnet_ref.checks import lookup
from bitnet_ref.config import ModelConfig
from bitnet_ref.formats.bitnet import write_bitnet
from bitnet_ref.formats.checkpoint import PARAM, named, write_checkpoint
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.source import Source, of_weights
from bitnet_ref.model.params import init_params
from bitnet_ref.model.weights import ternarise

SHAPE = {"vocab_size": 12, "d_model": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16,
         "context": 16}


def model(**changes: Any) -> Source:
    """One layer, random, the same each time; `changes`: of its ModelConfig.
    >>> model().cfg.d_model, len(model(linear="full").specs)
    (8, 13)
    """
    cfg = ModelConfig(**SHAPE | changes)
    return of_weights(cfg, ternarise(cfg, init_params(cfg, seed=0), layers), "example")


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
            params = init_params(source.cfg, seed=0)
            write_checkpoint(path, 1, named(PARAM, params), {"model": asdict(source.cfg)})
        yield path
