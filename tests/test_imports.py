"""Imports flow one way, and the order is the curriculum: a module imports only what a reader has met.

All is read from the syntax tree, so an import inside a function counts too. Only the last test runs anything.
"""

import ast
import doctest
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["checks", "config", "quant", "pack", "layers", "kernels", "model", "data", "chain", "formats",
         "generate", "evaluate", "train", "bench", "serve", "walk"]
COMMANDS = {"chat", "cli", "info", "convert", "conform"}          # above all, as is every __main__
SIBLINGS = {("model", "kernels")}                         # joined from above: Transformer(cfg, params, ops)

CORE = {"numpy", "ml_dtypes", "tqdm"}                     # light: any module may import them at its top
# Imported by the module that needs them: at its top where the whole module is about them, else in a function.
COMPILED = ("kernels.numba_cpu", "kernels.numba_cuda", "bench.vectors", "bench.roofline", "bench.ladders")
AT_TOP = {"numba": COMPILED, "llvmlite": COMPILED, "tokenizers": ("data",),
          "safetensors": ("formats", "conform", "bench.golden"), "threadpoolctl": ("kernels", "bench"),
          "matplotlib": ("train.plots", "walk.pictures", "walk.kernel_pictures")}
TORCH = {"torch", "transformers"}
RUN = "bitnet_ref.train.small.small_run"


class Import(NamedTuple):
    """One imported name. `at_import`: when its module is imported, not in a function or for types only."""

    name: str
    line: int
    at_import: bool


def imports(tree):
    """Every import below `tree`, `from a import b` as "a.b"; importlib's calls with a literal name count."""
    found = []

    def visit(node, at_import):
        if isinstance(node, ast.Import):
            found.extend(Import(a.name, node.lineno, at_import) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.extend(Import(f"{module}.{a.name}", node.lineno, at_import) for a in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            literal = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(literal, ast.Constant):
                found.append(Import(literal.value.rstrip("."), node.lineno, False))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_import = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            at_import = False
        for child in ast.iter_child_nodes(node):
            visit(child, at_import)

    visit(tree, True)
    return found


def modules(root):
    """{dotted name: syntax tree} of the library below `root`."""
    paths = sorted((root / "bitnet_ref").rglob("*.py"))
    assert paths, f"no library below {root}"
    names = [".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for p in paths]
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in zip(names, paths)}


LIBRARY = modules(ROOT)
each_module = pytest.mark.parametrize("name", LIBRARY)


def package_of(module):
    """bitnet_ref.layers.rope -> layers; the facade bitnet_ref itself -> "" """
    return module.split(".")[1] if "." in module else ""


def is_command(module):
    return package_of(module) in COMMANDS or module.endswith(".__main__")


def is_run_as_main(tree):
    return any(isinstance(n, ast.If) and "__main__" in ast.dump(n.test) for n in tree.body)


def own(name):
    return name == "bitnet_ref" or name.startswith("bitnet_ref.")


def target(name):
    """The module that `from x import y` reaches: x.y if that is one, else x."""
    return name if name in LIBRARY else name.rpartition(".")[0]


def test_every_package_has_its_place_in_the_order():
    assert {package_of(m) for m in LIBRARY} <= {"", *ORDER, *COMMANDS}


@each_module
def test_no_import_goes_up(name):
    me, tree = package_of(name), LIBRARY[name]
    assert not [i for i in imports(tree) if i.name[0] == "."], f"{name}: write absolute names"
    if not me:                                            # the facade: `load` reaches up, when it is called
        assert [i for i in imports(tree) if own(i.name) and i.at_import] == []
        return
    for i in (i for i in imports(tree) if own(i.name) and i.name != "bitnet_ref.__version__"):
        other = package_of(i.name)
        where = f"{name}:{i.line} imports {i.name}"
        assert other in {*ORDER, *COMMANDS}, f"{where}: import the module that defines it, not the facade"
        assert (me, other) not in SIBLINGS, f"{where}: siblings; a command joins them"
        if other in COMMANDS:
            assert is_command(name) or is_run_as_main(tree), f"{where}: a library module imports a command"
        else:
            assert is_command(name) or ORDER.index(other) <= ORDER.index(me), f"{where}: upwards"
        assert not i.name.startswith(f"{target(i.name)}.__main__"), where
        assert not target(i.name).endswith("__main__"), f"{where}: __main__ is for `python -m` only"


@each_module
def test_no_example_goes_up(name):
    """What a reader has met serves in an example too, save a whole run (docs/decisions/029-examples.md)."""
    if is_command(name) or not package_of(name):
        return
    for text in (ast.get_docstring(n) for n in ast.walk(LIBRARY[name])
                 if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Module)):
        for example in doctest.DocTestParser().get_examples(text or ""):
            for i in (i for i in imports(ast.parse(example.source)) if own(i.name)):
                up = ORDER.index(package_of(i.name)) > ORDER.index(package_of(name))
                assert not up or i.name == RUN, f"{name}: an example imports {i.name}: upwards"


def test_no_cycles():
    edges = {module: {target(i.name) for i in imports(tree) if own(i.name) and i.at_import}
             for module, tree in LIBRARY.items()}
    done, path = set(), []

    def walk(module):
        assert module not in path, " -> ".join([*path[path.index(module):], module])
        if module not in done:
            path.append(module)
            for other in sorted(edges.get(module, ())):
                walk(other)
            done.add(path.pop())

    for module in edges:
        walk(module)


@each_module
def test_heavy_packages_wait_until_they_are_needed(name):
    inside = name.removeprefix("bitnet_ref.")
    for i in imports(LIBRARY[name]):
        package = i.name.partition(".")[0]
        if not i.at_import or package in sys.stdlib_module_names | CORE | {"bitnet_ref"}:
            continue
        homes = AT_TOP.get(package, ())
        where = f"{name}:{i.line} imports {package} at its top"
        assert inside.startswith(homes or ("-",)), f"{where}; homes: {homes or 'none'}; or import late"


@each_module
def test_torch_stays_outside_the_library(name):
    for i in imports(LIBRARY[name]):
        if i.name.partition(".")[0] in TORCH:
            assert package_of(name) == "bench", f"{name}:{i.line}: only benchmarks time torch, as a peer"
            assert not i.at_import, f"{name}:{i.line}: inside the function that times it"


def test_torch_outside_the_library_makes_golden_files_or_is_an_oracle():
    for path in (p for folder in ("golden", "tests", "notebooks") for p in (ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if any(i.name.partition(".")[0] in TORCH for i in imports(ast.parse(source))):
            where = path.relative_to(ROOT).as_posix()
            oracle = where.startswith("tests/") and "mark.oracle" in source
            assert where.startswith("golden/") or oracle, where


def test_the_oracles_share_no_code_with_the_library():
    for path in (ROOT / "golden").glob("*.py"):
        assert not [i.name for i in imports(ast.parse(path.read_text(encoding="utf-8"))) if own(i.name)], path


def test_importing_bitnet_ref_is_light():
    probe = ("import sys, numpy; from time import perf_counter; t = perf_counter(); import bitnet_ref\n"
             "print(perf_counter() - t, *{m.partition('.')[0] for m in sys.modules})")
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    third_party = set(loaded) & {*AT_TOP, *TORCH, "tqdm", "jinja2", "gguf", "onnx", "mpi4py", "llvmlite"}
    assert third_party == set()
    assert float(seconds) < 1.0                           # milliseconds; generous for a busy machine
