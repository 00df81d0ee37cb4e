"""bench/diagrams: the committed pictures are the script's, what they name exists, a phone can show them."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import pytest
from test_alignment import definitions
from test_imports import COMMANDS, ORDER

from bitnet_ref.bench import diagrams
from bitnet_ref.bench.diagrams import DIAGRAMS, PAGE, PICTURES, TIERS
from bitnet_ref.bench.svg import SMALLEST, WIDTH, Picture
from bitnet_ref.checks import CheckError
from bitnet_ref.cli import DONE, run_command
from bitnet_ref.config import ModelConfig
from bitnet_ref.model.layout import FREE, NORMS, layout

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = ROOT / "bitnet_ref"
SVG = "{http://www.w3.org/2000/svg}"
each = pytest.mark.parametrize("name", DIAGRAMS)


def words(picture, kind):
    """The lines of one face."""
    return [t.text for t in ET.fromstring(picture.svg()).iter(f"{SVG}text") if t.get("class") == kind]


# --- the committed files ------------------------------------------------------------------------------------


@each
def test_the_committed_picture_is_the_one_of_now(name):
    path = ROOT / "docs" / PICTURES / f"diagram-{name}.svg"
    assert path.read_text(encoding="utf-8") == DIAGRAMS[name]().svg(), "python -m bitnet_ref.bench.diagrams"


def test_no_other_picture_is_there_and_the_page_shows_each():
    text = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    there = {p.stem for p in (ROOT / "docs" / PICTURES).glob("diagram-*")}
    assert there == {f"diagram-{n}" for n in DIAGRAMS}
    assert re.findall(r"\]\(pictures/diagram-([\w-]+)\.svg\)", text) == list(DIAGRAMS)
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(sections) == len(DIAGRAMS)
    for section in sections:
        assert section.count("](../bitnet_ref/") >= 3, section.splitlines()[0]
        assert "\nRead: " in section


def test_the_command_writes_them_all(tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    assert run_command(diagrams.main, ["--root", str(tmp_path)]) == 2
    assert "must be a clone" in capsys.readouterr().err
    (tmp_path / "docs" / PAGE).touch()
    assert run_command(diagrams.main, ["--root", str(tmp_path)]) == DONE
    assert len(list((tmp_path / "docs" / PICTURES).iterdir())) == len(DIAGRAMS)


# --- what they say ------------------------------------------------------------------------------------------


@each
def test_what_is_set_as_code_is_in_the_code(name):
    known = {d for path in LIBRARY.rglob("*.py") for d in definitions(path)}
    for file in ("train/stability.py", "model/transformer.py"):                         # methods
        text = (LIBRARY / file).read_text(encoding="utf-8")
        known |= set(re.findall(r"^    def (\w+)", text, flags=re.MULTILINE))
    for line in words(DIAGRAMS[name](), "mono"):
        if line.split()[0] in NORMS:
            continue
        for word in line.split():
            assert any(LIBRARY.rglob(word)) if word.endswith(".py") and "/" not in word else (
                (LIBRARY / word).is_file() or word in known), word


def test_every_package_is_among_the_components_in_the_order_of_imports():
    names = [name for tier in TIERS for words, _ in tier for name in words.split()]
    there = {p.name.removesuffix(".py") for p in LIBRARY.iterdir()
             if (p.is_dir() and (p / "__init__.py").is_file()) or p.suffix == ".py"} - {"__init__"}
    assert sorted(names) == sorted(there)
    assert [n for n in names if n in ORDER] == [n for n in ORDER if n in there]
    assert set(names) - set(ORDER) == COMMANDS & there


def test_the_norms_of_a_block_are_those_of_the_table():
    lines = [line for line in words(DIAGRAMS["block"](), "mono") if line.split()[0] in NORMS]
    want = []
    for place in range(4):
        for norm in NORMS:
            gain = layout(ModelConfig(norm=norm))[place][0].norm
            want.append([norm, {None: "no norm", FREE: "norm without gain"}.get(gain, gain)])
    assert [line.split(maxsplit=1) for line in lines] == want
    assert len(want) == 12


def test_the_figures_of_the_quantisers_by_hand():
    """|w| adds up to 6.6 over 12; 127 / 2 = 63.5; -32 times 2 / 127 times 0.55."""
    said = words(DIAGRAMS["quantisation"](), "sans")
    assert "scale = mean |w| = 0.55" in said
    trits = said[said.index("up to half of it, 0.275: 0; beyond: the sign") + 1:][:12]
    assert trits == ["+1", "0", "0", "-1", "+1", "+1", "-1", "0", "-1", "+1", "+1", "0"]
    codes = said[said.index("max |x| = 2") + 1:][:4]
    assert codes == ["95", "-51", "19", "127"]
    for terms, total, y in (("+ 95 − 127", "-32", "-0.277"), ("+ 95 − 51 − 19", "25", "0.217"),
                            ("− 95 − 51 + 19", "-127", "-1.100")):
        at = said.index(terms)
        assert said[at + 1:at + 3] == [total, y]
        assert eval(terms.replace("−", "-")) == int(total)
        assert float(y) == pytest.approx(int(total) * 2 / 127 * 0.55, abs=5e-4)


# --- how they look ------------------------------------------------------------------------------------------


@each
def test_a_picture_is_for_a_phone_and_the_dark(name):
    """Narrow, with a ground of its own, words as text of a size that can be read; nothing from elsewhere."""
    svg = DIAGRAMS[name]().svg()
    root = ET.fromstring(svg)
    assert root.get("viewBox").split()[2] == str(WIDTH) == "400"
    assert root.find(f"{SVG}rect").get("width") == str(WIDTH)
    assert min(float(t.get("font-size")) for t in root.iter(f"{SVG}text")) >= SMALLEST >= 13
    assert root.find(f"{SVG}title").text
    assert root.find(f"{SVG}desc").text
    assert not re.search(r"href|url\((?!#)|https?://(?!www\.w3\.org/2000/svg)|<script|<image", svg)


@each
def test_boxes_lie_beside_each_other_and_inside(name):
    boxes = DIAGRAMS[name]().boxes
    assert all(b.x >= 0 and b.x + b.w <= WIDTH for b in boxes)
    for a, b in combinations(boxes, 2):
        assert (a.x + a.w <= b.x or b.x + b.w <= a.x or a.y + a.h <= b.y or b.y + b.h <= a.y), (a, b)


@pytest.mark.parametrize("draw", [
    lambda p: p.box(14, 10, 60, ["too long for it"]), lambda p: p.text(390, 20, "outside"),
    lambda p: p.text(14, 20, "small", size=12), lambda p: p.text(20, 20, "left of it", "end")])
def test_what_cannot_be_read_is_refused(draw):
    with pytest.raises(CheckError):
        draw(Picture("a", "b"))


def test_marks_of_a_page_are_escaped():
    p = Picture("a < b", "c & d")
    p.text(14, 20, "x < y & z")
    assert "x &lt; y &amp; z" in p.svg()
    assert ET.fromstring(p.svg()).find(f"{SVG}title").text == "a < b"
