"""Corpus -> dataset, made once: the cache.

The key is everything that goes into a dataset: the corpus (files by path, size and time of change; the
default corpus by its Python), the tokenizer, the numbers of the split, the version of the layout. Deleting
the cache is safe: what is missing is made again.
Read after: data/dataset. Read next: data/__main__.
"""

import hashlib
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import cache_dir
from bitnet_ref.data import split
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.data.corpus import corpus_files, validation_documents
from bitnet_ref.data.dataset import SAMPLE, VERSION, Dataset, Recipe, is_dataset, open_dataset, write_dataset
from bitnet_ref.data.download import named_files
from bitnet_ref.data.mixture import parts
from bitnet_ref.data.shards import open_shard
from bitnet_ref.data.tokenizer_files import load


def prepare(corpus: str, tokenizer_path: str | None = None, vocab_size: int = 4096,
            val_fraction: float = 0.05, seed: int = 0, cache: bool = True, progress: bool = True,
            val: str | None = None) -> Dataset:
    """The dataset of a corpus (what `data.corpus.documents` takes), of a mixture (`data.mixture.parts`), or
    of a folder that is a dataset.

    tokenizer_path: the file of one to use (data.tokenizer_files.load); without one, a tokenizer of at most
    `vocab_size` entries is trained on the training side. val_fraction, seed: how much is held out, and which
    documents; a corpus with an official validation part uses that, a folder that is a dataset has its own.
    val: a text to validate on instead. cache: False makes it again although the cache has it. progress: bars
    on stderr. Raises CheckError for whatever is wrong with the input or the disk.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("text")
    ...     made = write_dataset(f"{d}/set", Recipe(f"{d}/a.txt", val_fraction=0), progress=False).folder
    ...     prepare(str(made), progress=False).train.tokens.tolist()
    [0, 259, 0]
    """
    tokenizer = None if tokenizer_path is None else load(tokenizer_path)
    if is_dataset(corpus):
        data = open_dataset(corpus, True, progress)
        check(val is None, "a dataset must be validated on its own validation side", f"--val {val}",
              "leave it out, or name the texts themselves")
        check(tokenizer is None or tokenizer.checksum == data.tokenizer.checksum,
              f"the tokenizer must be the one that {corpus} was made with", tokenizer_path, "leave it out")
        return data
    recipe = Recipe(corpus, tokenizer, vocab_size, val_fraction, seed, val)
    folder = cache_dir() / "datasets" / key(recipe)
    trained = cache_dir() / "datasets" / key(recipe._replace(tokenizer=None))     # perhaps on this corpus
    for found in (folder, trained) if cache else ():
        if is_dataset(found):
            data = open_dataset(found, True, progress)
            if tokenizer is None or tokenizer.checksum == data.tokenizer.checksum:
                return data
    return write_dataset(folder, recipe, progress, replace=not cache)


def key(recipe: Recipe) -> str:
    """20 hex digits that change with anything that may change the dataset. Raises CheckError.
    >>> key(Recipe("python-docs")) == key(Recipe("python-docs", seed=1))
    False
    """
    tokenizer = recipe.tokenizer.checksum if recipe.tokenizer else recipe.vocab_size
    parts = [VERSION, split.SPAN, split.MOST_BYTES, SAMPLE, identity(recipe.corpus), tokenizer,
             recipe.val_fraction, recipe.seed, *([identity(recipe.val)] if recipe.val is not None else [])]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()[:20]


def identity(corpus: str) -> list[Any]:
    """What a corpus is, short of reading it: its Python, or path, bytes and time of change of each file.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("text")
    ...     [n_bytes for path, n_bytes, moment in identity(d)[1:]]
    [4]
    """
    if len(mixed := parts(corpus)) > 1:
        return [[part.weight, *identity(part.corpus)] for part in mixed]
    corpus = mixed[0].corpus
    if corpus == "python-docs":
        return [corpus, sys.version]
    files = corpus_files(corpus)
    if validation_documents(corpus) is not None:
        files = files + named_files(corpus, "valid")
    try:
        stats = [(path, path.stat()) for path in files]
        return [corpus, *([str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats)]
    except OSError as e:
        raise unreadable(corpus, e) from None


# ---- what has changed ----

def kept(train_sha256: str, val_sha256: str, tokenizer_sha256: str) -> Path | None:
    """The folder in the cache with these checksums of both sides' tokens and of the tokenizer, if any.
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> with TemporaryDirectory() as d, patch.dict("os.environ", BITNET_REF_CACHE=d):
    ...     n = Path(d, "a.txt").write_text("one\\n<|endoftext|>\\ntwo")
    ...     data = write_dataset(f"{d}/datasets/set", Recipe(f"{d}/a.txt", val_fraction=0.5), progress=False)
    ...     sides = [side.header.payload_sha256 for side in (data.train, data.val)]
    ...     kept(*sides, data.train.header.tokenizer_sha256).name
    'set'
    """
    wanted = [(train_sha256, tokenizer_sha256), (val_sha256, tokenizer_sha256)]
    for folder in sorted((cache_dir() / "datasets").glob("*")):
        with suppress(CheckError):
            sides = [open_shard(folder / f"{side}.bin").header for side in ("train", "val")]
            if is_dataset(folder) and [(h.payload_sha256, h.tokenizer_sha256) for h in sides] == wanted:
                return folder
    return None


def changed_since(corpus: str, moment: int) -> list[str]:
    """The files of a corpus, and folders that gained or lost one, that changed after `moment`.

    moment: nanoseconds, as st_mtime_ns. What cannot be found any more has changed too.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("text")
    ...     [Path(path).name for path in changed_since(f"{d}/a.txt", moment=0)][0], changed_since(d, 1 << 62)
    ('a.txt', [])
    """
    if corpus == "python-docs":
        return [f"the Python that runs, now {sys.version.split()[0]}, or its own texts"]
    try:
        files = [path for part in parts(corpus) for path in corpus_files(part.corpus)]
        found = dict.fromkeys([*files, *(path.parent for path in files)])
        return [str(path) for path in found if path.stat().st_mtime_ns > moment]
    except (CheckError, OSError):
        return [corpus]
