"""Files of JSON objects, one a line: questions, problems, samples, journals; perhaps packed by gzip.

They come from strangers: their size is bounded, packed and unpacked, and an error names file and line.
Read after: evaluate/likelihood. Read next: evaluate/tasks.
"""

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import held_in

LARGEST = 1 << 28                                          # bytes of a file, unpacked
LONGEST = 1 << 22                                          # bytes of a line
MOST = 1 << 20                                             # lines, empty ones too
FIX = "correct the line, or leave it out"
Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Of a file, packed or not, as rows_in. Raises CheckError: unreadable, too large; of a line as rows_in.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "samples.jsonl")
    >>> _ = path.write_text('{"task_id": "a/1"}')
    >>> [row for where, row in read_rows(path)]
    [{'task_id': 'a/1'}]
    """
    held = held_in(path, LARGEST, "a file of lines", "give fewer lines")
    return rows_in(unpacked(held, path, LARGEST, "a file of lines"), str(path))


def rows_in(data: bytes, name: str) -> Iterator[tuple[str, Row]]:
    """("line N of NAME", object) of each line that is not empty. Raises CheckError: no JSON, no object, too
    long, too many.

    >>> list(rows_in(b'{"n": 1}\\n\\n{"n": 2}', "a.jsonl"))
    [('line 1 of a.jsonl', {'n': 1}), ('line 3 of a.jsonl', {'n': 2})]
    """
    held = io.BytesIO(data)                                # a line at a time: a file may be nothing but ends
    for n in itertools.count(1):
        line = held.readline(LONGEST + 1)
        if not line:
            return
        if len(line) > LONGEST and line[-1:] != b"\n":
            raise CheckError(f"a line must have at most {LONGEST} bytes; "
                             f"got more in line {n} of {name}; {FIX}")
        if n > MOST:
            raise CheckError(f"{name} must have at most {MOST} lines; got more; give fewer lines")
        if line.isspace():
            continue
        where = f"line {n} of {name}"
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
