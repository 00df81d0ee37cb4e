"""The two pictures of bench/recipe: every variant, a dot for each seed; the schedules beside their curves.

Read after: bench/recipe. Read next: bench/backward.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.bench.cells import spread
from bitnet_ref.bench.twins_picture import finish
from bitnet_ref.config import TrainConfig
from bitnet_ref.train.schedule import lr_at

INK = "#222222"
COLORS = "#222222", "#d1603d", "#3b6fb6", "#4c9a6a", "#8e63b0", "#c9a227", "#5f6b73", "#b0527a"
WIDEST = 0.5                    # nats: what is further from the base is drawn at the edge, with its figure


def draw_factors(rows: list[dict[str, Any]], path: Path) -> None:
    """Final losses, a dot for each seed, and their distance from the base of the same seed."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    factors = list(dict.fromkeys(row["factor"] for row in rows))
    size = 13, 1.6 + 0.36 * len(rows)
    fig, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    base = [loss for loss in rows[0]["loss"] if loss is not None]
    middle = float(np.mean(base)) if base else 0.0
    for y, row in enumerate(rows):
        color = COLORS[factors.index(row["factor"]) % len(COLORS)]
        _dots(left, [loss for loss in row["loss"] if loss is not None], y, color, middle)
        _dots(right, row.get("above the base", []) if row["factor"] else [], y, color, 0.0)
        if None in row["loss"]:
            left.text(middle, y, f" {row['loss'].count(None)} diverged", color=color, va="center")
        if row["factor"] and "above the base" in row:
            away = spread(row["above the base"])
            ends = np.clip((away.mean - away.half, away.mean + away.half), -WIDEST, WIDEST)
            right.plot(ends, [y, y], color=color, lw=5, alpha=0.25, solid_capstyle="butt", zorder=1)
    left.axvline(middle, color=INK, lw=1)
    right.axvline(0.0, color=INK, lw=1)
    left.set(title="Final validation loss, a dot for each seed", xlabel="nats per token")
    right.set(title="Above the base of the same seed, 95 % interval of the mean", xlabel="nats per token")
    left.set_yticks(range(len(rows)), [_name(row) for row in rows])
    left.invert_yaxis()
    finish(fig, (left, right), path)
    plt.close(fig)


def _dots(ax: Any, values: list[float], y: int, color: str, middle: float) -> None:
    """Dots at their values; those too far off at the edge, with the mean in figures."""
    near = [x for x in values if abs(x - middle) <= WIDEST]
    ax.scatter(near, [y] * len(near), s=34, color=color, alpha=0.8, lw=0, zorder=3)
    if far := [x for x in values if abs(x - middle) > WIDEST]:
        edge = middle + WIDEST * float(np.sign(far[0] - middle))
        ax.scatter([edge], [y], s=40, marker=">" if far[0] > middle else "<", color=color, zorder=3)
        ax.text(edge, y, f"{float(np.mean(far)):.2f}  ", ha="right" if far[0] > middle else "left",
                va="center", color=color, fontsize=9)


def _name(row: dict[str, Any]) -> str:
    return f"{row['factor']}: {row['variant']}".removeprefix(": ")


def draw_schedules(rows: list[dict[str, Any]], cfg: TrainConfig, path: Path) -> None:
    """Rates of the schedules tried, and how far each mean validation curve is from the base's."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row["factor"] in ("", "schedule", "weight decay")]
    fig, (rates, apart) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    base = _curves(shown[0])
    for row, color in zip(shown, COLORS):
        name, how = _name(row), replace(cfg, **row["changes"])
        if row["factor"] != "weight decay":
            rates.plot([lr_at(step, how) for step in range(cfg.steps)], color=color, lw=1.8, label=name)
        curves = _curves(row)
        if row["factor"] and curves is not None and base is not None:
            away = curves[1] - base[1]
            apart.plot(curves[0], away.mean(axis=0), "o-", ms=3, color=color, lw=1.6, label=name)
            apart.fill_between(curves[0], away.min(axis=0), away.max(axis=0), color=color, alpha=0.12, lw=0)
    apart.axhline(0, color=INK, lw=1)
    rates.set(title="Learning rate", xlabel="optimiser step")
    apart.set(title="Validation loss above the base of the same seed: mean, and all seeds",
              xlabel="optimiser step", ylabel="nats per token")
    finish(fig, (rates, apart), path)
    plt.close(fig)


def _curves(row: dict[str, Any]) -> tuple[list[int], np.ndarray] | None:
    """Steps, and validation losses (seeds, steps), the last of the whole text; None where a seed diverged."""
    if None in row["loss"]:
        return None
    return [step for step, _ in row["curve"][0]], np.array([[x for _, x in c] for c in row["curve"]])
