"""The default corpus: the English that every Python carries, read where it stands and never copied.

The help topics of `pydoc` and the longer docstrings of the standard library. Source files are parsed, not
imported: importing would run them. The order is that of sorted names: the same Python gives the same text.
Read after: data/download. Read next: data/corpus.
"""

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SHORTEST = 200                  # characters: a shorter docstring is a label ("Return the name."), not prose
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip",
           "pydoc_data", "__pycache__", "__phello__"}


@cache
def python_docs(stdlib: Path | None = None) -> tuple[str, ...]:
    """The help topics, then the standard library's docstrings longer than SHORTEST characters; no repeats.

    `stdlib`: another folder of sources. Under 2 MB of text. Kept once read: parsing the library takes
    seconds, and a dataset needs several passes.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.py").write_text(repr("It says why. " * 16))
    ...     len(python_docs(Path(d))[-1])                       # the topics stand before it
    208
    """
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    texts = [*topics(), *(text for path in sources(root) for text in docstrings(path))]
    return tuple(text for text in dict.fromkeys(texts) if _is_unicode(text))


def topics() -> Iterator[str]:
    """The texts behind help("..."), by name. Some distributions leave them out: then there are none.
    >>> all(isinstance(text, str) for text in topics())
    True
    """
    try:
        from pydoc_data.topics import topics as table
    except ImportError:
        return
    for name in sorted(table):
        yield table[name]


def sources(root: Path) -> list[Path]:
    """The .py files below `root` that are neither tests nor other people's packages, sorted by their path.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     for name in ("b.py", "a.py", "notes.txt"):
    ...         Path(d, name).touch()
    ...     [path.name for path in sources(Path(d))]
    ['a.py', 'b.py']
    """
    files = (path for path in root.rglob("*.py") if not SKIPPED.intersection(path.relative_to(root).parts))
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def docstrings(path: Path) -> Iterator[str]:
    """One source file's docstrings longer than SHORTEST characters; none if it cannot be read or parsed.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     n = Path(d, "a.py").write_text(repr("It says why. " * 16))
    ...     [len(text) for text in docstrings(Path(d, "a.py"))]
    [208]
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # e.g. invalid escapes: not ours to mend
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
            if len(text) > SHORTEST:
                yield text


def _is_unicode(text: str) -> bool:
    """False for a docstring that quotes a lone surrogate: UTF-8 cannot carry it."""
    return not any("\ud800" <= c <= "\udfff" for c in text)
