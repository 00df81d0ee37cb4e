"""The picture of bench/twins: curves, final loss over the rate, perplexity by seed.

Read after: bench/twins. Read next: bench/recipe.
"""

from pathlib import Path
from typing import Any

KINDS = {"ternary": ("BitNet b1.58", "#d1603d"), "full": ("full-precision twin", "#3b6fb6")}
STYLES = "-", "--", ":"


def draw(figures: dict[str, Any], title: str, path: Path) -> None:
    """Both best curves, the others faint; the final loss over the rate; with more seeds, the perplexities."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = 2 + bool(figures["gap"])
    fig, axes = plt.subplots(1, panels, figsize=(6 * panels, 4.6), layout="constrained")
    cells = figures["cells"]
    for kind, (name, color) in KINDS.items():
        top = figures["best"][kind]
        for c in (c for c in cells if c["kind"] == kind):
            axes[0].plot(*zip(*c["curve"]), color=color, alpha=0.18, lw=1)
        axes[0].plot(*zip(*top["curve"]), color=color, lw=2.2,
                     label=f"{name}, lr {top['lr']:g}: {top['loss']:.3f} nats, "
                           f"{top['bits per byte']:.3f} bits per byte")
        first = [c for c in cells if c["kind"] == kind and c["seed"] == top["seed"] and c["loss"] is not None]
        for recipe, style in zip(dict.fromkeys(c["recipe"] for c in first), STYLES):
            row = sorted((c["lr"], c["loss"]) for c in first if c["recipe"] == recipe)
            axes[1].plot(*zip(*row), marker="o", ls=style, color=color,
                         label=name + ("" if recipe == "as given" else f", {recipe}"))
    axes[0].set(title=title, xlabel="optimiser step", ylabel="validation loss, nats per token")
    axes[1].set(title="Final validation loss over the rate", xlabel="peak learning rate", xscale="log")
    low = min(c["loss"] for c in cells if c["loss"] is not None)
    axes[0].set_ylim(low - 0.1, low + 2.5)
    if figures["gap"]:
        _seeds(axes[2], figures["gap"])
    finish(fig, axes, path)
    plt.close(fig)


def finish(fig: Any, axes: Any, path: Path) -> None:
    """Legends, faint grids, no frames; and the file."""
    for ax in axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=9)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=120)


def _seeds(ax: Any, gap: dict[str, Any]) -> None:
    """A line for each side, a point for each seed, and the gap between them in percent."""
    for kind, (name, color) in KINDS.items():
        ax.plot(gap["seeds"], gap["perplexity"][kind], "o-", color=color, lw=1, label=name)
    for seed, b, f, percent in zip(gap["seeds"], *gap["perplexity"].values(), gap["percent"]):
        ax.plot([seed, seed], [b, f], color="#999999", lw=1, ls=":", zorder=0)
        ax.annotate(f" {percent:+.1f} %", (seed, (b + f) / 2), va="center", color="#555555")
    ax.set(title="Perplexity, each at its best", xlabel="seed", xticks=gap["seeds"])
    ax.set_xlim(gap["seeds"][0] - 0.3, gap["seeds"][-1] + 0.6)
