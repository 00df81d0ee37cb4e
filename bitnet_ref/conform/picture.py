"""The picture of a report: error by layer and stage, a square for every tensor.

Read after: conform/planted. Read next: conform/export.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.conform.judge import ABSENT, BAD, OK, Verdict
from bitnet_ref.data.atomic import whole_file

COLOURS = {OK: "#2a9d5c", BAD: "#d1342f", ABSENT: "#e6e6e6", "unjudged": "#c9a227"}


def draw(verdicts: list[Verdict], path: Path) -> None:
    """Write a PNG: columns are layers (and probes), rows are stages in dataflow order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    groups: dict[str, list[tuple[str, Verdict]]] = {}
    for v in verdicts:
        column, stage = split(v.name)
        groups.setdefault(column, []).append((stage, v))
    columns = [c for c in groups if "layers" in c]
    stages = list(dict.fromkeys(stage for c in columns for stage, _ in groups[c]))
    rest = [(c, stage, v) for c in groups if c not in columns for stage, v in groups[c]]
    figure = Figure(figsize=(11, 0.24 * max(len(stages), len(rest)) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(len(columns), 1.2))
    _squares(left, columns, stages, {(c, s): v for c in columns for s, v in groups[c]})
    _squares(right, ["probes and ends"], [f"{c}.{s}" for c, s, _ in rest],
             {("probes and ends", f"{c}.{s}"): v for c, s, v in rest})
    figure.suptitle("Each square: a tensor, judged on the port's own inputs. "
                    "Number: log10 of error / tolerance", fontsize=9)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def split(name: str) -> tuple[str, str]:
    """"bitnet.layers.0.attn_norm.x_q" -> ("bitnet.layers.0", "attn_norm.x_q")"""
    found = re.match(r"(\w+\.layers\.\d+)\.(.+)", name)
    return (found[1], found[2]) if found else tuple(name.split(".", 1))         # type: ignore[return-value]


def _squares(axes: Any, columns: list[str], stages: list[str], of: dict[tuple[str, str], Verdict]) -> None:
    for x, column in enumerate(columns):
        for y, stage in enumerate(stages):
            v = of.get((column, stage))
            if v is None:
                continue
            axes.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], color=COLOURS[v.status], ec="white", lw=1)
            if v.status in (OK, BAD) and v.share > 0:
                size = f"{np.log10(min(v.share, 1e99)):.0f}"
                axes.text(x + 0.5, y + 0.55, size, ha="center", va="center", fontsize=6, color="white")
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(stages), 0)
    names = [c.replace(".layers.", " ") for c in columns]
    axes.set_xticks([x + 0.5 for x in range(len(columns))], names, fontsize=7)
    axes.set_yticks([y + 0.5 for y in range(len(stages))], stages, fontsize=6)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
