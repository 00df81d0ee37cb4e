"""The pictures of the report, from its JSON alone: quality against bytes and against speed, loss curves.

Bits per byte grow downwards, so that up and to the left (fewer bytes) or up and to the right (more tokens per
second) is better. The bars are the 95 % intervals of the tables.
Read after: bench/evaluation_report. Read next: bench/evaluation_page.
"""

from collections.abc import Callable
from typing import Any

from bitnet_ref.bench import rivals

COLOURS = {rivals.BITNET: "#d1603d", rivals.TWIN: "#4a7fc6", rivals.SMALL: "#3f9b78", rivals.LONG: "#9a6fc0"}
OTHER = "#8a8f98"
MARKS = {rivals.BITNET: "o", rivals.TWIN: "s", rivals.SMALL: "^", rivals.LONG: "D"}


def draw(report: dict[str, Any]) -> dict[str, str]:
    """{name: SVG element}"""
    from bitnet_ref.train.plots import LOOK, SIZE, as_svg, plt

    models, drawn = report["models"], {}
    pictures: dict[str, Callable[[Any], None]] = {
        "quality against bytes": lambda ax: _quality(ax, models, "bytes", 1e6, "megabytes as stored"),
        "quality against speed": lambda ax: _quality(ax, models, "decode tokens/s", 1, "tokens/s written"),
        "loss over steps": lambda ax: _curves(ax, models, lambda m: 1.0, "optimiser step"),
        "loss over time": lambda ax: _curves(ax, models, lambda m: m["seconds per step"],
                                             "seconds of training")}
    with plt.rc_context(LOOK):
        for name, picture in pictures.items():
            fig, ax = plt.subplots(figsize=SIZE, layout="constrained")
            picture(ax)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=0.25)
            ax.legend(frameon=False, fontsize="small")
            fig.draw_without_rendering()
            drawn[name] = as_svg(fig)
    return drawn


def _quality(ax: Any, models: list[dict[str, Any]], field: str, unit: float, label: str) -> None:
    for m in models:
        y = m["bits per byte"]
        ends = [[y - m["low"]], [m["high"] - y]] if m["low"] is not None else None
        ax.errorbar([m[field] / unit], [y], yerr=ends, fmt=MARKS.get(m["who"], "x"), ms=7, capsize=3,
                    color=COLOURS.get(m["who"], OTHER), label=m["name"])
    better = "left" if field == "bytes" else "right"
    ax.set(title=f"Quality against {label} (better: up, {better})", xlabel=label,
           ylabel="bits per byte, test text", xlim=(0, None))
    ax.margins(y=0.25)
    ax.set_xlim(0, 1.15 * max(m[field] / unit for m in models))
    ax.invert_yaxis()


def _curves(ax: Any, models: list[dict[str, Any]], scale: Callable[[dict[str, Any]], float],
            label: str) -> None:
    """A line for each seed; the first point, of an untrained model, would flatten the rest."""
    for m in models:
        for n, curve in enumerate(m.get("curves", [])):
            later = curve[1:] if len(curve) > 2 else curve
            ax.plot([step * scale(m) for step, _ in later], [loss for _, loss in later], lw=1.2, alpha=0.8,
                    color=COLOURS.get(m["who"], OTHER), label=None if n else m["name"])
    ax.set(title=f"Validation loss over {label.removeprefix('optimiser ')}s".replace("trainings", "training"),
           xlabel=label, ylabel="nats per token")
