"""What gzip and xz make of the validation text when they have been given the training text first.

Bits per byte = (compressed size of training + validation text, less that of the training text alone) /
validation bytes. gzip sees only the last 32 KiB of what came before; xz sees all of it (a 64 MiB dictionary),
so xz profits from every repeat over any distance.
Read after: evaluate/choice. Read next: evaluate/corpus.
"""

import gzip
import lzma
import os
from pathlib import Path

LIMIT = 1 << 26              # bytes of training text given: xz's dictionary, and a bound on memory


def compressed_bits_per_byte(train: bytes, val: bytes) -> dict[str, float]:
    """{"gzip -9": bits per byte, "xz -9": bits per byte} of `val` (not empty) after `train`.

    >>> found = compressed_bits_per_byte(b"a trit is a digit " * 9, b"a trit is a digit ")
    >>> max(found.values()) < 4                                # it is in the training text
    True
    """
    tools = {"gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
             "xz -9": lambda data: lzma.compress(data, preset=9)}
    return {name: 8 * (len(tool(train + val)) - len(tool(train))) / len(val) for name, tool in tools.items()}


def tail(path: Path) -> bytes:
    """The last 64 MiB of a text file: as much training text as xz can remember.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _, _ = file.write(b"a text"), file.flush()
    ...     tail(Path(file.name))
    b'a text'
    """
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - LIMIT))
        return f.read()
