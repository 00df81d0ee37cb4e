"""python -m bitnet_ref.bench.backward --steps 200 --output runs/backward

The loss curve of --backward bf16 beside that of float32: same model, data and batches. Two runs in float32
whose initial weights are off by 1e-7, relative, show how far any rounding drives curves apart. Ends with
figures.json and backward.png.
Read after: bench/recipe_pictures. Read next: bench/rank.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, add_args, configs, run_command
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.train import loop, start

NOISE = 1e-7                                               # relative, of the initial weights
RUNS: dict[str, dict[str, Any]] = {"float32": {}, "bf16": {"backward": "bf16"},
                                   "noise 1": {"noise": 1}, "noise 2": {"noise": 2}}
COLORS = {"float32": "#222222", "bf16": "#d1603d", "noise 1": "#3b6fb6", "noise 2": "#9db4d3"}
SMOOTH = 20                                                # steps that a point of the picture averages


def curve(name: str, preset: str, model_cfg: ModelConfig, cfg: TrainConfig, folder: Path) -> dict[str, Any]:
    """{"losses": of each step, "validation": at the end, nats} of one of RUNS. Without the guard: every batch
    must move every run."""
    how = {**RUNS[name], "guard": False}
    noise = how.pop("noise", None)
    run, data = start.start(preset, model_cfg, replace(cfg, **how), str(folder / name.replace(" ", "-")))
    if noise is not None:
        assert run.model.params is not None
        flat = run.model.params.flat
        flat *= 1 + np.float32(NOISE) * np.random.default_rng(noise).standard_normal(flat.size, np.float32)
        run.model.requantise()
    losses = [loop.optimise(run, data).values["loss"] for _ in tqdm(range(cfg.steps), name)]
    return {"losses": losses, "validation": loop.final_score(run, data).loss}


def compared(curves: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the docs quote: how far each run is from float32, by step at most and at the end."""
    base = curves["float32"]
    return {"steps": len(base["losses"]), "validation": {name: c["validation"] for name, c in curves.items()},
            "apart": {name: float(np.abs(np.subtract(c["losses"], base["losses"])).max())
                      for name, c in curves.items() if c is not base}}


def draw(curves: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Both loss curves; and what each run's is above that of float32."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    base = np.array(curves["float32"]["losses"])
    window = min(SMOOTH, len(base))
    for name, c in curves.items():
        if name in ("float32", "bf16"):
            left.plot(c["losses"], color=COLORS[name], lw=1.2, ls="-" if name == "float32" else (0, (3, 2)),
                      label=f"{name}: {c['validation']:.4f} on validation text")
        if name != "float32":
            apart = np.convolve(np.subtract(c["losses"], base), np.ones(window) / window, "valid")
            right.plot(np.arange(apart.size) + window - 1, apart, color=COLORS[name], lw=1.4,
                       label=name if name == "bf16" else f"float32, weights off by {NOISE:g} ({name[-1]})")
    right.axhline(0, color=COLORS["float32"], lw=1)
    left.set(title=title, xlabel="optimiser step", ylabel="loss, nats per token")
    right.set(title=f"Above the float32 run (mean of {window} steps)", xlabel="optimiser step",
              ylabel="difference, nats per token")
    for ax in (left, right):
        ax.legend(frameon=False)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(argv: list[str]) -> int:
    """Parse, train every run, draw, print."""
    parser = Parser("python -m bitnet_ref.bench.backward", __doc__)
    parser.add_argument("--preset", metavar="|".join(PRESETS), help="a named model (default: nano)")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    add_args(parser, TrainConfig, "training")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)
    preset, model_cfg, cfg = configs(args)
    folder = Path(args.output)
    check(not folder.exists(), "--output must be a new folder", folder, "give another, or delete it")
    curves = {name: curve(name, preset, model_cfg, cfg, folder) for name in RUNS}
    figures = compared(curves)
    with whole_file(folder / "figures.json") as f:
        f.write(json.dumps(figures, indent=1).encode())
    draw(curves, f"{preset} on {cfg.corpus}", folder / "backward.png")
    for name, apart in figures["apart"].items():
        print(f"{name:<8} at most {apart:.4f} nats from float32   "
              f"on validation text {figures['validation'][name]:.4f}")
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
