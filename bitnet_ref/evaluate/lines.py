"""Files of JSON objects, one a line: questions, problems, samples, journals; perhaps packed by gzip.

They come from strangers: their size is bounded, packed and unpacked, and an error names file and line.
Read after: evaluate/likelihood. Read next: evaluate/tasks.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import held_in

LARGEST = 1 << 28                                          # bytes of a file, unpacked
LONGEST = 1 << 22                                          # bytes of a line
FIX = "correct the line, or leave it out"
Row = dict[str, Any]


def rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """Of a file, as rows_in. Raises CheckError: unreadable, too large; of a line as rows_in.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "samples.jsonl")
    >>> _ = path.write_text('{"task_id": "a/1"}')
    >>> [row for where, row in rows_of(path)]
    [{'task_id': 'a/1'}]
    """
    return rows_in(held_in(path, LARGEST, "a file of lines", "give fewer lines"), str(path))


def rows_in(data: bytes, name: str) -> Iterator[tuple[str, Row]]:
    """("line N of NAME", object) of each line that is not empty. Raises CheckError: no JSON, no object, too
    long.

    >>> list(rows_in(b'{"n": 1}\\n\\n{"n": 2}', "a.jsonl"))
    [('line 1 of a.jsonl', {'n': 1}), ('line 3 of a.jsonl', {'n': 2})]
    """
    for n, line in enumerate(data.split(b"\n"), 1):
        where = f"line {n} of {name}"
        check(len(line) <= LONGEST, f"a line must have at most {LONGEST} bytes", f"more in {where}", FIX)
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as e:
            raise CheckError(f"{where} must be JSON; got {str(e)[:100]}; {FIX}") from None
        check(isinstance(row, dict), f"{where} must be a JSON object", repr(row)[:50], FIX)
        yield where, row


def unpacked(held: bytes, path: Path, most: int, what: str) -> bytes:
    """The bytes of the file `path`, unpacked where its name or its first bytes say gzip. Raises CheckError,
    which calls the file `what`: damaged, or more than `most` bytes unpacked.

    >>> unpacked(gzip.compress(b"text"), Path("a.jsonl.gz"), 100, "a task")
    b'text'
    """
    if path.suffix != ".gz" and held[:2] != b"\x1f\x8b":
        return held
    try:
        data = gzip.GzipFile(fileobj=io.BytesIO(held)).read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise CheckError(f"{path} must be a whole gzip file; got {str(e)[:100]}; fetch it again") from None
    check(len(data) <= most, f"{what} must have at most {most} bytes", f"more in {path}, unpacked",
          "give a smaller part")
    return data
