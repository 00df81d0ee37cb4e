"""Named corpora: where their files are, and the checks before a byte of them is believed.

A file is looked for in $BITNET_REF_DATA/<corpus>/, then in the cache, then downloaded into the cache. What
is published with a checksum is verified at every use; for the rest the sha256 seen at the first download is
printed, recorded beside the file, and other content is refused from then on (trust on first use). Nothing
partial stays on the disk.
Read after: data/atomic. Read next: data/python_docs.
"""

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.config import cache_dir
from bitnet_ref.data.atomic import unreadable, unwritable, whole_file

CHUNK = 1 << 18                 # bytes per read: small enough that a size limit stops a stream early
TIMEOUT = 30.0                  # seconds without an answer from the server
DATA, MIRROR = "BITNET_REF_DATA", "BITNET_REF_MIRROR"


class File(NamedTuple):
    """A published file. `size` in bytes: exact if `sha256` (hex) is known, else the most that is accepted."""

    url: str
    size: int
    sha256: str | None

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[1]


_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
_STORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"

# corpus -> part -> file: "train" is what `documents` reads, "valid" the official validation part, if any.
NAMED: dict[str, dict[str, File]] = {
    "wikitext-2": {
        "train": File(_WIKITEXT + "train.txt", 10_797_148,
                      "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f"),
        "valid": File(_WIKITEXT + "valid.txt", 1_121_681,
                      "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
        "test": File(_WIKITEXT + "test.txt", 1_256_449,
                     "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
    },
    # The validation file of TinyStories serves as the whole corpus (the training file has 1.9 GB).
    "tinystories": {"train": File(_STORIES + "TinyStories-valid.txt", 1 << 26, None)},
}


def named_files(corpus: str, part: str = "train") -> list[Path]:
    """The verified files of one part of a named corpus; downloaded if neither data folder nor cache has them.

    Raises CheckError: unknown name or part, a checksum that differs, a download that fails.
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> with TemporaryDirectory() as d, patch.dict("os.environ", BITNET_REF_DATA=d):
    ...     Path(d, "tinystories").mkdir()
    ...     Path(d, "tinystories", "part.txt").touch()
    ...     [path.name for path in named_files("tinystories")]
    ['part.txt']
    """
    file = lookup(lookup(NAMED, corpus, "corpus"), part, f"part of {corpus}")
    if found := _local_files(corpus, file):
        return found
    cached = cache_dir() / corpus / file.name
    if cached.is_file():
        _verify(cached, _expected_sha256(cached, file))
    else:
        download(file, cached, address(corpus, file))
    return [cached]


def _local_files(corpus: str, file: File) -> list[Path]:
    """What $BITNET_REF_DATA/<corpus>/ has of `file`: the file of that name, verified.

    Where no checksum is known any .txt serves, except names in capitals (SOURCE.txt): those describe.
    """
    root = os.environ.get(DATA)
    if not root:
        return []
    folder = Path(root, corpus)
    if file.sha256 is None:
        return sorted(path for path in folder.glob("*.txt") if not path.stem.isupper())
    path = folder / file.name
    if not path.is_file():
        return []
    _verify(path, file.sha256)
    return [path]


def download(file: File, to: Path, url: str) -> None:
    """Fetch `url`, verify that it is `file`, and put it at the path `to`; on failure nothing is left there.

    Raises CheckError: no answer, an HTTP error, a body too short, too long, or not what its checksum says.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("text")
    ...     file = File(Path(d, "a.txt").as_uri(), 4, sha256_of(Path(d, "a.txt")))
    ...     download(file, Path(d, "b.txt"), file.url)
    ...     Path(d, "b.txt").read_text()
    'text'
    """
    print(f"downloading {url}", file=sys.stderr)
    expected = _expected_sha256(to, file)
    with whole_file(to) as out:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
                seen = _receive(reply, out, file, url, to)
        except (OSError, http.client.HTTPException) as e:
            code = f"HTTP {e.code} " if isinstance(e, urllib.error.HTTPError) else ""
            raise CheckError(f"{url} must be reachable; got {code}{getattr(e, 'reason', None) or repr(e)}; "
                             f"go online, or put the file at {to}") from e
        check(expected in (None, seen), f"{url} must have sha256 {expected}", seen,
              "try again later: this is not the file that was published")
    if expected is None:
        print(f"{file.name} has no published checksum; its sha256 is {seen} (recorded, required from now on)",
              file=sys.stderr)
        with whole_file(_note(to)) as note:
            note.write(f"{seen}\n".encode("ascii"))


def _receive(reply: http.client.HTTPResponse, out: BinaryIO, file: File, url: str, to: Path) -> str:
    """Copy the body of `reply` to `out`, the later `to`, at most `file.size` bytes; returns its sha256."""
    got, digest = 0, hashlib.sha256()
    while chunk := reply.read(CHUNK):
        got += len(chunk)
        check(got <= file.size, f"{url} must have at most {file.size} bytes", f"{got} or more",
              "try again later: this is not the file that was published")
        digest.update(chunk)
        try:
            out.write(chunk)
        except OSError as e:                     # of the disk, not of the network
            raise unwritable(to, e) from e
    promised = reply.headers.get("Content-Length") or ""
    whole = file.size if file.sha256 else int(promised) if promised.isdecimal() else got
    check(0 < got == whole, f"{url} must have {whole or 'some'} bytes", got,
          "try again: the transfer broke off")
    return digest.hexdigest()


def address(corpus: str, file: File) -> str:
    """Where to ask for a file: at its url, or below $BITNET_REF_MIRROR/<corpus>/ if you have a mirror.
    >>> from unittest.mock import patch
    >>> with patch.dict("os.environ", BITNET_REF_MIRROR="https://mirror.example"):
    ...     address("tinystories", NAMED["tinystories"]["train"])
    'https://mirror.example/tinystories/TinyStories-valid.txt'
    """
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return file.url
    check(mirror.startswith(("http://", "https://")), f"{MIRROR} must be an http or https address", mirror,
          "correct or unset it")
    return f"{mirror.rstrip('/')}/{corpus}/{file.name}"


def _expected_sha256(path: Path, file: File) -> str | None:
    """The published checksum, else the one recorded when `path` was first downloaded, else None."""
    note = _note(path)
    if file.sha256 or not note.is_file():
        return file.sha256
    return note.read_text(encoding="ascii", errors="replace").strip()


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces. Raises CheckError if it cannot be read.
    >>> sha256_of(Path(os.devnull))[:16]                        # of nothing
    'e3b0c44298fc1c14'
    """
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise unreadable(path, e) from None


def _verify(path: Path, expected: str | None) -> None:
    if expected is not None:                    # None: put there by hand, nothing to compare with
        seen = sha256_of(path)
        check(seen == expected, f"{path} must have sha256 {expected}", seen,
              "delete the file: it is not the published one")


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
