"""Examples in docstrings and pages run, and every public function of the packages below has one.

A docstring's example sees its module's names; a page's begins with its own imports. One that ends a line in
`# needs gguf` runs where that library is. Which packages, and what stands for an example elsewhere:
docs/decisions/029-examples.md.
"""

import ast
import doctest
import importlib.util
import re
from pathlib import Path

import pytest
from problems import walls  # noqa: F401
from tiny import own_cache  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
DONE = (                                                   # every public function has an example
    "checks",
    "config",
    "quant",
    "pack",
    "layers",
    "kernels/__init__",
    "kernels/state",
    "model",
    "chain",
    "train",
    "walk",
    "generate",
    "evaluate",
    "__init__",
    "cli",
    "convert",
    "info",
    "chat",
    "data",
    "formats",
)
SLOW = {"bitnet_ref.train.plots", "bitnet_ref.train.summary",   # they draw all the pictures of a run, or
        "bitnet_ref.walk.pictures", "bitnet_ref.walk.twin",     # a notebook's, read Python's documentation,
        "bitnet_ref.walk.train_nano", "bitnet_ref.walk.evaluate"}          # or train
WALLED = {f"bitnet_ref.evaluate.{stem}" for stem in ("cell", "confine", "humaneval", "sandbox")}
NEEDS = re.compile(r"# needs (\w+)$", flags=re.MULTILINE)  # said by an example of an optional library
PARSER = doctest.DocTestParser()


def modules(package):
    """Dotted names of a package's modules, of one that is a file too."""
    home = ROOT / "bitnet_ref" / package
    paths = [home.with_suffix(".py")] if not home.is_dir() else sorted(home.rglob("*.py"))
    return [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths]


def source(module):
    path = ROOT.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def example(node):
    return PARSER.get_examples(ast.get_docstring(node) or "")


def lacking(text):
    """The optional libraries that an example needs and that are not here."""
    return {name for name in NEEDS.findall(text) if importlib.util.find_spec(name) is None}


def public(module):
    """Its public functions. A command, and its `main`, have the command line in the header as an example."""
    tree = ast.parse(source(module))
    command = (ast.get_docstring(tree) or "").startswith("python -m bitnet_ref")
    return [] if module.endswith("__main__") else [
        n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"
        and not (command and n.name == "main")]


def run(test):
    """The number of examples that fail; what went wrong is printed."""
    return doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed


ALL = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
       for p in sorted((ROOT / "bitnet_ref").rglob("*.py"))]
WITH_EXAMPLES = [m for m in ALL if re.search(r"^ *>>> ", source(m), flags=re.MULTILINE)]
PAGES = [p for p in sorted(ROOT.glob("docs/**/*.md")) if ">>> " in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW))
                                    for m in WITH_EXAMPLES])
def test_examples_of_docstrings(module, request):
    if module in WALLED:
        request.getfixturevalue("walls")                  # or a skip: they run programs in the sandbox
    names = vars(importlib.import_module(module))
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and example(node):
            name, text = getattr(node, "name", module), ast.get_docstring(node)
            if lacking(text):
                continue
            test = PARSER.get_doctest(text, dict(names), f"{module}.{name}", module, 0)
            assert run(test) == 0, f"{module}.{name}"


def test_examples_of_pages():
    for page in PAGES:
        test = PARSER.get_doctest(page.read_text(encoding="utf-8"), {}, page.stem, str(page), 0)
        assert run(test) == 0, page


@pytest.mark.parametrize("module", [m for package in DONE for m in modules(package)])
def test_every_public_function_has_an_example(module):
    """One that calls it, and shows or checks something: a call whose result nobody sees proves little."""
    for node in public(module):
        calls = [c for e in example(node) for c in ast.walk(ast.parse(e.source)) if isinstance(c, ast.Call)]
        names = {ast.unparse(c.func).rpartition(".")[2] for c in calls}
        assert node.name in names, f"{module}.{node.name}"
        assert any(e.want for e in example(node)), f"{module}.{node.name}: its example shows nothing"


def test_a_wrong_example_fails():
    test = PARSER.get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1


def test_an_example_waits_for_its_library():
    assert lacking(">>> f()        # needs no_such_library\n1") == {"no_such_library"}
    assert not lacking(">>> f()        # needs json\n1")
    assert not lacking("f needs no_such_library")


def test_the_list_is_of_packages_that_are_there():
    assert all(modules(package) for package in DONE)
    with_examples = {m.split(".")[1] for m in WITH_EXAMPLES if "." in m}
    assert with_examples >= {package.split("/")[0] for package in DONE} - {"__init__"}
