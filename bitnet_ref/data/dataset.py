"""A dataset: both sides of a corpus as token shards, their text, the tokenizer and a report, in one folder.

Two passes over the documents, each a stream: the first chooses the validation side and measures, the second
cuts repeats from the training side and writes. (A tokenizer to train adds a pass over a bounded sample.)
Memory is that of the validation side, whatever the size of the corpus. The folder is built under another name
and renamed when whole.
Read after: data/batches. Read next: data/prepare.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data import split, tokenizer
from bitnet_ref.data.atomic import unwritable, whole_file
from bitnet_ref.data.corpus import documents, validation_documents
from bitnet_ref.data.shards import Shard, open_shard, write_shard
from bitnet_ref.data.tokenizer import Tokenizer

FORMAT, VERSION = "bitnet_ref.dataset", 1
MANIFEST = "dataset.json"       # written last: a folder that has it is whole
SAMPLE = 1 << 24                # bytes of UTF-8: about how much text a tokenizer is trained on at most
FIX = "make it with python -m bitnet_ref.data"


class Recipe(NamedTuple):
    """All that a dataset depends on."""

    corpus: str
    tokenizer: Tokenizer | None = None          # None: train one of `vocab_size` entries on the training side
    vocab_size: int = 4096
    val_fraction: float = 0.05                  # of the documents, held out if there is no official part
    seed: int = 0                               # which ones


class Dataset(NamedTuple):
    """An open dataset. `val` is None if nothing was held out; `report` is the content of dataset.json."""

    folder: Path
    train: Shard
    val: Shard | None
    tokenizer: Tokenizer
    report: dict[str, Any]

    @property
    def train_text(self) -> Path:
        """The UTF-8 text that the training shard spells: its documents end to end, nothing between them."""
        return self.folder / "train.txt"

    @property
    def val_text(self) -> Path:
        """The same of the validation side, for compressors to be compared with."""
        return self.folder / "val.txt"


def is_dataset(folder: str | Path) -> bool:
    """Whether a whole dataset lies there."""
    return os.path.isfile(os.path.join(folder, MANIFEST))


def open_dataset(folder: str | Path, verify: bool = False) -> Dataset:
    """The dataset in `folder`; `verify` reads the shards and checks their sums.

    Raises CheckError: no dataset, another version, parts that are missing, damaged or do not belong together.
    """
    folder = Path(folder)
    report = read_manifest(folder / MANIFEST)
    own = tokenizer.load(folder)
    train = open_shard(folder / "train.bin", verify)
    val = open_shard(folder / "val.bin", verify) if "val" in report else None
    for header in (side.header for side in (train, val) if side):
        check((header.tokenizer_sha256, header.vocab_size) == (own.checksum, own.vocab_size),
              f"the shards in {folder} must be made with the tokenizer there, {own.checksum[:12]}",
              header.tokenizer_sha256[:12], FIX)
    return Dataset(folder, train, val, own, report)


def read_manifest(path: Path) -> dict[str, Any]:
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


def _fill(folder: Path, recipe: Recipe, progress: bool) -> None:
    """Both passes; every file of the dataset is written here, the manifest last."""
    official = validation_documents(recipe.corpus)
    fraction = recipe.val_fraction if official is None else 0.0
    with _bar("reading", progress) as bar:
        choice = split.choose(_counted(documents(recipe.corpus), bar), fraction, recipe.seed)
    held_out = choice.held_out if official is None else list(official)
    known, removed = split.spans(held_out), [0]

    def training() -> Iterator[str]:
        return split.training_side(documents(recipe.corpus), choice, recipe.seed)

    own = recipe.tokenizer or tokenizer.train_bpe(
        _cleaned(_sample(training(), choice.text_bytes, recipe.seed), known, [0]), recipe.vocab_size)
    own.save(folder / "tokenizer.json")
    with _bar("writing", progress, choice.text_bytes) as bar:
        train = write_side(folder, "train", _cleaned(_counted(training(), bar), known, removed), own)
    report = {"format": FORMAT, "version": VERSION, "corpus": recipe.corpus, "vocab_size": own.vocab_size,
              "val_fraction": recipe.val_fraction, "seed": recipe.seed,
              "official_split": official is not None, "train": train, "repeats_removed_bytes": removed[0]}
    if held_out:
        report["val"] = write_side(folder, "val", held_out, own)
    with whole_file(folder / MANIFEST) as file:
        file.write(json.dumps(report, indent=1).encode("utf-8"))


def write_side(folder: Path, side: str, docs: Iterable[str], own: Tokenizer) -> dict[str, int]:
    """Write <side>.bin and <side>.txt; returns their counts. Raises CheckError if there is no text."""
    with whole_file(folder / f"{side}.txt") as file:
        def copied() -> Iterator[str]:
            for text in docs:
                file.write(text.encode("utf-8"))
                yield text

        head = write_shard(folder / f"{side}.bin", tokenizer.encode_documents(copied(), own), own.vocab_size,
                           own.eos, own.checksum).header
    check(head.documents > 0, f"the {side} side must hold text", "nothing but repeats of the other side",
          "give more text, or val_fraction 0")
    return {"documents": head.documents, "text_bytes": head.text_bytes, "tokens": head.tokens}


def _cleaned(docs: Iterable[str], known: split.Spans, removed: list[int]) -> Iterator[str]:
    """The documents without their repeats; the bytes cut are added to removed[0]."""
    for text in docs:
        rest = split.without_repeats(text, known)
        if len(rest) < len(text):
            removed[0] += len(text.encode("utf-8")) - len(rest.encode("utf-8"))
        if rest:
            yield rest


def _sample(docs: Iterator[str], text_bytes: int, seed: int) -> Iterator[str]:
    """About SAMPLE bytes of the documents, from all over: by a hash with another key than the split's."""
    most = min(1.0, SAMPLE / max(1, text_bytes)) * 2**64
    return (text for text in docs if split.document_hash(text, seed ^ (1 << 64) - 1) < most)


def _bar(verb: str, progress: bool, total: int | None = None) -> tqdm:
    """A bar of bytes on stderr, for a `with` around the work: it is closed before an error is printed."""
    return tqdm(desc=verb, total=total, unit="B", unit_scale=True, disable=not progress)


def _counted(docs: Iterator[str], bar: tqdm) -> Iterator[str]:
    """The documents, their bytes added to `bar`."""
    for text in docs:
        yield text
        bar.update(len(text.encode("utf-8")))
