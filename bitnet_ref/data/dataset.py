"""A dataset: both sides of a corpus as token shards, their text, the tokenizer and a report, in one folder.

Two passes over the documents, each a stream: the first chooses the validation side and measures, the second
cuts repeats from the training side and writes. (A tokenizer to train adds a pass over a bounded sample.)
Memory is that of the validation side, whatever the size of the corpus. The folder is built under another name
and renamed when whole. A mixture is one dataset too: its corpora stand in the shards one after the other.
Read after: data/feed. Read next: data/prepare.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data import shards, split, tokenizer
from bitnet_ref.data.atomic import unwritable, whole_file
from bitnet_ref.data.corpus import documents, validation_documents
from bitnet_ref.data.feed import Feed
from bitnet_ref.data.mixture import MOST, parts
from bitnet_ref.data.shards import Shard, open_shard, write_shard
from bitnet_ref.data.tokenizer import Tokenizer

FORMAT, VERSION = "bitnet_ref.dataset", 1
MANIFEST = "dataset.json"       # written last: a folder that has it is whole
SAMPLE = 1 << 24                # bytes of UTF-8: about how much text a tokenizer is trained on at most
LARGEST_VAL = 1 << 26           # bytes of a named validation text: its spans take 24 times as much memory
FIX = "make it with python -m bitnet_ref.data"


class Recipe(NamedTuple):
    """All that a dataset depends on."""

    corpus: str
    tokenizer: Tokenizer | None = None          # None: train one of `vocab_size` entries on the training side
    vocab_size: int = 4096
    val_fraction: float = 0.05                  # of the documents, held out if there is no official part
    seed: int = 0                               # which ones
    val: str | None = None                      # a text to validate on; then no documents are held out


class Dataset(NamedTuple):
    """An open dataset. `val` is None if nothing was held out; `report` is the content of dataset.json.

    `feed` is what a run makes of the training side, where there is a run.
    """

    folder: Path
    train: Shard
    val: Shard | None
    tokenizer: Tokenizer
    report: dict[str, Any]
    feed: Feed | None = None

    @property
    def train_text(self) -> Path:
        """The UTF-8 text that the training shard spells: its documents end to end, nothing between them."""
        return self.folder / "train.txt"

    @property
    def val_text(self) -> Path:
        """The same of the validation side, for compressors to be compared with."""
        return self.folder / "val.txt"


def is_dataset(folder: str | Path) -> bool:
    """Whether a whole dataset lies there.
    >>> is_dataset("no-such-folder")
    False
    """
    return os.path.isfile(os.path.join(folder, MANIFEST))


def open_dataset(folder: str | Path, verify: bool = False, progress: bool = False) -> Dataset:
    """The dataset in `folder`; `verify` reads the shards and checks their sums; `progress`: bars on stderr.

    Raises CheckError: no dataset, another version, parts that are missing, damaged or do not belong together.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("text")
    ...     made = write_dataset(f"{d}/set", Recipe(f"{d}/a.txt", val_fraction=0), progress=False).folder
    ...     open_dataset(made).tokenizer.vocab_size
    260
    """
    folder = Path(folder)
    report = _read_manifest(folder / MANIFEST)
    own = tokenizer.load(folder)
    train = open_shard(folder / "train.bin", verify, progress)
    val = open_shard(folder / "val.bin", verify, progress) if "val" in report else None
    for header in (side.header for side in (train, val) if side):
        check((header.tokenizer_sha256, header.vocab_size) == (own.checksum, own.vocab_size),
              f"the shards in {folder} must be made with the tokenizer there, {own.checksum[:12]}",
              header.tokenizer_sha256[:12], FIX)
    _check_parts(report, train, val, folder / MANIFEST)
    return Dataset(folder, train, val, own, report)


def unchanged(data: Dataset) -> None:
    """Raise CheckError if a shard on the disk is no longer the one that was opened. Quick: call it often.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("text")
    ...     data = write_dataset(f"{d}/set", Recipe(f"{d}/a.txt", val_fraction=0), progress=False)
    ...     unchanged(data)
    ...     data.train.path.unlink()
    ...     unchanged(data)                                     # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: ... must stay as it is while a run reads it; got No such file ...
    """
    for shard in (data.train, data.val):
        if shard is not None:
            shards.unchanged(shard)


def summary(data: Dataset) -> str:
    """One line per side, then what was removed, the tokenizer and the folder.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("text")
    ...     recipe = Recipe(f"{d}/a.txt", val_fraction=0)
    ...     print(summary(write_dataset(f"{d}/set", recipe, progress=False)._replace(folder="set")))
    train           1 documents             4 bytes             3 tokens
    removed 0 bytes of training text: repeats of validation text
    tokenizer of 260 entries
    set
    """
    report = data.report
    lines = [f"{side:<6}{n['documents']:>11,} documents {n['text_bytes']:>13,} bytes "
             f"{n['tokens']:>13,} tokens" for side in ("train", "val") if (n := report.get(side))]
    removed = report["repeats_removed_bytes"]
    lines.append(f"removed {removed:,} bytes of training text: repeats of validation text")
    return "\n".join([*lines, f"tokenizer of {report['vocab_size']:,} entries", str(data.folder)])


def _check_parts(report: dict[str, Any], train: Shard, val: Shard | None, path: Path) -> None:
    """A stranger's mixture must fit the shards: parts that end where documents do, and make up the whole."""
    entries = report.get("mixture", [])
    kinds = {"corpus": str, "weight": int, "train_tokens": int, "val_tokens": int}
    check(isinstance(entries, list) and all(
        isinstance(e, dict) and all(type(e.get(k)) is kind for k, kind in kinds.items())
        and 0 < e["weight"] <= MOST and 0 < e["train_tokens"] < 1 << 48 and 0 <= e["val_tokens"] < 1 << 48
        for e in entries) and sum(e["weight"] for e in entries) <= MOST and len(entries) < 1 << 14,
        f"the mixture in {path} must list corpora with weights and tokens", str(entries)[:100], FIX)
    for side, shard in (("train", train), ("val", val)):
        ends = np.cumsum([e[f"{side}_tokens"] for e in entries])
        if len(ends) and shard is not None and ends[-1]:
            whole = int(ends[-1]) == len(shard.tokens) - 1
            check(whole and bool(np.all(shard.tokens[ends] == shard.header.eos)),
                  f"the mixture in {path} must make up the tokens of {side}.bin", ends.tolist(), FIX)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The content of a dataset.json of our version. Raises CheckError."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckError(f"{path} must be readable JSON; got {e}; {FIX}") from None
    check(isinstance(report, dict) and report.get("format") == FORMAT, f"{path} must describe a {FORMAT}",
          "something else", FIX)
    check(report.get("version") == VERSION, f"{path} must be of version {VERSION}", report.get("version"),
          "update bitnet_ref, or make the dataset again")
    return report


# ---- writing ----

def write_dataset(folder: str | Path, recipe: Recipe, progress: bool = True, replace: bool = False
                  ) -> Dataset:
    """Make the dataset in `folder`, whole or not at all, and open it.

    Unless `replace`, the folder must be new or empty. `progress`: bars on stderr.
    Raises CheckError for whatever is wrong with the corpus, the numbers or the disk; nothing stays then.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("text")
    ...     write_dataset(f"{d}/set", Recipe(f"{d}/a.txt", val_fraction=0), progress=False).report["train"]
    {'documents': 1, 'text_bytes': 4, 'tokens': 3}
    """
    folder = Path(os.path.abspath(folder))
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        check(replace or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
              "the output must be a new or empty folder", str(folder), "choose another or delete it")
        part.mkdir(parents=True)
        _fill(part, recipe, progress)
        _install(part, folder, replace)
    except CheckError as e:                                 # name the folder that was asked for
        raise type(e)(str(e).replace(str(part), str(folder))) from e
    except OSError as e:
        raise unwritable(folder, e) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return open_dataset(folder)


def _install(part: Path, folder: Path, replace: bool) -> None:
    """Rename `part` to `folder`. If another process was first with the same dataset, that one stays."""
    if replace:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    try:
        part.rename(folder)
    except OSError:
        if not is_dataset(folder):
            raise


class _Chosen(NamedTuple):
    """What the first pass found of one corpus."""

    corpus: str
    weight: int
    choice: split.Choice
    official: bool
    held_out: list[str]


def _fill(folder: Path, recipe: Recipe, progress: bool) -> None:
    """Both passes; every file of the dataset is written here, the manifest last."""
    with _bar("reading", progress) as bar:
        chosen = [_choose(part.corpus, part.weight, recipe, bar) for part in parts(recipe.corpus)]
    named = [] if recipe.val is None else list(_named_validation(recipe.val))
    known, removed = split.spans([text for c in chosen for text in c.held_out] + named), [0]
    total, weight = sum(c.choice.text_bytes for c in chosen), sum(c.weight for c in chosen)

    def training(c: _Chosen) -> Iterator[str]:
        return split.training_side(documents(c.corpus), c.choice, recipe.seed)

    own = recipe.tokenizer or tokenizer.train_bpe(_cleaned(chain.from_iterable(
        _sample(training(c), c.choice.text_bytes, recipe.seed, c.weight / weight) for c in chosen),
        known, [0]), recipe.vocab_size)
    own.save(folder / "tokenizer.json")
    with _bar("writing", progress, total) as bar:
        cleaned = (_cleaned(_counted(training(c), bar), known, removed) for c in chosen)
        train, tokens = _write_side(folder, "train", cleaned, own)
    report = {"format": FORMAT, "version": VERSION, "corpus": recipe.corpus, "vocab_size": own.vocab_size,
              "val_fraction": recipe.val_fraction, "seed": recipe.seed,
              "official_split": any(c.official for c in chosen), "train": train,
              "repeats_removed_bytes": removed[0]}
    held_out = [named] if named else [c.held_out for c in chosen]
    if any(held_out):
        report["val"], val_tokens = _write_side(folder, "val", held_out, own)
    if recipe.val is not None:
        report["val_corpus"] = recipe.val
    if len(chosen) > 1:
        report["mixture"] = _mixture(chosen, tokens, val_tokens if any(held_out) and not named else None)
    with whole_file(folder / MANIFEST) as file:
        file.write(json.dumps(report, indent=1).encode("utf-8"))


def _choose(corpus: str, weight: int, recipe: Recipe, bar: tqdm) -> _Chosen:
    """The first pass over one corpus. An official validation part is used whole, a named text instead."""
    check(not is_dataset(corpus), "what a dataset is made of must be text", f"the dataset {corpus}",
          "name the text that it was made of")
    official = None if recipe.val is not None else validation_documents(corpus)
    fraction = recipe.val_fraction if official is None and recipe.val is None else 0.0
    choice = split.choose(_counted(documents(corpus), bar), fraction, recipe.seed)
    return _Chosen(corpus, weight, choice, official is not None,
                   choice.held_out if official is None else list(official))


def _mixture(chosen: list[_Chosen], train: list[int], val: list[int] | None) -> list[dict[str, Any]]:
    """The entries of the report. Raises CheckError if one has nothing to train on."""
    for c, n in zip(chosen, train):
        check(n > 0, "each corpus of a mixture must hold text on the training side",
              f"nothing but repeats of the other side in {c.corpus}", "leave it out, or give more text")
    return [{"corpus": c.corpus, "weight": c.weight, "train_tokens": n, "val_tokens": m}
            for c, n, m in zip(chosen, train, val or [0] * len(chosen))]


def _named_validation(corpus: str) -> Iterator[str]:
    """The documents of a text named for validation: of the official part, if it has one, else all.

    Raises CheckError for a dataset, for more than LARGEST_VAL bytes, and as `corpus.documents`.
    """
    check(not is_dataset(corpus), "a validation text must be text", f"the dataset {corpus}",
          "name the text that it was made of")
    size = 0
    for text in validation_documents(corpus) or documents(corpus):
        size += len(text.encode("utf-8"))
        check(size <= LARGEST_VAL, f"a validation text must have at most {LARGEST_VAL} bytes",
              f"more in {corpus}", "name less of it")
        yield text


def _write_side(folder: Path, side: str, sources: Iterable[Iterable[str]], own: Tokenizer
               ) -> tuple[dict[str, int], list[int]]:
    """Write <side>.bin and <side>.txt; returns their counts, and the tokens of each source.

    Raises CheckError if there is no text.
    """
    tokens: list[int] = []
    with whole_file(folder / f"{side}.txt") as file:
        def copied(docs: Iterable[str]) -> Iterator[str]:
            for text in docs:
                file.write(text.encode("utf-8"))
                yield text

        def encoded() -> Iterator[tuple[np.ndarray, int]]:
            for docs in sources:
                tokens.append(0)
                for ids, size in tokenizer.encode_documents(copied(docs), own):
                    tokens[-1] += len(ids) + 1             # its EOS
                    yield ids, size

        head = write_shard(folder / f"{side}.bin", encoded(), own.vocab_size, own.eos, own.checksum).header
    check(head.documents > 0, f"the {side} side must hold text", "nothing but repeats of the other side",
          "give more text, or val_fraction 0")
    return {"documents": head.documents, "text_bytes": head.text_bytes, "tokens": head.tokens}, tokens


def _cleaned(docs: Iterable[str], known: split.Spans, removed: list[int]) -> Iterator[str]:
    """The documents without their repeats; the bytes cut are added to removed[0]."""
    for text in docs:
        rest = split.without_repeats(text, known)
        if len(rest) < len(text):
            removed[0] += len(text.encode("utf-8")) - len(rest.encode("utf-8"))
        if rest:
            yield rest


def _sample(docs: Iterator[str], text_bytes: int, seed: int, share: float) -> Iterator[str]:
    """About `share` of SAMPLE bytes, from all over the documents: by a hash of another key than the split's.
    """
    most = min(1.0, share * SAMPLE / max(1, text_bytes)) * 2**64
    return (text for text in docs if split.document_hash(text, seed ^ (1 << 64) - 1) < most)


def _bar(verb: str, progress: bool, total: int | None = None) -> tqdm:
    """A bar of bytes on stderr, for a `with` around the work: it is closed before an error is printed."""
    return tqdm(desc=verb, total=total, unit="B", unit_scale=True, disable=not progress)


def _counted(docs: Iterator[str], bar: tqdm) -> Iterator[str]:
    """The documents, their bytes added to `bar`."""
    for text in docs:
        yield text
        bar.update(len(text.encode("utf-8")))
