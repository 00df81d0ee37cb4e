"""The pictures of a run, from its log and its parameters alone: `draw` can be called at any time.

loss.png (training and validation), weights.png (latent weights with the trit thresholds), trits.png
(fractions of -1, 0, +1 by layer over time), flips.png (flip rate), and overview.png, all of them on one page.
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
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from bitnet_ref.model import Params
from bitnet_ref.model.layout import WEIGHTS
from bitnet_ref.quant import FLOOR
from bitnet_ref.train import log

MINUS, ZERO, PLUS, INK, SOFT = "#3b6fb6", "#b8b8b8", "#d1603d", "#222222", "#9db4d3"
STEP = "optimiser step"
SIZE = 7, 4.2                              # inches, of one picture
FAMILY = {"attn": "Blues", "ffn": "Oranges"}                 # the hues of the flip rates
DASHES = "-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5))


def draw(run: Path, params: Params, ternary: bool) -> list[Path]:
    """Write the pictures into run/pictures and return their paths. Pictures of trits need a ternary model."""
    lines = {kind: log.read(run, kind) for kind in ("step", "eval", "final", "layers", "event")}
    scores = lines["eval"] + lines["final"][-1:]
    pictures: dict[str, Callable[[Any], None]] = {
        "loss": lambda ax: _loss(ax, lines["step"], scores, lines["event"])}
    if ternary:
        pictures["weights"] = lambda ax: _weights(ax, params)
        pictures["trits"] = lambda ax: _trits(ax, lines["layers"])
        pictures["flips"] = lambda ax: _flips(ax, lines["layers"])
    folder = run / "pictures"
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        fig, ax = plt.subplots(figsize=SIZE, layout="constrained")
        picture(ax)
        _save(fig, folder / f"{name}.png")
    rows, columns, size = (2, 2, (11.5, 7.5)) if ternary else (1, 1, SIZE)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False,
                             layout=ConstrainedLayoutEngine(wspace=0.04, hspace=0.05))
    for ax, picture in zip(axes.flat, pictures.values()):
        picture(ax)
    _save(fig, folder / "overview.png")
    return sorted(folder.glob("*.png"))


def _save(fig: Any, path: Path) -> None:
    fig.savefig(path, dpi=140)
    plt.close(fig)


def _style(ax: Any, title: str, x: str, y: str) -> None:
    ax.set(title=title, xlabel=x, ylabel=y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    if x == STEP:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _nothing(ax: Any, title: str, than: str) -> None:
    ax.set_title(title)
    ax.axis("off")
    ax.text(0.5, 0.5, f"not logged yet: run longer than {than} steps", transform=ax.transAxes, ha="center",
            color="#777777")


def _loss(ax: Any, steps: list[dict], evals: list[dict], events: list[dict]) -> None:
    x, loss = [line["step"] for line in steps], [line["loss"] for line in steps]
    for i in reversed([i for i in range(1, len(x)) if x[i] <= x[i - 1]]):     # a rollback: no line backwards
        x.insert(i, x[i])
        loss.insert(i, np.nan)
    ax.plot(x, loss, color=SOFT, lw=0.8, label="training, each step")
    ax.plot([e["step"] for e in evals], [e["loss"] for e in evals], "o-", color=PLUS, ms=3,
            label="validation")
    switch = next((b["step"] for a, b in pairwise(steps) if a["decay"] > 0 and b["decay"] == 0), None)
    if switch is not None:
        ax.axvline(switch, ymax=0.72, color=INK, lw=1, ls=":", label="stage 2: rate drops, decay off")
    _events(ax, events)
    _style(ax, "Loss", STEP, "nats per token")
    ax.legend(frameon=False)


def _events(ax: Any, events: list[dict]) -> None:
    """What the guard did: a stroke at the bottom for each batch skipped, an arrow above for each way back."""
    skipped = [e["step"] for e in events if e["what"] == "skip"]
    back = [(e["from"], e["to"]) for e in events if e["what"] == "rollback"]
    if skipped:
        ax.plot(skipped, [0.02] * len(skipped), "|", color=INK, ms=9, transform=ax.get_xaxis_transform(),
                label=f"batches skipped: {len(skipped)}")
    for n, (start, end) in enumerate(back):
        y = 0.60 - 0.05 * (n % 8)                          # below the legend, and not on top of each other
        ax.plot([start, end], [y, y], "-", marker="<", markevery=[1], color=PLUS, lw=1.4, ms=5,
                transform=ax.get_xaxis_transform(), label=None if n else f"rolled back: {len(back)}")


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
        ax.axvline(t, ymax=0.9, color=INK, lw=1, ls="--")
    for name, c, share, x in (("-1", MINUS, np.mean(scaled < -0.5), -2.6),
                              ("0", ZERO, np.mean(abs(scaled) <= 0.5), 0.0),
                              ("+1", PLUS, np.mean(scaled > 0.5), 2.6)):
        ax.text(x, 0.93, f"{name}: {share:.1%}", transform=ax.get_xaxis_transform(), ha="center",
                color=INK if name == "0" else c, weight="bold")
    _style(ax, "Latent weights and the trit each becomes",
           "weight / scale  (scale = mean |w| of its matrix)", "share per bin")
    ax.set_ylim(top=1.18 * max(count) / len(scaled))


def _dot(lines: list[dict]) -> str:
    """The marker of a curve: a line through one point would not be seen."""
    return "." if len(lines) == 1 else ""


def _series(lines: list[dict], weight: str, value: str) -> list[float]:
    """`value` of the matrices called `weight`, averaged over the layers, line by line."""
    return [float(np.mean([m[value] for name, m in line["layers"].items() if name.endswith("." + weight)]))
            for line in lines]


def _trits(ax: Any, lines: list[dict]) -> None:
    """The three fractions, a line a layer (mean of its matrices), on an axis that zooms on nothing."""
    title = "Trit fractions by layer (darker: deeper layer)"
    if not lines:
        _nothing(ax, title, "log_every")
        return
    layers = sorted({int(n.split(".")[1]) for n in lines[0]["layers"] if n.startswith("layers.")})
    top = 0.5
    for value, color, dash, name in (("minus", MINUS, "-", "-1"), ("zero", INK, "-", "0"),
                                     ("plus", PLUS, (0, (4, 4)), "+1")):       # on top of -1, almost equal
        for l in layers:
            y = [np.mean([m[value] for n, m in line["layers"].items()
                          if n.startswith(f"layers.{l}.") and value in m]) for line in lines]
            ax.plot([line["step"] for line in lines], y, color=color, ls=dash, lw=1.2,
                    marker=_dot(lines), alpha=0.35 + 0.65 * (l + 1) / len(layers))
            top = max(top, 1.05 * max(y))
        ax.plot([], [], color=color, ls=dash, label=name)
    _style(ax, title, STEP, "share of the trits")
    ax.set_ylim(0, top)
    ax.legend(frameon=False, ncols=3, loc="lower right")


def _flips(ax: Any, lines: list[dict]) -> None:
    later, title = lines[1:], "Flip rate: trits that changed"     # the first line has nothing to compare with
    if not later:
        _nothing(ax, title, "twice log_every")
        return
    for place in FAMILY:
        weights = [w for names in WEIGHTS for w in names if w.startswith(f"{place}.")]
        shades = plt.get_cmap(FAMILY[place])(np.linspace(0.95, 0.55, len(weights)))
        for weight, color, dash in zip(weights, shades, DASHES):
            ax.plot([line["step"] for line in later], _series(later, weight, "flipped"), color=color, ls=dash,
                    marker=_dot(later), lw=1.5, label=weight)
    spans = {b["step"] - a["step"] for a, b in pairwise(lines)}
    since = f"within {min(spans)} steps" if len(spans) == 1 else "since the point before"
    _style(ax, f"{title} {since}", STEP, "share of the trits")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, ncols=2, fontsize="small", handlelength=3)
