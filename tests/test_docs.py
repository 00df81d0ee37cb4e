"""The docs tell the truth: tags match the code, names resolve, links lead somewhere, commands exist.

A tag (RN.3) names an equation. A page defines it, as \\text{(RN.3)} in a formula or **(RN.3) in bold; a code
line cites it in a comment; other pages may mention it. DOCS_ONLY families state rules that no line computes.
"""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from bitnet_ref import DIMS
from bitnet_ref.cli import configs
from bitnet_ref.config import PRESETS

ROOT = Path(__file__).resolve().parent.parent
PAGES = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8")
         for p in [*sorted(ROOT.glob("docs/**/*.md")), *ROOT.glob("*.md"), *ROOT.glob("golden/*.md")]}
CODE = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8")
        for p in sorted(ROOT.glob("bitnet_ref/**/*.py"))}
DOCS_ONLY = {"NU"}
TAG = r"\(([A-Z]{2})\.(\d+)\)"

each_page = pytest.mark.parametrize("page", PAGES)


def tags(text, before=""):
    return [f"{family}.{n}" for family, n in re.findall(before + TAG, text)]


def defined(text):
    return tags(text, r"(?:\\text\{|\*\*)")


def cited(text):
    """Tags in comments of code."""
    return [tag for comment in re.findall(r"#[^\n]*", text) for tag in tags(comment)]


DEFINED = {page: defined(text) for page, text in PAGES.items() if defined(text)}
CITED = {path: cited(text) for path, text in CODE.items() if cited(text)}
FAMILIES = sorted({t[:2] for found in [*DEFINED.values(), *CITED.values()] for t in found})


def test_the_specification_has_tags():
    specification = {"QU", "EM", "RN", "RO", "AT", "GL", "LI", "BL", "CE", "AW", "BK", "TR", "MC", "NU"}
    assert specification <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_pages_and_code_have_the_same_tags(family):
    pages = [p for p, found in DEFINED.items() if any(t[:2] == family for t in found)]
    assert len(pages) == 1, f"one page defines the tags of {family}, not {pages or 'none'}"
    on_page = [t for t in DEFINED[pages[0]] if t[:2] == family]
    numbers = [int(t[3:]) for t in on_page]
    assert sorted(numbers) == list(range(1, len(numbers) + 1)), f"{pages[0]}: each number once, none left out"
    if family not in DOCS_ONLY:
        assert {t for found in CITED.values() for t in found if t[:2] == family} == set(on_page), pages[0]


def test_tags_are_cited_by_one_module():
    """One module computes a family; a backend's version of it may cite the same lines."""
    for family in set(FAMILIES) - DOCS_ONLY:
        homes = [p for p, found in CITED.items() if "kernels" not in p and family in {t[:2] for t in found}]
        assert len(homes) <= 1, f"{family}: {homes}"


def test_every_mention_of_a_tag_is_of_a_defined_one():
    known = {t for found in DEFINED.values() for t in found}
    for where, text in {**PAGES, **CODE}.items():
        assert set(tags(text)) <= known, f"{where} mentions {sorted(set(tags(text)) - known)}"


def resolve(dotted):
    """Import the longest prefix that is a module; the rest are attributes. (layers.rmsnorm is both.)"""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as e:
            if not dotted.startswith(e.name):
                raise
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


@each_page
def test_names_resolve(page):
    for dotted in sorted(set(re.findall(r"`(bitnet_ref(?:\.\w+)+)(?:\(\))?`", PAGES[page]))):
        try:
            resolve(dotted)
        except (ImportError, AttributeError) as e:
            pytest.fail(f"{page}: `{dotted}`: {e}")


def links(text):
    """Targets of [text](target), outside code blocks."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchor(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@each_page
def test_links_lead_somewhere(page):
    for link in links(PAGES[page]):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {link}"
        if fragment and path.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert fragment in {anchor(h) for h in headings}, f"{page} links to {link}"


@each_page
def test_files_named_in_text_exist(page):
    """`bitnet_ref/layers/rope.py` in backticks is a path from the root; placeholders have <brackets>."""
    for name in re.findall(r"`((?:bitnet_ref|tests|docs|golden|notebooks)/[\w./-]+)`", PAGES[page]):
        assert (ROOT / name).exists(), f"{page} names {name}"


@pytest.mark.parametrize("path", CODE)
def test_pages_named_in_code_exist(path):
    for name in re.findall(r"docs/[\w/-]+\.md", CODE[path]):
        assert (ROOT / name).is_file(), f"{path} sends the reader to {name}"


def test_every_page_can_be_found():
    """From the map (or the README), by links alone."""
    seen, todo = set(), ["docs/00-map.md", *(["README.md"] if "README.md" in PAGES else [])]
    while todo:
        page = todo.pop()
        if page in PAGES and page not in seen:
            seen.add(page)
            folder = (ROOT / page).parent
            todo += [os.path.relpath((folder / link.partition("#")[0]).resolve(), ROOT).replace(os.sep, "/")
                     for link in links(PAGES[page]) if not re.match(r"[a-z]+:", link)]
    lost = {p for p in PAGES if p.startswith("docs/")} - seen
    assert lost == set(), "no link leads here from docs/00-map.md"


@pytest.mark.parametrize("page", [p for p in PAGES if p.startswith("docs/") and "/decisions/" not in p
                                  and p != "docs/index.md"])
def test_a_page_ends_with_a_way_on(page):
    assert links(PAGES[page].rstrip().rpartition("\n\n")[2]), f"{page}: say where to go next"


def test_the_glossary_has_every_letter():
    rows = re.findall(r"^\| ([A-Za-z, ]+) \|", PAGES["docs/glossary.md"], flags=re.MULTILINE)
    assert {letter for row in rows for letter in row.split(", ")} >= set(DIMS)


def commands(text):
    """The arguments of each `python -m bitnet_ref...` in ```sh blocks, joined at a trailing backslash."""
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if "-m" in words and words[words.index("-m") + 1].startswith("bitnet_ref"):
                yield words[words.index("-m") + 1:]


COMMANDS = sorted({(page, *words) for page, text in PAGES.items() for words in commands(text)})


@cache
def help_of(*words):
    """What `python -m <words> --help` prints; it must succeed."""
    done = subprocess.run([sys.executable, "-m", *words, "--help"], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, f"python -m {' '.join(words)} --help: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("words", COMMANDS, ids=lambda w: " ".join(w))
def test_commands_in_pages_exist(words):
    page, module, *rest = words
    text = help_of(module)
    verbs = re.search(r"^  \{([\w,-]+)\}", text, flags=re.MULTILINE)     # subcommands, as argparse lists them
    if verbs and rest and rest[0] in verbs[1].split(","):
        text += help_of(module, rest[0])
    for flag in (w.partition("=")[0] for w in rest if re.match(r"--?[a-z]", w)):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", text), f"{page}: {module} has no {flag}"
    if "--preset" in rest:
        assert rest[rest.index("--preset") + 1] in PRESETS, page


@each_page
def test_configs_in_pages_are_valid(page, tmp_path):
    """A ```toml block is a file for --config: every table, name and value must fit the config classes."""
    for i, block in enumerate(re.findall(r"```toml\n(.*?)```", PAGES[page], flags=re.DOTALL)):
        file = tmp_path / f"{i}.toml"
        file.write_text(block, encoding="utf-8")
        configs(argparse.Namespace(config=str(file)))


@each_page
def test_generated_blocks_are_filled(page):
    opened = re.findall(r"<!-- generated: (.*?) -->", PAGES[page])
    blocks = re.findall(r"<!-- generated: (.+?) -->\n(.*?)<!-- end -->", PAGES[page], flags=re.DOTALL)
    assert [command for command, _ in blocks] == opened, f"{page}: a marker unclosed, or without a command"
    assert PAGES[page].count("<!-- end -->") == len(opened), f"{page}: an end without a beginning"
    for command, body in blocks:
        assert body.strip(), f"{page}: nothing between the markers of `{command}`"
        assert "<!--" not in body, f"{page}: markers of `{command}` overlap"


@each_page
def test_pages_speak_of_the_project_alone(page):
    """No path of somebody's machine."""
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users)/\w", PAGES[page]), page


def test_nobody_is_sent_to_an_index_for_us():
    """The name there is not ours: one installs from a clone."""
    for path, text in (PAGES | CODE).items():
        assert not re.search(r"bitnet_ref\[[a-z]|pip install (-\w+ )*[\"']?bitnet_ref", text), path
