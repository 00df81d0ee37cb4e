"""Pages that are made: the API, one a package; README, changelog and the golden index, which live elsewhere.

They are written to docs/_made before Sphinx looks at its sources, and only if they changed, so a second
build is short.
"""

import ast
import json
import re
from pathlib import Path

from _site import ORDER, ROOT
from _site.api import facade, package_page

MADE = ROOT / "docs" / "_made"
BORROWED = {"golden": "golden/README.md", "changes": "CHANGELOG.md",
            "walkthroughs": "notebooks/README.md"}        # page -> file

RAN = "*What its cells print is of one run, on {}. On your machine times will be others.*"

DECISIONS = """Decisions
=========

Half a page each: what was chosen, why, and what was rejected.

.. toctree::
   :glob:

   ../decisions/*
"""


def packages() -> dict[str, list[str]]:
    """{package: its modules, in the order of the reading line}, commands and single modules among them."""
    found: dict[str, list[str]] = {}
    for name in reading_line():
        if name == "bitnet_ref" or name.endswith("__main__"):
            continue
        path = ROOT / Path(*name.split("."))
        owner = name if path.is_dir() else name.rpartition(".")[0]
        found.setdefault(name if owner == "bitnet_ref" else owner, []).append(name)
    rank = {name: i for i, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda p: rank[p[0].split(".")[1]]))


def reading_line() -> list[str]:
    """Every module, each after the one that its header names."""
    following = {}
    for path in sorted((ROOT / "bitnet_ref").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        following[name] = module_named(header.rpartition("Read next: ")[2].rstrip("."))
    line = ["bitnet_ref"]
    while following[line[-1]] in following and following[line[-1]] not in line:
        line.append(following[line[-1]])
    return [*line, *(n for n in following if n not in line)]


def module_named(pointer: str) -> str:
    """`pack/i2`, as headers write it, as a module's name."""
    return "bitnet_ref." + pointer.removesuffix("/__init__").replace("/", ".")


def write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def make(app, config) -> None:
    wanted = {}
    made = packages()
    for package, modules in made.items():
        wanted[f"api/{package.removeprefix('bitnet_ref.')}.rst"] = package_page(package, modules)
    rows = "\n".join(f"   {p.removeprefix('bitnet_ref.')}" for p in made)
    wanted["api/index.rst"] = (
        "The API\n=======\n\nEvery public name, package by package, in the order of dependencies: each uses "
        "only those before it.\nA name's text is its docstring; *source* leads to the code.\n\n"
        f"{facade()}\n.. toctree::\n   :maxdepth: 1\n\n{rows}\n")
    for page, file in BORROWED.items():
        wanted[f"{page}.myst"] = (ROOT / file).read_text(encoding="utf-8")
    wanted["decisions.rst"] = DECISIONS
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        wanted[f"notebooks/{notebook.name}"] = told(notebook.read_text(encoding="utf-8"))
    for path in MADE.rglob("*.*"):
        if path.is_file() and path.relative_to(MADE).as_posix() not in wanted:
            path.unlink()
    for name, text in wanted.items():
        write(MADE / name, text)


def told(notebook: str) -> str:
    """A notebook that says below its title where it ran; sources are coloured, pictures have words."""
    cells = json.loads(notebook)
    if about := cells["metadata"].get("outputs"):          # else a test says that it must be written anew
        title, *rest = "".join(cells["cells"][0]["source"]).split("\n", 1)
        cells["cells"][0]["source"] = f"{title}\n\n{RAN.format(about['on'])}\n{''.join(rest)}"
    for cell in cells["cells"]:
        pictures = [o for o in cell.get("outputs", ()) if "image/png" in o.get("data", ())]
        source = "".join(cell["source"])
        if re.search(r'^check\("', source, flags=re.MULTILINE):
            cell["metadata"]["tags"] = ["answer"]
        if source.startswith("show("):
            cell["metadata"]["mystnb"] = {"text_lexer": "python"}
        elif pictures:
            cell["metadata"]["mystnb"] = {"image": {"alt": "".join(pictures[0]["data"]["text/plain"])}}
    return json.dumps(cells, indent=1)


def front(app, docname, source) -> None:
    """The README is the first page; docs/index.md adds the table of contents."""
    if docname == "index":
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        source[0] = readme + "\n" + source[0][source[0].index("```{toctree}"):]


def setup(app):
    app.connect("config-inited", make)
    app.connect("source-read", front, priority=400)       # before links are read
    return {"parallel_read_safe": True, "parallel_write_safe": True}
