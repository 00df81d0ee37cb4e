"""bench/rans: figures that add up, and a page that receives them."""

import pytest
from tiny import refusal

from bitnet_ref.bench import rans


def test_the_figures_add_up():
    row = rans.measured(0.42, (300, 400), rounds=1)
    bits = row.bits
    assert bits["entropy"] < bits["rans"] < bits["b3"] == 1.6 < bits["i2"] == 2
    assert bits["rans"] == pytest.approx(bits["entropy"], rel=0.003)
    assert min(bits["gzip -9"], bits["xz -9"]) > bits["rans"]
    assert min(row.packed, row.unpacked) > 1e6


def test_the_page_receives_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rans, "ZEROS", (0.42,))
    page = tmp_path / rans.PAGE
    page.parent.mkdir(parents=True)
    page.write_text("before\n<!-- generated: python -m bitnet_ref.bench.rans -->\nold\n<!-- end -->\nafter\n")
    assert rans.main(["--quick", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| 42% | 1.5" in printed
    assert printed.strip() in page.read_text()
    assert "old" not in page.read_text()
    page.write_text("no markers")
    with refusal("must hold the generated markers"):
        rans.main(["--quick", "--root", str(tmp_path)])
