"""Sequence compression for training (`--compress`): a dataset whose chains are merged (chain/merge).

The result is a dataset like any other, whose shards lie in the cache and are verified when opened: batches,
packing, mixtures and resuming know nothing of it. Its report has the tokens before and after. With `first`
the validation side stays plain text; with `super` it is cut as the training side is, and spells the same.
Read after: chain/merge. Read next: chain/__main__.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitnet_ref.chain.merge import ChainTokenizer, checksum, stream, with_chains
from bitnet_ref.chain.table import Table
from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import cache_dir
from bitnet_ref.data.atomic import whole_file, whole_folder
from bitnet_ref.data.dataset import Dataset
from bitnet_ref.data.shards import Shard, open_shard, write_shard
from bitnet_ref.data.tokenizer import Tokenizer

VERSION = 1                      # of what is in the cache
ABOUT = "compressed.json"        # how many tokens each corpus has


def compressed(data: Dataset, table: Table, kind: str, progress: bool = False) -> Dataset:
    """What a run with `--compress` kind trains on: `data` itself for "off"; else its training side
    compressed, with "super" its validation side and its tokenizer as well.

    With "first" the validation side stays plain text. `report` has the corpora's new sizes, and under
    "compressed" the tokens before and after. `progress`: bars on stderr. Raises CheckError: a table with ids
    that the tokenizer has not, a cache that refuses to be written.
    >>> from bitnet_ref.chain.mine import mine_for; from bitnet_ref.train.small import small_run
    >>> _, data = small_run()
    >>> made = compressed(data, mine_for(data, size=8), "super")
    >>> len(made.train.tokens) < len(data.train.tokens), made.tokenizer.vocab_size - data.tokenizer.vocab_size
    (True, 8)
    """
    if kind == "off":
        return data
    tokenizer = with_chains(data.tokenizer, table)
    own = tokenizer if kind == "super" else data.tokenizer
    folder = cache_dir() / "compressed" / _key(data, table, kind)
    found = _opened(folder, data, own)
    if found is None:
        _aside(folder)                                     # what is damaged is made again
        try:
            with whole_folder(folder) as part:
                _fill(part, data, tokenizer, own, progress)
        except CheckError:                                 # another process may have been first
            if _opened(folder, data, own) is None:
                raise
        found = _opened(folder, data, own)
    check(found is not None, "a compressed dataset must be readable once it is made", f"damage in {folder}",
          "delete that folder and begin again; look at the disk")
    assert found is not None
    train, val, sizes = found
    about = {"kind": kind, "chains": len(table.chains), "plain tokens": len(data.train.tokens),
             "tokens": len(train.tokens)}
    mixture = [{**e, "train_tokens": n} for e, n in zip(data.report.get("mixture", []), sizes)]
    report = {**data.report, "compressed": about, **({"mixture": mixture} if mixture else {})}
    return data._replace(train=train, val=val, tokenizer=own, report=report)


def _aside(folder: Path) -> None:
    """Remove a folder, if it is there: by its name first, so that one that another process is about to put
    there is not half removed."""
    away = folder.with_name(f".{folder.name}.{os.getpid()}.damaged")
    with suppress(OSError):
        folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def saved(data: Dataset) -> float:
    """The share of tokens that compression has saved, of a dataset that is compressed.
    >>> from bitnet_ref.chain.mine import mine_for; from bitnet_ref.train.small import small_run
    >>> _, data = small_run()
    >>> 0.1 < saved(compressed(data, mine_for(data), "first")) < 1
    True
    """
    about = data.report["compressed"]
    return 1 - float(about["tokens"]) / float(about["plain tokens"])


def _key(data: Dataset, table: Table, kind: str) -> str:
    """20 hex digits that change with anything that may change the result."""
    sides = [side.header.payload_sha256 if side else None for side in (data.train, data.val)]
    parts = [VERSION, kind, *sides, data.tokenizer.checksum, checksum(table), _sizes(data)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _sizes(data: Dataset) -> list[int]:
    """Tokens of each corpus in the training shard, as `feed.open_feed` counts them."""
    return [e["train_tokens"] for e in data.report.get("mixture", [])] or [len(data.train.tokens) - 1]


def _fill(folder: Path, data: Dataset, tokenizer: ChainTokenizer, own: Tokenizer, progress: bool) -> None:
    sizes: list[int] = []
    ends = np.cumsum(_sizes(data))
    pieces = [data.train.tokens[end - n:end + 1] for end, n in zip(ends, _sizes(data))]
    with tqdm(total=len(data.train.tokens), desc="compressing", unit="token", unit_scale=True,
              disable=not progress) as bar:
        _write(folder / "train.bin", pieces, tokenizer, own, sizes, bar)
    if own is tokenizer and data.val is not None:
        with tqdm(disable=True) as bar:
            _write(folder / "val.bin", [data.val.tokens], tokenizer, own, [], bar)
    with whole_file(folder / ABOUT) as file:
        file.write(json.dumps({"train_tokens": sizes}).encode())


def _write(path: Path, pieces: list[np.ndarray], tokenizer: ChainTokenizer, own: Tokenizer,
           sizes: list[int], bar: tqdm) -> None:
    """A shard of the compressed `pieces`, EOS doc ... EOS each; their tokens are added to `sizes`."""
    supers = tokenizer.plain.vocab_size if own is tokenizer else None

    def documents() -> Iterator[tuple[np.ndarray, int]]:
        for tokens in pieces:
            sizes.append(0)
            for ids in _documents(stream(tokens, tokenizer.chains, own.eos, supers, bar), own.eos):
                sizes[-1] += len(ids) + 1                  # its EOS
                yield ids, int(own.token_bytes[ids].sum())

    write_shard(path, documents(), own.vocab_size, own.eos, own.checksum)


def _documents(parts: Iterator[np.ndarray], eos: int) -> Iterator[np.ndarray]:
    """What stands between two EOS each, of a stream that begins and ends with one."""
    begun: list[np.ndarray] | None = None                  # of a document; None before the first EOS
    for part in parts:
        first, *others = np.split(part, np.flatnonzero(part == eos))
        if begun is not None:
            begun.append(first)
        for piece in others:                               # each begins with its EOS
            if begun is not None:
                yield np.concatenate(begun)
            begun = [piece[1:]]


def _opened(folder: Path, data: Dataset, own: Tokenizer) -> tuple[Shard, Shard | None, list[int]] | None:
    """Both sides and the tokens of each corpus, or None unless all is there as it was written."""
    try:
        sizes = json.loads((folder / ABOUT).read_bytes()[:1 << 20])["train_tokens"]
        train, val = open_shard(folder / "train.bin", True), data.val
        if data.val is not None and own is not data.tokenizer:
            val = open_shard(folder / "val.bin", True)
        whole = len(sizes) == len(_sizes(data)) and sum(sizes) == len(train.tokens) - 1
        fits = all(side.header.vocab_size == own.vocab_size and side.header.tokenizer_sha256 == own.checksum
                   for side in (train, val) if side)
        return (train, val, sizes) if whole and fits else None
    except (CheckError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
