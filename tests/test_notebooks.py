"""The notebooks: both forms agree, the library owns the code, outputs are of it, questions stand open.

None is executed here: .ci/run executes three a day and those that changed, .ci/nightly all, by
.ci/notebooks.py.
"""

import ast
import base64
import importlib.util
import json
import re
import struct
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from bitnet_ref.bench.roofline import Machine
from bitnet_ref.walk import puzzle
from bitnet_ref.walk.cpu_kernels import limits

ROOT = Path(__file__).resolve().parent.parent
FOLDER, PROJECT = ROOT / "notebooks", tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEXTS = {p.stem: p.read_text(encoding="utf-8") for p in sorted(FOLDER.glob("*.md")) if p.stem != "README"}
SLUG = PROJECT["tool"]["bitnet_ref"]["repository"]
REUSABLE, WIDTH = 5, 1400                                 # lines of a definition; pixels of a picture
PICTURE, NOTEBOOK = 64 * 1024, 192 * 1024                 # bytes of one; of an .ipynb
FENCE = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$\n?", re.DOTALL | re.MULTILINE)
TAGS = re.compile(r"\A:tags: \[(.*?)\]\n\n?")

each_notebook = pytest.mark.parametrize("name", TEXTS)


def held(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def cells_of_text(text):
    """[(kind, source, tags)] of a MyST text, its header left out."""
    body, found, at = text.split("---\n", 2)[2], [], 0
    for fence in [*FENCE.finditer(body), None]:
        prose = body[at:fence.start() if fence else None].strip("\n")
        found += [("markdown", part.strip("\n"), []) for part in prose.split("\n+++\n") if part.strip()]
        if fence:
            at, source = fence.end(), fence[1]
            tags = TAGS.match(source)
            found.append(("code", TAGS.sub("", source).strip("\n"), tags[1].split(", ") if tags else []))
    return found


def cells(name):
    return cells_of_text(TEXTS[name])


def code(name):
    """The sources of the code cells, magics left out."""
    return [tool().MAGIC.sub("    pass", source) for kind, source, _ in cells(name) if kind == "code"]


def definitions(source):
    """(name, lines) of all functions and classes that a cell defines."""
    return [(n.name, n.end_lineno - n.lineno + 1) for n in ast.walk(ast.parse(source))
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]


def test_names_are_numbered_without_a_gap_in_a_pair_each():
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", name) for name in TEXTS), sorted(TEXTS)
    assert len({name[:2] for name in TEXTS}) == len(TEXTS)
    assert {p.stem for p in FOLDER.glob("*.ipynb")} == set(TEXTS)
    assert {name[:2]: name[3:] for name in TEXTS} == puzzle.NOTEBOOKS


@each_notebook
def test_the_two_forms_agree(name):
    """If not: python .ci/notebooks.py refresh NUMBER, or write, where the code is another."""
    stored = [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", []))
              for c in held(name)["cells"]]
    assert stored == cells(name)


@each_notebook
def test_jupytext_reads_the_text_as_we_do(name):
    jupytext = pytest.importorskip("jupytext", reason="needs the extra `notebooks`")
    read = jupytext.reads(TEXTS[name], "md")
    assert [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in read.cells] == cells(name)
    assert read.metadata["jupytext"]["formats"] == "ipynb,md:myst"


def outputs(name):
    """(number of the cell of code, output) of all that an .ipynb keeps."""
    return [(i, output) for i, cell in enumerate(tool().code(held(name))) for output in cell["outputs"]]


def words(output):
    return "".join(output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"])


@each_notebook
def test_outputs_are_of_the_present_text(name):
    """If not: python .ci/notebooks.py write NUMBER."""
    cells, about = tool().code(held(name)), held(name)["metadata"]["outputs"]
    assert about["made_from"] == tool().made_from(["".join(cell["source"]) for cell in cells])
    assert re.fullmatch(r"\d+ cores of .+, Python [\d.]+, NumPy [\d.]+", about["on"])
    assert all(cell["execution_count"] is None for cell in cells)
    assert len(outputs(name)) > len(cells) / 2


def sources_now(name, cells):
    """{number of a cell: what it shows}"""
    if name.startswith("07"):
        pytest.importorskip("numba_cuda", reason="its kernels need the extra `cuda`")
    return tool().sources_now(cells)


@each_notebook
def test_sources_that_are_shown_are_the_library_s(name):
    """If not: python .ci/notebooks.py refresh NUMBER."""
    cells = tool().code(held(name))
    for i, text in sources_now(name, ["".join(cell["source"]) for cell in cells]).items():
        assert [words(output) for output in cells[i]["outputs"]] == [text], f"{name}, cell of code {i}"


@each_notebook
def test_a_source_is_shown_by_a_cell_of_its_own(name):
    """Else nobody notices that it is another by now, and the site does not colour it."""
    sources = code(name)
    shown = {i for i, source in enumerate(sources) if re.search(r"^show\(", source, flags=re.MULTILINE)}
    assert shown == set(sources_now(name, sources))


@each_notebook
def test_outputs_are_words_and_small_pictures_that_anyone_may_see(name):
    for _, output in outputs(name):
        said = words(output)
        assert output["output_type"] in ("stream", "display_data")
        assert output.get("name", "stdout") == "stdout"
        assert len(said) <= tool().LONGEST + 40
        assert "\x1b" not in said
        assert not re.search(r"/(?:home|root|tmp)/|0x[0-9a-f]{9,}", said), f"{name}: of one machine: {said}"
        if output["output_type"] == "display_data":
            assert set(output["data"]) in ({"text/plain"}, {"text/plain", "image/png"})
        if "image/png" in output.get("data", ()):
            is_small_picture("".join(output["data"]["image/png"]))
            assert "<" not in said, "what is to be seen in it, for who cannot see it"
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= NOTEBOOK


def is_small_picture(encoded):
    png = base64.b64decode(encoded)
    width = struct.unpack(">I", png[16:20])[0]
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(png) <= PICTURE
    assert 600 <= width <= WIDTH


@each_notebook
def test_one_hero(name):
    heroes = [cell for cell in held(name)["cells"] if cell["metadata"].get("tags") == ["hero"]]
    assert len(heroes) == 1
    assert "image/png" in heroes[0]["outputs"][-1]["data"]


@each_notebook
def test_the_library_owns_the_code(name):
    for source in code(name):
        long = [(what, n) for what, n in definitions(source) if n > REUSABLE]
        assert not long, f"{name}: {long}: more than {REUSABLE} lines go into the library"


def test_a_long_definition_is_noticed():
    inside = "for i in ():\n    def long():\n" + "        i\n" * REUSABLE
    assert definitions(inside) == [("long", REUSABLE + 1)]


@each_notebook
def test_the_first_cells_are_the_title_and_how_to_get_the_library(name):
    assert cells(name)[0][0] == "markdown"
    assert cells(name)[0][1].startswith(f"# {name[:2]} · ")
    has_address(TEXTS[name], name, SLUG)
    assert tool().addressed(TEXTS[name], name, SLUG) == TEXTS[name]


@each_notebook
def test_a_repository_gives_badges_and_a_line_that_fetches(name):
    """All of them or none; an address that is not ours would be run by readers."""
    there = tool().addressed(TEXTS[name], name, "owner/name")
    has_address(there, name, "owner/name")
    assert tool().addressed(there, name, "owner/name") == there
    has_address(tool().addressed(there, name, ""), name, "")
    assert tool().addressed(there, name, SLUG) == TEXTS[name]


def has_address(text, name, slug):
    (_, title, _), (_, first, _) = cells_of_text(text)[:2]
    badges = [f"(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}.ipynb)",
              f"(https://mybinder.org/v2/gh/{slug}/main?labpath=notebooks/{name}.ipynb)"]
    assert [b in title for b in badges] == [bool(slug)] * 2
    assert (f'%pip install -q "bitnet_ref[notebooks] @ git+https://github.com/{slug}"' in first) == bool(slug)
    assert ("pip install '.[notebooks]'" in first) == (not slug)
    assert slug or not re.search(r"colab\.research|mybinder|git\+|%pip", text)


@each_notebook
def test_each_question_stands_there_once_and_open(name):
    prose = "\n".join(source for kind, source, _ in cells(name) if kind == "markdown")
    asked = re.findall(r"^check\(\"(\d\d\.\d+)\", (.+)\)$", "\n".join(code(name)), re.MULTILINE)
    known = puzzle.questions(name[:2])
    assert [number for number, _ in asked] == list(known)
    assert 4 <= len(known) <= 8
    for number, answer in asked:
        assert f"**{number}** {known[number].spec}" in prose, f"{name}: its text is not the question's"
        assert answer == "..." or f"def {answer}(" in "\n".join(code(name))


@each_notebook
def test_what_a_text_names_is_there(name):
    prose = "\n".join(source for kind, source, _ in cells(name) if kind == "markdown")
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, fragment = link.partition("#")
        if not re.match(r"[a-z]+:", link):
            assert (FOLDER / path).exists(), f"{name} links to {link}"
            assert not fragment, f"{name}: {link}: link to the page"
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md"))
    for tag in set(re.findall(r"\([A-Z]{2}\.\d+\)", prose)):
        assert rf"\text{{{tag}}}" in pages or f"**{tag}" in pages, f"{name}: no page has {tag}"


def test_each_leads_to_the_next():
    """By the .ipynb, which is what a reader of notebooks opens and what the site shows."""
    for name, following in pairwise(TEXTS):
        last = [source for kind, source, _ in cells(name) if kind == "markdown"][-1].splitlines()[-1]
        assert last.startswith("Next: "), name
        assert f"]({following}.ipynb)" in last, name
    for name, text in TEXTS.items():
        assert not re.search(r"\]\(\d\d_\w+\.md\)", text), f"{name} links to a text"


def formulas(text):
    """[(tag, formula without spaces)] of each line that is a numbered formula."""
    line = r"^\$\$ ?(.+?)\\q?quad \\text\{(\([A-Z]{2}\.\d+\))\} ?\$\$$"
    found = re.findall(line, text, flags=re.MULTILINE)
    return [(tag, re.sub(r"\s", "", formula)) for formula, tag in found]


@each_notebook
def test_a_numbered_formula_is_that_of_its_page(name):
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md"))
    there = dict(formulas(pages))
    assert len(formulas(TEXTS[name])) == TEXTS[name].count(r"\text{(")
    for tag, formula in formulas(TEXTS[name]):             # after a wide space one may add a letter's meaning
        here, page = (f.split(r",\qquad") for f in (formula, there[tag]))
        assert all(a == b for a, b in zip(here, page)), f"{name}: {tag} is another formula on its page"


@each_notebook
def test_torch_is_not_needed(name):
    for source in code(name):
        for node in ast.walk(ast.parse(source)):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) else [])
            assert not {m.partition(".")[0] for m in modules} & {"torch", "transformers"}, name


# ---- the turns ----


def tool():
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / ".ci" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10])
def test_all_take_turns(n):
    everything = [f"{i:02}" for i in range(n)]
    days = [tool().of_the_day(everything, day) for day in range(n, 2 * n)]
    assert {name for day in days for name in day} == set(everything)
    assert all(len(day) == min(n, 3) for day in days)


def test_the_runner_knows_the_same_notebooks():
    assert tool().names() == list(TEXTS)


# ---- what is kept of a run ----

def test_outputs_are_of_their_cells():
    """Another text, another order, or the same text in other cells: another checksum."""
    sums = {tool().made_from(cells) for cells in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""])}
    assert len(sums) == 4


def test_what_is_printed_is_kept_as_one_and_progress_is_not():
    def stream(name, text):
        return {"output_type": "stream", "name": name, "text": text}

    picture = {"output_type": "display_data", "metadata": {"x": 1},
               "data": {"image/png": "...", "text/plain": "a picture", "text/html": "<p>"}}
    found = tool().kept([stream("stdout", "a\n"), stream("stderr", "50%"), picture, stream("stdout", "b")])
    assert found == [stream("stdout", "a\nb"), {"output_type": "display_data", "metadata": {},
                     "data": {"text/plain": "a picture", "image/png": "..."}}]
    assert tool().kept([stream("stderr", "50%")]) == []


def test_figures_of_a_disturbed_machine_are_not_kept():
    def printed(text):
        out = {"output_type": "stream", "name": "stdout", "text": text}
        return {"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": [out]}]}

    one = Machine("a machine", (), "none", 1, 1e10, 1e11, 1e11, 4e11, "3", "2", "0", "0")
    assert tool().disturbed(printed(limits(one, one._replace(threads=2, float32=6e10))))
    assert not tool().disturbed(printed(limits(one, one._replace(threads=2))))


def test_what_is_long_says_how_much_is_missing():
    text = "".join(f"{i:5}\n" for i in range(3000))
    lines = tool().plain(text).splitlines()
    assert lines[-1] == f"[... {3000 - len(lines) + 1} more lines]"
    assert len(tool().plain(text)) <= tool().LONGEST + 40
    assert tool().plain("\x1b[31mred\x1b[0m") == "red"


def test_a_changed_source_is_noticed():
    begin = "from bitnet_ref.walk import show\nfrom bitnet_ref.quant import dequantise"
    cells = [begin, "show(dequantise)", "show(x)"]
    found = tool().sources_now(cells)
    assert list(found) == [1]                              # x is no import: nothing can be said of it
    assert found[1].startswith("# bitnet_ref/quant.py\n")
    assert "def dequantise(" in found[1]
