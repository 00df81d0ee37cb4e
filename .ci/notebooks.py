"""The notebooks: write them from their text, or run them.

    python .ci/notebooks.py write [NAME ...]          text -> .ipynb: executed, with what it printed
    python .ci/notebooks.py refresh [NAME ...]        its prose and what `show` shows, anew: nothing is run
    python .ci/notebooks.py run [NAME ...]            execute, two minutes each (busy: four); else all
    python .ci/notebooks.py run --day --since COMMIT  three in turn by the day, and those that changed

NAME is a number such as 01. Needs the extra `notebooks`. The text (.md, MyST) is what one edits; its badges
and how it gets the library are written too, from `repository` in pyproject.toml.
"""

import argparse
import ast
import datetime
import hashlib
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER, SECONDS, A_DAY = ROOT / "notebooks", 120, 3
GATE = 2 * SECONDS                                         # the promise is of two quiet cores
KEPT = "text/plain", "image/png"                           # of a result; of streams what is printed, no more
LONGEST = 8000                                             # characters of an output
MAGIC = re.compile(r"^\s*[%!].*$", flags=re.MULTILINE)
LINE_OF = re.compile(r"^(# bitnet_ref/\S+\.py), line \d+$", flags=re.MULTILINE)
BADGES = """[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}.ipynb)
[![Open in Binder](https://mybinder.org/badge_logo.svg)]\
(https://mybinder.org/v2/gh/{slug}/main?labpath=notebooks/{name}.ipynb)

"""
MISSING = 'if importlib.util.find_spec("bitnet_ref") is None:'
FETCH = '    %pip install -q "bitnet_ref[notebooks] @ git+https://github.com/{slug}"'
REFUSE = """    raise ModuleNotFoundError("no bitnet_ref; in a clone of it: pip install '.[notebooks]'")"""


def names():
    """01_ternary, 02_layers_by_hand ..."""
    return sorted(p.stem for p in FOLDER.glob("[0-9][0-9]_*.md"))


def of_the_day(everything, day):
    """Three of them, all in turn."""
    first = day * A_DAY % len(everything)
    return sorted({everything[(first + i) % len(everything)] for i in range(A_DAY)})


def changed(since):
    """Those that differ from a commit; all where their tools do, or where there is no such commit."""
    diff = subprocess.run(["git", "-C", ROOT, "diff", "--name-only", since], capture_output=True, text=True)
    seen = diff.stdout.split()
    if diff.returncode or any(path.startswith("bitnet_ref/walk/") for path in seen):
        return names()
    return [name for name in names() if any(Path(path).stem == name for path in seen)]


def repository():
    """OWNER/NAME on GitHub, or nothing while there is none."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["tool"]["bitnet_ref"]["repository"]


def addressed(text, name, slug):
    """A text with badges and a first cell that fetches the library; without a repository neither."""
    text = re.sub(r"^\[!\[Open in .*\n(?:\n(?!\[!))?", "", text, flags=re.MULTILINE)
    badges = BADGES.format(slug=slug, name=name) if slug else ""
    text = re.sub(r"^# .*\n\n", lambda m: m[0] + badges, text, count=1, flags=re.MULTILINE)
    first = FETCH.format(slug=slug) if slug else REFUSE
    return re.sub(re.escape(MISSING) + r".*\n.*\n", lambda m: f"{MISSING}\n{first}\n", text, count=1)


def made_from(sources):
    """What says that outputs are of these cells of code: a checksum."""
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def code(notebook):
    """Its cells of code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def plain(text):
    """Without colours and without lines' numbers in sources, which move; a long one without its end."""
    text = LINE_OF.sub(r"\1", re.sub(r"\x1b\[[0-9;]*m", "", text))
    if len(text) <= LONGEST:
        return text
    held = text[:text.rfind("\n", 0, LONGEST) + 1]
    return f"{held}[... {len(text[len(held):].splitlines())} more lines]\n"


def kept(outputs):
    """What a cell printed, as one; results as words and pictures. Not progress, and not HTML."""
    found, printed = [], ""
    for output in outputs:
        if output["output_type"] == "stream":
            printed += output["text"] if output["name"] == "stdout" else ""
        elif data := {kind: output["data"][kind] for kind in KEPT if kind in output["data"]}:
            data["text/plain"] = plain(data["text/plain"])
            found.append({"output_type": "display_data", "metadata": {}, "data": data})
    return [{"output_type": "stream", "name": "stdout", "text": plain(printed)}] * bool(printed) + found


def this_machine():
    """What figures of time depend on."""
    from bitnet_ref.train.summary import machine

    here = machine()
    return f"{here['cores']} cores of {here['processor']}, Python {here['python']}, NumPy {here['numpy']}"


def tidied(notebook, on):
    """As it is stored: outputs as `kept`, no counts or ids; which cells outputs are of, and what ran them."""
    for cell in notebook.cells:
        cell.pop("id", None)
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = None, [type(cell)(o) for o in kept(cell.outputs)]
            cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    notebook.nbformat_minor = 4                            # no ids, which would differ at each writing
    notebook.metadata = {key: notebook.metadata[key] for key in ("jupytext", "kernelspec")}
    made = made_from([cell.source for cell in code(notebook)])
    notebook.metadata["outputs"] = {"made_from": made, "on": on}
    return notebook


def disturbed(notebook):
    """Whether a cell says that its figures are of a machine that was busy with something else."""
    from bitnet_ref.walk.cpu_kernels import DISTURBED

    return any(DISTURBED in output.get("text", "") for cell in code(notebook) for output in cell["outputs"])


def write(name):
    """The .ipynb of a text, unless the machine was disturbed."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    file = FOLDER / f"{name}.md"
    file.write_text(addressed(file.read_text(encoding="utf-8"), name, repository()), encoding="utf-8")
    notebook = jupytext.read(file)
    NotebookClient(notebook, timeout=None, kernel_name="python3",
                   resources={"metadata": {"path": str(FOLDER)}}).execute()
    tidied(notebook, this_machine())
    if disturbed(notebook):
        sys.exit(f"{name}: more threads did less than one: not kept; stop what else runs, and write it again")
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def sources_now(sources):
    """{number of a cell: what it shows now}, of cells that only `show` what the cells before import."""
    names, found = {}, {}
    for i, source in enumerate(sources):
        body = ast.parse(MAGIC.sub("    pass", source)).body
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), names)             # our own text
        if re.match(r"show\(.*\)\s*\Z", source, flags=re.DOTALL) and len(body) == 1:
            used = {n.id for n in ast.walk(body[0]) if isinstance(n, ast.Name)}
            if used <= names.keys():
                found[i] = plain(repr(eval(source, names)))
    return found


def refresh(name):
    """Put the present prose, and the library's present source, into an .ipynb whose code is the same."""
    import jupytext
    import nbformat

    file = FOLDER / f"{name}.ipynb"
    notebook, before = jupytext.read(file.with_suffix(".md")), nbformat.read(file, as_version=4)
    sources = [cell.source for cell in code(notebook)]
    if before.metadata.get("outputs", {}).get("made_from") != made_from(sources):
        sys.exit(f"{name}: its code is another than what its outputs are of: write it")
    for cell, old in zip(code(notebook), code(before)):
        cell.outputs = old.outputs
    for i, text in sources_now(sources).items():
        code(notebook)[i].outputs[0].data["text/plain"] = text
    nbformat.write(tidied(notebook, before.metadata["outputs"]["on"]), file)


def run(name):
    """Execute one where it stands; the file is not changed."""
    with tempfile.TemporaryDirectory() as empty:           # its own pytest.ini: not the options of the suite
        config = Path(empty) / "pytest.ini"
        config.write_text("[pytest]\n", encoding="utf-8")
        options = "-q", "-c", config, "-p", "no:cacheprovider", "--nbmake", f"--nbmake-timeout={GATE}"
        subprocess.run([sys.executable, "-m", "pytest", *options, FOLDER / f"{name}.ipynb"], check=True,
                       cwd=empty)


def chosen(args):
    """The notebooks that the command line names."""
    everything = names()
    if args.day or args.since:
        some = of_the_day(everything, datetime.date.today().timetuple().tm_yday) if args.day else []
        return sorted({*some, *(changed(args.since) if args.since else [])})
    wanted = [n for n in everything if not args.names or any(n.startswith(part) for part in args.names)]
    return wanted or sys.exit(f"no notebook of that name; there are {', '.join(everything)}")


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("verb", choices=("write", "refresh", "run"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--day", action="store_true", help="three by the day of the year")
    parser.add_argument("--since", metavar="COMMIT", help="and those that changed since")
    args, slow = parser.parse_args(), []
    for name in chosen(args):
        began = time.monotonic()
        {"write": write, "refresh": refresh, "run": run}[args.verb](name)
        took = time.monotonic() - began
        print(f"{name}: {took:.0f} s", flush=True)
        slow += [name] * (took > GATE)
    sys.exit(f"over {GATE} s: {', '.join(slow)}" if slow else 0)


if __name__ == "__main__":
    main()
