"""docs/paper-alignment.md: whatever the table links to is there, and no statement stands without proof.

The cells of a row: the statement and its source; what is so here; links to code and to tests. A link to code
names a definition of the file that it leads to. A link to a test reads "file.py: name", without test_ and
with spaces, so that it breaks across lines on a phone.
"""

import ast
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from test_docs import anchor, help_of

from bitnet_ref.config import PRESETS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGE = (DOCS / "paper-alignment.md").read_text(encoding="utf-8")
STATES = {"as stated", "differs", "partly", "not run", "left out"}
PAPERS = {"2310.11453", "2402.17764", "2504.12285", "2411.04965", "2504.18415", "2502.11880", "FAQ"}
# Where in a paper or a repository: a section, a number, or a file.
PLACE = re.compile(r"(sec\.|eq\.|Table|Fig\.) \d|\b(abstract|code|tips|FAQ|checkpoint)\b|`[\w./-]+\.\w+`")
LINK = re.compile(r"\[(`?)([^\]`]+)`?\]\(([^)\s]+)\)")


class Row(NamedTuple):
    """One line of a table; code and tests as [(text, path)]."""

    statement: str
    source: str
    here: str
    code: list[tuple[str, Path]]
    tests: list[tuple[str, Path]]


def row_of(line):
    """The row of a line of a table."""
    cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    assert len(cells) == 3, f"{len(cells)} cells: {line}"
    statement, _, source = cells[0].partition("<br>")
    links = [(text, target) for _, text, target in LINK.findall(cells[2])]
    parts = [[(text, (DOCS / target).resolve()) for text, target in links
              if target.startswith("../tests/") == wanted] for wanted in (False, True)]
    return Row(statement, source.strip("*"), cells[1], *parts)


def rows(page):
    """Of every table with the head of this page."""
    found, inside = [], False
    for line in page.splitlines():
        if not line.startswith("|"):
            inside = False
        elif line == "| statement, *source* | here | code, tests |":
            inside = True
        elif inside and not set(line) <= set("|-"):
            found.append(row_of(line))
    return found


@cache
def definitions(path):
    """Names that a module binds at its top: functions, classes, assignments."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names


def wrong_command(command):
    """What is wrong with `python -m bitnet_ref...`, or None."""
    words = shlex.split(command)
    if words[:2] != ["python", "-m"] or importlib.util.find_spec(words[2]) is None:
        return "no such module"
    module, *rest = words[2:]
    text = help_of(module)
    verbs = re.search(r"^  \{([\w,-]+)\}", text, flags=re.MULTILINE)
    if verbs and f"[{verbs[0].strip()}]" not in text:      # in brackets: it may be left out
        if not rest or rest[0] not in verbs[1].split(","):
            return f"{module} needs one of its verbs"
        text += help_of(module, rest[0])
    for flag in (word for word in rest if word.startswith("-")):
        if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text):
            return f"{module} has no {flag}"
    if "--preset" in rest and rest[rest.index("--preset") + 1] not in PRESETS:
        return "no such preset"
    return None


def wrong_links(row):
    """Links to what is not there, in the cells of code and of tests."""
    for text, path in row.code:
        if not path.is_file() or text not in definitions(path):
            yield f"{path.name} does not define {text}"
    for text, path in row.tests:
        name, _, said = text.partition(": ")
        test = "test_" + said.replace(" ", "_")
        if not path.is_file() or path.name != name or test not in definitions(path):
            yield f"there is no test {text}"


def problems(row):
    """All that is wrong with a row, in words."""
    yield from wrong_links(row)
    if not PLACE.search(row.source):
        yield "no source"
    state = re.match(r"\*\*([\w ]+)\*\*", row.here)
    if state is None or state[1] not in STATES:
        yield "no state"
        return
    commands = re.findall(r"`(python [^`]+)`", row.here)
    yield from (f"`{c}`: {wrong}" for c in commands if (wrong := wrong_command(c)))
    if state[1] in ("as stated", "differs", "partly") and not row.tests:
        yield f"{state[1]}, but no test"
    if ("not run" in row.here) and not commands:
        yield "not run, but no command"
    if state[1] in ("differs", "left out", "partly") and not LINK.search(row.here):
        yield f"{state[1]}, but no page that says why or shows what"


ROWS = rows(PAGE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.statement[:60])
def test_a_row_is_true_of_the_repository(row):
    assert list(problems(row)) == []


def test_every_paper_and_every_state_is_there():
    sources = " ".join([*re.findall(r"^#.*$", PAGE, flags=re.MULTILINE), *(row.source for row in ROWS)])
    assert {paper for paper in PAPERS if paper not in sources} == set()
    assert {re.match(r"\*\*([\w ]+)\*\*", row.here)[1] for row in ROWS} == STATES
    assert len({row.statement for row in ROWS}) == len(ROWS) > 60


def test_anchors_lead_to_headings():
    """Those of other pages too: links of this page are its evidence."""
    for _, text, target in LINK.findall(PAGE):
        name, _, fragment = target.partition("#")
        if fragment and name.endswith(".md"):
            headings = re.findall(r"^#+ (.+)$", (DOCS / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert fragment in {anchor(h) for h in headings}, f"{text}: {target}"


# --- the check bites ---------------------------------------------------------------------------------------

GOOD = ("| w<br>*sec. 2* | **as stated** | [`absmax_int8`](../bitnet_ref/quant.py)<br>"
        "[test_quant.py: stats of known matrices](../tests/test_quant.py) |")


@pytest.mark.parametrize(("old", "new", "word"), [
    ("*sec. 2*", "", "no source"), ("sec. 2", "somewhere", "no source"),
    ("**as stated**", "as stated", "no state"), ("as stated", "certainly", "no state"),
    ("`absmax_int8`", "`absmax_int7`", "does not define"),
    ("bitnet_ref/quant", "bitnet_ref/quants", "does not define"),
    ("of known", "of unknown", "there is no test"), ("[test_quant", "[test_quart", "there is no test"),
    ("tests/test_quant", "tests/test_docs", "there is no test"),
    ("<br>[test_quant.py: stats of known matrices](../tests/test_quant.py)", "", "but no test"),
    ("as stated", "differs", "no page"), ("as stated", "left out", "no page"),
    ("as stated", "not run", "no command"), ("as stated", "partly", "no page"),
    ("**as stated**", "**not run**: `python -m bitnet_ref.reproduce`", "no such module"),
    ("**as stated**", "**not run**: `python -m bitnet_ref.train --presets 3b`", "has no --presets"),
    ("**as stated**", "**not run**: `python -m bitnet_ref.train --preset 4b`", "no such preset"),
    ("**as stated**", "**not run**: `python -m bitnet_ref.conform dumps --ids 1`", "verbs")])
def test_a_wrong_row_is_noticed(old, new, word):
    assert list(problems(row_of(GOOD))) == []
    assert old in GOOD
    assert word in "; ".join(problems(row_of(GOOD.replace(old, new))))
