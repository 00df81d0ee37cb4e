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

NAMED = re.compile(r"(?:tests|golden)/[\w/]+\.(?:py|txt)|pyproject\.toml|CITATION\.cff")
FOLDERS = ("bitnet_ref/chain/tables", "golden")           # of files that pages name and no page can show
TAG = re.compile(r"\(([A-Z]{2})\.(\d+)\)")


@cache
def shown() -> tuple[str, ...]:
    """Paths of all files that have a page: the library's in the order of reading, then those pages name."""
    line = []
    for name in reading_line():
        path = Path(*name.split("."))
        line.append((path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")).as_posix())
    pages = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "golden/README.md"]
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
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {n.id: node.lineno for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            found = names | found
    return found


def body(app, path: str) -> str:
    """The file as HTML: each line has the id L<n>, each definition its name's."""
    text = (ROOT / path).read_text(encoding="utf-8")
    try:
        lexer = get_lexer_for_filename(path)
    except ClassNotFound:
        lexer = get_lexer_for_filename("a.txt")
    shown = highlight(text, lexer, HtmlFormatter(nowrap=True, stripnl=False)).splitlines()
    at: dict[int, list[str]] = {}
    for name, line in definitions(path).items():
        at.setdefault(line, []).append(name)
    uri = f"source/{path}"

    def link(match):
        home = app.env.tags_defined.get(f"{match[1]}.{match[2]}")
        return (f'<a href="{app.builder.get_relative_uri(uri, home)}#{match[1]}.{match[2]}">{match[0]}</a>'
                if home else match[0])

    lines = [f'<span id="L{n}" class="line">{"".join(map(anchor, at.get(n, ())))}{TAG.sub(link, line)}</span>'
             for n, line in enumerate(shown, 1)]
    return (f"<h1>{html.escape(path)}</h1>\n<div class=\"highlight source\"><pre>" + "\n".join(lines)
            + "\n</pre></div>")


def anchor(name: str) -> str:
    return f'<a id="{name}"></a>'


def index_body(app) -> str:
    """All files, folder by folder; links to a folder, or to a file that is no text, lead here."""
    parts = ["<h1>The source</h1><p>Each file's page has the next one's below, in the order of reading.</p>"]
    folders: dict[str, list[str]] = {folder: [] for folder in FOLDERS}
    for path in shown():
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    for folder, paths in sorted(folders.items()):
        parts.append(f'<h2 id="{folder.replace("/", "-")}"><code>{folder or "."}</code></h2><ul>')
        for path in paths:
            uri = app.builder.get_relative_uri("source/index", f"source/{path}")
            name = path.rpartition("/")[2]
            parts.append(f'<li><a href="{uri}"><code>{name}</code></a> {first_line(path)}</li>')
        for other in sorted((ROOT / folder).iterdir()) if folder in FOLDERS else ():
            if other.is_file() and f"{folder}/{other.name}" not in paths:
                parts.append(f"<li><code>{other.name}</code></li>")
        parts.append("</ul>")
    return "".join(parts)


def first_line(path: str) -> str:
    if not path.endswith(".py"):
        return ""
    header = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    return html.escape(header.partition("\n")[0])


def pages(app):
    """Runs after all texts are read, so every equation's home is known."""
    all_paths = shown()

    def way(here, to, title=""):
        return {"link": app.builder.get_relative_uri(f"source/{here}", f"source/{to}"), "title": title or to}

    yield "source/index", {"title": "The source", "body": index_body(app),
                           "next": way("index", all_paths[0])}, "page.html"
    for i, path in enumerate(all_paths):
        up = way(path, "index", "The source")
        before, after = (all_paths[i - 1] if i else None), (all_paths[i + 1:] or [None])[0]
        yield f"source/{path}", {"title": path, "body": body(app, path), "parents": [up],
                                 "prev": way(path, before) if before else up,
                                 "next": way(path, after) if after else None}, "page.html"


def share_the_tree(app, pagename, templatename, context, doctree) -> None:
    """The table of contents beside a source file is the same for its whole folder, and costly to make."""
    if pagename.startswith("source/") and "toctree" in context:
        make, kept = context["toctree"], app.env.__dict__.setdefault("source_trees", {})
        depth = pagename.count("/")

        def toctree(**options):
            if depth not in kept:
                kept[depth] = make(**options)
            return kept[depth]

        context["toctree"] = toctree


def setup(app):
    app.connect("html-page-context", share_the_tree, priority=100)        # before the theme asks for it
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
