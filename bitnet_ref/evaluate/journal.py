"""Rows of an evaluation, kept as they come, so that an interrupted one goes on where it was.

A line of JSON each, at the end of a file. Every line says under which model, data and options it was made:
others are refused, never mixed, and left as they are. A last line that was cut off is made again.
Read after: evaluate/sandbox. Read next: evaluate/humaneval.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import check_regular, unreadable, unwritable

LARGEST = 1 << 28                                          # bytes of a file
LONGEST = 1 << 22                                          # bytes of a line
UNDER = "under"


def digest(*facts: Any) -> str:
    """A short checksum of what rows depend on: JSON of `facts`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()[:16]


class Journal:
    """`rows` that are there already, and `add` for the next. Without a path nothing is kept.

    Raises CheckError: made under other facts than `under`, no journal, not readable, not writable.
    """

    def __init__(self, path: str | Path | None, under: str) -> None:
        self.path, self.under = None if path is None else Path(path), under
        self.rows: list[dict[str, Any]] = []
        if self.path is not None and self.path.exists():
            whole, rest = _ends(self.path)
            for where, row in rows_of(self.path, whole):
                check(row.pop(UNDER, None) == under, f"{where} must be of the same model, data and options",
                      "others", "give another file, or delete this one")
                self.rows.append(row)
            begin = self._begin()
            check(begin.startswith(rest[:len(begin)]), f"{self.path} must be a file of this evaluation",
                  "another", "give another file")
            if rest:
                _cut(self.path, whole)

    def add(self, row: dict[str, Any]) -> None:
        """One more row, on the disk before the next is made."""
        self.rows.append(row)
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "ab") as f:
                    f.write(json.dumps({UNDER: self.under, **row}).encode("ascii") + b"\n")
            except OSError as e:
                raise unwritable(self.path, e) from None

    def _begin(self) -> bytes:
        """How each line begins, and half a line as far as it goes."""
        return json.dumps({UNDER: self.under})[:-1].encode("ascii")


def rows_of(path: Path, end: int = LARGEST) -> Iterator[tuple[str, dict[str, Any]]]:
    """("line 3 of path", object) of a file of JSON lines, to the byte `end`. Raises CheckError naming file
    and line."""
    fix = "correct or remove the line"
    try:
        check_regular(path)
        size = os.path.getsize(path)
        check(size <= LARGEST, f"{path} must have at most {LARGEST} bytes", size, "give fewer lines")
        with open(path, "rb") as f:
            for n, line in enumerate(iter(lambda: f.readline(min(LONGEST + 1, end - f.tell())), b""), 1):
                check(len(line) <= LONGEST, f"a line must have at most {LONGEST} bytes",
                      f"more in line {n} of {path}", fix)
                if line.strip():
                    yield f"line {n} of {path}", object_in(line, f"line {n} of {path}")
    except OSError as e:
        raise unreadable(path, e) from None


def object_in(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a line; `where` names it in errors."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise CheckError(f"{where} must be JSON; got {str(e)[:100]}; correct or remove the line") from None
    check(isinstance(row, dict), f"{where} must be a JSON object", type(row).__name__, "correct the line")
    return row


def _ends(path: Path) -> tuple[int, bytes]:
    """(where the last whole line ends, what stands behind it: its writer was stopped)."""
    try:
        check_regular(path)
        with open(path, "rb") as f:
            start = f.seek(max(0, os.path.getsize(path) - LONGEST))
            held = f.read()
    except OSError as e:
        raise unreadable(path, e) from None
    whole = held.rfind(b"\n") + 1
    return start + whole, held[whole:]


def _cut(path: Path, size: int) -> None:
    try:
        os.truncate(path, size)
    except OSError as e:
        raise unwritable(path, e) from None
