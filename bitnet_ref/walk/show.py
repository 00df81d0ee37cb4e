"""The source of a function as the result of a cell: a notebook shows the code that runs, never a copy of it.

A docstring is shown too: it has the shapes. Its examples are left out, the API has them. In a notebook the
source is coloured; elsewhere it is text.
Read after: walk. Read next: walk/puzzle.
"""

import html
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet_ref.checks import check

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 100                # of what a cell prints: a page has about so many
EXAMPLES = re.compile(r'\n(?:[ \t]*\n)*[ \t]*>>>(?:.*\n(?![ \t]*(?:"""|\n)))*.*')     # with what they print
ALONE = re.compile(r'^([ \t]*r?"""[^"\n]*)\n[ \t]*"""$', flags=re.MULTILINE)
STYLE = "font: 0.9em monospace; white-space: pre; overflow-x: auto"       # on a phone too, a line is a line


@dataclass(frozen=True, repr=False)
class Lines:
    """Text whose lines stay lines: a page that is too narrow scrolls, and does not break them."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f'<pre style="{STYLE}">{html.escape(self.text)}</pre>'


class Source(Lines):
    """Some functions as they stand in the library."""

    def _repr_html_(self) -> str:
        """Coloured by what colours the cells, on the ground and in the ink of the page."""
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        style = HtmlFormatter(noclasses=True, nobackground=True, prestyles=STYLE)
        return highlight(self.text, PythonLexer(), style)


def show(*functions: Callable[..., Any]) -> Source:
    """The source of `functions`, each below the file and the line where it begins.

    Raises CheckError for what is not a function, class or module of Python.
    >>> show(show).text.splitlines()[1]
    'def show(*functions: Callable[..., Any]) -> Source:'
    """
    return Source("\n\n".join([_one(f) for f in functions]))


def wrapped(text: object) -> str:
    """`text` in lines that fit below a cell; what goes on is indented.

    >>> print(wrapped(10 * "ten letters " + "end"))
    ten letters ten letters ten letters ten letters ten letters ten letters ten letters ten letters ten
        letters ten letters end
    """
    return "\n".join(textwrap.fill(line, COLUMNS, subsequent_indent="    ", break_on_hyphens=False)
                     for line in str(text).splitlines())


def _one(function: Any) -> str:
    for kept in ("py_func", "function"):                   # by what Numba compiles, by a kernel for a card
        function = getattr(function, kept, function)
    try:
        lines, first = inspect.getsourcelines(function)
        file = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
    except (TypeError, OSError):
        check(False, "what is shown must be a function, class or module written in Python",
              repr(function)[:80], "give its name without quotes and without brackets")
        raise AssertionError from None
    inside = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
    return f"# {inside}, line {max(first, 1)}\n{_plain(''.join(lines).rstrip())}"


def _plain(source: str) -> str:
    """Without the examples in docstrings; one of which nothing but a line is left is that line."""
    left = EXAMPLES.sub("", source)
    return source if left == source else ALONE.sub(r'\1"""', left)
