"""Figures in the docs that can be made again here are those that their scripts print now.

What is made of kept figures (docs/benchmarks/*.json), of other pages or of formulas is AGAIN, and must be
what stands between the markers. The rest is MEASURED, each with what it takes; every block is one of the two.
"""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from bitnet_ref.bench import evaluation_page, layout_pictures, page, readme, recipe, report, scaling
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
    ("docs/benchmarks/evaluation.md", "evaluate report"):
        lambda: evaluation_page.block(kept("evaluation/report.json")),
}
MEASURED = {
    ("README.md", "bench.conform"): "the dumps of a faulty port and its judge",
    ("docs/benchmarks/conform.md", "bench.conform"): "hundreds of such dumps",
    ("docs/benchmarks/cuda.md", "bench cuda"): "a card",
    ("docs/compression.md", "bench.compression"): "models trained in several ways",
    ("docs/evaluation.md", "bench.scoring"): "times",
    ("docs/formats/bitnet.md", "bench.full_size"): "times and memory of a model of 2.4 billion parameters",
    ("docs/formats/rans.md", "bench.rans"): "times",
    ("docs/golden.md", "bench.golden"): "all golden cases computed again",
    ("docs/ladders-cuda.md", "bench.ladders.bitlinear_cuda"): "a card, or counts of the interpreter",
    ("docs/ladders.md", "bench.ladders.bitlinear_cpu"): "times",
    ("docs/ladders.md", "bench.ladders.attention_cpu"): "times",
    ("docs/ptx.md", "bench ptx --root ."): "times and counts of the interpreter",
    ("docs/speculative.md", "bench.chain_tables"): "the texts of a corpus in several vocabularies",
    ("docs/speculative.md", "bench.speculation"): "times of a trained model",
    ("docs/stability.md", "bench.stability"): "runs with trouble made on purpose",
    ("golden/README.md", "python golden/make.py"): "both oracles",
}


@pytest.mark.parametrize(("name", "command"), MARKED)
def test_the_command_of_a_marker_exists(name, command):
    words = shlex.split(command)
    assert words[0] == "python", f"{name}: {command}"
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"{name}: there is no {words[2]}"
    else:
        assert (ROOT / words[1]).is_file(), f"{name}: there is no {words[1]}"


def test_every_block_is_made_again_or_says_what_it_takes():
    blocks = [(name, command.removeprefix("python -m bitnet_ref.")) for name, command in MARKED]
    assert sorted(blocks) == sorted([*AGAIN, *MEASURED])


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
