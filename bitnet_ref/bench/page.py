"""python -m bitnet_ref.bench.page --run runs/nano-001 --peer peer.json --twins runs/twins
python -m bitnet_ref.bench.page --backward runs/backward

Put measured figures into the docs: docs/benchmarks/figures.json holds them, and the text between the
generated markers of README.md and docs/benchmarks/training.md is written from it. What is not given anew
stays as it was. No figure in the docs is typed by hand.
Read after: bench/diagrams. Read next: bench/readme.
"""

import json
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.train import log
from bitnet_ref.train.summary import SUMMARY

FIGURES = "benchmarks/figures.json"
KEY = "kind", "recipe", "lr", "seed"       # what tells one cell of the twins from another


def run_figures(run: Path) -> dict[str, Any]:
    """What the docs quote of a run."""
    summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    steps = log.read(run, "step")
    seconds = [line["seconds"] for line in steps]
    return {**_without(summary, "pictures"), "train seconds": sum(seconds),
            "median seconds per step": statistics.median(seconds),
            "tokens per second": steps[0]["tokens"] / statistics.median(seconds)}


def twin_figures(folder: Path) -> dict[str, Any]:
    """What the docs quote of the twins: every cell of the grid, without its curve."""
    figures = json.loads((folder / "figures.json").read_text())
    return {**figures, "cells": [_without(c, "curve") for c in figures["cells"]],
            "best": {kind: _without(c, "curve") for kind, c in figures["best"].items()}}


def backward_figures(folder: Path) -> dict[str, Any]:
    """What the docs quote of --backward bf16."""
    return dict(json.loads((folder / "figures.json").read_text()))


def _without(figures: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in figures.items() if k != key}


PICTURED = {"run": (run_figures, "pictures/overview.png", "nano.png"),     # figures; picture, and its name
            "twins": (twin_figures, "twins.png", "twins.png"),
            "backward": (backward_figures, "backward.png", "backward.png")}


def readme_block(f: dict[str, Any]) -> str:
    """The paragraph under the README's picture."""
    run, others = f["run"], f["run"]["others, bits per byte"]
    peer = ""
    if f.get("peer", {}).get("steps") == run["steps"]:     # of another length it would not compare
        peer = f" The same model, data and steps in PyTorch: {f['peer']['bits per byte']:.3f}."
    return (f"After {run['steps']} steps ({run['train seconds'] / 60:.1f} minutes on "
            f"{run['machine']['cores']} cores of {run['machine']['processor']}) this run predicts unseen "
            f"text at **{run['bits per byte']:.3f} bits per byte**.{peer} `gzip -9` and `xz -9`, given the "
            f"training text first, reach {others['gzip -9']:.2f} and {others['xz -9']:.2f} "
            f"(gzip sees only its last 32 KiB, xz all of it). It writes:\n\n````text\n{run['sample']}\n````")


def training_block(f: dict[str, Any]) -> str:
    """The tables of docs/benchmarks/training.md."""
    run = f["run"]
    rows = ["| run | bits per byte | seconds per step (median) |", "| --- | --- | --- |",
            f"| bitnet_ref, {run['machine'].get('backend', 'numpy')}, float32 | {run['bits per byte']:.4f} | "
            f"{run['median seconds per step']:.3f} |"]
    if f.get("peer", {}).get("steps") == run["steps"]:
        rows.append(f"| PyTorch, autograd, {f['peer']['mode']} | {f['peer']['bits per byte']:.4f} | "
                    f"{f['peer']['median seconds per step']:.3f} |")
    text = (f"`nano`, default corpus, {run['steps']} steps, {run['machine']['cores']} cores of "
            f"{run['machine']['processor']}, Python {run['machine']['python']}, "
            f"NumPy {run['machine']['numpy']}; {run['validation tokens']:,} validation tokens, "
            f"{run['validation bytes']:,} bytes.\n\n" + "\n".join(rows))
    return (text + (twins_block(f["twins"]) if "twins" in f else "")
            + (backward_block(f["backward"]) if "backward" in f else ""))


def gap_block(f: dict[str, Any], steps: int) -> str:
    """By how much BitNet's perplexity is above its twin's, a column for each seed."""
    away, seeds = f["spread"]["percent"], f["seeds"]
    rows = [f"| perplexity | {' | '.join(f'seed {s}' for s in seeds)} | mean, 95 % interval |",
            "|" + " --- |" * (2 + len(seeds))]
    for kind, name in (("ternary", "BitNet b1.58"), ("full", "full-precision twin")):
        mean = f["spread"][kind]
        rows.append(f"| {name} | {' | '.join(f'{p:.2f}' for p in f['perplexity'][kind])} | "
                    f"{mean['mean']:.2f} ± {mean['half']:.2f} |")
    rows.append(f"| gap | {' | '.join(f'{p:+.2f} %' for p in f['percent'])} | "
                f"{away['mean']:+.2f} % ± {away['half']:.2f} |")
    return (f"After {steps} steps BitNet's perplexity is {away['mean']:+.1f} % ± {away['half']:.1f} from its "
            f"twin's; lower is better (mean and 95 % interval of {len(seeds)} seeds):\n\n"
            + "\n".join(rows) + "\n\n")


def twins_block(f: dict[str, Any]) -> str:
    """BitNet beside its full-precision twin: the gap, then every cell."""
    text = "\n\n![BitNet and its full-precision twin](../pictures/twins.png)\n\n"
    text += gap_block(f["gap"], f["steps"]) if f.get("gap") else ""
    rows = ["| model | recipe | learning rate | seed | loss, nats per token | bits per byte | |",
            "| --- | --- | --- | --- | --- | --- | --- |"]
    tops = [[top.get(key) for key in KEY] for top in f["best"].values()]
    for c in f["cells"]:                                   # older figures name neither recipe nor seed
        top = "best" if [c.get(key) for key in KEY] in tops else ""
        rows.append(f"| {c['kind']} | {c.get('recipe', 'as given')} | {c['lr']:g} | {c.get('seed', 0)} | "
                    f"{_figure(c['loss'])} | {_figure(c['bits per byte'])} | {top} |")
    return text + "\n".join(rows)


def backward_block(f: dict[str, Any]) -> str:
    """What --backward bf16 does to a run."""
    apart = f["apart"]
    noise = max(x for name, x in apart.items() if name != "bf16")
    rows = ["| run | validation loss, nats per token | furthest from float32 in a step |",
            "| --- | --- | --- |"]
    rows += [f"| {name} | {loss:.4f} | {_figure(apart[name]) if name in apart else ''} |"
             for name, loss in f["validation"].items()]
    return (f"\n\nWith `--backward bf16`, {f['steps']} steps: at most {apart['bf16']:.3f} nats from the "
            f"float32 run, where noise of 1e-7 in the first weights drives runs up to {noise:.3f} apart."
            "\n\n![Loss with --backward bf16](../pictures/backward.png)\n\n" + "\n".join(rows))


def _figure(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4f}"


def put(page: Path, block: str, command: str = "bench.page") -> None:
    """Replace what stands between the markers of `page` that name bitnet_ref.`command`."""
    text = page.read_text(encoding="utf-8")
    check(bool(marked(command).search(text)), f"{page} must hold the generated markers", "none",
          "restore them")
    page.write_text(marked(command).sub(lambda m: m[1] + block + "\n" + m[3], text), encoding="utf-8")


def marked(command: str) -> re.Pattern[str]:
    """What finds the block of bitnet_ref.`command` in a page: its first line, what stands in it, its end."""
    marker = f"<!-- generated: python -m bitnet_ref.{command} -->\n"
    return re.compile(f"({re.escape(marker)})(.*?)(<!-- end -->)", re.DOTALL)


def main(argv: list[str]) -> int:
    """Parse, collect, write."""
    parser = Parser("python -m bitnet_ref.bench.page", __doc__)
    parser.add_argument("--root", default=".", metavar="DIR", help="the clone to write into (default: here)")
    parser.add_argument("--run", metavar="RUN", help="a finished default run")
    parser.add_argument("--peer", metavar="FILE", help="figures of bench.torch_peer --output")
    parser.add_argument("--twins", metavar="DIR", help="output folder of bench.twins")
    parser.add_argument("--backward", metavar="DIR", help="output folder of bench.backward")
    args = parser.parse_args(argv)
    root = Path(args.root)
    docs = root / "docs"
    try:
        f = json.loads((docs / FIGURES).read_text(encoding="utf-8")) if (docs / FIGURES).exists() else {}
        (docs / "pictures").mkdir(exist_ok=True)
        for name, (collect, source, picture) in PICTURED.items():
            given = getattr(args, name)
            if given:
                f[name] = collect(Path(given))
                shutil.copy(Path(given) / source, docs / "pictures" / picture)
        if args.peer:
            f["peer"] = _without(json.loads(Path(args.peer).read_text()), "losses")
        check("run" in f, "the page needs the figures of a run", "none", "give --run once")
        (docs / FIGURES).write_text(json.dumps(f, indent=1) + "\n", encoding="utf-8")
        put(root / "README.md", readme_block(f))
        put(docs / "benchmarks" / "training.md", training_block(f))
    except (OSError, KeyError, json.JSONDecodeError) as e:
        raise CheckError(f"the figures must be readable and the docs writable; got {e!r}; "
                         "check the paths") from None
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
