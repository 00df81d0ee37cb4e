"""python -m bitnet_ref.bench.stability --output runs/stability
python -m bitnet_ref.bench.stability --output runs/stability --root .

What the guard is worth: runs with trouble on purpose, with the guard and without, beside undisturbed ones;
and how often it interferes where there is none. Each run is an ordinary folder; what is done is not run
again. Ends with figures.json and stability.png; with --root, docs/stability.md gets its tables.
Read after: bench/saving. Read next: bench/startup.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from bitnet_ref.bench.cells import Cell, run_cell
from bitnet_ref.bench.page import put
from bitnet_ref.checks import check
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, add_args, configs, run_command
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.train import log

UNDISTURBED = "undisturbed"
WORSE = 0.01                     # floor: how much worse than undisturbed a guarded run may end
QUIET = 10                       # undisturbed runs, in which the guard must not interfere
GUARD = {True: ("with the guard", "#d1603d"), False: ("without", "#3b6fb6")}
Kind = tuple[str, bool, int]                               # trouble, guard, seed


def troubles(steps: int) -> dict[str, str | None]:
    """{name: --inject}: each kind in the middle of the run, and all, one after the other."""
    kinds = ("spike", "nan", "lr", "flip")
    return {UNDISTURBED: None, **{kind: f"{kind}@{steps // 2}" for kind in kinds},
            "all": ",".join(f"{kind}@{steps * (i + 2) // 7}" for i, kind in enumerate(kinds))}


def trained(preset: str, model_cfg: ModelConfig, cfg: TrainConfig, folder: Path) -> dict[str, Any]:
    """What came of a run (bench/cells): loss (None: it diverged, or the guard gave up), batches skipped,
    rollbacks, largest z-scores."""
    loss = run_cell(preset, Cell(folder.name, model_cfg, cfg), folder.parent, None)["loss"]
    events = [line["what"] for line in log.read(folder, "event")]
    steps = log.read(folder, "step")
    highest = {z: max((line[z] for line in steps if line.get(z) is not None), default=None)
               for z in ("loss_z", "norm_z")}
    return {"loss": loss, "skipped": events.count("skip"), "rollbacks": events.count("rollback"), **highest}


def cells(steps: int, seeds: int) -> Iterator[Kind]:
    """Every trouble, guarded and not, of every seed."""
    return ((name, guard, seed) for seed in range(seeds) for name in troubles(steps) for guard in GUARD)


def lab(preset: str, model_cfg: ModelConfig, cfg: TrainConfig, seeds: int, folder: Path
        ) -> dict[Kind, dict[str, Any]]:
    """The figures of every cell."""
    figures = {}
    for name, guard, seed in cells(cfg.steps, seeds):
        how = replace(cfg, inject=troubles(cfg.steps)[name], guard=guard, seed=seed)
        figures[name, guard, seed] = trained(preset, model_cfg, how, folder / _folder(name, guard, seed))
    return figures


def quiet(preset: str, model_cfg: ModelConfig, cfg: TrainConfig, seeds: int, folder: Path
          ) -> dict[str, dict[str, Any]]:
    """{what: figures} of undisturbed runs of other kinds and seeds; with the lab's, QUIET of them."""
    nano = PRESETS["nano"]
    kinds = {"the twin": (preset, replace(model_cfg, linear="full"), replace(cfg, lr=cfg.lr / 2)),
             "wikitext-2": (preset, model_cfg, replace(cfg, corpus="wikitext-2")),
             "batches of 2": (preset, model_cfg, replace(cfg, batch=2)),
             "nano": ("nano", nano.model, replace(nano.train, threads=cfg.threads))}
    kinds |= {f"seed {seed}": (preset, model_cfg, replace(cfg, seed=seed))
              for seed in range(seeds, QUIET - len(kinds))}
    return {what: trained(*how, folder / f"quiet-{what.replace(' ', '-')}") for what, how in kinds.items()}


def _folder(name: str, guard: bool, seed: int) -> str:
    return f"{name}-{'guarded' if guard else 'alone'}-{seed}"


# ---- what it amounts to ----

def summary(found: dict[Kind, dict[str, Any]], seeds: int) -> dict[str, dict[str, Any]]:
    """{trouble: the mean final loss beside that of the undisturbed runs, with the guard and without}."""
    calm = [found[UNDISTURBED, False, seed]["loss"] for seed in range(seeds)]
    rows: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for name, _, _ in found):
        rows[name] = {}
        for guard, (title, _) in GUARD.items():
            runs = [found[name, guard, seed] for seed in range(seeds)]
            ends = [r["loss"] for r in runs]
            rows[name][title] = {
                "losses": ends, "ended": sum(loss is None for loss in ends),
                "worse": None if None in ends else mean(loss / c - 1 for loss, c in zip(ends, calm)),
                "most": None if None in ends else max(loss / c - 1 for loss, c in zip(ends, calm)),
                "skipped": sum(r["skipped"] for r in runs), "rollbacks": sum(r["rollbacks"] for r in runs)}
    return rows


def holds(rows: dict[str, dict[str, Any]], alarms: int) -> bool:
    """The floors: no false alarm, and guarded runs that all reach their end, at most WORSE above the
    undisturbed ones in the mean, whether the trouble hurts without the guard or not."""
    ends = [row["with the guard"]["worse"] for row in rows.values()]
    return alarms == 0 and all(worse is not None and worse <= WORSE for worse in ends)


def asked_with(argv: list[str]) -> str:
    """The command as it was run, but for the folders of that day."""
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--output")
    places.add_argument("--root")
    return shlex.join(["python", "-m", "bitnet_ref.bench.stability", *places.parse_known_args(argv)[1],
                       "--output", "runs/stability"])


def block(f: dict[str, Any]) -> str:
    """The tables of docs/stability.md."""
    rows = ["| trouble | without the guard: mean (worst) loss | with it | batches skipped, all seeds | "
            "rollbacks, all seeds |",
            "| --- | --- | --- | --- | --- |"]
    for name, row in f["rows"].items():
        guarded, alone = row["with the guard"], row["without"]
        rows.append(f"| {_asked(name, f['troubles'])} | {_against(alone, f['seeds'])} | "
                    f"{_against(guarded, f['seeds'])} | {guarded['skipped']} | {guarded['rollbacks']} |")
    calm = ["| undisturbed run | batches skipped | rollbacks | largest z of the loss | of the norm |",
            "| --- | --- | --- | --- | --- |"]
    calm += [f"| {what} | {r['skipped']} | {r['rollbacks']} | {_score(r['loss_z'])} | {_score(r['norm_z'])} |"
             for what, r in f["quiet"].items()]
    return (f"`{f['command']}`\n\n`{f['preset']}`, {f['steps']} steps, {f['seeds']} seeds; losses are of all "
            f"of the validation text, against the undisturbed run of the same seed. {_floor(f)}\n\n"
            + "\n".join(rows) + "\n\n![Runs with trouble, guarded and not](pictures/stability.png)\n\n"
            + f"False alarms in {len(f['quiet'])} undisturbed runs: **{f['alarms']}**.\n\n" + "\n".join(calm))


def _floor(f: dict[str, Any]) -> str:
    """What the floor is of, and which rows have a seed beyond it."""
    beyond = [_asked(name, f["troubles"]) for name, row in f["rows"].items()
              if (row["with the guard"]["most"] or 0.0) > WORSE]
    return (f"The floor with the guard, at most {WORSE:+.0%}, is of the mean over the seeds"
            + (f"; the worst seed of {', '.join(beyond)} lies above it." if beyond else "."))


def _asked(name: str, asked: dict[str, str | None]) -> str:
    return name if asked[name] is None else f"`{asked[name]}`"


def _score(z: float | None) -> str:
    return "none: too short a run" if z is None else f"{z:.1f}"


def _against(row: dict[str, Any], seeds: int) -> str:
    if row["ended"]:
        return f"{row['ended']} of {seeds} runs ended"
    return f"{row['worse']:+.2%} ({row['most']:+.2%})"


def draw(folder: Path, steps: int, path: Path) -> None:
    """The loss of the runs of seed 0 over the batches seen, a panel for each trouble."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = {name: asked for name, asked in troubles(steps).items() if asked}
    fig, axes = plt.subplots(len(kinds), 1, figsize=(9, 2.5 * len(kinds)), layout="constrained", sharex=True)
    for ax, (name, asked) in zip(axes, kinds.items()):
        for label, color, of in ((UNDISTURBED, "#b8b8b8", (UNDISTURBED, False)),
                                 *((t, c, (name, g)) for g, (t, c) in reversed(GUARD.items()))):
            run = folder / _folder(*of, 0)
            lines = [line for line in log.read(run) if line["kind"] in ("step", "event")]
            shown = [(line["cursor"], line["loss"]) for line in lines if line["loss"] is not None]
            ax.plot(*zip(*shown), color=color, lw=1, label=label)
            back = [line["cursor"] for line in lines if line.get("what") == "rollback"]
            if back:
                ax.plot(back, [0.06] * len(back), "<", color=color, ms=6, label="rollback",
                        transform=ax.get_xaxis_transform())
            if json.loads((run / "final.json").read_text(encoding="utf-8"))["loss"] is None:
                ax.plot(*shown[-1], "x", color=color, ms=9, mew=2.5, label=f"{label}: ended")
        ax.set_title(f"--inject {asked}", loc="left", fontsize=10)
        ax.set(ylabel="loss, nats", ylim=(None, 12))
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, ncols=4, fontsize=8, loc="upper right")
    axes[-1].set_xlabel("batches seen")
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main(argv: list[str]) -> int:
    """Parse, run, draw, print. Exit code 1 if a floor does not hold."""
    parser = Parser("python -m bitnet_ref.bench.stability", __doc__)
    parser.add_argument("--preset", default="tiny", metavar="|".join(PRESETS),
                        help="a named model and its rates (default: %(default)s)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--root", metavar="DIR", help="the clone whose docs/stability.md gets the tables")
    add_args(parser, TrainConfig, "training")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)
    check(args.seeds > 0, "--seeds must be greater than 0", args.seeds, "use 3")
    preset, model_cfg, cfg = configs(args)
    check(cfg.inject is None and cfg.guard, "the laboratory chooses trouble and guard itself",
          "--inject or --no-guard", "leave them out")
    folder = Path(args.output)
    found = lab(preset, model_cfg, cfg, args.seeds, folder)
    rows = summary(found, args.seeds)
    calm = {f"seed {seed}": found[UNDISTURBED, True, seed] for seed in range(args.seeds)}
    calm |= quiet(preset, model_cfg, cfg, args.seeds, folder)
    alarms = sum(r["skipped"] + r["rollbacks"] for r in calm.values())
    f = {"command": asked_with(argv), "preset": preset, "steps": cfg.steps, "seeds": args.seeds,
         "troubles": troubles(cfg.steps), "rows": rows, "quiet": calm, "alarms": alarms}
    with whole_file(folder / "figures.json") as file:
        file.write(json.dumps(f, indent=1).encode())
    draw(folder, cfg.steps, folder / "stability.png")
    if args.root:
        shutil.copy(folder / "stability.png", Path(args.root) / "docs" / "pictures" / "stability.png")
        put(Path(args.root) / "docs" / "stability.md", block(f), "bench.stability")
    print(block(f))
    return DONE if holds(rows, alarms) else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
