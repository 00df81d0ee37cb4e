"""A file that appears whole or not at all.

Everything in data/ that is written goes through here: to a temporary name beside the goal, flushed to the
disk, then renamed. A crash, a full disk or Ctrl-C leaves the old file (or none), and no half of a new one.
Read after: data. Read next: data/download.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bitnet_ref.checks import CheckError, check


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a seekable binary file that becomes `path` when the block ends without an exception.

    Missing parent folders are made. Raises CheckError where the system refuses to write (no space, no
    permission); any other exception of the block passes through. Both ways the temporary file is removed.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     with whole_file(f"{d}/a") as file:
    ...         n_bytes, soon = file.write(b"text"), os.path.exists(f"{d}/a")
    ...     soon, os.path.exists(f"{d}/a")
    (False, True)
    """
    path, part = _places(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as e:
        raise unwritable(path, e) from e
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the block ends without an exception.

    Raises CheckError unless `path` is new or an empty folder, and where the system refuses; nothing stays.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     with whole_folder(f"{d}/model") as part:
    ...         part.joinpath("config.json").touch()
    ...     os.listdir(f"{d}/model")
    ['config.json']
    """
    path, part = _places(path)
    try:
        check(not path.exists() or (path.is_dir() and not any(path.iterdir())),
              "the folder to write must be new or empty", path, "give another, or delete it")
        part.mkdir(parents=True)
        yield part
        if path.exists():
            path.rmdir()
        part.rename(path)
    except OSError as e:
        raise unwritable(path, e) from e
    except CheckError as e:
        if isinstance(e.__cause__, OSError) and str(part) in str(e):     # a file in it: the folder is refused
            raise unwritable(path, e.__cause__) from e.__cause__
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _places(path: str | Path) -> tuple[Path, Path]:
    """The goal, and the temporary name there. Raises CheckError where it has none, as a root."""
    goal = Path(path).absolute()                           # "." has no name before
    check(goal.name not in ("", ".."), "what is written must have a name", path,
          "give a new name in a folder")
    return Path(path), goal.with_name(f".{goal.name}.{secrets.token_hex(4)}.part")


def held_in(path: str | Path, most: int, what: str, smaller: str,
            fix: str = "check the path and its rights") -> bytes:
    """The bytes of a regular file, `most` at most: a pipe or device may never end, and is refused unopened.

    Raises CheckError, which calls the file `what`; `smaller` and `fix`: what to do about a larger one, and
    about one that cannot be read.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.txt").write_text("text")
    ...     held_in(f"{d}/a.txt", most=100, what="a note", smaller="shorten it")
    b'text'
    """
    try:
        check_regular(path, fix)
        with open(path, "rb") as file:
            held = file.read(most + 1)
    except OSError as e:
        raise unreadable(path, e, fix) from None
    check(len(held) <= most, f"{what} must have at most {most} bytes", f"more in {path}", smaller)
    return held


def check_regular(path: str | Path, fix: str = "check the path and its rights") -> None:
    """Raises CheckError for a folder, pipe or device, and OSError where there is nothing.
    >>> check_regular(__file__)
    >>> check_regular("/")
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: / must be a readable file; got a folder, pipe or device; check the path
    and its rights
    """
    check(stat.S_ISREG(os.stat(path).st_mode), f"{path} must be a readable file",
          "a folder, pipe or device", fix)


def unwritable(path: str | Path, e: OSError) -> CheckError:
    """The system's refusal to write, in three parts.
    >>> print(unwritable("a.txt", OSError(28, "No space left on device")))
    a.txt must be writable; got No space left on device; free space or choose another place
    """
    return CheckError(f"{path} must be writable; got {e.strerror or e}; free space or choose another place")


def unreadable(path: str | Path, e: OSError, fix: str = "check the path and its rights") -> CheckError:
    """The system's refusal to read, in three parts.
    >>> print(unreadable("a.txt", FileNotFoundError(2, "No such file or directory")))
    a.txt must be a readable file; got No such file or directory; check the path and its rights
    """
    return CheckError(f"{path} must be a readable file; got {e.strerror or e}; {fix}")
