"""A file that appears whole or not at all.

Everything in data/ that is written goes through here: to a temporary name beside the goal, flushed to the
disk, then renamed. A crash, a full disk or Ctrl-C leaves the old file (or none), and no half of a new one.
Read after: data. Read next: data/download.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bitnet_ref.checks import CheckError


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a seekable binary file that becomes `path` when the block ends without an exception.

    Missing parent folders are made. Raises CheckError where the system refuses to write (no space, no
    permission); any other exception of the block passes through. Both ways the temporary file is removed.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
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


def unwritable(path: str | Path, e: OSError) -> CheckError:
    """The system's refusal to write, in three parts."""
    return CheckError(f"{path} must be writable; got {e.strerror or e}; free space or choose another place")


def unreadable(path: str | Path, e: OSError, fix: str = "check the path and its rights") -> CheckError:
    """The system's refusal to read, in three parts."""
    return CheckError(f"{path} must be a readable file; got {e.strerror or e}; {fix}")
