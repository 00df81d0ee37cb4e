"""The pictures of a run, from its log and its parameters alone: `draw` can be called at any time.

One for the loss, the rates, the gradient's norm, its ratio to the weights, the speed; of a ternary model also
the latent weights with their thresholds, the fractions of trits, flips, nearness to a threshold, drift of the
scales. Each is a PNG in the run's folder and an SVG that takes its ink from the page it stands on;
overview.png shows the two that say most, side by side and as legible.
Read after: train/loop. Read next: train/report.
"""

import io
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from bitnet_ref.data.atomic import whole_file
from bitnet_ref.model import Params
from bitnet_ref.model.layout import WEIGHTS
from bitnet_ref.quant import FLOOR
from bitnet_ref.train import log
from bitnet_ref.train.measures import NEAR, drift

MINUS, ZERO, PLUS, INK, SOFT = "#4a7fc6", "#b8b8b8", "#d1603d", "#222222", "#9db4d3"
STEP = "optimiser step"
SIZE = 5.6, 3.6                            # inches, of one picture: legible on a telephone
FAMILY = {"attn": "Blues", "ffn": "Oranges"}                 # the hues of kinds of matrices
DASHES = "-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5))
OVERVIEW = "loss", "weights"
HALF, LARGE = (4.2, 3.6), {"font.size": 13}                # of one that shares its width with another
LOOK: dict[Any, Any] = {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
        "ytick.color": INK, "svg.hashsalt": "bitnet_ref"}
Picture = Callable[[Any], None]


def draw(run: Path, params: Params, ternary: bool) -> dict[str, str]:
    """Write the pictures into run/pictures; {name: the same as an SVG element}, without the overview.

    Pictures of trits need a ternary model.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); pictures = draw(run.folder, run.model.params, ternary=False)
    >>> sorted(pictures), (run.folder / "pictures" / "overview.png").exists()
    (['loss', 'norm', 'rates', 'ratio', 'speed'], True)
    """
    pictures = _pictures(run, params, ternary)
    folder, drawn = run / "pictures", {}
    folder.mkdir(exist_ok=True)
    with plt.rc_context(LOOK):
        for name, picture in pictures.items():
            fig, ax = plt.subplots(figsize=SIZE, layout="constrained")
            picture(ax)
            drawn[name] = _save(fig, folder / f"{name}.png")
    chosen = [pictures[name] for name in OVERVIEW if name in pictures]
    with plt.rc_context(LOOK | LARGE):
        fig, axes = plt.subplots(1, len(chosen), figsize=(len(chosen) * HALF[0], HALF[1]), squeeze=False,
                                 layout="constrained")
        for ax, picture in zip(axes.flat, chosen):
            picture(ax)
            ax.locator_params(axis="x", nbins=5)
        _save(fig, folder / "overview.png")
    return drawn


def _pictures(run: Path, params: Params, ternary: bool) -> dict[str, Picture]:
    """{name: function that draws it on an axis}, in the order of a page."""
    lines = {kind: log.read(run, kind) for kind in ("step", "eval", "final", "layers", "event")}
    steps, layers = lines["step"], lines["layers"]
    scores = list({line["step"]: line for line in lines["eval"] + lines["final"]}.values())
    pictures: dict[str, Picture] = {"loss": lambda ax: _loss(ax, steps, scores, lines["event"])}
    if ternary:
        pictures |= {"weights": lambda ax: _weights(ax, params), "trits": lambda ax: _trits(ax, layers),
                     "flips": lambda ax: _flips(ax, layers), "near": lambda ax: _near(ax, layers),
                     "drift": lambda ax: _drift(ax, layers)}
    return pictures | {"ratio": lambda ax: _ratio(ax, layers), "norm": lambda ax: _norm(ax, steps),
                       "rates": lambda ax: _rates(ax, steps), "speed": lambda ax: _speed(ax, steps)}


def _save(fig: Any, path: Path) -> str:
    """The picture as a PNG on white; returns it as an SVG element."""
    with whole_file(path) as f:
        fig.savefig(f, dpi=140, format="png")
    return as_svg(fig)


def as_svg(fig: Any) -> str:
    """A picture that was drawn as an SVG element without a background, ink being its page's; it is closed.
    >>> fig, ax = plt.subplots(); _ = ax.set_title("loss", color=INK)
    >>> svg = as_svg(fig); svg[:5], INK in svg, "currentColor" in svg
    ('<svg ', False, True)
    """
    text = io.StringIO()
    fig.set_layout_engine("none")            # laid out once is enough
    fig.savefig(text, format="svg", transparent=True)
    plt.close(fig)
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    return svg[svg.index("<svg"):].replace(INK, "currentColor")


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
    ax.plot(x, loss, color=SOFT, lw=0.8, label="training")
    ax.plot([e["step"] for e in evals], [e["loss"] for e in evals], "o-", color=PLUS, ms=3,
            label="validation")
    switch = next((b["step"] for a, b in pairwise(steps) if a["decay"] > 0 and b["decay"] == 0), None)
    if switch is not None:
        ax.axvline(switch, ymax=0.66, color=INK, lw=1, ls=":", label="stage 2: decay off")
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
    _style(ax, "Latent weights and their trits",
           "weight / mean |w| of its matrix", "share of the weights")
    ax.set_ylim(top=1.18 * max(count) / len(scaled))


def _dot(lines: list[dict]) -> str:
    """The marker of a curve: a line through one point would not be seen."""
    return "." if len(lines) == 1 else ""


def _series(lines: list[dict], weight: str, value: str) -> list[float]:
    """`value` of the matrices called `weight`, averaged over the layers, line by line."""
    return [float(np.mean([m.get(value, np.nan) for name, m in line["layers"].items()
                           if name.endswith("." + weight)])) for line in lines]


def _trits(ax: Any, lines: list[dict]) -> None:
    """The three fractions, a line a layer (mean of its matrices), on an axis that zooms on nothing."""
    title = "Trit fractions by layer (stronger: deeper layer)"
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
    _by_kind(ax, later, lambda weight: _series(later, weight, "flipped"))
    spans = {b["step"] - a["step"] for a, b in pairwise(lines)}
    since = f"within {min(spans)} steps" if len(spans) == 1 else "since the point before"
    _style(ax, f"{title} {since}", STEP, "share of the trits")
    ax.set_ylim(bottom=0)


def _by_kind(ax: Any, lines: list[dict], values: Callable[[str], list[float]]) -> None:
    """A curve for each kind of matrix: attention in blues, the gated unit in oranges."""
    for place in FAMILY:
        weights = [w for names in WEIGHTS for w in names if w.startswith(f"{place}.")]
        shades = plt.get_cmap(FAMILY[place])(np.linspace(0.75, 0.42, len(weights)))
        for weight, color, dash in zip(weights, shades, DASHES):
            ax.plot([line["step"] for line in lines], values(weight), color=color, ls=dash,
                    marker=_dot(lines), lw=1.5, label=weight)
    ax.legend(frameon=False, ncols=2, fontsize="small", handlelength=3)


def _near(ax: Any, lines: list[dict]) -> None:
    """Those that can flip soon."""
    title = f"Latent weights within {NEAR:.0%} of the scale of a threshold"
    if not lines:
        _nothing(ax, title, "log_every")
        return
    _by_kind(ax, lines, lambda weight: _series(lines, weight, "near"))
    _style(ax, title, STEP, "share of the weights")
    ax.set_ylim(bottom=0)


def _drift(ax: Any, lines: list[dict]) -> None:
    title = "Drift of the scales"
    if len(lines) < 2:                       # the first is what the others are compared with
        _nothing(ax, title, "twice log_every")
        return

    def mean(weight: str) -> list[float]:
        names = [name for name in lines[0]["layers"] if name.endswith("." + weight)]
        return np.mean([drift(lines, name) for name in names], axis=0).tolist()

    _by_kind(ax, lines, mean)
    _style(ax, title, STEP, f"scale / scale of step {lines[0]['step']}, minus 1")
    ax.axhline(0, color=INK, lw=0.8)


def _ratio(ax: Any, lines: list[dict]) -> None:
    """A row a matrix, from the first layer at the top to the last; a column a line of the log."""
    title = "Gradient / weight, norms of each matrix"
    rows = [name for name in (lines[0]["layers"] if lines else ()) if _is_projection(name)]
    if not rows:
        _nothing(ax, title, "log_every")
        return
    rows.sort(key=lambda name: int(name.split(".")[1]))
    grid = np.array([[line["layers"].get(name, {}).get("grad_to_weight", np.nan) for line in lines]
                     for name in rows])
    steps = [line["step"] for line in lines]
    edges = [2 * steps[0] - steps[1] if len(steps) > 1 else 0, *steps]   # a line stands for steps before it
    color = np.log10(grid, where=grid > 0, out=np.full(grid.shape, np.nan))
    mesh = ax.pcolormesh(edges, np.arange(len(rows) + 1), color, cmap="viridis", rasterized=True)
    layers = [int(name.split(".")[1]) for name in rows]
    starts = [i for i, l in enumerate(layers) if i == 0 or l != layers[i - 1]]
    each = -(-len(starts) // 12)             # labels that do not touch
    ax.set_yticks([i + layers.count(layers[i]) / 2 for i in starts[::each]],
                  [str(layers[i]) for i in starts[::each]])
    ax.invert_yaxis()
    _style(ax, title, STEP, "layer (its matrices in the order of use)")
    ax.grid(visible=False)
    ax.figure.colorbar(mesh, ax=ax, label="log10")


def _is_projection(name: str) -> bool:
    return any(name.endswith("." + weight) for names in WEIGHTS for weight in names)


def _norm(ax: Any, steps: list[dict]) -> None:
    ax.plot(*_points(steps, "norm"), color=MINUS, lw=0.8, marker=_dot(steps))
    _style(ax, "Norm of the gradient, before clipping", STEP, "norm")
    ax.set_yscale("log")


def _rates(ax: Any, steps: list[dict]) -> None:
    """Each as a share of its peak: they are of different sizes, and their shapes are what a recipe is."""
    for name, color, dash, title in (("lr", MINUS, "-", "learning rate"),
                                     ("decay", PLUS, "--", "weight decay")):
        x, y = _points(steps, name)
        peak = max(y, default=0) or 1
        ax.plot(x, [value / peak for value in y], color=color, lw=1.5, ls=dash, marker=_dot(steps),
                label=f"{title}, of {max(y, default=0):.2g}")
    _style(ax, "Learning rate and weight decay", STEP, "share of the peak")
    ax.set_ylim(0, 1.3)
    ax.legend(frameon=False, ncols=2, loc="upper center")


def _speed(ax: Any, steps: list[dict]) -> None:
    x, seconds = _points(steps, "seconds")
    tokens = _points(steps, "tokens")[1]
    ax.plot(x, [n / s if s > 0 else np.nan for n, s in zip(tokens, seconds)], color=MINUS, lw=0.8,
            marker=_dot(steps))
    _style(ax, "Speed of the steps", STEP, "tokens per second")
    ax.set_ylim(bottom=0)


def _points(steps: list[dict], name: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in steps], [line.get(name, np.nan) for line in steps]
