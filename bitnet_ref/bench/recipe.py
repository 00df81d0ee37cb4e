"""python -m bitnet_ref.bench.recipe --output runs/recipe --jobs 2
python -m bitnet_ref.bench.recipe --output runs/recipe --root .

What each part of the training recipe is worth: one factor at a time, several seeds, equal tokens, one corpus.
A variant is compared with the base of the same seed. Every cell is an ordinary run folder and is not run
again; one thread each. Ends with recipe.json and two pictures; with --root they go into docs/training.md.
Read after: bench/twins_picture. Read next: bench/recipe_pictures.
"""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.bench.cells import T95, Cell, Spread, run_cells, spread
from bitnet_ref.bench.page import put
from bitnet_ref.bench.recipe_pictures import draw_factors, draw_schedules
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, add_args, configs, run_command
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig
from bitnet_ref.data.atomic import whole_file

PAGE, FIGURES = "training.md", "recipe.json"
PICTURES = "recipe.png", "schedules.png"
# What a command line that says nothing else runs: nano in batches so small that all of it is an hour.
DEFAULTS = {"corpus": "wikitext-2", "steps": 300, "batch": 4, "context": 128, "eval_every": 30,
            "save_every": 1_000_000, "keep": 1}
# What the bench decides itself: seeds are --seeds, the guard is off, and all runs have equal, known steps.
OWN = "seed", "guard", "patience", "epochs"


class Variant(NamedTuple):
    """A factor of the recipe, a choice that differs from the base in it alone, and the fields that say so."""

    factor: str
    name: str
    changes: dict[str, Any]


BASE = Variant("", "base", {})
FACTORS = (
    Variant("schedule", "one line, decay dropped", {"schedule": "linear", "decay_until": 0.5}),
    Variant("schedule", "one line, decay kept", {"schedule": "linear"}),
    Variant("weight decay", "kept to the end", {"decay_until": 1.0}),
    Variant("weight decay", "none", {"weight_decay": 0.0}),
    Variant("ternarise every", "10 steps", {"requantize_every": 10}),
    Variant("ternarise every", "100 steps", {"requantize_every": 100}),
    Variant("initial width", "0.02", {"init_std": 0.02}),
    Variant("initial width", "0.05", {"init_std": 0.05}),
    Variant("initial width", "0.2", {"init_std": 0.2}),
    Variant("averaged weights", "ema 0.9", {"ema": 0.9}),
    Variant("averaged weights", "ema 0.98", {"ema": 0.98}),
    Variant("norms", "pre", {"norm": "pre"}),
    Variant("norms", "inner", {"norm": "inner"}),
    Variant("gated unit", "relu2", {"glu": "relu2"}),
)


def cells(variant: Variant, model_cfg: ModelConfig, cfg: TrainConfig, seeds: int) -> list[Cell]:
    """A cell for each seed. Without the guard: a variant may be what it guards against."""
    model = {k: v for k, v in variant.changes.items() if k in ModelConfig.__dataclass_fields__}
    how = {k: v for k, v in variant.changes.items() if k not in model}
    slug = "-".join(f"{variant.factor} {variant.name}".replace(",", "").split())
    return [Cell(f"{slug}-seed-{seed}", replace(model_cfg, **model),
                 replace(cfg, **how, seed=seed, guard=False)) for seed in range(seeds)]


def compared(found: list[tuple[Variant, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """What recipe.json says of each variant: the figures of its seeds, and how far they are from the base."""
    base, rows = [run["loss"] for run in found[0][1]], []
    for variant, runs in found:
        row: dict[str, Any] = {"factor": variant.factor, "variant": variant.name, "changes": variant.changes}
        for name in ("loss", "bits per byte", "cpu seconds", "curve"):
            row[name] = [run[name] for run in runs]
        if None not in [*row["loss"], *base]:
            row["above the base"] = [a - b for a, b in zip(row["loss"], base)]
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """factor, variant, loss and its range, bits per byte, distance from the base, what that says; as text."""
    made: list[tuple[str, ...]] = []
    for row in rows:
        names, losses = (row["factor"], row["variant"]), row["loss"]
        if None in losses:
            made.append((*names, f"{losses.count(None)} of {len(losses)} diverged", "", "", "", "worse"))
            continue
        mean = [f"{spread(row[name]).mean:.4f}" for name in ("loss", "bits per byte")]
        said = "", ""
        if row["factor"] and "above the base" in row:
            away = spread(row["above the base"])
            said = f"{away.mean:+.4f} ± {away.half:.4f}", verdict(away)
        made.append((*names, mean[0], f"{min(losses):.4f} to {max(losses):.4f}", mean[1], *said))
    return made


def verdict(away: Spread) -> str:
    """What a distance from the base in nats says."""
    return "undecided" if not away.decided else "worse" if away.mean > 0 else "better"


HEAD = ("factor", "variant", "loss, nats per token", "over the seeds", "bits per byte", "above the base", "")


def block(f: dict[str, Any]) -> str:
    """The section of the page between its markers."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD)]
    lines += [f"| {' | '.join(row)} |" for row in table(f["variants"])]
    return (f"`{f['preset']}` on {f['corpus']}: {f['steps']} steps of {f['batch']} windows of {f['context']} "
            f"tokens ({f['tokens']:,} tokens), seeds 0 to {f['seeds'] - 1}, peak rate {f['lr']:g}; "
            f"{f['runs']} runs, {f['cpu seconds'] / 60:.0f} minutes of processor time. The distance is from "
            f"the base of the same seed: mean and 95 % interval (Student's t of {f['seeds']} seeds: "
            f"{T95[f['seeds']]:g} standard errors).\n\n"
            "![Every variant, a dot for each seed](pictures/recipe.png)\n\n" + "\n".join(lines)
            + "\n\n![The schedules and their curves](pictures/schedules.png)")


def write_docs(folder: Path, docs: Path, figures: dict[str, Any]) -> None:
    """Pictures, figures (without curves) and the section of the page."""
    for name in PICTURES:
        shutil.copy(folder / name, docs / "pictures" / name)
    kept = [{k: v for k, v in row.items() if k != "curve"} for row in figures["variants"]]
    with whole_file(docs / "benchmarks" / FIGURES) as f:
        f.write((json.dumps({**figures, "variants": kept}, indent=1) + "\n").encode())
    put(docs / PAGE, block(figures), "bench.recipe")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, with DEFAULTS instead of the preset's."""
    parser = Parser("python -m bitnet_ref.bench.recipe", __doc__)
    parser.add_argument("--preset", metavar="|".join(PRESETS), help="a named model (default: nano)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every variant (default: 3)")
    parser.add_argument("--root", metavar="DIR", help="also write the page and pictures of the clone there")
    add_args(parser, TrainConfig, "training", DEFAULTS)
    add_args(parser, ModelConfig, "model", DEFAULTS)
    args = parser.parse_args(argv, argparse.Namespace(**DEFAULTS))
    given = [f"--{name}" for name in OWN if hasattr(args, name)]
    check(not given, "variants are compared over --seeds seeds, without the guard, after equal --steps",
          ", ".join(given), "leave it out")
    check(args.jobs > 0, "--jobs must be greater than 0", args.jobs, "use 1")
    check(args.seeds in T95, f"--seeds must be {min(T95)} to {max(T95)}", args.seeds, "use 3")
    return args


def main(argv: list[str]) -> int:
    """Parse, run what is missing, compare, draw, print."""
    args = parse(argv)
    preset, model_cfg, cfg = configs(args)
    folder, variants = Path(args.output), (BASE, *FACTORS)
    runs = run_cells(preset, [c for v in variants for c in cells(v, model_cfg, cfg, args.seeds)], folder,
                     args.jobs, threads=1)
    rows = compared([(v, runs[i * args.seeds:(i + 1) * args.seeds]) for i, v in enumerate(variants)])
    figures = {"preset": preset, "corpus": cfg.corpus, "steps": cfg.steps, "batch": cfg.batch, "lr": cfg.lr,
               "context": model_cfg.context, "seeds": args.seeds, "runs": len(runs),
               "tokens": cfg.steps * cfg.batch * cfg.accumulate * model_cfg.context,
               "cpu seconds": sum(run["cpu seconds"] for run in runs), "variants": rows}
    with whole_file(folder / FIGURES) as f:
        f.write(json.dumps(figures, indent=1).encode())
    draw_factors(rows, folder / PICTURES[0])
    draw_schedules(rows, cfg, folder / PICTURES[1])
    if args.root:
        write_docs(folder, Path(args.root) / "docs", figures)
    for row in table(rows):
        print(f"{row[0]:<17} {row[1]:<24} {row[2]:<17} {row[3]:<18} {row[4]:<8} {row[5]:<19} {row[6]}")
    print(f"{figures['cpu seconds'] / 60:.1f} minutes of processor time, {figures['tokens']:,} tokens a run")
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
