"""The API's pages, one a package, read from the syntax tree: nothing is imported, nothing need be installed.

A name is public if it does not begin with _. A signature is shown as it is written, a docstring by
docstrings.py, and each leads to its place in the source.
"""

import ast
import inspect
from pathlib import Path

from _site import ROOT
from _site.docstrings import POINTERS, to_rst


def package_page(package: str, modules: list[str]) -> str:
    title = package.removeprefix("bitnet_ref.")
    parts = [f"{title}\n{'=' * len(title)}\n"]
    for name in modules:
        short = name.removeprefix("bitnet_ref.")
        parts += [] if name == package else [f"{short}\n{'-' * len(short)}\n"]
        parts.append(module_text(name))
    return "\n".join(parts)


def file_of(module: str) -> Path:
    path = Path(*module.split("."))
    return path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")


def module_text(module: str) -> str:
    """Its header, then each public name in the order of the file."""
    path = file_of(module)
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    header = POINTERS.sub("", ast.get_docstring(tree) or "")
    parts = [f".. py:module:: {module}\n", to_rst(header) + f"\n\n`source <source:{path.as_posix()}>`__\n"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
            parts.append(function(node, path))
        elif isinstance(node, ast.ClassDef) and node.name[0] != "_":
            parts.append(class_text(node, path))
    return "\n".join(parts)


def signature(node: ast.FunctionDef, skip: int = 0) -> str:
    a = node.args
    arguments = ast.arguments(a.posonlyargs, a.args[skip:], a.vararg, a.kwonlyargs, a.kw_defaults, a.kwarg,
                              a.defaults)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(arguments)}){returns}"


def indented(text: str, by: int) -> str:
    return "\n".join(" " * by + line if line else "" for line in text.splitlines())


def described(directive: str, head: str, node, path: Path, name: str, more: str = "") -> str:
    link = f"`source <source:{path.as_posix()}#{name}>`__"
    text = "\n\n".join(p for p in (to_rst(ast.get_docstring(node) or ""), more, link) if p)
    return f".. py:{directive}:: {head}\n\n{indented(text, 3)}\n"


def function(node: ast.FunctionDef, path: Path) -> str:
    return described("function", signature(node), node, path, node.name)


def class_text(node: ast.ClassDef, path: Path) -> str:
    """Its fields as they stand, its public methods each with its own text."""
    fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
    table = ".. code-block:: python\n   :class: fields\n\n" + indented("\n".join(fields), 3) if fields else ""
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    methods = [described("method", signature(n, skip=0 if static(n) else 1), n, path, f"{node.name}.{n.name}")
               for n in functions if n.name[0] != "_" or n.name == "__call__"]
    begin = next((n for n in functions if n.name == "__init__"), None)
    made = signature(begin, skip=1).partition(" -> ")[0] if begin else "__init__"
    head = made.replace("__init__", node.name, 1)
    return described("class", head, node, path, node.name, more="\n".join([table, *methods]).strip())


def static(node: ast.FunctionDef) -> bool:
    return any("staticmethod" in ast.unparse(d) for d in node.decorator_list)


def facade() -> str:
    """bitnet_ref itself: what the map says, and load()."""
    path = Path("bitnet_ref/__init__.py")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    header = POINTERS.sub("", inspect.cleandoc(ast.get_docstring(tree) or ""))
    functions = [function(n, path) for n in tree.body if isinstance(n, ast.FunctionDef)]
    return ".. py:module:: bitnet_ref\n\n" + to_rst(header) + "\n\n" + "\n".join(functions)
