"""The house style as checks: headers, sizes, comments, docstrings, and how much there is to read.

A limit that bites is met by writing less or splitting, not by raising it: the sizes keep the code readable.
"""

import ast
import io
import re
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "bitnet_ref"


def python_files(folder):
    """{path from the root: text}"""
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8")
            for p in sorted((ROOT / folder).rglob("*.py"))}


FILES, TESTS = python_files("bitnet_ref"), python_files("tests")
COMMANDS = ("bitnet_ref/cli.py", "bitnet_ref/info.py", "bitnet_ref/convert.py", "bitnet_ref/conform/")

LINE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["line-length"]
HEADER = range(3, 9)              # lines of a module's docstring
MAP = range(3, 16)                # of a package's, which may list what is inside
POINTERS = re.compile(r"Read after: (\S+)\. Read next: (\S+)\.$")           # the header's last words
FILE_LINES, KERNEL_FILE_LINES = 400, 500
FUNCTION_LINES, KERNEL_FUNCTION_LINES = 30, 80            # of code: no docstring, comment or empty line

each_file = pytest.mark.parametrize("path", FILES)
each_source = pytest.mark.parametrize("path", [*FILES, *TESTS])


def source(path):
    return FILES.get(path) or TESTS[path]


def functions(path):
    return [n for n in ast.walk(ast.parse(FILES[path])) if isinstance(n, ast.FunctionDef)]


def public_definitions(path):
    """Module-level functions and classes, and methods of public classes, whose names do not begin with _."""
    for node in ast.parse(FILES[path]).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (m for m in node.body if isinstance(m, ast.FunctionDef) and m.name[0] != "_")


def code_lines(path, node):
    """Lines of `node` that hold code: neither its docstring, nor a comment alone, nor nothing."""
    first = node.body[0]
    skip = range(first.lineno, first.end_lineno + 1) if ast.get_docstring(node) else ()
    lines = enumerate(FILES[path].splitlines(), 1)
    return sum(node.lineno <= n <= node.end_lineno and n not in skip and bool(line.strip())
               and not line.lstrip().startswith("#") for n, line in lines)


def comments(text):
    """(line number, text) of every comment."""
    return [(t.start[0], t.string.lstrip("# ")) for t in tokenize.generate_tokens(io.StringIO(text).readline)
            if t.type == tokenize.COMMENT]


@each_file
def test_header(path):
    header = ast.get_docstring(ast.parse(FILES[path])) or ""
    length = len(header.splitlines())
    assert length in (MAP if path.endswith("__init__.py") else HEADER), f"{path}: a header of {length} lines"
    assert len(POINTERS.findall(header)) == 1, f"{path}: the header must say `Read after: ... Read next: ...`"


def module_file(name):
    """The module that a header calls `name`: layers/rope, layers (its __init__), or bitnet_ref itself."""
    places = f"bitnet_ref/{name}.py", f"bitnet_ref/{name}/__init__.py", f"{name}/__init__.py"
    return next((p for p in places if p in FILES), None)


def test_headers_are_one_reading_line():
    """From bitnet_ref/__init__ (after the README) to a last module, through every module, each once."""
    links = {path: POINTERS.findall(ast.get_docstring(ast.parse(text)) or "") for path, text in FILES.items()}
    after, following = ({path: found[0][side] for path, found in links.items()} for side in (0, 1))
    path, line = "bitnet_ref/__init__.py", []
    assert after[path] == "README.md"
    while following[path] != "nothing":
        line.append(path)
        path = module_file(following[path])
        assert path, f"{line[-1]}: reads on to {following[line[-1]]}, which is not there"
        assert path not in line, f"{line[-1]}: reads back to {path}"
        back = module_file(after[path])
        assert back == line[-1], f"{line[-1]} reads on to {path}, which is read after {after[path]}"
    assert set(FILES) == {*line, path}, f"on no line: {sorted(set(FILES) - {*line, path})}"


@each_file
def test_a_command_begins_with_its_command_line(path):
    if path.endswith("__main__.py"):
        module = path.removesuffix("/__main__.py").replace("/", ".")
        assert (ast.get_docstring(ast.parse(FILES[path])) or "").startswith(f"python -m {module}"), path
        assert len(FILES[path].splitlines()) <= 60, f"{path}: parse, build, call one function, print"


@pytest.mark.parametrize("path", [path for path, text in FILES.items() if path.startswith("bitnet_ref/bench/")
                                  and "\nif __name__ ==" in text and "\n    serve(" not in text])
def test_a_measurement_names_its_command(path):
    """Which is its example (docs/decisions/029-examples.md). One that serves is a process of another's."""
    header = ast.get_docstring(ast.parse(FILES[path])) or ""
    assert "python -m bitnet_ref." in header.partition("\n")[0], f"{path}: its header begins with no command"


@each_file
def test_size(path):
    kernel = path.startswith(("bitnet_ref/kernels/", "bitnet_ref/bench/ladders/"))
    length = len(FILES[path].splitlines())
    assert length <= (KERNEL_FILE_LINES if kernel else FILE_LINES), f"{path}: {length} lines"
    for f in functions(path):
        n = code_lines(path, f)
        limit = KERNEL_FUNCTION_LINES if kernel else FUNCTION_LINES
        assert n <= limit, f"{path}:{f.lineno} {f.name} has {n} lines of code; {limit} is the limit"


@each_source
def test_lines(path):
    long = [n for n, line in enumerate(source(path).splitlines(), 1) if len(line) > LINE]
    assert long == [], f"{path}: longer than {LINE}: lines {long}"


@each_source
def test_no_postponed_work(path):
    later = re.compile(r"(TODO|FIXME|XXX|HACK)\b", re.IGNORECASE)
    assert [(n, c) for n, c in comments(source(path)) if later.search(c)] == [], path


@each_source
def test_no_code_in_comments(path):
    """A comment that parses as a statement (assignment, import, return, call ...) was left behind."""
    for n, text in comments(source(path)):
        try:
            body = ast.parse(text).body
        except SyntaxError:
            continue
        statements = (ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.Return, ast.Raise, ast.Call)
        body = [s.value if isinstance(s, ast.Expr) else s for s in body]
        assert not any(isinstance(s, statements) for s in body), f"{path}:{n} {text}"


@each_file
def test_results_go_to_stdout_from_commands_only(path):
    tree = ast.parse(FILES[path])
    if path.startswith(COMMANDS) or path.endswith("__main__.py") or any(
            isinstance(n, ast.If) and "__main__" in ast.dump(n.test) for n in tree.body):
        return
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"):
        to_stderr = any(k.arg == "file" and ast.unparse(k.value) == "sys.stderr" for k in call.keywords)
        assert to_stderr, f"{path}:{call.lineno}: a library module returns its results"


@each_file
def test_public_definitions_are_documented(path):
    for node in public_definitions(path):
        assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"


@each_file
def test_arrays_have_shapes(path):
    """Where a public op of the specification takes arrays, its docstring gives the letters of a shape."""
    if not path.startswith(("bitnet_ref/quant.py", "bitnet_ref/layers/")):
        return
    for f in public_definitions(path):
        if not isinstance(f, ast.FunctionDef):
            continue
        arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        if any("np.ndarray" in ast.unparse(a.annotation) for a in arguments if a.annotation):
            doc = ast.get_docstring(f) or ""
            assert re.search(r"->|\((\.\.\.|[A-Z]\w?|n)[,)]", doc), f"{path}:{f.lineno} {f.name}: no shape"


@each_file
def test_names_that_say_nothing(path):
    assert Path(path).stem not in {"utils", "util", "common", "helpers", "misc", "base"}, path
    classes = [n.name for n in ast.walk(ast.parse(FILES[path])) if isinstance(n, ast.ClassDef)]
    assert not [c for c in classes if c.endswith(("Manager", "Helper", "Factory"))], path
