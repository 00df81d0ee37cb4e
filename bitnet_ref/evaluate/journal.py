"""Rows of an evaluation, kept as they come, so that an interrupted one goes on where it was.

A line of JSON each, at the end of a file. Every line says under which model, data and options it was made:
others are refused, never mixed. A last line that was cut off in the middle is made again.
Read after: evaluate/sandbox. Read next: evaluate/humaneval.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable, unwritable

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
            _drop_half_a_line(self.path)
            for where, row in rows_of(self.path):
                check(row.pop(UNDER, None) == under, f"{where} must be of the same model, data and options",
                      "others", "give another file, or delete this one")
                self.rows.append(row)

    def add(self, row: dict[str, Any]) -> None:
        """One more row, on the disk before the next is made."""
        self.rows.append(row)
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "ab") as f:
                    f.write(json.dumps({**row, UNDER: self.under}).encode("ascii") + b"\n")
            except OSError as e:
                raise unwritable(self.path, e) from None


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("line 3 of path", object) of a file of JSON lines. Raises CheckError naming file and line."""
    fix = "correct or remove the line"
    try:
        size = os.path.getsize(path)
        check(size <= LARGEST, f"{path} must have at most {LARGEST} bytes", size, "give fewer lines")
        with open(path, "rb") as f:
            for n, line in enumerate(iter(lambda: f.readline(LONGEST + 1), b""), 1):
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


def _drop_half_a_line(path: Path) -> None:
    """What stands after the last line end was being written when its writer was stopped."""
    try:
        with open(path, "r+b") as f:
            f.seek(max(0, os.path.getsize(path) - LONGEST))
            start, end = f.tell(), f.read()
            if end and not end.endswith(b"\n"):
                f.truncate(start + end.rfind(b"\n") + 1)
    except OSError as e:
        raise unreadable(path, e) from None
