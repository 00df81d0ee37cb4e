"""Links of the repository as links of the site: to pages, source files, names and numbered equations.

A page links as GitHub needs it, `../bitnet_ref/quant.py`. Here that becomes the page of that source file,
at the line of the function when the link's text is its name. `bitnet_ref.x.y` in backticks leads to the
API, a path in backticks to its file, and (RN.3) anywhere to its equation.
"""

import json
import os
import posixpath
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

from _site import ROOT
from _site.pages import BORROWED
from _site.source import definitions, has_page

TAG = re.compile(r"\(([A-Z]{2})\.(\d+)\)")
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
BADGE = re.compile(r"\[!\[([^\]]*)\]\(https?://[^)]*\)\]\(([^)]*)\)")
FENCE = re.compile(r"(^```.*?^```[^\n]*$)", flags=re.DOTALL | re.MULTILINE)
DOTTED = re.compile(r"(bitnet_ref(?:\.\w+)+)(?:\(\))?")
NOTEBOOKS = "_made/notebooks/"
FILE = re.compile(r"(?:bitnet_ref|tests|docs|golden)/[\w./-]+")


def repository_path(docname: str) -> str:
    """Where the text of a page lies in the repository."""
    borrowed = {"index": "README.md", **{f"_made/{page}": file for page, file in BORROWED.items()}}
    if docname.startswith(NOTEBOOKS):
        return docname.removeprefix("_made/") + ".ipynb"
    return borrowed.get(docname, f"docs/{docname}.md")


def page_of(path: str) -> str | None:
    """The page of the site that shows the file `path`, if it is a page of text."""
    borrowed = {file: f"_made/{page}" for page, file in BORROWED.items()} | {"README.md": "index"}
    if path.startswith("docs/") and path.endswith(".md") and (ROOT / path).is_file():
        return path.removeprefix("docs/").removesuffix(".md")
    if path.startswith("docs") and (ROOT / path).is_dir():
        return "00-map"
    if path.startswith("notebooks/") and path not in borrowed and (ROOT / path).is_file():
        return f"_made/{posixpath.splitext(path)[0]}"      # either form of a notebook
    return borrowed.get(path)


def rewrite(app, docname, source) -> None:
    """Of a page's text, and of the cells of a notebook that are text."""
    suffix = Path(app.env.doc2path(docname)).suffix
    if suffix in (".md", ".myst"):
        source[0] = rewritten(app, docname, source[0])
    elif suffix == ".ipynb":
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = BADGE.sub(r"[\1](\2)", "".join(cell["source"]))       # pictures of other hosts
                cell["source"] = rewritten(app, docname, text)
        source[0] = json.dumps(notebook)


def rewritten(app, docname: str, text: str) -> str:
    """`text` with its links as those of the site."""
    here = posixpath.dirname(repository_path(docname))

    def target(match):
        link = match[1]
        name, _, fragment = link.partition("#")
        if not name or re.match(r"[a-z]+:", link):
            return link
        path = posixpath.normpath(posixpath.join(here, name))
        page = page_of(path)
        kept = path.startswith("docs/") and path.endswith((".html", ".json"))        # a report goes along
        if page or kept or path.endswith((".png", ".svg")):
            there = os.path.relpath(app.env.doc2path(page) if page else ROOT / path,
                                    Path(app.env.doc2path(docname)).parent)
            return there.replace(os.sep, "/") + (f"#{fragment}" if fragment else "")
        return f"source:{path}"

    parts = FENCE.split(text)
    return "".join(p if p.startswith("```") else LINK.sub(target, p) for p in parts)


def source_uri(app, docname: str, path: str, name: str = "") -> str:
    """The address of a file's page, seen from `docname`; of what is called `name` in it, if there is."""
    if not has_page(path):
        folder = path.rstrip("/") if (ROOT / path).is_dir() else posixpath.dirname(path)
        return app.builder.get_relative_uri(docname, "source/index") + "#" + folder.replace("/", "-")
    uri = app.builder.get_relative_uri(docname, f"source/{path}")
    return f"{uri}#{name}" if name in definitions(path) else uri


def named(text: str) -> str:
    """What the text of a link names: `f()`, `Class.f`, or a test as "test_x.py: what it says"."""
    file, says, words = text.partition(".py: ")
    if says and file.startswith("test_"):
        return "test_" + words.strip().replace(" ", "_")
    return text.removesuffix("()").rpartition(".")[2]


class Sources(SphinxTransform):
    """Links to source files, once the page is read."""

    default_priority = 200

    def apply(self):
        for node in self.document.findall(nodes.reference):
            if node.get("refuri", "").startswith("source:"):
                path, _, name = node["refuri"].removeprefix("source:").partition("#")
                name = name or named(node.astext())
                node["refuri"] = source_uri(self.app, self.env.docname, path, name)
                node["internal"] = True
                node["classes"] += ["to-source"] if node.astext() == "source" else []


class Signatures(SphinxTransform):
    """Types in signatures are words: `bytes` is Python's, not a method of ours that has the same name."""

    default_priority = 202

    def apply(self):
        for signature in self.document.findall(addnodes.desc_signature):
            for reference in list(signature.findall(addnodes.pending_xref)):
                reference.parent.replace(reference, reference.children)


class Equations(SphinxTransform):
    """A place for every numbered equation and every numbered rule."""

    default_priority = 201

    def apply(self):
        found = self.env.tags_defined = getattr(self.env, "tags_defined", {})
        for node in self.document.findall(nodes.math_block):
            tags = re.findall(r"\\text\{" + TAG.pattern + r"\}", node.astext())
            self.place(node, tags, found)
        for node in self.document.findall(nodes.strong):
            self.place(node, TAG.findall(node.astext())[:1], found)

    def place(self, node, tags, found):
        quoted = self.env.docname.startswith(NOTEBOOKS)   # from its page, which stays the equation's home
        for family, number in tags:
            node["ids"].append(f"{family}.{number}")
            if not quoted:
                found[f"{family}.{number}"] = self.env.docname


class Mentions(SphinxPostTransform):
    """Links from every mention: of an equation, a name of the library, a file."""

    default_priority = 5

    def run(self):
        for node in list(self.document.findall(nodes.Text)):
            if TAG.search(node) and not inside(node, nodes.reference, nodes.FixedTextElement, nodes.math,
                                               nodes.math_block, nodes.title, nodes.literal, nodes.raw):
                self.link_tags(node)
        for node in list(self.document.findall(nodes.literal)):
            if not inside(node, nodes.reference, nodes.title):
                self.link_literal(node)

    def link_tags(self, node):
        text, at, new = node.astext(), 0, []
        for match in TAG.finditer(text):
            tag = f"{match[1]}.{match[2]}"
            home = self.env.tags_defined.get(tag)
            if home and not (inside(node, nodes.strong) and tag in node.parent["ids"]):
                here = self.env.docname
                uri = self.app.builder.get_relative_uri(here, home) if home != here else ""
                new += [nodes.Text(text[at:match.start()]),
                        nodes.reference("", match[0], refuri=f"{uri}#{tag}", internal=True, classes=["tag"])]
                at = match.end()
        node.parent.replace(node, [*new, nodes.Text(text[at:])])

    def link_literal(self, node):
        text, uri = node.astext(), None
        if name := DOTTED.fullmatch(text):
            found = self.env.domains.python_domain.objects.get(name[1])
            if found:
                uri = self.app.builder.get_relative_uri(self.env.docname, found.docname) + "#" + found.node_id
        elif FILE.fullmatch(text) and (ROOT / text).exists():
            page = page_of(text)
            uri = (self.app.builder.get_relative_uri(self.env.docname, page) if page
                   else source_uri(self.app, self.env.docname, text))
        if uri:
            link = nodes.reference("", "", refuri=uri, internal=True)
            node.replace_self(link)
            link += node


def inside(node, *kinds) -> bool:
    while node := node.parent:
        if isinstance(node, kinds):
            return True
    return False


def forget(app, env, docname) -> None:
    kept = getattr(env, "tags_defined", {})
    env.tags_defined = {tag: home for tag, home in kept.items() if home != docname}


def merge(app, env, docnames, other) -> None:
    env.tags_defined = {**getattr(env, "tags_defined", {}), **getattr(other, "tags_defined", {})}


def setup(app):
    app.connect("source-read", rewrite, priority=600)     # after the README is put in
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.add_transform(Sources)
    app.add_transform(Signatures)
    app.add_transform(Equations)
    app.add_post_transform(Mentions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
