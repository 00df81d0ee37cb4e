"""Docstrings as they are written, plain text with shapes, as reStructuredText that shows them so.

A line with an arrow between shapes stays as typed; `name` is code; stars, bars and underlines mean themselves; an
indented block is a block; `>>>` is an example; the header's `Read after ...` becomes links.
"""

import re

CODE = re.compile(r"`+([^`]+)`+")
POINTERS = re.compile(r"\s*Read after: (\S+)\. Read next: (\S+)\.$")


def paragraphs(text: str) -> list[list[str]]:
    """Runs of lines without an empty one between; of lines alike indented or not."""
    runs: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.strip():
            runs.append([])
        elif runs[-1] and runs[-1][0].startswith(" ") != line.startswith(" ") and not runs[-1][0].startswith(">>>"):
            runs.append([line])
        else:
            runs[-1].append(line)
    return [run for run in runs if run]


def plain(text: str) -> str:
    return re.sub(r"([\\*|_`<])", r"\\\1", text)


def prose(text: str) -> str:
    """Words: code in backticks is code, all else is itself."""
    out, at = [], 0
    for match in CODE.finditer(text):
        out += [plain(text[at:match.start()]), f"\\ ``{match[1]}``\\ "]
        at = match.end()
    return "".join(out) + plain(text[at:])


def to_rst(text: str) -> str:
    """A docstring, its indentation already cleaned, as reStructuredText."""
    parts = []
    for run in paragraphs(text):
        if run[0].startswith(">>>"):
            parts.append("\n".join(run))
        elif run[0].startswith(" "):
            parts.append("::\n\n" + "\n".join("   " + line for line in run))
        else:
            parts += flowing(run)
    return "\n\n".join(parts)


def flowing(run: list[str]) -> list[str]:
    """A paragraph, and the lines of shapes in it as they are."""
    parts, words = [], []
    for line in [*run, ""]:
        shapes = "  ->  " in line
        if words and (shapes or not line):
            parts.append(prose(" ".join(words)))
            words = []
        if shapes:
            parts.append(f".. code-block:: none\n   :class: shapes\n\n   {line}")
        elif line:
            words.append(line)
    return parts
