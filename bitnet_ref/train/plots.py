"""The pictures of a run, from its log and its parameters alone: `draw` can be called at any time.

loss.png (training and validation), weights.png (latent weights with the trit thresholds), trits.png
(fractions of -1, 0, +1 by layer over time), flips.png (flip rate), and overview.png, the four on one page.
Read after: train/loop. Read next: train/summary.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from bitnet_ref.model import Params
from bitnet_ref.model.layout import WEIGHTS
from bitnet_ref.quant import FLOOR
from bitnet_ref.train import log

MINUS, ZERO, PLUS, INK, SOFT = "#3b6fb6", "#b8b8b8", "#d1603d", "#222222", "#9db4d3"


def draw(run: Path, params: Params, ternary: bool) -> list[Path]:
    """Write the pictures into run/pictures and return their paths. Pictures of trits need a ternary model."""
    lines = {kind: log.read(run, kind) for kind in ("step", "eval", "final", "layers")}
    scores = lines["eval"] + lines["final"][-1:]
    pictures: dict[str, Callable[[Any], None]] = {"loss": lambda ax: _loss(ax, lines["step"], scores)}
    if ternary:
        pictures["weights"] = lambda ax: _weights(ax, params)
        pictures["trits"] = lambda ax: _trits(ax, lines["layers"])
        pictures["flips"] = lambda ax: _flips(ax, lines["layers"])
    folder = run / "pictures"
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
        picture(ax)
        _save(fig, folder / f"{name}.png")
    fig, axes = plt.subplots(2, 2, figsize=(13, 8), layout="constrained", squeeze=False)
    for ax, picture in zip(axes.flat, pictures.values()):
        picture(ax)
    for ax in axes.flat[len(pictures):]:
        ax.axis("off")
    _save(fig, folder / "overview.png")
    return sorted(folder.glob("*.png"))


def _save(fig: Any, path: Path) -> None:
    fig.savefig(path, dpi=120)
    plt.close(fig)


def _style(ax: Any, title: str, x: str, y: str) -> None:
    ax.set(title=title, xlabel=x, ylabel=y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)


def _loss(ax: Any, steps: list[dict], evals: list[dict]) -> None:
    x, loss = [line["step"] for line in steps], [line["loss"] for line in steps]
    ax.plot(x, loss, color=SOFT, lw=0.8, label="training, each step")
    ax.plot([e["step"] for e in evals], [e["loss"] for e in evals], "o-", color=PLUS, ms=3,
            label="validation")
    switch = next((b["step"] for a, b in pairwise(steps) if a["decay"] > 0 and b["decay"] == 0), None)
    if switch is not None:
        ax.axvline(switch, color=INK, lw=0.8, ls=":", label="stage 2: rate drops, decay off")
    _style(ax, "Loss", "optimiser step", "nats per token")
    ax.legend(frameon=False)


def _weights(ax: Any, params: Params) -> None:
    """All trit matrices together, each in units of its own scale: thresholds stand at one half of it."""
    scaled = np.concatenate([(w / max(float(np.mean(np.abs(w))), FLOOR)).ravel()
                             for w in (params[s.name] for s in params.specs if s.ternary)])
    bins = np.linspace(-4, 4, 161)
    count, _ = np.histogram(scaled, bins)
    middle = (bins[1:] + bins[:-1]) / 2
    color = np.where(middle < -0.5, MINUS, np.where(middle > 0.5, PLUS, ZERO))
    ax.bar(middle, count / len(scaled), width=bins[1] - bins[0], color=color)
    for t in (-0.5, 0.5):
        ax.axvline(t, color=INK, lw=1, ls="--")
    for name, c, share, x in (("-1", MINUS, np.mean(scaled < -0.5), -2.6),
                              ("0", ZERO, np.mean(abs(scaled) <= 0.5), 0.0),
                              ("+1", PLUS, np.mean(scaled > 0.5), 2.6)):
        ax.text(x, 0.94, f"{name}: {share:.1%}", transform=ax.get_xaxis_transform(), ha="center",
                color=INK if name == "0" else c, weight="bold", bbox={"color": "white", "pad": 1})
    _style(ax, "Latent weights and the trit each becomes",
           "weight / scale  (scale = mean |w| of its matrix)", "share")
    ax.set_ylim(top=1.18 * max(count) / len(scaled))


def _series(lines: list[dict], weight: str, value: str) -> list[float]:
    """`value` of the matrices called `weight`, averaged over the layers, line by line."""
    return [float(np.mean([m[value] for name, m in line["layers"].items() if name.endswith("." + weight)]))
            for line in lines]


def _trits(ax: Any, lines: list[dict]) -> None:
    """Zero fraction layer by layer in grey shades, and the two signs, averaged over a layer's matrices."""
    x = [line["step"] for line in lines]
    names = lines[0]["layers"] if lines else ()
    layers = sorted({int(n.split(".")[1]) for n in names if n.startswith("layers.")})
    for l in layers:
        tint = 0.35 + 0.65 * (l + 1) / len(layers)
        for value, color in (("minus", MINUS), ("zero", INK), ("plus", PLUS)):
            y = [np.mean([m[value] for n, m in line["layers"].items()
                          if n.startswith(f"layers.{l}.") and value in m]) for line in lines]
            ax.plot(x, y, color=color, alpha=tint, lw=1.2)
    for name, color in (("-1", MINUS), ("0", INK), ("+1", PLUS)):
        ax.plot([], [], color=color, label=name)
    _style(ax, "Trit fractions by layer (darker: deeper layer)", "optimiser step", "share of the trits")
    ax.legend(frameon=False, ncols=3, loc="center right")


def _flips(ax: Any, lines: list[dict]) -> None:
    later = lines[1:]                          # the first line has nothing to compare with
    x = [line["step"] for line in later]
    weights = [w for place in WEIGHTS for w in place]
    for weight, color in zip(weights, plt.get_cmap("viridis")(np.linspace(0, 0.92, 7))):
        ax.plot(x, _series(later, weight, "flipped"), color=color, lw=1.2, label=weight)
    every = later[0]["step"] - lines[0]["step"] if later else 0
    _style(ax, f"Flip rate: trits that changed within {every} steps", "optimiser step", "share of the trits")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, ncols=2, fontsize="small")
