"""bench/layout_pictures: the places it finds, and a page that says what the code does."""

from pathlib import Path

import numpy as np
import pytest

from bitnet_ref.bench import layout_pictures
from bitnet_ref.bench.layout_pictures import PAGE, PICTURES, SHAPES, Place, places, scale_bytes, slots, table
from bitnet_ref.pack.rosetta import LAYOUTS, pack

ROOT = Path(__file__).resolve().parent.parent.parent
each = pytest.mark.parametrize("name", LAYOUTS)


def test_the_page_has_the_table_of_now_and_every_picture():
    text = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    assert f"bitnet_ref.{layout_pictures.COMMAND} -->\n{table()}\n<!-- end -->" in text
    for name in LAYOUTS:
        assert f"(../{PICTURES}/rosetta-{name}.png)" in text
        assert (ROOT / "docs" / PICTURES / f"rosetta-{name}.png").read_bytes()[:4] == b"\x89PNG"
    drawn = {p.stem.removeprefix("rosetta-") for p in (ROOT / "docs" / PICTURES).glob("rosetta-*.png")}
    assert drawn == set(LAYOUTS)


@each
def test_no_two_trits_share_a_place(name):
    shape, _ = SHAPES[name]
    found = places(name, shape)
    assert len(set(found.values())) == len(found) == shape[0] * shape[1]
    assert {place.slot for place in found.values()} == set(range(len(slots(name))))


@pytest.mark.parametrize(("name", "at", "place"), [
    ("i2", (1, 6), Place(5, 1)), ("hf", (6, 3), Place(3, 0)), ("i2s_128", (0, 97), Place(1, 3)),
    ("i2s_64", (0, 64 + 17), Place(17, 1)), ("i2s_4row", (5, 2), Place(18, 1)),
    ("gpu", (9, 16 + 6), Place(64 + 32 + 4 + 2, 2)), ("torchao", (0, 7), Place(1, 3)),
    ("tq1_0", (0, 159), Place(31, 4)), ("tq1_0", (0, 255), Place(51, 3)), ("tq2_0", (0, 129), Place(33, 3)),
    ("q2_0", (0, 5), Place(3, 2)), ("ptq1_0", (0, 81), Place(17, 0)), ("base3", (1, 0), Place(1, 2)),
    ("keras", (2, 6), Place(5, 3))])
def test_places(name, at, place):
    assert places(name, SHAPES[name][0])[at] == place


def test_bytes_of_scales():
    assert scale_bytes("i2s_64", (1, 128)) == {32, 33, 34, 35}
    assert scale_bytes("tq2_0", (1, 256)) == {64, 65}
    assert scale_bytes("q2_0", (1, 64)) == {0, 1}
    assert scale_bytes("hf", (8, 8)) == set()


def test_the_probe_of_the_page():
    """The bytes of the row that the page prints."""
    text = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    w_q = np.zeros((16, 256), np.int8)
    w_q[0, :4] = [-1, 0, 1, 1]
    rows = [line.split(" | ") for line in text.splitlines() if line.count(" | ") == 2 and "| `" in line]
    said = {name.strip("`"): data for names, data, _ in rows for name in names.strip("| ").split(", ")}
    for name in LAYOUTS:
        data = pack(name, w_q)[2:] if name in ("q2_0", "pq2_0") else pack(name, w_q)
        assert said[name] == data[:4].tobytes().hex(" ").upper(), name


@pytest.mark.parametrize("name", ["base3", "torchao", "q2_0"])
def test_a_picture_is_drawn(name, tmp_path):
    layout_pictures.draw(name, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
