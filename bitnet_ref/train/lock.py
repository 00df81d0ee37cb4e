"""One trainer at a time in a run's folder: a lock of the operating system, which ends with its process.

The file .lock says who holds it, for the message; the lock itself is the kernel's, so that a trainer killed
by SIGKILL or a power cut leaves none behind. A file system without locks (some network ones) is said on
stderr: there, nothing but care keeps two trainers apart.
Read after: train/computed. Read next: train/parallel.
"""

import os
import socket
import sys
from contextlib import suppress
from io import FileIO
from pathlib import Path
from weakref import WeakValueDictionary

from bitnet_ref.checks import CheckError

LOCK = ".lock"
FAR = 1 << 30                                # Windows locks bytes, and nobody else could read these
_held: WeakValueDictionary[Path, "Lock"] = WeakValueDictionary()      # of this process


class Lock:
    """The right to write in a run's folder, until it is released or nobody has this object any more."""

    def __init__(self, file: FileIO) -> None:
        self.file = file

    def release(self) -> None:
        """Let others train there. Twice is once."""
        self.file.close()

    __del__ = release


def hold(folder: Path) -> Lock:
    """The lock of `folder`, which must exist; in one process there is one, however often it is asked for.

    Raises CheckError where another process has it, or the folder is not writable.
    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> lock = hold(folder); hold(folder) is lock       # one in a process; another process is refused
    True
    >>> lock.release(); (folder / LOCK).unlink(); folder.rmdir()
    """
    place = folder.resolve()
    mine = _held.get(place)
    if mine is not None and not mine.file.closed:
        return mine
    try:
        file = open(place / LOCK, "a+b", buffering=0)               # noqa: SIM115  (open as long as held)
    except OSError as e:
        raise CheckError(f"the run folder must be writable; got {e}; "
                         "make room, change its rights, or copy it") from None
    try:
        _lock(file)
    except OSError as e:
        if isinstance(e, BlockingIOError | PermissionError):
            file.seek(0)
            who = file.read(200).decode("utf-8", "replace") or "another process"
            file.close()
            raise CheckError(f"a run must have one trainer at a time; got {who}, which trains in {folder}; "
                             "wait for it, or end it first") from None
        print(f"{folder}: its file system has no locks ({e.strerror}); start no second trainer there",
              file=sys.stderr)
    lock = _held[place] = Lock(file)
    _sign(file)
    return lock


def _lock(file: FileIO) -> None:
    """Raises BlockingIOError or PermissionError if another process has it, another OSError without locks."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sign(file: FileIO) -> None:
    """Say who holds it. On a full disk the lock is anonymous."""
    with suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
