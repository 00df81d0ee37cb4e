"""Figures in the docs are those that their scripts print now: none was typed, none was left behind.

What is measured cannot be measured again here; but what is made of kept figures (docs/benchmarks/*.json), of
other pages or of formulas can be made again, and must be what stands between the markers.
"""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from bitnet_ref.bench import layout_pictures, page, readme, recipe, report, scaling
from bitnet_ref.checks import CheckError

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "benchmarks"
MARKED = [(p.relative_to(ROOT).as_posix(), command)
          for p in [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "golden/README.md"]
          for command in re.findall(r"<!-- generated: (.*?) -->", p.read_text(encoding="utf-8"))]


def kept(name):
    return json.loads((KEPT / name).read_text(encoding="utf-8"))


AGAIN = {
    ("README.md", "bench.readme"): lambda: readme.table(ROOT),
    ("README.md", "bench.page"): lambda: page.readme_block(kept("figures.json")),
    ("README.md", "bench"): lambda: report.headlines(list(kept("cpu.json").values())),
    ("docs/benchmarks/training.md", "bench.page"): lambda: page.training_block(kept("figures.json")),
    ("docs/benchmarks/cpu.md", "bench"): lambda: report.page_block(kept("cpu.json")),
    ("docs/training.md", "bench.recipe"): lambda: recipe.block(kept("recipe.json")),
    ("docs/scaling.md", "bench.scaling --rounds 7 --root ."):
        lambda: scaling.validation_block(kept("scaling.json")),
    ("docs/scaling.md", "bench.scaling --rounds 0 --root ."): scaling.model_block,
    ("docs/formats/rosetta.md", "bench.layout_pictures"): layout_pictures.table,
}


@pytest.mark.parametrize(("name", "command"), MARKED)
def test_the_command_of_a_marker_exists(name, command):
    words = shlex.split(command)
    assert words[0] == "python", f"{name}: {command}"
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"{name}: there is no {words[2]}"
    else:
        assert (ROOT / words[1]).is_file(), f"{name}: there is no {words[1]}"


@pytest.mark.parametrize(("name", "command"), AGAIN)
def test_a_block_is_what_its_script_prints_now(name, command):
    assert readme.block(ROOT / name, command) == AGAIN[name, command]() + "\n", f"{name} is stale: {command}"


def test_a_stale_figure_is_noticed(tmp_path):
    stale = (ROOT / "README.md").read_text(encoding="utf-8").replace("tokens/s, ", "tokens/s or more, ")
    (tmp_path / "README.md").write_text(stale, encoding="utf-8")
    assert readme.block(tmp_path / "README.md", "bench.readme") != readme.table(ROOT) + "\n"


def test_readme_reads_tables_by_the_name_of_a_row():
    text = "| file | bytes |\n|---|---|\n| a | 1 |\n| a, b | 2 |\n"
    assert readme.cells(text, "a, b") == ["2"]
    with pytest.raises(CheckError, match="its row"):
        readme.cells(text, "b")
