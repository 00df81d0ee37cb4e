"""Docstrings as they are written, plain text with shapes, as reStructuredText that shows them so.

A line with an arrow between shapes stays as typed; `name` is code; stars, bars and underlines mean
themselves; an indented block is a block; `>>>` is an example; the commands that a header begins with can be
pasted; the header's `Read after ...` becomes links.
"""

import re

CODE = re.compile(r"`+([^`]+)`+|(?<![\w/])(docs/[\w/-]+\.md)")
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )?(?:python -m|mpiexec) ")
POINTERS = re.compile(r"\s*Read after: (\S+)\. Read next: (\S+)\.$")


def paragraphs(text: str) -> list[list[str]]:
    """Runs of lines of one kind: words, an indented block, an example."""
    runs: list[list[str]] = [[]]
    for line in text.splitlines():
        last = kind(runs[-1][0]) if runs[-1] else ""
        if not line.strip():
            runs.append([])
        elif last and kind(line) != last and last not in ">$":
            runs.append([line])
        else:
            runs[-1].append(line)
    return [run for run in runs if run]


def kind(line: str) -> str:
    """Whether it is words, or a sign for what is shown as it stands: an example, a command, a block."""
    return (">" if line.startswith(">>>") else "$" if COMMAND.match(line)
            else " " if line.startswith(" ") else "words")


def plain(text: str) -> str:
    return re.sub(r"([\\*|_`<])", r"\\\1", text)


def prose(text: str) -> str:
    """Words: code in backticks is code, all else is itself."""
    out, at = [], 0
    for match in CODE.finditer(text):
        out += [plain(text[at:match.start()]), f"\\ ``{match[1] or match[2]}``\\ "]
        at = match.end()
    return "".join(out) + plain(text[at:])


def to_rst(text: str) -> str:
    """A docstring, its indentation already cleaned, as reStructuredText."""
    parts = []
    for run in paragraphs(text):
        if run[0].startswith(">>>"):
            parts.append("\n".join(run))
        elif COMMAND.match(run[0]):
            parts.append(".. code-block:: sh\n\n" + "\n".join("   " + line for line in run))
        elif run[0].startswith(" "):
            parts.append("::\n\n" + "\n".join("   " + line for line in run))
        else:
            parts += flowing(run)
    return "\n\n".join(parts)


def flowing(run: list[str]) -> list[str]:
    """A paragraph, and the lines of shapes in it as they are."""
    parts, words = [], []
    for line in [*run, ""]:
        if words and line.startswith(("Port note:", "Source:")):
            parts.append(prose(" ".join(words)))
            words = []
        shapes = "  ->  " in line
        if words and (shapes or not line):
            parts.append(prose(" ".join(words)))
            words = []
        if shapes:                                         # what follows after a full stop is words again
            head, stop, rest = re.match(r"(.*?  ->  .*?)(?:(\.)\s{3}(.*))?$", line).groups()
            before = head.rpartition(".   ")
            words += [before[0] + "."] if before[1] else []
            parts += [prose(" ".join(words))] if words else []
            parts.append(f".. code-block:: none\n   :class: shapes\n\n   {before[2]}")
            words = [rest] if stop else []
        elif line:
            words.append(line)
    return parts
