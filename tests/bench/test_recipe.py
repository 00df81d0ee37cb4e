"""bench/recipe: variants that differ from the base in one factor, compared by seed; a page of what came."""

import json
from dataclasses import asdict

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import cells as runs
from bitnet_ref.bench import recipe
from bitnet_ref.cli import run_command
from bitnet_ref.train import loop

SHORT = {"steps": 4, "eval_every": 2}
FEW = (recipe.Variant("schedule", "one line, decay kept", {"schedule": "linear"}),
       recipe.Variant("averaged weights", "ema 0.9", {"ema": 0.9}),
       recipe.Variant("norms", "pre", {"norm": "pre"}))


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process with a few variants: (exit code, stdout, stderr)."""
    monkeypatch.setattr(runs, "ProcessPoolExecutor", tiny.AtOnce)
    monkeypatch.setattr(recipe, "FACTORS", FEW[1:])

    def run(*arguments, **given):
        code = run_command(recipe.main, [*map(str, arguments), *tiny.flags(**{**SHORT, **given})])
        return (code, *capsys.readouterr())

    return run


def a_clone(root):
    for folder in ("benchmarks", "pictures"):
        (root / "docs" / folder).mkdir(parents=True)
    (root / "docs" / "training.md").write_text(
        "before\n<!-- generated: python -m bitnet_ref.bench.recipe -->\nold\n<!-- end -->\nafter\n")


def test_variants_are_compared_with_the_base_of_their_seed(run, tmp_path, monkeypatch):
    a_clone(tmp_path / "clone")
    code, out, err = run("--output", tmp_path / "runs", "--seeds", 2, "--root", tmp_path / "clone")
    assert code == 0, err
    figures = json.loads((tmp_path / "runs" / "recipe.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in figures["variants"]] == ["base", "ema 0.9", "pre"]
    base = figures["variants"][0]["loss"]
    for row in figures["variants"]:
        assert row["above the base"] == pytest.approx([a - b for a, b in zip(row["loss"], base)])
    assert figures["tokens"] == 4 * 4 * 32
    ema = figures["variants"][1]
    places = [tmp_path / "runs" / f"averaged-weights-ema-0.9-seed-{seed}" for seed in (0, 1)]
    raw = [json.loads((place / "final.json").read_text())["raw"] for place in places]
    assert raw == base != ema["loss"]
    text = (tmp_path / "clone" / "docs" / "training.md").read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert f"| norms | pre | {sum(figures['variants'][2]['loss']) / 2:.4f} |" in text
    assert "4 steps of 4 windows of 32 tokens (512 tokens), seeds 0 to 1" in text
    for name in recipe.PICTURES:
        assert (tmp_path / "clone" / "docs" / "pictures" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    kept = json.loads((tmp_path / "clone" / "docs" / "benchmarks" / "recipe.json").read_text())
    assert "curve" not in kept["variants"][0]
    assert len(out.splitlines()) == len(figures["variants"]) + 1
    monkeypatch.setattr(loop, "train", None)                        # nothing is run twice
    assert run("--output", tmp_path / "runs", "--seeds", 2)[:2] == (0, out)


def test_each_variant_differs_from_the_base_in_what_it_names():
    model_cfg, cfg = tiny.configs()
    base = recipe.cells(recipe.BASE, model_cfg, cfg, 3)
    assert [c.train.seed for c in base] == [0, 1, 2]
    names = set()
    for variant in recipe.FACTORS:
        for b, c in zip(base, recipe.cells(variant, model_cfg, cfg, 3)):
            before, after = ({**asdict(x.model), **asdict(x.train)} for x in (b, c))
            assert {k: v for k, v in after.items() if before[k] != v} == variant.changes != {}, variant
            names.add(c.name)
    assert len(names) == 3 * len(recipe.FACTORS)


def test_the_issues_factors_are_all_there():
    changed = {name for v in recipe.FACTORS for name in v.changes}
    assert changed == {"schedule", "decay_until", "weight_decay", "requantize_every", "init_std", "ema",
                       "norm", "glu"}
    for name, values in (("requantize_every", [10, 100]), ("norm", ["pre", "inner"])):
        assert [v.changes[name] for v in recipe.FACTORS if name in v.changes] == values


def figures(*losses):
    return [{"loss": x, "bits per byte": x, "cpu seconds": 1.0, "curve": [[0, 5.0], [4, x or 9.0]]}
            for x in losses]


def test_a_verdict_needs_an_interval_without_zero():
    found = recipe.compared([(recipe.BASE, figures(5.0, 5.5, 6.0)), (FEW[0], figures(5.1, 5.6, 6.1001)),
                             (FEW[1], figures(4.9, 5.6, 5.9)), (FEW[2], figures(4.0, 4.5, 5.001))])
    rows = recipe.table(found)
    assert [row[-1] for row in rows] == ["", "worse", "undecided", "better"]
    assert rows[1][2:4] == ("5.6000", "5.1000 to 6.1001")
    assert rows[1][5].startswith("+0.1000 ± 0.0001")


def test_a_variant_that_diverges_is_shown_as_such(tmp_path):
    found = recipe.compared([(recipe.BASE, figures(5.0, 5.5, 6.0)), (FEW[0], figures(5.0, None, 6.0)),
                             (FEW[2], figures(9.0, 9.5, 9.0))])
    assert recipe.table(found)[1][2:] == ("1 of 3 diverged", "", "", "", "worse")
    recipe.draw_factors(found, tmp_path / "a.png")
    recipe.draw_schedules(found, tiny.configs()[1], tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_base_that_diverges_leaves_nothing_to_compare_with(tmp_path):
    found = recipe.compared([(recipe.BASE, figures(None, 5.5, 6.0)), (FEW[0], figures(5.0, 5.0, 6.0))])
    assert recipe.table(found)[1][-1] == ""
    recipe.draw_factors(found, tmp_path / "a.png")
    recipe.draw_schedules(found, tiny.configs()[1], tmp_path / "b.png")


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--seeds", "1"], ["--seeds", "9"],
                                       ["--preset", "huge"], ["--epochs", "1"], ["--seed", "3"],
                                       ["--guard"], ["--patience", "2"]])
def test_what_is_wrong_is_refused(arguments, run, tmp_path):
    code, _, err = run("--output", tmp_path / "runs", *arguments)
    assert code == 2
    tiny.assert_three_parts(err.splitlines()[-1])
    if arguments[0] in ("--epochs", "--seed", "--guard", "--patience"):
        assert f"got {arguments[0]};" in err
    assert not (tmp_path / "runs").exists()


def test_the_help_has_the_benchs_own_defaults(capsys):
    with pytest.raises(SystemExit):
        recipe.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in ("optimiser steps (default: 300)", "micro-batch (default: 4)",
                  "peak learning rate of stage 1 (or of the only stage) (default: 0.01)"):
        assert words in said
    args = recipe.parse(["--output", "x", "--batch", "2"])
    assert (args.steps, args.batch, args.context, args.corpus) == (300, 2, 128, "wikitext-2")
