"""The site builds without a warning, leads nowhere in vain, asks no other host and can be searched.

The build is the documented command (docs/contributing.md); BITNET_REF_SITE names a built site to check
instead.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import site_checker

ROOT = Path(__file__).resolve().parent.parent
BUILT = os.environ.get("BITNET_REF_SITE")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if BUILT:
        return Path(BUILT).resolve()
    for needed in ("sphinx", "myst_nb", "furo", "latex2mathml", "ziamath"):
        pytest.importorskip(needed, reason="needs the extra `docs`")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


# ---- the site as it is built ----

@pytest.mark.slow
def test_no_link_leads_nowhere(site):
    assert site_checker.leads_nowhere(site) == []


@pytest.mark.slow
def test_no_other_host_is_asked(site):
    assert site_checker.asks_others(site) == []


@pytest.mark.slow
def test_every_page_has_a_way_on(site):
    assert site_checker.without_a_way_on(site) == []


@pytest.mark.slow
def test_every_page_of_the_repository_is_there(site):
    for path in sorted((ROOT / "docs").rglob("*.md")):
        assert (site / path.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), path


@pytest.mark.slow
def test_search_finds_words_of_pages_and_names(site):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)\s*;?\s*", text, flags=re.DOTALL)[1])
    assert "bitlinear" in index["terms"]
    assert any("bitnet_ref.layers.rmsnorm" in prefix for prefix in index["objects"])


@pytest.mark.slow
def test_equations_are_drawn_and_linked(site):
    text = (site / "ops" / "rmsnorm.html").read_text(encoding="utf-8")
    assert text.count("<math") > 20
    assert 'id="RN.4"' in text
    assert r"\frac" not in text
    code = (site / "source" / "bitnet_ref" / "layers" / "rmsnorm.py.html").read_text(encoding="utf-8")
    assert 'ops/rmsnorm.html#RN.4"' in code


@pytest.mark.slow
def test_no_formula_is_left_as_it_was_typed(site):
    assert site_checker.not_understood(site) == []


@pytest.mark.slow
def test_every_equation_that_is_mentioned_has_a_place(site):
    assert site_checker.without_a_place(site) == []


@pytest.mark.slow
def test_commands_of_a_header_can_be_pasted(site):
    text = re.sub(r"<[^>]+>", "", (site / "_made" / "api" / "convert.html").read_text(encoding="utf-8"))
    assert "\npython -m bitnet_ref.convert runs/nano-001 nano.gguf --type tq2_0\n" in text


@pytest.mark.slow
def test_a_link_to_a_test_or_a_table_leads_to_its_line(site):
    text = (site / "paper-alignment.html").read_text(encoding="utf-8")
    assert 'tests/test_quant.py.html#test_codes_equal_the_scalar_twin"' in text
    assert 'bitnet_ref/config.py.html#PRESETS"' in text
    assert all("#test_" in link for link in re.findall(r'href="([^"]+)"[^>]*>test_\w+\.py: ', text))


@pytest.mark.slow
def test_a_notebook_shows_what_it_printed_and_where(site):
    for page in (site / "_made" / "notebooks").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "What its cells print is of one run" in text, page
        assert "no answer yet" in text, page
        assert re.search(r'<img alt="[^"]{20,}"', text), page


@pytest.mark.slow
def test_a_source_in_a_notebook_is_coloured(site):
    text = (site / "_made" / "notebooks" / "01_ternary.html").read_text(encoding="utf-8")
    assert re.search(r'class="kn?">def</span>.{0,60}absmean_ternary', text)


@pytest.mark.slow
def test_functions_and_definitions_are_set_apart(site):
    text = (site / "ops" / "bitlinear.html").read_text(encoding="utf-8")
    assert ">:=</mo>" in text
    text = (site / "ops" / "quant.html").read_text(encoding="utf-8")
    assert re.search(r"<mi>log</mi>(</?\w+[^>]*>|2)*<mspace", text)


# ---- where an equation is at home ----

def test_a_notebook_that_quotes_an_equation_is_not_its_home(monkeypatch):
    """Whichever of the two is read last, which in an incremental build may be either."""
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    monkeypatch.syspath_prepend(ROOT / "docs")
    from _site.links import Equations

    found = {}
    for page in ("ladders", "_made/notebooks/06_cpu_kernels"):
        node = {"ids": []}
        Equations.place(SimpleNamespace(env=SimpleNamespace(docname=page)), node, [("RF", "1")], found)
        assert node["ids"] == ["RF.1"]
    assert found == {"RF.1": "ladders"}


# ---- the checker notices ----

def test_the_checker_sees_what_is_broken(tmp_path):
    (tmp_path / "a.html").write_text('<a class="next-page" href="b.html#here">b</a><a href="gone.html">x</a>'
                                     '<a href="b.html#not">y</a><a href="https://example.org">out</a>')
    (tmp_path / "b.html").write_text('<p id="here"><img src="https://example.org/a.png"></p>')
    (tmp_path / "s.css").write_text('@font-face { src: url("//example.org/f.woff") }')
    assert site_checker.leads_nowhere(tmp_path) == [("a.html", "gone.html"), ("a.html", "b.html#not")]
    assert site_checker.asks_others(tmp_path) == [("b.html", "https://example.org/a.png"),
                                                  ("s.css", "//example.org/f.woff")]
    assert site_checker.without_a_way_on(tmp_path) == ["b.html"]


def test_the_checker_sees_formulas_that_are_none(tmp_path):
    (tmp_path / "a.html").write_text("<title>$x$</title><p>for which $$ nothing</p><code>$y$</code> $HOME")
    (tmp_path / "b.html").write_text('<p id="RN.3">b \\ge 32 (ST.4)</p><pre>a $ b</pre> 1–2')
    (tmp_path / "c.html").write_text("<p>by (RN.3), <b>–type</b>")
    assert site_checker.not_understood(tmp_path) == [
        ("a.html", "for which $$ nothing $HOME"), ("a.html", "for which $$ nothing $HOME"),
        ("b.html", "b \\ge 32 (ST.4) 1–2"), ("c.html", "by (RN.3), –type")]
    assert site_checker.without_a_place(tmp_path) == ["ST.4"]
