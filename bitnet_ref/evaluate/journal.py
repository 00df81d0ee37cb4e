"""Rows of an evaluation, kept as they come, so that an interrupted one goes on where it was.

A line of JSON each, at the end of a file. Every line says under which model, data and options it was made:
others are refused, never mixed, and left as they are. A last line that was cut off is made again.
Read after: evaluate/sandbox. Read next: evaluate/humaneval.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from bitnet_ref.checks import check
from bitnet_ref.data.atomic import held_in, unwritable
from bitnet_ref.evaluate.lines import LARGEST, rows_in

UNDER = "under"


def digest(*facts: Any) -> str:
    """A short checksum of what rows depend on: JSON of `facts`.

    >>> digest("weights", {"stride": 8})
    '86229bbbdc03fc69'
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()[:16]


class Journal:
    """`rows` that are there already, and `add` for the next. Without a path nothing is kept.

    Raises CheckError: made under other facts than `under`, no journal, not readable, not writable.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "rows")
    >>> Journal(path, "abc").add({"n": 1})
    >>> Journal(path, "abc").rows
    [{'n': 1}]
    """

    def __init__(self, path: str | Path | None, under: str) -> None:
        self.path, self.under = None if path is None else Path(path), under
        self.rows: list[dict[str, Any]] = []
        if self.path is not None and self.path.exists():
            held = held_in(self.path, LARGEST, "a journal", "give another file")
            whole = held.rfind(b"\n") + 1                  # what stands behind it: its writer was stopped
            for where, row in rows_in(held[:whole], str(self.path)):
                check(row.pop(UNDER, None) == under, f"{where} must be of the same model, data and options",
                      "others", "give another file, or delete this one")
                self.rows.append(row)
            begin, rest = self._begin(), held[whole:]
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


def _cut(path: Path, size: int) -> None:
    try:
        os.truncate(path, size)
    except OSError as e:
        raise unwritable(path, e) from None
