"""The prompt of a command: typed, from a file, or from stdin.

All of it is read before a model is loaded, so that what cannot be read is said at once; UTF-8 is asked for,
whatever the terminal speaks.
Read after: generate/language_model. Read next: generate/__main__.
"""

import sys
from pathlib import Path
from typing import TextIO

from bitnet_ref.checks import CheckError, check


def stdin() -> TextIO:
    """What is typed or piped in. Raises CheckError where the shell closed it.

    >>> stdin() is sys.stdin
    True
    """
    check(sys.stdin is not None, "stdin must be open", "none", "pipe text in, or leave out <&-")
    return sys.stdin


def read_prompt(given: str | None, flag: str | None, file: str | None) -> str:
    """The prompt as typed, or the text of a UTF-8 file, or of stdin where file or the typed word is "-".

    Raises CheckError for what cannot be read, or is no UTF-8.

    >>> read_prompt("A module is", flag=None, file=None)
    'A module is'
    """
    if file is None and given != "-":
        return given or flag or ""
    try:
        data = Path(file).read_bytes() if file not in (None, "-") else stdin().buffer.read()
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CheckError(f"the prompt file must be readable UTF-8 text; got {e}; give another file") from None
