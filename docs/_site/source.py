"""Every source file as a page: lines with numbers, its place in the reading line, its equations linked.

The reading line goes from file to file by next and previous; `# (RN.3)` in a comment leads to the equation.
"""

import ast
import html
import re
from functools import cache
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

from _site import ROOT
from _site.pages import reading_line

NAMED = re.compile(r"(?:tests|golden)/[\w/]+\.py|pyproject\.toml")
TAG = re.compile(r"\(([A-Z]{2})\.(\d+)\)")


@cache
def shown() -> tuple[str, ...]:
    """Paths of all files that have a page: the library's in the order of reading, then those that pages name."""
    line = []
    for name in reading_line():
        path = Path(*name.split("."))
        line.append((path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")).as_posix())
    pages = [p for p in ROOT.glob("docs/**/*.md")] + [ROOT / "README.md", ROOT / "golden/README.md"]
    named = {path for p in pages for path in NAMED.findall(p.read_text(encoding="utf-8"))}
    return (*line, *(path for path in sorted(named) if (ROOT / path).is_file()))


def has_page(path: str) -> bool:
    return path in shown()


@cache
def definitions(path: str) -> dict[str, int]:
    """{name: line} of what a Python file defines at its top, and Class.method."""
    if not path.endswith(".py"):
        return {}
    found = {}
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.lineno
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef):
                    found[f"{node.name}.{inner.name}"] = inner.lineno
    return found


def body(app, path: str) -> str:
    """The file as HTML: each line has the id L<n>, each definition its name's."""
    text = (ROOT / path).read_text(encoding="utf-8")
    try:
        lexer = get_lexer_for_filename(path)
    except ClassNotFound:
        lexer = get_lexer_for_filename("a.txt")
    shown = highlight(text, lexer, HtmlFormatter(nowrap=True, stripnl=False)).splitlines()
    at = {line: name for name, line in definitions(path).items()}
    uri = f"source/{path}"

    def link(match):
        home = app.env.tags_defined.get(f"{match[1]}.{match[2]}")
        return (f'<a href="{app.builder.get_relative_uri(uri, home)}#{match[1]}.{match[2]}">{match[0]}</a>'
                if home else match[0])

    lines = [f'<span id="L{n}" class="line">{anchor(at.get(n))}{TAG.sub(link, line)}</span>'
             for n, line in enumerate(shown, 1)]
    return (f"<h1>{html.escape(path)}</h1>\n<div class=\"highlight source\"><pre>" + "\n".join(lines)
            + "\n</pre></div>")


def anchor(name: str | None) -> str:
    return f'<a id="{name}"></a>' if name else ""


def index_body(app) -> str:
    """All files, folder by folder; links to a folder lead here."""
    parts, seen = ["<h1>The source</h1><p>In the order of reading; each file's page has the next one's below.</p>"], ""
    for path in sorted(shown(), key=lambda p: p.rpartition("/")[0].split("/")):
        folder = path.rpartition("/")[0]
        if folder != seen:
            parts.append(f'</ul><h2 id="{folder.replace("/", "-")}">{folder or "."}</h2><ul>')
            seen = folder
        uri = app.builder.get_relative_uri("source/index", f"source/{path}")
        parts.append(f'<li><a href="{uri}"><code>{path.rpartition("/")[2]}</code></a> {first_line(path)}</li>')
    return "".join(parts).replace("</ul>", "", 1) + "</ul>"


def first_line(path: str) -> str:
    if not path.endswith(".py"):
        return ""
    header = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    return html.escape(header.partition("\n")[0])


def pages(app):
    """Runs after all texts are read, so every equation's home is known."""
    yield "source/index", {"title": "The source", "body": index_body(app)}, "page.html"
    all_paths = shown()
    for i, path in enumerate(all_paths):
        uri = f"source/{path}"

        def way(to, here=uri):
            return {"link": app.builder.get_relative_uri(here, f"source/{to}"), "title": to}

        yield uri, {"title": path, "body": body(app, path),
                    "parents": [{"link": app.builder.get_relative_uri(uri, "source/index"), "title": "The source"}],
                    "prev": way(all_paths[i - 1] if i else "index"),
                    "next": way(all_paths[i + 1]) if i + 1 < len(all_paths) else None}, "page.html"


def setup(app):
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
